"""LivePortrait: frames are made one by one, from a source whose features are computed once.

Every batch of frames is divided over all devices of this process.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.errors import UserError
from svdp_jax.faces import arguments
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.faces.framing import Framing, LivePortraitFraming
from svdp_jax.media.images import resize
from svdp_jax.models import keypoints
from svdp_jax.models.keypoints import Motion
from svdp_jax.models.liveportrait import LivePortrait
from svdp_jax.weights import checkpoint, shipped

SIDE = 256  # pixels of the pictures that go in
AT_ONCE = 4  # frames of a step on each device
USUAL = configs.Transfer()
# Driven keypoints from motions of the source, the driver's first frame and its frames now.
MOTIONS = {"relative": keypoints.relative, "absolute": lambda source, first, now: keypoints.absolute(source, now)}


class Known(NamedTuple):
    """What is computed once for a source; b is 1."""

    volume: jax.Array  # b z y x c
    motion: Motion
    points: jax.Array  # b k 3


class Made(NamedTuple):
    """A batch of frames, and what is known of how they were made."""

    pictures: Any  # b y x 3 uint8, arrays of the device or, in the end, of the host
    asked: Any  # b k 3: keypoints that they were made with
    driver: Any  # b k 3: the driver's canonical ones
    seen: Any  # b: share of the source that is seen
    finite: Any  # b bool


class LivePortraitEngine:
    name, data = "liveportrait", configs.Data()
    options: tuple[str, ...] = ("seed", "transfer")
    flags: tuple[str, ...] = ("motion",)

    def __init__(self, network: LivePortrait, fingerprint: str = "unsaved", at_once: int = AT_ONCE):
        """at_once: frames of a step on each device."""
        devices = jax.local_devices()
        self.framing: Framing = LivePortraitFraming()
        self.fingerprint = f"LivePortrait {fingerprint}"
        self.mesh, self.count = parallel.make_mesh(configs.Mesh(), devices), at_once * len(devices)
        self.graph, state = nnx.split(network)
        self.state = jax.device_put(state, parallel.sharding(self.mesh))

    @classmethod
    def load(cls, folder: Path) -> "LivePortraitEngine":
        """From a folder that `python -m convert liveportrait` wrote."""
        folder = Path(folder)
        network = checkpoint.about(folder)["network"]
        if network != cls.name:
            raise UserError(f"{folder} holds {network!r}; make weights with `python -m convert liveportrait SRC DIR`.")
        return cls(checkpoint.load_network(folder), shipped.fingerprint(folder))

    def play(
        self, source: np.ndarray, driving: Iterable[DrivingFrame], seed: int = 0, transfer: configs.Transfer | None = None
    ) -> Iterator[np.ndarray]:
        """As `engine.Engine.play`. seed: changes nothing, as nothing is drawn at random."""
        arguments.check(seed=seed, transfer=transfer)
        _, batches = self.reenact(source, (frame.crop for frame in driving), transfer or USUAL)
        for made in batches:
            yield from made.pictures

    def chosen(self, **flags) -> dict[str, Any]:
        return {"transfer": configs.Transfer(**flags)}

    def compile(self) -> None:
        still = np.zeros((SIDE, SIDE, 3), np.uint8)
        for _ in self.reenact(still, [still])[1]:
            pass

    def reenact(
        self, source: np.ndarray, driving: Iterable[np.ndarray], transfer: configs.Transfer = USUAL
    ) -> tuple[Known, Iterator[Made]]:
        """What is known of the source, and its frames in batches; every picture y x 3 uint8, square, of any size.

        Memory is that of two batches, however long the driver is.
        """
        known = know(self.graph, self.state, ready([source]))
        return known, self.batches(known, driving, transfer)

    def batches(self, known: Known, driving: Iterable[np.ndarray], transfer: configs.Transfer) -> Iterator[Made]:
        start, waiting = None, None
        for frames, count in batched(driving, self.count):
            start = read(self.graph, self.state, frames[:1]) if start is None else start
            frames = jax.device_put(frames, parallel.sharding(self.mesh, "batch"))
            # The devices work on this batch while the caller is busy with the one before.
            step = perform(self.graph, self.state, known, start, frames, transfer.motion), count
            if waiting:
                yield trimmed(*waiting)
            waiting = step
        if waiting:
            yield trimmed(*waiting)

    def motions(self, pictures: Iterable[np.ndarray]) -> Motion:
        """What is read from pictures, y x 3 uint8 each, on the host."""
        found = [trimmed(self.read(frames), count) for frames, count in batched(pictures, self.count)]
        return jax.tree.map(lambda *parts: np.concatenate(parts), *found)

    def read(self, frames: np.ndarray) -> Motion:
        return read(self.graph, self.state, jax.device_put(frames, parallel.sharding(self.mesh, "batch")))


def ready(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([resize(picture, (SIDE, SIDE)) for picture in pictures])


def batched(frames: Iterable[np.ndarray], size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Pictures ready for the network, always `size` of them, and how many are not padding."""
    frames = iter(frames)
    while some := list(islice(frames, size)):
        yield ready(some + [some[-1]] * (size - len(some))), len(some)


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


@partial(jax.jit, static_argnums=(0, 5))
def perform(graph, state, known: Known, start: Motion, frames: jax.Array, motion: str) -> Made:
    """The source's pictures for a batch of the driver's, b y x 3 uint8."""
    network = nnx.merge(graph, state)
    now = network.motion(unit(frames))
    moved = MOTIONS[motion](known.motion, start, now)
    asked = network.stitch(known.points, moved)
    out, seen = network.render(known.volume, known.points, asked)
    pictures = jnp.round(out.clip(0, 1) * 255).astype(jnp.uint8)
    return Made(pictures, asked, now.canonical, seen.mean((1, 2, 3)), jnp.isfinite(out).all((1, 2, 3)))
