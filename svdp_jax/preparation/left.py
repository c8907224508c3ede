"""What the stages left in the folder of a preparation, read back."""

import json
from pathlib import Path

import numpy as np

from svdp_jax.faces import face
from svdp_jax.preparation import crops, ingest


def clips(out: Path, sources: list[ingest.Source] | list[Path]) -> list[crops.Clip]:
    """The accepted clips of all sources, or of folders named like them, in the order of their names."""
    listed = [read_json(out / "crops" / source.name / "clips.json") or {"clips": []} for source in sources]
    found = [crops.Clip(**clip | {"box": face.Box(*clip["box"])}) for about in listed for clip in about["clips"]]
    return sorted(found, key=lambda clip: clip.name)


def frames_of(out: Path, clip: crops.Clip) -> Path:
    return out / "crops" / clip.video / f"{clip.name.rsplit('-', 1)[1]}.frames"


def clip_track(out: Path, clip: crops.Clip) -> face.Track:
    """Where the face is, in pixels of the crops."""
    return crops.unpack(np.load(frames_of(out, clip).with_suffix(".npy")))


def masked(out: Path, found: list[crops.Clip]) -> list[crops.Clip]:
    """The clips whose masks are made and that no gate rejects since then."""
    about = {clip.name: read_json(out / "masks" / f"{clip.name}.json") for clip in found}
    return [clip for clip in found if about[clip.name] and not about[clip.name]["reason"]]


def paired(out: Path, found: list[crops.Clip]) -> list[tuple[crops.Clip, str]]:
    """The clips that somebody drives, and who."""
    about = {clip.name: read_json(out / "pairs" / f"{clip.name}.json") for clip in found}
    return [(clip, about[clip.name]["driver"]) for clip in found if about[clip.name] and about[clip.name]["driver"]]


def said_of(out: Path, clip: crops.Clip) -> dict[str, str]:
    """What the driver's pictures say of themselves; nothing where the clip drives itself."""
    return read_json(out / "pairs" / f"{clip.name}.json")["made_by"]


def driver_of(out: Path, clip: crops.Clip, driver: str) -> tuple[Path, np.ndarray]:
    """The file of the driver's frames, and the points (f, k) that outline what is kept of them."""
    if driver == clip.name:
        return frames_of(out, clip), np.load(out / "masks" / f"{clip.name}.npy")
    stem = out / "pairs" / clip.name
    return stem.with_suffix(".frames"), np.load(stem.with_suffix(".npy"))


def read_json(path: Path):
    """None where the file is not there (yet)."""
    try:
        return json.loads(path.read_text())
    except OSError:
        return None
