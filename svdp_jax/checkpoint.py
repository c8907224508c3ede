"""Weights on disk. The only module that knows Orbax.

A weights folder holds `config.json` (which network, its config), `params/`
(Orbax: arrays by dotted path, restorable with any sharding) and `manifest.json`
(size and checksum of each file, since Orbax does not notice a flipped bit).
"""

import dataclasses
import json
import logging
import shutil
import zlib
from pathlib import Path
from typing import Callable

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.models.liveportrait import LivePortrait, LivePortraitConfig
from svdp_jax.models.metric_nets import (
    I3D,
    LPIPS,
    ArcFace,
    ArcFaceConfig,
    I3DConfig,
    LPIPSConfig,
    SyncNet,
    SyncNetConfig,
)
from svdp_jax.models.mmdit import MMDiT
from svdp_jax.models.svdp import SVDP
from svdp_jax.models.text import CLIPConfig, CLIPText, T5Config, T5Encoder
from svdp_jax.models.vae import Autoencoder, AutoencoderConfig, PixelCodec

# Networks by the name in config.json: the type of their config, and the module.
NETWORKS = {
    "sd35": (configs.Backbone, MMDiT),
    "svdp": (configs.Model, SVDP),
    "vae": (AutoencoderConfig, Autoencoder),
    "clip": (CLIPConfig, CLIPText),
    "t5": (T5Config, T5Encoder),
    "liveportrait": (LivePortraitConfig, LivePortrait),
    "lpips_alex": (LPIPSConfig, LPIPS),
    "lpips_vgg": (LPIPSConfig, LPIPS),
    "i3d": (I3DConfig, I3D),
    "arcface": (ArcFaceConfig, ArcFace),
    "syncnet": (SyncNetConfig, SyncNet),
}
CHUNK = 1 << 26  # bytes; what one device reads at least of a sharded array

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns about every default


def named(state) -> dict:
    """The arrays of an nnx state by dotted path, such as dual.attn.to_q.kernel."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def replaced(state, arrays: dict):
    """The state with these arrays, by dotted path."""
    return nnx.from_flat_state(
        (path, leaf.replace(arrays[".".join(map(str, path))]))
        for path, leaf in nnx.to_flat_state(state)
    )


def save_weights(folder: Path, network: str, config, arrays: dict, facts: dict | None = None):
    """Writes a new weights folder. arrays: by dotted path; facts: more for config.json."""
    once(lambda: folder.mkdir(parents=True))
    tree = {k: x if isinstance(x, jax.Array) else jax.device_put(x) for k, x in arrays.items()}
    save_args = {path: ocp.SaveArgs(chunk_byte_size=CHUNK) for path in tree}
    # One gigabyte of copies at a time: the rest of the memory is for the arrays themselves.
    handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1, use_compression=False)
    with ocp.Checkpointer(handler) as checkpointer:
        args = ocp.args.PyTreeSave(tree, save_args=save_args)
        checkpointer.save((folder / "params").absolute(), args=args)
    about = {"network": network, "config": dataclasses.asdict(config)} | (facts or {})
    once(lambda: (folder / "config.json").write_text(json.dumps(about, indent=2)))
    once(lambda: write_manifest(folder))


def once(action: Callable[[], object]) -> None:
    """Lets the first process do this while the others wait: the folder is one for all."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("svdp_jax.checkpoint")


def about(folder: Path) -> dict:
    """config.json of a weights folder: network, config, and facts."""
    try:
        result = json.loads((folder / "config.json").read_text())
        return result | {"network": result["network"], "config": result["config"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} holds no converted weights (no config.json that names a network); "
            "make them with `python -m convert`."
        ) from None


def abstract_network(folder: Path) -> nnx.Module:
    """The network of a weights folder with shapes in place of arrays."""
    facts = about(folder)
    if facts["network"] not in NETWORKS:
        raise UserError(f"{folder} holds {facts['network']!r}, which this version does not know.")
    kind, module = NETWORKS[facts["network"]]
    config = configs.build(kind, facts["config"], f"{folder}/config.json")
    return nnx.eval_shape(lambda: module(config, nnx.Rngs(0)))


def load_network(folder: Path, dtype=None) -> nnx.Module:
    """The network of a weights folder, on one device, in the dtype given or that stored."""
    graph, state = nnx.split(abstract_network(folder))
    stored = stored_arrays(folder)
    typed = {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype or stored.get(path, leaf).dtype)
        for path, leaf in named(state).items()
    }
    return nnx.merge(graph, load_weights(folder, replaced(state, typed)))


def load_weights(folder: Path, state):
    """Restores into a state of ShapeDtypeStructs, each with the dtype and sharding it names.

    Each device reads what it will hold and no more. Raises UserError where the
    files are damaged or do not fit the state.
    """
    verify(folder)
    leaves, stored = named(state), stored_arrays(folder)
    misfits = sorted(set(leaves) ^ set(stored))
    misfits += [p for p in leaves if p in stored and leaves[p].shape != stored[p].shape]
    if misfits:
        raise UserError(
            f"{folder} does not fit this network: {len(misfits)} parameters are missing, "
            f"too many, or of another shape, such as {misfits[0]}."
        )
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restore_args = {
        path: ocp.ArrayRestoreArgs(
            sharding=leaf.sharding or here, global_shape=leaf.shape, dtype=leaf.dtype
        )
        for path, leaf in leaves.items()
    }
    return replaced(state, restore(folder, leaves, restore_args))


