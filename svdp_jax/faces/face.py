"""Faces in pictures and videos: find, follow, smooth, crop, and the windows a driver is seen through.

The finder is OpenCV's own cascades, which need no download. Points are complex numbers x + iy in
pixels, so that a shift, turn and scaling is `a * z + b`; left and right are the picture's.
"""

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import cv2
import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.media.images import resize

GREY = 128  # what is hidden; 0.5 of the range
SEARCH_SIDE = 480  # longest side of the copy that is searched
PATCH, PATCH_FACE = 192, 112  # a face about to be looked at closely is brought to this size
SMALLEST_FACE = 0.08  # of the longer side
ROLLS = (0, 30, -30)  # degrees; cascades find only faces within some 15 degrees of upright
# A face seen by the cascade, in units of its box, from its centre.
EYES = np.array([-0.19 - 0.12j, 0.19 - 0.12j])
EYE_REACH = 0.13
# From the middle between the eyes, in units of their distance, x along the eye line.
NOSE, MOUTH = 0.58j, 1.15j
# Windows that stay open: centre (as above), half width, half height, and how much narrower the
# bottom is: a wide open mouth needs the length, the outline of the jaw must not show.
WINDOWS = {
    "left eye": (-0.5 - 0.04j, 0.42, 0.30, 0.0),
    "right eye": (0.5 - 0.04j, 0.42, 0.30, 0.0),
    "nose": (0.45j, 0.32, 0.42, 0.0),
    "mouth": (1.31j, 0.66, 0.69, 0.4),
}
FRAMING = 1.9  # side of the crop in face boxes: the head fills three quarters of the height
HEADROOM = 0.06  # how far, in crop sides, the face box lies below the middle of the crop
# Outline of a window: a circle blown up towards its bounding square.
CIRCLE = np.exp(2j * np.pi * np.arange(64) / 64)
ROUNDED = np.sign(CIRCLE.real) * abs(CIRCLE.real) ** 0.4 + 1j * np.sign(CIRCLE.imag) * abs(CIRCLE.imag) ** 0.4
UNSURE = 0.2  # confidence in a face known only by its box
FEWEST_POINTS = 8  # for a motion to be believed
SEARCH_EVERY = 5  # frames without a face between searches of the whole picture
STRAY = 0.2  # face sizes by which the followed place may miss the seen one
SMOOTHING = 8.0  # frames; only of what cascades see, not of the motion, so that nothing lags


class Face(NamedTuple):
    """One face, or with a leading axis f the faces of a clip; complex pixels, `size` the box's side."""

    centre: Any  # complex, or an array of them, as all places; the others float
    size: Any
    left_eye: Any
    right_eye: Any
    nose: Any
    mouth: Any
    confidence: Any  # 0..1


class Track(NamedTuple):
    faces: Face  # of arrays (f,)
    found: np.ndarray  # (f,) bool: seen in this frame, not bridged


class Box(NamedTuple):
    """A square in whole pixels, which may reach beyond the picture."""

    left: int
    top: int
    side: int


def detect(image: np.ndarray) -> list[Face]:
    """Faces in an (h, w, 3) uint8 picture, the largest first."""
    grey, scale = _search_copy(image)
    return [_moved(face, 1 / scale, 0) for face in _find(grey)]


def track(images: Iterable[np.ndarray], pick: int = 0, name: str = "picture") -> Track:
    """Follows one face through a clip: the `pick`-th largest of the first frame that has one, from 0,
    or the smallest there if they are fewer.

    Only a few numbers per frame are kept. What the finder sees is smoothed over time after the
    motion of the picture has been taken out of it, so the result neither jitters nor lags. Frames
    without a face are bridged between their neighbours. UserError, naming `name`, if no frame has one.
    """
    seen, motions, previous, last, guess, misses = [], [], None, None, None, 0
    for image in images:
        grey, scale = _search_copy(image)
        motion = _motion(previous, grey, guess)
        guess = _moved(guess, *motion) if guess and motion else guess
        now = guess and _look(grey, guess.centre, guess.size, _roll(guess), guess)
        if now is None and misses % SEARCH_EVERY == 0:
            now = _found_again(grey, guess, pick)
        followed = now and guess and motion and not misses and abs(guess.centre - now.centre) < STRAY * now.size
        motions.append(motion if followed else _between(last, now))
        seen.append(now)
        misses = 0 if now else misses + 1
        last, guess, previous = now or last, now or guess, grey
    if last is None:
        raise UserError(f"{name}: no face is found; give one that looks ahead, a tenth of the picture or larger.")
    return _smoothed(seen, motions, scale)


