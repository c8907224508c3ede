"""The checkpoints of one training run, in the work folder that it owns.

    checkpoints/300/           a weights folder of the averaged weights (see `checkpoint`) that
                               also holds the rest of the state and where the data was
    checkpoints/300.damaged/   one that was found damaged, and set aside for an earlier one
    before-1/                  all of a run that was begun anew in its folder

A step counts from the moment its folder has that name, which is given last, when all
of it is on disk and in the manifest. Whatever stops a run before leaves a hidden folder.
"""

import json
import logging
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.files import read_json, remove, verify, write_whole
from svdp_jax.training import identity, journal, records
from svdp_jax.training.owner import Owner
from svdp_jax.weights import adapter, checkpoint

NO_STEP = -1
PARTS = ("params", "rest")
# What of a run is set aside when it is begun anew; `clips`, made of the data alone, is as good for the next.
FILES = (
    "checkpoints", "config.json", "fingerprint.json", "metrics.jsonl", "events.jsonl", "tensorboard", "samples", "model", "results",
)  # fmt: skip
logger = logging.getLogger(__name__)


def weights_folder(state, config: configs.Config) -> dict:
    """The arrays of a state that make up its averaged network, by dotted path, as far as its base does not hold them."""
    states = adapter.kept(config, state.average, state.constants)
    return {path: array for part in states for path, array in checkpoint.named(part).items()}


def rest(state) -> dict:
    """The other arrays of a state, by dotted path."""
    leaves, _ = jax.tree.flatten_with_path((state.step, state.weights, state.optimizer))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def with_rest(state, arrays: dict):
    """The state with these arrays in place of its `rest`."""
    tree = jax.tree.structure((state.step, state.weights, state.optimizer))
    step, weights, optimizer = jax.tree.unflatten(tree, [arrays[path] for path in rest(state)])
    return state._replace(step=step, weights=weights, optimizer=optimizer)


class Place(NamedTuple):
    """Where the data is: the state of its iterator, in batches of so many examples."""

    data: dict
    batch: int

    def moved_on(self, batch: int) -> dict:
        """Where it goes on in batches of another size: at the first that has only examples not yet seen."""
        if batch == self.batch:
            return self.data
        seen = self.data["next_index"] * self.batch
        number = records.number_of(seen, batch)
        logger.warning(
            "%d examples were seen, in batches of %d; it goes on in batches of %d, at example %d.",
            seen, self.batch, batch, number * batch,
        )  # fmt: skip
        return self.data | {"next_index": number}


def begun(workdir: Path) -> bool:
    """Whether there is a run in a work folder that has saved anything, sound or not."""
    return any(path.name.split(".")[0].isdecimal() for path in (workdir / "checkpoints").glob("*"))


def set_aside(workdir: Path) -> None:
    """Begins a run anew: what is there of the one before goes into a folder of its own."""
    there = [path for name in FILES if (path := workdir / name).exists()]
    if not there:
        return
    number = next(n for n in range(1, 1 << 30) if not (workdir / f"before-{n}").exists())
    target = workdir / f"before-{number}"
    target.mkdir()
    for path in there:
        path.rename(target / path.name)
    logger.warning("The run begins anew, at step 0; what was there is in %s.", target)


def fault(folder: Path) -> str:
    """Why a checkpoint cannot be gone on from, or "". UserError where the disk does not let it be read."""
    try:
        verify(folder)
        for part in PARTS:
            checkpoint.stored_arrays(folder / part)
    except OSError as error:
        raise UserError(f"{folder} cannot be read ({error}); see to the disk.") from None
    except (UserError, ValueError) as error:
        return str(error)
    return ""


