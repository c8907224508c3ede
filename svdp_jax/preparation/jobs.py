"""What a stage is given to do, job by job, and what of it is done: every result says what it was made from.

Known tools (doit, joblib, redun, Bazel) agree on this much: a result carries digests of its inputs, one that was
made from the same stands, and what it holds is what the next one is made from, so that a change goes no
further than it reaches. Beside them the version of the code counts, and it is a number: to read it off the
sources makes everything anew for a comment, and overlooks the functions that they call.

The result of a job is a JSON file, written last, beside the files it speaks of. Before a job is done
again, its JSON goes: else, stopped halfway, it would speak of files that are no longer those.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from svdp_jax import config as configs
from svdp_jax.files import remove
from svdp_jax.preparation import encode
from svdp_jax.preparation.contents import digest

MADE_FROM, FILES = "made_from", "files"  # keys of every result
DATA = (".npy", ".frames", ".array_record")  # files that a result speaks of


@dataclass(frozen=True)
class Settings:
    """All that the results depend on beside the input. Fields in the order of the stages that read them."""

    longest: float = 10.0  # seconds of a clip
    landmarks: str = "windows"
    size: int = 512  # pixels of a crop
    limits: tuple[str, ...] = ()  # changed gates
    pairs: str = "liveportrait"
    pair_weights: str = ""
    seed: int = 0
    codec: configs.Codec = dataclasses.field(default_factory=configs.Codec)
    licence: str = "unknown"  # of videos whose list gives none


class Job(NamedTuple):
    """One element of a stage; travels to the worker that does it."""

    work: Callable[["Job", Callable[[int], None]], None]  # (job, advance); importable
    out: Path
    settings: Settings
    item: Any  # a Source, Clip, Pairing or Shard, as the stage takes them
    result: Path  # the JSON file
    made_from: dict  # `plain`, by names in which the user is told of a change


def plain(value):
    """As JSON reads it again, so that it can be compared with what was read."""
    return json.loads(json.dumps(value))


def do(job: Job, advance: Callable[[int], None]) -> None:
    for suffix in (".json", *DATA):
        job.result.with_suffix(suffix).unlink(missing_ok=True)
    job.work(job, advance)


def finish(job: Job, about: dict, files: list[Path], result: Path | None = None) -> None:
    """Writes the result of a job that has written these files. result: where it is until all of it is renamed."""
    held = {path.name: {"bytes": path.stat().st_size, "sha256": encode.file_hash(path)} for path in files}
    encode.write_json(result or job.result, about | {MADE_FROM: job.made_from, FILES: held})


def done(job: Job, read: Callable[[Path], dict | None] = encode.read_json) -> bool:
    """Whether the result is there, made from the same, and all of its files too."""
    about = read(job.result)
    return about is not None and about.get(MADE_FROM) == job.made_from and not _missing(job, about)


def _missing(job: Job, about: dict) -> bool:
    def size(name: str) -> int | None:
        try:
            return (job.result.parent / name).stat().st_size
        except OSError:
            return None

    return any(size(name) != held["bytes"] for name, held in about[FILES].items())


def held(about: dict | None) -> str:
    """Digest of all that a result says and holds, whatever it was made from; "" where there is none."""
    return digest({key: value for key, value in about.items() if key != MADE_FROM}) if about else ""


# What is told of a stage before it begins


def sweep(folder: Path, jobs: list[Job]) -> int:
    """Removes what no job makes, and what was left half-written; returns how many results that were."""
    wanted = {job.result.relative_to(folder).parts[0].removesuffix(".json") for job in jobs}
    gone = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        name = path.name if path.is_dir() else path.stem
        if path.name.startswith("."):
            if path.suffix in (".partial", ".removed"):
                remove(path)
        elif name not in wanted and (path.is_dir() or path.suffix in (".json", *DATA)) and path.name != encode.MANIFEST:
            gone.add(name)
            remove(path)
    return len(gone)


def changes(todo: list[Job]) -> Counter:
    """Why these jobs are not done: how many are `new`, and how often each of their inputs changed."""
    counts = Counter()
    for job in todo:
        about = encode.read_json(job.result)
        before = (about or {}).get(MADE_FROM, {})
        changed = [f"{name} changed" for name, value in job.made_from.items() if before.get(name) != value]
        counts.update(["new"] if about is None else changed or ["files missing"])
    return counts


def told(title: str, items: str, jobs: list[Job], todo: list[Job], gone: int) -> str:
    """Such as "Crops: 4 of 9 films; size changed: 3, new: 1; gone: 2"."""
    why = ", ".join(f"{what}: {count}" for what, count in changes(todo).items())
    parts = [f"{len(todo)} of {len(jobs)} {items}"] * bool(todo) + [why] * bool(todo) + [f"gone: {gone}"] * bool(gone)
    return f"{title}: {'; '.join(parts)}"
