"""From noise to latents: Euler steps along the guided velocity, in one scan.

The state and the guided sum are float32; only the network computes in the dtype of its prompt.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    model: Any, noise: jax.Array, text: jax.Array, pooled: jax.Array, conditions: dict, config: Model, sampling: Sampling
) -> jax.Array:
    """One segment of clean latents, b f y x c; the other shapes as in `advance`."""
    times, weights = flow.schedule(sampling.steps, sampling.shift), guidance.weights(sampling, config.told)
    return advance(model, noise, times, text, pooled, conditions, config, weights)


def advance(
    model: Any,
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
    What the model remembers of the conditions is computed once for all steps.
    """
    remember = model.remember if config.video.references == "cached" else None
    asked = asking(conditions, weights, text, pooled, config, remember)
    return euler(lambda x, s, r: velocity(model, x, s, r, asked, config), x.astype(jnp.float32), times)


class Asked(NamedTuple):
    """What is the same at every step. branches: see `guidance.branches`, their conditions with text and pooled, or what
    the model remembers of them; told: guidance weights (3,) or (b, 3) for a network that is told them."""

    branches: list[tuple[list, dict]]
    told: jax.Array | None


def asking(
    conditions: dict,
    weights: dict[int, Any],
    text: jax.Array,
    pooled: jax.Array,
    config: Model,
    remember: Callable | None = None,
) -> Asked:
    """Weights are as in `advance`, like all the rest, or for each clip: (b,), and told (b, 3)."""
    told = None
    if config.told:
        ((level, told),) = weights.items()
        weights = {level: 1.0}
    branches = []
    for copied, given in guidance.branches(conditions, weights, config.video.null):
        texts = {name: jnp.concatenate([x] * len(copied)) for name, x in (("text", text), ("pooled", pooled))}
        given = {name: x.astype(text.dtype) for name, x in given.items() if x is not None}
        if remember:
            filled, filled_texts = parallel.even((given, texts))
            given = {"memory": remember(filled, **filled_texts)}
        branches.append((copied, texts | given))
    return Asked(branches, told)


def velocity(model: Callable, x: jax.Array, s: Any, r: Any, asked: Asked, config: Model) -> jax.Array:
    """The guided velocity at x in float32, of a told network the mean one from time s to time r: numbers, or (b,).

    Branches and clips are spread over the devices that share a batch.
    """
    s, r = (jnp.broadcast_to(jnp.asarray(time, jnp.float32), len(x)) for time in (s, r))
    told = {}
    if asked.told is not None:
        told["told"] = jnp.concatenate([jnp.broadcast_to(asked.told, (len(x), 3)), r[:, None]], 1)

    def predict(given, copies):
        xs, times = (jnp.concatenate([a] * copies) for a in (x, s))
        memory = {name: given[name] for name in given if name == "memory"}  # whose rows are even already
        rows = {name: part for name, part in given.items() if name not in memory}
        call = lambda rows: model(**rows, **memory)
        rows |= {"z": xs.astype(given["text"].dtype), "time": times} | told
        prediction = parallel.evenly(call, rows)
        return flow.velocity(prediction.astype(jnp.float32), xs, times, config.predict)

    weighted = [([flow.expand(jnp.asarray(w), x) for w in weights], given) for weights, given in asked.branches]
    return guidance.guided(predict, weighted)
