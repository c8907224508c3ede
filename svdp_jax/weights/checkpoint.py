"""Weights on disk. The only module that knows Orbax.

A weights folder holds `config.json` (which network, its config), `params/`
(Orbax: arrays by dotted path, restorable with any sharding) and `manifest.json`
(size and checksum of each file, since Orbax does not notice a flipped bit).
One that is small enough to come with the package (`shipped`) holds a single file in place of `params/`.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from safetensors.numpy import load_file

from svdp_jax import config as configs
from svdp_jax.buckets import storage
from svdp_jax.errors import UserError
from svdp_jax.files import remove, verify, write_manifest, write_whole
from svdp_jax.models.liveportrait import LivePortrait, LivePortraitConfig
from svdp_jax.models.metric_nets import I3D, LPIPS, ArcFace, ArcFaceConfig, I3DConfig, LPIPSConfig, SyncNet, SyncNetConfig
from svdp_jax.models.mmdit import MMDiT
from svdp_jax.models.small_vae import SmallAutoencoder, SmallAutoencoderConfig
from svdp_jax.models.svdp import SVDP
from svdp_jax.models.text import CLIPConfig, CLIPText, T5Config, T5Encoder
from svdp_jax.models.vae import Autoencoder, AutoencoderConfig, PixelCodec
from svdp_jax.values import declared
from svdp_jax.weights.older import renewed, stored_name

# Networks by the name in config.json: the type of their config, and the module.
NETWORKS = {
    "sd35": (configs.Backbone, MMDiT),
    "svdp": (configs.Model, SVDP),
    "vae": (AutoencoderConfig, Autoencoder),
    "small_vae": (SmallAutoencoderConfig, SmallAutoencoder),
    "clip": (CLIPConfig, CLIPText),
    "t5": (T5Config, T5Encoder),
    "liveportrait": (LivePortraitConfig, LivePortrait),
    "lpips_alex": (LPIPSConfig, LPIPS),
    "lpips_vgg": (LPIPSConfig, LPIPS),
    "i3d": (I3DConfig, I3D),
    "arcface": (ArcFaceConfig, ArcFace),
    "syncnet": (SyncNetConfig, SyncNet),
}
EXPORTED = "model.safetensors"  # in place of `params`
CHUNK = 1 << 26  # bytes; what one device reads at least of a sharded array

logging.getLogger("absl").setLevel(logging.CRITICAL)  # what Orbax logs, it also raises


def named(state) -> dict:
    """The arrays of an nnx state by dotted path, such as dual.attn.to_q.kernel."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def replaced(state, arrays: dict):
    """The state with these arrays, by dotted path."""
    return nnx.from_flat_state(
        (path, leaf.replace(arrays[".".join(map(str, path))])) for path, leaf in nnx.to_flat_state(state)
    )


def save_weights(folder: Path, network: str, config, arrays: dict, facts: dict | None = None):
    """Writes a new weights folder. arrays: by dotted path; facts: more for config.json."""
    once(lambda: folder.mkdir(parents=True))
    # One gigabyte of copies at a time: the rest of the memory is for the arrays themselves.
    handler = orbax().PyTreeCheckpointHandler(save_concurrent_gb=1, use_compression=False)
    with orbax().Checkpointer(handler) as checkpointer:
        checkpointer.save((folder / "params").absolute(), args=saved_as(arrays))
    once(lambda: seal(folder, network, config, facts))


def seal(folder: Path, network: str, config, facts: dict | None = None) -> None:
    """Makes a weights folder of one that holds `params`: config.json, then the manifest."""
    about = {"network": network, "config": dataclasses.asdict(config)} | (facts or {})
    write_whole(folder / "config.json", json.dumps(about, indent=2))
    write_manifest(folder)


def orbax() -> Any:
    """What stores arrays. Importing it takes half a second, which who has nothing to read or write need not wait for."""
    import orbax.checkpoint

    return orbax.checkpoint


def saved_as(arrays: dict) -> Any:
    ocp = orbax()
    tree = {k: x if isinstance(x, jax.Array) else jax.device_put(x) for k, x in arrays.items()}
    return ocp.args.PyTreeSave(tree, save_args={k: ocp.SaveArgs(chunk_byte_size=CHUNK) for k in tree})


class Saver:
    """Writes trees of arrays into a new folder, one below each name, while the caller goes on."""

    def __init__(self, *names: str):
        ocp = orbax()
        handlers: Any = {name: ocp.PyTreeCheckpointHandler(use_compression=False) for name in names}
        self.checkpointer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))

    def save(self, folder: Path, **trees: dict) -> None:
        """Returns when the arrays are copied and may change. trees: arrays by dotted path."""
        args = orbax().args.Composite(**{name: saved_as(tree) for name, tree in trees.items()})
        self.checkpointer.save(folder.absolute(), args=args)

    def wait(self) -> None:
        """Returns when the last folder is on disk. Raises what went wrong with it."""
        self.checkpointer.wait_until_finished()

    def close(self) -> None:
        self.checkpointer.close()


