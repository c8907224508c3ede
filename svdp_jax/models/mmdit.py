"""SD3.5-Medium's MMDiT-X: the image model that the video model is built on.

Module and parameter names follow the diffusers checkpoint
(`SD3Transformer2DModel`), so that conversion is a short table. Blocks of one
kind are stacked: `dual` (a second, image-only attention), `plain`, and `last`
(its text stream is read, not written).

Sources: Esser et al. 2024 (arXiv 2403.03206); Stability AI, SD3.5-Medium.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from svdp_jax.config import Backbone
from svdp_jax.models import layers
from svdp_jax.models.attention import picture_attention


class Table(nnx.Variable):
    """A constant that belongs to the weights but is not trained."""


class PatchEmbed(nnx.Module):
    def __init__(self, config: Backbone, rngs: nnx.Rngs):
        self.patch = config.patch
        # Small, so that at first tokens are told apart by where they stand, not by their noise.
        small = nnx.initializers.variance_scaling(0.1, "fan_in", "normal")
        size = config.patch**2 * config.channels
        self.proj = layers.Linear(size, config.width, kernel_init=small, rngs=rngs)
        # Columns and rows of the checkpoint's table are the same: 1 MB says what its 0.9 GB do.
        self.line = Table(layers.position_line(config.table, config.width, config.base))

    def __call__(self, latents: jax.Array, shift: int = 0) -> jax.Array:
        """Latents (... y x c) to tokens (... n d), `shift` picture widths right of the centre."""
        tokens = self.proj(layers.patchify(latents, self.patch))
        rows, columns = (size // self.patch for size in latents.shape[-3:-1])
        return tokens + self.crop(rows, columns, shift).astype(tokens.dtype)

    @property
    def pos_embed(self) -> jax.Array:
        """The whole position table, y x d, as the checkpoint holds it."""
        return layers.position_grid(self.line[...], self.line[...])

    def crop(self, rows: int, columns: int, shift: int = 0) -> jax.Array:
        """The part of the position table (n d) where a picture of this size lies."""
        side = len(self.line)
        top = (side - rows) // 2
        left = (side - columns) // 2 + shift * columns
        if min(top, left) < 0 or max(top + rows, left + columns) > side:
            raise ValueError(f"{rows}x{columns} patches shifted by {shift} leave the {side}² table")
        grid = layers.position_grid(self.line[top : top + rows], self.line[left : left + columns])
        return rearrange(grid, "y x d -> (y x) d")


class TimeTextEmbed(nnx.Module):
    """Timestep and pooled prompt to the vector that modulates every block."""

    def __init__(self, config: Backbone, rngs: nnx.Rngs):
        d = config.width
        self.timestep_embedder = layers.MLP(256, d, d, jax.nn.silu, rngs)
        self.text_embedder = layers.MLP(config.pooled_width, d, d, jax.nn.silu, rngs)

    def __call__(self, time: jax.Array, pooled: jax.Array) -> jax.Array:
        times = layers.time_embedding(1000 * time)
        return self.timestep_embedder(times.astype(pooled.dtype)) + self.text_embedder(pooled)


class JointAttention(nnx.Module):
    """Attention over image tokens and, where there is text, over both in one sequence."""

    def __init__(self, config: Backbone, rngs: nnx.Rngs, text: bool, text_out: bool):
        d, k = config.width, config.width // config.heads
        self.heads, self.kernel = config.heads, config.kernel
        self.to_q, self.to_k, self.to_v, self.to_out = (layers.Linear(d, d, rngs=rngs) for _ in range(4))
        self.norm_q, self.norm_k = layers.RMSNorm(k), layers.RMSNorm(k)
        if text:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (layers.Linear(d, d, rngs=rngs) for _ in range(3))
            self.norm_added_q, self.norm_added_k = layers.RMSNorm(k), layers.RMSNorm(k)
        if text_out:
            self.to_add_out = layers.Linear(d, d, rngs=rngs)

    def __call__(self, attend: Callable, image: jax.Array, text: jax.Array | None = None, read: Callable = layers.every):
        """Image ... n d, those tokens that are `read`, and text ... t d; text comes back None where none is kept.

        `attend` is given q, k, v and the kernel's name, see `attention.picture_attention`; where no
        text is kept, q has none.
        """
        text_out = hasattr(self, "to_add_out")
        groups = [self.image_heads(image, read)]
        if text is not None:
            groups.append(self.text_heads(text))
        q, k, v = map(list, zip(*groups))
        attended = attend(q if text_out else q[:1], k, v, self.kernel)
        image, *others = (rearrange(x, "... l h k -> ... l (h k)") for x in attended)
        return self.to_out(image), self.to_add_out(others[0]) if text_out else None

    def image_heads(self, image: jax.Array, read: Callable) -> tuple[jax.Array, ...]:
        q, k, v = self.split(layers.attended_streams(image, read, self.to_q, self.to_k, self.to_v))  # ... n h k
        return self.norm_q(q), self.norm_k(k), v

    def text_heads(self, text: jax.Array) -> tuple[jax.Array, ...]:
        projections = self.add_q_proj, self.add_k_proj, self.add_v_proj
        q, k, v = self.split(layers.together(text, *projections))  # ... t h k
        return self.norm_added_q(q), self.norm_added_k(k), v

    def split(self, streams: list[jax.Array]):
        return (rearrange(x, "... l (h k) -> ... l h k", h=self.heads) for x in streams)


class JointBlock(nnx.Module):
    """One MMDiT block. `kind` is dual, plain or last."""

    def __init__(self, config: Backbone, kind: str, rngs: nnx.Rngs):
        d = config.width
        self.kind = kind
        zeros = nnx.initializers.zeros
        chunks = 9 if kind == "dual" else 6
        text_chunks = 2 if kind == "last" else 6
        self.norm1 = layers.Linear(d, chunks * d, kernel_init=zeros, rngs=rngs)
        self.norm1_context = layers.Linear(d, text_chunks * d, kernel_init=zeros, rngs=rngs)
        self.attn = JointAttention(config, rngs, text=True, text_out=kind != "last")
        if kind == "dual":
            self.attn2 = JointAttention(config, rngs, text=False, text_out=False)
        self.ff = layers.MLP(d, 4 * d, d, layers.gelu_tanh, rngs)
        if kind != "last":
            self.ff_context = layers.MLP(d, 4 * d, d, layers.gelu_tanh, rngs)

    def __call__(
        self,
        image: jax.Array,
        text: jax.Array,
        cond: jax.Array,
        attend: Callable = picture_attention,
        read: Callable = layers.every,
    ):
        """Image ... n d, text ... t d, cond ... d to image and text of the same shapes.

        The leading dimensions are b, or b and frames of a video; those of cond may be ones.
        `attend` says which tokens see which; `read` picks those of the image that come back.
        """
        cond = jax.nn.silu(cond)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *dual = self.chunks(self.norm1, cond)
        attended, text_attended = self.attn(attend, layers.modulate(image, shift, scale), self.modulated_text(text, cond), read)
        if dual:
            second, _ = self.attn2(attend, layers.modulate(image, *dual[:2]))
            second = second * layers.over_tokens(dual[2])
        else:
            second = 0
        image = read(image) + attended * layers.over_tokens(gate) + second  # ... n d
        mlp = self.ff(layers.modulate(image, mlp_shift, mlp_scale))
        image = image + mlp * layers.over_tokens(mlp_gate)
        if self.kind == "last":
            return image, text
        _, _, gate, mlp_shift, mlp_scale, mlp_gate = self.chunks(self.norm1_context, cond)
        text = text + text_attended * layers.over_tokens(gate)  # ... t d
        mlp = self.ff_context(layers.modulate(text, mlp_shift, mlp_scale))
        return image, text + mlp * layers.over_tokens(mlp_gate)

    def modulated_text(self, text: jax.Array, cond: jax.Array) -> jax.Array:
        # The checkpoint's last block stores scale before shift, the others shift before scale.
        first, second, *_ = self.chunks(self.norm1_context, cond)
        shift, scale = (second, first) if self.kind == "last" else (first, second)
        return layers.modulate(text, shift, scale)

    def chunks(self, linear: layers.Linear, cond: jax.Array) -> list[jax.Array]:
        return jnp.split(linear(cond), linear.out_features // cond.shape[-1], axis=-1)


def kinds(config: Backbone) -> dict[str, int]:
    """How many blocks of each kind there are, in the order in which they run."""
    counts = {"dual": config.dual, "plain": config.blocks - config.dual - 1, "last": 1}
    return {kind: count for kind, count in counts.items() if count}


class MMDiT(nnx.Module):
    """Latents, time and text to velocity."""

    def __init__(self, config: Backbone, rngs: nnx.Rngs):
        d = config.width
        self.patch = config.patch
        self.kinds = tuple(kinds(config))
        self.pos_embed = PatchEmbed(config, rngs)
        self.time_text_embed = TimeTextEmbed(config, rngs)
        self.context_embedder = layers.Linear(config.text_width, d, rngs=rngs)
        for kind, count in kinds(config).items():
            blocks = layers.stack(lambda r, kind=kind: JointBlock(config, kind, r), count, rngs)
            setattr(self, kind, blocks)
        zeros = nnx.initializers.zeros
        self.norm_out = layers.Linear(d, 2 * d, kernel_init=zeros, rngs=rngs)
        self.proj_out = layers.Linear(d, config.patch**2 * config.channels, kernel_init=zeros, rngs=rngs)

    def __call__(self, latents: jax.Array, time: jax.Array, text: jax.Array, pooled: jax.Array) -> jax.Array:
        """Predicts the velocity of noisy latents.

        latents: b y x c. time: (b,) in [0, 1], 1 is noise. text: b t text_width.
        pooled: b pooled_width. Returns b y x c.
        """
        cond = self.time_text_embed(time, pooled)  # b d
        carry = self.pos_embed(latents), self.context_embedder(text)  # b n d, b t d
        for kind in self.kinds:
            step = lambda block, carry: block(*carry, cond)
            carry = layers.scan(step, getattr(self, kind), carry)
        return self.head(carry[0], cond, latents.shape[-3] // self.patch)

    def head(self, tokens: jax.Array, cond: jax.Array, rows: int) -> jax.Array:
        """Tokens ... n d and cond ... d to the prediction, ... y x c."""
        scale, shift = jnp.split(self.norm_out(jax.nn.silu(cond)), 2, axis=-1)
        return layers.unpatchify(self.proj_out(layers.modulate(tokens, shift, scale)), self.patch, rows)
