"""What makes a run that run: its config, and the contents of what the config names, of the code, of the libraries.

    config.json        the config
    fingerprint.json   marks of contents; versions, hosts and devices, which may change

A file that has moved is the same file; another under its name is not.
"""

import ast
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import re
import typing
from pathlib import Path

import jax
import numpy as np

from svdp_jax import config as configs
from svdp_jax.buckets import storage
from svdp_jax.errors import UserError
from svdp_jax.files import MANIFEST, read_json, write_whole
from svdp_jax.training import records
from svdp_jax.values import declared
from svdp_jax.weights import adapter, checkpoint
from svdp_jax.weights.prompts import prompt_of

# Fields that name files: what is compared is what is in them, by these marks.
CONTENTS = {
    "data.path": "data",
    "prompt": "prompt",
    "start": "start",
    "teacher": "teacher",
    "backbone": "backbone",
    "model.codec.weights": "codec",
}
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "grain")
# The modules that decide the numbers of a run are these and all that they import, but for the last:
# they say what may be set, read and write, and go on without a part in what is learned.
DECIDING = ("training.step", "training.records", "training.start", "models.svdp", "models.small_vae")
BYSTANDERS = ("buckets", "config", "errors", "files", "values", "weights")


def fingerprint(config: configs.Config) -> dict:
    """What a run is, beside its config."""
    return {
        "data": "; ".join(dict.fromkeys(records.identity(staged.data) for staged in configs.by_stage(config))),
        "prompt": prompt_mark(config),
        "start": weights_mark(checkpoint.model_folder(Path(config.start)) if config.start else None),
        "teacher": weights_mark(adapter.taught_by(config) if config.teacher else None),
        "backbone": weights_mark(storage.here(config.backbone) if config.backbone else None),
        "codec": weights_mark(checkpoint.codec_folder(config.model.codec) if config.trains == "video" else None),
        "code": code(Path(__file__).parents[1]),
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "hosts": jax.process_count(),
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    }


def prompt_mark(config: configs.Config) -> str:
    """Hash of the encoded prompt itself; the file may tell more."""
    parts = [np.ascontiguousarray(part) for part in prompt_of(config)]
    return digest(b"\0".join(f"{part.shape} {part.dtype}".encode() + part.tobytes() for part in parts))


def weights_mark(folder: Path | None) -> str:
    """Hash of a folder's manifest, which has the checksum of every file."""
    return digest((folder / MANIFEST).read_bytes()) if folder else ""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def code(package: Path) -> str:
    """Hash of the modules that decide what a run learns."""
    todo, found = [(package / name.replace(".", "/")).with_suffix(".py") for name in DECIDING], {}
    while todo:
        path = todo.pop()
        if path in found or path.relative_to(package).with_suffix("").parts[0] in BYSTANDERS:
            continue
        found[path] = path.read_bytes()
        todo += imported(found[path], package)
    return digest(b"\0".join(found[path] for path in sorted(found)))


def imported(source: bytes, package: Path) -> list[Path]:
    """The package's own modules that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    paths = (package.parent / f"{name.replace('.', '/')}.py" for name in names if name.startswith(f"{package.name}."))
    return [path for path in paths if path.is_file()]


def write(workdir: Path, config: configs.Config) -> None:
    """Writes down what a run is."""
    for name, content in (("config.json", as_json(config)), ("fingerprint.json", fingerprint(config))):
        write_whole(workdir / name, json.dumps(content, indent=2))


def changes(workdir: Path, config: configs.Config) -> list[str]:
    """What is other now than when the run in a work folder was started, a clause each."""
    before, now = (flat(x) for x in (stored(workdir / "config.json"), as_json(config)))
    marks, here = read_json(workdir / "fingerprint.json"), fingerprint(config)
    if not before:
        return ["its config.json is missing or damaged, so that it cannot be compared"]
    told = {field for field, mark in CONTENTS.items() if mark in marks}  # runs of earlier versions have but one
    compared = [
        path for path in sorted(before | now) if path not in told and not re.sub(r"\[\d+\]", "", f"{path}.").startswith(free())
    ]
    found = [
        f"config.{path} is {declared.shown(now.get(path))} and was {declared.shown(before.get(path))}"
        for path in compared
        if now.get(path) != before.get(path)
    ]
    found += [
        f"what config.{field} names is not what it was started with"
        for field, mark in CONTENTS.items()
        if field in told and marks[mark] != here[mark]
    ]
    return found + ["the code of svdp_jax is not that it was started with"] * (marks.get("code") != here["code"])


def stored(path: Path) -> dict:
    """A run's config as it was written; a field that has been added since is as by default."""
    values = read_json(path)
    try:
        return as_json(declared.build(configs.Config, values, "config"))
    except UserError:
        return values  # an earlier version's, with fields that are no more


def free(kind=configs.Config, path: str = "") -> tuple[str, ...]:
    """The fields that may change when a run goes on, by the beginnings of their dotted paths."""
    found = ()
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        hint, marks = declared.declared(next(iter(typing.get_args(hint)), hint) if typing.get_origin(hint) is tuple else hint)
        if declared.FREE in marks:
            found += (f"{path}{name}.",)
        elif dataclasses.is_dataclass(hint):
            found += free(hint, f"{path}{name}.")
    return found


def flat(values: dict, prefix: str = "") -> dict:
    """Nested fields by dotted path, such as data.batch or stages[0].steps."""
    result = {}
    for name, value in values.items():
        many = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
        inner = {f"{name}[{i}]": item for i, item in enumerate(many)} if many else value
        path = prefix if many else f"{prefix}{name}."
        result |= flat(inner, path) if isinstance(inner, dict) else {f"{prefix}{name}": value}
    return result


def as_json(config: configs.Config) -> dict:
    return json.loads(json.dumps(dataclasses.asdict(config)))
