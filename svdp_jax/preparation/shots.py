"""From a long video to shots of one face each, in one pass that holds one frame at a time.

A shot ends at a scene change, at the end of a listed segment, or when it is `longest` seconds old.
What is measured on the way, a shot's facts, is what `preparation.gates` decides by.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import cv2
import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.faces import face, follow as following
from svdp_jax.faces.landmarks import Reader
from svdp_jax.media import video
from svdp_jax.media.images import resize
from svdp_jax.preparation.ingest import Segment

SMALL = (32, 18)  # pixels of the copy in which changes are measured
CUT, CUT_RATIO = 6.0, 5.0  # grey levels of change that make a cut, and how many times the usual
USUAL = 12  # frames that say what is usual
FROZEN = 0.02  # grey levels; less than this is the frame before again
COUNT_EVERY = 50  # frames between searches for further faces
RIVAL = 0.5  # share of the largest face's size from which another one matters
THUMB = 96  # pixels


class Shot(NamedTuple):
    """Frames first .. first + count - 1 of a video. The track is in pixels of the whole picture; None without a face."""

    first: int
    count: int
    fps: float
    track: face.Track | None
    facts: dict[str, float]
    thumb: np.ndarray  # the middle of it, roughly


class _View(NamedTuple):
    """What is looked at of one frame: the listed region, whose corner is x + iy in the whole picture."""

    shot: int
    index: int
    time: Fraction
    image: np.ndarray
    corner: complex
    change: float  # grey levels since the frame before


def follow(
    frames: Iterable[video.Frame], segments: tuple[Segment, ...], longest: float, given: Reader | None = None
) -> Iterator[Shot]:
    """The shots of a video in order, each with the track of its largest face, or that of `given` landmarks."""
    views = _views(frames, segments, longest)
    for _, group in itertools.groupby(views, key=lambda view: view.shot):
        yield _shot(group, given)


def _views(frames, segments, longest) -> Iterator[_View]:
    shot, segment, before, usual, began = -1, None, None, deque(maxlen=USUAL), Fraction(0)
    longest = Fraction(longest).limit_denominator(1000)  # 0.8 is a little more than four fifths
    for index, (image, time) in enumerate(frames):
        now = next((s for s in segments if s.holds(index, time)), None)
        if now is None:
            segment = None
            continue
        rows, columns = now.pixels(*image.shape[:2])
        image = image[rows, columns]
        small = cv2.resize(image, SMALL, interpolation=cv2.INTER_AREA).astype(np.float32)
        change = 0.0 if before is None or segment is not now else float(abs(small - before).mean())
        cut = change > max(CUT, CUT_RATIO * float(np.median(usual or [0])))
        usual.append(change)  # a cut's too: where every frame is another, none of them is a cut
        if segment is not now or cut or time - began >= longest:
            shot, began, change = shot + 1, time, 0.0
        segment, before = now, small
        yield _View(shot, index, time, image, columns.start + 1j * rows.start, change)


class _Witness:
    """Sees every view of a shot go by and remembers a few numbers."""

    def __init__(self):
        self.changes, self.faces, self.times = [], [], []

    def images(self, views: Iterable[_View]) -> Iterator[np.ndarray]:
        for number, view in enumerate(views):
            if number == 0:
                self.first, self.corner = view.index, view.corner
            if number % COUNT_EVERY == 0:
                sizes = [f.size for f in following.detect(view.image, tiled=False)]
                self.faces.append(sum(size > RIVAL * sizes[0] for size in sizes))
                self.thumb = resize(view.image, _thumb_size(view.image))
            self.changes.append(view.change)
            self.times.append(view.time)
            yield view.image


def _thumb_size(image) -> tuple[int, int]:
    return max(1, round(image.shape[1] * THUMB / image.shape[0])), THUMB


def _shot(views: Iterable[_View], given: Reader | None) -> Shot:
    witness = _Witness()
    track = _track(witness, views, given)
    count = len(witness.times)
    span = witness.times[-1] - witness.times[0]
    fps = float((count - 1) / span) if span else 0.0
    facts = {
        "seconds": count / fps if fps else 0.0,
        "faces": float(max(witness.faces)),
        "frozen": float(np.mean(np.array(witness.changes[1:] or [0]) < FROZEN)),
        "found": 0.0,
    }
    return Shot(witness.first, count, fps, track, facts | (seen_facts(track) if track else {}), witness.thumb)


def _track(witness: _Witness, views: Iterable[_View], given: Reader | None) -> face.Track | None:
    """The track in pixels of the whole picture, None where no face is seen; the witness sees all views."""
    if given is None:
        try:
            track = following.track(witness.images(views))
        except UserError:
            return None
        return track._replace(faces=face.shifted(track.faces, witness.corner))
    count = sum(1 for _ in witness.images(views))
    found = given(witness.first, count)
    return found and found.track


def seen_facts(track: face.Track) -> dict[str, float]:
    """What a track alone tells of a clip, for `preparation.gates`."""
    faces = track.faces
    turned = {} if faces.yaw is None else {"yaw": float(np.quantile(abs(faces.yaw), 0.95))}
    return turned | {
        "found": float(track.found.mean()),
        "face": float(np.median(faces.size)),
        "crop": float(face.crop_box(faces).side),
        "confidence": float(faces.confidence[track.found].mean()),
    }
