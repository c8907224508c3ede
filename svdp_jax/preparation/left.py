"""What the stages left in the folder of a preparation, read back.

A result counts where it was made from what is there now: outlines of other crops than those of today are none.
"""

from pathlib import Path

import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.faces import face
from svdp_jax.preparation import crops, ingest
from svdp_jax.preparation.encode import read_json, write_json

FILMS = "films.json"  # of which films and people the clips are; no stage but the last asks for it


def write_films(out: Path, sources: list[ingest.Source]) -> None:
    about = {s.name: {"path": s.path, "person": s.person, "licence": s.licence, "content": s.content} for s in sources}
    write_json(out / FILMS, about)


def clips(out: Path, sources: list[ingest.Source] | list[Path]) -> list[crops.Clip]:
    """The accepted clips of all sources, or of folders named like them, in the order of their names."""
    films, found = read_json(out / FILMS) or {}, []
    for source in sources:
        film = {key: value for key, value in films.get(source.name, {}).items() if key != "content"}
        about = read_json(out / "crops" / source.name / "clips.json") or {"clips": []}
        if not film and any("path" not in clip for clip in about["clips"]):
            raise UserError(
                f"{out / FILMS} does not tell of {source.name}; give `python -m svdp_jax.prepare` this folder again."
            )
        found += [crops.Clip(**clip | film | {"box": face.Box(*clip["box"])}) for clip in about["clips"]]
    return sorted(found, key=lambda clip: clip.name)


def frames_of(out: Path, clip: crops.Clip) -> Path:
    return out / "crops" / clip.video / f"{clip.name.rsplit('-', 1)[1]}.frames"


def clip_track(out: Path, clip: crops.Clip) -> face.Track:
    """Where the face is, in pixels of the crops."""
    return crops.unpack(np.load(frames_of(out, clip).with_suffix(".npy")))


def mask_of(out: Path, clip: crops.Clip) -> dict:
    return _of(out / "masks", clip)


def pair_of(out: Path, clip: crops.Clip) -> dict:
    return _of(out / "pairs", clip)


def _of(folder: Path, clip: crops.Clip) -> dict:
    """A result about a clip; empty where it is about other crops. Before results said this, there was one for each."""
    about = read_json(folder / f"{clip.name}.json") or {}
    return about if about.get("made_from", {}).get("crop", clip.digest) == clip.digest else {}


def masked(out: Path, found: list[crops.Clip]) -> list[crops.Clip]:
    """The clips whose masks are made and that no gate rejects since then."""
    about = {clip.name: mask_of(out, clip) for clip in found}
    return [clip for clip in found if about[clip.name] and not about[clip.name]["reason"]]


def paired(out: Path, found: list[crops.Clip]) -> list[tuple[crops.Clip, str]]:
    """The clips that somebody drives, and who."""
    about = {clip.name: pair_of(out, clip) for clip in found}
    return [(clip, about[clip.name]["driver"]) for clip in found if about[clip.name] and about[clip.name]["driver"]]


def driver_of(out: Path, clip: crops.Clip, driver: str) -> tuple[Path, np.ndarray]:
    """The file of the driver's frames, and the points (f, k) that outline what is kept of them."""
    if driver == clip.name:
        return frames_of(out, clip), np.load(out / "masks" / f"{clip.name}.npy")
    stem = out / "pairs" / clip.name
    return stem.with_suffix(".frames"), np.load(stem.with_suffix(".npy"))
