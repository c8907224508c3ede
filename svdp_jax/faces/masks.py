"""What of a clip's face is kept: points (f, k) that outline eyes, nose and mouth, from one of PROVIDERS.

`windows` needs nothing but the track: the regions of its meshes, or four rounded windows. `mediapipe` runs MediaPipe's
FaceLandmarker, `files` reads landmarks that another tool found; theirs are smoothed over time, and
`faces.landmarks` adds the margin. Points are complex pixels of the crop.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.faces import face, landmarks, networks, windows as guessed

SMOOTHING = 0.5  # frames; little, since speech opens and shuts a mouth within four of them
NOSE_DEPTH = 0.3  # how far the middle of the nose lies in front of the eyes, in distances of the eyes
CONTOUR = (0.4j, 1.1, 1.4)  # the face's oval about the middle of the eyes, in distances of the eyes


class Taken(NamedTuple):
    """What a provider may look at."""

    frames: Callable[[], Iterator[np.ndarray]]  # the crops, anew with every call
    track: face.Track  # in pixels of the crop
    box: face.Box  # the crop in the picture
    size: int
    first: int  # frame of the video
    total: int  # frames of the video
    video: str  # its name


def windows(taken: Taken, _: str) -> np.ndarray:
    return guessed.of_track(taken.track)


def mediapipe(taken: Taken, model: str) -> np.ndarray:
    """478 points of MediaPipe's face mesh, found in the crops."""
    return _smooth(mesh(taken.frames(), model, taken.video))


def mesh(frames: Iterable[np.ndarray], model: str, name: str) -> np.ndarray:
    """The points (f, 478) that MediaPipe finds in each frame, as they are; UserError, naming `name`, if it sees no face."""
    find = _landmarker(model)
    points = [find(image) for image in frames]
    there = [p for p in points if p is not None]
    if not there:
        raise UserError(f"{name}: MediaPipe sees no face in it.")
    return _bridged(np.stack([np.full_like(there[0], np.nan) if p is None else p for p in points]))


@cache
def _landmarker(model: str) -> Callable[[np.ndarray], np.ndarray | None]:
    try:
        import mediapipe as mp
    except ImportError:
        raise UserError(
            "--landmarks mediapipe needs MediaPipe, which brings an OpenCV of its own and so is not in any extra: "
            "`pip install --no-deps mediapipe flatbuffers absl-py && pip install matplotlib`, or leave this option out."
        ) from None
    if not Path(model).is_file():
        raise UserError(
            f"{model or 'no file'}: not a model; give --landmarks mediapipe:face_landmarker.task, from MediaPipe's page."
        )
    tasks = mp.tasks
    options = tasks.vision.FaceLandmarkerOptions(base_options=tasks.BaseOptions(model_asset_path=model), num_faces=1)
    try:
        landmarker = tasks.vision.FaceLandmarker.create_from_options(options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{model}: not a model that MediaPipe can read ({error}); fetch face_landmarker.task again.") from None

    def find(image: np.ndarray) -> np.ndarray | None:
        found = landmarker.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=image)).face_landmarks
        height, width = image.shape[:2]
        return np.array([p.x * width + 1j * p.y * height for p in found[0]]) if found else None

    return find


def files(taken: Taken, folder: str) -> np.ndarray:
    """Points that `given` reads, of the frames of this clip."""
    found = given(folder, taken.video, taken.total)(taken.first, len(taken.track.found))
    if found is None:
        raise UserError(f"{taken.video}: its file in {folder} has no points of the clip at frame {taken.first}.")
    return _smooth((found.points - (taken.box.left + 1j * taken.box.top)) * taken.size / taken.box.side)


def given(folder: str, name: str, frames: int) -> landmarks.Reader:
    """`folder/NAME.npy` or `.json`: the landmarks of all frames of a video, in pixels of its pictures."""
    paths = [Path(folder) / f"{name}{suffix}" for suffix in (".npy", ".json")]
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        raise UserError(f"{paths[0]}: does not exist; --landmarks files:DIR needs one file for each video.")
    return landmarks.opened(path, frames)


PROVIDERS = {"windows": windows, "mediapipe": mediapipe, "files": files}


def check(choice: str) -> None:
    """UserError where a choice such as windows, mediapipe:MODEL or files:DIR cannot work."""
    name, _, argument = choice.partition(":")
    if name not in PROVIDERS:
        raise UserError(f"--landmarks {choice}: choose windows, mediapipe:MODEL.task or files:DIR.")
    if name == "mediapipe":
        _landmarker(argument)
    if name != "files":  # the shots' faces are found first
        networks.check()
    if name == "files" and not Path(argument).is_dir():
        raise UserError(f"--landmarks {choice}: {argument or 'no folder'} is not a folder; name the one of the landmark files.")


def outlines(choice: str, taken: Taken) -> np.ndarray:
    """Points (f, k) by the provider of a choice."""
    name, _, argument = choice.partition(":")
    return PROVIDERS[name](taken, argument)


def mask(points: np.ndarray, size: int) -> np.ndarray:
    """(size, size) bool: what is kept of a crop, for the points (k) of one frame."""
    return landmarks.region_mask(points, face.Box(0, 0, size), size)


def facts(points: np.ndarray, track: face.Track, size: int) -> dict[str, float]:
    """Shares, in the mean over frames: of the crop that is kept, and of the face's oval that still shows."""
    kept, shown = [], []
    for index, frame in enumerate(points):
        seen = mask(frame, size)
        x, y = np.round(_contour(face.at(track, index)).view(float)).astype(int).reshape(-1, 2).T
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        kept.append(seen.mean())
        shown.append(seen[y[inside], x[inside]].sum() / len(x))
    return {"kept": float(np.mean(kept)), "outline": float(np.mean(shown))}


def yaw(points: np.ndarray) -> np.ndarray:
    """About how far the head is turned in each frame, degrees, to the right in the picture.

    From where the nose stands between the eyes; windows hold them in one proportion and tell nothing.
    """
    layout = landmarks.LAYOUTS[points.shape[1]]
    left, right, nose = (points[:, part].mean(1) for part in (layout.left_eye, layout.right_eye, layout.nose))
    return np.rad2deg(np.arctan(((nose - (left + right) / 2) / (right - left)).real / NOSE_DEPTH))


def _contour(of: face.Face) -> np.ndarray:
    middle, across = (of.left_eye + of.right_eye) / 2, of.right_eye - of.left_eye
    centre, half_width, half_height = CONTOUR
    return middle + across * (centre + half_width * face.CIRCLE.real + 1j * half_height * face.CIRCLE.imag)


def _bridged(points: np.ndarray) -> np.ndarray:
    """Frames without a face, NaN, between their neighbours."""
    found, index = np.isfinite(points).all(1), np.arange(len(points))
    return np.stack([np.interp(index, index[found], column[found]) for column in points.T], 1)


def _smooth(points: np.ndarray) -> np.ndarray:
    """Gaussian over time, symmetric, so that nothing lags."""
    reach = round(4 * SMOOTHING)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / SMOOTHING) ** 2)
    padded = np.pad(points, ((reach, reach), (0, 0)), mode="edge")
    return np.apply_along_axis(np.convolve, 0, padded, kernel / kernel.sum(), mode="valid")
