"""Softmax attention within pictures, within the frames of a video and through time, on any mesh.

Frames lie on `context`, so attention within a frame needs no communication; attention
through time exchanges frames for heads (Ulysses, Jacobs et al. 2023, arXiv 2309.14509), or
passes keys and values around a ring (Liu et al. 2023, arXiv 2310.01889) where the heads do
not divide.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name

from svdp_jax.models.layers import KEPT
from svdp_jax.parallel import context_size, on_devices


def picture_attention(q: list, k: list, v: list, kernel: str = "auto") -> list:
    """Softmax attention within a picture.

    q, k and v hold groups of tokens, b l h k each, that attend as one; so does the result.
    `kernel` is a name in KERNELS, or auto: the one made for the devices of the mesh.
    """
    ends = np.cumsum([x.shape[1] for x in q])[:-1]

    def local(*groups):
        joined = (jnp.concatenate(x, 1) for x in groups)
        return jnp.split(local_attention(*joined, kernel), ends, 1)

    return on_devices(local, "batch")(q, k, v)


class Frames(NamedTuple):
    """What the joined frames of a video are: current ones, past ones, and so many references to each
    current one (b (f references) n ...). Past frames see themselves alone, current ones their references."""

    current: int
    past: int = 0
    references: int = 0


def frame_attention(q: list, k: list, v: list, kernel: str, frames: Frames, asked: Frames) -> list:
    """Softmax attention within each frame of a video.

    k and v hold tokens of the joined frames, b r n h k, and where there is text, its own for every
    frame that is no reference, b (f p) t h k. q holds as much, or the frames that are `asked`
    alone, without text. The result is as q is.
    """
    context = context_size()
    here, ours = (x._replace(current=x.current // context, past=x.past // context) for x in (frames, asked))

    def local(q, k, v):
        attended = [local_attention(*qkv, kernel) for qkv in zip(sequences(q, ours), sequences(k, here), sequences(v, here))]
        return joined_frames(attended, ours, q[0].shape[2])[: len(q)]

    return on_devices(local, "batch", "frames")(q, k, v)


def sequences(groups: list[jax.Array], frames: Frames) -> list[jax.Array]:
    """Tokens of joined frames, and text, as what attends as one: b f l h k, and where there are any, b p l h k."""
    image, *text = groups
    f, p, g = frames
    current, past, references = jnp.split(image, (f, f + p), 1)
    references = rearrange(references, "b (f g) n h k -> b f (g n) h k", f=f, g=g)
    texts = [jnp.split(x, [f], 1) for x in text]
    current = jnp.concatenate([current, references, *(x[0] for x in texts)], 2)
    return [current, jnp.concatenate([past, *(x[1] for x in texts)], 2)] if p else [current]


def joined_frames(attended: list[jax.Array], frames: Frames, n: int) -> list[jax.Array]:
    """The inverse of `sequences`; n is the number of image tokens per frame."""
    current, references, text = jnp.split(attended[0], (n, n + frames.references * n), 2)
    references = rearrange(references, "b f (g n) h k -> b (f g) n h k", n=n)
    past = [jnp.split(x, [n], 2) for x in attended[1:]]
    image = jnp.concatenate([current, *(x[0] for x in past), references], 1)
    return [image, jnp.concatenate([text, *(x[1] for x in past)], 1)]


def video_attention(q, k, v, mode: str, scheme: str, kernel: str) -> jax.Array:
    """Softmax attention through time, of frames b f n h k in any order.

    mode: full (every token over all tokens of all frames) or factorized (over the same place
    in other frames). scheme: how frames on several devices meet, `heads` (all-to-all) or
    `ring` (full mode only), or auto: heads where they divide.
    """
    local = partial(across_frames, mode=mode, scheme=scheme, kernel=kernel, context=context_size())
    return on_devices(local, "batch", "frames")(q, k, v)


def across_frames(q, k, v, mode: str, scheme: str, kernel: str, context: int) -> jax.Array:
    """Attention through time of one device's frames, b f n h k, with those of `context` devices."""
    split = HEADS if mode == "full" else TOKENS
    if scheme == "ring" or (scheme == "auto" and mode == "full" and q.shape[HEADS] % context):
        return ring_attention(q, k, v, context)
    exchange = partial(jax.lax.all_to_all, axis_name="context", tiled=True)
    if context > 1:
        q, k, v = (exchange(x, split_axis=split, concat_axis=FRAMES) for x in (q, k, v))
    f, n = q.shape[FRAMES], q.shape[TOKENS]
    q, k, v = (rearrange(x, ARRANGE[mode]) for x in (q, k, v))
    out = local_attention(q, k, v, kernel)
    before, after = ARRANGE[mode].split(" -> ")
    out = rearrange(out, f"{after} -> {before}", f=f, n=n)
    return exchange(out, split_axis=FRAMES, concat_axis=split) if context > 1 else out


