"""python -m svdp_jax.prepare VIDEOS [VIDEOS ...] OUT [options] [-- BEAM OPTIONS]

From raw videos to training records, in stages:

  faces   cut at scene changes, find and follow the face, measure
  crops   let the gates decide; one square crop of each clip, the face half its height
  masks   outline what is kept of the face: eyes, nose, mouth
  pairs   have another person of the set make each clip's motion
  encode  the autoencoder's latents, in ArrayRecord shards with a manifest

OUT/report.html says what was found, what was rejected and why, and shows what is kept. Train on the
result with --config.data.source=records --config.data.path=OUT.

VIDEOS are files, folders or 'globs'. With --list they are where a dataset's videos were downloaded
to, and only what the list names is taken: HDTF's folder of lists, TalkingHead-1KH's text file, or
CelebV-HQ's JSON. A video that is another's copy is left out.

Stopped at any moment, the same command goes on where it was. Told again after any change, of a
video, a list, weights or an option, it makes exactly what is out of date, says what that is, and
removes what no longer belongs; so name all of VIDEOS each time. Options that are not given stay as
they were. The stages run on Apache Beam, which takes its own options after `--`: on this machine by
default, `-- --runner=none` for a plain loop without Beam, `-- --runner=DataflowRunner ...`
elsewhere, where the workers must see the same folders.

Try it on drawn people:

  python -m svdp_jax.prepare --draw-toy 6 films out --size 64 --codec pixels:4 --pairs toy \\
    --landmarks files:films --limit yaw=0:50
"""

from svdp_jax import errors

if __name__ == "__main__":
    errors.end_quietly()  # imports take seconds

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import jax
import numpy as np

from svdp_jax import config as configs
from svdp_jax.buckets import storage
from svdp_jax.buckets.mirror import mirrored
from svdp_jax.errors import UserError, say_errors
from svdp_jax.faces import face, masks
from svdp_jax.files import alone, apart, remove
from svdp_jax.preparation import crops, encode, gates, ingest, jobs, left, pipeline, report, stages, triplets, work
from svdp_jax.toy import footage
from svdp_jax.values import declared
from svdp_jax.weights import checkpoint