def missing(track: Track) -> list[tuple[int, int]]:
    """Ranges (first, last) of the frames in which no face was seen."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], ~track.found, [False]]).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def at(track: Track, index: int) -> Face:
    return Face(*(values[index] for values in track.faces))


def crop_box(faces: Face) -> Box:
    """The one portrait square for a face or all faces of a clip: face half the height, head whole.

    It grows where the face wanders, so that it never leaves the square.
    """
    centres, sizes = np.atleast_1d(faces.centre), np.atleast_1d(faces.size)
    x0, x1 = _span(centres.real - sizes / 2, centres.real + sizes / 2)
    y0, y1 = _span(centres.imag - sizes / 2, centres.imag + sizes / 2)
    side = FRAMING * max(float(np.median(sizes)), (x1 - x0) / 1.4, (y1 - y0) / 1.4)
    return Box(round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2 - HEADROOM * side), round(side))


def crop(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The square `box` of the picture at `size` pixels; beyond the picture its edge is repeated."""
    left, top, side = box
    h, w = image.shape[:2]
    inside = image[max(0, top) : top + side, max(0, left) : left + side]
    pad = [max(0, -top), max(0, top + side - h), max(0, -left), max(0, left + side - w)]
    return resize(cv2.copyMakeBorder(inside, *pad, cv2.BORDER_REPLICATE), (size, size))


def in_crop(face: Face, box: Box, size: int) -> Face:
    """`face` in the pixels of the crop."""
    return _moved(face, size / box.side, -(box.left + 1j * box.top) * size / box.side)


def shifted(faces: Face, by: complex) -> Face:
    """`faces` with all places moved by x + iy pixels."""
    return _moved(faces, 1, by)


def region_outlines(face: Face) -> np.ndarray:
    """Outlines (4, 64) of the windows on both eyes, nose and mouth, turned with the head, as in WINDOWS."""
    middle, across = (face.left_eye + face.right_eye) / 2, face.right_eye - face.left_eye
    return np.stack([
        middle + across * (centre + width * ROUNDED.real * (1 - taper * np.maximum(0, ROUNDED.imag)) + 1j * height * ROUNDED.imag)
        for centre, width, height, taper in WINDOWS.values()
    ])  # fmt: skip


def outlines_mask(outlines: np.ndarray, size: int) -> np.ndarray:
    """(size, size) bool: True inside any of the convex outlines (k, points)."""
    mask = np.zeros((size, size), np.uint8)
    for outline in outlines:
        points = np.stack([outline.real, outline.imag], -1)
        cv2.fillConvexPoly(mask, np.round(points * 16).astype(np.int32), 1, shift=4)
    return mask.astype(bool)


def region_mask(face: Face, size: int) -> np.ndarray:
    """(size, size) bool: True in the windows of both eyes, nose and mouth, turned with the head."""
    return outlines_mask(region_outlines(face), size)


def mask_driving(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """`image` (h, w, 3) where `mask` (h, w) is True, grey elsewhere."""
    return np.where(mask[..., None], image, np.uint8(GREY))


def source_box(image: np.ndarray, pick: int = 0, name: str = "picture") -> Box:
    """The portrait square of the `pick`-th largest face of a picture; UserError where there is none."""
    return crop_box(track([image], pick, name).faces)


# Finding


class _Loaded(threading.local):
    """The cascades of a thread, which two must not use at once; they go when the thread ends."""

    def __init__(self):
        self.cascades = {}


_loaded = _Loaded()


def _cascade(name: str) -> cv2.CascadeClassifier:
    if name not in _loaded.cascades:
        _loaded.cascades[name] = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{name}.xml")
    return _loaded.cascades[name]


def _search_copy(image):
    """Grey copy for the search, and its scale."""
    h, w = image.shape[:2]
    scale = min(1.0, SEARCH_SIDE / max(h, w))
    small = resize(image, (max(1, round(w * scale)), max(1, round(h * scale)))) if scale < 1 else image
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), scale


