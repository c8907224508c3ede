"""A face followed by cascades and optical flow, for want of networks: what is seen is smoothed, the motion is not."""

from collections.abc import Callable, Iterable

import cv2
import numpy as np

from svdp_jax.faces import cascades
from svdp_jax.faces.face import Face, Track, moved

FEWEST_POINTS = 8  # for a motion to be believed
SEARCH_EVERY = 5  # frames without a face between searches of the whole picture
STRAY = 0.2  # face sizes by which the followed place may miss the seen one
SMOOTHING = 8.0  # frames; only of what cascades see, not of the motion, so that nothing lags
FEWEST_FRAMES = 3  # in a row that must agree on a face for it to count, in a clip that has twice as many


def track(images: Iterable[np.ndarray], choose: Callable[[list[Face]], Face | None]) -> Track | None:
    """Follows one face; `choose` says which of those that are found first. None if there is none.

    What the finder sees is smoothed over time after the motion of the picture has been taken out of it,
    so the result neither jitters nor lags. Frames without a face are bridged between their neighbours.
    """
    seen, motions, previous, last, guess, misses, scale = [], [], None, None, None, 0, 1.0
    for image in images:
        grey, scale = cascades.search_copy(image)
        motion = _motion(previous, grey, guess)
        guess = moved(guess, *motion) if motion and guess else guess
        now = guess and cascades.look(grey, guess.centre, guess.size, cascades.roll_of(guess), guess)
        if now is None and misses % SEARCH_EVERY == 0:
            found = cascades.find(grey)
            now = _nearest(found, guess) if guess else choose(found)
        followed = now and guess and motion and not misses and abs(guess.centre - now.centre) < STRAY * now.size
        motions.append(motion if followed else _between(last, now))
        seen.append(now)
        misses = 0 if now else misses + 1
        last, guess, previous = now or last, now or guess, grey
    agreed = _agreed(np.array([face is not None for face in seen]))
    if not agreed.any():
        return None
    return _smoothed([face if there else None for face, there in zip(seen, agreed)], motions, scale)


def _nearest(found: list[Face], guess: Face) -> Face | None:
    return min(found, key=lambda face: abs(face.centre - guess.centre), default=None)


def _agreed(found: np.ndarray) -> np.ndarray:
    """Without the runs of frames that are too short to be believed."""
    if len(found) < 2 * FEWEST_FRAMES:
        return found
    edges = np.flatnonzero(np.diff(np.concatenate([[False], found, [False]]).astype(np.int8))).reshape(-1, 2)
    agreed = np.zeros_like(found)
    for start, end in edges:
        agreed[start:end] = end - start >= FEWEST_FRAMES
    return agreed


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
    faces = cascades.face_by(centre, sizes[:, 0] * abs(a) / scale, left_eye, right_eye, confidence)
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
