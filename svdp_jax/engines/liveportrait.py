"""LivePortrait: frames are made one by one, from a source whose features are computed once.

Every batch of frames is divided over all devices of this process.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.engines import template
from svdp_jax.engines.arriving import Arriving, overlapped
from svdp_jax.engines.engine import Step
from svdp_jax.errors import UserError
from svdp_jax.faces import arguments
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.faces.framing import Framing, LivePortraitFraming
from svdp_jax.faces.scene import Driver, Recorded
from svdp_jax.media.images import resize
from svdp_jax.models import keypoints
from svdp_jax.models.keypoints import Motion
from svdp_jax.models.liveportrait import LivePortrait
from svdp_jax.weights import checkpoint, shipped

SIDE = 256  # pixels of the pictures that go in
AT_ONCE = 4  # frames of a step on each device
FAST = ("warping", "generator")
USUAL = configs.Transfer()
# Driven keypoints from motions of the source, the driver's first frame and its frames now.
MOTIONS = {
    "relative": keypoints.relative,
    "absolute": lambda source, first, now, region: keypoints.absolute(source, now, region),
}
# Small networks by what they open: the field of Transfer, what they know of the source, and which opening of the
# driver they follow, for the eyes the left one's as published.
PARTS = {"eye": ("eye_retargeting", [0, 1], 0), "mouth": ("lip_retargeting", [2], 2)}
LANDMARKS = "put MediaPipe's networks into weights/faces (docs/faces.md) and let it be cropped"


class Known(NamedTuple):
    """What is computed once for a source; b is 1."""

    volume: jax.Array  # b z y x c
    motion: Motion
    points: jax.Array  # b k 3


class Driven(NamedTuple):
    """What is known of a batch of driving frames, and how many of them are not padding."""

    motion: Motion
    opening: np.ndarray | None  # b 3, of left eye, right eye, lips
    count: int


class Made(NamedTuple):
    """A batch of frames, and what is known of how they were made."""

    pictures: Any  # b y x 3 uint8, arrays of the device or, in the end, of the host
    asked: Any  # b k 3: keypoints that they were made with
    driver: Any  # b k 3: the driver's canonical ones
    seen: Any  # b: share of the source that is seen
    finite: Any  # b bool


class LivePortraitEngine:
    name, data = "liveportrait", configs.Data()
    options: tuple[str, ...] = ("seed", "transfer", "watch")
    still = True
    flags: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(configs.Transfer))

    def __init__(self, network: LivePortrait, fingerprint: str = "unsaved", at_once: int = AT_ONCE):
        """at_once: frames of a step on each device."""
        devices = jax.local_devices()
        self.framing: Framing = LivePortraitFraming()
        self.fingerprint = f"LivePortrait {fingerprint}"
        self.mesh, self.count = parallel.make_mesh(configs.Mesh(), devices), at_once * len(devices)
        self.graph, state = nnx.split(network)
        dtype = jnp.float32 if devices[0].platform == "cpu" else jnp.bfloat16
        self.state = jax.device_put(computing_in(state, dtype), parallel.sharding(self.mesh))

    @classmethod
    def load(cls, folder: Path) -> "LivePortraitEngine":
        """From a folder that `python -m convert liveportrait` wrote."""
        folder = Path(folder)
        network = checkpoint.about(folder)["network"]
        if network != cls.name:
            raise UserError(f"{folder} holds {network!r}; make weights with `python -m convert liveportrait SRC DIR`.")
        return cls(checkpoint.load_network(folder), shipped.fingerprint(folder))

    def play(
        self,
        source: DrivingFrame,
        driving: Iterable[DrivingFrame],
        again: Callable[[], Iterable[DrivingFrame]] | None = None,
        seed: int = 0,
        transfer: configs.Transfer | None = None,
        watch: bool = False,
    ) -> Iterator[Any]:
        """As `engine.Engine.play`. seed: changes nothing, as nothing is drawn at random."""
        arguments.check(seed=seed, transfer=transfer, watch=watch)
        _, batches = self.reenact(source, driving, transfer or USUAL, again)
        for number, made in enumerate(batches):
            if watch:
                yield Step(number, 0)
            yield from made.pictures

    def chosen(self, **flags) -> dict[str, Any]:
        return {"transfer": configs.Transfer(**flags)}

    def pace(self, **options) -> tuple[int, int]:
        return self.count, 1

    def recorded(self, driving):
        return template.read(driving, self.fingerprint) if template.named(driving) else driving

    def recorder(self, output: Path) -> Callable[[Driver | Recorded], int]:
        template.check(output)
        return lambda driver: template.write(output, self.moving(driver.frames()), driver.info.fps, self.fingerprint)

    def moving(self, driving: Iterable[DrivingFrame]) -> Iterator[DrivingFrame]:
        """The frames with their motion in place of their pictures."""
        taken = deque()
        for batch in self.read(taken.append(frame) or frame for frame in driving):
            motion = trimmed(batch.motion, batch.count)
            for index in range(batch.count):
                yield taken.popleft()._replace(crop=None, masked=None, motion=jax.tree.map(lambda x: x[index], motion))

    def compile(self) -> None:
        still = np.zeros((SIDE, SIDE, 3), np.uint8)
        for _ in self.play(DrivingFrame(still, still), [DrivingFrame(still, still)]):
            pass

    def reenact(
        self,
        source: DrivingFrame,
        driving: Iterable[DrivingFrame],
        transfer: configs.Transfer = USUAL,
        again: Callable[[], Iterable[DrivingFrame]] | None = None,
    ) -> tuple[Known, Iterator[Made]]:
        """What is known of the source, and its frames in batches; crops are square, of any size.

        Memory is that of two batches, however long the driver is.
        """
        known = know(self.graph, self.state, ready([source.crop]))
        batches = self.batches(known, source.opening, self.read(driving), transfer, again)
        # The devices work on a batch while the caller is busy with the one before; a camera's frames are not kept waiting.
        there = lambda: not isinstance(driving, Arriving) or driving.ready(self.count)
        return known, (trimmed(*made) for made in overlapped(batches, there))

    def batches(
        self, known: Known, opening, driven: Iterator[Driven], transfer: configs.Transfer, again
    ) -> Iterator[tuple[Made, int]]:
        """On the devices, perhaps not yet computed, and how many frames of each are no padding."""
        kind, start = (transfer.motion, transfer.animation_region, transfer.stitching), None
        if transfer.first_frame and transfer.motion == "relative":
            if again is None:
                raise UserError("first_frame must be 0 of a driver that comes only once.")
            start = beginning(transfer.first_frame, known.motion, self.read(again()))
        multiplier = np.float32(transfer.driving_multiplier)
        for batch in driven:
            start = jax.tree.map(lambda x: x[:1], batch.motion) if start is None else start
            wanted = openings(transfer, opening, batch)
            asked = steer(self.graph, self.state, known, start, batch.motion, wanted, multiplier, kind)
            yield draw(self.graph, self.state, known, asked, batch.motion.canonical), batch.count

    def read(self, driving: Iterable[DrivingFrame]) -> Iterator[Driven]:
        """What the driver does, always so many frames of it."""
        layout, frames = parallel.sharding(self.mesh, "batch"), iter(driving)
        while some := list(islice(frames, self.count)):
            count, known = len(some), some[0].opening is not None
            some += [some[-1]] * (self.count - count)
            if some[0].motion is None:
                crops = jax.device_put(ready([frame.crop for frame in some]), layout)
                motion = read(self.graph, self.state, crops)
            else:
                motion = jax.device_put(jax.tree.map(lambda *rows: np.stack(rows), *(frame.motion for frame in some)), layout)
            yield Driven(motion, np.stack([frame.opening for frame in some]) if known else None, count)


def beginning(first: int, source: Motion, driven: Iterator[Driven]) -> Motion:
    """The motion of the frame that relative motion begins with. UserError where there is none."""
    rows, count = [], 0
    for batch in driven:
        rows.append(trimmed(batch.motion, batch.count))
        count += batch.count
        if 0 <= first < count:
            break
    read = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    first = alike(source, read) if first == configs.ALIKE else first
    if first >= count:
        raise UserError(f"first_frame {first} is not in the driver, which has {count} frames; count from 0.")
    return jax.tree.map(lambda x: x[first : first + 1], read)


def alike(source: Motion, rows: Motion) -> int:
    """Which of the driver's motions is nearest the source's in pose and expression."""
    turned = [np.asarray(keypoints.rotation(motion)) for motion in (source, rows)]
    pose = ((turned[1] - turned[0]) ** 2).sum((1, 2))
    expression = ((rows.expression - np.asarray(source.expression)) ** 2).sum((1, 2))
    spread = lambda x: x / max(float(np.median(x)), 1e-12)  # so that neither decides alone
    return int(np.argmin(spread(pose) + spread(expression)))


def openings(transfer: configs.Transfer, source, driven: Driven) -> dict[str, np.ndarray]:
    """By the small network's name, how open its part is in the source and shall be, b r. UserError where nobody knows."""
    wanted = {}
    for part, (goal, columns, of_driver) in PARTS.items():
        ratio = getattr(transfer, goal)
        if ratio is None:
            continue
        follows = driven.opening if ratio == configs.AS_DRIVEN else np.full((len(driven.motion.scale), 3), ratio)
        if source is None or follows is None:
            whose = "picture" if source is None else "driver"
            raise UserError(f"{goal} needs the landmarks of the {whose}, which nobody has found here; {LANDMARKS}.")
        goals = follows[:, of_driver]
        own = np.broadcast_to(np.asarray(source)[columns], (len(goals), len(columns)))
        wanted[part] = np.concatenate([own, goals[:, None]], -1).astype(np.float32)
    return wanted


