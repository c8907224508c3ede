"""Softmax attention on a TPU, by the Pallas kernel that ships with JAX."""

import itertools

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
    splash_attention_mask as splash_mask,
)

from svdp_jax.models.layers import KEPT
from svdp_jax.models.tiles import Tiles, tiles_for

LANES = 128  # of a TPU: sequences are padded to whole ones
STEP = 1 << 18  # scores that a TPU could compute in the time it takes to turn to the next tile


def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The Pallas kernel for TPUs that ships with JAX. Segment ids keep the keys' padding unseen."""
    length, keys, h = q.shape[1], k.shape[1], q.shape[2]
    padded, blocks = fitting(length, keys, tiles_for(q.shape[-1]))
    q, k, v = (
        jnp.pad(rearrange(x, "b l h k -> b h l k"), ((0, 0), (0, 0), (0, size - x.shape[1]), (0, 0)))
        for x, size in zip((q * q.shape[-1] ** -0.5, k, v), (padded[0], padded[1], padded[1]))
    )
    mask = splash_mask.MultiHeadMask([splash_mask.FullMask(padded)] * h)
    # Names the row sums too, without which the backward pass would run the kernel again.
    kernel = splash_kernel.make_splash_mha_single_device(mask, block_sizes=blocks, residual_checkpoint_name=KEPT)
    beyond = (jnp.arange(padded[1]) >= keys).astype(jnp.int32)
    ids = None if padded[1] == keys else splash_kernel.SegmentIds(jnp.zeros(padded[0], jnp.int32), beyond)
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, ids))(q, k, v)
    return rearrange(out[:, :, :length], "b h l k -> b l h k")


def fitting(queries: int, keys: int, most: Tiles) -> tuple[tuple[int, int], splash_kernel.BlockSizes]:
    """The padded lengths and tiles that make least work of sequences: their scores, with the padding's,
    and the turns from tile to tile."""
    largest = lambda padded, limit: max(b for b in range(LANES, limit + 1, LANES) if padded % b == 0)

    def candidates(length, limit):
        least = -(-length // LANES) * LANES
        return [(padded, largest(padded, limit)) for padded in range(least, least + least // 8 + 1, LANES)]

    pairs = itertools.product(candidates(queries, most.queries), candidates(keys, most.keys))
    pairs = [(q, k) for q, k in pairs if queries != keys or q[0] == k[0]]  # what attends to itself is padded once
    (padded_q, q), (padded_k, kv) = min(pairs, key=lambda x: x[0][0] * x[1][0] * (1 + STEP / (x[0][1] * x[1][1])))
    return (padded_q, padded_k), splash_kernel.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=largest(kv, most.at_once),
        block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=largest(kv, most.at_once_back), use_fused_bwd_kernel=True,
    )  # fmt: skip
