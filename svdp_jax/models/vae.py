"""Pictures to latents and back: the SD3 autoencoder and the toy's exact codec.

Both have the same two calls, `encode` and `decode`, and tell `factor` (pixels
per latent row) and `channels` (of the latents). Pictures are ... y x 3 in
[-1, 1], latents ... y x c, with any leading dimensions.

Module and parameter names follow the diffusers checkpoint (`AutoencoderKL`).
Sources: Rombach et al. 2022 (arXiv 2112.10752); Stability AI, SD3 and SD3.5.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import pack, rearrange, reduce, repeat, unpack
from flax import nnx


@dataclass(frozen=True)
class AutoencoderConfig:
    """SD3's autoencoder. Fields are named as in the checkpoint's `config.json`."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    scaling_factor: float = 1.5305
    shift_factor: float = 0.0609


def from_uint8(pixels: jax.Array, dtype=jnp.float32) -> jax.Array:
    """Pixels 0..255 to pictures in [-1, 1]."""
    return pixels.astype(dtype) / 127.5 - 1


def to_uint8(pictures: jax.Array) -> jax.Array:
    """Pictures in [-1, 1] to pixels 0..255; what lies outside is clipped."""
    return jnp.round((pictures.astype(jnp.float32) / 2 + 0.5).clip(0, 1) * 255).astype(jnp.uint8)