SETTINGS = "settings.json"
ALONGSIDE = (
    SETTINGS,
    left.FILMS,
    "report.html",
    "contact_sheet.png",
    triplets.FOLDER,
)  # what is written beside the stages' folders
NO_PAIRS = (
    "no weights to make pairs with: give --pair-weights DIR (from `python -m convert liveportrait SRC DIR`), or "
    "--pairs self, with which every clip drives itself and the model may copy the driver's looks, or, for footage "
    "of the toy world, --pairs toy."
)
NO_CODEC = (
    "no autoencoder to encode with: give --codec DIR (from `python -m convert vae SRC DIR`), or --codec pixels:4 "
    "for the toy model."
)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m svdp_jax.prepare",
        usage="python -m svdp_jax.prepare VIDEOS [VIDEOS ...] OUT [options] [-- BEAM OPTIONS]",
        description=__doc__.split("\n\n", 1)[1],
        epilog="Gates, each with a limit that --limit changes:\n" + gates.described(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = result.add_argument
    defaults = jobs.Settings()
    add("videos", nargs="+", metavar="VIDEOS", help="videos, folders, or globs in quotes")
    add("out", type=Path, metavar="OUT", help="folder of the preparation, new or to be gone on with")
    add("--list", default="", metavar="FILE", help="a dataset's list, see above")
    add("--licence", metavar="TEXT", help="of the videos, for the manifest; lists bring their own")
    add("--size", type=int, metavar="PIXELS", help=f"of a crop (default {defaults.size})")
    add("--longest", type=float, metavar="SECONDS", help=f"of a clip (default {defaults.longest:g})")
    add("--limit", action="append", dest="limits", metavar="GATE", help="change a gate: fact=least or fact=least:most")
    add("--landmarks", metavar="HOW", help="windows (default, by our own finder), mediapipe:MODEL.task, or files:DIR")
    add("--pairs", choices=["self", *work.MAKERS],
        help="who drives: another person by LivePortrait (default), the clip itself, or a drawn person")  # fmt: skip
    add("--pair-weights", metavar="DIR", help="converted LivePortrait weights")
    add("--codec", metavar="DIR", help="converted autoencoder, small for the one that comes with the package, or pixels:FACTOR")
    add("--export", choices=["triplets"],
        help="in place of the last stage: pictures and videos of every pair, and triplets.jsonl, for other trainers")  # fmt: skip
    add("--caption", default="a person is talking", metavar="TEXT", help="of all triplets (default %(default)r)")
    add("--seed", type=int, help=f"of who drives whom (default {defaults.seed})")
    add("--stage", choices=list(stages.STAGES), help="run this stage alone")
    add("--redo", choices=list(stages.STAGES), help="first throw away what this stage and later ones made, up to date or not")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes on this machine (default all cores)")
    add("--draw-toy", type=int, metavar="N", help="first draw N videos of the toy world into VIDEOS, a new folder")
    return result


def main(arguments: list[str]) -> None:
    mine, beam = parted(arguments)
    options = parser().parse_args(mine)
    say_errors("prepare", lambda: run(options, beam), "the same command goes on where it was")


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our arguments, and Beam's after a lone `--`."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


def run(options: argparse.Namespace, beam: list[str]) -> None:
    with mirrored(options.out) as out:
        options.out, options.videos = out, [str(storage.here(path)) for path in options.videos]
        prepare(options, beam)


def prepare(options: argparse.Namespace, beam: list[str]) -> None:
    if options.draw_toy:
        draw_toy(Path(options.videos[0]), options.draw_toy)
    out = options.out
    given = [options.list, options.pair_weights, options.codec, (options.landmarks or "").partition(":")[2]]
    check_folder(out, options.redo, options.videos, [path for path in given if path])
    settings = decide(options, out)
    check(settings, asked(options), options.export)
    listing = ingest.find(options.videos, options.list, settings.licence)
    out.mkdir(parents=True, exist_ok=True)
    with alone(out, "another preparation"):
        go_through(options, settings, listing, beam)


def asked(options: argparse.Namespace) -> list[str]:
    """The stages to run; what is exported are pairs, and needs no latents."""
    return [options.stage] if options.stage else list(stages.STAGES)[: -1 if options.export else None]


def go_through(options: argparse.Namespace, settings: jobs.Settings, listing: ingest.Listing, beam: list[str]) -> None:
    """The stages, one after the other, and the report."""
    out, names = options.out, asked(options)
    given, copies = stages.given(out, settings, listing.sources)
    check_films(out, given.sources)
    throw_away(out, options.redo)
    record(out, settings, names)
    left.write_films(out, given.sources)
    for name in list(stages.STAGES)[: list(stages.STAGES).index(names[-1]) + 1]:
        entry = stages.STAGES[name]
        found = entry.jobs(given)
        todo = [job for job in found if not jobs.done(job, given.results.read)]
        if name in names:
            make(entry, given, found, todo, options.workers, beam)
        elif todo:
            raise UserError(
                f"--stage {options.stage} needs what --stage {name} makes, and {len(todo)} of {len(found)} {entry.items} "
                "of that are not up to date: run that first, or leave --stage out."
            )
    given.contents.keep()
    counts = write_report(given, listing, copies)
    print("\n".join(f"{what}: {number}" for what, number in counts))
    print(f"See {out / 'report.html'}.")
    if found and options.export:
        print(
            f"{triplets.export(given.results, given.results.clips(given.sources), settings.size, options.caption)} is written."
        )
    if not found:
        raise UserError(f"no clip is left for --stage {name}; {out / 'report.html'} says why.")


def make(entry: stages.Entry, given: stages.Given, found: list[jobs.Job], todo: list[jobs.Job], workers: int, beam) -> None:
    """Does the jobs that are to do, of those found, and removes what is none's."""
    folder = given.out / entry.folder
    gone = jobs.sweep(folder, found)
    if todo or gone:
        print(jobs.told(entry.title, entry.items, found, todo, gone))
        (folder / encode.MANIFEST).unlink(missing_ok=True)  # of records: it would speak of other shards
        pipeline.run(entry.stage, todo, beam, processes(workers, len(todo), entry.network))
        given.results.read.cache_clear()
    if found and entry.end:
        entry.end(given, found)


def processes(workers: int, jobs: int, network: bool) -> int:
    """How many do so many jobs here. An accelerator belongs to one process, so that networks run in this one."""
    return 1 if network and jax.default_backend() != "cpu" else min(workers, jobs)


def draw_toy(folder: Path, clips: int) -> None:
    if folder.exists():
        print(f"{folder} is there already; nothing is drawn.", file=sys.stderr)
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    footage.write(partial, clips, footage.SECONDS)
    partial.rename(folder)


# Settings: given ones, else those of the runs before, else defaults


def decide(options: argparse.Namespace, out: Path) -> jobs.Settings:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(jobs.Settings)}
    given["codec"] = codec_of(options.codec)
    given["limits"] = tuple(options.limits) if options.limits is not None else None
    return jobs.Settings(**settings_of(out) | {name: value for name, value in given.items() if value is not None})


