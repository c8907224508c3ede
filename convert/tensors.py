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

import ml_dtypes
import numpy as np
from tqdm import tqdm

from svdp_jax.errors import UserError

FLOATS = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
OTHERS = {"F64": np.dtype(np.float64), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "U8": np.dtype(np.uint8)}
DTYPES = FLOATS | OTHERS
CODES = {dtype: code for code, dtype in FLOATS.items()}
LARGEST_HEADER = 100_000_000  # bytes, the limit of the format's own library
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, read only when asked for. `spans` are its byte ranges, in order."""

    name: str
    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def read(self) -> np.ndarray:
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
        return buffer.view(self.dtype).reshape(self.shape)

    def parts(self, which: tuple[int, ...], of: int) -> "Tensor":
        """The chosen ones, in that order, of `of` equal parts along the first axis."""
        if len(self.spans) != 1 or not self.shape or self.shape[0] % of:
            raise UserError(f"{self.name} of shape {self.shape} has no {of} equal parts of rows.")
        start, end = self.spans[0]
        size = (end - start) // of
        return replace(
            self,
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
    if dtype not in DTYPES:
        raise UserError(f"{path} stores {name} as {dtype}; only {', '.join(DTYPES)} are read.")
    start, end = data_offsets
    numbers = (*shape, start, end)
    if not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise UserError(f"{path} is broken: {name} has the impossible shape or place {numbers}.")
    if end - start != math.prod(shape) * DTYPES[dtype].itemsize:
        raise UserError(f"{path} is broken: the bytes of {name} do not fit its shape {shape}.")
    return Tensor(name, path, DTYPES[dtype], tuple(shape), ((base + start, base + end),))


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
