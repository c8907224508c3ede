"""Building blocks that the networks share: norms, MLPs, patch and time embeddings, stacks.

Parameters are float32. A network computes in the dtype of the parameters and
inputs it is given, so that casting both to bfloat16 is all that mixed precision
takes; norms and time embeddings are computed in float32 whatever the dtype.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from einops import pack, rearrange, repeat
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from svdp_jax import parallel

FEW_LAYERS = 4  # in a stack that compiles fast, and runs faster, as straight-line code


# A function in float32 of bfloat16: its backward pass begins again at what it was given. What it would find kept is
# twice as large, and on TPUs heads of 64 take the room of 128: norms held 4 GiB of a clip of 16 + 4 frames. The
# barrier that comes with it is needed in loops too, where the compiler would find both times to be the same.
from_narrow = jax.checkpoint


@from_narrow
def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Normalises the last axis to zero mean and unit variance, without weights."""
    wide = x.astype(jnp.float32)
    wide = wide - wide.mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + eps)).astype(x.dtype)


@from_narrow
def rms_norm(x: jax.Array) -> jax.Array:
    """Divides by the root mean square of the last axis."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-6)).astype(x.dtype)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """AdaLN: `x` is ... l d; `shift` and `scale` are ... d."""
    return layer_norm(x) * (1 + over_tokens(scale)) + over_tokens(shift)


def over_tokens(x: jax.Array) -> jax.Array:
    """One vector per sequence, ... d, beside tokens ... l d."""
    return x[..., None, :]


class RMSNorm(nnx.Module):
    """`rms_norm` with a learned scale."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x) * self.scale[...]


class Linear(nnx.Linear):
    """x W + b. What `learned` adds to it is used where it is there: a low-rank part that learns, and a scale
    for each column of a frozen W in int8."""

    lora_a: nnx.Param
    lora_b: nnx.Param
    kernel_scale: nnx.Param

    def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
        plain = not (hasattr(self, "lora_a") or hasattr(self, "kernel_scale"))
        return super().__call__(inputs, out_sharding) if plain else together(inputs, self)[0]

    def extra(self, x: jax.Array) -> jax.Array | None:
        """What the low-rank part adds; without the product of its two, which would be as large as W."""
        return (x @ self.lora_a[...]) @ self.lora_b[...] if hasattr(self, "lora_a") else None


class MLP(nnx.Module):
    def __init__(self, width: int, hidden: int, out: int, activation: Callable, rngs: nnx.Rngs):
        self.linear_1 = Linear(width, hidden, rngs=rngs)
        self.linear_2 = Linear(hidden, out, rngs=rngs)
        self.activation = activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.linear_2(self.activation(self.linear_1(x)))


def together(x: jax.Array, *linears: Linear) -> list[jax.Array]:
    """Several linear layers of one input, all of one width: as one product it is read once."""
    if len({hasattr(linear, "kernel_scale") for linear in linears}) > 1:
        return [linear(x) for linear in linears]
    parts = lambda name: jnp.concatenate([getattr(linear, name)[...] for linear in linears], -1)
    if hasattr(linears[0], "kernel_scale"):
        made = x @ parts("kernel").astype(x.dtype) * parts("kernel_scale") + parts("bias")
    else:
        made = x @ parts("kernel") + parts("bias")
    extras = [linear.extra(x) for linear in linears]
    return [y if extra is None else y + extra for y, extra in zip(jnp.split(made, len(linears), -1), extras)]


def every(tokens: jax.Array) -> jax.Array:
    """All tokens: what is read of a block's result, unless it is the last."""
    return tokens


def attended_streams(x: jax.Array, read: Callable, to_q: Linear, to_k: Linear, to_v: Linear) -> list[jax.Array]:
    """Queries of the tokens that `read` picks, keys and values of all."""
    return together(x, to_q, to_k, to_v) if read is every else [to_q(read(x)), *together(x, to_k, to_v)]


def gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