def codec_of(choice: str | None) -> configs.Codec | None:
    if choice is None:
        return None
    kind, _, factor = choice.partition(":")
    if kind == "pixels" and factor.isdigit():
        return configs.Codec("pixels", int(factor))
    if choice == "small":
        return configs.Codec("small")
    return configs.Codec(weights=choice)


def settings_of(out: Path) -> dict:
    """The settings of earlier runs."""
    path = out / SETTINGS
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    before |= {"limits": tuple(before["limits"])} if "limits" in before else {}
    return before | ({"codec": declared.build(configs.Codec, before["codec"], "codec")} if "codec" in before else {})


def record(out: Path, settings: jobs.Settings, names: list[str]) -> None:
    """Notes the settings that the stages about to run read."""
    read = {key for name in names for key in stages.STAGES[name].settings}
    now = {k: v for k, v in dataclasses.asdict(settings).items() if k in read}
    before = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in settings_of(out).items()}
    encode.write_json(out / SETTINGS, before | now)


def check(settings: jobs.Settings, names: list[str], export: str | None = None) -> None:
    """What would fail after hours fails here."""
    gates.limited(list(settings.limits))
    if export and (settings.pairs == "self" or "pairs" not in names):
        raise UserError("--export triplets needs --pairs liveportrait or toy: a driver that is its target can be copied.")
    masks.check(settings.landmarks)
    if "pairs" in names and settings.pairs == "liveportrait":
        if not settings.pair_weights:
            raise UserError(NO_PAIRS)
        checkpoint.about(storage.here(settings.pair_weights))
    if "encode" in names and settings.codec.kind == "sd3":
        if not settings.codec.weights:
            raise UserError(NO_CODEC)
        checkpoint.about(storage.here(settings.codec.weights))
    factor = settings.codec.factor
    if settings.size < 16 or settings.size % factor:
        raise UserError(f"--size {settings.size}: give a multiple of {factor}, the codec's factor, from 16.")


# The folder: nothing in it is lost by mistake


