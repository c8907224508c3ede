"""Triplets for other trainers: a picture of A, a video of B making A's motion, and A's own video, as ordinary files.

OUT/triplets holds, for each clip that another person drives, NAME_reference.png, NAME_driving.mp4 and
NAME_target.mp4, of one size, one frame rate and one number of frames; and triplets.jsonl, one line each:

    {"id": "NAME", "reference_image": "NAME_reference.png", "driving_video": "NAME_driving.mp4",
     "target_video": "NAME_target.mp4", "caption": "...", "frames": 96, "fps": 25.0, "size": 512, "person": "A",
     "driver": "B-000", "licence": "...", "scores": {"identity": 0.21, "correlation": 0.93, ...}}

The first five are what NeMo AutoModel's recipe of Wan-Animate-2 reads (its guide's "Prepare Your Data"); paths are
relative to the file. `scores` are the gates' measures (`preparation.pairs`): identity is 0 where the driver has its
own head and 1 where it has A's; correlation is of the motion asked for and that seen.
"""

import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from tqdm import tqdm

from svdp_jax.errors import UserError
from svdp_jax.files import remove
from svdp_jax.media.images import write_image
from svdp_jax.media.writer import VideoWriter
from svdp_jax.preparation import crops, left

FOLDER, MANIFEST = "triplets", "triplets.jsonl"


def export(results: left.Results, found: list[crops.Clip], size: int, caption: str) -> Path:
    """Writes the folder anew, complete or not at all; returns the manifest. UserError where nobody drives another."""
    pairs = [(clip, driver) for clip, driver in results.paired(results.masked(found)) if driver != clip.name]
    if not pairs:
        raise UserError("no clip is driven by another person, so there are no triplets; OUT/report.html says why.")
    folder, partial = results.out / FOLDER, results.out / f".{FOLDER}.partial"
    remove(partial)
    partial.mkdir()
    lines = [json.dumps(written(results, partial, *pair, size, caption)) for pair in tqdm(pairs, desc="Triplets", unit="clip")]
    (partial / MANIFEST).write_text("\n".join(lines) + "\n")
    remove(folder)
    partial.rename(folder)
    return folder / MANIFEST


def written(results: left.Results, folder: Path, clip: crops.Clip, driver: str, size: int, caption: str) -> dict:
    """The three files of a clip, and its line."""
    out, about, fps = results.out, results.pair_of(clip), Fraction(clip.fps).limit_denominator(1001)
    names = {"reference_image": "reference.png", "driving_video": "driving.mp4", "target_video": "target.mp4"}
    files = {key: f"{clip.name}_{name}" for key, name in names.items()}
    own, (driving, _) = left.frames_of(out, clip), left.driver_of(out, clip, driver)
    (picture,) = crops.read(own, [clip.sources[0]])
    write_image(folder / files["reference_image"], picture)
    counts = {
        film(folder / files["driving_video"], crops.read(driving), fps, about["made_by"]),
        film(folder / files["target_video"], crops.read(own), fps, None),
    }
    (frames,) = counts
    return {"id": clip.name, **files, "caption": caption, "frames": frames, "fps": float(fps), "size": size,
            "person": clip.person, "driver": driver, "licence": clip.licence, "scores": about.get("scores", {})}  # fmt: skip


def film(path: Path, pictures: Iterator[np.ndarray], fps: Fraction, tags: dict[str, str] | None) -> int:
    with VideoWriter(path, fps, metadata=tags) as writer:
        return sum(1 for picture in pictures if writer.write(picture) is None)
