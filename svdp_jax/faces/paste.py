"""Puts a generated portrait back into the picture that its crop was taken from."""

from functools import cache

import cv2
import numpy as np

from svdp_jax.faces.face import Box, warp
from svdp_jax.media.images import resize

FEATHER = 0.12  # width of the blended rim, in sides of the crop
SOFT = 1 / 32  # and of LivePortrait's


def paste(picture: np.ndarray, box: Box, portrait: np.ndarray) -> np.ndarray:
    """`picture` (h, w, 3) with the square `portrait` (s, s, 3) in its `box`, both uint8.

    The rim of the box fades into the picture, but for sides on or beyond the picture's own edge,
    where there is nothing to fade into. Pixels outside the box are not touched.
    """
    h, w = picture.shape[:2]
    left, top, side = box
    rows, columns = (slice(max(0, at), min(end, at + side)) for at, end in ((top, h), (left, w)))
    inside = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    fitted = resize(portrait, (side, side))[inside].astype(np.float32)
    weight = np.minimum.outer(_ramp(top, side, h)[inside[0]], _ramp(left, side, w)[inside[1]])[..., None]
    result = picture.copy()
    old = picture[rows, columns]
    result[rows, columns] = np.round(old + weight * (fitted - old))
    return result


def paste_turned(picture: np.ndarray, a: complex, b: complex, portrait: np.ndarray) -> np.ndarray:
    """`picture` (h, w, 3) with the square `portrait` (s, s, 3), whose pixel z lies at a * z + b, both uint8.

    The rim of the portrait fades into the picture on all sides, as published for LivePortrait.
    """
    large = len(portrait)
    # Brought nearer the picture's scale first where a pixel would be left out, lest it alias.
    side = large if abs(a) >= 0.5 else max(1, round(large * abs(a)))
    step = large / side
    a, b = a * step, b + a * (step - 1) / 2 * (1 + 1j)
    back, size = (1 / a, -b / a), picture.shape[1::-1]
    weight = warp(_soft(side), *back, size, cv2.BORDER_CONSTANT)[..., None]
    fitted = warp(resize(portrait, (side, side)), *back, size).astype(np.float32)
    return np.round(picture + weight * (fitted - picture)).astype(np.uint8)


@cache
def _soft(side: int) -> np.ndarray:
    """Weights (side, side): 1 within, falling to 0 over SOFT of the side, with round corners."""
    place, rim = np.arange(side, dtype=np.float32), SOFT * side
    beyond = np.maximum(0, np.maximum(rim - place, place - (side - rim)))
    return np.clip(1 - np.hypot(beyond[:, None], beyond) / rim, 0, 1)


def _ramp(start: int, side: int, length: int) -> np.ndarray:
    """Weights (side,) of the portrait along one axis of the picture, on which the box begins at `start`."""
    place = (np.arange(side, dtype=np.float32) + 0.5) / (FEATHER * side)
    near = place if start > 0 else np.full_like(place, np.inf)
    far = place[::-1] if start + side < length else np.full_like(place, np.inf)
    rise = np.clip(np.minimum(near, far), 0, 1)
    return rise * rise * (3 - 2 * rise)
