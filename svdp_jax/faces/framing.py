"""How a model wants faces: where its crops lie in picture and driver, and how its portrait goes back into the picture."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from svdp_jax.faces import face
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.faces.face import Box, Face
from svdp_jax.faces.paste import paste, paste_turned

# LivePortrait's crops, in sides of the square around its landmarks: how large, how far down.
SOURCE_CROP, DRIVING_CROP = (2.3, -0.125), (2.2, -0.1)
# That square from a `Face`, whose points are fewer: its side and its centre's way from the eyes,
# both in distances from the eyes to the mouth. It spans brows to chin.
SQUARE, DOWN = 2.1, 0.7


class Framing(Protocol):
    """A place is where the source's crop lies in its picture: a `Box`, or a `Turned`."""

    size: int  # pixels of the source's crop, and of the result
    driving_size: int  # of the driver's crops
    windows: bool  # whether of the driver only eyes, nose and mouth are seen
    inside_size: int | None  # pixels of the pictures that `inside` takes, None for any

    def place(self, seen: Face) -> Any: ...

    def whole(self, box: Box) -> Any:
        """The place of a box that is a portrait already."""
        ...

    def cut(self, picture: np.ndarray, place) -> np.ndarray: ...

    def paste(self, picture: np.ndarray, place, portrait: np.ndarray) -> np.ndarray: ...

    def corners(self, place) -> np.ndarray:
        """(4,) complex, around the crop."""
        ...

    def box(self, faces: Face) -> Box:
        """The one crop of a driving clip, of the faces in all its frames."""
        ...

    def inside(self, picture: np.ndarray, seen: Face, driver: Iterable[DrivingFrame], faces: Face) -> tuple:
        """(place, source, driver) of pictures that are cropped as those that models are trained on."""
        ...


CORNERS = np.array([0, 1, 1 + 1j, 1j])


class Portrait:
    """What our models are trained on: upright squares, the driver behind windows."""

    windows = True

    def __init__(self, size: int):
        self.size, self.driving_size = size, size
        self.inside_size: int | None = size

    def place(self, seen: Face) -> Box:
        return face.crop_box(seen)

    def whole(self, box: Box) -> Box:
        return box

    def cut(self, picture: np.ndarray, place: Box) -> np.ndarray:
        return face.crop(picture, place, self.size)

    def paste(self, picture: np.ndarray, place: Box, portrait: np.ndarray) -> np.ndarray:
        return paste(picture, place, portrait)

    def corners(self, place: Box) -> np.ndarray:
        return place.left + 1j * place.top + place.side * CORNERS

    def box(self, faces: Face) -> Box:
        return face.crop_box(faces)

    def inside(self, picture: np.ndarray, seen: Face, driver: Iterable[DrivingFrame], faces: Face) -> tuple:
        return Box(0, 0, len(picture)), DrivingFrame(picture, picture), driver


class Turned(NamedTuple):
    """A square whose pixel z shows the picture at a * z + b."""

    a: complex
    b: complex


class LivePortraitFraming:
    """LivePortrait's: the source upright, whichever way the head leans; all of the driver, as the camera was held."""

    windows = False
    size, driving_size, inside_size = 512, 256, None

    def place(self, seen: Face) -> Turned:
        down = seen.mouth - (seen.left_eye + seen.right_eye) / 2
        centre, side = square(seen, SOURCE_CROP, down / abs(down))
        a = side / self.size * down / abs(down) / 1j
        return Turned(a, centre - a * self.size / 2 * (1 + 1j))  # as published, the middle is pixel 256

    def whole(self, box: Box) -> Turned:
        a = complex(box.side / self.size)
        return Turned(a, box.left + 1j * box.top + (a - 1) / 2 * (1 + 1j))

    def cut(self, picture: np.ndarray, place: Turned) -> np.ndarray:
        return face.warp(picture, *place, (self.size, self.size))

    def paste(self, picture: np.ndarray, place: Turned, portrait: np.ndarray) -> np.ndarray:
        return paste_turned(picture, *place, portrait)

    def corners(self, place: Turned) -> np.ndarray:
        return place.a * (self.size * CORNERS - 0.5 - 0.5j) + place.b + 0.5 + 0.5j

    def box(self, faces: Face) -> Box:
        mean = faces._replace(**{part: np.mean(getattr(faces, part)) for part in ("left_eye", "right_eye", "mouth")})
        centre, side = square(mean, DRIVING_CROP, 1j)
        corner = centre - side / 2 * (1 + 1j)
        return Box(round(corner.real), round(corner.imag), round(side))

    def inside(self, picture: np.ndarray, seen: Face, driver: Iterable[DrivingFrame], faces: Face) -> tuple:
        place, box = self.place(seen), self.box(faces)

        def again() -> Iterator[DrivingFrame]:
            for frame in driver:
                crop = face.crop(frame.crop, box, self.driving_size)
                yield frame._replace(crop=crop, masked=crop)

        source = self.cut(picture, place)
        return place, DrivingFrame(source, source, opening=seen.opening), again()


def square(seen: Face, crop: tuple[float, float], down: complex) -> tuple[complex, float]:
    """Centre and side of LivePortrait's crop around a face; `down` is the crop's own direction of length one."""
    scale, shift = crop
    eyes = (seen.left_eye + seen.right_eye) / 2
    side = scale * SQUARE * abs(seen.mouth - eyes)
    return eyes + DOWN * (seen.mouth - eyes) + shift * side * down, side
