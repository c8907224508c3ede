"""The video model of *Stable Video-Driven Portraits*: SD3.5-M with full-video attention.

Three groups of tokens stand side by side on the backbone's position table, the
noisy video z in the middle, the source to its left, the driving video to its
right. Each block first lets z and the clean frames before it attend to each
other through time, then runs the pretrained joint block frame by frame on
[z ; source ; driving] with text, and with the same weights on the past frames.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import nnx

from svdp_jax import parallel
from svdp_jax.config import Model
from svdp_jax.models import cached, layers
from svdp_jax.models.attention import Frames, frame_attention, video_attention
from svdp_jax.models.mmdit import MMDiT, kinds

TOLD = 4  # numbers
SHIFTS = {"source": -1, "driving": 1, "past": 0}  # picture widths from the centre of the table


def rotary_angles(frames: int, past: int, rows: int, columns: int, size: int) -> jax.Array:
    """Angles of rotary positions over (time, row, column): (past + frames) n size/2.

    Past frames come first, at times -past .. -1; the current ones start at 0.
    """
    spatial = 3 * (size // 2) // 8
    counts = (size // 2 - 2 * spatial, spatial, spatial)
    places = (jnp.arange(-past, frames), jnp.arange(rows), jnp.arange(columns))
    grid = jnp.meshgrid(*(place.astype(jnp.float32) for place in places), indexing="ij")
    angles = [axis[..., None] * 100.0 ** (-jnp.arange(count, dtype=jnp.float32) / count) for axis, count in zip(grid, counts)]
    return rearrange(jnp.concatenate(angles, -1), "f y x k -> f (y x) k")


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns pairs of channels of x (b f n h k) by angles (b f n k/2, or 1 for b)."""
    cos, sin = (f(angles)[..., None, :].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


class VideoAttention(nnx.Module):
    """Attention through time with AdaLN and a gate that starts at zero."""

    def __init__(self, config: Model, rngs: nnx.Rngs):
        d, self.heads = config.backbone.width, config.video.heads
        self.attend = partial(
            video_attention, mode=config.video.temporal, scheme=config.video.scheme, kernel=config.backbone.kernel
        )
        self.norm = layers.Linear(d, 3 * d, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.to_q, self.to_k, self.to_v, self.to_out = (layers.Linear(d, d, rngs=rngs) for _ in range(4))
        self.norm_q, self.norm_k = (layers.RMSNorm(d // self.heads) for _ in range(2))

    def __call__(
        self, tokens: jax.Array, cond: jax.Array, angles: jax.Array, read: Callable = layers.every, attend=None
    ) -> jax.Array:
        """Tokens b f n d of frames in any order, cond b 1 d, angles as for `rotate`; the frames that are `read`.

        attend: in place of `self.attend`, where other keys and values are looked at too, or these are kept.
        """
        attend = attend or self.attend
        shift, scale, gate = jnp.split(self.norm(jax.nn.silu(cond)), 3, axis=-1)
        normed = layers.modulate(tokens, shift, scale)
        q, k, v = (
            rearrange(x, "b f n (h k) -> b f n h k", h=self.heads)
            for x in layers.attended_streams(normed, read, self.to_q, self.to_k, self.to_v)
        )
        q, k = rotate(self.norm_q(q), read(angles)), rotate(self.norm_k(k), angles)
        attended = rearrange(attend(q, k, v), "b f n h k -> b f n (h k)")
        return read(tokens) + self.to_out(attended) * layers.over_tokens(gate)


class Told(nnx.Module):
    """Guidance weights, and the end of the step, to what is added to the vector of time. It starts at zero."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.linear_1 = layers.Linear(TOLD * 256, width, rngs=rngs)
        self.linear_2 = layers.Linear(width, width, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, time: jax.Array, told: jax.Array, dtype) -> jax.Array:
        """time (b,), told (b, 4) of guidance weights for source, driving, past, and the step's end: b d."""
        weights, end = told[:, :3], told[:, 3]
        numbers = jnp.concatenate([100 * weights, 1000 * (time - end)[:, None]], 1)  # a length of zero is the flow's velocity
        waves = rearrange(layers.time_embedding(numbers.ravel()), "(b i) d -> b (i d)", i=TOLD)
        return self.linear_2(jax.nn.silu(self.linear_1(waves.astype(dtype))))


class SVDP(nnx.Module):
    """Noisy video latents and conditions to the model's prediction.

    Parameters under `image` are the backbone's; `video_<kind>` stacks hold one
    VideoAttention for each backbone block of that kind.
    """

    def __init__(self, config: Model, rngs: nnx.Rngs):
        self.image = MMDiT(config.backbone, rngs)
        if config.told:
            self.told = Told(config.backbone.width, rngs)
        self.head_size = config.backbone.width // config.video.heads
        self.temporal, self.cached = config.video.temporal, config.video.references == "cached"
        if self.temporal != "none":
            for kind, count in kinds(config.backbone).items():
                make = lambda r: VideoAttention(config, r)
                setattr(self, f"video_{kind}", layers.stack(make, count, rngs))

    def stacks(self) -> dict[str, dict[str, nnx.Module]]:
        """The modules of each kind of block, in the order in which they run."""
        video = {kind: {"video": getattr(self, f"video_{kind}")} for kind in self.image.kinds if self.temporal != "none"}
        return {kind: {"block": getattr(self.image, kind)} | video.get(kind, {}) for kind in self.image.kinds}

    def angles(self, like: jax.Array, frames: int, past: int = 0) -> jax.Array:
        """Rotary angles of so many frames and past ones of latents b ... y x c: b (past + frames) n k/2."""
        rows, columns = (side // self.image.patch for side in like.shape[-3:-1])
        angles = rotary_angles(frames, past, rows, columns, self.head_size)
        return repeat(angles, "f n k -> b f n k", b=len(like))

    def __call__(
        self,
        z: jax.Array,
        time: jax.Array,
        text: jax.Array,
        pooled: jax.Array,
        source: jax.Array | None = None,
        driving: jax.Array | None = None,
        past: jax.Array | None = None,
        told: jax.Array | None = None,
        memory: dict | None = None,
        policy: str = "none",
    ) -> jax.Array:
        """Predicts for every frame of z.

        z: b f y x c, noisy latents. time: (b,) in [0, 1], 1 is noise.
        text: b t text_width. pooled: b pooled_width. source: b y x c.
        driving: b f y x c, masked. past: b p y x c, clean. None leaves a
        condition's tokens out. told: (b, 4), see `Told`, where config.told. memory: see `remember`.
        policy: what to keep for the backward pass, see `layers.scan`. Returns b f y x c.
        """
        image = self.image
        cond = image.time_text_embed(time, pooled)[:, None]  # b 1 d
        if told is not None:
            cond += self.told(time, told, cond.dtype)[:, None]
        past = past if self.temporal != "none" else None
        if self.cached:
            conditions = {"source": source, "driving": driving, "past": past}
            memory = self.remember(conditions, text, pooled, policy) if memory is None else memory
            tokens = cached.predict(self, z, image.context_embedder(text), cond, memory, policy)
        else:
            tokens = self.joint(z, image.context_embedder(text), cond, source, driving, past, policy)
        return image.head(tokens, cond, z.shape[2] // image.patch)  # b f y x c

    def remember(self, conditions: dict, text: jax.Array, pooled: jax.Array, policy: str = "none") -> dict:
        """What z looks at of conditions that are `cached`, the same at all times: `memory` of a call without them."""
        looked_at = [name for name in SHIFTS if name != "past" or self.temporal != "none"]
        given = {name: x for name in looked_at if (x := conditions.get(name)) is not None and x.size}
        return cached.remember(self, SHIFTS, given, text, pooled, policy)

    def joint(self, z, text, cond, source, driving, past, policy: str) -> jax.Array:
        """Tokens of z, b f n d, after all blocks, in each of which the conditions see it too; text b t d, cond b 1 d."""
        image, f, p = self.image, z.shape[1], 0 if past is None else past.shape[1]
        references = []  # b f n d each
        if source is not None:
            tokens = image.pos_embed(source, SHIFTS["source"])
            references.append(repeat(tokens, "b n d -> b f n d", f=f))
        if driving is not None:
            references.append(image.pos_embed(driving, SHIFTS["driving"]))
        latents = [z] if past is None else [z, past]
        angles = self.angles(z, f, p)
        angles = parallel.join([angles[:, p:], angles[:, :p]][: len(latents)])

        # All that is done token by token is done to all frames at once: current, past, references.
        layout = Frames(f, p, len(references))
        groups = [image.pos_embed(x) for x in latents]
        if references:
            groups.append(rearrange(references, "g b f n d -> b (f g) n d"))
        tokens = parallel.join(groups)  # b r n d
        texts = repeat(text, "b t d -> b f t d", f=f + p)

        def step(modules, carry, read=layers.every, left=layout, asked=layout):
            """One block; `left` are the frames after attention through time, `asked` those that come back."""
            tokens, texts = parallel.constrain(carry, "batch", "frames")
            if self.temporal != "none":
                moving, *still = parallel.split(tokens, (f + p, f * layout.references))
                tokens = parallel.join([modules["video"](moving, cond, angles, read), *still])
            return modules["block"](tokens, read(texts), cond, partial(frame_attention, frames=left, asked=asked), read)

        current = lambda x: parallel.split(x, (f,))[0]
        # Of the last block only z is read, so nothing else is computed there but what z looks at.
        last = partial(step, read=current, left=layout._replace(past=0), asked=Frames(f))

        carry = tokens, texts
        for kind, modules in self.stacks().items():
            carry = layers.scan(last if kind == "last" else step, modules, carry, policy)
        return carry[0]
