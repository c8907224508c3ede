"""PyTorch's own files, .pth and the like, read without PyTorch and without executing anything.

Such a file is a pickle that describes tensors, and their bytes; since PyTorch 1.6 as an uncompressed
archive, before that one after the other. A pickle is a program. Here its operations are looked up in
a table of those that build dictionaries, tuples and numbers, and the names it calls in a table of
those that describe tensors. Whatever is in neither is refused. No object of the file's choosing
ever comes to be, and no tensor's bytes are read before they are asked for.
"""

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from convert.tensors import LARGEST_HEADER, NAME, Derived, Tensor
from svdp_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # how a file of before 1.6 begins
MOST_AXES = 8
STORAGES = {
    "torch FloatStorage": np.float32,
    "torch DoubleStorage": np.float64,
    "torch HalfStorage": np.float16,
    "torch BFloat16Storage": ml_dtypes.bfloat16,
    "torch LongStorage": np.int64,
    "torch IntStorage": np.int32,
    "torch ShortStorage": np.int16,
    "torch CharStorage": np.int8,
    "torch ByteStorage": np.uint8,
    "torch BoolStorage": np.bool_,
}
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error, EOFError)


class Refused(Exception):
    """What of a file is not accepted, to follow the file's name."""


class Storage(NamedTuple):
    """A run of numbers, by the name that it has in the file."""

    key: str
    dtype: np.dtype
    count: int


class View(NamedTuple):
    """Elements of a storage: from which on, how many along each axis, how far apart."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> list[Tensor | Derived]:
    """The tensors of a file by dotted path through its dictionaries; what is no tensor is left out.

    Raises UserError for what is broken, not PyTorch's, or holds anything but data.
    """
    try:
        value, places = (archived if zipfile.is_zipfile(path) else concatenated)(path)
        return [tensor(path, name, view, places) for name, view in leaves(value)]
    except Refused as error:
        raise UserError(f"{path} {error}; it is refused.") from None
    except MALFORMED as error:
        raise UserError(f"{path} has a broken pickle ({type(error).__name__}: {error}).") from None
    # zipfile says NotImplementedError of a compression it does not know.
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise UserError(f"{path} is broken ({error}); fetch it again.") from None


def archived(path: Path) -> tuple[Any, dict]:
    """The value of an archive's pickle, and from which byte to which each storage is."""
    with zipfile.ZipFile(path) as archive:
        entries = contents(archive, path.stat().st_size)
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        program = archive.read(entries["data.pkl"])
        byteorder = archive.read(entries["byteorder"]) if "byteorder" in entries else b"little"
    if byteorder != b"little":
        raise Refused("holds big-endian numbers")
    with open(path, "rb") as file:
        places = {name.removeprefix("data/"): place(file, entry) for name, entry in entries.items()}
    return run(io.BytesIO(program), {}), places


