"""Training examples as Grain batches: from the toy world, a folder of ordinary videos, or prepared records.

An example is a dict of uint8 pictures: source (y x c), past (p y x c), target
(f y x c) and driving (f y x c), the last masked to eyes, nose and mouth, and past_driving (p y x c) where the model
makes its own past. Records
hold latents (float16) in place of pictures, and `seen` (f y x 1, uint8, 255 being
all): how much of each latent's place the driver shows. Each example is a function
of its index and the seed alone, so a run resumes where it was, and any number of
hosts see the same batches.
"""

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from numpy.lib.format import open_memmap
from tqdm import tqdm

from svdp_jax import config as configs
from svdp_jax.buckets import storage
from svdp_jax.errors import UserError
from svdp_jax.faces import networks
from svdp_jax.faces.driving import driving_frames, prepare_driving
from svdp_jax.preparation import encode, gates, ingest, shots
from svdp_jax.toy import person, world
from svdp_jax.training import own_past

ENDLESS = 1 << 31  # examples; more than any run draws
SLOWEST = 0.1  # frame rate of a training clip, as a share of the toy world's


def examples(config: configs.Config, cache: Path) -> Callable[[int], dict]:
    """Index to an example, as `replacing` tells. `cache` is a folder for what is worth keeping."""
    return replacing(SOURCES[config.data.source](config, cache))


def batches(config: configs.Config, example: Callable[[int], dict], rows: list[int]) -> grain.IterDataset:
    """An endless stream of these rows of every batch of `examples`."""
    data = config.data
    here = lambda i: example(i // len(rows) * data.batch + rows[i % len(rows)])
    dataset = grain.MapDataset.range(ENDLESS).map(here).batch(len(rows), drop_remainder=True)
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=2 * data.threads))


MANY = 200  # videos of a folder; to crop more takes longer than a start may
NEIGHBOURS = 16  # examples tried in place of a bad one


def replacing(example):
    """Like `example`, with the next readable one in place of a bad one, and `problem`: why, or "".

    The next one by index, so that every run replaces it alike.
    """

    def sound(index: int) -> dict:
        problems = []
        for candidate in range(index, index + NEIGHBOURS):
            try:
                return example(candidate) | {"problem": np.str_("; ".join(problems))}
            except Exception as error:  # whatever the reader of a broken file may raise
                problems.append(f"example {candidate}: {type(error).__name__} {error}")
        raise UserError(f"{NEIGHBOURS} examples one after the other cannot be read: {problems[0]}; mend the data.")

    return sound


def identity(data: configs.Data) -> str:
    """A mark of what is trained on: the manifest of records, or the contents of all videos' files."""
    if not data.path:
        return data.source
    folder = storage.here(data.path)
    if data.source == "records":
        folder, _ = encode.read_manifest(folder)
        return f"records {encode.file_hash(folder / encode.MANIFEST)[:16]}"
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [(path.relative_to(folder).as_posix(), content(path, path.stat().st_mtime_ns)) for path in paths]
    return f"{data.source} {hashlib.sha256(repr(files).encode()).hexdigest()[:16]}"


@cache
def content(path: Path, time: int) -> str:
    """Digest of a file as it was at this time; a run asks for it more than once."""
    return encode.file_hash(path)


def held_out(config: configs.Config, example: Callable[[int], dict], rows: list[int]) -> dict[str, np.ndarray]:
    """These rows of one batch of `examples` that no run reaches: of the toy world, people whom none draws.

    Of videos and records they are stretches of the training set, since nobody is held out: what a model makes of
    strangers is told by `svdp_jax.evaluate` on other videos alone.
    """
    parts = [example(ENDLESS - config.data.batch + row) for row in rows]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0] if name != "problem"}


def to_uint8(pictures) -> np.ndarray:
    """Pictures in [0, 1] to uint8."""
    return np.asarray(np.clip(np.asarray(pictures) * 255 + 0.5, 0, 255), np.uint8)


