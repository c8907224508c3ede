"""Cross-identity pairs: a portrait of B performs the motion of a clip of A, and the result is judged.

LivePortrait makes the frames (`models.liveportrait`); its own motion network reads them again, and
what it reads is held against what was asked for. No network here knows a person's looks: identity
is told by the canonical keypoints, that is by the head's shape alone. The limits are chosen by
reasoning, not fitted to published weights.
"""

from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import reduce
from flax import nnx

from svdp_jax import config, parallel
from svdp_jax.errors import UserError
from svdp_jax.faces import face, follow, windows
from svdp_jax.media.images import resize
from svdp_jax.models import keypoints
from svdp_jax.models.keypoints import Motion
from svdp_jax.models.liveportrait import LivePortrait
from svdp_jax.preparation import crops, drivers
from svdp_jax.weights.checkpoint import about, load_network

SIDE = 256  # pixels of the pictures that go in
SOURCE_SIDE = 512  # of the crop they are made from
AT_ONCE = 4  # frames of a step on each device
DARK = 8 / 255  # a pixel below this in all colours is black
STILL = 0.02  # motion below this, in head sizes, is too small to be compared
# LivePortrait's crops, in sides of the square around its landmarks: how large, how far down.
SOURCE_CROP, DRIVING_CROP = (2.3, -0.125), (2.2, -0.1)
# That square from a `Face`, whose points are fewer: its side and its centre's way from the eyes,
# both in distances from the eyes to the mouth. It spans brows to chin.
SQUARE, DOWN = 2.1, 0.7


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


class Known(NamedTuple):
    """What is computed once for a source; b is 1."""

    volume: jax.Array  # b z y x c
    motion: Motion
    points: jax.Array  # b k 3
    black: jax.Array  # b


class Measured(NamedTuple):
    """What is kept of every frame."""

    asked: jax.Array  # b k 3: keypoints that the picture was made with
    found: jax.Array  # b k 3: those read from it
    shape: jax.Array  # b k 3: canonical keypoints read from it
    driver: jax.Array  # b k 3: the driver's
    seen: jax.Array  # b: share of the source that is seen
    black: jax.Array  # b: share of black pixels
    finite: jax.Array  # b bool


class Reenactment:
    """The frames of one clip, 512 x 512 x 3 uint8, made while they are iterated, once.

    Afterwards `judge` tells whether they are any good.
    """

    def __init__(self, known: Known, made: Iterator[tuple[np.ndarray, Measured]]):
        self.known, self.made, self.measured = known, made, []

    def __iter__(self) -> Iterator[np.ndarray]:
        for pictures, measured in self.made:
            self.measured.append(measured)
            yield from pictures


class Reenactor:
    """LivePortrait on all devices of this process; every batch is divided over them."""

    def __init__(self, network: LivePortrait, at_once: int = AT_ONCE):
        devices = jax.local_devices()
        self.mesh, self.count = parallel.make_mesh(config.Mesh(), devices), at_once * len(devices)
        self.graph, state = nnx.split(network)
        self.state = jax.device_put(state, parallel.sharding(self.mesh))

    @classmethod
    def load(cls, folder: Path) -> "Reenactor":
        """From a folder that `python -m convert liveportrait` wrote."""
        network = about(Path(folder))["network"]
        if network != "liveportrait":
            raise UserError(f"{folder} holds {network!r}; make weights with `python -m convert liveportrait SRC DIR`.")
        return cls(load_network(Path(folder)))

    def reenact(self, source: np.ndarray, driving: Iterable[np.ndarray], relative: bool = True) -> Reenactment:
        """B, of the portrait `source`, in the motion of A's crops `driving`; each y x 3 uint8, square.

        relative: B moves as A has moved since the first frame; else B takes on A's pose. Memory is that of
        two batches, however long the clip.
        """
        known = know(self.graph, self.state, ready([source]))
        return Reenactment(known, self.made(known, driving, relative))

    def made(self, known: Known, driving: Iterable[np.ndarray], relative: bool):
        start, waiting = None, None
        for frames, count in batches(driving, self.count):
            start = read_motion(self.graph, self.state, frames[:1]) if start is None else start
            frames = jax.device_put(frames, parallel.sharding(self.mesh, "batch"))
            # The devices work on this batch while the caller is busy with the one before.
            step = perform(self.graph, self.state, known, start, frames, relative), count
            if waiting:
                yield trimmed(*waiting)
            waiting = step
        if waiting:
            yield trimmed(*waiting)