def contents(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by path within its one folder."""
    entries, found = archive.infolist(), {}
    roots = {PurePosixPath(entry.filename).parts[:1] for entry in entries}
    for entry in entries:
        name = entry.filename
        relative = name.partition("/")[2]
        if len(roots) > 1 or ".." in name or name.startswith("/") or relative in found:
            raise Refused(f"names the entry {name!r}, as no PyTorch file does")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(f"has the compressed or encrypted entry {name!r}; PyTorch writes none")
        if entry.file_size != entry.compress_size or entry.header_offset + entry.file_size > size:
            raise Refused(f"has the entry {name!r}, which is larger than the file")
        found[relative] = entry
    if "data.pkl" not in found or found["data.pkl"].file_size > LARGEST_HEADER:
        raise Refused("is an archive without a data.pkl of sensible size, so not PyTorch's")
    return found


def place(file: BinaryIO, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """From which byte of the archive to which an entry is."""
    file.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))  # lengths of what follows the 30 bytes of header
    start = entry.header_offset + 30 + name + extra
    return start, start + entry.file_size


def concatenated(path: Path) -> tuple[Any, dict]:
    """As `archived`, of a file of before PyTorch 1.6."""
    with open(path, "rb") as file:
        header = io.BytesIO(file.read(LARGEST_HEADER))
        if header.getvalue()[:2] != b"\x80\x02" or run(header, {}) != MAGIC:
            raise Refused("is no PyTorch file, neither an archive nor of the older format")
        storages, places = {}, {}
        _version, _machine, value, keys = (run(header, storages) for _ in range(4))
        end = header.tell()
        for key in keys:
            file.seek(end)
            (count,) = struct.unpack("<Q", file.read(8))
            start, end = end + 8, end + 8 + count * storages[text(key)].dtype.itemsize
            places[key] = start, end
    if end > path.stat().st_size:
        raise OSError("it is cut off")
    return value, places


# The pickle


def run(program: BinaryIO, storages: dict[str, Storage]) -> Any:
    """The value that the pickle in a stream describes. storages: gets those that it refers to."""
    stack, memo = [], {}
    for operation, argument, _ in pickletools.genops(program):
        name = operation.name
        if name == "STOP":
            return stack.pop()
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in STEPS:
            STEPS[name](stack, argument)
        elif name in PUT:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in GET:
            stack.append(memo[argument])
        elif name == "BINPERSID":
            found = storage(*stack.pop())
            storages[found.key] = found
            stack.append(found)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"has the pickle operation {name}, which no weights need")


def storage(what: str, kind: str, key: str, _device: str, count: int, *view) -> Storage:
    if text(what) != "storage" or text(kind) not in STORAGES or view not in ((), (None,)):
        raise Refused("refers to something that is no storage of numbers")
    return Storage(text(key), np.dtype(STORAGES[kind]), count)


def rebuild(storage: Storage, offset: int, shape: tuple, strides: tuple, *_) -> View:
    """As torch._utils._rebuild_tensor_v2, with every element seen to lie within the storage."""
    numbers = (storage.count, offset, *shape, *strides)
    if not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(strides):
        raise Refused("has a tensor with a place, shape or strides that are no sizes")
    view = View(storage, offset, tuple(shape), tuple(strides))
    # One with more elements than the storage would repeat them, and could fill any memory.
    if max(math.prod(shape), offset + span(view)) > storage.count or len(shape) > MOST_AXES:
        raise Refused(f"has a tensor of shape {shape} and strides {strides} that leaves its storage")
    return view


def span(view: View) -> int:
    """From its first element to its last, both included."""
    steps = sum((size - 1) * step for size, step in zip(view.shape, view.strides))
    return steps + 1 if math.prod(view.shape) else 0


def text(value: Any) -> str:
    # Also keeps nested tuples, whose hash and text can take forever, from being looked up.
    if type(value) is not str:
        raise Refused("names something by what is no text")
    return value


CALLS = {
    "collections OrderedDict": dict,
    "torch._utils _rebuild_tensor_v2": rebuild,
    "torch._utils _rebuild_parameter": lambda view, *_: view,
}
MARK = object()


def name(stack: list, wanted: str) -> None:
    if wanted not in CALLS and wanted not in STORAGES:
        raise Refused(f"would call {wanted.replace(' ', '.')!r}, which is no part of a tensor")
    stack.append(wanted)


def call(stack: list, _) -> None:
    arguments, function = stack.pop(), text(stack.pop())
    stack.append(CALLS[function](*arguments))


def taken(stack: list, count: int) -> tuple:
    items = tuple(stack[len(stack) - count :])
    del stack[len(stack) - count :]
    return items


def since_mark(stack: list) -> tuple:
    items = []
    while (item := stack.pop()) is not MARK:  # an IndexError where there is none
        items.append(item)
    return tuple(reversed(items))


def set_items(stack: list, items: tuple) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int):
            raise Refused("has a dictionary with keys that are no names")
        stack[-1][key] = value


def extend(stack: list, items: tuple) -> None:
    stack[-1].extend(items)


VALUES = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
}  # fmt: skip
CONSTANTS = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "MARK": lambda: MARK,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip
PUT, GET = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"BINGET", "LONG_BINGET"}
STEPS: dict[str, Callable[[list, Any], None]] = {
    "GLOBAL": name,
    "STACK_GLOBAL": lambda stack, _: name(stack, " ".join(taken(stack, 2))),
    "REDUCE": call,
    "BUILD": lambda stack, _: stack.pop(),  # attributes, such as a state dict's _metadata
    "TUPLE": lambda stack, _: stack.append(since_mark(stack)),
    "TUPLE1": lambda stack, _: stack.append(taken(stack, 1)),
    "TUPLE2": lambda stack, _: stack.append(taken(stack, 2)),
    "TUPLE3": lambda stack, _: stack.append(taken(stack, 3)),
    "APPEND": lambda stack, _: stack[-2].append(stack.pop()),
    "APPENDS": lambda stack, _: extend(stack, since_mark(stack)),
    "SETITEM": lambda stack, _: set_items(stack, taken(stack, 2)),
    "SETITEMS": lambda stack, _: set_items(stack, since_mark(stack)),
}


# From its value to tensors


def leaves(value: Any) -> list[tuple[str, View]]:
    """The tensors of dictionaries in dictionaries, by dotted path."""
    found, waiting, seen = [], [("", value)], set()
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, View):
            found.append((path, value))
        elif isinstance(value, dict):
            if id(value) in seen:  # which could go on for ever
                raise Refused("has a dictionary in two places")
            seen.add(id(value))
            waiting += [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise Refused("has two tensors of one name")
    return found[::-1]


def tensor(path: Path, name: str, view: View, places: dict) -> Tensor | Derived:
    if not NAME.fullmatch(name) or ".." in name:
        raise Refused(f"names a tensor {name!r}, as no network does")
    key, dtype, count = view.storage
    start, end = places[key]
    if count * dtype.itemsize > end - start:
        raise Refused(f"says of storage {key} that it has {count} numbers, and it is smaller")
    start += view.offset * dtype.itemsize
    bytes_ = start, start + span(view) * dtype.itemsize
    if view.strides == dense(view.shape):
        return Tensor(name, path, dtype, view.shape, (bytes_,))
    flat = Tensor(name, path, dtype, (span(view),), (bytes_,))
    return Derived(name, dtype, view.shape, partial(spread, flat, view))


def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor without gaps, the last axis innermost."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def spread(flat: Tensor, view: View) -> np.ndarray:
    array = flat.read()
    steps = [step * array.itemsize for step in view.strides]
    return np.lib.stride_tricks.as_strided(array, view.shape, steps)
