"""The model that comes with the package, and how a trained one becomes two small files that can be shipped.

An exported model is a folder of config.json, model.safetensors (in float16) and manifest.json, with
the log of its training; far smaller to carry than Orbax's many files, and `load` takes either form.
Make one, once, of a finished run:

    python -c "from svdp_jax.weights import shipped; shipped.export('runs/toy_cpu')"
"""

import hashlib
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file, save_file

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.weights import checkpoint
from svdp_jax.weights.older import renewed

FOLDER = Path(__file__).parent / "toy"
ARRAYS = "model.safetensors"
ANY = "a work folder of svdp_jax.train, or weights that `python -m convert liveportrait` made"
LIMIT = 20_000_000  # bytes; what a package may weigh


def find(folder=None) -> Path:
    """The weights folder of a trained model: of the work folder named, or the shipped one. UserError if there is none."""
    if folder is None and not FOLDER.is_dir():
        raise UserError("no model comes with this version; name a work folder of svdp_jax.train as the checkpoint.")
    folder = Path(folder or FOLDER)
    found = checkpoint.model_folder(folder)
    if not all((found / name).is_file() for name in ("config.json", "manifest.json")):
        raise UserError(f"{folder} holds no model; give {ANY}.")
    return found


def load(folder: Path) -> tuple[configs.Config, nnx.Module]:
    """The model of a folder that `find` gave, and the config it was trained with."""
    if not (folder / ARRAYS).exists():
        return checkpoint.load_model(folder)
    checkpoint.verify(folder)
    graph, state = nnx.split(checkpoint.abstract_network(folder))
    arrays, leaves = renewed(load_file(folder / ARRAYS)), checkpoint.named(state)
    for name, leaf in leaves.items():
        if name not in arrays or arrays[name].shape != leaf.shape:
            raise UserError(f"{folder / ARRAYS} does not fit its config.json: {name} is missing or misshapen.")
    state = checkpoint.replaced(state, {name: jnp.asarray(arrays[name], leaf.dtype) for name, leaf in leaves.items()})
    return configs.from_flags(checkpoint.about(folder)["training"]), nnx.merge(graph, state)


def export(folder, target: Path = FOLDER) -> None:
    """Writes the model of a work folder to the new folder `target`, complete or not at all."""
    run, folder, partial = Path(folder), find(folder), target.with_name(f".{target.name}.partial")
    arrays = {name: array.astype(np.float16) for name, array in checkpoint.load_arrays(folder).items()}
    size = sum(array.nbytes for array in arrays.values())
    if size > LIMIT:
        raise UserError(f"{folder} has {size:,} bytes of weights; what is shipped may have {LIMIT:,}.")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(arrays, partial / ARRAYS)
    (partial / ARRAYS).chmod(0o644)  # safetensors lets the owner alone read it
    shutil.copyfile(folder / "config.json", partial / "config.json")
    for log in (run / "metrics.jsonl", run / "results" / "results.md"):
        if log.exists():  # a run that was stopped has no results yet
            shutil.copyfile(log, partial / log.name)
    checkpoint.write_manifest(partial)
    partial.rename(target)


def fingerprint(folder: Path) -> str:
    """Names the weights of a folder: the SHA-256 of its manifest, which has the checksum of every file."""
    return f"sha256:{hashlib.sha256((folder / 'manifest.json').read_bytes()).hexdigest()}"
