"""The checkpoints of one training run, and what makes it that run, in its work folder.

    config.json        the config
    fingerprint.json   data, code, versions, hosts
    checkpoints/300/   a weights folder of the averaged weights (see `checkpoint`) that
                       also holds the rest of the state and where the data was

A step counts from the moment its folder has that name, which is given last, when all
of it is on disk and in the manifest. Whatever stops a run before leaves a hidden folder.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import platform
import threading
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.files import remove, verify, write_whole
from svdp_jax.training import records
from svdp_jax.weights import checkpoint

# Fields that may change when a run goes on: none has a part in what is learned.
FREE = (
    "name.", "mesh.", "topology.", "remat.", "sampling.", "log_every.", "save_every.", "keep.", "evaluate.",
    "data.path.", "data.threads.", "model.backbone.kernel.", "model.video.scheme.",
)  # fmt: skip
MARKS = {
    "data": "the files below config.data.path are not those it was started with",
    "code": "the code of svdp_jax is not that it was started with",
}
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")
# What decides the numbers of a run: modules of the package, and packages of modules.
NUMBERS = ("parallel.py", "diffusion", "faces", "media", "models", "preparation", "toy", "training")
NO_STEP = -1
logger = logging.getLogger(__name__)


def fingerprint(config: configs.Config) -> dict:
    """What a run is, beside its config."""
    return {
        "data": records.identity(config.data),
        "code": code(Path(__file__).parents[1]),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "hosts": jax.process_count(),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    }


def code(package: Path) -> str:
    """Hash of the modules that decide what a run learns."""
    chosen = (package / name for name in NUMBERS)
    paths = sorted(file for path in chosen for file in ([path] if path.is_file() else path.rglob("*.py")))
    contents = b"\0".join(path.read_bytes() for path in paths)
    return hashlib.sha256(contents).hexdigest()[:16]


def flat(values: dict, prefix: str = "") -> dict:
    """Nested fields by dotted path."""
    result = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        result |= flat(value, f"{path}.") if isinstance(value, dict) else {path: value}
    return result


def changes(workdir: Path, config: configs.Config) -> list[str]:
    """What keeps the run in a work folder from going on exactly with this config, a sentence each."""
    if not any(checkpoint.run_checkpoints(workdir)):
        return []
    before, now = (flat(x) for x in (read(workdir / "config.json"), as_json(config)))
    marks, here = read(workdir / "fingerprint.json"), fingerprint(config)
    found = [
        f"config.{path} is {now.get(path)} and was {before.get(path)}"
        for path in sorted(before | now)
        if now.get(path) != before.get(path) and not f"{path}.".startswith(FREE)
    ]
    found += [words for mark, words in MARKS.items() if marks.get(mark) != here[mark]]
    return [
        f"{workdir} holds another run: {difference}; name a new --workdir, start it as it was, or go on "
        "nevertheless with --force-resume."
        for difference in found
    ]


def read(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def as_json(config: configs.Config) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def weights_folder(state) -> dict:
    """The arrays of a state that make up its averaged network, by dotted path."""
    return checkpoint.named(state.average) | checkpoint.named(state.constants)


def rest(state) -> dict:
    """The other arrays of a state, by dotted path."""
    leaves, _ = jax.tree.flatten_with_path((state.step, state.weights, state.optimizer))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def with_rest(state, arrays: dict):
    """The state with these arrays in place of its `rest`."""
    tree = jax.tree.structure((state.step, state.weights, state.optimizer))
    step, weights, optimizer = jax.tree.unflatten(tree, [arrays[path] for path in rest(state)])
    return state._replace(step=step, weights=weights, optimizer=optimizer)


class Runs:
    """Saves and resumes a run in its work folder. On several hosts all of them call each method."""

    def __init__(self, workdir: Path, config: configs.Config):
        self.workdir, self.config = workdir, config
        self.folder = workdir / "checkpoints"
        self.saver = checkpoint.Saver("params", "rest")
        self.sealing, self.failure = None, None
        checkpoint.once(self.prepare)

    def prepare(self) -> None:
        """Leaves of this run what counts, and writes what it is."""
        self.folder.mkdir(exist_ok=True)
        for pattern in ("checkpoints/.*", ".*.partial", ".*.removed"):
            for leftover in self.workdir.glob(pattern):
                remove(leftover)
        about = {"config.json": as_json(self.config), "fingerprint.json": fingerprint(self.config)}
        for name, content in about.items():
            write_whole(self.workdir / name, json.dumps(content, indent=2))

    def save(self, state, data: dict) -> None:
        """Begins to save the state and where its data is; it may change as soon as this returns.

        A save that fails is a warning, as the next one may succeed; `close` raises it.
        """
        self.wait()
        step = int(state.step)
        if step in dict(checkpoint.run_checkpoints(self.workdir)):
            return
        self.failure, partial = None, self.folder / f".{step}"
        try:
            checkpoint.once(lambda: remove(partial))
            self.saver.save(partial, params=weights_folder(state), rest=rest(state))
        except Exception as error:
            self.fail(step, error)
            return
        self.sealing = threading.Thread(target=self.seal, args=(step, partial, data))
        self.sealing.start()

    def seal(self, step: int, partial: Path, data: dict) -> None:
        try:
            self.saver.wait()
            if jax.process_index() > 0:
                return
            write_whole(partial / "data.json", json.dumps(data))
            checkpoint.seal(partial, "svdp", self.config.model, checkpoint.trained_with(self.config))
            partial.rename(self.folder / str(step))
            for _, old in list(checkpoint.run_checkpoints(self.workdir))[self.config.keep :]:
                remove(old)
        except Exception as error:
            self.fail(step, error)

    def fail(self, step: int, error: Exception) -> None:
        reason = " ".join(str(error).split())[:200]
        self.failure = UserError(
            f"step {step} could not be saved in {self.folder} ({reason}); make room or see to the disk. "
            "The steps saved before are whole."
        )
        logger.warning("%s", self.failure)

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        if self.sealing:
            self.sealing.join()
            self.sealing = None

    def resume(self, state):
        """The last sound state, laid out as this one is, and where its data was; None where there is none.

        A damaged checkpoint is named in a warning and set aside, and the one before it taken.
        """
        step = self.newest_sound()
        if step == NO_STEP:
            return state, None
        folder = self.folder / str(step)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        params = checkpoint.read_arrays(folder / "params", weights_folder(like))
        found = with_rest(state, checkpoint.read_arrays(folder / "rest", rest(like)))
        average, constants = (checkpoint.replaced(x, params) for x in (state.average, state.constants))
        return found._replace(average=average, constants=constants), read(folder / "data.json")

    def newest_sound(self) -> int:
        """The newest step whose files are all as they were saved; the first process looks."""
        step = np.array(self.find_sound() if jax.process_index() == 0 else NO_STEP)
        if jax.process_count() > 1:
            step = multihost_utils.broadcast_one_to_all(step)
        if step < NO_STEP:
            raise UserError(f"none of the checkpoints in {self.folder} is whole; remove that folder to start again.")
        return int(step)

    def find_sound(self) -> int:
        steps = list(checkpoint.run_checkpoints(self.workdir))
        for step, path in steps:
            try:
                verify(path)
                return step
            except UserError as error:
                logger.warning("Step %d is not used: %s", step, error)
                aside = path.with_name(f"{step}.damaged")
                remove(aside)
                path.rename(aside)
        return NO_STEP - 1 if steps else NO_STEP

    def close(self) -> None:
        """Waits until what was saved is on disk. Raises UserError where the last save failed."""
        self.wait()
        checkpoint.once(lambda: None)
        self.saver.close()
        if self.failure:
            raise self.failure
