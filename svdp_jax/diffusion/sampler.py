"""From noise to latents: Euler steps along the guided velocity, in one scan.

The state and the guided sum are float32; only the network computes in the dtype of its prompt.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from svdp_jax import parallel
from svdp_jax.config import Model, Sampling
from svdp_jax.diffusion import flow, guidance


def euler(velocity: Callable, noise: jax.Array, times: jax.Array | np.ndarray) -> jax.Array:
    """Integrates `velocity(x, s)` from noise at times[0] to times[-1], float32; s is a scalar."""

    def step(x, interval):
        s, following = interval
        return x + (following - s) * velocity(x, s), None

    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def sample(
    model: Callable, noise: jax.Array, text: jax.Array, pooled: jax.Array, conditions: dict, config: Model, sampling: Sampling
) -> jax.Array:
    """One segment of clean latents, b f y x c; the other shapes as in `advance`."""
    times = flow.schedule(sampling.steps, sampling.shift)
    return advance(model, noise, times, text, pooled, conditions, config, guidance.weights(sampling))


def advance(
    model: Callable,
    x: jax.Array,
    times: jax.Array,
    text: jax.Array,
    pooled: jax.Array,
    conditions: dict,
    config: Model,
    weights: dict[int, float],
) -> jax.Array:
    """Latents x, b f y x c, carried from the first to the last of some times of the schedule, in float32.

    Branches and clips are spread over the devices that share a batch.
    text: b t w, pooled: b w. conditions: source b y x c, driving b f y x c, past b p y x c
    (or None where the model has no past). weights: `guidance.weights`; they may be traced.
    """

    def velocity(x, s):
        def predict(conditions, copies):
            xs, ts, ps = (jnp.concatenate([a] * copies) for a in (x, text, pooled))
            times = jnp.full(xs.shape[0], s)
            given = jax.tree.map(lambda part: part.astype(text.dtype), (xs, ts, ps, conditions))

            def call(rows):
                (x, text, pooled, conditions), times = rows
                return model(x, times, text, pooled, **conditions)

            prediction = parallel.evenly(call, (given, times))
            return flow.velocity(prediction.astype(jnp.float32), xs, times, config.predict)

        return guidance.guided(predict, conditions, weights, config.video.null)

    return euler(velocity, x.astype(jnp.float32), times)
