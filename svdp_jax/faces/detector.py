"""Faces found in a picture by networks: seen by a detector, and confirmed by a mesh that is fed its own crop again.

A mesh lies upright on an upside-down face, and with certainty; only the detector's score is lower there. So
where it is in doubt, a picture is looked at in all four quarter turns, and the best score counts.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from svdp_jax.faces import mesh, networks
from svdp_jax.media.images import resize

# Cells of the two grids of anchors, and anchors in each cell; the same for both detectors.
GRIDS = ((16, 2), (8, 6))
KEYPOINTS = 6  # eyes, nose, mouth, ears
SCORE = 0.5  # least that is looked at closely
SURE = 0.9  # from here on, no further turn is tried
OVERLAP = 0.3  # intersection over union of boxes that show the same face
TILED = (640, 1280)  # longest sides of the copies that are looked at tile by tile
TILE_STEP = 0.75  # of a tile's side from each tile to the next
TURNS = (0, 1, 2, 3)  # quarters


class Candidate(NamedTuple):
    centre: complex
    across: complex  # its upper edge: as long as the box, and turned as the eyes are
    score: float


class Seen(NamedTuple):
    mesh: mesh.Mesh
    score: float


def find(files, image: np.ndarray, tiled: bool = True) -> list[Seen]:
    """Faces in an (h, w, 3) uint8 picture, the largest first; small ones are looked for where there is no large one."""
    seen = _confirmed(files, image, _whole(files, image))
    if not seen and tiled:
        seen = _confirmed(files, image, _tiles(files, image))
    return sorted(seen, key=lambda s: -mesh.face_of(s.mesh).size)


def _whole(files, image: np.ndarray) -> list[Candidate]:
    """Candidates in the whole picture: upright if that leaves no doubt, else in all four turns."""
    found = []
    names = [name for name in ("near", "far") if name in files]
    for turn in TURNS:
        for name in names:
            side = networks.NETWORKS[name].side
            small, scale = _fitted(image, side)
            found += [_scaled(c, scale) for c in _look(files, name, small, turn)]
        if turn == 0 and found and all(c.score > SURE for c in _merged(found)):
            break
    return found


def _tiles(files, image: np.ndarray) -> list[Candidate]:
    found: list[Candidate] = []
    name = "far" if "far" in files else "near"
    side = networks.NETWORKS[name].side
    for longest in TILED:
        if found or longest > 2 * max(image.shape[:2]):
            break
        small, scale = _fitted(image, longest)
        for left, top in _corners(small.shape, side):
            tile = small[top : top + side, left : left + side]
            for turn in TURNS:
                seen = _look(files, name, tile, turn)
                found += [_scaled(c._replace(centre=c.centre + left + 1j * top), scale) for c in seen]
                if any(c.score > SURE for c in seen):
                    break
    return found


def _corners(shape, side: int) -> Iterator[tuple[int, int]]:
    step = int(side * TILE_STEP)
    for top in range(0, max(1, shape[0] - side + step), step):
        for left in range(0, max(1, shape[1] - side + step), step):
            yield left, top


def _fitted(image: np.ndarray, longest: int) -> tuple[np.ndarray, float]:
    """A copy of such a longest side, and its scale."""
    h, w = image.shape[:2]
    scale = longest / max(h, w)
    return resize(image, (max(1, round(w * scale)), max(1, round(h * scale)))), scale


def _scaled(c: Candidate, scale: float) -> Candidate:
    return Candidate(c.centre / scale, c.across / scale, c.score)


def _look(files, name: str, picture: np.ndarray, turn: int) -> list[Candidate]:
    """What a detector sees in a picture no larger than its own side, turned by so many quarters."""
    side = networks.NETWORKS[name].side
    square = np.zeros((side, side, 3), np.uint8)  # with black bars
    h, w = picture.shape[:2]
    square[:h, :w] = picture
    values, scores = networks.run(files, name, np.rot90(square, turn).astype(np.float32) / 127.5 - 1)
    scores = 1 / (1 + np.exp(-np.clip(scores.astype(np.float64), -100, 100)))
    likely = np.flatnonzero(scores > SCORE)
    values = values.reshape(-1, 2 + KEYPOINTS, 2)[likely] / side
    values = values[..., 0] + 1j * values[..., 1]
    values[:, 0] += ANCHORS[likely]
    values[:, 2:] += ANCHORS[likely, None]
    back, corner = 1j**turn, (0, 1, 1 + 1j, 1j)[turn]
    found = []
    for row, score in zip(values, scores[likely]):
        eyes = row[3] - row[2]
        across = row[1].real * eyes / (abs(eyes) or 1)
        found.append(Candidate((back * row[0] + corner) * side, back * across * side, float(score)))
    return _merged(found)


def _anchors() -> np.ndarray:
    """Middles of the cells of both grids, row by row, each as often as it has anchors."""
    parts = []
    for cells, count in GRIDS:
        line = (np.arange(cells) + 0.5) / cells
        parts.append(np.repeat((line[None] + 1j * line[:, None]).ravel(), count))
    return np.concatenate(parts)


ANCHORS = _anchors()


def _merged(found: list[Candidate]) -> list[Candidate]:
    """One candidate for each face, the likeliest first: the mean, by score, of those that overlap it and are turned alike."""
    rest, merged = sorted(found, key=lambda c: -c.score), []
    while rest:
        best = rest[0]
        same = [c for c in rest if _overlap(best, c) > OVERLAP]
        rest = [c for c in rest if _overlap(best, c) <= OVERLAP]
        alike = [c for c in same if (c.across / best.across).real > 0.7 * abs(c.across / best.across)]
        weights = np.array([c.score for c in alike])
        centre, across = (np.average([getattr(c, what) for c in alike], weights=weights) for what in ("centre", "across"))
        merged.append(Candidate(complex(centre), complex(across), best.score))
    return merged


def _overlap(p: Candidate, q: Candidate) -> float:
    """Intersection over union of the boxes, as if upright."""
    reach, apart = (abs(p.across) + abs(q.across)) / 2, p.centre - q.centre
    least = min(abs(p.across), abs(q.across))
    both = max(0.0, min(reach - abs(apart.real), least)) * max(0.0, min(reach - abs(apart.imag), least))
    return both / (abs(p.across) ** 2 + abs(q.across) ** 2 - both)


def _confirmed(files, image: np.ndarray, found: list[Candidate]) -> list[Seen]:
    seen: list[Seen] = []
    for candidate in _merged(found):
        first = mesh.look(files, image, *mesh.square_view(candidate.centre, mesh.BOX_VIEW * candidate.across, "mesh"))
        second = mesh.look(files, image, *mesh.view(first.points))
        where = mesh.face_of(second)
        moved = abs(where.centre - candidate.centre) / abs(candidate.across)
        turned = (where.right_eye - where.left_eye) / candidate.across
        upright = turned.real > 0.5 * abs(turned)
        known = any(abs(where.centre - mesh.face_of(s.mesh).centre) < 0.3 * where.size for s in seen)
        if second.presence > mesh.PRESENT and moved < 0.5 and upright and not known:
            seen.append(Seen(second, candidate.score))
    return seen
