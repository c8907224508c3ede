"""Landmarks that another tool found, in place of our own finder: where the face is, and what of it is kept.

A file holds the points of every frame of a video, in pixels of its upright pictures: `.npy`, an
array (f, k, 2) of x and y with NaN where no face was seen; or `.json`, a list with one list of
[x, y] for each frame, null where none was. LAYOUTS says which numbers of points are understood.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.faces import face


class Layout(NamedTuple):
    """Which points outline what; left and right are the picture's."""

    left_eye: list[int]
    right_eye: list[int]
    nose: list[int]
    mouth: list[int]
    margin: float  # kept around each outline, in distances between the eyes


# Convex hulls of these points are kept; their order does not matter.
LAYOUTS = {
    # iBUG's 68 points, as of dlib and face-alignment.
    68: Layout([*range(36, 42)], [*range(42, 48)], [*range(27, 36)], [*range(48, 60)], 0.15),
    # MediaPipe's face mesh, with its ten points on the irises or without.
    **dict.fromkeys((468, 478), Layout(
        [33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246],
        [263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466],
        [168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 97, 326, 327, 48, 278],
        [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185],
        0.15,
    )),
    # Four outlines of sixteen points each around all that is to be kept, with some room: where they are smoothed
    # over time, a mouth that opens within four frames leaves its outline by up to 0.03.
    64: Layout([*range(16)], [*range(16, 32)], [*range(32, 48)], [*range(48, 64)], 0.0),
}  # fmt: skip


# Of left eye, right eye and lips: points of the upper edge, of the lower one, and both corners.
OPENINGS = {
    68: (([37, 38], [41, 40], (36, 39)), ([43, 44], [47, 46], (42, 45)), ([62], [66], (48, 54))),
    **dict.fromkeys((468, 478), (([159], [145], (33, 133)), ([386], [374], (362, 263)), ([13], [14], (61, 291)))),
}  # fmt: skip


class Landmarks(NamedTuple):
    points: np.ndarray  # (f, k) complex pixels, bridged where no face was seen
    track: face.Track


Reader = Callable[[int, int], Landmarks | None]


def opened(path, frames: int) -> Reader:
    """Reads stretches (first, count) of the landmarks of a video of so many frames; None where such a stretch
    shows no face. Of an array no more is held in memory; JSON is read whole. UserError where the file does
    not fit the video.
    """
    path = Path(path)
    try:
        rows = _listed(path) if path.suffix == ".json" else np.load(path, mmap_mode="r", allow_pickle=False)
        if rows.dtype.kind not in "fiu" or rows.ndim != 3 or rows.shape[1] not in LAYOUTS or rows.shape[2] != 2:
            raise ValueError(f"{rows.dtype} of shape {rows.shape}")
    except (OSError, EOFError, ValueError, TypeError, AttributeError, StopIteration) as error:
        raise UserError(
            f"{path}: no landmarks ({error}); give .npy or .json of (frames, points, 2) "
            f"with {', '.join(map(str, LAYOUTS))} points."
        ) from None
    if len(rows) != frames:
        raise UserError(f"{path}: landmarks of {len(rows)} frames, but the video has {frames}.")
    if path.suffix == ".json":
        return lambda first, count: _bridged(rows[first : first + count])
    # Mapped anew for every stretch, as what was read of a map counts as the process's memory.
    return lambda first, count: _bridged(np.load(path, mmap_mode="r", allow_pickle=False)[first : first + count])


def read(path, frames: int) -> Landmarks:
    """All landmarks of a video of so many frames. UserError where the file does not fit it."""
    whole = opened(path, frames)(0, frames)
    if whole is None:
        raise UserError(f"{path}: no frame has all its landmarks; give those of a video with a face.")
    return whole


def _listed(path: Path) -> np.ndarray:
    """(f, k, 2) of JSON, NaN where there is no face."""
    listed = json.loads(path.read_text())
    count = len(next(filter(None, listed)))
    return np.array([frame or [[np.nan, np.nan]] * count for frame in listed], float)


def _bridged(rows: np.ndarray) -> Landmarks | None:
    points = rows[..., 0].astype(float) + 1j * rows[..., 1]
    found = np.isfinite(points).all(1)
    if not found.any():
        return None
    where, index = np.flatnonzero(found), np.arange(len(points))
    points = np.stack([np.interp(index, where, column[where]) for column in points.T], 1)
    return Landmarks(points, face.Track(_faces(points, found), found))


def _faces(points: np.ndarray, found: np.ndarray) -> face.Face:
    layout = LAYOUTS[points.shape[1]]
    eyes = [points[:, outline].mean(1) for outline in (layout.left_eye, layout.right_eye)]
    nose, mouth = (points[:, outline].mean(1) for outline in (layout.nose, layout.mouth))
    size = abs(eyes[1] - eyes[0]) / (face.EYES[1] - face.EYES[0]).real
    down = 1j * (eyes[1] - eyes[0]) / abs(eyes[1] - eyes[0])
    centre = (eyes[0] + eyes[1]) / 2 - down * face.EYES[0].imag * size
    return face.Face(centre, size, *eyes, nose, mouth, found.astype(float), opening=opening(points))


def opening(points: np.ndarray) -> np.ndarray | None:
    """(..., 3) height over width of left eye, right eye and lips, of points (..., k); None where these are too few."""
    if points.shape[-1] not in OPENINGS:
        return None
    height = lambda upper, lower: abs(points[..., upper].mean(-1) - points[..., lower].mean(-1))
    width = lambda corners: np.maximum(abs(points[..., corners[0]] - points[..., corners[1]]), 1e-6)
    return np.stack([height(up, low) / width(corners) for up, low, corners in OPENINGS[points.shape[-1]]], -1)


def region_mask(points: np.ndarray, box: face.Box, size: int) -> np.ndarray:
    """(size, size) bool: True in and around the outlines of both eyes, nose and mouth in the crop.

    points: (k,) complex pixels of the whole picture.
    """
    points = (points - (box.left + 1j * box.top)) * size / box.side
    layout = LAYOUTS[len(points)]
    mask = np.zeros((size, size), np.uint8)
    for outline in (layout.left_eye, layout.right_eye, layout.nose, layout.mouth):
        corners = np.stack([points[outline].real, points[outline].imag], -1).astype(np.float32)
        hull = cv2.convexHull(corners)
        cv2.fillConvexPoly(mask, np.round(hull * 16).astype(np.int32), 1, shift=4)
    apart = abs(points[layout.left_eye].mean() - points[layout.right_eye].mean())
    reach = round(layout.margin * apart)
    grown = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(mask, grown).astype(bool)
