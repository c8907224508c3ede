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
CelebV-HQ's JSON.

Stopped at any moment, the same command goes on where it was. Videos may be added between runs. The
stages run on Apache Beam, which takes its own options after `--`: on this machine by default,
`-- --runner=none` for a plain loop without Beam, `-- --runner=DataflowRunner ...` elsewhere, where
the workers must see the same folders.

Try it on drawn people:

  python -m svdp_jax.prepare --draw-toy 6 films out --size 64 --codec pixels:4 --pairs toy \\
    --landmarks files:films --limit yaw=0:50
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import jax

from svdp_jax import config as configs
from svdp_jax.errors import UserError, say_errors
from svdp_jax.faces import face, masks
from svdp_jax.preparation import crops, encode, gates, ingest, left, pipeline, report, stages
from svdp_jax.toy import footage

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
    defaults = stages.Settings()
    add("videos", nargs="+", metavar="VIDEOS", help="videos, folders, or globs in quotes")
    add("out", type=Path, metavar="OUT", help="folder of the preparation, new or to be gone on with")
    add("--list", default="", metavar="FILE", help="a dataset's list, see above")
    add("--licence", default="unknown", metavar="TEXT", help="of the videos, for the manifest; lists bring their own")
    add("--size", type=int, metavar="PIXELS", help=f"of a crop (default {defaults.size})")
    add("--longest", type=float, metavar="SECONDS", help=f"of a clip (default {defaults.longest:g})")
    add("--limit", action="append", dest="limits", metavar="GATE", help="change a gate: fact=least or fact=least:most")
    add("--landmarks", metavar="HOW", help="windows (default, from the embedded finder), mediapipe:MODEL.task, or files:DIR")
    add("--pairs", choices=["self", *stages.MAKERS],
        help="who drives: another person by LivePortrait (default), the clip itself, or a drawn person")  # fmt: skip
    add("--pair-weights", metavar="DIR", help="converted LivePortrait weights")
    add("--codec", metavar="DIR", help="converted autoencoder, or pixels:FACTOR for the toy model")
    add("--seed", type=int, help=f"of who drives whom (default {defaults.seed})")
    add("--stage", choices=list(stages.STAGES), help="run this stage alone")
    add("--redo", choices=list(stages.STAGES), help="first throw away what this stage and later ones made")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes on this machine (default all cores)")
    add("--draw-toy", type=int, metavar="N", help="first draw N videos of the toy world into VIDEOS, a new folder")
    return result


def main(arguments: list[str]) -> None:
    mine, beam = parted(arguments)
    options = parser().parse_args(mine)
    say_errors("prepare", lambda: run(options, beam))


def parted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our arguments, and Beam's after a lone `--`."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:cut], arguments[cut + 1 :]


def run(options: argparse.Namespace, beam: list[str]) -> None:
    if options.draw_toy:
        draw_toy(Path(options.videos[0]), options.draw_toy)
    out = options.out
    names = [options.stage] if options.stage else list(stages.STAGES)
    settings = decide(options, out, names)
    check(settings, names)
    listing = ingest.find(options.videos, options.list, options.licence)
    out.mkdir(parents=True, exist_ok=True)
    record(out, settings, names)
    for name in names:
        entry = stages.STAGES[name]
        jobs = entry.jobs(out, settings, listing.sources)
        pipeline.run(entry.stage, jobs, beam or local(options.workers, len(jobs), entry.network))
        if entry.end and jobs:
            entry.end(out, settings, jobs)
    counts = write_report(out, settings, listing)
    print("\n".join(f"{what}: {number}" for what, number in counts))
    print(f"See {out / 'report.html'}.")
    if not jobs:
        raise UserError(f"no clip is left for --stage {name}; {out / 'report.html'} says why.")


def local(workers: int, jobs: int, network: bool) -> list[str]:
    """Beam's options for processes on this machine; one process is not worth starting another for.

    An accelerator belongs to one process, so that networks run in this one.
    """
    alone = network and jax.default_backend() != "cpu"
    several = 1 if alone else min(workers, jobs)
    if several < 2:
        return []
    quiet = "--default_sdk_harness_log_level=ERROR"
    return [f"--direct_num_workers={several}", "--direct_running_mode=multi_processing", quiet]


def draw_toy(folder: Path, clips: int) -> None:
    if folder.exists():
        print(f"{folder} is there already; nothing is drawn.", file=sys.stderr)
        return
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    footage.write(partial, clips, footage.SECONDS)
    partial.rename(folder)


# Settings: given ones, else those of the runs before, else defaults


def decide(options: argparse.Namespace, out: Path, names: list[str]) -> stages.Settings:
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(stages.Settings)}
    given["codec"] = codec_of(options.codec)
    given["limits"] = tuple(options.limits) if options.limits is not None else None
    given = {name: value for name, value in given.items() if value is not None}
    before = settings_of(out)
    if options.redo:
        redo = list(stages.STAGES)[list(stages.STAGES).index(options.redo) :]
        for name in redo:
            shutil.rmtree(out / stages.FOLDERS[name], ignore_errors=True)
            before = {k: v for k, v in before.items() if k not in stages.STAGES[name].settings}
    for name, entry in stages.STAGES.items():
        changed = [k for k in entry.settings if k in before and k in given and given[k] != before[k]]
        if changed and (out / stages.FOLDERS[name]).exists():
            raise UserError(
                f"{out} was made with another --{changed[0].replace('_', '-')}: add --redo {name} to make that stage "
                "and what follows again, or give another OUT."
            )
    return stages.Settings(**before | given)


