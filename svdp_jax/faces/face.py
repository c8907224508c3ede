"""What is known of a face, in one picture or over a clip: where it is, its crop, and what of it is kept.

Points are complex numbers x + iy in pixels, so that a shift, turn and scaling is `a * z + b`; left and
right are the picture's. Faces are found by `faces.follow`.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np

from svdp_jax.media.images import resize

GREY = 128  # what is hidden; 0.5 of the range
# A face seen by the cascades, in units of its box, from its centre.
EYES = np.array([-0.19 - 0.12j, 0.19 - 0.12j])
FRAMING = 1.9  # side of the crop in face boxes: the head fills three quarters of the height
HEADROOM = 0.06  # how far, in crop sides, the face box lies below the middle of the crop
CIRCLE = np.exp(2j * np.pi * np.arange(64) / 64)


class Face(NamedTuple):
    """One face, or with a leading axis f the faces of a clip; complex pixels, `size` the box's side.

    The last three are known only of a face that networks found: outlines (64,) of what is kept of it, four
    of sixteen points (`faces.mesh`), how far the head is turned to the right in the picture, degrees, and
    how open left eye, right eye and lips are (3,), height over width.
    """

    centre: Any  # complex, or an array of them, as all places; the others float
    size: Any
    left_eye: Any
    right_eye: Any
    nose: Any
    mouth: Any
    confidence: Any  # 0..1
    outlines: Any = None
    yaw: Any = None
    opening: Any = None


class Track(NamedTuple):
    faces: Face  # of arrays (f,)
    found: np.ndarray  # (f,) bool: seen in this frame, not bridged


class Box(NamedTuple):
    """A square in whole pixels, which may reach beyond the picture."""

    left: int
    top: int
    side: int


def missing(track: Track) -> list[tuple[int, int]]:
    """Ranges (first, last) of the frames in which no face was seen."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ~track.found, [False]]).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def at(track: Track, index: int) -> Face:
    return Face(*(None if values is None else values[index] for values in track.faces))


def crop_box(faces: Face) -> Box:
    """The one portrait square for a face or all faces of a clip: face half the height, head whole.

    It grows where the face wanders, so that it never leaves the square.
    """
    centres, sizes = np.atleast_1d(faces.centre), np.atleast_1d(faces.size)
    x0, x1 = _span(centres.real - sizes / 2, centres.real + sizes / 2)
    y0, y1 = _span(centres.imag - sizes / 2, centres.imag + sizes / 2)
    side = FRAMING * max(float(np.median(sizes)), (x1 - x0) / 1.4, (y1 - y0) / 1.4)
    return Box(round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2 - HEADROOM * side), round(side))


def square(picture: np.ndarray) -> Box:
    """The largest centred one."""
    h, w = picture.shape[:2]
    return Box((w - min(h, w)) // 2, (h - min(h, w)) // 2, min(h, w))


def crop(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The square `box` of the picture at `size` pixels; beyond the picture its edge is repeated."""
    left, top, side = box
    h, w = image.shape[:2]
    inside = image[max(0, top) : top + side, max(0, left) : left + side]
    pad = [max(0, -top), max(0, top + side - h), max(0, -left), max(0, left + side - w)]
    return resize(cv2.copyMakeBorder(inside, *pad, cv2.BORDER_REPLICATE), (size, size))


def in_crop(face: Face, box: Box, size: int) -> Face:
    """`face` in the pixels of the crop."""
    return moved(face, size / box.side, -(box.left + 1j * box.top) * size / box.side)


def shifted(faces: Face, by: complex) -> Face:
    """`faces` with all places moved by x + iy pixels."""
    return moved(faces, 1, by)


def moved(face: Face, a: complex, b: complex) -> Face:
    """`face` with every place z at a * z + b."""
    points = (a * z + b for z in (face.left_eye, face.right_eye, face.nose, face.mouth))
    outlines = None if face.outlines is None else a * face.outlines + b
    return Face(a * face.centre + b, abs(a) * face.size, *points, face.confidence, outlines, face.yaw, face.opening)


def outlines_mask(outlines: np.ndarray, size: int) -> np.ndarray:
    """(size, size) bool: True inside any of the convex outlines (k, points)."""
    mask = np.zeros((size, size), np.uint8)
    for outline in outlines:
        points = np.stack([outline.real, outline.imag], -1)
        cv2.fillConvexPoly(mask, np.round(points * 16).astype(np.int32), 1, shift=4)
    return mask.astype(bool)


def mask_driving(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`image` (h, w, 3) where `mask` (h, w) is True, grey elsewhere."""
    return np.where(mask[..., None], image, np.uint8(GREY))


def warp(image, a: complex, b: complex, size, border: int = cv2.BORDER_REPLICATE):
    """Picture whose pixel z shows `image` at a * z + b, and beyond it what OpenCV's `border` says."""
    matrix = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=border)


def _span(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """From low to high, leaving out the outermost twentieth of the frames on either side."""
    return float(np.quantile(low, 0.05)), float(np.quantile(high, 0.95))
