"""The built-in pictures and drivers: people of the toy world, drawn when they are asked for."""

from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from svdp_jax.media.images import write_image
from svdp_jax.media.writer import VideoWriter
from svdp_jax.toy import person, world

SIZE = 256  # pixels
FRAMES = 50  # four seconds
PLAYS = ((14, 23, 3), (31, 26, 0), (7, 20, 1))  # seeds of source, driver and motion
CORNERS = 16  # of an outline in a landmark file


class Example(NamedTuple):
    """Files, and how to crop them: options of `faces.scene.prepare`."""

    source: str
    driving: str
    landmarks: str
    source_crop: str = "none"
    driving_crop: str = "none"


def draw(folder: Path, seeds: tuple[int, int, int] = PLAYS[0]) -> Example:
    """Writes a picture, a video and the exact landmarks of its faces into the folder."""
    pictures, regions = jax.device_get(_render(jnp.array(seeds)))
    source, *frames = np.clip(pictures * 255 + 0.5, 0, 255).astype(np.uint8)
    names = Example(*(str(folder / name) for name in ("source.png", "driving.mp4", "landmarks.npy")))
    write_image(names.source, source)
    with VideoWriter(names.driving, person.FPS) as writer:
        for frame in frames:
            writer.write(frame)
    eyes, nose, mouth = regions
    np.save(names.landmarks, np.stack([_points(*masks) for masks in zip(eyes, nose, mouth)]))
    return names


@jax.jit
def _render(seeds: jax.Array) -> tuple[jax.Array, world.Regions]:
    """Pictures (1 + f, h, w, 3) in [0, 1], the source's first, and regions (f, h, w) of the driver."""
    people = jax.vmap(lambda seed: person.sample_identity(jax.random.key(seed)))(seeds[:2])
    each = jax.tree.map(lambda field: jnp.repeat(field, jnp.array([1, FRAMES]), 0, total_repeat_length=1 + FRAMES), people)
    motion = person.sample_motion(jax.random.key(seeds[2]), FRAMES)
    still = jax.tree.map(lambda field: jnp.zeros(1), motion)._replace(scale=jnp.ones(1))
    motions = jax.tree.map(lambda *fields: jnp.concatenate(fields), still, motion)
    driver = jax.tree.map(lambda field: field[1], people)
    return world.render(each, motions, SIZE), world.regions(driver, motion, SIZE)


def _points(eyes: np.ndarray, nose: np.ndarray, mouth: np.ndarray) -> np.ndarray:
    """Outlines of the regions (h, w) of one picture, each CORNERS points (x, y)."""
    count, parts = cv2.connectedComponents(eyes.astype(np.uint8))
    centres = [np.argwhere(parts == i)[:, 1].mean() for i in range(1, count)]
    left, right = (parts == i + 1 for i in np.argsort(centres)[[0, -1]])
    return np.concatenate([_outline(mask) for mask in (left, right, nose, mouth)])


def _outline(mask: np.ndarray) -> np.ndarray:
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(contours))[:, 0].astype(float)
    along = np.linspace(0, len(hull), CORNERS, endpoint=False)
    return np.stack([np.interp(along, np.arange(len(hull) + 1), np.append(x, x[0])) for x in hull.T], -1)
