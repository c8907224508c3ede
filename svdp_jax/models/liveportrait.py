"""LivePortrait: one portrait, moved by implicit keypoints. It makes the pairs that training needs.

Pictures are b y x 3 in [0, 1], 256 x 256 going in and 512 x 512 coming out; volumes b z y x c;
keypoints as in `keypoints`. Five networks: the appearance of a picture as a volume, the motion in
it, the warping of a volume from one set of keypoints to another, the generator of the picture, and
the small one that stitches and retargets. Module names follow the published files.

Source: Guo et al. 2024 (arXiv 2407.03168), KwaiVGI/LivePortrait; Woo et al. 2023 (arXiv 2301.00808)
for ConvNeXt V2, Park et al. 2019 (arXiv 1903.07291) for SPADE.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from flax import nnx

from svdp_jax.models import keypoints
from svdp_jax.models.keypoints import KEYPOINTS, Motion
from svdp_jax.models.vae import conv, in_turn
from svdp_jax.models.volume import Conv3d, convolve_enlarged, sample, sample_shifted

BINS = 66  # of three degrees each, in which angles are told
HEAT = 0.01  # variance of a keypoint's spot
RATIOS = {"shoulder": KEYPOINTS * 3, "mouth": 2, "eye": 3}  # what each small network knows beside x_s
SHIFTS = {"shoulder": 2, "mouth": 0, "eye": 0}  # and says beside a shift of every keypoint


@dataclass(frozen=True)
class LivePortraitConfig:
    """The published sizes."""

    channels: int = 32  # of the volume
    depth: int = 16
    appearance: tuple[int, ...] = (64, 128, 256)  # widths at each resolution, halved from one to the next
    resblocks: int = 6
    motion: tuple[int, ...] = (96, 192, 384, 768)
    motion_blocks: tuple[int, ...] = (3, 3, 9, 3)
    compress: int = 4  # channels of the volume that each keypoint's flow is tried on
    hourglass: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    warped: int = 256  # channels of what the warping gives
    generator: tuple[int, ...] = (512, 256, 64)  # widths at each resolution, doubled from one to the next
    middle: int = 6  # generator blocks at the first
    spade: int = 128  # hidden width of the spatial modulation
    shoulder: tuple[int, ...] = (128, 128, 64)
    mouth: tuple[int, ...] = (128, 128, 64)
    eye: tuple[int, ...] = (256, 256, 128, 128, 64)


def batch_norm(size: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """With the statistics of its training; this code only runs the network."""
    return nnx.BatchNorm(size, use_running_average=True, rngs=rngs)


class Block(nnx.Module):
    """Convolution, norm, ReLU; then half the resolution along y and x, if `halve`."""

    def __init__(self, layer: nnx.Module, size: int, rngs: nnx.Rngs, halve: bool = False, slope: float = 0):
        self.conv, self.norm = layer, batch_norm(size, rngs)
        self.halve, self.slope = halve, slope

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.leaky_relu(self.norm(self.conv(x)), self.slope)
        return reduce(x, "... (y i) (x j) c -> ... y x c", "mean", i=2, j=2) if self.halve else x


class ResBlock3d(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = batch_norm(size, rngs), batch_norm(size, rngs)
        self.conv1, self.conv2 = Conv3d(size, size, rngs), Conv3d(size, size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.conv1(jax.nn.relu(self.norm1(x)))
        return x + self.conv2(jax.nn.relu(self.norm2(out)))


class Appearance(nnx.Module):
    """F. Pictures to volumes, b y x 3 to b z y/4 x/4 c."""

    def __init__(self, config: LivePortraitConfig, rngs: nnx.Rngs):
        widths, self.depth = config.appearance, config.depth
        self.first = Block(conv(3, widths[0], rngs), widths[0], rngs)
        self.down_blocks = nnx.List([Block(conv(a, b, rngs), b, rngs, halve=True) for a, b in zip(widths, widths[1:])])
        self.second = conv(widths[-1], config.channels * config.depth, rngs, kernel=1)
        self.resblocks_3d = nnx.List([ResBlock3d(config.channels, rngs) for _ in range(config.resblocks)])

    def __call__(self, pictures: jax.Array) -> jax.Array:
        x = in_turn(pictures, self.first, *self.down_blocks, self.second)  # b y x (c z)
        x = rearrange(x, "b y x (c z) -> b z y x c", z=self.depth)
        return in_turn(x, *self.resblocks_3d)


def layer_norm(size: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(size, epsilon=1e-6, use_fast_variance=False, rngs=rngs)


class GRN(nnx.Module):
    """Global response normalisation: channels compete by their norm over the picture."""

    def __init__(self, size: int):
        self.gamma, self.beta = nnx.Param(jnp.zeros(size)), nnx.Param(jnp.zeros(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        norm = jnp.sqrt((x**2).sum((1, 2), keepdims=True))  # b 1 1 d
        return x + self.gamma[...] * (x * (norm / (norm.mean(-1, keepdims=True) + 1e-6))) + self.beta[...]


class ConvNeXtBlock(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs):
        self.dwconv = nnx.Conv(size, size, (7, 7), feature_group_count=size, rngs=rngs)
        self.norm = layer_norm(size, rngs)
        self.pwconv1 = nnx.Linear(size, 4 * size, rngs=rngs)
        self.grn = GRN(4 * size)
        self.pwconv2 = nnx.Linear(4 * size, size, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = self.pwconv1(self.norm(self.dwconv(x)))  # b y x 4d
        return x + self.pwconv2(self.grn(jax.nn.gelu(out, approximate=False)))


class MotionExtractor(nnx.Module):
    """M, a ConvNeXt V2. Pictures b y x 3 to `Motion`."""

    def __init__(self, config: LivePortraitConfig, rngs: nnx.Rngs):
        widths = config.motion
        down = lambda a, b, step: nnx.Conv(a, b, (step, step), strides=step, padding="VALID", rngs=rngs)
        first = [down(3, widths[0], 4), layer_norm(widths[0], rngs)]
        others = [[layer_norm(a, rngs), down(a, b, 2)] for a, b in zip(widths, widths[1:])]
        self.downsample_layers = nnx.List([nnx.List(pair) for pair in (first, *others)])
        self.stages = nnx.List(
            nnx.List([ConvNeXtBlock(width, rngs) for _ in range(count)]) for width, count in zip(widths, config.motion_blocks)
        )
        self.norm = layer_norm(widths[-1], rngs)
        head = lambda size: nnx.Linear(widths[-1], size, rngs=rngs)
        self.fc_kp, self.fc_exp = head(3 * KEYPOINTS), head(3 * KEYPOINTS)
        self.fc_t, self.fc_scale = head(3), head(1)
        self.fc_pitch, self.fc_yaw, self.fc_roll = head(BINS), head(BINS), head(BINS)

    def __call__(self, pictures: jax.Array) -> Motion:
        x = pictures
        for down, stage in zip(self.downsample_layers, self.stages):
            x = in_turn(x, *down, *stage)  # b y x d
        x = self.norm(x.mean((1, 2)))  # b d
        triples = lambda x: rearrange(x, "b (k i) -> b k i", i=3)
        return Motion(
            triples(self.fc_kp(x)), triples(self.fc_exp(x)), self.fc_t(x), self.fc_scale(x),
            degrees(self.fc_pitch(x)), degrees(self.fc_yaw(x)), degrees(self.fc_roll(x)),
        )  # fmt: skip


def degrees(logits: jax.Array) -> jax.Array:
    """The angle (b,) that bins of three degrees tell, b bins."""
    mean = jax.nn.softmax(logits, -1) @ jnp.arange(logits.shape[-1], dtype=logits.dtype)
    return 3 * mean - 97.5


class Encoder(nnx.Module):
    def __init__(self, size_in: int, widths: tuple[int, ...], rngs: nnx.Rngs):
        pairs = zip((size_in, *widths), widths)
        self.down_blocks = nnx.List([Block(Conv3d(a, b, rngs), b, rngs, halve=True) for a, b in pairs])

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        """The volume at every resolution, finest first."""
        levels = [x]
        for block in self.down_blocks:
            levels.append(block(levels[-1]))
        return levels


class Decoder(nnx.Module):
    def __init__(self, size_in: int, widths: tuple[int, ...], rngs: nnx.Rngs):
        skips = (0, *widths[-2:0:-1])  # channels of the encoder that join before each block
        pairs = zip(widths[:0:-1], skips, widths[-2::-1])
        self.up_blocks = nnx.List([Block(Conv3d(a + skip, b, rngs, enlarge=2), b, rngs) for a, skip, b in pairs])
        self.size = widths[0] + size_in
        self.conv, self.norm = Conv3d(self.size, self.size, rngs), batch_norm(self.size, rngs)

    def __call__(self, levels: list[jax.Array]) -> jax.Array:
        *skips, x = levels
        for block, skip in zip(self.up_blocks, reversed(skips)):
            x = jnp.concatenate([block(x), skip], -1)
        return jax.nn.relu(self.norm(self.conv(x)))


class Hourglass(nnx.Module):
    def __init__(self, size_in: int, widths: tuple[int, ...], rngs: nnx.Rngs):
        self.encoder = Encoder(size_in, widths[1:], rngs)
        self.decoder = Decoder(size_in, widths, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.decoder(self.encoder(x))


class DenseMotion(nnx.Module):
    """From keypoints to a flow for every cell of the volume, and what of the source is still seen."""

    def __init__(self, config: LivePortraitConfig, rngs: nnx.Rngs):
        flows = KEYPOINTS + 1  # one for each keypoint, and standing still
        self.compress = Conv3d(config.channels, config.compress, rngs, kernel=1)
        self.norm = batch_norm(config.compress, rngs)
        self.hourglass = Hourglass(flows * (1 + config.compress), config.hourglass, rngs)
        size = self.hourglass.decoder.size
        self.mask = Conv3d(size, flows, rngs, kernel=7)
        self.occlusion = conv(size * config.depth, 1, rngs, kernel=7)

    def __call__(self, volumes, source, driven) -> tuple[jax.Array, jax.Array]:
        """volumes: b z y x c. source, driven: b k 3. Returns places b z y x 3 to sample, seen b y x 1.

        Places are told in the keypoints' float32 whatever the network computes in: bfloat16 cannot tell cells apart.
        """
        cells = grid(volumes.shape[1:4], driven.dtype)  # z y x 3
        shifts = jnp.pad(source - driven, ((0, 0), (1, 0), (0, 0)))  # b k 3, the first standing still
        shifts = jnp.broadcast_to(shifts, (len(volumes), *shifts.shape[1:]))
        small = jax.nn.relu(self.norm(self.compress(volumes)))  # b z y x c
        heat = spots(cells, driven) - spots(cells, source)  # b z y x k
        heat = jnp.pad(heat, ((0, 0),) * 4 + ((1, 0),)).astype(volumes.dtype)
        tried = jnp.concatenate([heat[..., None], sample_shifted(small, cells, shifts)], -1)
        x = self.hourglass(rearrange(tried, "b z y x k c -> b z y x (k c)"))
        shares = jax.nn.softmax(self.mask(x).astype(shifts.dtype), -1)  # b z y x k
        places = cells + jnp.einsum("bzyxk,bki->bzyxi", shares, shifts)  # as the shares' sum is one
        seen = self.occlusion(rearrange(x, "b z y x c -> b y x (c z)"))
        return places, jax.nn.sigmoid(seen)


def grid(shape: tuple[int, ...], dtype) -> jax.Array:
    """(x, y, z) of the cells of a volume, from -1 to 1: z y x 3."""
    z, y, x = (np.linspace(-1, 1, size) for size in shape)
    z, y, x = np.meshgrid(z, y, x, indexing="ij")
    return jnp.asarray(np.stack([x, y, z], -1), dtype)


def spots(cells: jax.Array, points: jax.Array) -> jax.Array:
    """A Gaussian around each keypoint b k 3, in cells z y x 3: b z y x k."""
    # One axis at a time: three small tables in place of a distance for every cell and keypoint.
    axes = cells[0, 0, :, 0], cells[0, :, 0, 1], cells[:, 0, 0, 2]
    x, y, z = (jnp.exp((axis[:, None] - points[:, None, :, i]) ** 2 / (-2 * HEAT)) for i, axis in enumerate(axes))
    return jnp.einsum("bzk,byk,bxk->bzyxk", z, y, x)


class Warped(NamedTuple):
    features: jax.Array  # b y x c
    seen: jax.Array  # b y x 1: how much of it is taken from the source, 0..1


class Warping(nnx.Module):
    """W. A source's volume, moved from its keypoints to the driven ones."""

    def __init__(self, config: LivePortraitConfig, rngs: nnx.Rngs):
        self.dense_motion_network = DenseMotion(config, rngs)
        size = config.warped
        self.third = Block(conv(config.channels * config.depth, size, rngs), size, rngs, slope=0.01)
        self.fourth = conv(size, size, rngs, kernel=1)

    def __call__(self, volumes: jax.Array, source: jax.Array, driven: jax.Array) -> Warped:
        places, seen = self.dense_motion_network(volumes, source, driven)
        x = rearrange(sample(volumes, places), "b z y x c -> b y x (c z)")
        return Warped(self.fourth(self.third(x)) * seen, seen)


