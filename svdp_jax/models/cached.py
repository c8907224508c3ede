"""Conditions computed once: the video model where clean frames never look at what is made, and so need not be made anew.

Source, driving and past frames each pass through the blocks by themselves, at the clean time and with their own copy of
the text; past frames attend through time to each other. What z looks at is the keys and values that they leave in every
block: those of source and driving within its frame, those of the past through time. They are the same at all steps of
sampling, and are given to `predict` as data. FLUX.2 and Wan-Animate-2 do the like with their reference pictures.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import repeat

from svdp_jax import parallel
from svdp_jax.models import layers
from svdp_jax.models.attention import Frames, frame_attention, picture_attention

CLEAN = 0.0  # the time of what is no noise


def remember(
    model, shifts: dict, conditions: dict, text: jax.Array, pooled: jax.Array, policy: str = "none"
) -> dict[str, dict]:
    """Keys and values of each condition that there is, by kind of block (layers ...): of the source b n h k, else b f n h k.

    model: an SVDP; shifts: where each stands beside the picture. The rest is as in its `__call__`.
    """
    image, b = model.image, len(text)
    cond = image.time_text_embed(jnp.full(b, CLEAN), pooled)  # b d
    text = image.context_embedder(text)  # b t d
    memory = {}
    for name, latents in conditions.items():
        tokens = image.pos_embed(latents, shifts[name])
        if name == "source":
            memory[name] = clean_pass(model, tokens, text, cond, picture_attention, policy=policy)
            continue
        alone, texts = Frames(latents.shape[1]), repeat(text, "b t d -> b f t d", f=latents.shape[1])
        angles = model.angles(latents, 0, latents.shape[1]) if name == "past" else None
        attend = partial(frame_attention, frames=alone, asked=alone)
        memory[name] = clean_pass(model, tokens, texts, cond[:, None], attend, angles, policy)
    return memory


def clean_pass(model, tokens, texts, cond, attend: Callable, angles=None, policy: str = "none") -> dict[str, Any]:
    """What frames (b n d or b f n d) with their text leave in each block: where there are `angles`, keys and values of
    attention through time, else those within a frame, once for every time that a block attends."""

    def step(modules, carry, _):
        (tokens, texts), through, within = carry, [], []
        if angles is not None:
            tokens = modules["video"](tokens, cond, angles, attend=noting(through, modules["video"].attend))
        carry = modules["block"](tokens, texts, cond, noting(within, attend))
        return carry, within if angles is None else through

    carry, memory = (tokens, texts), {}
    for kind, modules in model.stacks().items():
        carry, memory[kind] = layers.walk(step, modules, carry, policy=policy)
    return memory


def noting(kept: list, attend: Callable) -> Callable:
    """`attend(q, k, v, ...)` that puts by the keys and values, of groups those of the first, the image's."""

    def attending(q, k, v, *more):
        kept.append((k[0], v[0]) if isinstance(k, list) else (k, v))
        return attend(q, k, v, *more)

    return attending


def predict(model, z: jax.Array, text: jax.Array, cond: jax.Array, memory: dict, policy: str) -> jax.Array:
    """Tokens of z, b f n d, after all blocks; z b f y x c, text b t d, cond b 1 d."""
    f = z.shape[1]
    angles, texts = model.angles(z, f), repeat(text, "b t d -> b f t d", f=f)
    alone = partial(frame_attention, frames=Frames(f), asked=Frames(f))

    def step(modules, carry, memory):
        z, texts = parallel.constrain(carry, "batch", "frames")
        seen = iter(zip(*(memory[name] for name in ("source", "driving") if name in memory)))

        def within(q, k, v, kernel):
            beside = [over_frames(pair, f) for pair in next(seen, ())]
            return alone(q, [*k, *(k for k, _ in beside)], [*v, *(v for _, v in beside)], kernel)

        def through(q, k, v):
            return modules["video"].attend(q, *(parallel.join([x, *kept]) for x, kept in zip((k, v), past)))

        past = zip(*memory["past"]) if "past" in memory else ((), ())
        if "video" in modules:
            z = modules["video"](z, cond, angles, attend=through)
        return modules["block"](z, texts, cond, within), None

    carry = model.image.pos_embed(z), texts
    for kind, modules in model.stacks().items():
        beside = {name: kept[kind] for name, kept in memory.items()}
        carry, _ = layers.walk(step, modules, carry, beside, policy)
    return carry[0]


def over_frames(pair: tuple[jax.Array, jax.Array], f: int) -> list[jax.Array]:
    """Keys and values of the source for every frame; those of frames as they are."""
    return [repeat(x, "b n h k -> b f n h k", f=f) if x.ndim == 4 else x for x in pair]
