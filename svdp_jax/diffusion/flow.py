"""Rectified flow: straight paths from a clean x0 (s = 0) to noise (s = 1).

x_s = (1 - s) x0 + s noise, with the velocity noise - x0. Sources: Liu et al.
2022 (arXiv 2209.03003); the shift of times, Esser et al. 2024 (arXiv 2403.03206).

All of it is float32, whatever a network computes in: normal numbers drawn in bfloat16 have 128
values, none beyond 2.9 and with a mean of -0.01, and a time rounded to it is not the one that
the network is told.
"""

from typing import Any

import jax
import jax.numpy as jnp

from svdp_jax.config import Flow

# Below this time a clean prediction no longer defines a velocity well.
SMALLEST = 0.05


def shifted(s: Any, shift: float) -> Any:
    """Moves times in [0, 1], a number or an array, towards noise, where larger pictures lose their structure."""
    return shift * s / (1 + (shift - 1) * s)


def sample_times(key: jax.Array, count: int, config: Flow) -> jax.Array:
    """Training times (count,): logit-normal, then shifted."""
    normal = config.mean + config.std * jax.random.normal(key, (count,))
    return shifted(jax.nn.sigmoid(normal), config.shift)


def schedule(steps: int, shift: float) -> jax.Array:
    """Sampling times from 1 to 0: steps + 1."""
    return shifted(jnp.linspace(1.0, 0.0, steps + 1), shift)


def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """What training and sampling start from."""
    return jax.random.normal(key, shape, jnp.float32)


def noised(x0: jax.Array, noise: jax.Array, s: jax.Array) -> jax.Array:
    """The point at time s (b,) between x0 and noise (b ...)."""
    s = expand(s, x0)
    return (1 - s) * x0 + s * noise


def velocity(prediction: jax.Array, x: jax.Array, s: jax.Array, predict: str) -> jax.Array:
    """What the network says at (x, s), as a velocity; `predict` is velocity or clean."""
    if predict == "velocity":
        return prediction
    return (x - prediction) / jnp.maximum(expand(s, x), SMALLEST)


def loss(prediction: jax.Array, x0: jax.Array, noise: jax.Array, s: jax.Array, predict: str, weight=1) -> jax.Array:
    """Mean squared error of the velocity, per example: (b,). `weight` is over places of x0."""
    x = noised(x0, noise, s)
    target = velocity(noise - x0 if predict == "velocity" else x0, x, s, predict)
    error = weight * (velocity(prediction, x, s, predict) - target) ** 2
    return error.mean(axis=tuple(range(1, error.ndim)))


def expand(s: jax.Array, like: jax.Array) -> jax.Array:
    return s.reshape(s.shape + (1,) * (like.ndim - s.ndim))
