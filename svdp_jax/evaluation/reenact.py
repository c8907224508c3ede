"""Makes the videos of an evaluation: each method animates people, one after the other, from the same crops."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from svdp_jax.animator import Animator
from svdp_jax.engines.liveportrait import LivePortraitEngine
from svdp_jax.errors import UserError
from svdp_jax.evaluation import measure
from svdp_jax.evaluation.clips import Folders
from svdp_jax.evaluation.unseen import Clip, Portrait
from svdp_jax.faces import face
from svdp_jax.media.images import write_image
from svdp_jax.media.writer import VideoWriter


class Pair(NamedTuple):
    """A clip that drives, and the one whose first frame is the source."""

    source: Clip
    driving: Clip


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


def paired(clips: list[Clip], protocol: str) -> list[Pair]:
    people = [clip.person for clip in clips]
    return [Pair(clips[PROTOCOLS[protocol](i, people)], clip) for i, clip in enumerate(clips)]


# Methods


class Method(NamedTuple):
    """Something that animates. make: from a source's and a driver's crops, a picture of that size for every frame
    of the driver. size: that the crops must have, None where any will do. tags: of the files, `animator.provenance`."""

    name: str
    make: Callable[[Portrait, Portrait], Iterator[np.ndarray]]
    size: int | None
    tags: dict[str, str]


def animated(animator: Animator) -> Method:
    """An engine, in its own framing of the crops, put back into the source's."""
    engine, framing = animator.engine, animator.engine.framing

    def make(source: Portrait, driving: Portrait) -> Iterator[np.ndarray]:
        picture, seen = source.first(), face.at(source.track, 0)
        place, crop, driver = framing.inside(picture, seen, driving.frames(), driving.track.faces)
        return (framing.paste(picture, place, made) for made in engine.play(crop, driver))

    return Method(engine.name, make, framing.inside_size, animator.provenance)


def baseline(weights: Path) -> Method:
    """LivePortrait."""
    folder = weights / "liveportrait"
    if not folder.is_dir():
        raise UserError(f"--method liveportrait: {measure.no_weights('liveportrait', weights)}.")
    return animated(Animator(LivePortraitEngine.load(folder)))


# By the name of --method: a folder of converted networks to a method.
BASELINES: dict[str, Callable[[Path], Method]] = {"liveportrait": baseline}


# Videos


def reenact(
    methods: list[Method], pairs: list[Pair], size: int, protocol: str, folder: Path
) -> tuple[dict[str, Folders], dict[str, dict[str, str]]]:
    """Animates all pairs into folders of results, drivers and sources, all cropped alike, `size` pixels a side.

    Returns, by the method's name, its folders, and by clip why some could not be made.
    """
    folders = {m.name: Folders(folder / m.name, None, folder / "driving", folder / "source") for m in methods}
    for path in {path for each in folders.values() for path in filter(None, each)}:
        path.mkdir(parents=True)
    refused = {method.name: {} for method in methods}
    for pair in tqdm(pairs, desc="Animating", unit="clip"):
        for method in methods:
            try:
                animate(method, pair, size, folder)
            except UserError as error:
                refused[method.name][pair.driving.name] = str(error)
    for name, reasons in refused.items():
        if len(reasons) == len(pairs):
            raise UserError(f"{name} could animate no clip; the first: {reasons[pairs[0].driving.name]}")
    if protocol == "self":
        folders = {name: each._replace(reference=each.driving, driving=None) for name, each in folders.items()}
    return folders, refused


def animate(method: Method, pair: Pair, size: int, folder: Path) -> None:
    """One pair: the crops of driver and source, unless another method made them, and the result, each whole or absent."""
    source, driving = (clip.portrait(size) for clip in (pair.source, pair.driving))
    name = f"{pair.driving.name}.mp4"
    if not (folder / "driving" / name).exists():
        write_image(folder / "source" / f"{pair.driving.name}.png", np.ascontiguousarray(source.first()))
        write(folder / "driving" / name, (frame.crop for frame in driving.frames()), driving)
    write(folder / method.name / name, method.make(source, driving), driving, method.tags)


def write(path: Path, pictures: Iterator[np.ndarray], driving: Portrait, tags: dict[str, str] | None = None) -> None:
    """With the rate and the sound of the driver."""
    with VideoWriter(path, driving.fps, driving.sound, tags) as writer:
        for picture in pictures:
            writer.write(picture)
