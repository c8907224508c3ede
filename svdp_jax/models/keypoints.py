"""Implicit keypoints, in which LivePortrait speaks of motion.

A face is 21 points: canonical ones, which belong to the person, turned with the head, shifted by
the expression, scaled and placed. Points are row vectors (x, y, z) in units of half a picture;
z has no place of its own. Leading dimensions broadcast: one source goes with many driving frames.

Source: Guo et al. 2024 (arXiv 2407.03168); which points are eyes and lips, KwaiVGI/LivePortrait. Its
expression-friendly multiplier is not here: driven relatively, the first frame's points are the source's
own, so that it is always one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

KEYPOINTS = 21
# Which parts of the driver's expression a source takes on in absolute motion: mouth, eyes and brows.
TAKEN = np.zeros((KEYPOINTS, 3), bool)
TAKEN[[1, 2, 6, *range(11, 21)]] = True
TAKEN[[3, 4, 9], 1] = True
TAKEN[[5, 8, 9], 2] = True


EVERY = np.ones((KEYPOINTS, 3), bool)
LIPS, EYES = (
    np.isin(np.arange(KEYPOINTS), points)[:, None] & EVERY for points in ([6, 12, 14, 17, 19, 20], [11, 13, 15, 16, 18])
)


class Region(NamedTuple):
    """What of the driver moves the source; all else stays as it is."""

    pose: bool  # rotation and place
    scale: bool  # of relative motion, absolute one leaves it
    relative: np.ndarray  # k 3, of the expression
    absolute: np.ndarray


NONE = ~EVERY
REGIONS = {
    "all": Region(True, True, EVERY, TAKEN),
    "exp": Region(False, False, EVERY, TAKEN),
    "pose": Region(True, False, NONE, NONE),
    "lip": Region(False, False, LIPS, LIPS),
    "eyes": Region(False, False, EYES, EYES),
}


class Motion(NamedTuple):
    """What the motion network reads from pictures. Angles in degrees."""

    canonical: jax.Array  # b k 3
    expression: jax.Array  # b k 3
    translation: jax.Array  # b 3
    scale: jax.Array  # b 1
    pitch: jax.Array  # b
    yaw: jax.Array  # b
    roll: jax.Array  # b


def rotation(motion: Motion) -> jax.Array:
    """The head's rotation, b 3 3, to be multiplied with row vectors from the right."""
    x, y, z = (jnp.deg2rad(angle) for angle in (motion.pitch, motion.yaw, motion.roll))
    one, zero = jnp.ones_like(x), jnp.zeros_like(x)
    about_x = matrix(one, zero, zero, zero, jnp.cos(x), -jnp.sin(x), zero, jnp.sin(x), jnp.cos(x))
    about_y = matrix(jnp.cos(y), zero, jnp.sin(y), zero, one, zero, -jnp.sin(y), zero, jnp.cos(y))
    about_z = matrix(jnp.cos(z), -jnp.sin(z), zero, jnp.sin(z), jnp.cos(z), zero, zero, zero, one)
    return transposed(about_z @ about_y @ about_x)


def matrix(*entries: jax.Array) -> jax.Array:
    return rearrange(jnp.stack(entries, -1), "b (i j) -> b i j", i=3)


def transposed(matrices: jax.Array) -> jax.Array:
    return rearrange(matrices, "b i j -> b j i")


def placed(canonical, turn, expression, scale, translation) -> jax.Array:
    """Keypoints b k 3 from their parts; translation along z is left out."""
    flat = translation * jnp.array([1, 1, 0], translation.dtype)
    return scale[:, None] * (canonical @ turn + expression) + flat[:, None]


def points(motion: Motion) -> jax.Array:
    """The keypoints of a picture, b k 3."""
    turn = rotation(motion)
    return placed(motion.canonical, turn, motion.expression, motion.scale, motion.translation)


def relative(source: Motion, first: Motion, now: Motion, region: Region = REGIONS["all"]) -> jax.Array:
    """The source's keypoints, moved as the driver has moved since the `first` frame: b k 3."""
    turn, scale, translation = rotation(source), source.scale, source.translation
    if region.pose:
        turn = rotation(now) @ transposed(rotation(first)) @ turn
        translation = translation + (now.translation - first.translation)
    if region.scale:
        scale = scale * (now.scale / first.scale)
    change = jnp.where(region.relative, now.expression - first.expression, 0)
    return placed(source.canonical, turn, source.expression + change, scale, translation)


def absolute(source: Motion, now: Motion, region: Region = REGIONS["all"]) -> jax.Array:
    """The source's keypoints in the driver's pose, place and expression: b k 3."""
    pose = now if region.pose else source
    expression = jnp.where(region.absolute, now.expression, source.expression)
    return placed(source.canonical, rotation(pose), expression, source.scale, pose.translation)


def stitched(driven: jax.Array, change: jax.Array) -> jax.Array:
    """Driven keypoints b k 3, moved by the stitching network's answer b (3k + 2) so that shoulders stay."""
    each, all_xy = jnp.split(change, [3 * KEYPOINTS], axis=-1)
    shift = jnp.pad(all_xy, ((0, 0), (0, 1)))[:, None]  # b 1 3
    return driven + rearrange(each, "b (k i) -> b k i", i=3) + shift