def codec_of(choice: str | None) -> configs.Codec | None:
    if choice is None:
        return None
    kind, _, factor = choice.partition(":")
    if kind == "pixels" and factor.isdigit():
        return configs.Codec("pixels", int(factor))
    return configs.Codec(weights=choice)


def settings_of(out: Path) -> dict:
    """The settings of earlier runs."""
    path = out / "settings.json"
    if not path.exists():
        return {}
    before = json.loads(path.read_text())
    before |= {"limits": tuple(before["limits"])} if "limits" in before else {}
    return before | ({"codec": configs.build(configs.Codec, before["codec"], "codec")} if "codec" in before else {})


def record(out: Path, settings: stages.Settings, names: list[str]) -> None:
    """Notes the settings that the stages about to run read."""
    read = {key for name in names for key in stages.STAGES[name].settings}
    now = {k: v for k, v in dataclasses.asdict(settings).items() if k in read}
    before = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in settings_of(out).items()}
    encode.write_json(out / "settings.json", before | now)


def check(settings: stages.Settings, names: list[str]) -> None:
    """What would fail after hours fails here."""
    gates.limited(list(settings.limits))
    masks.check(settings.landmarks)
    if "pairs" in names and settings.pairs == "liveportrait" and not settings.pair_weights:
        raise UserError(NO_PAIRS)
    if "encode" in names and not (settings.codec.kind == "pixels" or settings.codec.weights):
        raise UserError(NO_CODEC)
    factor = settings.codec.factor
    if settings.size < 16 or settings.size % factor:
        raise UserError(f"--size {settings.size}: give a multiple of {factor}, the codec's factor, from 16.")


# Report


def write_report(out: Path, s: stages.Settings, listing: ingest.Listing) -> list[tuple[str, int]]:
    found = left.clips(out, listing.sources)
    rejected = list(rejections(out, listing, found))
    driven = {clip.name: driver for clip, driver in left.paired(out, found)}
    shown = [found[i] for i in report.spread(len(found), report.SHOWN)] if found else []
    kept = [clip for clip in shown if (out / "masks" / f"{clip.name}.npy").exists()]
    rows = [row for clip in kept for row in sheet(out, s, clip, driven.get(clip.name))]
    counts = [("videos found", len(listing.sources)), ("videos missing", len(listing.missing)),
              ("clips accepted", len(left.masked(out, found))), ("clips driven", len(driven)),
              ("seconds of them", round(sum(c.count / c.fps for c in found if c.name in driven)))]  # fmt: skip
    counts += [(f"rejected: {reason}", number) for reason, number in sorted(Counter(r.reason for r in rejected).items())]
    table = [clip_row(out, clip, driven) for clip in found]
    said = next((left.said_of(out, clip) for clip in shown if clip.name in driven), {})
    report.write(out, report.Report(counts, rejected, table, rows, said))
    return counts


def rejections(out: Path, listing: ingest.Listing, found: list[crops.Clip]):
    for name, why in listing.missing:
        yield report.Rejected(f"{name} ({why})", "video missing", "")
    for source in listing.sources:
        faces = left.read_json(out / "faces" / f"{source.name}.json")
        if faces and faces["error"]:
            yield report.Rejected(faces["error"], "video cannot be read", "")
        for shot in (left.read_json(out / "crops" / source.name / "clips.json") or {"rejected": []})["rejected"]:
            yield report.Rejected(shot["name"], shot["reason"], shot["thumb"])
    for clip in found:
        thumb = lambda: report.thumbnail(next(crops.read(left.frames_of(out, clip), [0])))
        masked = left.read_json(out / "masks" / f"{clip.name}.json")
        if masked and masked["reason"]:
            yield report.Rejected(clip.name, masked["reason"], thumb())
        drawn = left.read_json(out / "pairs" / f"{clip.name}.json") or {"rejected": [], "driver": "?"}
        for name, why in drawn["rejected"]:
            complaint = why.split(" (")[0]  # without its figures
            yield report.Rejected(f"{name} as driver of {clip.name}: {why}", f"pair: {complaint}", "")
        if not drawn["driver"]:
            yield report.Rejected(clip.name, "nobody to drive it", thumb())


def clip_row(out: Path, clip: crops.Clip, driven: dict[str, str]) -> dict:
    masked = left.read_json(out / "masks" / f"{clip.name}.json") or {"facts": {}}
    facts = clip.facts | masked["facts"]
    shown = ("seconds", "face", "crop", "found", "confidence", "sharpness", "frozen", "yaw", "kept", "outline")
    return {"clip": clip.name, "driver": driven.get(clip.name, "")} | {k: facts.get(k, "") for k in shown}


def sheet(out: Path, s: stages.Settings, clip: crops.Clip, driver: str | None):
    """Two rows: frames of the clip, and what is kept of whoever drives it, else of itself."""
    where = report.spread(clip.count, report.ACROSS)
    yield report.row(list(crops.read(left.frames_of(out, clip), where)))
    path, points = left.driver_of(out, clip, driver or clip.name)
    frames = zip(crops.read(path, where), points[where])
    yield report.row([face.mask_driving(frame, masks.mask(outline, s.size)) for frame, outline in frames])


if __name__ == "__main__":
    main(sys.argv[1:])