def load_parts(folder: Path, *states):
    """Like `load_weights`, into several states that make up the network; arrays give the layout."""
    merged = nnx.merge_state(*states)
    typed = jax.tree.map(ocp.utils.to_shape_dtype_struct, merged)
    loaded = named(load_weights(folder, typed))
    return [replaced(state, loaded) for state in states]


def load_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All parameters in host memory, as stored, by dotted path."""
    verify(folder)
    stored = stored_arrays(folder)
    return restore(folder, stored, {p: ocp.RestoreArgs(restore_type=np.ndarray) for p in stored})


def restore(folder: Path, item: dict, restore_args: dict) -> dict:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args)
        return checkpointer.restore((folder / "params").absolute(), args=args)


def stored_arrays(folder: Path) -> dict:
    """Shape and dtype of every stored array by dotted path."""
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.metadata((folder / "params").absolute()).item_metadata.tree
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in tree.items()}


def files(folder: Path) -> dict[str, dict]:
    """Size and CRC-32 of every file below the folder, by relative path."""

    def entry(path):
        crc = 0
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                crc = zlib.crc32(block, crc)
        return {"bytes": path.stat().st_size, "crc32": crc}

    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(path.relative_to(folder)): entry(path) for path in paths}


def write_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps(files(folder), indent=1))


def verify(folder: Path) -> None:
    """Raises UserError, naming the file, where a folder is not what its manifest says."""
    try:
        expected = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} has no readable manifest.json; it was not saved whole.") from None
    there = files(folder)
    for name in sorted(expected):
        if there.get(name) != expected[name]:
            state = "is missing" if name not in there else "is damaged"
            raise UserError(f"{folder / name} {state}; make or fetch these weights again.")


# --- models and runs


def save_model(folder: Path, config: configs.Config, weights, constants) -> None:
    """A trained model as a weights folder, complete or not at all; replaces an older one."""
    partial = folder.with_name(f".{folder.name}.partial")
    once(lambda: shutil.rmtree(partial, ignore_errors=True))
    arrays = named(weights) | named(constants)
    save_weights(partial, "svdp", config.model, arrays, {"training": dataclasses.asdict(config)})
    once(lambda: (shutil.rmtree(folder, ignore_errors=True), partial.rename(folder)))


def load_model(folder: Path) -> tuple[configs.Config, nnx.Module]:
    """A trained model and the config it was trained with."""
    if (folder / "model").is_dir():
        folder = folder / "model"
    facts = about(folder)
    if "training" not in facts:
        raise UserError(f"{folder} holds {facts['network']!r}, not a model trained by svdp_jax.train.")
    return configs.from_flags(facts["training"]), load_network(folder)


# Codecs by kind, with fresh weights.
CODECS = {
    "pixels": lambda config: PixelCodec(config.factor),
    "sd3": lambda config: Autoencoder(AutoencoderConfig(), nnx.Rngs(0)),
}


def load_codec(config: configs.Codec) -> PixelCodec | Autoencoder:
    """The codec of a model; the autoencoder's weights come from the folder that the config names."""
    if config.kind == "pixels":
        return CODECS[config.kind](config)
    if not config.weights:
        raise UserError("config.model.codec.weights must name the folder of the converted autoencoder.")
    return load_network(Path(config.weights))


class Runs:
    """The checkpoints of one training run, and its config, in its work folder."""

    def __init__(self, workdir: Path, config: configs.Config):
        self.workdir = workdir
        path = workdir / "config.json"
        saved = json.loads(path.read_text()) if path.exists() else None
        wanted = json.loads(json.dumps(dataclasses.asdict(config)))
        changed = sorted(k for k in wanted if saved and wanted[k] != saved.get(k))
        if changed:
            raise UserError(
                f"{workdir} holds a run with another config.{changed[0]}; "
                "give a new --workdir, or the config it was started with."
            )
        once(lambda: path.write_text(json.dumps(wanted, indent=2)))
        self.manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
        )

    def save(self, state, data) -> None:
        """Begins to save the state (a pytree with a `step`) and where its data iterator is."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data.get_state())
        )
        self.manager.save(int(state.step), args=args)

    def resume(self, state, data):
        """The last state saved, laid out as this one is, with `data` set to go on from there."""
        step = self.manager.latest_step()
        if step is None:
            return state
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), data=ocp.args.JsonRestore()
        )
        restored = self.manager.restore(step, args=args)
        data.set_state(restored["data"])
        logging.getLogger(__name__).warning("goes on from step %d in %s", step, self.workdir)
        return restored["state"]

    def preempted(self, step: int) -> bool:
        """Whether a host of several is about to be taken away; all of them learn it at the same step."""
        return jax.process_count() > 1 and self.manager.reached_preemption(step)

    def close(self) -> None:
        """Waits until what was saved is on disk."""
        self.manager.wait_until_finished()
        self.manager.close()
