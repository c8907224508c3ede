"""The paper's guidance over four nested sets of conditions.

Level 0 knows nothing, 1 the source, 2 source and driving, 3 all with past. The
result is u + ls (s - u) + ld (d - s) + lp (p - d), a weighted sum of the four.
"""

import itertools
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from svdp_jax.config import Flow, Sampling, Stage, Teaching

CONDITIONS = ("source", "driving", "past")  # in the order in which levels gain them


def of_levels(source: Any, driving: Any, past: Any) -> tuple:
    """The weights of the four levels from those of guidance, numbers or arrays; they sum to one."""
    return 1 - source, source - driving, driving - past, past


def weights(config: Sampling, told: bool = False) -> dict[int, Any]:
    """Of those of the four levels whose weight is not zero. A network that is told guidance is asked for the last
    level alone, which has what it is told, (3,), in place of a weight."""
    if told:
        return {3: np.array([config.source, config.driving, config.past], np.float32)}
    return {i: w for i, w in enumerate(of_levels(config.source, config.driving, config.past)) if abs(w) > 1e-6}


def drawn(key: jax.Array, config: Teaching, count: int) -> tuple[jax.Array, dict[int, jax.Array]]:
    """Guidance weights drawn for so many examples (b, 3), and those (b,) of the levels that can have any."""
    (s, d, p), (most_s, most_d, most_p) = np.array([config.source, config.driving, config.past], np.float32).T
    told = jax.random.uniform(key, (count, 3), minval=np.stack([s, d, p]), maxval=np.stack([most_s, most_d, most_p]))
    least, most = (1 - most_s, s - most_d, d - most_p, p), (1 - s, most_s - d, most_d - p, most_p)
    return told, {i: w for i, w in enumerate(of_levels(*told.T)) if least[i] or most[i]}


def at_start(weights: dict[int, Any], null: str) -> dict[int, Any]:
    """The weights for a segment that nothing comes before, where `all` is source and driving.

    With null="drop" no past is left out, as in training. With zeros both levels are the same
    prediction, which is made once.
    """
    if 3 not in weights or (null == "zeros" and 2 not in weights):
        return weights
    return {i: w for i, w in weights.items() if i < 2} | {2: weights.get(2, 0.0) + weights[3]}


def chances(config: Flow, stages: tuple[Stage, ...], stage: jax.Array) -> jax.Array:
    """Of training's levels, (4,), in the stage of this number: where it has no past, `all` is source and driving."""
    real_past = jnp.asarray([each.past for each in stages], jnp.float32)[stage]
    nothing, source, driving, everything = config.dropout
    return jnp.array([nothing, source, driving + everything * (1 - real_past), everything * real_past], jnp.float32)


def zeroed(conditions: dict, level: jax.Array) -> dict:
    """Conditions (b ...) with those above each example's level (b,) as zero latents."""
    return {
        name: jnp.where((level > i).reshape((-1,) + (1,) * (x.ndim - 1)), x, 0)
        for i, name in enumerate(CONDITIONS)
        if (x := conditions.get(name)) is not None
    }


def dropped(conditions: dict, level: int) -> dict:
    """Conditions without those above the level."""
    return {name: conditions.get(name) for name in CONDITIONS[:level]}


def branches(conditions: dict, weights: dict[int, Any], null: str) -> list[tuple[list, dict]]:
    """What is predicted of the levels that `weights` names: conditions, (copies b) ..., and the weight of each copy.

    Levels without a weight cost nothing; with null="zeros" the others are one batch.
    """
    if null == "drop":
        return [([w], dropped(conditions, i)) for i, w in weights.items()]
    copies, b = len(weights), conditions["source"].shape[0]
    tiled = {k: jnp.concatenate([x] * copies) for k, x in conditions.items() if x is not None}
    return [(list(weights.values()), zeroed(tiled, jnp.repeat(jnp.array(list(weights)), b)))]


def guided(predict: Callable, branches: list[tuple[list, dict]]) -> jax.Array:
    """The weighted sum of `predict(conditions, copies)`, which returns (copies b) ..., over `branches`."""
    parts = [zip(ws, jnp.split(predict(given, len(ws)), len(ws))) for ws, given in branches]
    return reduce(add, (w * part for w, part in itertools.chain.from_iterable(parts)))


def with_dropout(
    predict: Callable, conditions: dict, key: jax.Array, chances: jax.Array, null: str, levels: tuple[int, ...] = (0, 1, 2, 3)
) -> jax.Array:
    """`predict(conditions)` in training, at random ones of these levels, drawn with a chance each.

    With zeros every example has its own level. Dropped tokens change the shapes,
    so there the whole batch shares one.
    """
    if null == "zeros":
        b = conditions["source"].shape[0]
        drawn = jax.random.choice(key, len(levels), (b,), p=chances)
        return predict(zeroed(conditions, jnp.asarray(levels)[drawn]))
    branches = [lambda level=level: predict(dropped(conditions, level)) for level in levels]
    return jax.lax.switch(jax.random.choice(key, len(levels), p=chances), branches)
