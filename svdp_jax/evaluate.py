"""Scores animated portraits: a model's, a rival's, or a folder of videos that anybody made.

A toy model, on drawn people and motions it never saw, where the truth is known exactly:

    python -m svdp_jax.evaluate --checkpoint runs/toy_cpu

Any model on a folder of videos. Protocol self: a clip's first frame is the source and the clip
the driver, so that the truth is known. Protocol cross: drivers are other people. Videos in one
subfolder are of one person, else each is of a person of its own:

    python -m svdp_jax.evaluate --checkpoint runs/mine --data videos --protocol self

Videos that are there already, matched by name (clip.mp4 with clip.mp4; sources may be pictures);
several methods stand side by side:

    python -m svdp_jax.evaluate --results ours=out --results rival=theirs --reference truth
    python -m svdp_jax.evaluate --results out --driving drivers --source portraits

Writes results.json, results.md and report.html. A metric that needs weights or videos that are
not there is skipped, and the report says how to get them.
"""

import argparse
from pathlib import Path

from svdp_jax import measure, report, toy_score
from svdp_jax.animator import Animator
from svdp_jax.clips import Folders, match
from svdp_jax.errors import UserError, say_errors
from svdp_jax.metrics import METRICS
from svdp_jax.reenact import PROTOCOLS, reenact, unseen


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="DIR", help="a work folder of svdp_jax.train")
    add("--clips", type=int, default=8, metavar="N", help="how many drawn clips, without --data (default 8)")
    add("--data", type=Path, metavar="DIR", help="videos of people the model was not trained on")
    add("--protocol", choices=PROTOCOLS, default="self", help="who drives (default self)")
    add("--results", action="append", default=[], metavar="[NAME=]DIR", help="result videos of a method")
    add("--reference", type=Path, metavar="DIR", help="what the results should have become")
    add("--driving", type=Path, metavar="DIR", help="the drivers, where they are other people")
    add("--source", type=Path, metavar="DIR", help="source pictures; default: the reference's first frames")
    add("--weights", type=Path, default=Path("weights"), metavar="DIR",
        help="converted networks of the metrics, a folder each (default weights)")  # fmt: skip
    add("--output", type=Path, metavar="DIR", help="default evaluation; for toy models results in the checkpoint's folder")
    options = parser.parse_args()
    say_errors("evaluate", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    if not options.checkpoint and not options.results:
        raise UserError("name what to score: --checkpoint DIR, or --results DIR with --reference DIR.")
    if options.checkpoint and options.results:
        raise UserError("score a checkpoint or results; the checkpoint's videos are kept and can be --results later.")
    if options.checkpoint and not options.data:
        animator = Animator.load(options.checkpoint)
        if animator.config.data.source != "toy":
            raise UserError(f"{options.checkpoint} was trained on videos; name others to score it on with --data DIR.")
        folder = options.output or options.checkpoint / "results"
        print(toy_score.table(toy_score.evaluate(animator, options.clips, folder)))
        return
    output = options.output or Path("evaluation")
    with report.whole(output) as partial:
        methods, refused = (given if options.results else generated)(options, partial)
        results = score(methods, refused, options.weights, partial)
    print(report.table(results), *report.remarks(results), f"The report is {output / 'report.html'}.", sep="\n")


def given(options: argparse.Namespace, folder: Path):
    """The folders of each method named with --results, and no refusals."""
    methods = {}
    for text in options.results:
        name, _, path = text.rpartition("=")
        name = name or Path(path).name
        if name in methods or Path(name).name != name:
            raise UserError(f"--results {text}: give each method a name of its own, as in --results ours=DIR.")
        methods[name] = Folders(Path(path), options.reference, options.driving, options.source)
    return methods, {}


def generated(options: argparse.Namespace, folder: Path):
    """The folders of the checkpoint's videos, once these are made, and what could not be made."""
    animator = Animator.load(options.checkpoint)
    pairs = unseen(options.data, options.protocol, animator.config.data)
    return reenact(animator, pairs, options.protocol, folder / "generated")


def score(methods: dict[str, Folders], refused: dict[str, str], weights: Path, folder: Path) -> dict:
    """Scores all methods and writes the report; returns what results.json holds."""
    calls = measure.load(weights)
    scores, refusals, skipped = {}, {}, {}
    for name, folders in methods.items():
        clips, misfits = match(folders)
        refusals[name] = refused | misfits
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
