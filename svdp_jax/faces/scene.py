"""What an animation is made from: a picture and a driver, their faces found, cropped and masked.

Nothing here needs a network, so a scene can be looked at before anything is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from svdp_jax.faces import arguments, face as faces, follow as following, landmarks as points
from svdp_jax.faces.arguments import CROPS as CROPS
from svdp_jax.faces.driving import Driving, DrivingFrame, driving_frames, prepare_driving
from svdp_jax.faces.framing import Framing
from svdp_jax.media import video
from svdp_jax.media.images import enlarged, read_image, side_by_side

OPTIONS = ("face", "driving_face", "source_crop", "driving_crop", "landmarks", "fps")  # of `prepare`
FPS = Fraction(25)  # of pictures that come without a rate


def quietly(items, **about):
    """In place of a progress bar."""
    return items


class Take(NamedTuple):
    """One finished frame beside what it was made from; all square, uint8."""

    made: np.ndarray
    crop: np.ndarray
    masked: np.ndarray
    time: Fraction  # seconds


def taken(made: np.ndarray, frame: DrivingFrame) -> Take:
    return Take(made, frame.crop, frame.masked, frame.time)


class Driver(NamedTuple):
    """A driving video in which the face was followed."""

    driving: Driving
    points: np.ndarray | None  # (f, k) complex pixels, where a landmark file gives them
    info: video.VideoInfo
    framing: Framing

    @property
    def track(self) -> faces.Track:
        return self.driving.track

    def frames(self) -> Iterator[DrivingFrame]:
        """Cropped and masked, one in memory at a time."""
        known, driving = self.points, self.driving
        mask = None if known is None else lambda index: points.region_mask(known[index], driving.box, driving.size)
        return driving_frames(driving, mask, self.framing.windows)


class Recorded(NamedTuple):
    """A driver of whom an engine has kept what it needs, and that is no picture."""

    rows: Sequence[DrivingFrame]
    info: video.VideoInfo

    @property
    def track(self) -> faces.Track:
        return faces.Track(faces.Face(*[None] * 7), np.ones(len(self.rows), bool))

    def frames(self) -> Iterator[DrivingFrame]:
        return iter(self.rows)


class Scene(NamedTuple):
    picture: np.ndarray  # (h, w, 3) uint8, whole
    place: Any  # of the portrait in it, as the framing tells it
    source: DrivingFrame  # (size, size, 3), that portrait
    driver: Driver | Recorded
    framing: Framing

    def shown(self, take: Take, compare: bool = False, paste_back: bool = False) -> np.ndarray:
        """The result as it is written: alone or beside what it was made from, enlarged where it is
        small; where pasted back, the whole picture at its own size."""
        made = self.framing.paste(self.picture, self.place, take.made) if paste_back else enlarged(take.made)
        if not compare:
            return made
        return side_by_side([*map(enlarged, (self.source.crop, *self.views(take))), made])

    def views(self, frame: DrivingFrame | Take) -> tuple[np.ndarray, ...]:
        """The driver's crop, and what is seen of it where that is not all; nothing of one that was only recorded."""
        seen = (frame.crop, frame.masked) if self.framing.windows else (frame.crop,)
        return () if frame.crop is None else seen


def prepare(
    source,
    driving,
    framing: Framing,
    *,
    face: int = 0,
    driving_face: int | None = None,
    source_crop: str = "auto",
    driving_crop: str = "auto",
    landmarks=None,
    fps: Fraction = FPS,
    show: Callable = quietly,
) -> Scene:
    """Finds, crops and masks what an animation needs. UserError where there is no face.

    source: a picture, as a path or (h, w, 3) uint8. driving: a video, as a path or pictures
    (f, h, w, 3) uint8 at `fps`. framing: of the crops. face: which face of the picture, 0
    being the largest; driving_face: which of the video, the same by default. source_crop and
    driving_crop: "auto" crops around the face, "none" takes the largest centred square, as of
    portraits that are cropped already. landmarks: a file of the driver's, `faces.landmarks`.
    show: wraps the stream of driving frames, as tqdm does.
    """
    arguments.check(
        source=source, face=face, driving_face=driving_face, source_crop=source_crop, driving_crop=driving_crop,
        landmarks=landmarks, show=show,
    )  # fmt: skip
    picture, place, cut = portrait(source, framing, face, source_crop)
    pick = face if driving_face is None else driving_face
    driver = watched(driving, framing, pick, driving_crop, landmarks, fps, show)
    return Scene(picture, place, cut, driver, framing)


def watched(
    driving, framing: Framing, face: int = 0, crop: str = "auto", landmarks=None, fps: Fraction = FPS, show: Callable = quietly
) -> Driver | Recorded:
    """First pass over a driving video, with the arguments of `prepare`."""
    clip = as_clip(driving, fps)
    if isinstance(clip, Recorded):
        return clip
    info = video.probe(clip)
    progress = partial(show, total=info.frames, desc="Following the face", unit="frame")
    return Driver(*follow(clip, info, framing, face, crop, landmarks, progress), info, framing)


def portrait(source, framing: Framing, face: int, crop: str) -> tuple[np.ndarray, Any, DrivingFrame]:
    """The whole source picture, the place of its portrait, and the portrait."""
    picture = source_picture(source)
    seen = None if crop == "none" else following.one(picture, face, named(source))
    place = framing.place(seen) if seen else framing.whole(faces.square(picture))
    cut = framing.cut(picture, place)
    return picture, place, DrivingFrame(cut, cut, opening=seen and seen.opening)


def source_picture(source) -> np.ndarray:
    """(h, w, 3) uint8 of a path, or such an array itself."""
    return source if isinstance(source, np.ndarray) else read_image(source)


def as_clip(driving, fps: Fraction):
    """A path, `video.Clip` or Recorded as it is; pictures as a `video.Clip`."""
    if isinstance(driving, (video.Clip, Recorded)):
        return driving
    arguments.check(driving=driving, fps=fps)
    pictures = isinstance(driving, (np.ndarray, list, tuple))
    return video.Clip(np.asarray(driving), Fraction(fps)) if pictures else driving


def named(source) -> str:
    return "the picture" if isinstance(source, np.ndarray) else str(source)


def follow(clip, info: video.VideoInfo, framing: Framing, pick, crop, landmarks, progress) -> tuple:
    """First pass over the driving video: a Driving, and the points of a landmark file or None."""
    if landmarks is None:
        given, driving = None, prepare_driving(clip, framing.driving_size, pick, progress, framing.box)
    else:
        given, track = points.read(landmarks, info.frames)
        driving = Driving(clip, track, framing.box(track.faces), framing.driving_size)
    if crop == "none":
        driving = driving._replace(box=faces.square(next(video.read_frames(clip, stop=1)).image))
    return driving, given
