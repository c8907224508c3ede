"""The windows that a driver is seen through: from its mesh where there is one, else guessed from eyes and box."""

import numpy as np

from svdp_jax.faces.face import CIRCLE, Face, Track, at, outlines_mask

# Windows that stay open: centre, from the middle between the eyes in units of their distance, x along the
# eye line; half width, half height, and how much narrower the bottom is: a wide open mouth needs the
# length, the outline of the jaw must not show.
WINDOWS = {
    "left eye": (-0.5 - 0.04j, 0.42, 0.30, 0.0),
    "right eye": (0.5 - 0.04j, 0.42, 0.30, 0.0),
    "nose": (0.45j, 0.32, 0.42, 0.0),
    "mouth": (1.31j, 0.66, 0.69, 0.4),
}
CHIN = 0.6  # how far below the centre of its box, in sides of it, a face ends; nothing below is kept
# Outline of a window: a circle blown up towards its bounding square.
ROUNDED = np.sign(CIRCLE.real) * abs(CIRCLE.real) ** 0.4 + 1j * np.sign(CIRCLE.imag) * abs(CIRCLE.imag) ** 0.4


def outlines(seen: Face) -> np.ndarray:
    """Outlines (4, 16) of what is kept of a face: both eyes, nose and mouth."""
    return region_outlines(seen)[:, ::4] if seen.outlines is None else seen.outlines.reshape(4, 16)


def region_outlines(seen: Face) -> np.ndarray:
    """Outlines (4, 64) as WINDOWS guesses them, turned with the head and cut at the chin."""
    middle, across = (seen.left_eye + seen.right_eye) / 2, seen.right_eye - seen.left_eye
    chin = ((seen.centre - middle) / across).imag + CHIN * seen.size / abs(across)
    return np.stack([
        middle + across * (shape.real + 1j * np.minimum(shape.imag, chin))
        for centre, width, height, taper in WINDOWS.values()
        for shape in [centre + width * ROUNDED.real * (1 - taper * np.maximum(0, ROUNDED.imag)) + 1j * height * ROUNDED.imag]
    ])  # fmt: skip


def region_mask(seen: Face, size: int) -> np.ndarray:
    """(size, size) bool: True in the windows of both eyes, nose and mouth, turned with the head."""
    return outlines_mask(region_outlines(seen) if seen.outlines is None else outlines(seen), size)


def of_track(track: Track) -> np.ndarray:
    """Outlines (f, 64) of a clip's face, for `faces.landmarks`."""
    return np.stack([outlines(at(track, i)).ravel() for i in range(len(track.found))])
