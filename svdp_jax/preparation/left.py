"""What the stages left in the folder of a preparation, read back.

A result counts where it was made from what is there now: outlines of other crops than those of today are none.
"""

from functools import cache
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


class Results:
    """What the results in a folder say. `read` looks at each once: who makes others asks for its `cache_clear`."""

    def __init__(self, out: Path):
        self.out, self.read = out, cache(read_json)

    def clips(self, sources: list[ingest.Source] | list[Path]) -> list[crops.Clip]:
        """The accepted clips of all sources, or of folders named like them, in the order of their names."""
        films, found = self.read(self.out / FILMS) or {}, []
        for source in sources:
            film = {key: value for key, value in films.get(source.name, {}).items() if key != "content"}
            about = self.read(self.out / "crops" / source.name / "clips.json") or {"clips": []}
            if not film and any("path" not in clip for clip in about["clips"]):
                raise UserError(
                    f"{self.out / FILMS} does not tell of {source.name}; give `python -m svdp_jax.prepare` this folder again."
                )
            found += [crops.Clip(**clip | film | {"box": face.Box(*clip["box"])}) for clip in about["clips"]]
        return sorted(found, key=lambda clip: clip.name)

    def mask_of(self, clip: crops.Clip) -> dict:
        return self._of("masks", clip)

    def pair_of(self, clip: crops.Clip) -> dict:
        return self._of("pairs", clip)

    def _of(self, stage: str, clip: crops.Clip) -> dict:
        """A result about a clip; empty where it is about other crops. Before results said this, there was one for each."""
        about = self.read(self.out / stage / f"{clip.name}.json") or {}
        return about if about.get("made_from", {}).get("crop", clip.digest) == clip.digest else {}

    def masked(self, found: list[crops.Clip]) -> list[crops.Clip]:
        """The clips whose masks are made and that no gate rejects since then."""
        return [clip for clip in found if (about := self.mask_of(clip)) and not about["reason"]]

    def paired(self, found: list[crops.Clip]) -> list[tuple[crops.Clip, str]]:
        """The clips that somebody drives, and who."""
        return [(clip, about["driver"]) for clip in found if (about := self.pair_of(clip)) and about["driver"]]


def frames_of(out: Path, clip: crops.Clip) -> Path:
    return out / "crops" / clip.video / f"{clip.name.rsplit('-', 1)[1]}.frames"


def clip_track(out: Path, clip: crops.Clip) -> face.Track:
    """Where the face is, in pixels of the crops."""
    return crops.unpack(np.load(frames_of(out, clip).with_suffix(".npy")))


def driver_of(out: Path, clip: crops.Clip, driver: str) -> tuple[Path, np.ndarray]:
    """The file of the driver's frames, and the points (f, k) that outline what is kept of them."""
    if driver == clip.name:
        return frames_of(out, clip), np.load(out / "masks" / f"{clip.name}.npy")
    stem = out / "pairs" / clip.name
    return stem.with_suffix(".frames"), np.load(stem.with_suffix(".npy"))