class Runs:
    """Saves and resumes a run in its work folder. On several hosts all of them call each method.

    UserError, before anything is written, where the folder's checkpoints cannot be gone on from.
    """

    def __init__(self, owner: Owner, config: configs.Config):
        self.owner, self.workdir, self.config = owner, owner.folder, config
        self.folder = self.workdir / "checkpoints"
        self.found = self.newest_sound()
        self.saver = checkpoint.Saver(*PARTS)
        self.sealing, self.failure = None, None
        checkpoint.once(self.prepare)

    def prepare(self) -> None:
        """Leaves of this run what counts, and writes what it is."""
        self.folder.mkdir(exist_ok=True)
        for pattern in ("checkpoints/.*", ".*.partial", ".*.removed"):
            for leftover in self.workdir.glob(pattern):
                remove(leftover)
        identity.write(self.workdir, self.config)

    def save(self, state, data: dict, staged: configs.Config) -> None:
        """Begins to save the state and where its data is; it may change as soon as this returns.

        staged: the config as the stage has it. A save that fails is a warning, as the next one may succeed; `close` raises it. UserError where
        the folder has become another run's.
        """
        self.wait()
        self.owner.check()
        step = int(state.step)
        if step in dict(checkpoint.run_checkpoints(self.workdir)):
            return
        self.failure, partial = None, self.folder / f".{step}.{self.owner.mark}"
        try:
            checkpoint.once(lambda: remove(partial))
            self.saver.save(partial, params=weights_folder(state, staged), rest=rest(state))
        except Exception as error:
            self.fail(step, error)
            return
        self.sealing = threading.Thread(target=self.seal, args=(step, partial, data, staged))
        self.sealing.start()

    def seal(self, step: int, partial: Path, data: dict, staged: configs.Config) -> None:
        try:
            self.saver.wait()
            if jax.process_index() > 0:
                return
            write_whole(partial / "data.json", json.dumps(data))
            checkpoint.seal(partial, *checkpoint.trained_network(staged), adapter.trained_with(staged))
            self.owner.check()
            partial.rename(self.folder / str(step))
            for _, old in list(checkpoint.run_checkpoints(self.workdir))[self.config.keep :]:
                remove(old)
        except Exception as error:
            self.fail(step, error)

    def fail(self, step: int, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        words = (
            f"step {step} could not be saved in {self.folder} ({reason}); make room or see to the disk. "
            "The steps saved before are whole."
        )
        self.failure = error if isinstance(error, UserError) else UserError(words)
        logger.warning("%s", self.failure)

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        if self.sealing:
            self.sealing.join()
            self.sealing = None

    def resume(self, state):
        """The last sound state, laid out as this one is, and the Place where its data is; None where there is none."""
        if self.found == NO_STEP:
            return state, None
        folder = self.folder / str(self.found)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        try:
            params = checkpoint.read_arrays(folder / "params", weights_folder(like, self.config))
            found = with_rest(state, checkpoint.read_arrays(folder / "rest", rest(like)))
        except UserError as error:
            raise UserError(
                f"{folder} holds the state of another network or of another version of svdp_jax ({error}); train on from "
                f"its model with --config.start={self.workdir} in a new --workdir, where config.model is the same."
            ) from None
        average, constants = (checkpoint.replaced(x, checkpoint.named(x) | params) for x in (state.average, state.constants))
        return found._replace(average=average, constants=constants), Place(
            read_json(folder / "data.json"), checkpoint.about(folder)["training"]["data"]["batch"]
        )

    def newest_sound(self) -> int:
        """The newest step whose files are all as they were saved; the first process looks."""
        step = np.array(self.find_sound() if jax.process_index() == 0 else NO_STEP)
        if jax.process_count() > 1:
            step = multihost_utils.broadcast_one_to_all(step)
        return int(step)

    def find_sound(self) -> int:
        """Damaged checkpoints are named in a warning and set aside, if there is an earlier one that is sound."""
        damaged = []
        for step, path in checkpoint.run_checkpoints(self.workdir):
            if reason := fault(path):
                damaged.append((step, path, reason))
                continue
            for bad, place, reason in damaged:
                logger.warning("Step %d is not used, but step %d: %s", bad, step, reason)
                aside = place.with_name(f"{bad}.damaged")
                remove(aside)
                place.rename(aside)
            return step
        lost = f"; bring back a copy of {self.folder}, or begin anew with --restart, which keeps what is there."
        if damaged:
            raise UserError(f"none of the checkpoints in {self.folder} is whole: {damaged[0][2].rstrip('.')}{lost}")
        if any(self.folder.glob("*.damaged")):
            raise UserError(f"all of the checkpoints in {self.folder} were found damaged{lost}")
        told = journal.last_step(self.workdir)
        if told >= read_json(self.workdir / "config.json").get("save_every", 1 << 31):
            raise UserError(f"metrics.jsonl tells of step {told}, and {self.folder} holds no checkpoint{lost}")
        if told:
            logger.warning("The run was ended at step %d, before its first checkpoint; it begins at step 0.", told)
        return NO_STEP

    def close(self) -> None:
        """Waits until what was saved is on disk. UserError where the last save failed, or the folder is another's."""
        self.wait()
        self.owner.check()
        checkpoint.once(lambda: None)
        self.saver.close()
        if self.failure:
            raise self.failure
