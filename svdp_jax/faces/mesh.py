"""The face mesh: 468 points of a face in depth, what they tell of it, and the regions that a driver is seen through.

Numbers of points are those of MediaPipe's canonical face model. Points are complex pixels x + iy.
"""

from typing import NamedTuple

import cv2
import numpy as np

from svdp_jax.faces import face, networks
from svdp_jax.faces.landmarks import LAYOUTS, Layout, opening
from svdp_jax.media.images import resize

POINTS = 468
# The rim of the face, in order.
OVAL = [
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150, 136,
    172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
]  # fmt: skip
BROWS = ([46, 53, 52, 65, 55, 70, 63, 105, 66, 107], [276, 283, 282, 295, 285, 300, 293, 334, 296, 336])
CORNERS = (33, 263)  # outer ones of the eyes
EYES = ((33, 133), (263, 362))  # corners of each eye, the outer one first
LAYOUT: Layout = LAYOUTS[POINTS]
PART = 16  # points of an outline
# What is kept is this much larger than lids and brows, nose, and lips, in distances of the eyes; and it ends this
# far inside the rim of the face, so that the rim does not show.
ROOM = (0.12, 0.06, 0.22)
RIM = 0.04
LIPS, OPEN = (13, 14), 0.3  # inner edges of the lips; the wider open, the more room, as the mesh lags behind the lip
BOX_VIEW = 1.5  # side of what the mesh looks at, in sides of a detector's box
# And in sides of the box around its own last points: a little more room, as with 1.5 the lips of a wide open mouth are
# seen too high by 0.4 distances of the eyes, with 1.6 by 0.2; from 1.7 on the points drift from frame to frame.
VIEW = 1.6
EYE_VIEW = 2.3  # side of what the iris network looks at, in widths of the eye
PRESENT = 0.5  # presence from which a mesh counts


class Mesh(NamedTuple):
    points: np.ndarray  # (468,) complex
    depth: np.ndarray  # (468,) pixels, smaller being nearer
    presence: float  # 0..1


def look(files, image: np.ndarray, a: complex, b: complex, border: int = cv2.BORDER_REPLICATE) -> Mesh:
    """The mesh in the view of `image` whose pixel z shows a * z + b, (192, 192), and beyond it what OpenCV's `border` says."""
    side = networks.NETWORKS["mesh"].side
    rows, presence = networks.run(files, "mesh", sampled(image, a, b, side, border).astype(np.float32) / 255)
    x, y, depth = rows.reshape(POINTS, 3).astype(np.float64).T
    return Mesh(a * (x + 1j * y - 0.5 - 0.5j) + b, depth * abs(a), float(1 / (1 + np.exp(-presence[0]))))


