"""What FVD wants of frames, as Google's frechet_video_distance defines it."""

import numpy as np


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """A picture (y x 3) at size × size, float32 in [0, 255], as TensorFlow's first `resize_bilinear` makes it.

    A pixel of the result looks at the place of its corner, not of its middle, and at no more than four
    pixels, however much smaller the result is. What is left is not rounded.
    """
    height, width = image.shape[:2]
    rows, columns = (np.arange(size, dtype=np.float32) * np.float32(side / size) for side in (height, width))
    x, right, across = corners(columns, width)
    y, below, down = corners(rows, height)
    image = image.astype(np.float32)
    lines = image[:, x] + (image[:, right] - image[:, x]) * across[:, None]
    return lines[y] + (lines[below] - lines[y]) * down[:, None, None]


def corners(places: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels before and after each place, and how far it lies between them."""
    before = places.astype(int)
    return before, np.minimum(before + 1, side - 1), places - before
