"""Building blocks that the networks share: norms, MLPs, patch and time embeddings, stacks.

Parameters are float32. A network computes in the dtype of the parameters and
inputs it is given, so that casting both to bfloat16 is all that mixed precision
takes; norms and time embeddings are computed in float32 whatever the dtype.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from svdp_jax import parallel

FEW_LAYERS = 4  # in a stack that compiles fast, and runs faster, as straight-line code


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Normalises the last axis to zero mean and unit variance, without weights."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + eps)).astype(x.dtype)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """AdaLN: `x` is ... l d; `shift` and `scale` are ... d."""
    return layer_norm(x) * (1 + over_tokens(scale)) + over_tokens(shift)


def over_tokens(x: jax.Array) -> jax.Array:
    """One vector per sequence, ... d, beside tokens ... l d."""
    return x[..., None, :]


class RMSNorm(nnx.Module):
    """Divides by the root mean square of the last axis; learned scale."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)
        return wide.astype(x.dtype) * self.scale[...]


class MLP(nnx.Module):
    def __init__(self, width: int, hidden: int, out: int, activation: Callable, rngs: nnx.Rngs):
        self.linear_1 = nnx.Linear(width, hidden, rngs=rngs)
        self.linear_2 = nnx.Linear(hidden, out, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(self.activation(self.linear_1(x)))


def together(x: jax.Array, *linears: nnx.Linear) -> list[jax.Array]:
    """Several linear layers of one input, all of one width: as one product it is read once."""
    kernel, bias = (jnp.concatenate([getattr(x, part)[...] for x in linears], -1) for part in ("kernel", "bias"))
    return jnp.split(x @ kernel + bias, len(linears), -1)


def gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def time_embedding(times: jax.Array, size: int = 256) -> jax.Array:
    """Cosines, then sines, of `times` (b,) at `size / 2` geometric frequencies: b size."""
    frequency = np.float32(10000.0 ** -(np.arange(size // 2) / (size // 2)))
    angle = times.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def position_table(size: int, width: int, base: int) -> jax.Array:
    """Sin-cos table of `size` x `size` patches, y x d, with `base` patches per unit-scale picture.

    Half the channels encode the column and half the row, as SD3's table does.
    """
    frequency = 10000.0 ** (-jnp.arange(width // 4, dtype=jnp.float32) / (width // 4))
    angle = (jnp.arange(size, dtype=jnp.float32) * (base / size))[:, None] * frequency
    line = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    column = jnp.broadcast_to(line[None, :], (size, size, width // 2))
    row = jnp.broadcast_to(line[:, None], (size, size, width // 2))
    return jnp.concatenate([column, row], axis=-1)


def patchify(x: jax.Array, patch: int) -> jax.Array:
    return rearrange(x, "... (y p) (x q) c -> ... (y x) (p q c)", p=patch, q=patch)


def unpatchify(x: jax.Array, patch: int, rows: int) -> jax.Array:
    return rearrange(x, "... (y x) (p q c) -> ... (y p) (x q) c", p=patch, q=patch, y=rows)


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules of one kind as one module whose parameters have a leading axis."""
    return nnx.vmap(lambda keys: make(keys))(rngs.split(count))


# What the backward pass finds kept; None keeps everything.
POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": jax.checkpoint_policies.save_only_these_names("attention"),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=["attention"], offload_src="device", offload_dst="pinned_host"
    ),
}


def scan(step: Callable, modules: nnx.Module | dict[str, nnx.Module], carry, policy: str = "none"):
    """Runs `carry = step(module, carry)` over a stack.

    `policy` is one of POLICIES: what to keep for the backward pass.
    """
    graph, state = nnx.split(modules)

    def body(carry, state):
        return step(nnx.merge(graph, parallel.gathered(state)), carry), None

    kept = jax.checkpoint(body, policy=POLICIES[policy]) if POLICIES[policy] else body
    count = jax.tree.leaves(state)[0].shape[0]
    return jax.lax.scan(kept, carry, state, unroll=count <= FEW_LAYERS)[0]
