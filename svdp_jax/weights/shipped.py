"""The model and the small codec that come with the package, and how a trained one becomes two small files.

An exported network is a folder of config.json, model.safetensors (in float16) and manifest.json, with
the log of its training; far smaller to carry than Orbax's many files, and `checkpoint` takes either form.
Make one, once, of a finished run:

    python -c "from svdp_jax.weights import shipped; shipped.export('runs/toy_cpu')"
    python -c "from svdp_jax.weights import shipped; shipped.export('runs/toy_codec', shipped.checkpoint.SMALL)"
"""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from svdp_jax.errors import UserError
from svdp_jax.files import MANIFEST, hash_of
from svdp_jax.weights import adapter, checkpoint

FOLDER = checkpoint.SHIPPED
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


def export(folder, target: Path = FOLDER) -> None:
    """Writes the model of a work folder to the new folder `target`, complete or not at all."""
    run, folder, partial = Path(folder), find(folder), target.with_name(f".{target.name}.partial")
    if adapter.of(folder):
        raise UserError(
            f"{folder} is an adapter, which is nothing without its base; fold it in with `python -m convert adapter`."
        )
    arrays = {name: array.astype(np.float16) for name, array in checkpoint.load_arrays(folder).items()}
    size = sum(array.nbytes for array in arrays.values())
    if size > LIMIT:
        raise UserError(f"{folder} has {size:,} bytes of weights; what is shipped may have {LIMIT:,}.")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(arrays, partial / checkpoint.EXPORTED)
    (partial / checkpoint.EXPORTED).chmod(0o644)  # safetensors lets the owner alone read it
    shutil.copyfile(folder / "config.json", partial / "config.json")
    for log in (run / "metrics.jsonl", run / "results" / "results.md"):
        if log.exists():  # a run that was stopped has no results yet
            shutil.copyfile(log, partial / log.name)
    checkpoint.write_manifest(partial)
    partial.rename(target)


def fingerprint(folder: Path) -> str:
    """Names the weights of a folder: the SHA-256 of its manifest, which has the checksum of every file."""
    return hash_of(folder / MANIFEST)
