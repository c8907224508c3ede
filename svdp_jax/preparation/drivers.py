"""Who drives each clip: person B making the motion of the clip's own person A, or A itself.

    self         A drives itself; kept regions can be copied, so the model may learn looks from the driver
    toy          B is drawn with A's true motion; only for footage of the toy world
    liveportrait LivePortrait animates a picture of B with A's clip

B is drawn from the other people of the set, from a seed and the clips' names alone; where the result
is rejected, the next B is tried.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from svdp_jax.faces import face
from svdp_jax.preparation import crops
from svdp_jax.toy import footage

TRIES = 4  # people tried for a clip


class Stored(NamedTuple):
    """A clip and the file of its crops."""

    clip: crops.Clip
    frames: Path
    source: int  # the frame that makes the best source picture


def candidates(clips: list[crops.Clip], seed: int, alike: list[tuple[str, str]]) -> list[list[crops.Clip]]:
    """For each clip, those of other people, each person once, in the order in which they are tried.

    alike: names of films that do not drive each other. Clips and seed give every two clips a random number,
    of which the least are taken: who joins the set, or leaves it, changes little for the others.
    """
    if not clips:
        return []
    keys = np.array([_key(f"{seed} {clip.name}") for clip in clips], np.uint64)
    people = np.unique([clip.person for clip in clips], return_inverse=True)[1]
    films, apart = np.array([clip.video for clip in clips]), {}
    for a, b in alike:
        apart.setdefault(a, []).append(b)
        apart.setdefault(b, []).append(a)
    result = []
    for index, clip in enumerate(clips):
        order, taken, free = _mixed(keys[index : index + 1], keys), [], people != people[index]
        for film in apart.get(clip.video, []):
            free &= films != film
        while len(taken) < TRIES and free.any():
            best = int(np.argmin(np.where(free, order, LAST)))
            taken.append(clips[best])
            free &= people != people[best]
        result.append(taken)
    return result


LAST = np.uint64(2**64 - 1)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _mixed(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Numbers as good as random, of two keys each, by the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = many + one * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Maker(NamedTuple):
    """How a driver is made: frames (size, size, 3), the points (f, k) that outline what is kept of them,
    and why the result is rejected, empty where it is not."""

    make: Callable[[Stored, Stored, int], Iterator[np.ndarray]]
    points: Callable[[Stored, Stored, Path, int], np.ndarray]
    judge: Callable[[Stored, Stored, Path], str]
    scores: Callable[[], dict[str, float]] = dict  # the measures that the last judgement was made of


def toy_frames(a: Stored, b: Stored, size: int) -> Iterator[np.ndarray]:
    """B, as the toy world draws it, in A's motion and A's crop."""
    truth, who = footage.load(Path(a.clip.path)), footage.load(Path(b.clip.path)).identity
    for picture in footage.pictures(truth, who, a.clip.first, a.clip.count):
        yield face.crop(picture, a.clip.box, size)


def toy_points(a: Stored, b: Stored, _: Path, size: int) -> np.ndarray:
    truth, who = footage.load(Path(a.clip.path)), footage.load(Path(b.clip.path)).identity
    points = footage.outlines(truth, who, a.clip.first, a.clip.count)
    return (points - (a.clip.box.left + 1j * a.clip.box.top)) * size / a.clip.box.side


# By the name of --pairs: a folder of weights to a maker. LivePortrait's, which is a network, comes
# from `preparation.pairs`.
MAKERS: dict[str, Callable[[str], Maker]] = {"toy": lambda _: Maker(toy_frames, toy_points, lambda a, b, frames: "")}


class Drawn(NamedTuple):
    driver: str  # name of B's clip; empty if all were rejected
    rejected: list[tuple[str, str]]  # name, why
    scores: dict[str, float]  # of the driver, by the gates' names


def draw(
    a: Stored, others: list[Stored], maker: Maker, size: int, target: Path, metadata: dict[str, str]
) -> tuple[Drawn, np.ndarray | None]:
    """Writes the frames of the first acceptable driver, with their metadata, to `target`; with them come its points."""
    rejected = []
    for b in others:
        with crops.Writer(target, metadata) as writer:
            for frame in maker.make(a, b, size):
                writer.write(frame)
        why = maker.judge(a, b, target)
        if not why:
            return Drawn(b.clip.name, rejected, maker.scores()), maker.points(a, b, target, size)
        rejected.append((b.clip.name, why))
        target.unlink()
    return Drawn("", rejected, {}), None
