"""What the stages do: one function each, which takes a job and leaves its result (see `stages` and `jobs`)."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import svdp_jax
from svdp_jax import config as configs
from svdp_jax.animator import provenance
from svdp_jax.faces import face, landmarks, masks
from svdp_jax.files import remove
from svdp_jax.models.vae import each_frame, from_uint8
from svdp_jax.preparation import alike, crops, drivers, encode, gates, ingest, left, pairs, report, shots
from svdp_jax.preparation.contents import digest
from svdp_jax.preparation.jobs import Job, Settings, finish
from svdp_jax.weights import checkpoint, shipped

MAKERS = drivers.MAKERS | {"liveportrait": pairs.maker}
VERSIONS = ("numpy", "opencv-python-headless", "av", "jax", "array-record")


# Shots and faces


def find_faces(job: Job, advance: Callable) -> None:
    source, entries, error, frames, look = job.item, [], "", 0, alike.Look()
    job.result.parent.mkdir(exist_ok=True)
    named = lambda text: text.replace(source.path, source.name)  # wherever the film may lie another day

    def counted() -> Iterator:
        nonlocal frames
        for frame in ingest.frames(source.path):
            frames += 1
            look.see(frame.image)
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
            logging.getLogger(__name__).warning("%s", fault)
            error = named(str(fault)) or type(fault).__name__
    said = sorted({named(str(w.message)) for w in caught})
    about = {"frames": frames, "error": error, "warnings": said, "shots": entries, "look": look.hex()}
    finish(job, about, [_tracks(job)])


def _tracks(job: Job) -> Path:
    """The file of all tracks of a video, one after the other."""
    return job.out / "faces" / f"{job.item.name}.npy"


def _given(job: Job) -> landmarks.Reader | None:
    """The source's landmark file, where these are the provider."""
    name, _, folder = job.settings.landmarks.partition(":")
    if name != "files":
        return None
    return masks.given(folder, job.item.name, ingest.exact_frames(job.item.path))


# Crops, and all gates but that of yaw


def cut_crops(job: Job, advance: Callable) -> None:
    source, target = job.item, job.result.parent
    about = encode.read_json(job.out / "faces" / f"{source.name}.json")
    partial = target.with_name(f".{target.name}.partial")
    remove(partial)
    partial.mkdir(parents=True)
    frames, row, clips, rejected = enumerate(ingest.frames(source.path)), 0, [], []
    for number, shot in enumerate(about["shots"]):
        name, facts, stem = f"{source.name}-{number:03}", shot["facts"], partial / f"{number:03}"
        box, reason = _cut_shot(job, frames, shot, row, stem, advance)
        row += shot["count"] * shot["tracked"]
        if box is None or reason:
            rejected.append({"name": name, "reason": reason, "thumb": shot["thumb"]})
            continue
        clip = {"name": name, "video": source.name, "first": shot["first"], "count": shot["count"],
                "fps": shot["fps"], "total": about["frames"], "box": box, "facts": facts,
                "sources": encode.candidates(crops.unpack(np.load(stem.with_suffix(".npy"))))}  # fmt: skip
        clips.append(clip | {"digest": digest([clip, *map(encode.file_hash, _files(stem))])})
    about = {"clips": clips, "rejected": rejected}
    finish(job, about, sorted(partial.iterdir()), partial / job.result.name)
    remove(target)
    partial.rename(target)


def _files(stem: Path) -> list[Path]:
    """Of a clip: its frames, and its track in their pixels."""
    return [stem.with_suffix(".frames"), stem.with_suffix(".npy")]


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
        for path in _files(stem):
            path.unlink()
    return box, reason