def time_embedding(times: jax.Array, size: int = 256) -> jax.Array:
    """Cosines, then sines, of `times` (b,) at `size / 2` geometric frequencies: b size."""
    frequency = np.float32(10000.0 ** -(np.arange(size // 2) / (size // 2)))
    angle = times.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def position_line(size: int, width: int, base: int) -> jax.Array:
    """Sines and cosines of `size` places in a row, x d/2, with `base` of them per unit-scale picture."""
    frequency = 10000.0 ** (-jnp.arange(width // 4, dtype=jnp.float32) / (width // 4))
    angle = (jnp.arange(size, dtype=jnp.float32) * (base / size))[:, None] * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def position_grid(rows, columns):
    """The positions of a picture, y x d, from those of its rows (y d/2) and columns (x d/2).

    Half the channels encode the column and half the row, as in SD3's table.
    """
    across, down = repeat(columns, "x d -> y x d", y=len(rows)), repeat(rows, "y d -> y x d", x=len(columns))
    return pack([across, down], "y x *")[0]


def position_table(size: int, width: int, base: int) -> jax.Array:
    """SD3's table of `size` x `size` patches, y x d, as its checkpoints hold it."""
    line = position_line(size, width, base)
    return position_grid(line, line)


def patchify(x: jax.Array, patch: int) -> jax.Array:
    return rearrange(x, "... (y p) (x q) c -> ... (y x) (p q c)", p=patch, q=patch)


def unpatchify(x: jax.Array, patch: int, rows: int) -> jax.Array:
    return rearrange(x, "... (y x) (p q c) -> ... (y p) (x q) c", p=patch, q=patch, y=rows)


def stack(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """`count` modules of one kind as one module whose parameters have a leading axis."""
    return nnx.vmap(lambda keys: make(keys))(rngs.split(count))


KEPT = "attention"  # what kernels name of their results; the primitive that gives names:
NAMING = jax.make_jaxpr(lambda x: checkpoint_name(x, KEPT))(0.0).eqns[0].primitive
CUDNN = "dot_product_attention_fwd_wrapper"  # its results are an output and row sums that nobody can name


def attention_results(policy: Callable) -> Callable:
    """Has a policy for the name KEPT take all that cuDNN's forward pass makes for so named: its backward
    pass wants the row sums, and without them the kernel would run again."""

    def kept(primitive, *args, **params):
        if primitive.name == CUDNN:
            return policy(NAMING, *args, name=KEPT)
        return policy(primitive, *args, **params)

    return kept


# What the backward pass finds kept; None keeps everything.
POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "attention": attention_results(jax.checkpoint_policies.save_only_these_names(KEPT)),
    "offload": attention_results(
        jax.checkpoint_policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[KEPT], offload_src="device", offload_dst="pinned_host"
        )
    ),
}


def scan(step: Callable, modules: nnx.Module | dict[str, nnx.Module], carry, policy: str = "none"):
    """Runs `carry = step(module, carry)` over a stack.

    `policy` is one of POLICIES: what to keep for the backward pass. A stack of one may change the carry's shape.
    """
    return walk(lambda module, carry, _: (step(module, carry), None), modules, carry, policy=policy)[0]


def walk(step: Callable, modules: nnx.Module | dict[str, nnx.Module], carry, beside=None, policy: str = "none"):
    """Runs `carry, out = step(module, carry, part)` over a stack and the parts of a tree `beside` it (layers ...):
    the last carry, and what came out of all (layers ...)."""
    graph, state = nnx.split(modules)
    count = jax.tree.leaves(state)[0].shape[0]
    few = count <= FEW_LAYERS

    def body(carry, parts):
        state, beside = parts
        return step(nnx.merge(graph, parallel.gathered(state)), carry, beside)

    # A loop keeps what is computed again apart from the first time by itself; the barriers that
    # straight-line code needs for it would also keep the compiler from fusing across them.
    kept = jax.checkpoint(body, policy=POLICIES[policy], prevent_cse=few) if POLICIES[policy] else body
    if count == 1:
        carry, out = kept(carry, jax.tree.map(lambda x: x[0], (state, beside)))
        return carry, jax.tree.map(lambda x: x[None], out)
    return jax.lax.scan(kept, carry, (state, beside), unroll=few)