def ready(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([resize(picture, (SIDE, SIDE)) for picture in pictures])


def batches(frames: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pictures ready for the network, always `size` of them, and how many are not padding."""
    frames = iter(frames)
    while some := list(islice(frames, size)):
        yield ready(some + [some[-1]] * (size - len(some))), len(some)


def trimmed(made: tuple[jax.Array, Measured], count: int) -> tuple[np.ndarray, Measured]:
    """On the host, without the padding."""
    return jax.tree.map(lambda x: np.asarray(x)[:count], made)


def unit(pixels: jax.Array) -> jax.Array:
    return pixels.astype(jnp.float32) / 255


def black(pictures: jax.Array) -> jax.Array:
    """The share of each picture that is black."""
    return (pictures < DARK).all(-1).mean((1, 2))


@partial(jax.jit, static_argnums=0)
def know(graph, state, source: jax.Array) -> Known:
    network, picture = nnx.merge(graph, state), unit(source)
    motion = network.motion(picture)
    return Known(network.appearance(picture), motion, keypoints.points(motion), black(picture))


@partial(jax.jit, static_argnums=0)
def read_motion(graph, state, frames: jax.Array) -> Motion:
    return nnx.merge(graph, state).motion(unit(frames))


@partial(jax.jit, static_argnums=(0, 5))
def perform(graph, state, known: Known, start: Motion, frames: jax.Array, relative: bool):
    """The source's pictures b y x 3 uint8 for a batch of the driver's, and their `Measured`."""
    network = nnx.merge(graph, state)
    now = network.motion(unit(frames))
    moved = keypoints.relative(known.motion, start, now) if relative else keypoints.absolute(known.motion, now)
    asked = network.stitch(known.points, moved)
    out, seen = network.render(known.volume, known.points, asked)
    again = network.motion(reduce(out, "b (y i) (x j) c -> b y x c", "mean", i=2, j=2))
    finite = jnp.isfinite(out).all((1, 2, 3))
    measured = Measured(
        asked, keypoints.points(again), again.canonical, now.canonical, seen.mean((1, 2, 3)), black(out), finite
    )
    return jnp.round(out.clip(0, 1) * 255).astype(jnp.uint8), measured


# Judging


def judge(made: Reenactment, limits: dict[str, Limit] = LIMITS) -> Verdict:
    """Whether a clip, whose frames have all been made, is a usable driver; every reason why not."""
    if not made.measured:
        raise ValueError("no frame has been made yet")
    measures = measure(made.known, Measured(*map(np.concatenate, zip(*made.measured))))
    reasons = []
    for name, limit in limits.items():
        value = measures[name]
        good = value >= limit.worst if limit.at_least else value <= limit.worst  # never of NaN
        if not good:
            bound = "at least" if limit.at_least else "at most"
            reasons.append(f"{limit.complaint} ({name} {value:.2f}, {bound} {limit.worst:g})")
    return Verdict(not reasons, tuple(reasons), measures)


def measure(known: Known, clip: Measured) -> dict[str, float]:
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
    b, a = (shape_distance(clip.shape, x) for x in (known.motion.canonical, clip.driver))
    return {
        "broken": 1 - float(clip.finite.mean()),
        "black": max(0.0, float((clip.black - np.asarray(known.black)).max())),
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


# Crops


def source_crop(image: np.ndarray, pick: int = 0, name: str = "picture") -> np.ndarray:
    """The upright crop of a portrait that LivePortrait wants of a source, 512 x 512 x 3."""
    place = source_place(face.at(follow.track([image], pick, name), 0))
    return face.warp(image, *place, (SOURCE_SIDE, SOURCE_SIDE))


def source_place(seen: face.Face) -> tuple[complex, complex]:
    """(a, b): pixel z of the source's crop shows the picture, in which this face is seen, at a * z + b."""
    down = seen.mouth - (seen.left_eye + seen.right_eye) / 2
    centre, side = square(seen, SOURCE_CROP, down / abs(down))
    a = side / SOURCE_SIDE * down / abs(down) / 1j
    middle = (SOURCE_SIDE - 1) / 2 * (1 + 1j)
    return a, centre - a * middle


def driving_box(faces: face.Face) -> face.Box:
    """The one crop of a driving clip: upright as the camera was, for the mean of all its faces."""
    mean = faces._replace(**{part: np.mean(getattr(faces, part)) for part in ("left_eye", "right_eye", "mouth")})
    centre, side = square(mean, DRIVING_CROP, 1j)
    corner = centre - side / 2 * (1 + 1j)
    return face.Box(round(corner.real), round(corner.imag), round(side))


def square(seen: face.Face, crop: tuple[float, float], down: complex) -> tuple[complex, float]:
    """Centre and side of a crop around a face; `down` is the crop's own direction of length one."""
    scale, shift = crop
    eyes = (seen.left_eye + seen.right_eye) / 2
    side = scale * SQUARE * abs(seen.mouth - eyes)
    return eyes + DOWN * (seen.mouth - eyes) + shift * side * down, side


# For `prepare`

loaded = cache(Reenactor.load)  # one of each folder: its weights are large, and compiling takes a minute


def maker(weights: str) -> drivers.Maker:
    """Drivers made by LivePortrait with the weights of a folder."""
    reenactor, last = loaded(Path(weights)), {}

    def make(a: drivers.Stored, b: drivers.Stored, size: int) -> Iterator[np.ndarray]:
        last.clear()
        (picture,) = crops.read(b.frames, [b.source])
        try:
            source = source_crop(picture, name=b.clip.name)
            box = driving_box(follow.track(crops.read(a.frames), name=a.clip.name).faces)
        except UserError as error:
            last["why"] = f"no face to crop ({error})"
            return iter(())
        driving = (face.crop(frame, box, SIDE) for frame in crops.read(a.frames))
        last["made"] = reenactor.reenact(source, driving)
        return (resize(frame, (size, size)) for frame in last["made"])

    def why(a: drivers.Stored, b: drivers.Stored, frames: Path) -> str:
        if "why" in last:
            return last["why"]
        if reasons := judge(last["made"]).reasons:
            return "; ".join(reasons)
        try:
            last["points"] = outlines(frames, f"{b.clip.name} driven by {a.clip.name}")
        except UserError as error:
            return f"no face in the result ({error})"
        return ""

    return drivers.Maker(make, lambda *_: last["points"], why)


def outlines(frames: Path, name: str) -> np.ndarray:
    """The windows (f, k) of the face of a clip, followed through its frames."""
    return windows.of_track(follow.track(crops.read(frames), name=name))
