"""Where checkpoints lie: diffusers folders, single files, packages, names on the Hugging Face hub."""

import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from convert import arcface, pickles
from convert.rules import Network
from convert.tensors import read_header, scaled
from svdp_jax.errors import UserError

UNUSED = ["*.fp16*", "*.bin", "*.msgpack"]  # other copies of the same weights on the hub
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".model", ".tar"}
# How files that are not safetensors are read, by suffix.
READERS: dict[str, Callable[[Path], list]] = dict.fromkeys(PICKLES, pickles.read) | {".onnx": arcface.read}
WEIGHTS = (".safetensors", *PICKLES, ".onnx")
# Names that libraries give a network's files, one after the other; each may be in half precision, and in shards.
STEMS = {
    "diffusion_pytorch_model.safetensors": ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "model.safetensors": ("model.safetensors", "pytorch_model.bin"),
}
# What publishers wrap weights in, or put before every name. A `model.` that Stability's own names have stays.
WRAPPERS = (
    "state_dict", "model_state_dict", "model(?!.diffusion_model)", "module", "_orig_mod", "net", "network", "weights",
)  # fmt: skip
BEFORE_ALL = {"module", "_orig_mod"}  # of these: what wraps a network stands before all of its names or is none
# Tensors of published files that are no weights of any network here, and what they are.
HARMLESS = {
    r"(.*\.)?num_batches_tracked": "counters of training batches",
    r"(.*\.)?position_ids": "the numbers 0, 1, 2, …",
    r"encoder\.embed_tokens\.weight": "the same as another",
    r"(.*\.)?logit_scale": "a number of CLIP's training",
    r"(.*\.)?model_sampling\..*": "noise levels of a sampler",
    r"(.*\.)?scaled_fp8": "a mark of float8 files",
    r"(.*\.)?(scale_input|input_scale|comfy_quant)": "how activations are held in 8 bits",
    r"model_ema\..*": "a second copy of the weights",
    r"(.*\.)?beside\..*": "what lies beside the weights, such as an optimiser's state",
    r"loss\..*": "a network of training",
    r"trunk\.classifier\..*": "the classifier that a trunk was trained with",
}


class Source(NamedTuple):
    """Tensors, config.json, what a trained model tells beside its config, and what of the files was left out."""

    tensors: list
    config: dict
    facts: dict
    left: list[str]


def find(src: str | Path, network: Network) -> Source:
    """The tensors and config.json of one network in SRC, which is a pipeline's folder, the
    network's own folder, or a file. Raises UserError where there are none."""
    path = Path(src)
    folder = path / network.folder if (path / network.folder).is_dir() else path
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    tensors, left = kept(network.rename(scaled(read(folder, network))))
    facts = {}
    if network.extra:
        extra = path / f"{network.extra}.safetensors"
        if not extra.is_file():
            raise UserError(f"{extra} is missing; it holds the layers that {network.name} adds.")
        tensors += [replace(t, name=f"{network.extra}.{t.name}") for t in scaled(read_header(extra))]
        added = read_json(path / f"{network.extra}.json")
        config[network.extra], facts = added.get("config", {}), added.get("facts", {})
    return Source(tensors, config, facts, left)


def read(folder: Path, network: Network) -> list:
    """All tensors of a network's files."""
    if folder.suffix == ".onnx" and network.name != "arcface":
        raise UserError(f"{folder} is a graph in ONNX, of which only arcface is read; take the PyTorch file of {network.name}.")
    if network.parts:
        return read_parts(folder, network.parts)
    if network.choose:
        files = [folder] if folder.is_file() else [p for p in sorted(folder.iterdir()) if p.suffix in WEIGHTS]
        return network.choose(folder, {file: read_tensors(file) for file in files})
    return [t for file in weight_files(folder, network) for t in read_tensors(file)]


def read_parts(folder: Path, parts: dict[str, str]) -> list:
    """The tensors of a network in several files, under the prefix that each file gives.

    The files lie in their folders or side by side, as PyTorch's or as safetensors.
    """
    found, absent = [], []
    for name, prefix in parts.items():
        places = [p.with_suffix(suffix) for p in (folder / name, folder / Path(name).name) for suffix in WEIGHTS]
        place = next((place for place in (folder / name, *places) if place.is_file()), None)
        if place:
            found += [replace(t, name=f"{prefix}.{t.name}") for t in read_tensors(place)]
        else:
            absent.append(name)
    if absent:
        raise UserError(f"{folder} has no {absent[0]}; it must hold {', '.join(parts)}.")
    return found


