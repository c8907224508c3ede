"""The stages of `svdp_jax.prepare`: what each reads and writes in the folder of a preparation.

    films.json                   what is prepared: path, person, licence and content of each film
    faces/VIDEO.json, .npy       shots, their facts, and the track of each face
    crops/VIDEO/                 clips.json, and NNN.frames and NNN.npy (see `crops`) of what the gates let pass
    masks/CLIP.npy, .json        points that outline what is kept, and what of the face still shows
    pairs/CLIP.json, .frames, .npy   who drives, and the driver's frames and points where that is another
    records/                     shards and manifest (see `encode`)

A result appears complete or not at all, JSON last, says what it was made from (see `jobs`), and depends on
that alone: so a stage does again exactly what is out of date, and a preparation that was killed, or told again
after any change, ends with the bytes of a fresh one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from svdp_jax.buckets import storage
from svdp_jax.faces import networks
from svdp_jax.preparation import alike, crops, drivers, encode, gates, ingest, jobs, left, work
from svdp_jax.preparation.contents import Contents, digest
from svdp_jax.preparation.jobs import Job, Settings, plain
from svdp_jax.preparation.pipeline import Stage
from svdp_jax.toy import footage
from svdp_jax.weights import shipped

# Raised by whoever lets a stage make something else of the same input: its results are then made anew.
CODE = {"faces": 2, "crops": 1, "masks": 2, "pairs": 2, "encode": 1}
LATE = {"yaw"}  # facts that are first known of the masks


class Given(NamedTuple):
    """What a preparation is asked to be made of. Its films have their content."""

    out: Path
    settings: Settings
    sources: list[ingest.Source]
    contents: Contents
    results: left.Results


class Pairing(NamedTuple):
    clip: crops.Clip
    others: list[crops.Clip]  # in the order in which they are tried


class Shard(NamedTuple):
    number: int
    clips: list[crops.Clip]

    @property
    def file(self) -> str:
        return f"frames-{self.number:05}.array_record"


def given(out: Path, settings: Settings, found: list[ingest.Source]) -> tuple[Given, list[tuple[str, str]]]:
    """Looks into all films; those that are others' copies are left out and told as `alike.distinct` does."""
    contents = Contents(out / ".contents.json")
    contents.read([ingest.files(source.path) for source in found])
    seen = [source._replace(content=contents.of(ingest.files(source.path))) for source in found]
    sources, copies = alike.distinct(seen)
    return Given(out, settings, sources, contents, left.Results(out)), copies


# Jobs, and what the result of each is made from


def _faces(g: Given) -> list[Job]:
    result, finder = lambda source: g.out / "faces" / f"{source.name}.json", networks.finder()
    made_from = lambda source: {
        "code": CODE["faces"], "film": source.content, "segments": source.segments,
        "--longest": g.settings.longest, "landmarks": _landmarks(g, source.name), "finder": finder,
    }  # fmt: skip
    return [Job(work.find_faces, g.out, g.settings, s, result(s), plain(made_from(s))) for s in g.sources]


def _landmarks(g: Given, name: str) -> str:
    """Digest of the file of a film's landmarks, where these are given."""
    kind, _, folder = g.settings.landmarks.partition(":")
    paths = [Path(folder) / f"{name}{suffix}" for suffix in (".npy", ".json")] if kind == "files" else []
    return g.contents.of([path for path in paths if path.is_file()][:1])


def _crops(g: Given) -> list[Job]:
    limits = {gate.fact: [gate.least, gate.most] for gate in gates.limited(list(g.settings.limits)) if gate.fact not in LATE}
    result = lambda source: g.out / "crops" / source.name / "clips.json"
    made_from = lambda source: {
        "code": CODE["crops"], "film": source.content, "--size": g.settings.size, "--limit": limits,
        "faces": jobs.held(g.results.read(g.out / "faces" / f"{source.name}.json")),
    }  # fmt: skip
    return [Job(work.cut_crops, g.out, g.settings, s, result(s), plain(made_from(s))) for s in g.sources]


def _masks(g: Given) -> list[Job]:
    kind, _, argument = g.settings.landmarks.partition(":")
    limits = {gate.fact: [gate.least, gate.most] for gate in gates.limited(list(g.settings.limits))}
    made_from = lambda clip: {
        "code": CODE["masks"], "crop": clip.digest, "--size": g.settings.size, "--limit": limits, "--landmarks": kind,
        "landmarks": _landmarks(g, clip.video), "model": g.contents.of([Path(argument)] if kind == "mediapipe" else []),
    }  # fmt: skip
    return [
        Job(work.outline, g.out, g.settings, clip, g.out / "masks" / f"{clip.name}.json", plain(made_from(clip)))
        for clip in g.results.clips(g.sources)
    ]