def _find(grey) -> list[Face]:
    """Faces in the search copy, largest first: those that a closer look confirms, else mere boxes."""
    boxes = []
    for roll in ROLLS:
        seeds = _seeds(grey, roll)
        boxes = boxes or [_plain(*seed) for seed in seeds]
        if seen := [face for seed in seeds if (face := _look(grey, *seed))]:
            return sorted(seen, key=lambda face: -face.size)
    return sorted(boxes, key=lambda face: -face.size)


def _seeds(grey, roll) -> list[tuple[complex, float, float]]:
    """(centre, size, roll) of what looks like a face turned by `roll` degrees."""
    h, w = grey.shape
    turn = np.exp(1j * np.deg2rad(roll))
    middle = (w + 1j * h) / 2
    turned = cv2.equalizeHist(warp(grey, turn, middle - turn * middle, (w, h)))
    smallest = round(SMALLEST_FACE * max(h, w))
    for name, flip in [("frontalface_alt2", 1), ("frontalface_default", 1), ("profileface", 1), ("profileface", -1)]:
        view = np.ascontiguousarray(turned[:, ::flip])
        boxes = _cascade(name).detectMultiScale(view, 1.1, 4, minSize=(smallest, smallest))
        if len(boxes):
            xs = [x + s / 2 if flip > 0 else w - x - s / 2 for x, _, s, _ in boxes]
            centres = [x + 1j * (y + s / 2) for x, (_, y, s, _) in zip(xs, boxes, strict=True)]
            centres = [turn * (centre - middle) + middle for centre in centres]
            return [(c, float(box[2]), np.deg2rad(roll)) for c, box in zip(centres, boxes, strict=True)]
    return []


