"""Motion templates: what LivePortrait needs of a driver, as numbers in a .safetensors file, without the video.

Arrays of one row a frame: those of `keypoints.Motion`; `opening` of eyes and lips, where it is known; `time`,
a numerator and a denominator of seconds. The file's metadata tells the frame rate and the weights that read it.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from svdp_jax.errors import UserError
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.faces.scene import Recorded
from svdp_jax.files import write_whole
from svdp_jax.media.video import VideoInfo
from svdp_jax.models.keypoints import KEYPOINTS, Motion

SUFFIX = ".safetensors"
KIND = "svdp_jax motion template 1"
SHAPES = {
    "canonical": (KEYPOINTS, 3), "expression": (KEYPOINTS, 3), "translation": (3,), "scale": (1,),
    "pitch": (), "yaw": (), "roll": (), "time": (2,), "opening": (3,),
}  # fmt: skip
LARGEST = 1 << 30  # bytes


def named(path) -> bool:
    return isinstance(path, (str, Path)) and Path(path).suffix.lower() == SUFFIX


def check(path: Path) -> None:
    """UserError where no template can be written there."""
    if not named(path):
        raise UserError(f"{path}: motion is kept in files that end in {SUFFIX}.")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; create it first.")


def write(path: Path, frames: Iterable[DrivingFrame], fps: Fraction, weights: str) -> int:
    """Writes the file, complete or not at all; returns how many frames it has."""
    rows = list(frames)
    arrays: dict[str, np.ndarray] = {
        name: np.stack([np.asarray(getattr(row.motion, name), np.float32) for row in rows]) for name in Motion._fields
    }
    arrays["time"] = np.array([(row.time.numerator, row.time.denominator) for row in rows], np.int64)
    if rows[0].opening is not None:
        arrays["opening"] = np.stack([row.opening for row in rows]).astype(np.float32)
    write_whole(Path(path), save(arrays, {"kind": KIND, "fps": str(fps), "weights": weights}))
    return len(rows)


def read(path, weights: str) -> Recorded:
    """UserError where the file is none, or was read by other weights."""
    try:
        if Path(path).stat().st_size > LARGEST:
            raise ValueError(f"larger than {LARGEST} bytes")
        with safe_open(path, "numpy") as file:
            facts = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        if facts.get("kind") != KIND:
            raise ValueError("no motion of a driver")
        fps, count = Fraction(facts["fps"]), len(arrays["scale"])
        needed = [name for name in SHAPES if name != "opening" or name in arrays]
        if not count or not fps or any(arrays[name].shape != (count, *SHAPES[name]) for name in needed):
            raise ValueError("arrays of other shapes")
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise ValueError("numbers that are not finite")
        rows = list(framed(arrays))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path}: no motion template ({error}); make one with --output NAME{SUFFIX}.") from None
    if facts.get("weights") != weights:
        raise UserError(f"{path}: was made with other weights, whose keypoints these do not know; make it again.")
    return Recorded(rows, VideoInfo(0, 0, fps, count, count / fps, False))


def framed(arrays: dict[str, np.ndarray]) -> Iterator[DrivingFrame]:
    for index, time in enumerate(arrays["time"].tolist()):
        motion = Motion(*(arrays[name][index] for name in Motion._fields))
        opening = arrays["opening"][index] if "opening" in arrays else None
        yield DrivingFrame(None, None, Fraction(*time), opening, motion)