def _write_clip(stem: Path, cuts: Iterator[crops.Cut], track: face.Track, box: face.Box, size: int, advance) -> float:
    """Writes crops, and the track in their pixels; returns the sharpness, the median over some frames."""
    sharp = []
    frames, faces = _files(stem)
    with crops.Writer(frames) as writer:
        for image, sharpness in cuts:
            writer.write(image)
            advance(1)
            sharp += [] if sharpness is None else [sharpness]
    np.save(faces, crops.pack(track._replace(faces=face.in_crop(track.faces, box, size))))
    return float(np.median(sharp))


# Masks


def outline(job: Job, advance: Callable) -> None:
    out, s, clip = job.out, job.settings, job.item
    track, frames = left.clip_track(out, clip), left.frames_of(out, clip)
    taken = masks.Taken(lambda: crops.read(frames), track, clip.box, s.size, clip.first, clip.total, clip.video)
    points = masks.outlines(s.landmarks, taken)
    facts = masks.facts(points, track, s.size)
    if not s.landmarks.startswith("windows"):
        facts["yaw"] = float(np.quantile(abs(masks.yaw(points)), 0.95))
    advance(clip.count)
    reason = gates.rejection(clip.facts | facts, gates.limited(list(s.limits)))
    job.result.parent.mkdir(exist_ok=True)
    finish(job, {"facts": facts, "reason": reason}, [_save_points(job, points)])


def _save_points(job: Job, points: np.ndarray) -> Path:
    path = job.result.with_suffix(".npy")
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "wb") as file:
        np.save(file, points.astype(np.complex64))
    os.replace(partial, path)
    return path


# Pairs


def pair(job: Job, advance: Callable) -> None:
    out, s, (clip, others) = job.out, job.settings, job.item
    job.result.parent.mkdir(exist_ok=True)
    about, files = {"driver": clip.name, "rejected": [], "made_by": {}}, []
    if s.pairs != "self":
        maker, tags, frames = MAKERS[s.pairs](s.pair_weights), made_by(s), job.result.with_suffix(".frames")
        drawn, points = drivers.draw(_stored(out, clip), [_stored(out, o) for o in others], maker, s.size, frames, tags)
        about = drawn._asdict() | {"made_by": tags}
        files = [] if points is None else [frames, _save_points(job, points)]
    advance(clip.count)
    finish(job, about, files)


def made_by(s: Settings) -> dict[str, str]:
    """What every picture says of itself that shows a driver who was never recorded."""
    if s.pairs == "toy":
        return {"comment": "Drawn by svdp_jax; not a recording of a real event"}
    return provenance(f"LivePortrait {shipped.fingerprint(Path(s.pair_weights))}")


def _stored(out: Path, clip: crops.Clip) -> drivers.Stored:
    return drivers.Stored(clip, left.frames_of(out, clip), clip.sources[0])


# Records


def encode_shard(job: Job, advance: Callable) -> None:
    out, s, shard = job.out, job.settings, job.item
    job.result.parent.mkdir(exist_ok=True)

    def pictures() -> Iterator[encode.Pictures]:
        for clip, driver in left.Results(out).paired(shard.clips):
            path, points = left.driver_of(out, clip, driver)
            for target, driving, outlines in zip(crops.read(left.frames_of(out, clip)), crops.read(path), points, strict=True):
                mask = masks.mask(outlines, s.size)
                advance(1)
                yield encode.Pictures(target, face.mask_driving(driving, mask), mask)

    written = encode.write_shard(job.result.with_name(shard.file), pictures(), encoder(s.codec), s.codec.factor)
    about = {"records": written.records, "latents": written.latents, "versions": versions()}
    finish(job, about, [job.result.with_name(shard.file)])


@cache
def encoder(codec: configs.Codec) -> Callable[[np.ndarray], np.ndarray]:
    network = checkpoint.load_codec(codec)
    run = jax.jit(lambda x: each_frame(lambda i: network.encode(from_uint8(i, jnp.float32)), x, network.at_once))
    return lambda pictures: np.asarray(run(pictures))


def versions() -> dict[str, str]:
    return {"svdp_jax": svdp_jax.__version__} | {name: metadata.version(name) for name in VERSIONS}