class SPADE(nnx.Module):
    """Normalises each channel over the picture; scale and shift come from the warped features."""

    def __init__(self, size: int, given: int, hidden: int, rngs: nnx.Rngs):
        self.mlp_shared = conv(given, hidden, rngs)
        self.mlp_gamma, self.mlp_beta = conv(hidden, size, rngs), conv(hidden, size, rngs)

    def __call__(self, x: jax.Array, given: jax.Array) -> jax.Array:
        factor = x.shape[1] // given.shape[1]
        kernel, bias = (getattr(self.mlp_shared, part)[...] for part in ("kernel", "bias"))
        hidden = convolve_enlarged(given, kernel, factor) + bias
        hidden = jax.nn.relu(hidden)  # b y x d
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean((1, 2), keepdims=True)
        wide = wide * jax.lax.rsqrt((wide**2).mean((1, 2), keepdims=True) + 1e-5)
        x = wide.astype(x.dtype)
        return x * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class SPADEBlock(nnx.Module):
    def __init__(self, size_in: int, size_out: int, given: int, hidden: int, rngs: nnx.Rngs):
        small = min(size_in, size_out)
        norm = lambda size: SPADE(size, given, hidden, rngs)
        self.norm_0, self.norm_1 = norm(size_in), norm(small)
        self.conv_0, self.conv_1 = conv(size_in, small, rngs), conv(small, size_out, rngs)
        self.changes_size = size_in != size_out
        if self.changes_size:
            self.norm_s = norm(size_in)
            self.conv_s = nnx.Conv(size_in, size_out, (1, 1), use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, given: jax.Array) -> jax.Array:
        out = self.conv_0(leaky(self.norm_0(x, given)))
        out = self.conv_1(leaky(self.norm_1(out, given)))
        return out + (self.conv_s(self.norm_s(x, given)) if self.changes_size else x)