def _pairs(g: Given) -> list[Job]:
    s, found = g.settings, g.results.clips(g.sources)
    same, found = near(g, found), g.results.masked(found)
    others = [[]] * len(found) if s.pairs == "self" else drivers.candidates(found, s.seed, same)
    weights = shipped.fingerprint(storage.here(s.pair_weights)) if s.pairs == "liveportrait" else ""
    # The toy world draws a driver from two people's truth, not from pictures of them.
    truth = lambda clip: g.contents.of([footage.truth_path(Path(clip.path))]) if s.pairs == "toy" else ""
    of = {clip.name: [clip.name, clip.digest, truth(clip)] for clip in found}
    made_from = lambda clip, others: {
        "code": CODE["pairs"], "--pairs": s.pairs, "--pair-weights": weights, "--size": s.size,
        "crop": clip.digest, "truth": truth(clip), "drivers": [of[other.name] for other in others],
    }  # fmt: skip
    return [
        Job(work.pair, g.out, s, Pairing(clip, o), g.out / "pairs" / f"{clip.name}.json", plain(made_from(clip, o)))
        for clip, o in zip(found, others, strict=True)
    ]


def near(g: Given, found: list[crops.Clip]) -> list[tuple[str, str]]:
    """Pairs of films of several people that look alike, of those that the clips are of."""
    people = {clip.video: clip.person for clip in found}
    looks = {name: (g.results.read(g.out / "faces" / f"{name}.json") or {}).get("look", "") for name in people}
    return [(a, b) for a, b in alike.pairs(looks) if people[a] != people[b]]


def _shards(g: Given) -> list[Job]:
    s, out, results = g.settings, g.out, g.results
    found = results.paired(results.masked(results.clips(g.sources)))
    parts = [[found[i] for i in part] for part in encode.shards([clip.count for clip, _ in found])]
    mark = encode.codec_mark(s.codec)
    made = []
    for number, part in enumerate(parts):
        shard = Shard(number, [clip for clip, _ in part])
        clips = {clip.name: digest([clip.digest, *_driven(results, clip, driver)]) for clip, driver in part}
        made_from = {"code": CODE["encode"], "--codec": mark, "--size": s.size, "clips": clips}
        result = (out / "records" / shard.file).with_suffix(".json")
        made.append(Job(work.encode_shard, out, s, shard, result, plain(made_from)))
    return made


def _driven(results: left.Results, clip: crops.Clip, driver: str) -> list[str]:
    """Digests of what tells a clip's driver: of its own outlines where it drives itself."""
    folders = ("pairs", "masks") if driver == clip.name else ("pairs",)
    return [jobs.held(results.read(results.out / folder / f"{clip.name}.json")) for folder in folders]


def write_manifest(g: Given, shards: list[Job]) -> None:
    """Ends the encoding: what the shards hold, and what made them."""
    folder, first, entries = g.out / "records", 0, []
    for job in shards:
        for clip in job.item.clips:
            about = g.results.pair_of(clip)
            entries.append({"name": clip.name, "person": clip.person, "driver": about["driver"], "first": first,
                            "count": clip.count, "fps": clip.fps, "sources": clip.sources, "licence": clip.licence,
                            "driver_made_by": about["made_by"]})  # fmt: skip
            first += clip.count
    whole, codec = [g.results.read(job.result) for job in shards], g.settings.codec
    licences = sorted({entry["licence"] for entry in entries})
    files = [{"file": job.item.file, "records": about["records"]} | about["files"][job.item.file]
             for job, about in zip(shards, whole)]  # fmt: skip
    encode.write_json(folder / encode.MANIFEST, {
        "kind": "svdp_jax records", "size": g.settings.size, "frames": first, "clips": entries,
        "latents": whole[0]["latents"],
        "codec": encode.codec_mark(codec),
        "shards": files,
        "licences": {licence: sum(e["licence"] == licence for e in entries) for licence in licences},
        "versions": {name: ", ".join(sorted({about["versions"][name] for about in whole})) for name in work.versions()},
    })  # fmt: skip


# The table


def source_weight(job: Job) -> int:
    try:
        return ingest.expected_frames(job.item.path)
    except Exception:  # it will be reported when its turn comes
        return 0


class Entry(NamedTuple):
    """A stage: its title, what its jobs are called and how many frames each has, where it writes, its jobs, the
    settings that it is the first to read, what ends it, and whether a network does the work."""

    title: str
    items: str
    weight: Callable[[Job], int]
    folder: str
    jobs: Callable[[Given], list[Job]]
    settings: tuple[str, ...]
    end: Callable[[Given, list[Job]], None] | None = None
    network: bool = False

    @property
    def stage(self) -> Stage:
        return Stage(self.title, jobs.do, jobs.done, self.weight)


STAGES = {
    "faces": Entry("Faces", "films", source_weight, "faces", _faces, ("longest", "landmarks")),
    "crops": Entry("Crops", "films", source_weight, "crops", _crops, ("size", "limits")),
    "masks": Entry("Masks", "clips", lambda job: job.item.count, "masks", _masks, ()),
    "pairs": Entry("Pairs", "clips", lambda job: job.item.clip.count, "pairs", _pairs, ("pairs", "pair_weights", "seed"),
                   network=True),
    "encode": Entry("Encoding", "shards", lambda job: sum(c.count for c in job.item.clips), "records", _shards,
                    ("codec", "licence"), write_manifest, network=True),
}  # fmt: skip
