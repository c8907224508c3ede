"""python -m svdp_jax.ablate configs/ablation/toy.py [--workdir runs/ablation] [--seeds 0 1] [--at-once 2]

Trains every variant that the file names with every seed, scores all of them on the same people and
motions that no training has seen, ten segments of each, and writes WORKDIR/ablation.md with
plots and pictures: does what the paper claims hold in the toy world, and by how much. Stopped at
any moment, the same command goes on; what is done is not done again.
"""

from svdp_jax import errors

if __name__ == "__main__":
    errors.end_quietly()  # imports take seconds

import argparse
import dataclasses
import io
import itertools
import os
import queue
import runpy
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from svdp_jax import config as configs
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError, say_errors
from svdp_jax.evaluation import metrics, report, toy_score
from svdp_jax.files import on_disk, write_whole
from svdp_jax.media.images import contact_sheet, enlarged, write_image
from svdp_jax.preparation.report import spread

SEGMENTS = 10  # of a scored clip
RESAMPLES = 500  # of clips, for intervals
SHOWN = 8  # frames of the first clip in pictures
MEANS = ("psnr", "sharpness", "features", "identity_error", "leak", "flicker", "drift", "seams_seen")
DRIFT = "drift in 100 frames, ‰"
# The tables' columns: their digits, and how they are read from means over clips, and correlations by parameter.
COLUMNS = {
    "PSNR, dB ↑": (2, lambda mean, control: mean["psnr"]),
    "control ↑": (3, lambda mean, control: np.mean([control[name] for name in toy_score.CONTROL])),
    "sharpness ↑": (2, lambda mean, control: mean["sharpness"]),
    "features ↓": (3, lambda mean, control: mean["features"]),
    "hidden: PSNR, dB ↑": (2, lambda mean, control: mean["hidden"]["psnr"]),
    "hidden: control ↑": (3, lambda mean, control: mean["hidden"]["control"]),
    "yaw ↑": (2, lambda mean, control: control["yaw"]),
    "blink ↑": (2, lambda mean, control: control["blink"]),
    "mouth ↑": (2, lambda mean, control: control["mouth_open"]),
    "identity error, ‰ ↓": (1, lambda mean, control: 1000 * mean["identity_error"]),
    "leak, ‰ ↓": (0, lambda mean, control: 1000 * mean["leak"]),
    "flicker, ‰ ↓": (1, lambda mean, control: 1000 * mean["flicker"]),
    DRIFT: (1, lambda mean, control: 1000 * mean["drift"]),
    "seams seen, %": (0, lambda mean, control: 100 * mean["seams_seen"]),
}


def figures(scores: dict[str, np.ndarray]) -> np.ndarray:
    """The COLUMNS of some clips of one run."""
    mean = {name: scores[name].mean() for name in MEANS} | {"hidden": toy_score.where_hidden(scores)}
    control = toy_score.correlation(*toy_score.motions(scores))
    return np.array([read(mean, control) for _, read in COLUMNS.values()])


loaded = lru_cache(maxsize=1)(SVDPEngine.load)  # one that is compiled scores all weights of guidance
unseen_clips = lru_cache(maxsize=2)(toy_score.unseen_clips)  # with masked drivers, and without


class Study(NamedTuple):
    """A file of variants, and where their runs lie."""

    file: Path
    variants: tuple[str, ...]
    questions: dict[str, tuple[str, ...]]
    weights: dict[str, tuple[float, ...]]  # of guidance, by name, with which the base is scored too
    get_config: Callable
    workdir: Path
    seeds: tuple[int, ...]
    clips: int
    at_once: int
    flags: tuple[str, ...]  # for every training

    @property
    def base(self) -> str:
        return self.variants[0]

    def config(self) -> configs.Config:
        """The base's."""
        return configs.from_flags(self.get_config(self.base))

    def folder(self, variant: str, seed: int) -> Path:
        return self.workdir / variant.replace(" ", "_") / f"seed_{seed}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further arguments, such as --config.data.batch=16, go to every training.",
    )  # fmt: skip
    add = parser.add_argument
    add(
        "file",
        type=Path,
        help="a Python file of VARIANTS, QUESTIONS, get_config and perhaps WEIGHTS of guidance, such as configs/ablation/toy.py",
    )
    add("--workdir", type=Path, default=Path("runs/ablation"), metavar="DIR")
    add("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="of trainings (default 0 1)")
    add("--clips", type=int, default=16, metavar="N", help="that are scored (default 16)")
    add("--at-once", type=int, default=1, metavar="N",
        help="trainings at once, each on its share of the CPU's cores: on a CPU a third faster (default 1)")  # fmt: skip
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
        options.file, tuple(found["VARIANTS"]), found["QUESTIONS"], found.get("WEIGHTS", {}), found["get_config"],
        options.workdir, tuple(options.seeds), options.clips, options.at_once, flags,
    )  # fmt: skip


