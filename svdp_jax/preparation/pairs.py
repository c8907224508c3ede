"""Cross-identity pairs: a portrait of B performs the motion of a clip of A, and the result is judged.

LivePortrait makes the frames (`engines.liveportrait`); its own motion network reads them again, and
what it reads is held against what was asked for. No network here knows a person's looks: identity
is told by the canonical keypoints, that is by the head's shape alone. The limits are chosen by
reasoning, not fitted to published weights.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from svdp_jax.buckets import storage
from svdp_jax.engines.liveportrait import LivePortraitEngine
from svdp_jax.errors import UserError
from svdp_jax.faces import face, follow, windows
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.media.images import resize
from svdp_jax.models import keypoints
from svdp_jax.preparation import crops, drivers

DARK = 8  # a pixel below this in all colours is black
STILL = 0.02  # motion below this, in head sizes, is too small to be compared


class Limit(NamedTuple):
    """How much of a measure is acceptable, and what is said where it is not."""

    worst: float
    at_least: bool
    complaint: str


LIMITS = {
    "broken": Limit(0.0, False, "frames hold numbers that are not finite"),
    "black": Limit(0.05, False, "a part of a frame is black that is not in the source"),
    "hidden": Limit(0.7, False, "too little of the source can be seen after the warp"),
    "distance": Limit(0.2, False, "the face is not where it was moved, in head sizes"),
    "correlation": Limit(0.5, True, "the face does not move as the driver does"),
    "identity": Limit(0.5, False, "the head's shape is nearer to the driver's than to the source's"),
}


class Verdict(NamedTuple):
    accepted: bool
    reasons: tuple[str, ...]
    measures: dict[str, float]  # by the names in LIMITS


class Measured(NamedTuple):
    """What is kept of every frame."""

    asked: np.ndarray  # b k 3: keypoints that the picture was made with
    found: np.ndarray  # b k 3: those read from it
    shape: np.ndarray  # b k 3: canonical keypoints read from it
    driver: np.ndarray  # b k 3: the driver's
    seen: np.ndarray  # b: share of the source that is seen
    black: np.ndarray  # b: share of black pixels
    finite: np.ndarray  # b bool


class Reenactment:
    """The frames of one clip, 512 x 512 x 3 uint8, made while they are iterated, once.

    Afterwards `judge` tells whether they are any good.
    """

    def __init__(self, engine: LivePortraitEngine, source: np.ndarray, driving: Iterable[np.ndarray]):
        """Of the portrait `source` in the motion of the crops `driving`; each y x 3 uint8, square."""
        self.engine, self.black, self.measured = engine, float(black(source[None])[0]), []
        self.known, self.made = engine.reenact(DrivingFrame(source, source), map(whole, driving))

    def __iter__(self) -> Iterator[np.ndarray]:
        for made in self.made:
            (again,) = self.engine.read(map(whole, made.pictures))
            read = (np.asarray(x)[: again.count] for x in (keypoints.points(again.motion), again.motion.canonical))
            found = Measured(made.asked, *read, made.driver, made.seen, black(made.pictures), made.finite)
            self.measured.append(found)
            yield from made.pictures


def whole(picture: np.ndarray) -> DrivingFrame:
    return DrivingFrame(picture, picture)


def black(pictures: np.ndarray) -> np.ndarray:
    """The share of each picture that is black, b y x 3 uint8 to b."""
    return (pictures < DARK).all(-1).mean((1, 2))


# Judging


def judge(made: Reenactment, limits: dict[str, Limit] = LIMITS) -> Verdict:
    """Whether a clip, whose frames have all been made, is a usable driver; every reason why not."""
    if not made.measured:
        raise ValueError("no frame has been made yet")
    measures = measure(made, Measured(*map(np.concatenate, zip(*made.measured))))
    reasons = []
    for name, limit in limits.items():
        value = measures[name]
        good = value >= limit.worst if limit.at_least else value <= limit.worst  # never of NaN
        if not good:
            bound = "at least" if limit.at_least else "at most"
            reasons.append(f"{limit.complaint} ({name} {value:.2f}, {bound} {limit.worst:g})")
    return Verdict(not reasons, tuple(reasons), measures)


def measure(made: Reenactment, clip: Measured) -> dict[str, float]:
    """The measures of a clip, b frames:

    broken       share of frames with numbers that are not finite
    black        largest share of a frame that is black, beyond that of the source
    hidden       share of the source that the warp hides, mean
    distance     of keypoints read from the result to those asked for, mean, in head sizes
    correlation  of the two over time, about their means; 1 where the driver keeps still
    identity     distance to B's canonical keypoints as a share of those to B's and A's together:
                 0 is B's head, 1 is A's
    """
    size = spread(clip.asked.mean(0))
    motions = [x - x.mean(0) for x in (clip.asked, clip.found)]
    lengths = [float(np.sqrt((x**2).sum(-1).mean())) for x in motions]
    agreement = float((motions[0] * motions[1]).sum(-1).mean()) / max(lengths[0] * lengths[1], 1e-12)
    b, a = (shape_distance(clip.shape, x) for x in (made.known.motion.canonical, clip.driver))
    return {
        "broken": 1 - float(clip.finite.mean()),
        "black": max(0.0, float(clip.black.max()) - made.black),
        "hidden": 1 - float(clip.seen.mean()),
        "distance": float(np.linalg.norm(clip.found - clip.asked, axis=-1).mean()) / size,
        "correlation": agreement if lengths[0] > STILL * size else 1.0,
        "identity": b / max(a + b, 1e-12),
    }


def spread(points: np.ndarray | jax.Array) -> float:
    """The size of a head: the root mean square distance of its keypoints k 3 from their centre."""
    return float(np.sqrt(((points - points.mean(0)) ** 2).sum(-1).mean()))


def shape_distance(first: np.ndarray | jax.Array, second: np.ndarray | jax.Array) -> float:
    """Between the mean canonical keypoints of two clips b k 3, after centring and scaling them."""
    shapes = [np.asarray(x).mean(0) for x in (first, second)]
    shapes = [(x - x.mean(0)) / spread(x) for x in shapes]
    return float(np.linalg.norm(shapes[0] - shapes[1], axis=-1).mean())


# For `prepare`

loaded = cache(LivePortraitEngine.load)  # one of each folder: its weights are large, and compiling takes a minute


def maker(weights: str) -> drivers.Maker:
    """Drivers made by LivePortrait with the weights of a folder."""
    engine, last = loaded(storage.here(weights)), {}
    framing = engine.framing

    def make(a: drivers.Stored, b: drivers.Stored, size: int) -> Iterator[np.ndarray]:
        last.clear()
        (picture,) = crops.read(b.frames, [b.source])
        try:
            source = framing.cut(picture, framing.place(follow.one(picture, name=b.clip.name)))
            box = framing.box(follow.track(crops.read(a.frames), name=a.clip.name).faces)
        except UserError as error:
            last["why"] = f"no face to crop ({error})"
            return iter(())
        driving = (face.crop(frame, box, framing.driving_size) for frame in crops.read(a.frames))
        last["made"] = Reenactment(engine, source, driving)
        return (resize(frame, (size, size)) for frame in last["made"])

    def why(a: drivers.Stored, b: drivers.Stored, frames: Path) -> str:
        if "why" in last:
            return last["why"]
        last["verdict"] = judge(last["made"])
        if reasons := last["verdict"].reasons:
            return "; ".join(reasons)
        try:
            last["points"] = outlines(frames, f"{b.clip.name} driven by {a.clip.name}")
        except UserError as error:
            return f"no face in the result ({error})"
        return ""

    return drivers.Maker(make, lambda *_: last["points"], why, lambda: last["verdict"].measures)


def outlines(frames: Path, name: str) -> np.ndarray:
    """The windows (f, k) of the face of a clip, followed through its frames."""
    return windows.of_track(follow.track(crops.read(frames), name=name))
