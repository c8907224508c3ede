"""A driving video in two passes: where its face is, then its crops and what is kept of them."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from svdp_jax.faces import face, follow, windows as seen_through
from svdp_jax.media.video import read_frames


class Driving(NamedTuple):
    """What the first pass over a driving video leaves: all the second pass needs."""

    path: str
    track: face.Track
    box: face.Box
    size: int


class DrivingFrame(NamedTuple):
    """A crop of a driver, or of a source, and what is known of it."""

    crop: Any  # (h, w, 3) uint8, square; None where its motion is all that is known
    masked: Any  # what the model sees of it: for ours, everything but eyes, nose and mouth is grey
    time: Fraction = Fraction(0)  # seconds
    opening: Any = None  # (3,), as of `Face`, where it is known
    motion: Any = None  # what an engine has read of it before, which then needs no crop


def prepare_driving(path, size: int, pick: int = 0, progress: Callable = iter, box: Callable = face.crop_box) -> Driving:
    """First pass over a driving video: where the face is in every frame, and the clip's one crop.

    `progress` wraps the stream of frames, as tqdm does. `box` makes the crop of the faces.
    """
    found = follow.track((frame.image for frame in progress(read_frames(path))), pick, name=str(path))
    return Driving(path, found, box(found.faces), size)


def driving_frames(driving: Driving, masks: Callable | None = None, windows: bool = True) -> Iterator[DrivingFrame]:
    """Second pass: the crops and their masked twins, one frame in memory at a time.

    `masks` gives what is kept of the crop of a frame, by its index: `faces.windows` by default. Without
    `windows` all of it is.
    """
    seen = lambda index: face.in_crop(face.at(driving.track, index), driving.box, driving.size)
    windowed = lambda index: seen_through.region_mask(seen(index), driving.size)
    masked = lambda image, index: face.mask_driving(image, (masks or windowed)(index)) if windows else image
    for index, frame in enumerate(read_frames(driving.path, stop=len(driving.track.found))):
        image = face.crop(frame.image, driving.box, driving.size)
        yield DrivingFrame(image, masked(image, index), frame.time, face.at(driving.track, index).opening)
