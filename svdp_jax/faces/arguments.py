"""What the library's calls take: every argument with what it may be, in one table."""

import dataclasses
import math
import numbers
import os
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.values import declared

CROPS = ("auto", "none")
SEEDS = 1 << 31
FASTEST = 1000  # frames per second
FACES = 1000
SHOWN = reprlib.Repr()
SHOWN.maxstring = SHOWN.maxother = 60


def check(**given: Any) -> None:
    """UserError, in one sentence, for the first of these arguments that is not what ARGUMENTS says."""
    for name, value in given.items():
        wanted, fits = ARGUMENTS[name]
        if not fits(value):
            raise UserError(f"{name} must be {wanted}, not {shown(value)}.")


def shown(value) -> str:
    """A value in a sentence: on one line, and not for pages."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} {value.shape}"
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes"
    if isinstance(value, (list, tuple)):
        kinds = sorted({shown(item) if isinstance(item, np.ndarray) else type(item).__name__ for item in value[:100]})
        return f"a {type(value).__name__} of {len(value)}: {', '.join(kinds[:3])}"
    return " ".join(SHOWN.repr(value).split())


def path(value) -> bool:
    return isinstance(value, (str, os.PathLike)) and isinstance(os.fspath(value), str) and bool(os.fspath(value))


def pictures(value, dimensions: int) -> bool:
    """Whether it's an array uint8 (..., h, w, 3) of so many dimensions with something in it."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == dimensions and value.shape[-1] == 3 and value.size > 0  # fmt: skip


def film(value) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and all(pictures(item, 3) for item in value) and len({item.shape for item in value}) == 1
    return pictures(value, 4)


def whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool) and least <= value <= most


def number(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value) and least <= value <= most
    )


def optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def config(kind: type, name: str) -> Callable[[Any], bool]:
    """Whether it's a config's part of this kind; UserError for a value in it that is not as declared there."""
    return lambda value: isinstance(value, kind) and bool(declared.build(kind, dataclasses.asdict(value), name))


BOOLEAN = ("True or False", lambda value: isinstance(value, (bool, np.bool_)))
CROP = (f"one of {', '.join(CROPS)}", lambda value: isinstance(value, str) and value in CROPS)
FUNCTION = ("a function", callable)
FACE = f"a whole number from 0, the largest face, to {FACES}"
ARGUMENTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "source": (
        "the path of a picture, or one as an array uint8 (h, w, 3), which np.asarray(picture.convert('RGB')) makes of PIL's",
        lambda value: path(value) or pictures(value, 3),
    ),
    "driving": (
        "the path of a video, or pictures of one size as an array uint8 (f, h, w, 3) or a list",
        lambda value: path(value) or film(value),
    ),
    "frame": ("a stream of pictures, each an array uint8 (h, w, 3)", lambda value: pictures(value, 3)),
    "output": ("the path of a file that ends in .mp4, .gif or .png", path),
    "folder": ("the path of a folder, or None", optional(path)),
    "base": ("the path of a folder, or None", optional(path)),
    "network": ("the name of a network, or None", optional(path)),
    "face": (FACE, whole(0, FACES)),
    "driving_face": (f"{FACE}, or None", optional(whole(0, FACES))),
    "source_crop": CROP,
    "driving_crop": CROP,
    "landmarks": ("the path of a file, or None", optional(path)),
    "fps": (f"a number of frames per second from 0.01 to {FASTEST}", number(0.01, FASTEST)),
    "paste_back": BOOLEAN,
    "compare": BOOLEAN,
    "watch": BOOLEAN,
    "drop": BOOLEAN,
    "segment": ("a whole number of frames from 1 to 1024, or None", optional(whole(1, 1024))),
    "seed": (f"a whole number from 0 to {SEEDS - 1}", whole(0, SEEDS - 1)),
    "sampling": ("a config.Sampling, or None", optional(config(configs.Sampling, "sampling"))),
    "transfer": ("a config.Transfer, or None", optional(config(configs.Transfer, "transfer"))),
    "show": FUNCTION,
    "finish": FUNCTION,
    "crops": (
        "people's crops as an array uint8 (b, y, x, 3)",
        lambda value: pictures(value, 4),
    ),
    "drivers": ("a stream of arrays uint8 (b, y, x, 3)", lambda value: hasattr(value, "__iter__") and not isinstance(value, (str, bytes))),
}  # fmt: skip