FRAMES, TOKENS, HEADS = 1, 2, 3
# What attends to what: a mode is an arrangement into sequences.
ARRANGE = {"full": "b f n h k -> b (f n) h k", "factorized": "b f n h k -> (b n) f h k"}


def ring_attention(q, k, v, context: int) -> jax.Array:
    """Full attention of b f n h k: keys and values visit every device, softmax is summed up as they pass."""
    shape = q.shape
    q, k, v = (rearrange(x, "b f n h k -> b h (f n) k") for x in (q, k, v))
    q = q * shape[-1] ** -0.5
    ring = [(i, (i + 1) % context) for i in range(context)]

    @jax.checkpoint  # scores of one device's keys at a time, in the backward pass too
    def visit(carry, _):
        (k, v), largest, total, out = carry
        scores = jnp.einsum("bhlk,bhmk->bhlm", q, k, preferred_element_type=jnp.float32)
        new = jnp.maximum(largest, scores.max(-1))
        weights = jnp.exp(scores - new[..., None])
        kept = jnp.exp(largest - new)
        total = total * kept + weights.sum(-1)
        seen = jnp.einsum("bhlm,bhmk->bhlk", weights.astype(v.dtype), v)
        out = out * kept[..., None] + seen.astype(jnp.float32)
        return (jax.lax.ppermute((k, v), "context", ring), new, total, out), None

    lowest = jnp.full(q.shape[:-1], -jnp.inf, jnp.float32)
    start = ((k, v), lowest, jnp.zeros_like(lowest), jnp.zeros(q.shape, jnp.float32))
    (_, _, total, out), _ = jax.lax.scan(visit, start, length=context)
    out = (out / total[..., None]).astype(v.dtype)
    return rearrange(out, "b h (f n) k -> b f n h k", f=shape[1])


def local_attention(q: jax.Array, k: jax.Array, v: jax.Array, kernel: str) -> jax.Array:
    """Attention on one device, q ... l h k, k and v ... m h k. The result is named KEPT, for policies of
    what to keep (`layers.POLICIES`), which know cuDNN's by itself."""
    merged = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    return KERNELS[best_kernel(q) if kernel == "auto" else kernel](*merged).reshape(q.shape)


def named(kernel: Callable) -> Callable:
    return lambda q, k, v: checkpoint_name(kernel(q, k, v), KEPT)


def best_kernel(q: jax.Array) -> str:
    """The kernel for the devices of the mesh, or of this process where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    platform = jax.default_backend() if mesh.empty else mesh.abstract_device.platform
    if platform == "tpu":
        return "splash"
    if platform in ("gpu", "cuda") and q.dtype == jnp.bfloat16 and q.shape[-1] % 8 == 0:
        return "cudnn"
    return "xla"


CACHED = 1 << 24  # scores; more than these no longer lie in a CPU's cache


def xla_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Scores at once, in float32. Heads come first in memory, and one after the other where
    there are many scores: on a CPU twice as fast as `jax.nn.dot_product_attention`."""

    def heads(q, k, v):  # b ... l k
        scores = jnp.einsum("b...lk,b...mk->b...lm", q, k, preferred_element_type=jnp.float32)
        return jnp.einsum("b...lm,b...mk->b...lk", jax.nn.softmax(scores, -1).astype(v.dtype), v)

    q, k, v = (rearrange(x, "b l h k -> b h l k") for x in (q * q.shape[-1] ** -0.5, k, v))
    if q.size // q.shape[-1] * k.shape[2] <= CACHED:
        out = heads(q, k, v)
    else:
        q, k, v = (rearrange(x, "b h l k -> h b l k") for x in (q, k, v))
        out = rearrange(jax.lax.map(lambda qkv: heads(*qkv), (q, k, v)), "h b l k -> b h l k")
    return rearrange(out, "b h l k -> b l h k")


def splash_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    from svdp_jax.models import splash  # Pallas is a tenth of what a command imports, and for TPUs alone

    return splash.attention(q, k, v)


def cudnn_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """NVIDIA's. Backward JAX takes even lengths alone, so that an odd one gets a token more, which none sees."""
    odd = q.shape[1] % 2 or k.shape[1] % 2
    even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
    length = lambda x: jnp.full(len(x), x.shape[1], jnp.int32) if odd else None
    out = jax.nn.dot_product_attention(
        even(q), even(k), even(v), query_seq_lengths=length(q), key_value_seq_lengths=length(k), implementation="cudnn"
    )
    return out[:, : q.shape[1]]


KERNELS = {"splash": splash_attention, "cudnn": cudnn_attention, "xla": named(xla_attention)}