def once(action: Callable[[], object]) -> None:
    """Lets the first process do this while the others wait: the folder is one for all."""
    if jax.process_index() == 0:
        action()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("svdp_jax.weights.checkpoint")


def about(folder: Path) -> dict:
    """config.json of a weights folder: network, config, and facts."""
    try:
        result = json.loads((folder / "config.json").read_text())
        return result | {"network": result["network"], "config": result["config"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} holds no converted weights (no config.json that names a network); make them with `python -m convert`."
        ) from None


def abstract_network(folder: Path, change: Callable = lambda network: network) -> Any:
    """The network of a weights folder, as `change` makes it, with shapes in place of arrays."""
    facts = about(folder)
    if facts["network"] not in NETWORKS:
        raise UserError(f"{folder} holds {facts['network']!r}, which this version does not know.")
    kind, module = NETWORKS[facts["network"]]
    config = declared.build(kind, facts["config"], f"{folder}/config.json")
    return nnx.eval_shape(lambda: change(module(config, nnx.Rngs(0))))


def load_network(folder: Path, dtype=None, sharding=None) -> Any:
    """The network of a weights folder, in the dtype given or that stored, laid out so or on one device of this process."""
    graph, state = nnx.split(abstract_network(folder))
    if (folder / EXPORTED).exists():
        return nnx.merge(graph, exported(folder, state, dtype, sharding))
    stored = renewed(stored_arrays(folder / "params"))
    typed = {
        path: jax.ShapeDtypeStruct(leaf.shape, dtype or stored.get(path, leaf).dtype, sharding=sharding)
        for path, leaf in named(state).items()
    }
    return nnx.merge(graph, load_weights(folder, replaced(state, typed)))


def exported(folder: Path, state, dtype, sharding):
    """The state with the arrays of an exported folder, in the dtype given or that of the network."""
    verify(folder)
    arrays, leaves = renewed(load_file(folder / EXPORTED)), named(state)
    if faults := misfits(leaves, arrays):
        raise UserError(f"{folder / EXPORTED} does not fit its config.json: {'; '.join(faults)}.")
    typed = {path: arrays[path].astype(dtype or leaf.dtype) for path, leaf in leaves.items()}
    return replaced(state, {path: jax.device_put(array, sharding) for path, array in typed.items()})


def load_weights(folder: Path, state):
    """Restores into a state of ShapeDtypeStructs, each with the dtype and sharding it names.

    Each device reads what it will hold and no more. Raises UserError where the
    files are damaged or do not fit the state.
    """
    verify(folder)
    return replaced(state, read_arrays(folder / "params", named(state)))


def read_arrays(folder: Path, like: dict, part: bool = False) -> dict:
    """Arrays by dotted path, each with the shape, dtype and sharding of its twin in `like`.

    part: there may be others. Raises UserError that names what is missing, too many, or of another shape.
    """
    stored = stored_arrays(folder)
    if faults := misfits(like, {name: x for name, x in renewed(stored).items() if name in like} if part else stored):
        raise UserError(f"{folder} does not fit this network: {'; '.join(faults)}.")
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = {stored_name(path, stored): leaf for path, leaf in like.items()}
    restore_args = {
        path: orbax().ArrayRestoreArgs(sharding=leaf.sharding or here, global_shape=stored[path].shape, dtype=leaf.dtype)
        for path, leaf in like.items()
    }
    return renewed(restore(folder, like, restore_args, part))


NAMED = 5  # parameters of each fault; one mistake often has hundreds


def misfits(wanted: dict, stored: dict) -> list[str]:
    """What keeps stored arrays from being the wanted ones, a clause for each kind of fault."""
    stored = renewed(stored)
    shapes = {
        f"{path} {stored[path].shape} instead of {leaf.shape}"
        for path, leaf in wanted.items()
        if path in stored and stored[path].shape != leaf.shape
    }
    faults = {"missing": set(wanted) - set(stored), "not part of it": set(stored) - set(wanted), "of another shape": shapes}
    return [
        f"{len(names)} {fault}: {', '.join(sorted(names)[:NAMED])}{', ...' * (len(names) > NAMED)}"
        for fault, names in faults.items()
        if names
    ]


def load_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All parameters in host memory, as stored, by dotted path."""
    verify(folder)
    return renewed(host_arrays(folder / "params"))


def host_arrays(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of one tree that was saved."""
    stored = stored_arrays(folder)
    return restore(folder, stored, {path: orbax().RestoreArgs(restore_type=np.ndarray) for path in stored})


