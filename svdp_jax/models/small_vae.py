"""A small autoencoder: pictures to latents and back with a million parameters, for the miniature.

Every 8 x 8 pixels become 16 channels, as with SD3's autoencoder, so that a drawn portrait of 128 x 128 costs 16 x 16
latents. No norm and no attention: it sees its neighbourhood alone, and works at any size. It starts as what JPEG does: the lowest
coefficients of the cosine transform of each 8 x 8 pixels, most of them of brightness; what convolutions add to these on
both sides is nothing at first, and learned. The loss that trains it is in `svdp_jax.training.reconstruction`. Shapes as
in `models.vae`.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import pack, rearrange, repeat, unpack
from flax import nnx

from svdp_jax.values.declared import Count

FOLD = 2  # pixels a side that the first layer sees as one place: what happens at full size would take half the time


@dataclass(frozen=True)
class SmallAutoencoderConfig:
    """Widths from the picture to the latents; each level has half the rows of the one before."""

    widths: tuple[Count, ...] = (32, 64, 96)
    channels: Count = 16


# Brightness, and two differences of colour, as orthonormal directions of red, green and blue.
COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
SPREAD = (4.2, 2.3, 1.3)  # of the first coefficient of each over drawn pictures in [-1, 1]; others have less


def cosines(factor: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Basis (channels, factor² x 3) of patches, the widest spread first, and the spread of each coefficient, about."""
    rows = np.arange(factor)
    waves = np.cos(np.pi * (rows[:, None] + 0.5) * rows / factor) * np.sqrt(np.where(rows == 0, 1, 2) / factor)  # y u
    spreads = np.array(SPREAD)[:, None, None] / (1 + 3 * (rows[:, None] + rows))  # k u v
    k, u, v = np.unravel_index(np.argsort(-spreads, axis=None)[:channels], spreads.shape)
    return np.einsum("yn,xn,nc->nyxc", waves[:, u], waves[:, v], COLOURS[k]).reshape(channels, -1), spreads[k, u, v]


def conv(size_in: int, size_out: int, rngs: nnx.Rngs, strides: int = 1) -> nnx.Conv:
    return nnx.Conv(size_in, size_out, (3, 3), strides=strides, rngs=rngs)


def nothing(size_in: int, size_out: int, rngs: nnx.Rngs) -> nnx.Conv:
    """A convolution whose result is zero until it learns, so that depth costs no start."""
    return nnx.Conv(size_in, size_out, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs)


class Block(nnx.Module):
    def __init__(self, size: int, rngs: nnx.Rngs):
        self.conv1 = conv(size, size, rngs)
        self.conv2 = nothing(size, size, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.conv2(jax.nn.silu(self.conv1(jax.nn.silu(x))))


class Up(nnx.Module):
    def __init__(self, size_in: int, size_out: int, rngs: nnx.Rngs):
        self.conv = conv(size_in, size_out, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(repeat(x, "b y x d -> b (y i) (x j) d", i=2, j=2))


class SmallAutoencoder(nnx.Module):
    """Latents have about zero mean and unit deviation in each channel, as it was trained to make them."""

    at_once = 8  # frames, see `vae.each_frame`

    def __init__(self, config: SmallAutoencoderConfig, rngs: nnx.Rngs):
        widths, place = config.widths, 3 * FOLD**2
        self.factor, self.channels = FOLD * 2 ** (len(widths) - 1), config.channels
        down: list[nnx.Module] = [conv(place, widths[0], rngs), Block(widths[0], rngs)]
        for size_in, size_out in zip(widths, widths[1:]):
            down += [conv(size_in, size_out, rngs, strides=2), Block(size_out, rngs)]
        up: list[nnx.Module] = [conv(config.channels, widths[-1], rngs)]
        for size_in, size_out in zip(widths[::-1], widths[-2::-1]):
            up += [Block(size_in, rngs), Block(size_in, rngs), Up(size_in, size_out, rngs)]
        up += [Block(widths[0], rngs), Block(widths[0], rngs)]
        down.append(nothing(widths[-1], config.channels, rngs))
        up.append(nothing(widths[0], place, rngs))
        self.encoder, self.decoder = nnx.List(down), nnx.List(up)
        basis, spreads = cosines(self.factor, config.channels)
        fixed = lambda array: lambda *_: jnp.asarray(array, jnp.float32)
        self.analysis = nnx.Linear(*basis.T.shape, use_bias=False, kernel_init=fixed(basis.T / spreads), rngs=rngs)
        self.synthesis = nnx.Linear(*basis.shape, use_bias=False, kernel_init=fixed(basis * spreads[:, None]), rngs=rngs)

    @property
    def dtype(self):
        """That of the weights, in which it computes."""
        return self.analysis.kernel.dtype

    def encode(self, images: jax.Array) -> jax.Array:
        """Pictures (... y x 3) to latents (... y/factor x/factor channels)."""
        x, leading = pack([images], "* y x c")
        latents = self.analysis(folded(x, self.factor)) + in_turn(folded(x, FOLD), self.encoder)
        return unpack(latents, leading, "* y x c")[0]

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents to pictures, which may leave [-1, 1] a little."""
        x, leading = pack([latents], "* y x c")
        images = unfolded(self.synthesis(x), self.factor) + unfolded(in_turn(x, self.decoder), FOLD)
        return unpack(images, leading, "* y x c")[0]


def folded(images: jax.Array, factor: int) -> jax.Array:
    """Each factor x factor pixels as the channels of one place."""
    return rearrange(images, "b (y i) (x j) c -> b y x (i j c)", i=factor, j=factor)


def unfolded(x: jax.Array, factor: int) -> jax.Array:
    return rearrange(x, "b y x (i j c) -> b (y i) (x j) c", i=factor, j=factor)


def in_turn(x: jax.Array, layers) -> jax.Array:
    return functools.reduce(lambda x, layer: layer(x), layers, x)