def number_of(examples: int, batch: int) -> int:
    """The first batch of so many that has none of these examples, the first ones."""
    return -(-examples // batch)


def example_ends(config: configs.Config) -> list[int]:
    """The example at which each stage ends."""
    ends = [0]
    for staged, stage in zip(configs.by_stage(config), config.stages):
        ends.append((number_of(ends[-1], staged.data.batch) + stage.steps) * staged.data.batch)
    return ends[1:]


def toy_example(config: configs.Config, cache: Path):
    """Index to an example of the toy world, rendered on the CPU.

    Clips come at random paces, the slowest with frames so far apart that they teach as
    much as separate pictures; in the hard world at their own pace, as there other frames tell
    what the driver's does not.
    """
    data, ends = config.data, example_ends(config)
    own = np.array([stage.self_driven for stage in config.stages] + [False])

    @jax.jit
    def render(index):
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        key, key_pace = jax.random.split(key)
        fps = person.FPS * SLOWEST ** ((1 - data.difficulty) * jax.random.uniform(key_pace))
        self_driven = jnp.array(own)[jnp.searchsorted(jnp.array(ends), index, side="right")]
        options = {"masked": data.masked, "difficulty": data.difficulty, "led": own_past.needed(config)}
        return world.triple(key, data.frames, data.past, data.size, fps, self_driven, **options)

    cpu = jax.local_devices(backend="cpu")[0]

    def example(index: int) -> dict:
        with jax.default_device(cpu):
            drawn = render(index)
        parts = ("source", "past", "target", "driving", "past_driving")
        return {name: to_uint8(drawn[name]) for name in parts if name in drawn}

    return example


def videos(data: configs.Data) -> list[Path]:
    """The videos below the data folder. Raises UserError where it is none, or has none."""
    folder = storage.here(data.path)
    if not data.path or not folder.is_dir():
        raise UserError(f"config.data.path={data.path!r} is not a folder; name one that holds videos.")
    paths = ingest.below(folder)
    if not paths:
        raise UserError(f"config.data.path={data.path} holds no file ending in {', '.join(sorted(ingest.SUFFIXES))}.")
    return paths


def folder_clips(data: configs.Data, cache: Path) -> list[np.ndarray]:
    """Every usable video of a folder as crops beside their masked twins: f 2 y x c.

    Crops are made once and memory-mapped from the cache. Videos that cannot be
    used are named in a warning; UserError where none can.
    """
    paths, clips = videos(data), []
    networks.check()
    if len(paths) > MANY:
        raise UserError(
            f"{data.path} holds {len(paths)} videos, and every host would crop all of them before the first step; make "
            "records of them with `python -m svdp_jax.prepare`, and train with config.data.source=records."
        )
    cache.mkdir(parents=True, exist_ok=True)
    for path in tqdm(paths, desc="Cropping faces", unit="video"):
        try:
            clip = cropped(path, data.size, cache)
        except UserError as error:
            logging.warning("left out: %s", error)
            continue
        if len(clip) < data.frames + data.past:
            logging.warning("left out: %s has %d frames, fewer than a clip.", path, len(clip))
            continue
        clips.append(clip)
    if not clips:
        raise UserError(
            f"{data.path} holds no video of {data.frames + data.past} frames or more with a face; "
            f"looked at {len(paths)} files ending in {', '.join(sorted(ingest.SUFFIXES))}."
        )
    logging.warning(
        "Training self-driven on %d videos: driver and target are the same person, so the model can "
        "copy the driver's looks from the kept regions instead of learning the source's.",
        len(clips),
    )
    return clips


def cropped(path: Path, size: int, cache: Path) -> np.ndarray:
    """The crops of one video, from the cache where they are there."""
    stat = path.stat()
    finder = networks.finder()  # another finds and keeps something else
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {size} {finder}".encode())
    target = cache / f"{key.hexdigest()[:16]}.npy"
    if not readable(target):
        driving = prepare_driving(path, size)
        if reason := gates.rejection(shots.seen_facts(driving.track)):
            raise UserError(f"{path}: {reason}")
        partial = target.with_suffix(f".{jax.process_index()}.partial")  # the cache may be one for all hosts
        shape = (len(driving.track.found), 2, size, size, 3)
        frames = open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        for index, frame in enumerate(driving_frames(driving)):
            frames[index] = frame.crop, frame.masked
        frames.flush()
        partial.rename(target)
    return np.load(target, mmap_mode="r")


def readable(path: Path) -> bool:
    """Whether a cached array is there and whole; the disk may have been full or the file cut off since."""
    try:
        np.load(path, mmap_mode="r")
        return True
    except (OSError, ValueError, EOFError):
        return False


def video_example(config: configs.Config, cache: Path):
    """Index to a self-driven example: a stretch of a clip, and any of its frames as the source."""
    data, clips = config.data, folder_clips(config.data, cache)
    lengths = np.array([len(clip) for clip in clips])

    def example(index: int) -> dict:
        random = np.random.default_rng((config.seed, index))
        clip = clips[random.choice(len(clips), p=lengths / lengths.sum())]
        start = random.integers(data.past, len(clip) - data.frames + 1)
        stretch = clip[start - data.past : start + data.frames]
        example = {
            "source": np.array(clip[random.integers(len(clip)), 0]),
            "past": np.array(stretch[: data.past, 0]),
            "target": np.array(stretch[data.past :, 0]),
            "driving": np.array(stretch[data.past :, 1]),
        }
        return example | ({"past_driving": np.array(stretch[: data.past, 1])} if own_past.needed(config) else {})

    return example


class Records(NamedTuple):
    """Opened records: `stretches` are (clip, number of the stretch in it)."""

    source: grain.sources.ArrayRecordDataSource
    layout: encode.Layout
    stretches: list[tuple[dict, int]]


def open_records(config: configs.Config) -> Records:
    """UserError where the records are not whole, or are for another codec or size."""
    data, codec = config.data, config.model.codec
    folder, manifest = encode.read_manifest(storage.here(data.path))
    wanted = {"size": data.size, "codec": encode.codec_mark(codec)}
    for name, value in wanted.items():
        if manifest[name] != value:
            raise UserError(f"{folder} was prepared with {name} {manifest[name]}, but the config says {value}.")
    clips = manifest["clips"]
    stretches = [(clip, i) for clip in clips for i in range((clip["count"] - data.past) // data.frames)]
    if not stretches:
        raise UserError(f"{folder} holds no clip of {data.frames + data.past} frames; lower config.data.frames.")
    paths = [str(path) for path in encode.check_files(folder, manifest)]
    return Records(grain.sources.ArrayRecordDataSource(paths), encode.Layout(*manifest["latents"]), stretches)


def record_example(config: configs.Config, _: Path):
    """Index to an example from records. An epoch visits every stretch of every clip once, in an order of its own."""
    data, (records, layout, stretches) = config.data, open_records(config)
    order: Any = grain.MapDataset.range(len(stretches)).seed(config.seed).shuffle().repeat()

    def example(index: int) -> dict:
        random = np.random.default_rng((config.seed, index))
        clip, number = stretches[order[index]]
        slack = (clip["count"] - data.past) % data.frames
        start = clip["first"] + number * data.frames + int(random.integers(slack + 1))
        source = clip["first"] + int(random.choice(clip["sources"]))
        read = records.__getitems__([source, *range(start, start + data.past + data.frames)])
        target, driving, seen = (np.stack(part) for part in zip(*map(layout.unpack, read)))
        p = 1 + data.past
        example = {"source": target[0], "past": target[1:p], "target": target[p:], "driving": driving[p:], "seen": seen[p:]}
        return example | ({"past_driving": driving[1:p]} if own_past.needed(config) else {})

    return example


SOURCES = {"toy": toy_example, "videos": video_example, "records": record_example}
