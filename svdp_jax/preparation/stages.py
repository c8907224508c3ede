"""The stages of `svdp_jax.prepare`: what each reads and writes in the folder of a preparation.

    faces/VIDEO.json, .npy       shots, their facts, and the track of each face
    crops/VIDEO/                 clips.json, and NNN.frames and NNN.npy (see `crops`) of what the gates let pass
    masks/CLIP.npy, .json        points that outline what is kept, and what of the face still shows
    pairs/CLIP.json, .frames, .npy   who drives, and the driver's frames and points where that is another
    records/                     shards and manifest (see `encode`)

A result appears complete or not at all, JSON last, and depends on the input and the settings alone: so
a stage skips what is done, and a preparation that was killed ends with the same bytes.
"""

import dataclasses
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from svdp_jax import config as configs
from svdp_jax.animator import provenance
from svdp_jax.faces import face, landmarks, masks
from svdp_jax.models.vae import each_frame, from_uint8
from svdp_jax.preparation import crops, drivers, encode, gates, ingest, left, pairs, report, shots
from svdp_jax.preparation.pipeline import Stage
from svdp_jax.weights import checkpoint, shipped

MAKERS = drivers.MAKERS | {"liveportrait": pairs.maker}
VERSIONS = ("svdp_jax", "numpy", "opencv-python-headless", "av", "jax", "array-record")


@dataclass(frozen=True)
class Settings:
    """All that the results depend on beside the input. Fields in the order of the stages that read them."""

    longest: float = 10.0  # seconds of a clip
    landmarks: str = "windows"
    size: int = 512  # pixels of a crop
    limits: tuple[str, ...] = ()  # changed gates
    pairs: str = "liveportrait"
    pair_weights: str = ""
    seed: int = 0
    codec: configs.Codec = dataclasses.field(default_factory=configs.Codec)


class Job(NamedTuple):
    """One element of a stage; travels to the worker that does it."""

    out: Path
    settings: Settings
    item: Any  # a Source, Clip, Pairing or Shard, as the stage takes them


class Pairing(NamedTuple):
    clip: crops.Clip
    others: list[crops.Clip]  # in the order in which they are tried


class Shard(NamedTuple):
    number: int
    clips: list[crops.Clip]

    @property
    def file(self) -> str:
        return f"frames-{self.number:05}.array_record"


def source_weight(job: Job) -> int:
    try:
        return ingest.expected_frames(job.item.path)
    except Exception:  # it will be reported when its turn comes
        return 0


# Shots and faces


def find_faces(job: Job, advance: Callable) -> None:
    source, entries, error, frames = job.item, [], "", 0
    folder = job.out / "faces"
    folder.mkdir(parents=True, exist_ok=True)

    def counted() -> Iterator:
        nonlocal frames
        for frame in ingest.frames(source.path):
            frames += 1
            advance(1)
            yield frame

    with warnings.catch_warnings(record=True) as caught, crops.tracks_writer(_tracks(job)) as write:
        warnings.simplefilter("always")
        try:
            for shot in shots.follow(counted(), source.segments, job.settings.longest, _given(job)):
                entries.append({"first": shot.first, "count": shot.count, "fps": shot.fps, "facts": shot.facts,
                                "thumb": report.thumbnail(shot.thumb), "tracked": shot.track is not None})  # fmt: skip
                if shot.track:
                    write(shot.track)
        except Exception as fault:  # whatever a file does to a decoder, it costs that file alone
            error = str(fault) or type(fault).__name__
            logging.getLogger(__name__).warning("%s", error)
    said = sorted({str(w.message) for w in caught})
    about = {"bytes": _bytes(source), "frames": frames, "error": error, "warnings": said, "shots": entries}
    encode.write_json(folder / f"{source.name}.json", about)


def _tracks(job: Job) -> Path:
    """The file of all tracks of a video, one after the other."""
    return job.out / "faces" / f"{job.item.name}.npy"


def _given(job: Job) -> landmarks.Reader | None:
    """The source's landmark file, where these are the provider."""
    name, _, folder = job.settings.landmarks.partition(":")
    if name != "files":
        return None
    return masks.given(folder, job.item.name, ingest.exact_frames(job.item.path))


def faces_done(job: Job) -> bool:
    about = left.read_json(job.out / "faces" / f"{job.item.name}.json")
    return about is not None and about["bytes"] == _bytes(job.item)


def _bytes(source: ingest.Source) -> int:
    path = Path(source.path)
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir()))


# Crops, and all gates but that of yaw


