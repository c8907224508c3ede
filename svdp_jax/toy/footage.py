"""The toy world as raw footage: videos of drawn people in larger pictures, and beside each the truth.

`NAME.mp4` is what a camera would have given; `NAME.toy.npz` holds the person, the motion of every
frame, and where in the picture the drawing stands; `NAME.npy` holds landmarks, since finders of
real faces do not see these. It is for trying and testing `svdp_jax.prepare`, whose gate must be opened
with `--limit yaw=0:50`: noses here stand further out than people's, so that a turn of 34 degrees, the
most there is, is read as up to 45.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.media.writer import VideoWriter
from svdp_jax.toy import person, world

RATE = Fraction(25)
DRAWN = 224  # pixels of the drawing in the picture
HEIGHT, WIDTH = 9 / 7, 11 / 7  # of the picture, in sides of the drawing
SECONDS = 4.0
ROOM = 200  # grey of the wall around the drawing
AROUND = 0.015  # sides of the drawing, 0.06 distances of the eyes, between a part and its outline
AT_ONCE = 25  # frames
DIRECTIONS = np.exp(2j * np.pi * np.arange(16) / 16)


class Truth(NamedTuple):
    """Fields of `identity` are (...), of `motion` (f)."""

    identity: person.Identity
    motion: person.Motion
    corner: complex  # x + iy of the drawing in the picture
    drawn: int  # its side in pixels


_render = jax.jit(world.render, static_argnums=2)
_regions = jax.jit(world.regions, static_argnums=2)


def write(folder: Path, clips: int, seconds: float, drawn: int = DRAWN) -> list[Path]:
    """Writes this many videos, each of another person, with their truth."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.key(0), clips)
    return [_write(folder / f"person{number:03}", key, seconds, drawn) for number, key in enumerate(keys)]


def _write(stem: Path, key, seconds: float, drawn: int) -> Path:
    key_who, key_how, key_where = jax.random.split(key, 3)
    height, width = _shape(drawn)
    x, y = (int(v) for v in jax.random.randint(key_where, (2,), 0, np.array([width - drawn, height - drawn])))
    motion = person.sample_motion(key_how, round(seconds * RATE), float(RATE))
    truth = Truth(person.sample_identity(key_who), motion, x + 1j * y, drawn)
    path = stem.with_suffix(".mp4")
    save(truth_path(path), truth)
    points = outlines(truth, truth.identity, 0, len(motion.yaw))
    np.save(path.with_suffix(".npy"), np.stack([points.real, points.imag], -1).astype(np.float32))
    with VideoWriter(path, RATE) as writer:
        for picture in pictures(truth, truth.identity, 0, len(motion.yaw)):
            writer.write(picture)
    return path


def _shape(drawn: int) -> tuple[int, int]:
    """Height and width of the picture around a drawing."""
    return round(HEIGHT * drawn), round(WIDTH * drawn)


def truth_path(path: Path) -> Path:
    return path.with_suffix(".toy.npz")


def save(path: Path, truth: Truth) -> None:
    fields = {f"identity.{name}": value for name, value in truth.identity._asdict().items()}
    fields |= {f"motion.{name}": value for name, value in truth.motion._asdict().items()}
    np.savez(path, corner=truth.corner, drawn=truth.drawn, **fields)


def load(path: Path) -> Truth:
    """The truth beside a video; UserError where there is none."""
    try:
        with np.load(truth_path(path)) as file:
            read = lambda kind: kind(*(file[f"{kind.__name__.lower()}.{name}"] for name in kind._fields))
            return Truth(read(person.Identity), read(person.Motion), complex(file["corner"]), int(file["drawn"]))
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{path}: no truth of the toy world beside it; only footage from --draw-toy can be paired so."
        ) from None


def pictures(truth: Truth, who: person.Identity, first: int, count: int) -> Iterator[np.ndarray]:
    """Frames first .. first + count - 1 of the footage, with `who` in place of its own person."""
    for start in range(first, first + count, AT_ONCE):
        drawings = _render(who, _frames(truth.motion, start), truth.drawn)
        for drawing in np.asarray(drawings)[: first + count - start]:
            picture = np.full((*_shape(truth.drawn), 3), ROOM, np.uint8)
            x, y = int(truth.corner.real), int(truth.corner.imag)
            picture[y : y + truth.drawn, x : x + truth.drawn] = np.clip(drawing * 255 + 0.5, 0, 255)
            yield picture


def _frames(motion: person.Motion, start: int) -> person.Motion:
    """AT_ONCE frames from `start`, the last one repeated beyond the end: one shape compiles."""
    index = np.minimum(np.arange(start, start + AT_ONCE), len(motion.yaw) - 1)
    return person.Motion(*(np.asarray(values)[index] for values in motion))


def regions(truth: Truth, who: person.Identity, first: int, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Where eyes, nose and mouth of `who` truly are: masks (height, width) bool by name, frame by frame."""
    x, y = int(truth.corner.real), int(truth.corner.imag)
    for start in range(first, first + count, AT_ONCE):
        found = jax.tree.map(np.asarray, _regions(who, _frames(truth.motion, start), truth.drawn))
        for i in range(min(AT_ONCE, first + count - start)):
            masks = {name: np.zeros(_shape(truth.drawn), bool) for name in found._fields}
            for name, values in found._asdict().items():
                masks[name][y : y + truth.drawn, x : x + truth.drawn] = values[i] > 0.5
            yield masks


def outlines(truth: Truth, who: person.Identity, first: int, count: int) -> np.ndarray:
    """Landmarks (f, 64) of the footage with `who` in it: outlines of left eye, right eye, nose, mouth."""
    return np.stack([_outlines(masks, AROUND * truth.drawn) for masks in regions(truth, who, first, count)])


def _outlines(masks: dict[str, np.ndarray], room: float) -> np.ndarray:
    _, parts, _, centres = cv2.connectedComponentsWithStats(masks["eyes"].astype(np.uint8))
    left, right = np.argsort(centres[1:3, 0]) + 1
    return np.concatenate([_around(m, room) for m in (parts == left, parts == right, masks["nose"], masks["mouth"])])


def _around(mask: np.ndarray, room: float) -> np.ndarray:
    """The 16 corners of the polygon of 16 fixed directions so many pixels around all that is True."""
    y, x = np.nonzero(mask)
    pixels = x + 1j * y
    reach = np.array([(pixels * direction.conj()).real.max() + 0.5 + room for direction in DIRECTIONS])
    turn = 2 * np.pi / len(DIRECTIONS)
    along = (np.roll(reach, -1) - reach * np.cos(turn)) / np.sin(turn)
    return DIRECTIONS * (reach + 1j * along)
