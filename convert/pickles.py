"""PyTorch's own files, .pth and the like, read without PyTorch and without executing anything.

Such a file is a pickle that describes tensors (see unpickle.py), and their bytes: since PyTorch 1.6
as an uncompressed archive, before that one after the other; arrays of NumPy are in the pickle
itself. An archive of TorchScript also holds code, which is not looked at. No tensor's bytes are read
before they are asked for.
"""

import io
import math
import struct
import tarfile
import zipfile
import zlib
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from convert.tensors import LARGEST_HEADER, NAME, Derived, Tensor
from convert.unpickle import Array, Refused, View, run, span, text
from svdp_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # how a file of before 1.6 begins
CHUNK = 1 << 24  # bytes at a time
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error, EOFError)


def read(path: Path) -> list:
    """The tensors of a file by dotted path through its dictionaries; what is no tensor is left out.

    Raises UserError for what is broken, not PyTorch's, or holds anything but data.
    """
    try:
        value, places = (archived if zipfile.is_zipfile(path) else concatenated)(path)
        return [tensor(path, name, found, places) for name, found in leaves(value)]
    except Refused as error:
        raise UserError(f"{path} {error}; it is refused.") from None
    except MALFORMED as error:
        raise UserError(f"{path} has a broken pickle ({type(error).__name__}: {error}).") from None
    # zipfile says NotImplementedError of a compression it does not know.
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise UserError(f"{path} is broken ({error}); fetch it again.") from None


def archived(path: Path) -> tuple[Any, dict]:
    """The value of an archive's pickle, and from which byte to which each storage is."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        entries = contents(archive, path.stat().st_size)
        places = {name: place(file, entry) for name, entry in entries.items()}
        for name, entry in entries.items():
            if checksum(file, *places[name]) != entry.CRC:
                raise zipfile.BadZipFile(f"the checksum of {entry.filename} is wrong")
        program = archive.read(entries["data.pkl"])
        byteorder = archive.read(entries["byteorder"]) if "byteorder" in entries else b"little"
        frozen = any("/constants/" in name for name in archive.namelist())
    if byteorder != b"little":
        raise Refused("holds big-endian numbers")
    value = run(io.BytesIO(program), {})
    if frozen and not leaves(value):
        raise Refused("is a frozen TorchScript, whose weights have no names; take the one before freezing, or a state_dict")
    return value, {name.removeprefix("data/"): where for name, where in places.items()}


def contents(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries that hold weights, by path within its one folder."""
    entries, found, every = archive.infolist(), {}, set()
    roots = {PurePosixPath(entry.filename).parts[:1] for entry in entries}
    for entry in entries:
        name = entry.filename
        relative = name.partition("/")[2]
        if len(roots) > 1 or ".." in name or name.startswith("/") or relative in every:
            raise Refused(f"names the entry {name!r}, as no PyTorch file does")
        every.add(relative)
        if relative not in ("data.pkl", "byteorder") and not relative.startswith("data/"):
            continue  # the code of a TorchScript, and what else is not read
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(f"has the compressed or encrypted entry {name!r}; PyTorch writes none")
        if entry.file_size != entry.compress_size or entry.header_offset + entry.file_size > size:
            raise Refused(f"has the entry {name!r}, which is larger than the file")
        found[relative] = entry
    if "data.pkl" not in found or found["data.pkl"].file_size > LARGEST_HEADER:
        raise Refused("is an archive without a data.pkl of sensible size, so not PyTorch's; if it packs the file, unpack it")
    return found


def place(file: BinaryIO, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """From which byte of the archive to which an entry is."""
    file.seek(entry.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))  # lengths of what follows the 30 bytes of header
    start = entry.header_offset + 30 + name + extra
    return start, start + entry.file_size


def checksum(file: BinaryIO, start: int, end: int) -> int:
    file.seek(start)
    value = 0
    for at in range(start, end, CHUNK):
        value = zlib.crc32(file.read(min(CHUNK, end - at)), value)
    return value


def concatenated(path: Path) -> tuple[Any, dict]:
    """As `archived`, of a file of before PyTorch 1.6, or of a pickle of NumPy's arrays."""
    with open(path, "rb") as file:
        header = io.BytesIO(file.read(LARGEST_HEADER))
        if header.getvalue()[:2] not in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            packed = ": it is packed, so unpack it" if tarfile.is_tarfile(path) else ""
            raise Refused(f"is no PyTorch file, neither an archive nor of the older format{packed}")
        first = run(header, {})
        if type(first) is dict:
            return first, {}
        if type(first) is not int or first != MAGIC:
            raise Refused("is no PyTorch file, but a pickle of something else")
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


# From its value to tensors


def leaves(value: Any) -> list[tuple[str, View | Array]]:
    """The tensors of dictionaries in dictionaries, by dotted path; a scope's slashes become dots."""
    found, waiting, seen = [], [("", value)], set()
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, View | Array):
            found.append((path.replace("/", "."), value))
        elif isinstance(value, dict):
            if id(value) in seen:  # which could go on for ever
                raise Refused("has a dictionary in two places")
            seen.add(id(value))
            waiting += [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    names = [name for name, _ in found]
    if len(set(names)) < len(names):
        raise Refused("has two tensors of one name")
    return found[::-1]


def tensor(path: Path, name: str, found: View | Array, places: dict) -> Tensor | Derived:
    if not NAME.fullmatch(name) or ".." in name:
        raise Refused(f"names a tensor {name!r}, as no network does")
    if isinstance(found, Array):
        if found.dtype is None:
            raise Refused(f"has in {name} an array without a state")
        return Derived(name, found.dtype, found.shape, found.read)
    key, dtype, count, first = found.storage
    start, end = places[key]
    if (first + count) * dtype.itemsize > end - start:
        raise Refused(f"says of storage {key} that it has {first + count} numbers, and it is smaller")
    start += (first + found.offset) * dtype.itemsize
    bytes_ = start, start + span(found) * dtype.itemsize
    if found.strides == dense(found.shape):
        return Tensor(name, path, dtype, found.shape, (bytes_,))
    flat = Tensor(name, path, dtype, (span(found),), (bytes_,))
    return Derived(name, dtype, found.shape, partial(spread, flat, found))


def dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor without gaps, the last axis innermost."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def spread(flat: Tensor, view: View) -> np.ndarray:
    array = flat.read()
    steps = [step * array.itemsize for step in view.strides]
    return np.lib.stride_tricks.as_strided(array, view.shape, steps)
