"""What a run shows of itself while it trains: the loss of examples that it never reaches, and a video of one of them.

samples/300.mp4   a segment of the first of them at step 300: source, masked driver, target, and what the model makes

Whether nobody in them is trained on, `records.held_out` tells.
"""

import logging
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.animator import provenance
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError
from svdp_jax.faces.scene import FPS
from svdp_jax.media.images import side_by_side
from svdp_jax.media.writer import VideoWriter
from svdp_jax.training import records
from svdp_jax.training.alarm import as_pictures
from svdp_jax.training.journal import Journal
from svdp_jax.training.step import Frozen, make_loss

logger = logging.getLogger(__name__)


class Samples:
    """Takes samples of a run, whose config is that of the stage, into `folder`. All processes call `take`."""

    def __init__(
        self, config: configs.Config, graph, codec_graph, frozen: Frozen, mesh, example, journal: Journal, folder: Path
    ):
        self.config, self.graph, self.frozen, self.mesh = config, graph, frozen, mesh
        self.codec, self.example, self.journal, self.folder = nnx.merge(codec_graph, frozen.codec), example, journal, folder
        self.loss = jax.jit(make_loss(config, graph, codec_graph))
        self.engine, self.batch, self.clip = None, {}, {}

    def take(self, average, constants) -> None:
        """Of averaged weights, always with the same noise and the same levels of guidance."""
        engine = self.engine = self.engine or self.prepare(average, constants)
        stage = np.searchsorted(configs.stage_ends(self.config), self.journal.step - 1, side="right")
        past = self.config.stages[stage].past
        key = jax.random.key(self.config.seed)
        loss = self.loss(average, constants, self.frozen, self.batch, key, stage)
        self.journal.measure({"held_out_loss": float(loss)})
        engine.use(average, constants)
        before = self.clip["past"] if past and self.config.data.past else None
        made = list(engine.generate(self.clip["source"], np.moveaxis(self.clip["driving"], 1, 0), past=before))
        engine.state = None  # a copy of the weights, which the next step has no room for
        if jax.process_index() == 0:
            self.write(made, provenance(engine.fingerprint))

    def prepare(self, average, constants) -> SVDPEngine:
        if self.config.data.source != "toy":
            logger.warning(
                "held_out_loss and samples/ are of people who are trained on: in %s nobody is held out.", self.config.data.path
            )
        rows = parallel.own_rows(self.mesh, self.config.data.batch)
        held_out = records.held_out(self.config, self.example, rows)
        self.batch = parallel.global_batch(held_out, self.mesh, self.config.data.batch)
        self.clip = as_pictures(self.codec, records.held_out(self.config, self.example, [0]))
        return SVDPEngine(self.config, nnx.merge(self.graph, average, constants), self.codec, mesh=self.mesh)

    def write(self, made: list[np.ndarray], provenance: dict[str, str]) -> None:
        """A run goes on without a video that cannot be written."""
        path, clip = self.folder / f"{self.journal.step}.mp4", self.clip
        try:
            self.folder.mkdir(exist_ok=True)
            with VideoWriter(path, FPS, metadata=provenance) as writer:
                for driving, target, (result,) in zip(clip["driving"][0], clip["target"][0], made):
                    writer.write(side_by_side([clip["source"][0], driving, target, result]))
        except (UserError, OSError) as error:
            self.journal.tell("no sample", {"why": str(error)}, f"{path} could not be written: {error}")
