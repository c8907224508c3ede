"""From noise to latents: Euler steps along the guided velocity, in one scan.

The state and the guided sum are float32; only the network computes in the dtype of its prompt.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from svdp_jax import parallel
from svdp_jax.config import Model, Sampling
from svdp_jax.diffusion import flow, guidance


def euler(velocity: Callable, noise: jax.Array, times: jax.Array | np.ndarray) -> jax.Array:
    """Integrates `velocity(x, s, r)` from noise at times[0] to times[-1], float32; s and r, where the step ends, are scalars."""

    def step(x, interval):
        s, r = interval
        return x + (r - s) * velocity(x, s, r), None

    return jax.lax.scan(step, noise, (times[:-1], times[1:]))[0]


def sample(
    model: Callable, noise: jax.Array, text: jax.Array, pooled: jax.Array, conditions: dict, config: Model, sampling: Sampling
) -> jax.Array:
    """One segment of clean latents, b f y x c; the other shapes as in `advance`."""
    times, weights = flow.schedule(sampling.steps, sampling.shift), guidance.weights(sampling, config.told)
    return advance(model, noise, times, text, pooled, conditions, config, weights)


def advance(
    model: Callable,
    x: jax.Array,
    times: jax.Array,
    text: jax.Array,
    pooled: jax.Array,
    conditions: dict,
    config: Model,
    weights: dict[int, Any],
) -> jax.Array:
    """Latents x, b f y x c, carried from the first to the last of some times of the schedule, in float32.

    text: b t w, pooled: b w. conditions: source b y x c, driving b f y x c, past b p y x c
    (or None where the model has no past). weights: `guidance.weights`; they may be traced.
    """
    step = lambda x, s, r: velocity(model, x, s, r, text, pooled, conditions, config, weights)
    return euler(step, x.astype(jnp.float32), times)


def velocity(
    model: Callable,
    x: jax.Array,
    s: jax.Array,
    r: jax.Array,
    text: jax.Array,
    pooled: jax.Array,
    conditions: dict,
    config: Model,
    weights: dict[int, Any],
) -> jax.Array:
    """The guided velocity at x in float32, of a told network the mean one from time s to time r: numbers, or (b,).

    weights: as in `advance`, like all the rest, or for each clip: (b,), and told (b, 3).
    Branches and clips are spread over the devices that share a batch.
    """
    b = len(x)
    s, r = (jnp.broadcast_to(jnp.asarray(time, jnp.float32), b) for time in (s, r))
    asked = {}
    if config.told:
        ((level, told),) = weights.items()
        asked["told"] = jnp.concatenate([jnp.broadcast_to(told, (b, 3)), r[:, None]], 1)
        weights = {level: 1.0}
    weights = {level: flow.expand(jnp.asarray(weight), x) for level, weight in weights.items()}

    def predict(conditions, copies):
        xs, times, ts, ps = (jnp.concatenate([a] * copies) for a in (x, s, text, pooled))
        given = jax.tree.map(lambda part: part.astype(text.dtype), (xs, ts, ps, conditions))

        def call(rows):
            (x, text, pooled, conditions), times, asked = rows
            return model(x, times, text, pooled, **conditions, **asked)

        prediction = parallel.evenly(call, (given, times, asked))
        return flow.velocity(prediction.astype(jnp.float32), xs, times, config.predict)

    return guidance.guided(predict, conditions, weights, config.video.null)
