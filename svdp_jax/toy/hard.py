"""What makes the drawn world hard: things that one driver's frame does not tell, but other frames do, and poor pictures.

In the plain world the driver's own frame tells everything about the target's, so that no model needs others. Here, by
`data.difficulty` in [0, 1], drivers are hidden for some frames, their windows are coarse and their pictures noisy and
compressed; and of the target, hair and earrings swing after the head, the background drifts and the light changes. The
target itself is drawn without noise, so truth stays exact.

Dimensions are those of `toy.world`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from svdp_jax.toy.person import RANGES, sample_motion

LAG = 0.25  # seconds by which what swings comes after the head
SLOWER = 4  # times that light and background change slower than heads move
HIDDEN = 0.09  # chance that one part begins to be hidden in a frame, at difficulty 1
LONGEST = 6  # frames that a part is hidden at once
CELLS = 16  # of a side, that coarse windows are made of
NOISE, STEP = 0.06, 0.35  # deviation of the camera's noise, and step of the compression, in [0, 1]


class Scene(NamedTuple):
    """What a picture shows beside person and motion, each (...): how far what swings hangs from its place, as an angle;
    where the background's pattern is and how strong; how much light falls; and whether there are earrings."""

    swing: jax.Array
    drift_x: jax.Array
    drift_y: jax.Array
    pattern: jax.Array
    light: jax.Array
    earrings: jax.Array


def scene(key, key_motion, frames, fps, difficulty) -> Scene:
    """The Scene (f) around the motion that `sample_motion` draws from key_motion."""
    heads, before = (sample_motion(key_motion, frames, fps, start) for start in (0.0, -LAG))
    slow = sample_motion(key, frames, SLOWER * fps)
    wave = lambda name: getattr(slow, name) / RANGES[name][1]  # smooth, in [-1, 1]
    turned = lambda motion: motion.yaw + 0.5 * motion.roll
    amount = jnp.full(frames, difficulty, jnp.float32)
    return Scene(
        swing=amount * (turned(before) - turned(heads)),
        drift_x=wave("yaw"),
        drift_y=wave("roll"),
        pattern=0.5 * amount,
        light=1 + 0.3 * amount * wave("pitch"),
        earrings=amount,
    )


def hidden(key, frames, difficulty):
    """Which of eyes, nose and mouth are hidden in each frame: (3 f) bool. All three are where tracking is lost."""
    key_when, key_long = jax.random.split(key)
    shape = (3, frames + LONGEST - 1)  # eyes, mouth, all
    begins = jax.random.uniform(key_when, shape) < HIDDEN * difficulty
    lasts = jax.random.randint(key_long, shape, 1, LONGEST + 1)
    ago = jnp.arange(LONGEST)
    then = jnp.arange(frames)[:, None] + LONGEST - 1 - ago  # f ago
    eyes, mouth, lost = (begins[:, then] & (lasts[:, then] > ago)).any(-1)
    return jnp.stack([eyes | lost, lost, mouth | lost])


def coarse(masks):
    """Masks (... h w) that are the cells which they touch: no exact outlines."""
    cells = min(CELLS, masks.shape[-1])
    side = masks.shape[-1] // cells
    touched = rearrange(masks, "... (y i) (x j) -> ... y x i j", i=side, j=side).max((-1, -2))
    return repeat(touched, "... y x -> ... (y i) (x j)", i=side, j=side)


def filmed(key, pictures, difficulty):
    """Pictures (f h w c) in [0, 1] as a poor camera and a low bit rate leave them."""
    noisy = pictures + NOISE * difficulty * jax.random.normal(key, pictures.shape)
    return jnp.clip(compressed(noisy, STEP * difficulty), 0, 1)


def compressed(pictures, step):
    """Pictures (f h w c) whose cosine transforms of 8 x 8 pixels are rounded to steps that grow with frequency, as in
    JPEG; of brightness and colours alike."""
    rows = jnp.arange(8.0)
    scale = jnp.sqrt(jnp.where(rows == 0, 1, 2) / 8)
    waves = jnp.cos(jnp.pi * (rows[:, None] + 0.5) * rows / 8) * scale  # i u
    blocks = rearrange(pictures, "f (y i) (x j) c -> f y x c i j", i=8, j=8)
    found = jnp.einsum("fyxcij,iu,jv->fyxcuv", blocks, waves, waves)
    steps = jnp.maximum(step * (1 + rows[:, None] + rows) / 4, 1e-6)
    kept = jnp.round(found / steps) * steps
    back = jnp.einsum("fyxcuv,iu,jv->fyxcij", kept, waves, waves)
    return rearrange(back, "f y x c i j -> f (y i) (x j) c")
