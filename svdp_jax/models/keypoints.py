"""Implicit keypoints, in which LivePortrait speaks of motion.

A face is 21 points: canonical ones, which belong to the person, turned with the head, shifted by
the expression, scaled and placed. Points are row vectors (x, y, z) in units of half a picture;
z has no place of its own. Leading dimensions broadcast: one source goes with many driving frames.

Source: Guo et al. 2024 (arXiv 2407.03168). Its expression-friendly multiplier is not here: driven
relatively, the first frame's points are the source's own, so that it is always one.
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


def relative(source: Motion, first: Motion, now: Motion) -> jax.Array:
    """The source's keypoints, moved as the driver has moved since the `first` frame: b k 3."""
    turn = rotation(now) @ transposed(rotation(first)) @ rotation(source)
    expression = source.expression + (now.expression - first.expression)
    scale = source.scale * (now.scale / first.scale)
    translation = source.translation + (now.translation - first.translation)
    return placed(source.canonical, turn, expression, scale, translation)


def absolute(source: Motion, now: Motion) -> jax.Array:
    """The source's keypoints in the driver's pose, place and expression: b k 3."""
    expression = jnp.where(TAKEN, now.expression, source.expression)
    return placed(source.canonical, rotation(now), expression, source.scale, now.translation)


def stitched(driven: jax.Array, change: jax.Array) -> jax.Array:
    """Driven keypoints b k 3, moved by the stitching network's answer b (3k + 2) so that shoulders stay."""
    each, all_xy = jnp.split(change, [3 * KEYPOINTS], axis=-1)
    shift = jnp.pad(all_xy, ((0, 0), (0, 1)))[:, None]  # b 1 3
    return driven + rearrange(each, "b (k i) -> b k i", i=3) + shift
