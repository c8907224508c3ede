"""A driver who is there now: each frame cropped and masked as it comes, from what was seen so far."""

import itertools
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.faces import arguments, face, follow, mesh, networks, windows
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.faces.framing import Framing

NAME = "the driver"


def now() -> Fraction:
    """Seconds, of a clock that is never set."""
    return Fraction(time.monotonic())


def driver(frames: Iterable[Any], framing: Framing, pick: int = 0, cropped: bool = False) -> Iterator[DrivingFrame]:
    """Pictures (h, w, 3) uint8 as driving frames, each with the time `now` at which it came.

    The crop is that of the first face seen, or with `cropped` the largest centred square, and stays there. Nothing comes
    out before a face is seen; where it is lost, the frame before is given again. UserError without face networks.
    Of frames that are cropped and masked already only the time is noted.
    """
    frames = iter(frames)
    for first in frames:
        known = isinstance(first, DrivingFrame)
        every = itertools.chain([first], frames)
        yield from (frame._replace(time=now()) for frame in every) if known else followed(every, framing, pick, cropped)


def followed(frames: Iterable[np.ndarray], framing: Framing, pick: int, cropped: bool) -> Iterator[DrivingFrame]:
    files = networks.located()
    if not files:
        raise UserError(f"{NAME} cannot be followed as frames come: {networks.NONE}.")
    came: list[tuple[np.ndarray, Fraction]] = []

    def pictures():
        for image in frames:
            arguments.check(frame=image)
            came[:] = [(image, now())]
            yield image

    box, last = None, None
    for found in follow.meshes(files, pictures(), lambda seen: follow.chosen(seen, pick, NAME)):
        ((image, at),) = came
        if found:
            seen = mesh.face_of(found.mesh)
            box = box or (face.square(image) if cropped else framing.box(seen))
            crop = face.crop(image, box, framing.driving_size)
            kept = windows.region_mask(face.in_crop(seen, box, framing.driving_size), framing.driving_size)
            last = DrivingFrame(crop, face.mask_driving(crop, kept) if framing.windows else crop, at)
        if last:
            yield last._replace(time=at)
