"""The loss that trains a codec: pictures that come back from latents which a generator will not hit exactly.

A batch is that of any run; source, past, target and driving are pictures alike, so that the codec also knows what is
grey but for windows. Three terms make latents that are easy to generate: noise on them while they are learned, so that
a small error in the latents is a small one in the picture; the divergence of each channel from a unit Gaussian, so that
they need no scaling; and crops, which cost a quarter and show as much.
"""

import jax
import jax.numpy as jnp
from einops import pack
from flax import nnx

from svdp_jax import config as configs
from svdp_jax.models.vae import from_uint8

CROP = 64  # pixels
NOISE = 0.3  # the largest deviation of noise on latents, whose own is 1
DIVERGENCE = 0.1  # weight


def cropped(pictures: jax.Array, key: jax.Array, side: int) -> jax.Array:
    """A random square of each picture (n y x c): n side side c."""
    corners = jax.random.randint(key, (len(pictures), 2), 0, pictures.shape[1] - side + 1)
    cut = lambda picture, corner: jax.lax.dynamic_slice(picture, (*corner, 0), (side, side, picture.shape[-1]))
    return jax.vmap(cut)(pictures, corners)


def divergence(latents: jax.Array) -> jax.Array:
    """Kullback-Leibler divergence of Gaussians with the channels' means and variances from the unit one, their mean."""
    mean, variance = latents.mean((0, 1, 2)), latents.var((0, 1, 2))
    return 0.5 * (mean**2 + variance - 1 - jnp.log(variance + 1e-6)).mean()


def loss(codec, pictures: jax.Array, key: jax.Array) -> jax.Array:
    """Mean absolute error of pictures (n y x 3) in [-1, 1] that pass through noisy latents, and `divergence`."""
    key_share, key_noise = jax.random.split(key)
    latents = codec.encode(pictures)
    share = NOISE * jax.random.uniform(key_share, (len(pictures), 1, 1, 1))
    noisy = latents + share * jax.random.normal(key_noise, latents.shape)
    return jnp.abs(codec.decode(noisy) - pictures).mean() + DIVERGENCE * divergence(latents)


def make_loss(config: configs.Config, graph: nnx.GraphDef, codec_graph: nnx.GraphDef):
    """As `step.make_loss`: of a batch of uint8 pictures, with the codec's weights as those that learn."""
    dtype = jnp.dtype(config.dtype)

    def batch_loss(weights, constants, frozen, batch, key, stage):
        pictures, _ = pack(list(batch.values()), "* y x c")
        crops = from_uint8(cropped(pictures, key, min(CROP, config.data.size)), dtype)
        codec = nnx.merge(graph, jax.tree.map(lambda w: w.astype(dtype), weights), constants)
        return loss(codec, crops, key)

    return batch_loss
