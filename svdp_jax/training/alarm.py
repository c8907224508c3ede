"""The copy alarm: does a model in training take looks from its driver instead of from the source?

Now and then one batch that training never sees is scored twice: driven by the target's own kept
regions, which could be copied, and by regions that look different, which could not. Where the first
error goes on falling and the second does not, the model is copying the driver.

Seen on one core of an Intel Xeon, 2026-11-25, 0.14 s a step:

    python -m svdp_jax.prepare --draw-toy 16 films out --size 32 --codec pixels:4 --pairs self \\
        --landmarks files:films --limit yaw=0:60 --limit sharpness=0
    python -m svdp_jax.train --config configs/toy_cpu.py --config.evaluate=0 \\
        --config.data.source=records --config.data.path=out

is heard at step 3000 and in each check from 3500 on: the self-driven error falls from 0.035 at step 2100
to 0.024 at 4200, the cross-driven one stays at 0.063 from 2700 on. With `--pairs toy` in place of `--pairs
self` it is never heard: the cross-driven error falls from 0.061 to 0.044, below the self-driven one (0.075).
"""

import dataclasses
import logging
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from einops import repeat
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.faces import face
from svdp_jax.models.vae import decode_frames
from svdp_jax.training import records
from svdp_jax.training.journal import Journal
from svdp_jax.training.step import Frozen, make_loss

PATIENCE = 4  # checks without progress on drivers that look different
PROGRESS = 0.01  # share by which an error must fall to count
COPYING = 0.05  # share by which the self-driven error has fallen meanwhile
LOOKS_DIFFER = 8.0  # grey levels between driver and target, in the mean over what is kept
TINT = np.array([0.7, 1.0, 1.25], np.float32)  # another complexion, where there is no other driver


class Drivers(NamedTuple):
    """One batch of uint8 pictures with two drivers; all else is equal."""

    own: dict[str, np.ndarray]
    other: dict[str, np.ndarray]


def drivers(batch: dict[str, np.ndarray]) -> Drivers:
    """The batch (b f y x 3, uint8) driven by its own target, and by what looks different: by the driver that it
    has, or by the target in another complexion where that is the target itself."""
    target, driving = batch["target"], batch["driving"]
    kept = (driving != face.GREY).any(-1, keepdims=True)
    away = (abs(driving.astype(np.float32) - target) * kept).sum((1, 2, 3, 4)) / np.maximum(3 * kept.sum((1, 2, 3, 4)), 1)
    tinted = np.clip(target * TINT, 0, 255).astype(np.uint8)
    differs = (away > LOOKS_DIFFER)[:, None, None, None, None]
    own, other = (np.where(kept, picture, np.uint8(face.GREY)) for picture in (target, np.where(differs, driving, tinted)))
    return Drivers(batch | {"driving": own}, batch | {"driving": other})


class CopyAlarm:
    """Listens to both errors, check after check."""

    def __init__(self):
        self.best, self.own_then, self.waited = np.inf, np.inf, 0

    def copying(self, own: float, other: float) -> bool:
        """Whether the self-driven error fell since the other one last did, for PATIENCE checks or longer."""
        if other < self.best * (1 - PROGRESS):
            self.best, self.own_then, self.waited = other, own, 0
            return False
        self.waited += 1
        return self.waited >= PATIENCE and own < self.own_then * (1 - COPYING)


class Watch:
    """Checks a run for copying. pictures: makes the batch; error: its error, for weights and a batch."""

    def __init__(self, pictures: Callable[[], dict[str, np.ndarray]], error: Callable, journal: Journal):
        self.pictures, self.error, self.journal = pictures, error, journal
        self.drivers, self.alarm = None, CopyAlarm()

    def check(self, weights, constants) -> None:
        """Tells both errors, and `copying`, 0 or 1."""
        self.drivers = self.drivers or drivers(self.pictures())
        own, other = (float(self.error(weights, constants, batch)) for batch in self.drivers)
        copying = self.alarm.copying(own, other)
        self.journal.measure({"self_driven": own, "cross_driven": other, "copying": int(copying)})
        if copying:
            words = (
                "The model is copying the driver: its error falls when the target drives itself and not when somebody "
                "who looks different does. Train on pairs (svdp_jax.prepare --pairs liveportrait), or stop earlier."
            )
            self.journal.tell("copying", {"self_driven": own, "cross_driven": other}, words)


def as_pictures(codec, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pictures of a batch; those of records are decoded, grey where the driver is not seen."""
    if batch["target"].dtype == np.uint8:
        return batch
    seen = repeat(batch["seen"] > 127, "b f y x c -> b f (y i) (x j) c", i=codec.factor, j=codec.factor)
    graph, weights = nnx.split(codec)
    show = jax.jit(lambda weights, x: decode_frames(nnx.merge(graph, weights), x))
    # Every process has rows of its own, so that each works by itself, with its own copy of the weights.
    here = jax.tree.map(lambda w: w.addressable_data(0), weights)
    with jax.set_mesh(parallel.make_mesh(configs.Mesh(), jax.local_devices()[:1])):
        pictures = {name: np.asarray(show(here, part)) for name, part in batch.items() if name != "seen"}
    return pictures | {"driving": face.mask_driving(pictures["driving"], seen[..., 0])}


def make_watch(config, graph, codec_graph, frozen: Frozen, mesh, example, journal: Journal) -> Watch:
    """The watch for copying: errors with all conditions but the past, always at the same times and noise."""
    everything = dataclasses.replace(config.flow, dropout=(0.0, 0.0, 0.0, 1.0))
    no_past = (configs.Stage(),)  # and the flow is what is measured, whatever is learned
    measured = jax.jit(make_loss(dataclasses.replace(config, flow=everything, stages=no_past), graph, codec_graph))
    rows = parallel.own_rows(mesh, config.data.batch)

    def error(weights, constants, batch):
        placed = parallel.global_batch(batch, mesh, config.data.batch)
        return measured(weights, constants, frozen, placed, jax.random.key(config.seed), 0)

    codec = nnx.merge(codec_graph, frozen.codec)
    if config.data.source != "toy":
        logging.info("The check for copying looks at people of the training set; svdp_jax.evaluate looks at others.")
    return Watch(lambda: as_pictures(codec, records.held_out(config, example, rows)), error, journal)
