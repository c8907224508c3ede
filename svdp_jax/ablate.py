"""python -m svdp_jax.ablate configs/ablation/toy.py [--workdir runs/ablation] [--seeds 0 1]

Trains every variant that the file names with every seed, scores all of them on the same people and
motions that no training has seen, ten segments of each, and writes WORKDIR/ablation.md with
plots: does what the paper claims hold in the toy world, and by how much. Stopped at any moment,
the same command goes on; variants that are done are not trained again.
"""

import argparse
import dataclasses
import itertools
import json
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from svdp_jax import config as configs, metrics, report, toy_score
from svdp_jax.animator import Animator
from svdp_jax.errors import UserError, say_errors
from svdp_jax.files import write_whole

SEGMENTS = 10  # of a scored clip
CONTROL = ("yaw", "pitch", "gaze_x", "gaze_y", "blink", "mouth_open")  # their mean is `control`
WEIGHTS = {"source": (0.5, 1.0, 2.0), "driving": (1.0, 1.4, 2.5), "past": (0.5, 1.4, 2.5)}  # of guidance
# What the tables show: how it is read from a run's scores, and its digits.
COLUMNS: dict[str, tuple[Callable[[dict], float], int]] = {
    "PSNR, dB ↑": (lambda s: s["psnr"], 2),
    "control ↑": (lambda s: control(s), 2),
    "yaw ↑": (lambda s: s["control"]["yaw"], 2),
    "blink ↑": (lambda s: s["control"]["blink"], 2),
    "mouth ↑": (lambda s: s["control"]["mouth_open"], 2),
    "identity error ↓": (lambda s: s["identity_error"], 3),
    "leak ↓": (lambda s: s["leak"], 3),
    "flicker, ‰ ↓": (lambda s: 1000 * np.mean(s["flicker"]), 2),
    "drift, ‰ a segment": (lambda s: 1000 * np.mean(s["drift"]), 2),
    "seam, ‰": (lambda s: 1000 * np.mean(s["seam"]), 2),
}


loaded = lru_cache(maxsize=1)(Animator.load)  # one that is compiled scores all weights of guidance
unseen_clips = lru_cache(maxsize=2)(toy_score.unseen_clips)  # with masked drivers, and without


class Study(NamedTuple):
    """A file of variants, and where their runs lie."""

    file: Path
    variants: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]
    get_config: Callable
    workdir: Path
    seeds: tuple[int, ...]
    clips: int
    flags: tuple[str, ...]  # for every training

    def folder(self, variant: str, seed: int) -> Path:
        return self.workdir / variant.replace(" ", "_") / f"seed_{seed}"


