"""Videos to be compared: matched by name, and refused with the reason where they do not fit.

A clip has up to five videos, by role: the `result` of a method, the `reference`
that it should have become, the `driving` video whose motion it should have, the
`driver`, which is the same where somebody else drives, and the `source` picture.
Frames are read as they are needed, so that memory does not grow with length.
"""

import itertools
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.media import video
from svdp_jax.media.images import read_image, resize
from svdp_jax.preparation.ingest import SUFFIXES

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
STRETCH = 16  # frames held at a time
ASPECT = 0.02  # by which the shapes of two pictures of one thing may differ


class Clip(NamedTuple):
    """One result and what it is compared with.

    paths: by role. frames: how many are compared. places: by role, for each of them the frame of
    that video, where it is not the same one. size: (width, height) at which pictures are compared.
    notes: what was not as it should be, and what was done about it.
    """

    name: str
    paths: dict[str, Path]
    frames: int
    fps: Fraction
    size: tuple[int, int]
    places: dict[str, np.ndarray]
    notes: tuple[str, ...]


class Folders(NamedTuple):
    """Where each role's files lie, matched by name without suffix; None where there are none."""

    result: Path
    reference: Path | None = None
    driving: Path | None = None
    source: Path | None = None


def find(folder: Path, suffixes: set[str]) -> dict[str, Path]:
    """Files of a folder by name without suffix. UserError where there are none, or two of one name."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds videos.")
    files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in suffixes]
    result = {}
    for path in files:
        if path.stem in result:
            raise UserError(f"{path} and {result[path.stem]} have one name; keep one of them.")
        result[path.stem] = path
    if not files:
        raise UserError(f"{folder} holds no file ending in {', '.join(sorted(suffixes))}.")
    return result


def match(folders: Folders) -> tuple[list[Clip], dict[str, str]]:
    """The clips of the reference folder, or else of the driving one, that have a result which fits;
    by name, why others are refused.

    Without driving videos the reference drives, and there is no driver; without sources the
    reference's first frame is the source.
    """
    if not folders.reference and not folders.driving:
        raise UserError("results need something to be compared with: --reference, --driving, or both.")
    found = {
        role: find(folder, SUFFIXES | (PICTURES if role == "source" else set()))
        for role, folder in folders._asdict().items()
        if folder
    }
    results, wanted = found["result"], found.get("reference") or found["driving"]
    clips, refused = [], dict.fromkeys(results.keys() - wanted.keys(), "nothing of this name to compare it with")
    for name in wanted:
        try:
            clips.append(fitted(name, {role: files.get(name) for role, files in found.items()}))
        except UserError as error:
            refused[name] = str(error)
    return clips, dict(sorted(refused.items()))


def fitted(name: str, files: dict[str, Path | None]) -> Clip:
    """The clip of these files by role; UserError, with the reason, where they do not fit."""
    paths = {role: path for role, path in files.items() if path is not None}
    absent = [role for role in files if role not in paths]
    if absent:
        raise UserError(f"no {absent[0]} of this name")
    infos = {role: video.probe(path) for role, path in paths.items() if role != "source"}
    result, places, notes = infos.pop("result"), {}, []
    for role, info in infos.items():
        places[role] = aligned(role, result, info, notes)
    if "driving" in paths:
        paths, places = paths | {"driver": paths["driving"]}, places | {"driver": places["driving"]}
    size = (result.width, result.height)
    if "reference" in paths:
        size = shared_size(result, infos["reference"], notes)
        paths = {"source": paths["reference"], "driving": paths["reference"]} | paths
        places = {"driving": places["reference"]} | places
    return Clip(name, paths, result.frames, result.fps, size, places, tuple(notes))


def aligned(role: str, result: video.VideoInfo, other: video.VideoInfo, notes: list[str]) -> np.ndarray:
    """For each frame of the result the frame of the other video, one by one or by time."""
    rates = f"{float(result.fps):g} fps against {float(other.fps):g} of the {role}"
    same_rate = abs(result.fps / other.fps - 1) < 1e-3
    if result.frames == other.frames:
        if not same_rate:
            notes.append(f"{rates}: matched frame by frame, since there are equally many")
        return np.arange(result.frames)
    if same_rate or abs(result.duration - other.duration) > 1 / min(result.fps, other.fps):
        raise UserError(
            f"{result.frames} frames ({float(result.duration):.2f} s) against {other.frames} "
            f"({float(other.duration):.2f} s) of the {role}"
        )
    notes.append(f"{rates}: each frame is matched with the {role}'s nearest in time")
    times = np.arange(result.frames) * float(other.fps / result.fps)
    return np.minimum(np.round(times).astype(int), other.frames - 1)


def shared_size(result: video.VideoInfo, reference: video.VideoInfo, notes: list[str]) -> tuple[int, int]:
    """The reference's size, to which the result is scaled if it shows the same section."""
    sizes = [(info.width, info.height) for info in (result, reference)]
    texts = [f"{w}x{h}" for w, h in sizes]
    if abs(sizes[0][0] * sizes[1][1] / (sizes[0][1] * sizes[1][0]) - 1) > ASPECT:
        raise UserError(f"{texts[0]} pixels against {texts[1]} of the reference: not the same section")
    if sizes[0] != sizes[1]:
        notes.append(f"scaled from {texts[0]} to the {texts[1]} pixels of the reference")
    return sizes[1]


def frames(clip: Clip, role: str, which: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """The compared frames (y x 3) of one role in their own size, one at a time; or `which` of them.

    The source is one picture. UserError where a video ends before its header said it would.
    """
    path = clip.paths[role]
    if role == "source":
        yield read_image(path) if path.suffix.lower() in PICTURES else next(video.read_frames(path)).image
        return
    places = clip.places.get(role, np.arange(clip.frames))
    yield from picked(path, places if which is None else places[which])


def picked(path: Path, places: np.ndarray) -> Iterator[np.ndarray]:
    """The frames at these rising places of a video, some of them perhaps several times."""
    rest = iter(places)
    place, index = next(rest, None), -1
    for index, frame in enumerate(video.read_frames(path)):
        while place == index:
            yield frame.image
            place = next(rest, None)
        if place is None:
            return
    raise UserError(f"{path}: ends after {index + 1} frames, fewer than its header says")


def stretches(clip: Clip, roles: tuple[str, ...], overlap: int = 0) -> Iterator[tuple[np.ndarray, ...]]:
    """Consecutive frames of several roles side by side, at the clip's size: tuples of (f y x 3).

    f is `STRETCH` + `overlap`, and what is left at the end; the first `overlap` are the last of
    the stretch before.
    """
    streams = [(resize(x, clip.size) for x in frames(clip, role)) for role in roles]
    together, kept = zip(*streams, strict=True), []
    while new := list(itertools.islice(together, STRETCH + overlap - len(kept))):
        kept += new
        yield tuple(np.stack(column) for column in zip(*kept))
        kept = kept[len(kept) - overlap :] if overlap else []
