"""The device mesh, the table from logical dimensions to its axes, and attention.

Sharding is named per dimension: PARAMETERS gives every parameter the names of
its dimensions, AXES gives every name its mesh axes. A parameter that no row
matches, or a dimension that does not divide, is an error.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import NamedSharding, PartitionSpec

from svdp_jax import config as configs
from svdp_jax.errors import UserError

AXES = {
    "batch": ("data", "fsdp"),
    "frames": "context",
    "in": ("fsdp", "context"),
    "out": None,
    "layers": None,
    "rows": ("fsdp", "context"),
}

STACK = r"(image\.)?(dual|plain|last)|video_(dual|plain|last)"
PARAMETERS = (
    (rf"({STACK})\..*\.?kernel", ("layers", "in", "out")),
    (rf"({STACK})\..*\.?(bias|scale)", ("layers", "out")),
    (r".*\.?kernel", ("in", "out")),
    (r".*\.?bias", ("out",)),
    (r".*pos_embed\.pos_embed", ("rows", "out", "out")),
)


def make_mesh(config: configs.Mesh) -> jax.sharding.Mesh:
    """The mesh of all devices. Raises UserError where they do not fill it."""
    shape = {"data": config.data, "fsdp": config.fsdp, "context": config.context}
    count = jax.device_count()
    free = [axis for axis, size in shape.items() if size == -1]
    taken = int(np.prod([size for size in shape.values() if size != -1]))
    if len(free) > 1 or count % taken or (not free and taken != count):
        sizes = " x ".join(f"{axis}={size}" for axis, size in shape.items())
        raise UserError(
            f"A mesh of {sizes} cannot be made from {count} devices; set config.mesh so that "
            f"the product is {count} (one axis may be -1)."
        )
    shape |= {axis: count // taken for axis in free}
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(jax.sharding.AxisType.Auto,) * 3)


def sharding(mesh: jax.sharding.Mesh, *dimensions: str | None) -> NamedSharding:
    """The sharding of an array whose leading dimensions have these names."""
    return NamedSharding(mesh, PartitionSpec(*(AXES[d] if d else None for d in dimensions)))


def parameter_shardings(state, mesh: jax.sharding.Mesh):
    """Shardings of a state of parameters, or of anything that holds such states, leaf by leaf.

    Scalars are whole everywhere. Raises ValueError where a parameter has no row.
    """

    def lookup(path, leaf):
        if leaf.ndim == 0:
            return sharding(mesh)
        name = parameter_name(path)
        rows = [dimensions for pattern, dimensions in PARAMETERS if re.fullmatch(pattern, name)]
        if not rows or len(rows[0]) != leaf.ndim:
            raise ValueError(f"no row of PARAMETERS fits {name} {leaf.shape}")
        return sharding(mesh, *rows[0])

    return jax.tree_util.tree_map_with_path(lookup, state)


def parameter_name(path: tuple) -> str:
    """The dotted name of a parameter from its path in any tree: image.dual.attn.to_q.kernel."""
    keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return ".".join(keys)


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Softmax attention, every query over every key. All are b l h k; so is the result.

    Heads come first in memory, which XLA on a CPU runs twice as fast at 1357 tokens as
    `jax.nn.dot_product_attention`; scores are float32 in any dtype.
    """
    q, k, v = (rearrange(x, "b l h k -> b h l k") for x in (q, k, v))
    scores = jnp.einsum(
        "bhlk,bhmk->bhlm", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores, -1).astype(v.dtype)
    return rearrange(jnp.einsum("bhlm,bhmk->bhlk", weights, v), "b h l k -> b l h k")
