"""How the files that are scored are coded: codec, size and bit rate, and all of them coded alike.

Coding alone moves metrics: Sync, which hears a shift of half a frame, and FVD, which sees block edges.
"""

import shutil
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from tqdm import tqdm

from svdp_jax.errors import UserError
from svdp_jax.evaluation.clips import PICTURES, Clip, Folders, find
from svdp_jax.media import video
from svdp_jax.media.writer import VideoWriter
from svdp_jax.preparation.ingest import SUFFIXES

APART = 1.5  # bit rates that differ by this factor are said to differ


class Coding(NamedTuple):
    """Of one video: its codec's name, pixels, and thousands of bits a second of its pictures."""

    codec: str
    size: tuple[int, int]
    kbps: float


def coding(path: Path) -> Coding:
    with video.opened(path) as (container, stream):
        codec, size = stream.codec_context.codec.canonical_name, (stream.codec_context.width, stream.codec_context.height)
        bits = 8 * sum(packet.size for packet in video.packets_of(path, container, stream))
    return Coding(codec, size, bits / 1000 / float(video.probe(path).duration))


def of_role(clips: list[Clip], role: str) -> dict | None:
    """Codecs, sizes and the mean bit rate of the clips' videos in this role; None where there are none."""
    found = [coding(clip.paths[role]) for clip in clips if role in clip.paths]
    if not found:
        return None
    return {
        "codec": sorted({c.codec for c in found}),
        "size": sorted({c.size for c in found}),
        "kbps": round(fmean(c.kbps for c in found), 1),
    }


def described(files: dict) -> str:
    sizes = ", ".join(f"{width}x{height}" for width, height in files["size"])
    return f"{', '.join(files['codec'])}, {sizes}, {files['kbps']:g} kbit/s"


def differences(files: dict[str, dict]) -> list[str]:
    """A sentence where videos, by what they are of, are not coded alike."""
    faults = [
        what
        for what, alike in {
            "codec": len({tuple(f["codec"]) for f in files.values()}) == 1,
            "size": len({tuple(map(tuple, f["size"])) for f in files.values()}) == 1,
            "bit rate": max(f["kbps"] for f in files.values()) <= APART * min(f["kbps"] for f in files.values()),
        }.items()
        if not alike
    ]
    if not faults:
        return []
    told = "; ".join(f"{name}: {described(f)}" for name, f in files.items())
    return [
        f"Videos differ in {' and '.join(faults)}, which moves Sync and FVD ({told}); --recode codes all in one codec at one quality."
    ]


def recoded(folders: Folders, place: Path, known: dict[Path, Path]) -> Folders:
    """The folders with every video coded by our writer (H.264, one quality), without what cannot be read.

    place: an existing folder for them. known: by folder, those that were recoded before.
    """
    for folder in {f for f in folders if f} - known.keys():
        found, out = set(find(folder, SUFFIXES | PICTURES).values()), place / str(len(known))
        out.mkdir()
        for path in tqdm(sorted(folder.iterdir()), desc=f"Recoding {folder.name}", unit="file"):
            if path in found and path.suffix.lower() in SUFFIXES:
                recode(path, out / f"{path.stem}.mp4")
            elif path.is_file():
                shutil.copy(path, out)
        known[folder] = out
    moved: dict[str, Any] = {role: known[f] for role, f in folders._asdict().items() if f}
    return folders._replace(**moved)


def recode(path: Path, out: Path) -> None:
    try:
        info = video.probe(path)
        with VideoWriter(out, info.fps, path if info.has_audio else None) as writer:
            for frame in video.read_frames(path):
                writer.write(frame.image)
    except UserError:
        shutil.copy(path, out.with_suffix(path.suffix))  # it will be refused by name
