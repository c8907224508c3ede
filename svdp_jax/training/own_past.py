"""Past frames as the model makes them: training by them closes the gap between real past and its own, where seams and
drift come from.

They are made as a segment that nothing comes before, of their own drivers, in a few steps of the running average, and
without gradients. Source: Huang et al. 2025, "Self Forcing" (arXiv 2506.08009), with one segment in place of a whole video.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from svdp_jax import config as configs
from svdp_jax.diffusion import flow, sampler

STEPS = 3  # of the sampler


def needed(config: configs.Config) -> bool:
    """Whether any stage trains by it, so that examples hold the drivers of past frames too."""
    return any(stage.own_past for stage in config.stages)


def mixed(model: Callable, batch: dict, key: jax.Array, share, config: configs.Config) -> jax.Array:
    """The past (b p y x c) of latents with that of a share of examples made by `model` of `past_driving` (b p y x c)."""
    key_noise, key_share = jax.random.split(key)
    real = batch["past"]

    def made() -> jax.Array:
        conditions = {"source": batch["source"], "driving": batch["past_driving"], "past": jnp.zeros_like(real)}
        at = configs.Sampling(steps=STEPS, shift=config.sampling.shift, source=1.0, driving=1.0, past=0.0)
        noise = flow.noise(key_noise, real.shape)
        return sampler.sample(model, noise, batch["text"], batch["pooled"], conditions, config.model, at)

    own = jax.lax.cond(share > 0, made, lambda: real)
    chosen = jax.random.bernoulli(key_share, share, (len(real),))
    return jax.lax.stop_gradient(jnp.where(flow.expand(chosen, real), own, real))