def leaky(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, 0.2)


class Generator(nnx.Module):
    """G. Warped features b y x c to pictures eight times as large, b 8y 8x 3 in [0, 1]."""

    def __init__(self, config: LivePortraitConfig, rngs: nnx.Rngs):
        first, second, last = config.generator
        block = lambda a, b: SPADEBlock(a, b, config.warped, config.spade, rngs)
        self.fc = conv(config.warped, first, rngs)
        self.middle = nnx.List([block(first, first) for _ in range(config.middle)])
        self.up_0, self.up_1 = block(first, second), block(second, last)
        self.conv_img = conv(last, 12, rngs)

    def __call__(self, given: jax.Array) -> jax.Array:
        x = self.fc(given)
        for block in self.middle:
            x = block(x, given)
        for block in (self.up_0, self.up_1):
            x = block(repeat(x, "b y x c -> b (y i) (x j) c", i=2, j=2), given)
        x = self.conv_img(leaky(x))
        return jax.nn.sigmoid(rearrange(x, "b y x (c i j) -> b (y i) (x j) c", i=2, j=2))


class SmallNetwork(nnx.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, sizes: tuple[int, ...], rngs: nnx.Rngs):
        steps = []
        for pair in zip(sizes, sizes[1:]):
            steps += [nnx.Linear(*pair, rngs=rngs), jax.nn.relu]
        self.mlp = nnx.List(steps[:-1])

    def __call__(self, x: jax.Array) -> jax.Array:
        return in_turn(x, *self.mlp)