class PixelCodec(nnx.Module):
    """Exact codec without parameters: every `factor` x `factor` patch becomes the channels."""

    at_once = 1024  # frames, see `each_frame`
    dtype = jnp.float32  # in which it is exact

    def __init__(self, factor: int):
        self.factor, self.channels = factor, 3 * factor**2

    def encode(self, images: jax.Array) -> jax.Array:
        """Pictures (... y x 3) to latents (... y/factor x/factor channels)."""
        return rearrange(images, "... (y i) (x j) c -> ... y x (i j c)", i=self.factor, j=self.factor)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents back to the very pictures that they came from."""
        return rearrange(latents, "... y x (i j c) -> ... (y i) (x j) c", i=self.factor, j=self.factor)


class GroupNorm(nnx.Module):
    """Normalises each group of channels over the whole picture; learned scale and bias."""

    def __init__(self, groups: int, size: int):
        self.groups = groups
        self.scale, self.bias = nnx.Param(jnp.ones(size)), nnx.Param(jnp.zeros(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide - self.mean(wide)
        wide = wide * jax.lax.rsqrt(self.mean(wide**2) + 1e-6)
        return wide.astype(x.dtype) * self.scale[...] + self.bias[...]

    def mean(self, x: jax.Array) -> jax.Array:
        """Mean over a picture and each group of its channels, b y x d to b 1 1 d."""
        # Pictures before groups: the large array keeps its layout, only a vector is regrouped.
        mean = reduce(x.mean((1, 2)), "b (g c) -> b g", "mean", g=self.groups)
        return repeat(mean, "b g -> b 1 1 (g c)", c=x.shape[-1] // self.groups)


def conv(size_in: int, size_out: int, rngs: nnx.Rngs, kernel: int = 3) -> nnx.Conv:
    return nnx.Conv(size_in, size_out, (kernel, kernel), rngs=rngs)


class ResnetBlock(nnx.Module):
    def __init__(self, size_in: int, size_out: int, groups: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = GroupNorm(groups, size_in), GroupNorm(groups, size_out)
        self.conv1, self.conv2 = conv(size_in, size_out, rngs), conv(size_out, size_out, rngs)
        if size_in != size_out:
            self.conv_shortcut = conv(size_in, size_out, rngs, kernel=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.conv1(jax.nn.silu(self.norm1(x)))
        out = self.conv2(jax.nn.silu(self.norm2(out)))
        return out + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nnx.Module):
    """Every pixel attends to every pixel of its picture, with one head."""

    def __init__(self, size: int, groups: int, rngs: nnx.Rngs):
        self.group_norm = GroupNorm(groups, size)
        self.to_q, self.to_k, self.to_v, self.to_out = (nnx.Linear(size, size, rngs=rngs) for _ in range(4))

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = rearrange(self.group_norm(x), "b y x d -> b (y x) 1 d")
        q, k, v = self.to_q(normed), self.to_k(normed), self.to_v(normed)  # b n h k
        out = self.to_out(jax.nn.dot_product_attention(q, k, v))
        return x + out.reshape(x.shape)


class Downsample(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs):
        # Padded below and to the right only, as the checkpoint was trained.
        self.conv = nnx.Conv(size, size, (3, 3), strides=2, padding=((0, 1), (0, 1)), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


class Upsample(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs):
        self.conv = conv(size, size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(repeat(x, "b y x d -> b (y i) (x j) d", i=2, j=2))


def resnets(size_in: int, size_out: int, count: int, groups: int, rngs: nnx.Rngs) -> nnx.List:
    sizes = (size_in, *count * [size_out])
    return nnx.List([ResnetBlock(*pair, groups, rngs) for pair in zip(sizes, sizes[1:])])


class DownBlock(nnx.Module):
    """Residual blocks at one resolution, then half of it unless this is the last."""

    def __init__(self, size_in: int, size_out: int, config: AutoencoderConfig, last: bool, rngs: nnx.Rngs):
        count, groups = config.layers_per_block, config.norm_num_groups
        self.resnets = resnets(size_in, size_out, count, groups, rngs)
        self.downsamplers = nnx.List([] if last else [Downsample(size_out, rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return in_turn(x, *self.resnets, *self.downsamplers)


class UpBlock(nnx.Module):
    """Residual blocks at one resolution, then twice of it unless this is the last."""

    def __init__(self, size_in: int, size_out: int, config: AutoencoderConfig, last: bool, rngs: nnx.Rngs):
        count, groups = config.layers_per_block + 1, config.norm_num_groups
        self.resnets = resnets(size_in, size_out, count, groups, rngs)
        self.upsamplers = nnx.List([] if last else [Upsample(size_out, rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return in_turn(x, *self.resnets, *self.upsamplers)


class MidBlock(nnx.Module):
    def __init__(self, size: int, groups: int, rngs: nnx.Rngs):
        self.resnets = resnets(size, size, 2, groups, rngs)
        self.attentions = nnx.List([Attention(size, groups, rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        return in_turn(x, self.resnets[0], self.attentions[0], self.resnets[1])


def in_turn(x: jax.Array, *layers: Callable) -> jax.Array:
    for layer in layers:
        x = layer(x)
    return x


class Encoder(nnx.Module):
    """Pictures to the mean and log-variance of their latents."""

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        sizes, groups = config.block_out_channels, config.norm_num_groups
        pairs = list(zip((sizes[0], *sizes), sizes))
        self.conv_in = conv(3, sizes[0], rngs)
        self.down_blocks = nnx.List([DownBlock(*pair, config, i == len(pairs) - 1, rngs) for i, pair in enumerate(pairs)])
        self.mid_block = MidBlock(sizes[-1], groups, rngs)
        self.conv_norm_out = GroupNorm(groups, sizes[-1])
        self.conv_out = conv(sizes[-1], 2 * config.latent_channels, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = in_turn(self.conv_in(images), *self.down_blocks, self.mid_block)  # b y/f x/f d
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))  # b y/f x/f 2c


class Decoder(nnx.Module):
    """Latents to pictures."""

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        sizes, groups = config.block_out_channels[::-1], config.norm_num_groups
        pairs = list(zip((sizes[0], *sizes), sizes))
        self.conv_in = conv(config.latent_channels, sizes[0], rngs)
        self.mid_block = MidBlock(sizes[0], groups, rngs)
        self.up_blocks = nnx.List([UpBlock(*pair, config, i == len(pairs) - 1, rngs) for i, pair in enumerate(pairs)])
        self.conv_norm_out = GroupNorm(groups, sizes[-1])
        self.conv_out = conv(sizes[-1], 3, rngs)

    def __call__(self, latents: jax.Array) -> jax.Array:
        x = in_turn(self.conv_in(latents), self.mid_block, *self.up_blocks)  # b y x d
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))  # b y x 3


class Autoencoder(nnx.Module):
    """SD3's autoencoder. Latents are the posterior's mean, shifted and scaled to unit variance."""

    at_once = 1

    def __init__(self, config: AutoencoderConfig, rngs: nnx.Rngs):
        self.encoder, self.decoder = Encoder(config, rngs), Decoder(config, rngs)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.channels = config.latent_channels
        self.shift, self.scale = config.shift_factor, config.scaling_factor

    @property
    def dtype(self):
        """That of the weights, in which it computes."""
        return self.encoder.conv_in.kernel.dtype

    def encode(self, images: jax.Array) -> jax.Array:
        """Pictures (... y x 3) to latents (... y/factor x/factor channels)."""
        images, leading = pack([images], "* y x c")
        mean, _ = jnp.split(self.encoder(images), 2, axis=-1)
        return unpack((mean - self.shift) * self.scale, leading, "* y x c")[0]

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents to pictures, which may leave [-1, 1] a little."""
        latents, leading = pack([latents], "* y x c")
        images = self.decoder(latents / self.scale + self.shift)
        return unpack(images, leading, "* y x c")[0]


