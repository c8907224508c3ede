"""Makes the videos of an evaluation: a model animates people it was not trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from svdp_jax import config as configs
from svdp_jax.animator import Animator
from svdp_jax.clips import Folders
from svdp_jax.data import face, video
from svdp_jax.data.ingest import SUFFIXES, below
from svdp_jax.errors import UserError


class Pair(NamedTuple):
    """A driving video, and the video whose first frame is the source."""

    name: str
    source: Path
    driving: Path


def own(index: int, people: list[str]) -> int:
    """Protocol self: every clip drives its own first frame."""
    return index


def another(index: int, people: list[str]) -> int:
    """Protocol cross: a clip drives the next person's first frame, round and round."""
    following = [i % len(people) for i in range(index + 1, index + len(people))]
    other = next((i for i in following if people[i] != people[index]), None)
    if other is None:
        raise UserError("protocol cross needs videos of two people or more: a subfolder for each person, or one video each.")
    return other


PROTOCOLS: dict[str, Callable[[int, list[str]], int]] = {"self": own, "cross": another}


def unseen(folder: Path, protocol: str, data: configs.Data) -> list[Pair]:
    """Pairs from a folder of videos. UserError where the model, trained on `data`, has seen them."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; name one that holds videos.")
    paths = below(folder)
    if not paths:
        raise UserError(f"{folder} holds no video ending in {', '.join(sorted(SUFFIXES))}.")
    if data.source != "toy":
        seen = [p for p in paths if p.resolve().is_relative_to(Path(data.path).resolve())]
        if seen:
            raise UserError(f"{seen[0]} is among the videos the model was trained on; score it on other people.")
    parts = [path.relative_to(folder).with_suffix("").parts for path in paths]
    people, names = [part[0] for part in parts], ["_".join(part) for part in parts]
    chosen = PROTOCOLS[protocol]
    return [Pair(names[i], paths[chosen(i, people)], paths[i]) for i in range(len(paths))]


def reenact(
    animator: Animator, pairs: list[Pair], protocol: str, folder: Path
) -> tuple[dict[str, Folders], dict[str, str]]:
    """Animates all pairs into folders of results, drivers and sources, all cropped alike.

    Returns the folders by the model's name, and by clip why some could not be made.
    """
    name = animator.config.name
    folders = Folders(folder / name, None, folder / "driving", folder / "source")
    for path in filter(None, folders):
        path.mkdir(parents=True)
    refused = {}
    for pair in tqdm(pairs, desc="Animating", unit="clip"):
        try:
            animate(animator, pair, folders)
        except UserError as error:
            refused[pair.name] = str(error)
    if len(refused) == len(pairs):
        raise UserError(f"no video could be animated; the first: {refused[pairs[0].name]}")
    if protocol == "self":
        folders = folders._replace(reference=folders.driving, driving=None)
    return {name: folders}, refused


def animate(animator: Animator, pair: Pair, folders: Folders) -> None:
    """One pair: the crops of driver and source, and the result, each complete or absent."""
    size, first = animator.config.data.size, next(video.read_frames(pair.source)).image
    source = face.crop(first, face.crop_box(face.track([first], name=str(pair.source)).faces), size)
    driving, fps = face.prepare_driving(pair.driving, size), video.probe(pair.driving).fps
    paths = [path / f"{pair.name}.mp4" for path in (folders.driving, folders.result)]
    made = video.VideoWriter(paths[1], fps, pair.driving, animator.provenance)
    with video.VideoWriter(paths[0], fps, pair.driving) as crops, made:

        def masked():
            for frame in face.driving_frames(driving):
                crops.write(frame.crop, frame.time)
                yield frame.masked[None]

        for picture in animator.generate(source[None], masked()):
            made.write(picture[0])
    video.write_image(folders.source / f"{pair.name}.png", np.ascontiguousarray(source))
