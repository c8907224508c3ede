"""The video model of *Stable Video-Driven Portraits*: SD3.5-M with full-video attention.

Three groups of tokens stand side by side on the backbone's position table, the
noisy video z in the middle, the source to its left, the driving video to its
right. Each block first lets z and the clean frames before it attend to each
other through time, then runs the pretrained joint block frame by frame on
[z ; source ; driving] with text, and with the same weights on the past frames.
"""

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from svdp_jax.config import Model
from svdp_jax.models import layers
from svdp_jax.models.mmdit import MMDiT, kinds
from svdp_jax.parallel import attention

SOURCE_SHIFT, DRIVING_SHIFT = -1, 1  # picture widths from the centre of the table

# What attends to what: a mode is an arrangement of (b f n d) into sequences.
ARRANGE = {"full": "b f n d -> b (f n) d", "factorized": "b f n d -> (b n) f d"}


def rotary_angles(frames: int, past: int, rows: int, columns: int, size: int) -> jax.Array:
    """Angles of rotary positions over (time, row, column): (past + frames) n size/2.

    Past frames come first, at times -past .. -1; the current ones start at 0.
    """
    spatial = 3 * (size // 2) // 8
    counts = (size // 2 - 2 * spatial, spatial, spatial)
    places = (jnp.arange(-past, frames), jnp.arange(rows), jnp.arange(columns))
    grid = jnp.meshgrid(*(place.astype(jnp.float32) for place in places), indexing="ij")
    angles = [
        axis[..., None] * 100.0 ** (-jnp.arange(count, dtype=jnp.float32) / count)
        for axis, count in zip(grid, counts)
    ]
    return rearrange(jnp.concatenate(angles, -1), "f y x k -> f (y x) k")


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns pairs of channels of x (b l h k) by angles (l k/2)."""
    cos, sin = (f(angles)[:, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class VideoAttention(nnx.Module):
    """Attention through time with AdaLN and a gate that starts at zero."""

    def __init__(self, config: Model, rngs: nnx.Rngs):
        d, self.heads = config.backbone.width, config.video.heads
        self.mode = config.video.temporal
        self.norm = nnx.Linear(d, 3 * d, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.to_q, self.to_k, self.to_v, self.to_out = (
            nnx.Linear(d, d, rngs=rngs) for _ in range(4)
        )
        self.norm_q, self.norm_k = (layers.RMSNorm(d // self.heads) for _ in range(2))

    def __call__(self, tokens: jax.Array, cond: jax.Array, angles: jax.Array) -> jax.Array:
        """Tokens b f n d, past frames first; cond b d; angles f n k/2. Returns tokens."""
        b, f, n, _ = tokens.shape
        x = rearrange(tokens, ARRANGE[self.mode])  # a sequence per clip, or per position
        angles = angles[:, 0] if self.mode == "factorized" else rearrange(angles, "f n k -> (f n) k")
        cond = repeat(jax.nn.silu(cond), "b d -> (b r) d", r=x.shape[0] // b)
        shift, scale, gate = jnp.split(self.norm(cond), 3, axis=-1)
        y = layers.modulate(x, shift, scale)
        q, k, v = (
            rearrange(to(y), "b l (h k) -> b l h k", h=self.heads)
            for to in (self.to_q, self.to_k, self.to_v)
        )
        q, k = rotate(self.norm_q(q), angles), rotate(self.norm_k(k), angles)
        y = self.to_out(rearrange(attention(q, k, v), "b l h k -> b l (h k)"))
        x = x + y * gate[:, None]
        before, after = ARRANGE[self.mode].split(" -> ")
        return rearrange(x, f"{after} -> {before}", f=f, n=n)


class SVDP(nnx.Module):
    """Noisy video latents and conditions to the model's prediction.

    Parameters under `image` are the backbone's; `video_<kind>` stacks hold one
    VideoAttention for each backbone block of that kind.
    """

    def __init__(self, config: Model, rngs: nnx.Rngs):
        self.image = MMDiT(config.backbone, rngs)
        self.head_size = config.backbone.width // config.video.heads
        self.temporal = config.video.temporal
        if self.temporal != "none":
            for kind, count in kinds(config.backbone).items():
                make = lambda r: VideoAttention(config, r)
                setattr(self, f"video_{kind}", layers.stack(make, count, rngs))

    def __call__(
        self,
        z: jax.Array,
        time: jax.Array,
        text: jax.Array,
        pooled: jax.Array,
        source: jax.Array | None = None,
        driving: jax.Array | None = None,
        past: jax.Array | None = None,
        policy=None,
    ) -> jax.Array:
        """Predicts for every frame of z.

        z: b f y x c, noisy latents. time: (b,) in [0, 1], 1 is noise.
        text: b t text_width. pooled: b pooled_width. source: b y x c.
        driving: b f y x c, masked. past: b p y x c, clean. None leaves a
        condition's tokens out. policy: what to keep for the backward pass,
        see `layers.scan`. Returns b f y x c.
        """
        image, f = self.image, z.shape[1]
        rows, columns = (side // image.patch for side in z.shape[2:4])
        cond = image.time_text_embed(time, pooled)  # b d
        text = image.context_embedder(text)  # b t d
        references = []  # b f n d each
        if source is not None:
            tokens = image.pos_embed(source, SOURCE_SHIFT)
            references.append(repeat(tokens, "b n d -> b f n d", f=f))
        if driving is not None:
            references.append(image.pos_embed(driving, DRIVING_SHIFT))
        if past is None or self.temporal == "none":
            past = z[:, :0]
        p = past.shape[1]
        angles = rotary_angles(f, p, rows, columns, self.head_size)
        cond_f, cond_p = (repeat(cond, "b d -> (b f) d", f=count) for count in (f, p))

        def step(modules, carry):
            tokens, references, text, past_text = carry
            if self.temporal != "none":
                tokens = modules["video"](tokens, cond, angles)  # b p+f n d
            past, z = tokens[:, :p], tokens[:, p:]
            z, references, text = joint(modules["block"], z, references, text, cond_f)
            if p:
                past, _, past_text = joint(modules["block"], past, past[:, :, :0], past_text, cond_p)
            return jnp.concatenate([past, z], 1), references, text, past_text

        z, past = image.pos_embed(z), image.pos_embed(past)  # b f n d, b p n d
        carry = (
            jnp.concatenate([past, z], 1),
            jnp.concatenate(references, 2) if references else z[:, :, :0],
            repeat(text, "b t d -> (b f) t d", f=f),
            repeat(text, "b t d -> (b p) t d", p=p),
        )
        for kind in image.kinds:
            modules = {"block": getattr(image, kind)}
            if self.temporal != "none":
                modules["video"] = getattr(self, f"video_{kind}")
            carry = layers.scan(step, modules, carry, policy)
        z = rearrange(carry[0][:, p:], "b f n d -> (b f) n d")
        return rearrange(image.head(z, cond_f, rows), "(b f) y x c -> b f y x c", f=f)


def joint(block, tokens, references, text, cond):
    """The backbone's block, frame by frame, on [tokens ; references] with text."""
    f, n = tokens.shape[1:3]
    frames = rearrange(jnp.concatenate([tokens, references], 2), "b f n d -> (b f) n d")
    frames, text = block(frames, text, cond)
    frames = rearrange(frames, "(b f) n d -> b f n d", f=f)
    return frames[:, :, :n], frames[:, :, n:], text