def read_tensors(file: Path) -> list:
    return unwrapped(READERS.get(file.suffix, read_header)(file))


def unwrapped(tensors: list) -> list:
    """The tensors without the wrapping of a publisher; what lies beside it comes under `beside.`."""
    for wrapper in WRAPPERS:
        prefix = re.compile(rf"{wrapper}\.")
        if inside := [replace(t, name=t.name[m.end() :]) for t in tensors if (m := prefix.match(t.name))]:
            beside = [replace(t, name=f"beside.{t.name}") for t in tensors if not prefix.match(t.name)]
            if not (beside and wrapper in BEFORE_ALL):
                return unwrapped(inside) + beside
    return tensors


def kept(tensors: list) -> tuple[list, list[str]]:
    """The tensors that may be weights, and in a sentence a kind those that are known to be none."""
    reasons = {t.name: next((why for name, why in HARMLESS.items() if re.fullmatch(name, t.name)), None) for t in tensors}
    by_reason = {why: [name for name in reasons if reasons[name] == why] for why in dict.fromkeys(reasons.values()) if why}
    left = [
        f"left out {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {why}"
        for why, names in by_reason.items()
    ]
    return [t for t in tensors if not reasons[t.name]], left


def weight_files(path: Path, network: Network) -> list[Path]:
    """The files of one network: the file, or what its folder holds, whole before half precision."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a file.")
    for stem in STEMS.get(network.file, ()):
        for name, index in ((stem, f"{stem}.index.json"), (half(stem), f"{stem}.index.fp16.json")):
            if (path / name).is_file():
                return [path / name]
            if (path / index).is_file():
                return shards(path / index)
    for folder in (path / "text_encoders", path) if network.alone else ():
        named = [p for p in folder.glob("*") if p.suffix in WEIGHTS and p.name.startswith(network.alone)]
        if named:
            return [max(named, key=lambda p: (p.stat().st_size, p.name))]  # the most precise of them
    there = sorted(p for p in path.iterdir() if p.is_file())
    for suffixes in ({".safetensors"}, PICKLES, {".onnx"}):
        others = [p for p in there if p.suffix in suffixes]
        if len(others) == 1:
            return others
    raise UserError(
        f"{path} holds neither {network.file} nor {network.file}.index.json; name the folder of the "
        f"pipeline, its {network.folder} folder, or one .safetensors or .pth file."
    )


def half(name: str) -> str:
    """The name of a file in half precision."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.fp16.{suffix}"


def shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise UserError(f"{index} has no weight_map of tensor and file names.")
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name:
            raise UserError(f"{index} names the file {name!r} outside its folder; it is refused.")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is absent; fetch the missing shard.")
    return [index.parent / name for name in files]


def read_json(path: Path) -> dict:
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(result, dict):
        raise UserError(f"{path} does not hold a JSON object.")
    return result


def local(src: str, folders: Iterable[str]) -> Path:
    """SRC itself if it exists, or the weights of the installed package of that name; else what the hub
    has of these folders of a pipeline."""
    path = Path(src)
    if path.exists():
        return path
    if found := packaged(src):
        return found
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", src):
        raise UserError(f"{src} does not exist{', and no package of that name is installed' * ('/' not in src)}.")
    try:
        from huggingface_hub import snapshot_download

        patterns = ["model_index.json", *(f"{folder}/*" for folder in folders)]
        return Path(snapshot_download(src, allow_patterns=patterns, ignore_patterns=UNUSED))
    except ImportError:
        raise UserError(f"{src} is not here; to fetch it from the hub, pip install huggingface-hub.") from None
    except Exception as error:
        raise UserError(
            f"{src} is not here, and the hub did not give it ({type(error).__name__}); give a "
            "local path, or see that there is a network, `hf auth login` was done and the "
            "model's licence accepted."
        ) from None


def packaged(name: str) -> Path | None:
    """The folder of weights in an installed package, which is not imported."""
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    folders = sorted({Path(f.locate()).parent for f in files if f.suffix in WEIGHTS})
    if len(folders) > 1:  # such as lpips's, whose newest version is the last
        folders = folders[-1:]
    return folders[0] if folders else None