def computing_in(state: nnx.State, dtype) -> nnx.State:
    """The weights with warping and generator, nine tenths of the work, in this dtype."""
    return nnx.State({k: jax.tree.map(lambda x: x.astype(dtype), v) if k in FAST else v for k, v in state.items()})


def ready(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([resize(picture, (SIDE, SIDE)) for picture in pictures])


def trimmed(made, count: int):
    """On the host, without the padding."""
    return jax.tree.map(lambda x: np.asarray(x)[:count], made)


def unit(pixels: jax.Array) -> jax.Array:
    return pixels.astype(jnp.float32) / 255


@partial(jax.jit, static_argnums=0)
def know(graph, state, source: jax.Array) -> Known:
    network, picture = nnx.merge(graph, state), unit(source)
    motion = network.motion(picture)
    return Known(network.appearance(picture), motion, keypoints.points(motion))


@partial(jax.jit, static_argnums=0)
def read(graph, state, frames: jax.Array) -> Motion:
    return nnx.merge(graph, state).motion(unit(frames))


@partial(jax.jit, static_argnums=(0, 7))
def steer(
    graph, state, known: Known, start: Motion, now: Motion, wanted: dict, multiplier: jax.Array, kind: tuple
) -> jax.Array:
    """Where the source's keypoints go in a batch of the driver's motions, b k 3. wanted: as `openings` tells."""
    network, (motion, region, stitching) = nnx.merge(graph, state), kind
    moved = MOTIONS[motion](known.motion, start, now, keypoints.REGIONS[region])
    if wanted:
        kept = jnp.broadcast_to(known.points, moved.shape) if motion == "relative" else moved
        moved = kept + sum(network.retarget(part, known.points, ratios) for part, ratios in wanted.items())
    moved = network.stitch(known.points, moved) if stitching else moved
    return known.points + multiplier * (moved - known.points)


@partial(jax.jit, static_argnums=0)
def draw(graph, state, known: Known, asked: jax.Array, driver: jax.Array) -> Made:
    """The source's pictures with its keypoints there."""
    out, seen = (x.astype(jnp.float32) for x in nnx.merge(graph, state).render(known.volume, known.points, asked))
    pictures = jnp.round(out.clip(0, 1) * 255).astype(jnp.uint8)
    return Made(pictures, asked, driver, seen.mean((1, 2, 3)), jnp.isfinite(out).all((1, 2, 3)))