def run(study: Study) -> None:
    on_disk(study.workdir)
    todo = list(itertools.product(study.variants, study.seeds))
    train_all(study, todo)
    for variant, seed in tqdm(todo, desc="Scoring", unit="run"):
        scores_of(study, variant, seed)
    for weight in tqdm(guided(study), desc="Scoring weights of guidance", unit="weight"):
        scores_of(study, study.base, study.seeds[0], *weight)
    write(study)
    print(f"See {study.workdir / 'ablation.md'}.")


# --- trainings


def train_all(study: Study, todo: list[tuple[str, int]]) -> None:
    with ThreadPoolExecutor(study.at_once, initializer=own_cores(study.at_once)) as pool:
        trained = pool.map(lambda run: train(study, *run), todo)
        try:
            list(tqdm(trained, total=len(todo), desc="Training", unit="run", miniters=1))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # those that run have been told, or end well
            raise


def own_cores(count: int) -> Callable[[], None]:
    """To be called once in each of so many threads: binds it, and what it starts, to its share of the cores."""
    if not hasattr(os, "sched_setaffinity"):
        return lambda: None
    shares = queue.SimpleQueue()
    for cores in np.array_split(sorted(os.sched_getaffinity(0)), count):
        shares.put(cores.tolist())

    def bind():
        if cores := shares.get():
            os.sched_setaffinity(0, cores)  # of this thread

    return bind


def train(study: Study, variant: str, seed: int) -> None:
    """Trains one variant, unless it is trained; what it says goes to log.txt in its folder."""
    folder = study.folder(variant, seed)
    if (folder / "model" / "manifest.json").exists():
        return
    command = [
        sys.executable, "-m", "svdp_jax.train", f"--config={study.file}:{variant}", f"--workdir={folder}",
        f"--config.seed={seed}", "--config.evaluate=0", *study.flags,
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    with open(log, "w") as words:
        code = subprocess.run(command, stdout=words, stderr=words).returncode
    if code or not (folder / "model" / "manifest.json").exists():
        last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(f"the training of {variant!r}, seed {seed}, ended early; mend it and start again ({log}): {last}")


# --- scores


def guided(study: Study) -> list[tuple[str, float]]:
    """Other weights of guidance than the base's, one at a time."""
    usual = study.config().sampling
    return [(name, value) for name, values in study.weights.items() for value in values if value != getattr(usual, name)]


def scores_of(study: Study, variant: str, seed: int, weight: str = "", value: float = 0.0) -> dict[str, np.ndarray]:
    """What `toy_score.measured` says of a run, from its folder where that is there; with one weight of
    guidance changed, if named. The videos lie beside it."""
    folder = study.folder(variant, seed) / (f"{weight}_{value:g}" if weight else "scores")
    path = folder / "scores.npz"
    if not (path.exists() and len(load(path)["psnr"]) == study.clips and load(path).keys() >= set(MEANS)):
        folder.mkdir(exist_ok=True)
        engine = loaded(study.folder(variant, seed))
        clips = clips_for(study, engine.config)
        changed = {weight: value} if weight else {}
        videos = toy_score.generate(engine, clips, dataclasses.replace(engine.config.sampling, **changed))
        save(folder / "videos.npz", {"videos": videos})
        save(path, toy_score.measured(clips, videos, engine.config.data.frames))
    return load(path)


def load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def save(path: Path, arrays: dict[str, Any]) -> None:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    write_whole(path, file.getvalue())


def clips_for(study: Study, config: configs.Config) -> toy_score.Clips:
    shown = dataclasses.replace(config.data, past=0)  # of which clips know nothing
    return unseen_clips(shown, study.clips, SEGMENTS * config.data.frames)


# --- words and pictures


def write(study: Study) -> None:
    found = {v: [scores_of(study, v, seed) for seed in study.seeds] for v in study.variants}
    base, config = found[study.base], study.config()
    parts = [introduction(study, config, base)]
    for number, (question, variants) in enumerate(study.questions.items(), 1):
        shown = {name: found[name] for name in (study.base, *variants)}
        plot, picture = f"error_{number}.svg", f"frames_{number}.png"
        errors = {name: np.mean([s["error"].mean(0) for s in runs], 0) for name, runs in shown.items()}
        write_whole(study.workdir / plot, curves(errors))
        write_image(study.workdir / picture, frames(study, list(shown)))
        rows = ", ".join(["driver as the base sees it", "truth", *shown])
        parts += [f"## {question}\n", table(shown), f"\nLess {study.base}:\n", differences(shown), "\nError by frame:"]
        parts += [f"\n![Error by frame]({plot})\n", f"The first clip, seed {study.seeds[0]}; from the top: {rows}.\n"]
        parts += [f"![Frames]({picture})\n"]
    grid = {f"{name} {value:g}": [scores_of(study, study.base, study.seeds[0], name, value)] for name, value in guided(study)}
    if grid:
        shown = {study.base: base[:1]} | grid
        parts += ["## Weights of guidance\n", f"Of {study.base}, seed {study.seeds[0]}, one at a time.\n", table(shown)]
        parts += [f"\nLess {study.base}:\n", differences(shown)]
    write_whole(study.workdir / "ablation.md", "\n".join(parts) + "\n")


def introduction(study: Study, config: configs.Config, base: list[dict]) -> str:
    trivial = np.mean([scores["trivial"] for scores in base])
    at = config.sampling
    return (
        f"# Ablation: {study.file.name}\n\n"
        f"{configs.stage_ends(config)[-1]} steps each, seeds {', '.join(map(str, study.seeds))}; {study.clips} unseen clips of "
        f"{SEGMENTS} segments of {config.data.frames} frames, guidance {at.source:g}, {at.driving:g}, {at.past:g} "
        f"(source, driving, past). Tables have means over seeds ± half the way between the seeds' extremes. Differences "
        f"have 95 % intervals from {RESAMPLES} draws of clips, the same for both sides; **bold** ones leave out zero and "
        f"have one sign with every seed. Repeating the source has {trivial:.2f} dB. "
        f"Control is the mean correlation of {', '.join(toy_score.CONTROL)}. A seam counts as seen where it flickers more than 95 % "
        f"of the other pairs of frames, so 5 % is chance. Repeat it with "
        f"`python -m svdp_jax.ablate {study.file} --seeds {' '.join(map(str, study.seeds))} --clips {study.clips}"
        f"{''.join(f' {flag}' for flag in study.flags)}`.\n"
    )


def markdown(rows: dict[str, list[str]]) -> str:
    """Without the columns that say nothing, as of hidden drivers where none is."""
    columns = list(zip(COLUMNS, *rows.values()))
    names, *cells = zip(*(column for column in columns if not all("nan" in cell for cell in column[1:])))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | {' | '.join(row)} |" for name, row in zip(rows, cells)])


def table(rows: dict[str, list[dict]]) -> str:
    """A row a variant, of the scores of its seeds; drift has its interval."""
    cells = {}
    for name, runs in rows.items():
        values = np.array([figures(scores) for scores in runs])  # seeds columns
        spread = np.ptp(values, 0) / 2
        cells[name] = [
            f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(runs) > 1 else "")
            for mean, half, (digits, _) in zip(values.mean(0), spread, COLUMNS.values())
        ]
        drift = list(COLUMNS).index(DRIFT)
        low, high = metrics.interval(1000 * np.mean([scores["drift"] for scores in runs], 0))
        cells[name][drift] = f"{values[:, drift].mean():+.1f} [{low:+.1f}, {high:+.1f}]"
    return markdown(cells)