def _look(grey, centre, size, roll, guess: Face | None = None) -> Face | None:
    """The face near a place, size and roll, looked for in a small upright patch; None if not there."""
    a = size / PATCH_FACE * np.exp(1j * roll)
    b = centre - a * (PATCH + 1j * PATCH) / 2
    patch = cv2.equalizeHist(warp(grey, a, b, (PATCH, PATCH)))
    boxes, votes = _cascade("frontalface_alt2").detectMultiScale2(
        patch, 1.1, 2, minSize=(PATCH_FACE * 3 // 4,) * 2, maxSize=(PATCH_FACE * 3 // 2,) * 2
    )
    if not len(boxes):
        return None
    best = int(np.argmax(votes))
    x, y, side, _ = map(float, boxes[best])
    middle = x + 1j * y + (1 + 1j) * side / 2
    expected = middle + EYES * side
    if guess:
        tracked = (np.array([guess.left_eye, guess.right_eye]) - b) / a
        expected = np.where(abs(tracked - expected) < EYE_REACH * side, tracked, expected)
    eyes = [_eye(patch, eye, side) for eye in expected]
    confidence = votes[best] / (votes[best] + 5) * (1 + sum(e is not None for e in eyes)) / 3
    eyes = [place if eye is None else eye for eye, place in zip(eyes, expected, strict=True)]
    return _moved(_face(middle, side, *eyes, confidence), a, b)


def _eye(patch, expected: complex, side: float) -> complex | None:
    """Where in the patch the eye near `expected` is; None where it is shut or hidden."""
    reach = EYE_REACH * side
    half = round(2 * reach)
    left, top = max(0, round(expected.real) - half), max(0, round(expected.imag) - half)
    view = patch[top : top + 2 * half, left : left + 2 * half]
    for name in ("eye_tree_eyeglasses", "eye"):
        boxes = _cascade(name).detectMultiScale(view, 1.1, 2, minSize=(20, 20))
        centres = [left + x + w / 2 + 1j * (top + y + h / 2) for x, y, w, h in boxes]
        nearest = min(centres, key=lambda c: abs(c - expected), default=None)
        if nearest is not None and abs(nearest - expected) < reach:
            return nearest
    return None


def _plain(centre, size, roll) -> Face:
    """A face known only by its box."""
    eyes = EYES * size * np.exp(1j * roll) + centre
    return _face(centre, size, *eyes, UNSURE)


def _face(centre, size, left_eye, right_eye, confidence) -> Face:
    middle, across = (left_eye + right_eye) / 2, right_eye - left_eye
    return Face(centre, size, left_eye, right_eye, middle + across * NOSE, middle + across * MOUTH, confidence)


def warp(image, a: complex, b: complex, size):
    """Picture whose pixel z shows `image` at a * z + b."""
    matrix = np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _found_again(grey, guess: Face | None, pick: int) -> Face | None:
    faces = _find(grey)
    if guess is None:
        return faces[min(pick, len(faces) - 1)] if faces else None
    sure = [face for face in faces if face.confidence > UNSURE]
    near = [face for face in faces if abs(face.centre - guess.centre) < guess.size]
    return min(sure or near, key=lambda face: abs(face.centre - guess.centre), default=None)


# Following


def _motion(previous, grey, face: Face | None) -> tuple[complex, complex] | None:
    """Motion (a, b) of the face from one grey picture to the next by optical flow; None if unknown."""
    if face is None:
        return None
    half = face.size / 2
    left, top = (max(0, round(v - half)) for v in (face.centre.real, face.centre.imag))
    view = previous[top : top + round(2 * half), left : left + round(2 * half)]
    corners = cv2.goodFeaturesToTrack(view, 80, 0.01, half / 10) if view.size else None
    if corners is None or len(corners) < FEWEST_POINTS:
        return None
    corners += np.array([left, top], np.float32)
    moved, kept, _ = cv2.calcOpticalFlowPyrLK(previous, grey, corners, None, winSize=(15, 15), maxLevel=3)
    kept = kept[:, 0] == 1
    matrix, inliers = cv2.estimateAffinePartial2D(corners[kept], moved[kept], ransacReprojThreshold=1.0)
    if matrix is None or inliers.sum() < FEWEST_POINTS:
        return None
    return complex(*matrix[:, 0]), complex(*matrix[:, 2])


def _between(before: Face | None, after: Face | None) -> tuple[complex, complex]:
    """The motion (a, b) that carries one face's eyes to the other's; none where one is not there."""
    if before is None or after is None:
        return 1, 0
    a = (after.right_eye - after.left_eye) / (before.right_eye - before.left_eye)
    return a, after.left_eye - a * before.left_eye


def _moved(face: Face, a: complex, b: complex) -> Face:
    points = (a * z + b for z in (face.left_eye, face.right_eye, face.nose, face.mouth))
    return Face(a * face.centre + b, abs(a) * face.size, *points, face.confidence)


def _roll(face: Face) -> float:
    return float(np.angle(face.right_eye - face.left_eye))


def _smoothed(seen, motions, scale: float) -> Track:
    found = np.array([face is not None for face in seen])
    a, b = _accumulated(motions)
    where = np.flatnonzero(found)
    still = np.array([[seen[i].centre, seen[i].left_eye, seen[i].right_eye] for i in where])
    still = (still - b[where, None]) / a[where, None]
    sizes = np.array([seen[i].size for i in where]) / abs(a[where])
    frames = np.arange(len(seen))
    a, b = (np.interp(frames, where, values[where]) for values in (a, b))
    still, sizes = (
        np.stack([_low_pass(np.interp(frames, where, column)) for column in values.T], -1) for values in (still, sizes[:, None])
    )
    centre, left_eye, right_eye = (still * a[:, None] + b[:, None]).T / scale
    confidence = np.array([face.confidence if face else 0.0 for face in seen])
    faces = _face(centre, sizes[:, 0] * abs(a) / scale, left_eye, right_eye, confidence)
    return Track(faces, found)


def _accumulated(motions) -> tuple[np.ndarray, np.ndarray]:
    """Motion (a, b) from the first frame to each."""
    a, b, total = 1, 0, []
    for step_a, step_b in motions:
        a, b = step_a * a, step_a * b + step_b
        total.append((a, b))
    return tuple(np.array(total, complex).T)


def _low_pass(values: np.ndarray) -> np.ndarray:
    reach = int(3 * SMOOTHING)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), mode="valid")


def _span(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """From low to high, leaving out the outermost twentieth of the frames on either side."""
    return float(np.quantile(low, 0.05)), float(np.quantile(high, 0.95))