class Stitching(nnx.Module):
    """S. From a source's keypoints and what is wanted, b d each, to shifts of keypoints.

    `shoulder` sees the driven keypoints and keeps the picture's lower border where it is; `mouth`
    and `eye` see how far these are open in the source and shall be (2 and 3 numbers).
    """

    shoulder: SmallNetwork

    def __init__(self, config: LivePortraitConfig, rngs: nnx.Rngs):
        flat = 3 * KEYPOINTS
        for name, known in RATIOS.items():
            sizes = (flat + known, *getattr(config, name), flat + SHIFTS[name])
            setattr(self, name, SmallNetwork(sizes, rngs))


class LivePortrait(nnx.Module):
    def __init__(self, config: LivePortraitConfig, rngs: nnx.Rngs):
        self.appearance = Appearance(config, rngs)
        self.motion = MotionExtractor(config, rngs)
        self.warping = Warping(config, rngs)
        self.generator = Generator(config, rngs)
        self.stitching = Stitching(config, rngs)

    def stitch(self, source: jax.Array, driven: jax.Array) -> jax.Array:
        """Driven keypoints b k 3 that do not move the shoulders; source: 1 k 3 or b k 3."""
        source = jnp.broadcast_to(source, driven.shape)
        known = rearrange([source, driven], "s b k i -> b (s k i)")
        return keypoints.stitched(driven, self.stitching.shoulder(known))

    def retarget(self, part: str, source: jax.Array, openings: jax.Array) -> jax.Array:
        """How keypoints b k 3 of the source must shift so that its `eye` or `mouth` opens as the last of `openings`,
        b r, says; the others are how open it is."""
        flat = jnp.broadcast_to(rearrange(source, "b k i -> b (k i)"), (len(openings), 3 * KEYPOINTS))
        shift = getattr(self.stitching, part)(jnp.concatenate([flat, openings], -1))
        return rearrange(shift, "b (k i) -> b k i", i=3)

    def render(self, volume, source, driven) -> tuple[jax.Array, jax.Array]:
        """Pictures b y x 3 of one source in driven keypoints b k 3, and what was seen of it, b y x 1.

        volume: 1 z y x c, of the source's picture. source: its keypoints, 1 k 3. Warping and generator compute in
        the dtype of their weights.
        """
        dtype = self.generator.fc.kernel[...].dtype
        volumes = jnp.broadcast_to(volume.astype(dtype), (len(driven), *volume.shape[1:]))
        warped = self.warping(volumes, source, driven)
        return self.generator(warped.features), warped.seen