def check_folder(out: Path, redo: str | None, videos: list[str], inputs: list[str]) -> None:
    """UserError where OUT is not the folder of a preparation, or of one whose results do not say what they are."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder as OUT, new or to be gone on with.")
    if out.resolve() in {Path(path).resolve() for path in videos}:
        raise UserError(f"{out} is where the videos are; name another folder as OUT.")
    folders = [entry.folder for entry in stages.STAGES.values()]
    for name in (*folders, *ALONGSIDE):
        apart(out / name, *videos, *inputs)
    there = [name for name in folders if (out / name).exists()]
    found = [*there, *(name for name in ALONGSIDE if (out / name).exists())]
    before = encode.read_json(out / SETTINGS)
    if found and not (
        isinstance(before, dict) and before.keys() <= {field.name for field in dataclasses.fields(jobs.Settings)}
    ):
        raise UserError(f"{out / found[0]} is there and no preparation is; name a new folder as OUT.")
    if there and not (out / left.FILMS).exists() and redo != next(iter(stages.STAGES)):
        raise UserError(
            f"{out} was made by an earlier version, whose results do not say what they were made from: train and "
            "evaluate on it as it is, and to go on with it add --redo faces, which makes all of it again."
        )


def check_films(out: Path, sources: list[ingest.Source]) -> None:
    """UserError where OUT was made of other films altogether: these would be removed."""
    before = encode.read_json(out / left.FILMS) or {}
    here = {source.name for source in sources} | {source.content for source in sources}
    if before and not any(name in here or film["content"] in here for name, film in before.items()):
        raise UserError(f"{out} was made of other videos: name those too, or another folder as OUT.")


def throw_away(out: Path, redo: str | None) -> None:
    names = list(stages.STAGES)
    for name in names[names.index(redo) :] if redo else ():
        remove(out / stages.STAGES[name].folder)


# Report


def write_report(given: stages.Given, listing: ingest.Listing, copies: list[tuple[str, str]]) -> list[tuple[str, int]]:
    out, results = given.out, given.results
    found = results.clips(given.sources)
    alike = stages.near(given, found)
    masked, pairs = ({clip.name: of(clip) for clip in found} for of in (results.mask_of, results.pair_of))
    driven = {clip.name: pairs[clip.name]["driver"] for clip in found if pairs[clip.name].get("driver")}
    rejected = [report.Rejected(f"{name} ({why})", "video missing") for name, why in listing.missing]
    rejected += [report.Rejected(f"{name} (it is {other})", "the same video again") for name, other in copies]
    rejected += [*rejected_shots(given), *rejected_clips(out, found, masked, pairs)]
    shown = [found[i] for i in report.spread(len(found), report.SHOWN)] if found else []
    kept = [clip for clip in shown if masked[clip.name]]
    accepted = [clip for clip in found if masked[clip.name] and not masked[clip.name]["reason"]]
    counts = [("videos found", len(listing.sources)), ("videos missing", len(listing.missing)),
              ("pairs of nearly identical videos, which do not drive each other", len(alike)),
              ("clips accepted", len(accepted)), ("clips driven", len(driven)),
              ("seconds of them", round(sum(c.facts["seconds"] for c in found if c.name in driven)))]  # fmt: skip
    counts += [(f"rejected: {reason}", number) for reason, number in sorted(Counter(r.reason for r in rejected).items())]
    table = [clip_row(clip, masked[clip.name], driven) for clip in found]
    said = next((pairs[clip.name]["made_by"] for clip in shown if clip.name in driven), {})
    sheets = [partial(sheet, out, given.settings.size, clip, driven.get(clip.name)) for clip in kept]
    made_from = [[clip.digest, masked[clip.name], pairs[clip.name]] for clip in kept]
    report.write(out, report.Report(counts, rejected, alike, table, sheets, said, made_from))
    return counts


def rejected_shots(given: stages.Given):
    for source in given.sources:
        faces = given.results.read(given.out / "faces" / f"{source.name}.json")
        if faces and faces["error"]:
            yield report.Rejected(faces["error"], "video cannot be read")
        for shot in (given.results.read(given.out / "crops" / source.name / "clips.json") or {"rejected": []})["rejected"]:
            yield report.Rejected(shot["name"], shot["reason"], lambda shot=shot: shot["thumb"], shot["thumb"])


def rejected_clips(out: Path, found: list[crops.Clip], masked: dict, pairs: dict):
    for clip in found:
        thumb = lambda clip=clip: report.thumbnail(next(crops.read(left.frames_of(out, clip), [0])))
        if masked[clip.name] and masked[clip.name]["reason"]:
            yield report.Rejected(clip.name, masked[clip.name]["reason"], thumb, clip.digest)
        drawn = {"rejected": [], "driver": "?"} | pairs[clip.name]
        for name, why in drawn["rejected"]:
            complaint = why.split(" (")[0]  # without its figures
            yield report.Rejected(f"{name} as driver of {clip.name}: {why}", f"pair: {complaint}")
        if not drawn["driver"]:
            yield report.Rejected(clip.name, "nobody to drive it", thumb, clip.digest)


def clip_row(clip: crops.Clip, masked: dict, driven: dict[str, str]) -> dict:
    facts = clip.facts | masked.get("facts", {})
    shown = ("seconds", "face", "crop", "found", "confidence", "sharpness", "frozen", "yaw", "kept", "outline")
    return {"clip": clip.name, "driver": driven.get(clip.name, "")} | {k: facts.get(k, "") for k in shown}


def sheet(out: Path, size: int, clip: crops.Clip, driver: str | None) -> list[list[np.ndarray]]:
    """Two rows: frames of the clip, and what is kept of whoever drives it, else of itself."""
    where = report.spread(clip.count, report.ACROSS)
    path, points = left.driver_of(out, clip, driver or clip.name)
    frames = zip(crops.read(path, where), points[where])
    kept = [face.mask_driving(frame, masks.mask(outline, size)) for frame, outline in frames]
    return [report.row(list(crops.read(left.frames_of(out, clip), where))), report.row(kept)]


if __name__ == "__main__":
    main(sys.argv[1:])
