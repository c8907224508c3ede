"""Training records on disk: one ArrayRecord per frame in shards, and a manifest that says what they hold.

A record is the frame's latents, the masked driver's latents (y x c, float16) and how much of each
latent's place the driver shows (y x, uint8, 255 being all): three arrays, one after the other.
Clips follow each other in the order of their names, and the frames of a clip in the order of time.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from einops import reduce

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.files import write_whole
from svdp_jax.weights import checkpoint

SHARD = 512  # frames, at least: 135 MB of latents at 512 x 512
AT_ONCE = 8  # pictures encoded in one call
SOURCES = 16  # candidates for the source picture, of each clip
FORMAT = "group_size:1,zstd:1"  # the grey of a masked driver is worth compressing
MANIFEST = "manifest.json"


class Layout(NamedTuple):
    """Shape of a frame's latents."""

    y: int
    x: int
    c: int

    @property
    def latents(self) -> int:
        return self.y * self.x * self.c

    def pack(self, target: np.ndarray, driving: np.ndarray, seen: np.ndarray) -> bytes:
        return target.astype("<f2").tobytes() + driving.astype("<f2").tobytes() + seen.tobytes()

    def unpack(self, record: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Target and driving (y x c) float16, seen (y x 1) uint8."""
        n = self.latents
        both = np.frombuffer(record, "<f2", 2 * n).reshape(2, *self)
        seen = np.frombuffer(record, np.uint8, self.y * self.x, 4 * n)
        return both[0], both[1], seen.reshape(self.y, self.x, 1)


class Pictures(NamedTuple):
    """One frame to be encoded: crop and masked driver (size size 3) uint8, and what of the driver is kept."""

    target: np.ndarray
    driving: np.ndarray
    mask: np.ndarray  # (size, size) bool


def coverage(mask: np.ndarray, factor: int) -> np.ndarray:
    """Share of each latent's place that is kept, (y x) uint8."""
    shares = reduce(mask.astype(np.float32), "(y i) (x j) -> y x", "mean", i=factor, j=factor)
    return np.round(255 * shares).astype(np.uint8)


def shards(counts: list[int]) -> list[range]:
    """Clips, given by their frame counts, dealt out in order to shards of SHARD frames or a little more."""
    result, start, frames = [], 0, 0
    for index, count in enumerate(counts):
        frames += count
        if frames >= SHARD or index == len(counts) - 1:
            result.append(range(start, index + 1))
            start, frames = index + 1, 0
    return result


class Written(NamedTuple):
    """What a shard holds."""

    records: int
    latents: Layout


def write_shard(path: Path, frames: Iterable[Pictures], encode: Callable[[np.ndarray], np.ndarray], factor: int) -> Written:
    """Encodes frames, one or more, into a file that appears complete or not at all.

    encode: pictures (b size size 3) uint8 to latents (b y x c), with b always 2 AT_ONCE.
    """
    partial, count = path.with_name(f".{path.name}.partial"), 0
    with contextlib.closing(ArrayRecordWriter(str(partial), FORMAT)) as writer:
        for group in _groups(frames):
            padded = group + [group[-1]] * (AT_ONCE - len(group))
            latents = encode(np.stack([f.target for f in padded] + [f.driving for f in padded]))
            layout = Layout(*latents.shape[1:])
            for i, frame in enumerate(group):
                record = layout.pack(latents[i], latents[AT_ONCE + i], coverage(frame.mask, factor))
                writer.write(record)
            count += len(group)
    os.replace(partial, path)
    return Written(count, layout)


def _groups(frames: Iterable[Pictures]) -> Iterator[list[Pictures]]:
    group = []
    for frame in frames:
        group.append(frame)
        if len(group) == AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def candidates(track) -> list[int]:
    """Frames of a clip that make good source pictures: the surest, spread over its length."""
    pieces = np.array_split(np.arange(len(track.found)), min(SOURCES, len(track.found)))
    return [int(piece[np.argmax(track.faces.confidence[piece])]) for piece in pieces]


def codec_mark(codec: configs.Codec) -> dict:
    """What tells one codec from another: latents are of use only to a model with the same."""
    path = (checkpoint.codec_folder(codec) or Path()) / MANIFEST
    sha = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and codec.kind != "pixels" else ""
    return {"kind": codec.kind, "factor": codec.factor, "weights": sha}


def file_hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """A file that appears complete or not at all, and is left alone where it says this already."""
    if not path.exists() or path.read_bytes() != text.encode():
        write_whole(path, text)


def write_json(path: Path, value) -> None:
    """JSON, the same bytes for the same value."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path):
    """None where the file is not there (yet), or is damaged, which is as good as not there."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def read_manifest(folder: Path) -> tuple[Path, dict]:
    """The folder of the records in or below `folder`, and their manifest. UserError where there is none."""
    for place in (folder, folder / "records"):
        try:
            manifest = json.loads((place / MANIFEST).read_text())
            if manifest["kind"] == "svdp_jax records":
                return place, manifest
        except (OSError, ValueError, KeyError, TypeError):
            continue
    raise UserError(f"{folder} holds no finished records; make them with `python -m svdp_jax.prepare VIDEOS {folder}`.")


def check_files(folder: Path, manifest: dict) -> list[Path]:
    """The shards in order; UserError, naming the first, where one is missing or of another size."""
    paths = [folder / shard["file"] for shard in manifest["shards"]]
    for path, shard in zip(paths, manifest["shards"], strict=True):
        size = path.stat().st_size if path.exists() else None
        if size != shard["bytes"]:
            raise UserError(f"{path}: {'missing' if size is None else 'not whole'}; copy it or prepare these records again.")
    return paths
