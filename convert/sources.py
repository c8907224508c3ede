"""Where checkpoints lie: diffusers folders, single files, names on the Hugging Face hub."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from convert import arcface, pickles
from convert.rules import Network
from convert.tensors import Tensor, read_header
from svdp_jax.errors import UserError

UNUSED = ["*.fp16*", "*.bin", "*.msgpack"]  # other copies of the same weights on the hub
PICKLES = {".pt", ".pth", ".ckpt", ".bin", ".pkl", ".model"}
# How files that are not safetensors are read, by suffix.
READERS: dict[str, Callable[[Path], list]] = dict.fromkeys(PICKLES, pickles.read) | {".onnx": arcface.read}


class Source(NamedTuple):
    """Tensors, config.json, and what a trained model tells beside its config."""

    tensors: list[Tensor]
    config: dict
    facts: dict


def find(src: str | Path, network: Network) -> Source:
    """The tensors and config.json of one network in SRC, which is a pipeline's folder, the
    network's own folder, or a file. Raises UserError where there are none."""
    path = Path(src)
    folder = path / network.folder if (path / network.folder).is_dir() else path
    tensors = (
        read_parts(folder, network.parts)
        if network.parts
        else [t for file in weight_files(folder, network) for t in read_tensors(file)]
    )
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    tensors, facts = network.rename(tensors), {}
    if network.extra:
        extra = path / f"{network.extra}.safetensors"
        if not extra.is_file():
            raise UserError(f"{extra} is missing; it holds the layers that {network.name} adds.")
        tensors += [replace(t, name=f"{network.extra}.{t.name}") for t in read_header(extra)]
        added = read_json(path / f"{network.extra}.json")
        config[network.extra], facts = added.get("config", {}), added.get("facts", {})
    return Source(tensors, config, facts)


def read_parts(folder: Path, parts: dict[str, str]) -> list[Tensor]:
    """The tensors of a network in several files, under the prefix that each file gives."""
    absent = [name for name in parts if not (folder / name).is_file()]
    if absent:
        raise UserError(f"{folder} has no {absent[0]}; it must hold {', '.join(parts)}.")
    return [replace(t, name=f"{prefix}.{t.name}") for name, prefix in parts.items() for t in read_tensors(folder / name)]


def read_tensors(file: Path) -> list[Tensor]:
    return READERS.get(file.suffix, read_header)(file)


def weight_files(path: Path, network: Network) -> list[Path]:
    """The files of one network: the file, or what its folder's index names."""
    if path.is_file():
        return [path]
    index, single = path / f"{network.file}.index.json", path / network.file
    if single.is_file():
        return [single]
    if index.is_file():
        return shards(index)
    there = sorted(p for p in path.iterdir() if p.is_file())
    for suffixes in ({".safetensors"}, PICKLES):
        others = [p for p in there if p.suffix in suffixes]
        if len(others) == 1:
            return others
    raise UserError(
        f"{path} holds neither {network.file} nor {index.name}; name the folder of the "
        f"pipeline, its {network.folder} folder, or one .safetensors or .pth file."
    )


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
    """SRC itself if it exists; else what the hub has of these folders of a pipeline."""
    path = Path(src)
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+", src):
        raise UserError(f"{src} does not exist.")
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
