"""People that a model was not trained on: clips from a folder of videos, or from a preparation of `svdp_jax.prepare`.

A clip is cropped when it is asked for. Of videos, faces are found and windows kept as `animate` does;
of a preparation, its stored crops and masks are taken.
"""

import logging
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from svdp_jax import config as configs
from svdp_jax.buckets import storage
from svdp_jax.errors import UserError
from svdp_jax.faces import face, masks
from svdp_jax.faces.driving import DrivingFrame, driving_frames, prepare_driving
from svdp_jax.media import video
from svdp_jax.preparation import crops, encode, left
from svdp_jax.preparation.ingest import SUFFIXES, below

SEEN = "the model was trained on this person"


class Portrait(NamedTuple):
    """The crops of a clip, all of one size, in which `track` tells the face; with the video that has its sound."""

    frames: Callable[[], Iterator[DrivingFrame]]  # anew with every call
    track: face.Track
    fps: Fraction
    sound: Path | None

    def first(self) -> np.ndarray:
        """The crop of the first frame: the source picture, where the clip is one's source."""
        return next(self.frames()).crop


class Clip(NamedTuple):
    """A clip of one person. portrait: its crops, by their size; UserError where no face is found."""

    name: str
    person: str
    path: Path  # of the video it was in
    portrait: Callable[[int], Portrait]


class Found(NamedTuple):
    """Clips of a folder, those left out with the reasons, and the size of its crops, None where any is possible."""

    clips: list[Clip]
    refused: dict[str, str]
    size: int | None


def find(folder: Path, data: configs.Data) -> Found:
    """The clips whose people a model trained on `data` has not seen. UserError where there are none."""
    folder = storage.here(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds videos, or that svdp_jax.prepare made.")
    clips, size = prepared(folder) if (folder / "settings.json").is_file() else (videos(folder), None)
    known = seen(data)
    refused = {clip.name: SEEN for clip in clips if known(clip)}
    if len(refused) == len(clips):
        raise UserError(f"{folder} holds only people that the model was trained on; score it on other people.")
    return Found([clip for clip in clips if clip.name not in refused], refused, size)


def seen(data: configs.Data) -> Callable[[Clip], bool]:
    """Whether a clip is of somebody in this data: by its file, and in records by the person's name too."""
    folder = storage.here(data.path).resolve()
    if data.source != "toy" and not folder.is_dir():
        logging.warning("%s, which the model was trained on, is not here: nobody can be left out for being in it.", folder)
    if data.source == "toy" or not folder.is_dir():
        return lambda clip: False
    if data.source == "videos":
        return lambda clip: clip.path.resolve().is_relative_to(folder)
    _, manifest = encode.read_manifest(folder)
    people = {entry["person"] for entry in manifest["clips"]}
    paths = {Path(clip.path).resolve() for clip in left.Results(folder).clips(cut(folder))}
    return lambda clip: clip.person in people or clip.path.resolve() in paths


# Videos


def videos(folder: Path) -> list[Clip]:
    """Those of one subfolder are of one person, else each is of a person of its own."""
    clips = {}
    for path in below(folder):
        parts = path.relative_to(folder).with_suffix("").parts
        name = "_".join(parts)
        if name in clips:
            raise UserError(f"{path} and {clips[name].path} would both be called {name}; rename one of them.")
        clips[name] = Clip(name, parts[0], path, cache(partial(of_video, path)))
    if not clips:
        raise UserError(f"{folder} holds no video ending in {', '.join(sorted(SUFFIXES))}.")
    return list(clips.values())


def of_video(path: Path, size: int) -> Portrait:
    driving = prepare_driving(path, size)
    track = driving.track._replace(faces=face.in_crop(driving.track.faces, driving.box, size))
    return Portrait(lambda: driving_frames(driving), track, video.probe(path).fps, path)


# Preparations


def prepared(out: Path) -> tuple[list[Clip], int]:
    """The clips that passed every gate, whether somebody drives them or not, and the size of their crops."""
    results = left.Results(out)
    found = results.masked(results.clips(cut(out)))
    if not found:
        raise UserError(f"{out} holds no clip with masks; end what `python -m svdp_jax.prepare VIDEOS {out}` began.")
    clips = [Clip(clip.name, clip.person, Path(clip.path), partial(of_preparation, out, clip)) for clip in found]
    return clips, results.read(out / "settings.json")["size"]


def cut(out: Path) -> list[Path]:
    """The folders of the videos whose crops are there."""
    return sorted((out / "crops").glob("[!.]*"))


def of_preparation(out: Path, clip: crops.Clip, size: int) -> Portrait:
    """size: that of the stored crops. They have no sound."""
    rate = Fraction(clip.fps).limit_denominator(1001) or Fraction(1)  # one frame alone has none
    points = np.load(out / "masks" / f"{clip.name}.npy")

    def frames() -> Iterator[DrivingFrame]:
        for index, (crop, outlines) in enumerate(zip(crops.read(left.frames_of(out, clip)), points, strict=True)):
            yield DrivingFrame(crop, face.mask_driving(crop, masks.mask(outlines, size)), index / rate)

    return Portrait(frames, left.clip_track(out, clip), rate, None)