def sampled(image: np.ndarray, a: complex, b: complex, side: int, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """The square view (side, side, 3) whose pixel z shows `image` at a * z + b; averaged where it is smaller."""
    step = int(abs(a))
    if step < 2:
        return face.warp(image, a, b, (side, side), border)
    corners = a * (side - 1) * np.array([0, 1, 1j, 1 + 1j]) + b
    h, w = image.shape[:2]
    left, top = (int(np.clip(v.min() - step, 0, m - 1)) for v, m in ((corners.real, w), (corners.imag, h)))
    right, bottom = (int(np.clip(v.max() + step, 1, m)) for v, m in ((corners.real, w), (corners.imag, h)))
    if right - left < 2 * step or bottom - top < 2 * step:
        return face.warp(image, a, b, (side, side), border)
    part = image[top : bottom - (bottom - top) % step, left : right - (right - left) % step]
    small = resize(part, (part.shape[1] // step, part.shape[0] // step))
    half = (step - 1) / 2 * (1 + 1j)  # between the middles of a small pixel and of its first large one
    return face.warp(small, a / step, (b - left - 1j * top - half) / step, (side, side), border)


def view(points: np.ndarray, roll: complex | None = None, room: float = VIEW) -> tuple[complex, complex]:
    """(a, b) of the mesh's view of these points, by default turned so that the eyes lie level."""
    across = points[CORNERS[1]] - points[CORNERS[0]] if roll is None else roll
    turn = across / (abs(across) or 1)
    level = points / turn
    low, high = level.real.min() + 1j * level.imag.min(), level.real.max() + 1j * level.imag.max()
    return square_view((low + high) / 2 * turn, room * max((high - low).real, (high - low).imag) * turn, "mesh")


def square_view(centre: complex, across: complex, network: str) -> tuple[complex, complex]:
    """(a, b) of a network's view of the square around `centre` whose upper edge runs along `across`."""
    side = networks.NETWORKS[network].side
    a = across / side
    return a, centre - a * (side - 1) / 2 * (1 + 1j)


def irises(files, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(10,) points of the irises: centre and four of the rim of the picture's left one, then of the right one."""
    side, found = networks.NETWORKS["iris"].side, []
    for flip, (outer, inner) in zip((1, -1), EYES):
        across = (points[inner] - points[outer]) * flip
        a, b = square_view((points[inner] + points[outer]) / 2, EYE_VIEW * across, "iris")
        eye = sampled(image, a, b, side)[:, ::flip].astype(np.float32) / 255
        x, y, _ = networks.run(files, "iris", eye)[1].reshape(5, 3).T - 0.5
        found.append(a * ((x if flip > 0 else side - 1 - x) + 1j * y) + b)
    return np.concatenate(found)


def face_of(mesh: Mesh) -> face.Face:
    """The mesh as a Face, whose box is that which the cascades would see."""
    parts = (LAYOUT.left_eye, LAYOUT.right_eye, LAYOUT.nose, LAYOUT.mouth)
    left, right, nose, mouth = (mesh.points[part].mean() for part in parts)
    apart = right - left
    # A turned head's eyes are nearer each other in the picture, but not in depth.
    deep = mesh.depth[LAYOUT.right_eye].mean() - mesh.depth[LAYOUT.left_eye].mean()
    size = float(np.hypot(abs(apart), deep)) / (face.EYES[1] - face.EYES[0]).real
    centre = (left + right) / 2 - 1j * apart / abs(apart) * face.EYES[0].imag * size
    turned = yaw(mesh)
    # The likeliest frame of a clip makes its source picture, so that a head that is turned away counts less.
    confidence = mesh.presence * float(np.cos(np.deg2rad(turned)))
    return face.Face(centre, size, left, right, nose, mouth, confidence, regions(mesh), turned, opening(mesh.points))


def yaw(mesh: Mesh) -> float:
    """How far the head is turned, degrees, to the right in the picture."""
    left, right = CORNERS
    return float(np.rad2deg(np.arctan2(mesh.depth[right] - mesh.depth[left], abs(mesh.points[right] - mesh.points[left]))))


def oval(mesh: Mesh) -> np.ndarray:
    """(36,) points of the rim of the face, in order."""
    return mesh.points[OVAL]


def regions(mesh: Mesh) -> np.ndarray:
    """(64,) complex64: four outlines of sixteen points around what is kept: each eye with its brow, the nose, the lips.

    Convex, with ROOM around them, and cut by the rim of the face.
    """
    unit = np.hypot(abs(mesh.points[263] - mesh.points[33]), mesh.depth[263] - mesh.depth[33]) * 2 / 3
    eyes = [eye + brow for eye, brow in zip((LAYOUT.left_eye, LAYOUT.right_eye), BROWS)]
    gap = abs(mesh.points[LIPS[1]] - mesh.points[LIPS[0]]) / unit
    parts = [*zip(eyes, (ROOM[0], ROOM[0])), (LAYOUT.nose, ROOM[1]), (LAYOUT.mouth, ROOM[2] + OPEN * gap)]
    rim = _shrunk(oval(mesh), RIM * unit)
    return np.concatenate([_cut(_grown(mesh.points[part], room * unit), rim) for part, room in parts]).astype(np.complex64)


def _grown(points: np.ndarray, reach: float) -> np.ndarray:
    """The convex outline around these points with so much room."""
    return _hull((points[:, None] + reach * face.CIRCLE[::4]).ravel())


def _shrunk(outline: np.ndarray, reach: float) -> np.ndarray:
    centre = outline.mean()
    away = abs(outline - centre)
    return centre + (outline - centre) * np.maximum(0.5, 1 - reach / np.maximum(away, 1e-6))


def _hull(points: np.ndarray) -> np.ndarray:
    return _complex(cv2.convexHull(_pairs(points)))


def _cut(outline: np.ndarray, rim: np.ndarray) -> np.ndarray:
    """The part of a convex outline within the rim, as PART points at even distances."""
    _, inside = cv2.intersectConvexConvex(_pairs(outline), _pairs(_hull(rim)))
    return _even(outline if inside is None or len(inside) < 3 else _complex(inside))


def _even(outline: np.ndarray) -> np.ndarray:
    closed = np.append(outline, outline[0])
    along = np.concatenate([[0], np.cumsum(abs(np.diff(closed)))])
    at = np.linspace(0, along[-1], PART, endpoint=False)
    return np.interp(at, along, closed.real) + 1j * np.interp(at, along, closed.imag)


def _pairs(points: np.ndarray) -> np.ndarray:
    return np.stack([points.real, points.imag], -1).astype(np.float32)


def _complex(pairs: np.ndarray) -> np.ndarray:
    x, y = pairs.reshape(-1, 2).astype(np.float64).T
    return x + 1j * y