def cut_crops(job: Job, advance: Callable) -> None:
    source = job.item
    about = left.read_json(job.out / "faces" / f"{source.name}.json")
    target = job.out / "crops" / source.name
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    frames, row, clips, rejected = enumerate(ingest.frames(source.path)), 0, [], []
    for number, shot in enumerate(about["shots"]):
        name, facts = f"{source.name}-{number:03}", shot["facts"]
        box, reason = _cut_shot(job, frames, shot, row, partial / f"{number:03}", advance)
        row += shot["count"] * shot["tracked"]
        if box is None or reason:
            rejected.append({"name": name, "reason": reason, "thumb": shot["thumb"]})
            continue
        clips.append(crops.Clip(name, source.name, source.path, source.person, source.licence,
                                shot["first"], shot["count"], shot["fps"], about["frames"], box, facts))  # fmt: skip
    encode.write_json(partial / "clips.json", {"clips": [clip._asdict() for clip in clips], "rejected": rejected})
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _cut_shot(job: Job, frames, shot: dict, row: int, stem: Path, advance) -> tuple[face.Box | None, str]:
    """Writes the crops of a shot, whose track begins at a row, and adds to its facts how sharp they are.

    The crop in the picture, and why the shot is rejected, empty where it is not.
    """
    table = gates.limited(list(job.settings.limits))
    reason = gates.rejection(shot["facts"], table) if shot["tracked"] else "no face"
    if reason:
        return None, reason
    track, size = crops.read_track(_tracks(job), row, shot["count"]), job.settings.size
    box = face.crop_box(track.faces)
    cuts = crops.cut(frames, shot["first"], track, box, size)
    shot["facts"]["sharpness"] = _write_clip(stem, cuts, track, box, size, advance)
    reason = gates.rejection(shot["facts"], table)
    if reason:
        stem.with_suffix(".frames").unlink()
        stem.with_suffix(".npy").unlink()
    return box, reason


def _write_clip(stem: Path, cuts: Iterator[crops.Cut], track: face.Track, box: face.Box, size: int, advance) -> float:
    """Writes crops, and the track in their pixels; returns the sharpness, the median over some frames."""
    sharp = []
    with crops.Writer(stem.with_suffix(".frames")) as writer:
        for image, sharpness in cuts:
            writer.write(image)
            advance(1)
            sharp += [] if sharpness is None else [sharpness]
    np.save(stem.with_suffix(".npy"), crops.pack(track._replace(faces=face.in_crop(track.faces, box, size))))
    return float(np.median(sharp))


def crops_done(job: Job) -> bool:
    return (job.out / "crops" / job.item.name / "clips.json").exists()


# Masks


def outline(job: Job, advance: Callable) -> None:
    out, s, clip = job
    track, frames = left.clip_track(out, clip), left.frames_of(out, clip)
    taken = masks.Taken(lambda: crops.read(frames), track, clip.box, s.size, clip.first, clip.total, clip.video)
    points = masks.outlines(s.landmarks, taken)
    facts = masks.facts(points, track, s.size)
    if not s.landmarks.startswith("windows"):
        facts["yaw"] = float(np.quantile(abs(masks.yaw(points)), 0.95))
    advance(clip.count)
    (out / "masks").mkdir(exist_ok=True)
    _save(out / "masks" / f"{clip.name}.npy", points.astype(np.complex64))
    reason = gates.rejection(clip.facts | facts, gates.limited(list(s.limits)))
    encode.write_json(out / "masks" / f"{clip.name}.json", {"facts": facts, "reason": reason})


def masks_done(job: Job) -> bool:
    return (job.out / "masks" / f"{job.item.name}.json").exists()


# Pairs


def pair(job: Job, advance: Callable) -> None:
    out, s, (clip, others) = job
    (out / "pairs").mkdir(exist_ok=True)
    stem = out / "pairs" / clip.name
    about = {"driver": clip.name, "rejected": [], "made_by": {}}
    if s.pairs != "self":
        maker, tags = MAKERS[s.pairs](s.pair_weights), made_by(s)
        drawn, points = drivers.draw(_stored(out, clip), [_stored(out, o) for o in others], maker, s.size,
                                     stem.with_suffix(".frames"), tags)  # fmt: skip
        about = drawn._asdict() | {"made_by": tags}
        if points is not None:
            _save(stem.with_suffix(".npy"), points.astype(np.complex64))
    advance(clip.count)
    encode.write_json(stem.with_suffix(".json"), about)


def made_by(s: Settings) -> dict[str, str]:
    """What every picture says of itself that shows a driver who was never recorded."""
    if s.pairs == "toy":
        return {"comment": "Drawn by svdp_jax; not a recording of a real event"}
    return provenance(f"LivePortrait {shipped.fingerprint(Path(s.pair_weights))}")


def _stored(out: Path, clip: crops.Clip) -> drivers.Stored:
    return drivers.Stored(clip, left.frames_of(out, clip), encode.candidates(left.clip_track(out, clip))[0])


def pairs_done(job: Job) -> bool:
    return (job.out / "pairs" / f"{job.item.clip.name}.json").exists()


# Records