def control(scores: dict) -> float:
    return float(np.mean([scores["control"][name] for name in CONTROL]))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further arguments, such as --config.data.batch=16, go to every training.",
    )  # fmt: skip
    add = parser.add_argument
    add("file", type=Path, help="a Python file of VARIANTS, QUESTIONS and get_config, such as configs/ablation/toy.py")
    add("--workdir", type=Path, default=Path("runs/ablation"), metavar="DIR")
    add("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="of trainings (default 0 1)")
    add("--clips", type=int, default=8, metavar="N", help="that are scored (default 8)")
    options, flags = parser.parse_known_args(arguments)
    say_errors("ablate", lambda: run(study(options, tuple(flags))))


def study(options: argparse.Namespace, flags: tuple[str, ...]) -> Study:
    """UserError for a file that is none."""
    if not options.file.is_file():
        raise UserError(f"{options.file} is not there; name a file such as configs/ablation/toy.py.")
    found = runpy.run_path(str(options.file))
    missing = {"VARIANTS", "QUESTIONS", "get_config"} - set(found)
    if missing:
        raise UserError(f"{options.file} defines no {sorted(missing)[0]}; see configs/ablation/toy.py.")
    return Study(
        options.file, tuple(found["VARIANTS"]), found["QUESTIONS"], found["get_config"],
        options.workdir, tuple(options.seeds), options.clips, flags,
    )  # fmt: skip


def run(study: Study) -> None:
    todo, begun = list(itertools.product(study.variants, study.seeds)), time.monotonic()
    for done, (variant, seed) in enumerate(todo):
        left = (time.monotonic() - begun) / done * (len(todo) - done) if done else 0
        print(f"{variant}, seed {seed}: {done + 1} of {len(todo)}, about {left / 60:.0f} min left", flush=True)
        train(study, variant, seed)
        scores_of(study, variant, seed)
    for name, value in guided():
        scores_of(study, study.variants[0], study.seeds[0], name, value)
    write(study)
    print(f"See {study.workdir / 'ablation.md'}.")


def train(study: Study, variant: str, seed: int) -> None:
    folder = study.folder(variant, seed)
    if (folder / "model" / "manifest.json").exists():
        return
    command = [
        sys.executable, "-m", "svdp_jax.train", f"--config={study.file}:{variant}", f"--workdir={folder}",
        f"--config.seed={seed}", "--config.evaluate=0", *study.flags,
    ]  # fmt: skip
    if subprocess.run(command).returncode or not (folder / "model" / "manifest.json").exists():
        raise UserError(f"the training of {variant!r}, seed {seed}, ended early; the same command goes on with it.")


def guided() -> list[tuple[str, float]]:
    """Each weight of guidance in turn, the others as they are."""
    return [(name, value) for name, values in WEIGHTS.items() for value in values]


def scores_of(study: Study, variant: str, seed: int, weight: str = "", value: float = 0.0) -> dict:
    """A run's scores, from its folder where they are there; with one weight of guidance changed, if named."""
    folder = study.folder(variant, seed)
    path = folder / (f"scores_{weight}_{value:g}.json" if weight else "scores.json")
    if path.exists():
        return json.loads(path.read_text())
    animator = loaded(folder)
    changed = {weight: value} if weight else {}
    scores = measure(animator, study.clips, dataclasses.replace(animator.config.sampling, **changed))
    write_whole(path, json.dumps(scores, indent=1))
    return scores


def measure(animator: Animator, count: int, sampling: configs.Sampling) -> dict:
    """All scores of `toy_score` on so many clips of SEGMENTS segments."""
    segment = animator.config.data.frames
    shown = dataclasses.replace(animator.config.data, past=0)  # of which clips know nothing
    clips = unseen_clips(shown, count, SEGMENTS * segment)
    videos = toy_score.generate(animator, clips, sampling)
    lasting = toy_score.endurance(videos, clips.target, segment)
    return toy_score.score(clips, videos) | {name: values.tolist() for name, values in lasting.items()}


# --- words and pictures


def write(study: Study) -> None:
    found = {v: [scores_of(study, v, seed) for seed in study.seeds] for v in study.variants}
    base, *_ = study.variants
    config = configs.from_flags(study.get_config())
    trivial = np.mean([scores["psnr_trivial"] for scores in found[base]])
    parts = [
        f"# Ablation: {study.file.name}\n",
        f"{configs.stage_ends(config)[-1]} steps each, seeds {', '.join(map(str, study.seeds))}; {study.clips} unseen clips of "
        f"{SEGMENTS} segments of {config.data.frames} frames. Means over seeds ± half the way between the seeds' "
        f"extremes; of drift the 95 % bootstrap interval over clips and seeds. Repeating the source has {trivial:.2f} dB. "
        f"Control is the mean correlation of {', '.join(CONTROL)}. Repeat it with "
        f"`python -m svdp_jax.ablate {study.file}{''.join(f' {flag}' for flag in study.flags)}`.\n",
    ]  # fmt: skip
    for number, (question, variants) in enumerate(study.questions.items(), 1):
        shown = {name: found[name] for name in (base, *variants)}
        plot = f"error_{number}.svg"
        write_whole(study.workdir / plot, curves({name: np.mean([s["error"] for s in runs], 0) for name, runs in shown.items()}))
        parts += [f"## {question}\n", table(shown), f"\n![Error by frame]({plot})\n"]
    grid = {f"{name} {value:g}": [scores_of(study, base, study.seeds[0], name, value)] for name, value in guided()}
    parts += ["## Weights of guidance\n", f"Of {base}, seed {study.seeds[0]}, one at a time.\n", table(grid)]
    write_whole(study.workdir / "ablation.md", "\n".join(parts) + "\n")


def table(rows: dict[str, list[dict]]) -> str:
    """Markdown: a row a variant, of the scores of its seeds."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell(column, runs) for column in COLUMNS)} |" for name, runs in rows.items()]
    return "\n".join(lines)


def cell(column: str, runs: list[dict]) -> str:
    read, digits = COLUMNS[column]
    values = [read(scores) for scores in runs]
    mean = f"{np.mean(values):.{digits}f}"
    if column.startswith("drift"):
        low, high = metrics.interval(1000 * np.concatenate([scores["drift"] for scores in runs]))
        return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"
    return mean if len(values) == 1 else f"{mean} ± {np.ptp(values) / 2:.{digits}f}"


def curves(lines: dict[str, np.ndarray]) -> str:
    """An SVG of errors by frame, the names beside their colours."""
    low, high = (float(end) for end in np.quantile(np.concatenate(list(lines.values())), [0, 1]))
    drawn = "".join(
        f"<polyline fill='none' stroke='{colour}' stroke-width='1.5' points='{report.points(list(values), low, high)}'/>"
        f"<text x='8' y='{14 * (row + 1)}' font-size='11' fill='{colour}'>{escape(name)}</text>"
        for row, ((name, values), colour) in enumerate(zip(lines.items(), report.COLOURS * len(lines)))
    )
    size = f"width='{report.PLOT_WIDTH}' height='{report.PLOT_HEIGHT}'"
    ends = f"<title>mean error of a frame, {low:.4f} to {high:.4f}</title>"
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size} style='background:#f7f7f7'>{ends}{drawn}</svg>"


if __name__ == "__main__":
    main(sys.argv[1:])