def restore(folder: Path, item: dict, restore_args: dict, part: bool = False) -> dict:
    ocp = orbax()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=part)
        return checkpointer.restore(folder.absolute(), args=args)


def stored_arrays(folder: Path) -> dict:
    """Shape and dtype of every stored array by dotted path. UserError where Orbax stored none."""
    ocp = orbax()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.metadata(folder.absolute()).item_metadata
    if found is None:
        raise UserError(f"{folder} holds no arrays; name a work folder of svdp_jax.train, or what `python -m convert` made.")
    return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in found.tree.items()}


def stored_shapes(folder: Path) -> dict:
    """Shape and dtype of every array of a weights folder, by dotted path."""
    if (folder / EXPORTED).exists():
        return {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in load_file(folder / EXPORTED).items()}
    return stored_arrays(folder / "params")


# --- trained models


def trained_network(config: configs.Config) -> tuple[str, Any]:
    """The network that a run trains, by its name in NETWORKS, and its config."""
    if config.trains == "codec":
        return "small_vae", SmallAutoencoderConfig(channels=config.model.backbone.channels)
    return "svdp", config.model


def fresh_network(config: configs.Config, rngs: nnx.Rngs) -> Any:
    """That network with fresh weights."""
    name, part = trained_network(config)
    return NETWORKS[name][1](part, rngs)


def save_model(folder: Path, config: configs.Config, *states: nnx.State, facts: dict | None = None) -> None:
    """A trained model as a weights folder, complete or not at all; replaces an older one. facts: for config.json."""
    partial = folder.with_name(f".{folder.name}.partial")
    once(lambda: remove(partial))
    arrays = {name: array for state in states for name, array in named(state).items()}
    save_weights(partial, *trained_network(config), arrays, facts or trained_with(config))
    once(lambda: (remove(folder), partial.rename(folder)))


def trained_with(config: configs.Config) -> dict:
    """What the config.json of a trained model tells beside its network."""
    return {"training": dataclasses.asdict(config)}


def load_model(folder: Path) -> tuple[configs.Config, nnx.Module]:
    """A trained model and the config it was trained with; `folder` as in `model_folder`."""
    folder = model_folder(folder)
    facts = about(folder)
    if "training" not in facts or facts["network"] != "svdp":
        raise UserError(f"{folder} holds {facts['network']!r}, not a model trained by svdp_jax.train.")
    return configs.from_flags(facts["training"]), load_network(folder)


def model_folder(folder: Path) -> Path:
    """The weights folder of a trained model: of a work folder its `model`, or of an unfinished run
    what was saved last; else the folder itself. Of a work folder in a bucket, no more than its model is brought."""
    folder = storage.here(folder / "model" if storage.holds(folder / "model") else folder)
    saved = [path for _, path in run_checkpoints(folder)]
    return next((path for path in (folder / "model", *saved) if path.is_dir()), folder)


def run_checkpoints(workdir: Path) -> Iterator[tuple[int, Path]]:
    """Steps and weights folders that a run saved in its work folder, the newest first."""
    folders = (workdir / "checkpoints").glob("*")
    steps = {int(path.name): path for path in folders if path.name.isdecimal()}
    yield from sorted(steps.items(), reverse=True)


# Codecs by kind, with fresh weights.
CODECS = {
    "pixels": lambda config: PixelCodec(config.factor),
    "sd3": lambda config: Autoencoder(AutoencoderConfig(), nnx.Rngs(0)),
    "small": lambda config: SmallAutoencoder(SmallAutoencoderConfig(), nnx.Rngs(0)),
}
SMALL = Path(__file__).parent / "codec"  # the small codec that comes with the package,
SHIPPED = Path(__file__).parent / "toy"  # and the model


def codec_folder(config: configs.Codec) -> Path | None:
    """Where a codec's weights are; None where it has none."""
    if config.kind == "small":
        return model_folder(Path(config.weights)) if config.weights else SMALL
    return storage.here(config.weights) if config.weights else None


def load_codec(config: configs.Codec, dtype=np.float32, sharding=None) -> PixelCodec | Autoencoder | SmallAutoencoder:
    """The codec of a model; an autoencoder's weights come from the folder that the config names, or with the package.

    It computes in the dtype, not in that in which the weights are stored: float16 is too narrow for some autoencoders.
    """
    if config.kind == "pixels":
        return CODECS[config.kind](config)
    folder = codec_folder(config)
    if not folder:
        raise UserError("config.model.codec.weights must name the folder of the converted autoencoder.")
    return load_network(folder, dtype, sharding)
