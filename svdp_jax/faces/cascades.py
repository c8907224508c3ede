"""Faces found by OpenCV's own cascades, which need no download: the finder of last resort.

A cascade calls fur, grass and mouths faces. So a box counts only where a closer look sees it again at
several sizes, with both eyes where it does not fill the picture, and where it is not part of a larger face.
"""

import threading

import cv2
import numpy as np

from svdp_jax.faces import networks
from svdp_jax.faces.face import EYES, Face, moved, warp
from svdp_jax.media.images import resize

SEARCH_SIDE = 480  # longest side of the copy that is searched
PATCH, PATCH_FACE = 192, 112  # a face about to be looked at closely is brought to this size
AGAIN = (96, 100, 128)  # and to these for a second opinion
AGREE = 0.12  # how far apart, in sides of the box, opinions of one face may be
SMALLEST_FACE = 0.08  # of the longer side
ROLLS = (0, 30, -30)  # degrees; cascades find only faces within some 15 degrees of upright
EYE_REACH = 0.13
# From the middle between the eyes, in units of their distance, x along the eye line.
NOSE, MOUTH = 0.58j, 1.15j
# Least confidence of a face that is found in one picture: of one that fills it, as in a portrait, and of a smaller one, of which
# both eyes must be seen: with one, a box in noise is a face now and then, and in small pictures the other eye is a guess.
SURE, SURE_OF_SMALL = 0.45, 0.67
FILLS = 0.45  # of the longer side
# Step between sizes and neighbours asked for: usual, and thorough, as glasses hide a face from the usual search.
SEARCHES = ((1.1, 4), (1.05, 2))


class _Loaded(threading.local):
    """The cascades of a thread, which two must not use at once; they go when the thread ends."""

    def __init__(self):
        self.cascades = {}


_loaded = _Loaded()


def _cascade(name: str) -> "cv2.CascadeClassifier":
    if name not in _loaded.cascades:
        networks.check()
        _loaded.cascades[name] = cv2.CascadeClassifier(f"{cv2.data.haarcascades}haarcascade_{name}.xml")
    return _loaded.cascades[name]


def search_copy(image: np.ndarray) -> tuple[np.ndarray, float]:
    """Grey copy for the search, and its scale."""
    h, w = image.shape[:2]
    scale = min(1.0, SEARCH_SIDE / max(h, w))
    small = resize(image, (max(1, round(w * scale)), max(1, round(h * scale)))) if scale < 1 else image
    return cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), scale


def find(grey: np.ndarray) -> list[Face]:
    """Faces in the search copy, the largest first."""
    for roll in ROLLS:
        for search in SEARCHES:
            seeds = _seeds(grey, roll, *search)
            looks = [face for seed in seeds if (face := look(grey, *seed)) and _sure(grey, face) and _again(grey, face)]
            if seen := _outermost(looks):
                return sorted(seen, key=lambda face: -face.size)
    return []


def roll_of(face: Face) -> float:
    return float(np.angle(face.right_eye - face.left_eye))


def _sure(grey, face: Face) -> bool:
    return face.confidence > (SURE if face.size > FILLS * max(grey.shape) else SURE_OF_SMALL)


def _again(grey, face: Face) -> bool:
    """Whether the face is seen in the same place at other sizes."""
    seen = [look(grey, face.centre, face.size, roll_of(face), face, side) for side in AGAIN]
    same = lambda s: s and abs(s.centre - face.centre) < AGREE * face.size and abs(s.size - face.size) < 2 * AGREE * face.size
    return sum(map(bool, map(same, seen))) > len(AGAIN) // 2


def _outermost(faces: list[Face]) -> list[Face]:
    """Without those whose middle lies in a larger one, as of a mouth that is taken for a face."""
    inside = lambda p, q: p.size < q.size and abs(p.centre - q.centre) < 0.6 * q.size
    return [p for p in faces if not any(inside(p, q) for q in faces)]


def _seeds(grey, roll, step: float, neighbours: int) -> list[tuple[complex, float, float]]:
    """(centre, size, roll) of what looks like a face turned by `roll` degrees."""
    h, w = grey.shape
    turn = np.exp(1j * np.deg2rad(roll))
    middle = (w + 1j * h) / 2
    turned = cv2.equalizeHist(warp(grey, turn, middle - turn * middle, (w, h)))
    smallest = round(SMALLEST_FACE * max(h, w))
    for name, flip in [("frontalface_alt2", 1), ("frontalface_default", 1), ("profileface", 1), ("profileface", -1)]:
        view = np.ascontiguousarray(turned[:, ::flip])
        boxes = _cascade(name).detectMultiScale(view, step, neighbours, minSize=(smallest, smallest))
        if len(boxes):
            xs = [x + s / 2 if flip > 0 else w - x - s / 2 for x, _, s, _ in boxes]
            centres = [x + 1j * (y + s / 2) for x, (_, y, s, _) in zip(xs, boxes, strict=True)]
            centres = [turn * (centre - middle) + middle for centre in centres]
            return [(c, float(box[2]), np.deg2rad(roll)) for c, box in zip(centres, boxes, strict=True)]
    return []


def look(grey, centre, size, roll, guess: Face | None = None, patch_face: int = PATCH_FACE) -> Face | None:
    """The face near a place, size and roll, looked for in a small upright patch; None if not there."""
    a = size / patch_face * np.exp(1j * roll)
    b = centre - a * (PATCH + 1j * PATCH) / 2
    patch = cv2.equalizeHist(warp(grey, a, b, (PATCH, PATCH)))
    boxes, votes = _cascade("frontalface_alt2").detectMultiScale2(
        patch, 1.1, 2, minSize=(patch_face * 3 // 4,) * 2, maxSize=(patch_face * 3 // 2,) * 2
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
    return moved(face_by(middle, side, *eyes, confidence), a, b)


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


def face_by(centre, size, left_eye, right_eye, confidence) -> Face:
    """The face with these eyes; nose and mouth are guessed."""
    middle, across = (left_eye + right_eye) / 2, right_eye - left_eye
    return Face(centre, size, left_eye, right_eye, middle + across * NOSE, middle + across * MOUTH, confidence)
