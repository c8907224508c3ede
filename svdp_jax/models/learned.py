"""A network parted into what learns and what does not, by a table of names (`values.learn`).

What is frozen lies in bfloat16, or in int8 with a scale for each column, and is no part of what is trained:
it has no gradient, no moments and no average. A low-rank part stands beside a frozen layer (LoRA, Hu et al.
2021, arXiv 2106.09685): x W + (x A) B, with B zero at first, so that it changes nothing; the factor alpha / rank
of others is 1 here.

`qwix`, which does this for Flax, finds weights by the call that reads them: in a stack that runs under one scan
what it adds to a layer is lost with the scan, and where several layers are read as one product it finds none.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svdp_jax.errors import UserError
from svdp_jax.models.layers import Linear
from svdp_jax.values import learn

LARGEST = 127  # of int8, on both sides of zero
PARTS, SCALE = ("lora_a", "lora_b"), "kernel_scale"


def adapted(model: Any, table: str, frozen: str, rngs: nnx.Rngs) -> Any:
    """The network itself, with low-rank parts where the table wants them, and what is frozen in bfloat16, in int8, or
    as it was."""
    if not learn.adapts(table):
        return model
    rows = learn.rows(table)
    layers = {f"{dotted(path)}.kernel": layer for path, layer in nnx.iter_modules(model) if isinstance(layer, Linear)}
    params = nnx.to_flat_state(nnx.state(model, nnx.Param))
    wanted = {dotted(path): learn.how(rows, dotted(path)) for path, _ in params}
    check(wanted, set(layers), rows)
    still = [(path, leaf) for path, leaf in params if wanted[dotted(path)].how != "full"]
    if frozen in ("bfloat16", "int8"):
        nnx.update(
            model, nnx.from_flat_state((path, leaf.replace(leaf.get_value().astype(jnp.bfloat16))) for path, leaf in still)
        )
    for path, leaf in still:
        if layer := layers.get(dotted(path)):
            if frozen == "int8":
                layer.kernel, layer.kernel_scale = map(nnx.Param, quantized(leaf.get_value()))
            if rank := wanted[dotted(path)].rank:
                layer.lora_a, layer.lora_b = map(nnx.Param, low_rank(layer.kernel.shape, rank, rngs))
    return model


def check(wanted: dict[str, learn.Row], layers: set[str], rows: tuple[learn.Row, ...]) -> None:
    """Raises UserError for a table in which nothing learns, or a row that fits nothing or cannot be."""
    if all(row.how == "frozen" for row in wanted.values()):
        raise UserError("config.learn freezes all there is; name what learns, such as video_.*=full.")
    if idle := [row for row in rows if row not in wanted.values() and row.pattern != ".*"]:
        raise UserError(f"config.learn: no parameter has {idle[0].pattern} for its first row; correct or remove it.")
    if wrong := sorted(name for name, row in wanted.items() if row.rank and name not in layers):
        raise UserError(f"config.learn: {wrong[0]} is no kernel, and can be full or frozen, not lora.")


def low_rank(shape: tuple[int, ...], rank: int, rngs: nnx.Rngs) -> tuple[jax.Array, jax.Array]:
    """A (... i r) and B (... r o) beside a kernel ... i o; their product is zero."""
    *stack, i, o = shape
    a = jax.random.normal(rngs.params(), (*stack, i, rank)) / np.float32(np.sqrt(i))
    return a, jnp.zeros((*stack, rank, o))


def quantized(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kernel ... i o in int8, and the scale of each column, ... o."""
    wide = kernel.astype(jnp.float32)
    # A scale that bfloat16 holds as it is, so that no rounding comes after that of the weights.
    scale = (jnp.abs(wide).max(-2) / LARGEST).astype(jnp.bfloat16)
    steps = wide / jnp.where(scale == 0, 1, scale).astype(jnp.float32)[..., None, :]
    return jnp.clip(jnp.round(steps), -LARGEST, LARGEST).astype(jnp.int8), scale


def dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def parted(model: Any, table: str) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The graph of an adapted network, what of it learns, and the rest."""
    rows = learn.rows(table)

    def learns(path: tuple, leaf) -> bool:
        if not isinstance(leaf, nnx.Param) or path[-1] in (SCALE, *PARTS):
            return path[-1] in PARTS
        return learn.how(rows, dotted(path)).how == "full"

    graph, weights, constants = nnx.split(model, learns, ...)
    return graph, weights, constants


def cast(tree, dtype):
    """Weights in the dtype that they are computed in; those of int8 wait for their layer."""
    return jax.tree.map(lambda w: w if jnp.issubdtype(w.dtype, jnp.integer) else w.astype(dtype), tree)


def folded(arrays: dict[str, Any]) -> dict[str, Any]:
    """Arrays of an adapted network by dotted path as those of a plain one, float32 where anything was added."""
    plain = {name: array for name, array in arrays.items() if name.rpartition(".")[2] not in (SCALE, *PARTS)}
    for name in plain:
        layer = name.removesuffix("kernel")
        if name + "_scale" in arrays:
            plain[name] = wide(plain[name]) * wide(arrays[name + "_scale"])[..., None, :]
        if name.endswith("kernel") and layer + "lora_a" in arrays:
            plain[name] = wide(plain[name]) + wide(arrays[layer + "lora_a"]) @ wide(arrays[layer + "lora_b"])
    return plain


def wide(array) -> np.ndarray:
    return np.asarray(array).astype(np.float32)