# Pixels a side of the largest picture in one piece, whose decoder needs 4 GB in float32; larger ones are cut
# into tiles of this size, which overlap.
TILE, OVERLAP = 1024, 256


def encode_frames(codec, pixels: jax.Array) -> jax.Array:
    """Latents, float32, of pixels (... y x 3) uint8, in as many pieces as it takes to fit beside a model."""
    tile = lambda x: codec.encode(from_uint8(x, codec.dtype)).astype(jnp.float32)
    return each_frame(whole_or_tiled(tile, pixels, TILE, OVERLAP, 1 / codec.factor), pixels, codec.at_once)


def decode_frames(codec, latents: jax.Array) -> jax.Array:
    """Pixels (... y x 3) uint8 of latents, in pieces likewise."""
    tile = lambda z: codec.decode(z.astype(codec.dtype)).astype(jnp.float32)
    picture = whole_or_tiled(tile, latents, TILE // codec.factor, OVERLAP // codec.factor, codec.factor)
    return each_frame(lambda z: to_uint8(picture(z)), latents, codec.at_once)


def whole_or_tiled(fn: Callable, x: jax.Array, tile: int, overlap: int, factor: float) -> Callable:
    """`fn` itself where the frames x (... y x c) are no larger than a tile."""
    return fn if max(x.shape[-3:-1]) <= tile else partial(tiled, fn, tile=tile, overlap=overlap, factor=factor)


def each_frame(fn: Callable, frames: jax.Array, at_once: int) -> jax.Array:
    """`fn` (encode or decode) of every frame (... y x c), `at_once` at a time.

    Beside the result, memory is that of `at_once` frames however many there are.
    """
    frames, leading = pack([frames], "* y x c")
    return unpack(jax.lax.map(fn, frames, batch_size=at_once), leading, "* y x c")[0]


class Span(NamedTuple):
    """One tile along one axis: where it is cut, where it lands, and its share of each row there."""

    source: slice
    target: slice
    weight: np.ndarray


def spans(size: int, tile: int, overlap: int, factor: float) -> list[Span]:
    """Tiles that cover `size` rows; their weights rise and fall linearly and sum to one."""
    tile = min(tile, size)
    count = 1 + -(-(size - tile) // (tile - overlap))
    starts = [min(i * (tile - overlap), size - tile) for i in range(count)]
    side = int(tile * factor)
    targets = [slice(int(start * factor), int(start * factor) + side) for start in starts]
    rows = np.arange(side)
    ramp = np.minimum(1, np.minimum(rows + 0.5, side - rows - 0.5) / (overlap * factor))
    total = np.zeros(int(size * factor))
    for target in targets:
        total[target] += ramp
    return [Span(slice(start, start + tile), target, ramp / total[target]) for start, target in zip(starts, targets)]


def tiled(fn: Callable, x: jax.Array, tile: int, overlap: int, factor: float) -> jax.Array:
    """`fn` (encode or decode) of overlapping square tiles, one at a time, blended linearly.

    x: ... y x c. tile, overlap: in rows of x. factor: rows of the result per row
    of x, below 1 to encode; each of them times `factor` must be whole. Beside x
    and the result, memory is that of one tile. The result is close to that of
    the whole picture, not equal: norms and attention see one tile each.
    """
    rows, columns = (spans(size, tile, overlap, factor) for size in x.shape[-3:-1])
    places = list(itertools.product(rows, columns))
    tiles = jnp.stack([x[..., row.source, column.source, :] for row, column in places])
    pieces = jax.lax.map(fn, tiles)
    height, width = rows[-1].target.stop, columns[-1].target.stop
    out = jnp.zeros((*pieces.shape[1:-3], height, width, pieces.shape[-1]), pieces.dtype)
    for piece, (row, column) in zip(pieces, places):
        weight = jnp.asarray(row.weight[:, None, None] * column.weight[:, None], pieces.dtype)
        out = out.at[..., row.target, column.target, :].add(piece * weight)
    return out