def differences(rows: dict[str, list[dict]]) -> str:
    """What each row after the first has more than the first, with intervals over clips."""
    base, *others = rows
    count = len(rows[base][0]["psnr"])
    # All clips, then draws of them; the same for every row.
    draws = [np.arange(count), *np.random.default_rng(0).integers(count, size=(RESAMPLES, count))]
    found = {  # draws seeds columns
        name: np.array([[figures(toy_score.at(scores, clips)) for scores in runs] for clips in draws])
        for name, runs in rows.items()
    }
    cells = {}
    for name in others:
        by_seed, *drawn = found[name] - found[base]
        low, high = np.quantile(np.mean(drawn, 1), [0.025, 0.975], axis=0)
        cells[name] = []
        for i, (digits, _) in enumerate(COLUMNS.values()):
            sure = low[i] * high[i] > 0 and len(set(np.sign(by_seed[:, i]))) == 1
            text = f"{by_seed[:, i].mean():+.{digits}f}"
            cells[name] += [f"{f'**{text}**' if sure else text} [{low[i]:+.{digits}f}, {high[i]:+.{digits}f}]"]
    return markdown(cells)


def frames(study: Study, variants: list[str]) -> np.ndarray:
    """Some frames of the first clip: the base's driver, the truth, and what each variant makes of it."""
    clips = clips_for(study, study.config())
    rows = [clips.driving[0], clips.target[0]]
    for variant in variants:
        rows.append(load(study.folder(variant, study.seeds[0]) / "scores" / "videos.npz")["videos"][0])
    return enlarged(contact_sheet([list(row[spread(len(row), SHOWN)]) for row in rows]))


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
