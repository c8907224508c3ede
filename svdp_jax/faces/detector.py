"""Faces found in a picture by networks: seen by a detector, and confirmed by a mesh that is fed its own crop again.

A mesh lies upright on an upside-down face, and with certainty; only the detector's scores are lower there. So
where it is in doubt, a picture is looked at in all four quarter turns, and the direction with most of them counts.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
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
# Presence that the mesh must have, first in the detector's crop and then in its own: it is sure of nearly all faces, and
# of what it lies askew on it is not. Chosen on the table of docs/faces.md.
AT_FIRST, AGAIN = 0.76, 0.9
# Eyes and mouth may move so far, in distances of the eyes, when the mesh looks once more, with black beyond the picture's edge in
# place of the edge's own colours: it has settled on a face, and none of them is a guess at what the picture does not show.
SETTLED = 0.12
NARROWEST, WIDE = 36, 1.5  # pixels of a face that is taken, as the narrower ones are a guess; its width, in those of both eyes
CLEAR = 0.7  # share of what speaks for one direction that may speak for another


class Candidate(NamedTuple):
    centre: complex
    across: complex  # its upper edge: as long as the box, and turned as the eyes are
    score: float
    votes: float  # sum of the scores of all that it stands for


class Seen(NamedTuple):
    mesh: mesh.Mesh
    score: float
    clear: bool  # whether both eyes are in the picture, and it is certain which way it is turned


def find(files, image: np.ndarray, tiled: bool = True) -> list[Seen]:
    """Faces in an (h, w, 3) uint8 picture, the largest first; small ones are looked for where there is no large one."""
    seen = _confirmed(files, image, _whole(files, image))
    if not seen and tiled:
        seen = _confirmed(files, image, _tiles(files, image))
    return sorted((s for s in seen if s.clear), key=lambda s: -mesh.face_of(s.mesh).size)


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
    return c._replace(centre=c.centre / scale, across=c.across / scale)


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
        found.append(Candidate((back * row[0] + corner) * side, back * across * side, float(score), 0.0))
    return [c._replace(votes=c.score) for c in _merged(found)]


def _anchors() -> np.ndarray:
    """Middles of the cells of both grids, row by row, each as often as it has anchors."""
    parts = []
    for cells, count in GRIDS:
        line = (np.arange(cells) + 0.5) / cells
        parts.append(np.repeat((line[None] + 1j * line[:, None]).ravel(), count))
    return np.concatenate(parts)


ANCHORS = _anchors()


def _merged(found: list[Candidate]) -> list[Candidate]:
    """One candidate for each face, the likeliest first."""
    return [directions[0] for directions in _faces(found)]


def _faces(found: list[Candidate]) -> Iterator[list[Candidate]]:
    """For each face, the likeliest first, one candidate for each direction in which it is seen.

    That is the mean, by score, of those that overlap and are turned alike; its votes are all of theirs.
    """
    rest = sorted(found, key=lambda c: -c.score)
    while rest:
        face = rest[0]
        same = [c for c in rest if _overlap(face, c) > OVERLAP]
        rest = [c for c in rest if _overlap(face, c) <= OVERLAP]
        directions = []
        while same:
            ray = same[0].across
            alike = [(c.across / ray).real > 0.7 * abs(c.across / ray) for c in same]
            directions.append(_mean([c for c, is_alike in zip(same, alike) if is_alike]))
            same = [c for c, is_alike in zip(same, alike) if not is_alike]
        yield directions


def _mean(alike: list[Candidate]) -> Candidate:
    weights = np.array([c.score for c in alike])
    centre, across = (np.average([getattr(c, what) for c in alike], weights=weights) for what in ("centre", "across"))
    return Candidate(complex(centre), complex(across), alike[0].score, sum(c.votes for c in alike))


def _overlap(p: Candidate, q: Candidate) -> float:
    """Intersection over union of the boxes, as if upright."""
    reach, apart = (abs(p.across) + abs(q.across)) / 2, p.centre - q.centre
    least = min(abs(p.across), abs(q.across))
    both = max(0.0, min(reach - abs(apart.real), least)) * max(0.0, min(reach - abs(apart.imag), least))
    return both / (abs(p.across) ** 2 + abs(q.across) ** 2 - both)


def _confirmed(files, image: np.ndarray, found: list[Candidate]) -> list[Seen]:
    seen: list[Seen] = []
    for directions in _faces(found):
        looks = sorted((_looked_at(files, image, c) for c in directions), key=lambda look: -look[0])
        (certain, best), rivals = looks[0], looks[1:]
        known = best and any(abs(_centre(best) - _centre(s)) < 0.3 * mesh.face_of(s.mesh).size for s in seen)
        if best and not known:
            seen.append(best._replace(clear=best.clear and all(rival < CLEAR * certain for rival, _ in rivals)))
    return seen


def _looked_at(files, image: np.ndarray, c: Candidate) -> tuple[float, Seen | None]:
    """What the mesh makes of a candidate, None where it is no face; and how much speaks for it."""
    first = mesh.look(files, image, *mesh.square_view(c.centre, mesh.BOX_VIEW * c.across, "mesh"))
    second = mesh.look(files, image, *mesh.view(first.points))
    where = mesh.face_of(second)
    turned = (where.right_eye - where.left_eye) / c.across
    stays = abs(where.centre - c.centre) < 0.5 * abs(c.across) and turned.real > 0.5 * abs(turned)
    wide = abs(second.points[mesh.CORNERS[1]] - second.points[mesh.CORNERS[0]]) * WIDE > NARROWEST
    h, w = image.shape[:2]
    eyes_shown = all(0 <= eye.real < w and 0 <= eye.imag < h for eye in (where.left_eye, where.right_eye))
    sure = first.presence > AT_FIRST and second.presence > AGAIN and _settled(files, image, second)
    certain = c.votes * c.score**3 * min(first.presence, second.presence)
    return certain, Seen(second, c.score, eyes_shown) if stays and wide and sure else None


def _settled(files, image: np.ndarray, seen: mesh.Mesh) -> bool:
    once_more = mesh.look(files, image, *mesh.view(seen.points), cv2.BORDER_CONSTANT)
    before, after = (np.array([f.left_eye, f.right_eye, f.mouth]) for f in map(mesh.face_of, (seen, once_more)))
    return abs(after - before).max() < SETTLED * abs(before[1] - before[0])


def _centre(seen: Seen) -> complex:
    return mesh.face_of(seen.mesh).centre
