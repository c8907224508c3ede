"""Clips on disk: square crops of one face as JPEG in one ArrayRecord file, any frame of which is read alone.

A clip of these is `NAME.frames` beside `NAME.npy`, its track in pixels of the crop (FACES).
"""

import contextlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from svdp_jax.faces import face
from svdp_jax.media import video

JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
JPEG_HEAD = 2  # bytes: the signature, after which a comment may stand
FORMAT = "group_size:1,uncompressed"  # pictures are compressed already
FACES = np.dtype(
    [("centre", "c16"), ("size", "f8"), ("left_eye", "c16"), ("right_eye", "c16"), ("nose", "c16"), ("mouth", "c16"),
     ("confidence", "f8"), ("outlines", "c8", (64,)), ("yaw", "f8"), ("opening", "f4", (3,)), ("found", "?")]
)  # fmt: skip
LIKELY = set(face.Face._fields) - set(face.Face._field_defaults)  # what every finder tells
FACE_SIDE = 128  # pixels of the face in which sharpness is measured
SHARPNESS_EVERY = 10  # frames


class Clip(NamedTuple):
    """One accepted shot: `frames`, `faces` and the like are files named after it in the folders of the stages."""

    name: str  # VIDEO-000
    video: str  # name of its source
    path: str  # of the video itself
    person: str
    licence: str
    first: int  # frame of the video
    count: int
    fps: float
    total: int  # frames of the video
    box: face.Box  # the crop in the picture
    facts: dict[str, float]
    sources: tuple[int, ...] = ()  # frames that make good source pictures
    digest: str = ""  # of all that, but whose film it is and where, and of the crops


class Writer:
    """Writes frames as they come to a file that appears complete or not at all.

    `metadata`, such as {"comment": "..."}, becomes a comment in every picture.
    """

    def __init__(self, path: Path, metadata: dict[str, str] | None = None):
        self.path, self.partial, self.count = path, path.with_name(f".{path.name}.partial"), 0
        text = "; ".join(f"{name}: {value}" for name, value in (metadata or {}).items()).encode()
        self.comment = b"\xff\xfe" + (len(text) + 2).to_bytes(2) + text if text else b""

    def __enter__(self):
        self.file = ArrayRecordWriter(str(self.partial), FORMAT)
        return self

    def write(self, image: np.ndarray) -> None:
        """Adds one (h, w, 3) uint8 picture."""
        data = cv2.imencode(".jpg", image[..., ::-1], JPEG)[1].tobytes()
        self.file.write(data[:JPEG_HEAD] + self.comment + data[JPEG_HEAD:])
        self.count += 1

    def __exit__(self, kind, error, trace):
        self.file.close()
        if kind is None:
            os.replace(self.partial, self.path)
        else:
            self.partial.unlink(missing_ok=True)


def encoded(path: Path, indices: Iterable[int] | None = None) -> Iterator[bytes]:
    """Frames of a clip as JPEG, all or those of these indices, one at a time."""
    with contextlib.closing(ArrayRecordReader(str(path))) as reader:
        for index in range(reader.num_records()) if indices is None else indices:
            yield reader.read([int(index)])[0]


def read(path: Path, indices: Iterable[int] | None = None) -> Iterator[np.ndarray]:
    """The same as pictures (size, size, 3) uint8."""
    for data in encoded(path, indices):
        yield cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def pack(track: face.Track) -> np.ndarray:
    """A track as (f,) FACES, fit for np.save."""
    rows: np.ndarray = np.empty(len(track.found), FACES)
    for name, values in zip(face.Face._fields, track.faces, strict=True):
        rows[name] = np.nan if values is None else values
    rows["found"] = track.found
    return rows


def unpack(rows: np.ndarray) -> face.Track:
    """None in place of what the finder did not tell, or what an older preparation did not keep."""
    there = lambda name: name in (rows.dtype.names or ()) and np.isfinite(rows[name]).any()
    known = {name: rows[name] if name in LIKELY or there(name) else None for name in face.Face._fields}
    return face.Track(face.Face(**known), rows["found"])


@contextlib.contextmanager
def tracks_writer(path: Path) -> Generator[Callable[[face.Track], None]]:
    """Puts tracks one after the other into one file as they come; it appears complete or not at all."""
    partial, count = path.with_name(f".{path.name}.partial"), 0

    def write(track: face.Track) -> None:
        nonlocal count
        file.write(pack(track).tobytes())
        count += len(track.found)

    def head() -> None:
        shape = {"descr": np.lib.format.dtype_to_descr(FACES), "fortran_order": False, "shape": (count,)}
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, shape)  # of one length whatever the count

    with open(partial, "wb") as file:
        head()
        yield write
        head()
    os.replace(partial, path)


def read_track(path: Path, start: int, count: int) -> face.Track:
    """Some rows of such a file; no others come into memory."""
    return unpack(np.array(np.load(path, mmap_mode="r")[start : start + count]))


def sharpness(image: np.ndarray, where: face.Face) -> float:
    """Energy of the face's finest detail as a share of its contrast, at one size for all faces."""
    half = where.size / 2
    corner = where.centre - half * (1 + 1j)
    box = face.Box(round(corner.real), round(corner.imag), max(1, round(where.size)))
    grey = cv2.cvtColor(face.crop(image, box, FACE_SIDE), cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var() / max(float(grey.var()), 1.0))


class Cut(NamedTuple):
    image: np.ndarray  # (size, size, 3) uint8
    sharpness: float | None  # only of every SHARPNESS_EVERY-th frame


def cut(frames: Iterator[tuple[int, video.Frame]], first: int, track: face.Track, box: face.Box, size: int) -> Iterator[Cut]:
    """The crops, where `box` is, of one shot. `frames` are numbered; those after the shot are left for the next one."""
    for index, frame in frames:
        if index < first:
            continue
        number = index - first
        measured = number % SHARPNESS_EVERY == 0
        yield Cut(face.crop(frame.image, box, size), sharpness(frame.image, face.at(track, number)) if measured else None)
        if number == len(track.found) - 1:
            return