def encode_shard(job: Job, advance: Callable) -> None:
    out, s, shard = job
    folder = out / "records"
    folder.mkdir(exist_ok=True)

    def pictures() -> Iterator[encode.Pictures]:
        for clip, driver in left.paired(out, shard.clips):
            path, points = left.driver_of(out, clip, driver)
            for target, driving, outlines in zip(crops.read(left.frames_of(out, clip)), crops.read(path), points, strict=True):
                mask = masks.mask(outlines, s.size)
                advance(1)
                yield encode.Pictures(target, face.mask_driving(driving, mask), mask)

    count = encode.write_shard(folder / shard.file, pictures(), encoder(s.codec), s.codec.factor)
    about = {"file": shard.file, "records": count, "bytes": (folder / shard.file).stat().st_size,
             "sha256": encode.file_hash(folder / shard.file), "clips": [c.name for c in shard.clips]}  # fmt: skip
    encode.write_json((folder / shard.file).with_suffix(".json"), about)


@cache
def encoder(codec: configs.Codec) -> Callable[[np.ndarray], np.ndarray]:
    network = checkpoint.load_codec(codec)
    run = jax.jit(lambda x: each_frame(lambda i: network.encode(from_uint8(i, jnp.float32)), x, network.at_once))
    return lambda pictures: np.asarray(run(pictures))


def encode_done(job: Job) -> bool:
    about = left.read_json((job.out / "records" / job.item.file).with_suffix(".json"))
    return about is not None and about["clips"] == [clip.name for clip in job.item.clips]


def write_manifest(out: Path, s: Settings, jobs: list[Job]) -> None:
    """Ends the encoding: what the shards hold, and what made them."""
    folder, first, entries = out / "records", 0, []
    for job in jobs:
        for clip, driver in left.paired(out, job.item.clips):
            sources = encode.candidates(left.clip_track(out, clip))
            entries.append({"name": clip.name, "person": clip.person, "driver": driver, "first": first,
                            "count": clip.count, "fps": clip.fps, "sources": sources, "licence": clip.licence,
                            "driver_made_by": left.said_of(out, clip)})  # fmt: skip
            first += clip.count
    whole = [left.read_json((folder / job.item.file).with_suffix(".json")) for job in jobs]
    licences = sorted({entry["licence"] for entry in entries})
    channels = 3 * s.codec.factor**2 if s.codec.kind == "pixels" else checkpoint.load_codec(s.codec).channels
    encode.write_json(folder / encode.MANIFEST, {
        "kind": "svdp_jax records", "size": s.size, "frames": first, "clips": entries,
        "latents": [s.size // s.codec.factor, s.size // s.codec.factor, channels],
        "codec": encode.codec_mark(s.codec.kind, s.codec.factor, s.codec.weights),
        "shards": [{k: about[k] for k in ("file", "records", "bytes", "sha256")} for about in whole],
        "licences": {licence: sum(e["licence"] == licence for e in entries) for licence in licences},
        "versions": {name: metadata.version(name) for name in VERSIONS},
    })  # fmt: skip


# The table


def _sources(out, s, sources) -> list[Job]:
    return [Job(out, s, source) for source in sources]


def _clips(out, s, sources) -> list[Job]:
    return [Job(out, s, clip) for clip in left.clips(out, sources)]


def _pairings(out, s, sources) -> list[Job]:
    found = left.masked(out, left.clips(out, sources))
    return [Job(out, s, Pairing(clip, drivers.candidates(clip, found, s.seed))) for clip in found]


def _shards(out, s, sources) -> list[Job]:
    found = [clip for clip, _ in left.paired(out, left.masked(out, left.clips(out, sources)))]
    parts = encode.shards([clip.count for clip in found])
    return [Job(out, s, Shard(number, [found[i] for i in part])) for number, part in enumerate(parts)]


class Entry(NamedTuple):
    """A stage, its jobs, the settings that it is the first to read, what ends it, and whether a network does the work."""

    stage: Stage
    jobs: Callable[[Path, Settings, list[ingest.Source]], list[Job]]
    settings: tuple[str, ...]
    end: Callable[[Path, Settings, list[Job]], None] | None = None
    network: bool = False


STAGES = {
    "faces": Entry(Stage("Faces", find_faces, faces_done, source_weight), _sources, ("longest", "landmarks")),
    "crops": Entry(Stage("Crops", cut_crops, crops_done, source_weight), _sources, ("size", "limits")),
    "masks": Entry(Stage("Masks", outline, masks_done, lambda job: job.item.count), _clips, ()),
    "pairs": Entry(
        Stage("Pairs", pair, pairs_done, lambda job: job.item.clip.count), _pairings,
        ("pairs", "pair_weights", "seed"), network=True,
    ),
    "encode": Entry(
        Stage("Encoding", encode_shard, encode_done, lambda job: sum(c.count for c in job.item.clips)),
        _shards, ("codec",), write_manifest, network=True,
    ),
}  # fmt: skip
# Where each stage writes.
FOLDERS = {"faces": "faces", "crops": "crops", "masks": "masks", "pairs": "pairs", "encode": "records"}


def _save(path: Path, array: np.ndarray) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        np.save(file, array)
    os.replace(partial, path)
