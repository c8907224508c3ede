"""The safetensors format, read tensor by tensor and trusted in nothing.

A file is eight bytes of header length, a JSON header that names each tensor's
dtype, shape and byte range, and the bytes. Reading here keeps memory to one
tensor, knows bfloat16 without PyTorch, and checks every number of the header.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from einops import rearrange
from tqdm import tqdm

from svdp_jax.errors import UserError

FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
NARROW = {"F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2)}
EIGHT_BITS = set(NARROW.values())
INTEGERS = {f"{sign}{8 * size}": np.dtype(f"{sign.lower()}{size}") for sign in "IU" for size in (1, 2, 4, 8)}
DTYPES = FLOATS | NARROW | INTEGERS | {"F64": np.dtype(np.float64), "BOOL": np.dtype(np.bool_)}
# What weights become where no dtype is asked for: nothing is computed in float8 here, and bfloat16 holds all its values.
BECOMES = dict.fromkeys(NARROW.values(), np.dtype(ml_dtypes.bfloat16)) | {np.dtype(np.float64): np.dtype(np.float32)}
CODES = {dtype: code for code, dtype in FLOATS.items()}
LARGEST_HEADER = 100_000_000  # bytes, the limit of the format's own library
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, read only when asked for.

    spans: its byte ranges, in order. dtype: the name of one that cannot be read stays text. scale: what its float8
    numbers are multiplied by, one for all or one a row.
    """

    name: str
    file: Path
    dtype: Any  # np.dtype | str
    shape: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    scale: "Tensor | None" = None

    def read(self) -> np.ndarray:
        """Its numbers; those of float8 as float32, scaled. UserError where they cannot be had."""
        if isinstance(self.dtype, str):
            raise UserError(f"{self.file} stores {self.name} as {self.dtype}; only {', '.join(DTYPES)} are read.")
        buffer = np.empty(sum(end - start for start, end in self.spans), np.uint8)
        done = 0
        with open(self.file, "rb", buffering=0) as file:
            for start, end in self.spans:
                file.seek(start)
                while start < end:
                    count = file.readinto(buffer.data[done : done + end - start])
                    if not count:
                        raise UserError(f"{self.file} ends inside tensor {self.name}.")
                    start, done = start + count, done + count
        array = buffer.view(self.dtype).reshape(self.shape)
        if self.dtype not in EIGHT_BITS:
            return array
        array = array.astype(np.float32)
        return (
            array if self.scale is None else array * self.scale.read().reshape(-1, *(1,) * (array.ndim - 1)).astype(np.float32)
        )

    def parts(self, which: tuple[int, ...], of: int) -> "Tensor":
        """The chosen ones, in that order, of `of` equal parts along the first axis."""
        if len(self.spans) != 1 or not self.shape or self.shape[0] % of:
            raise UserError(f"{self.name} of shape {self.shape} has no {of} equal parts of rows.")
        start, end = self.spans[0]
        size = (end - start) // of
        each_row = self.scale and self.scale.shape[:1] == self.shape[:1]
        return replace(
            self,
            scale=self.scale.parts(which, of) if each_row else self.scale,
            shape=(self.shape[0] // of * len(which), *self.shape[1:]),
            spans=tuple((start + i * size, start + (i + 1) * size) for i in which),
        )


@dataclass(frozen=True)
class Derived:
    """A tensor computed from others when it is asked for."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


SCALES = ("scale_weight", "weight_scale")  # beside a `weight`, in older and newer files


def scaled(tensors: list) -> list:
    """The tensors, those of float8 with the scale that stands beside them, if any."""
    named = {t.name: t for t in tensors}
    scales = {
        base + "weight": t for name, t in named.items() for suffix in SCALES if (base := name.removesuffix(suffix)) != name
    }
    used = {scales[t.name].name: t.name for t in tensors if t.dtype in EIGHT_BITS and t.name in scales}
    for name, of in used.items():
        if math.prod(named[name].shape) not in (1, named[of].shape[0]):
            raise UserError(f"{name} of shape {named[name].shape} is no scale of {of}, {named[of].shape}; take the fp16 file.")
    return [replace(t, scale=scales[t.name]) if t.name in used.values() else t for t in tensors if t.name not in used]


def permuted(tensor: Tensor | Derived, name: str, axes: str) -> Derived:
    """The tensor under another name, its axes rearranged by an einops pattern."""
    source, target = axes.split(" -> ")
    sizes = dict(zip(source.split(), tensor.shape, strict=True))
    shape = tuple(sizes[axis] for axis in target.split())
    return Derived(name, tensor.dtype, shape, lambda: rearrange(tensor.read(), axes))


def filled(name: str, like: Tensor | Derived, value: float) -> Derived:
    """A constant of another tensor's shape."""
    return Derived(name, like.dtype, like.shape, lambda: np.full(like.shape, value, BECOMES.get(like.dtype, like.dtype)))


def read_header(path: Path) -> list[Tensor]:
    """The tensors of one file. Raises UserError for what is not a whole, sound safetensors file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise UserError(f"{path} is not a safetensors file, or it is cut off in its header.")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=lambda pairs: unique(pairs, path))
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        tensors = [tensor(path, 8 + length, name, **entry) for name, entry in entries]
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a broken safetensors header ({error}).") from None
    end = 0
    for t in sorted(tensors, key=lambda t: t.spans[0]):
        if t.spans[0][0] < end:
            raise UserError(f"{path} is broken: {t.name} overlaps the tensor before it.")
        end = t.spans[0][1]
    if end > size:
        raise UserError(f"{path} is cut off: {size} of {end} bytes are there; fetch it again.")
    return tensors


def unique(pairs: list, path: Path) -> dict:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise UserError(f"{path} is broken: its header names the same thing twice.")
    return entries


def tensor(path: Path, base: int, name: str, dtype: str, shape: list, data_offsets: list) -> Tensor:
    if not NAME.fullmatch(name) or ".." in name:
        raise UserError(f"{path} names a tensor {name!r}, which no network has; it is refused.")
    start, end = data_offsets
    numbers = (*shape, start, end)
    if not all(isinstance(n, int) and n >= 0 for n in numbers) or end < start:
        raise UserError(f"{path} is broken: {name} has the impossible shape or place {numbers}.")
    kind = DTYPES.get(dtype, str(dtype))  # one of another network's tensors is no reason to refuse the file
    if isinstance(kind, np.dtype) and end - start != math.prod(shape) * kind.itemsize:
        raise UserError(f"{path} is broken: the bytes of {name} do not fit its shape {shape}.")
    return Tensor(name, path, kind, tuple(shape), ((base + start, base + end),))


def write(path: Path, outputs: list) -> None:
    """Writes tensors one by one: each output tells name, dtype and shape, and can `make` itself."""
    # PyTorch's loaders ask for this mark.
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    end = 0
    for o in outputs:
        start, end = end, end + math.prod(o.shape) * o.dtype.itemsize
        place = {"dtype": CODES[o.dtype], "shape": list(o.shape), "data_offsets": [start, end]}
        header[o.name] = place
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the bytes that follow stay aligned
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for o in tqdm(outputs, f"writing {path.name}", unit="tensor"):
            file.write(o.make().reshape(-1).view(np.uint8))
