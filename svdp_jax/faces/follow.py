"""Faces in pictures and videos: found, then followed from frame to frame.

By networks where they are (`faces.networks`): a detector finds a face, a mesh confirms it, and from then
on the mesh of each frame is looked for where the last one lay. Else by cascades (`faces.cascades`).
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.faces import cascades, detector, mesh, motion, networks
from svdp_jax.faces.face import Face, Track, at, moved

SEARCH_EVERY = 5  # frames without a face between searches
AROUND = 2.5  # side of the part that is searched first where a face was lost, in sides of its box
STRAY = 0.6  # sides of the box by which a face may move from frame to frame
SMOOTHING = 0.5  # frames; little, since speech opens and shuts a mouth within four of them
LEAST_FOUND = 0.2  # share of the frames of a clip in which its face must be seen
HELP = (
    "give a face that looks ahead, a tenth of the picture or larger; or --source-crop none for a portrait that is cropped "
    "already, --landmarks for a driver"
)


class Found(NamedTuple):
    """A frame in which the face is seen. anew: it was searched for, rather than followed from the frame before."""

    mesh: mesh.Mesh
    anew: bool


def detect(image: np.ndarray, tiled: bool = True) -> list[Face]:
    """Faces in an (h, w, 3) uint8 picture, the largest first. tiled: small ones are looked for where there is no large one."""
    if files := networks.located():
        return [mesh.face_of(seen.mesh) for seen in detector.find(files, image, tiled)]
    grey, scale = cascades.search_copy(image)
    return [moved(face, 1 / scale, 0) for face in cascades.find(grey)]


def track(images: Iterable[np.ndarray], pick: int = 0, name: str = "picture") -> Track:
    """Follows one face through a clip: the `pick`-th largest, from 0, of the first frame that has one.

    Only a few numbers per frame are kept. Frames without a face are bridged between their neighbours.
    UserError, naming `name`, if no face is seen, in too few frames, or fewer faces than asked for.
    """
    choose = lambda found: chosen(found, pick, name)
    files = networks.located()
    seen = _gathered(meshes(files, images, choose)) if files else motion.track(images, choose)
    if seen is None:
        raise UserError(f"{name}: no face is found; {HELP}{'' if files else f'. Also, {networks.NONE}'}.")
    if seen.found.mean() < LEAST_FOUND:
        raise UserError(f"{name}: a face is seen in only {seen.found.sum()} of {len(seen.found)} frames; {HELP}.")
    return seen


def one(image: np.ndarray, pick: int = 0, name: str = "picture") -> Face:
    """The `pick`-th largest face of a picture; UserError where there is none."""
    return at(track([image], pick, name), 0)


def chosen(found: list, pick: int, name: str):
    """The `pick`-th of what was found, None where nothing was; UserError where there are fewer."""
    if found and pick >= len(found):
        faces = "1 face is" if len(found) == 1 else f"{len(found)} faces are"
        raise UserError(f"{name}: {faces} found, so --face {pick} (--driving-face for a video) is none; count from 0.")
    return found[pick] if found else None


def points(images: Iterable[np.ndarray], name: str) -> np.ndarray:
    """(f, 478) complex: the mesh of a clip's face with both irises, bridged; UserError, naming `name`, without a face."""
    files, rows = networks.located(), []
    for image, found in _beside(images, lambda stream: meshes(files, stream, lambda seen: chosen(seen, 0, name))):
        rows.append(None if found is None else np.append(found.mesh.points, mesh.irises(files, image, found.mesh.points)))
    where = np.array([i for i, row in enumerate(rows) if row is not None])
    if not len(where):
        raise UserError(f"{name}: no face is found, so its eyes are not measured.")
    return _bridged(np.stack([rows[i] for i in where]), where, len(rows))


def _beside(images: Iterable[np.ndarray], function: Callable) -> Iterator[tuple]:
    """Each picture beside what a function of their stream makes of it."""
    last = []

    def noted():
        for image in images:
            last[:] = [image]
            yield image

    for result in function(noted()):
        yield last[0], result


def meshes(files, images: Iterable[np.ndarray], choose: Callable) -> Iterator[Found | None]:
    """The mesh of one face in each frame, None where it is not seen; `choose` says which of those found first."""
    last, misses = None, 0
    for image in images:
        now, anew = (_followed(files, image, last), False) if last and not misses else (None, False)
        if now is None and misses % SEARCH_EVERY == 0:
            now, anew = _searched(files, image, last, choose), True
        misses = 0 if now else misses + 1
        last = now or last
        yield Found(now, anew) if now else None


def _followed(files, image, last: mesh.Mesh) -> mesh.Mesh | None:
    now = mesh.look(files, image, *mesh.view(last.points))
    before, after = (_box(m.points) for m in (last, now))
    stays = abs(after[0] - before[0]) < STRAY * before[1] and 0.6 < after[1] / before[1] < 1.6
    return now if now.presence > mesh.PRESENT and stays else None


def _box(points: np.ndarray) -> tuple[complex, float]:
    centre = points.mean()
    return centre, abs(points - centre).max()


def _searched(files, image, last: mesh.Mesh | None, choose) -> mesh.Mesh | None:
    if last is None:
        seen = choose(detector.find(files, image))
        return seen and seen.mesh
    centre, reach = _box(last.points)
    h, w = image.shape[:2]
    half = AROUND * reach
    left, top = max(0, round(centre.real - half)), max(0, round(centre.imag - half))
    part = image[top : min(h, round(centre.imag + half)), left : min(w, round(centre.real + half))]
    seen = detector.find(files, part, tiled=False) if part.size else []
    if seen:
        found = [s.mesh._replace(points=s.mesh.points + left + 1j * top) for s in seen]
    else:
        found = [s.mesh for s in detector.find(files, image, tiled=False)]
    return min(found, key=lambda m: abs(m.points.mean() - centre), default=None)


def _gathered(found: Iterable[Found | None]) -> Track | None:
    """The frames of a clip as one Track; only what it holds is kept of each."""
    faces, starts, there = [], [], []
    for frame in found:
        there.append(frame is not None)
        if frame:
            faces.append(mesh.face_of(frame.mesh))
            starts.append(frame.anew or not there[-2:-1] == [True])
    if not faces:
        return None
    there = np.array(there)
    where = np.flatnonzero(there)
    columns = [np.stack([np.asarray(face[i]) for face in faces]) for i in range(len(Face._fields))]
    smooth = [_bridged(_smoothed(column, np.array(starts)), where, len(there)) for column in columns]
    tracked = Face(*smooth)
    return Track(tracked._replace(confidence=np.where(there, tracked.confidence, 0.0)), there)


def _smoothed(rows: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Gaussian over time, symmetric, so that nothing lags; never across a start, where a face was searched for."""
    reach = round(4 * SMOOTHING)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING) ** 2)
    result = []
    for run in np.split(rows, np.flatnonzero(starts)[1:]):
        padded = np.concatenate([run[:1].repeat(reach, 0), run, run[-1:].repeat(reach, 0)])
        result.append(sum(weight * padded[i : i + len(run)] for i, weight in enumerate(kernel / kernel.sum())))
    return np.concatenate(result).astype(rows.dtype)


def _bridged(rows: np.ndarray, where: np.ndarray, count: int) -> np.ndarray:
    """Rows of the frames `where`, and between them straight lines, for all of `count` frames."""
    if len(where) == count:
        return rows
    flat = rows.reshape(len(rows), -1)
    lines = np.stack([np.interp(np.arange(count), where, column) for column in flat.T], -1)
    return lines.reshape(count, *rows.shape[1:]).astype(rows.dtype)
