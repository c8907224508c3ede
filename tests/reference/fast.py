"""python tests/reference/fast.py OUT NAME=CHECKPOINT:STEPS[:SOURCE:DRIVING:PAST] ... [--clips 24] [--frames 160]

Models of the toy world side by side, one row each: network calls a segment, FLOPs and time a frame, quality on people
never seen. CHECKPOINT is a work folder, or `shipped`; the guidance weights are the config's by default. Times are of one
person and in turns, a segment of each after the other, so that whatever else the machine does meets all alike.
Writes OUT.json and prints a table; rows that OUT.json has already are not measured again, but for their times.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from svdp_jax import config as configs
from svdp_jax.diffusion import guidance
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.evaluation import metrics, toy_score
from svdp_jax.planning.flops import segment_flops

CONTROL = ("yaw", "pitch", "gaze_x", "gaze_y", "blink", "mouth_open")
TURNS, SEGMENTS = 7, 6  # of timing: so many segments at a time
PATIENCE = 8  # calls of a segment; with more, the longer clips are not made


def parsed(words: str) -> tuple[str, SVDPEngine, configs.Sampling]:
    name, _, rest = words.partition("=")
    folder, steps, *weights = rest.split(":")
    engine = SVDPEngine.load(None if folder == "shipped" else folder)
    sampling = dataclasses.replace(engine.config.sampling, steps=int(steps))
    if weights:
        sampling = dataclasses.replace(sampling, **dict(zip(guidance.CONDITIONS, map(float, weights))))
    return name, engine, sampling


def branches(engine: SVDPEngine, sampling: configs.Sampling) -> int:
    return len(guidance.weights(sampling, engine.config.model.told))


def times(rows: list, frames: int) -> dict[str, float]:
    """Seconds a frame of each, the median of turns."""
    taken = {name: [] for name, *_ in rows}
    clips = toy_score.unseen_clips(rows[0][1].config.data, 1, frames)
    driving = np.moveaxis(clips.driving, 1, 0)
    for turn in range(TURNS + 1):
        for name, engine, sampling in rows:
            begun = time.perf_counter()
            for _ in engine.generate(clips.source, driving, sampling=sampling):
                pass
            if turn:  # the first compiles
                taken[name].append((time.perf_counter() - begun) / frames)
    return {name: float(np.median(values)) for name, values in taken.items()}


def table(found: dict) -> str:
    columns = {
        "calls a segment": lambda r: f"{r['calls']}",
        "GFLOP a frame": lambda r: f"{r['gflop']:.2f}",
        "ms a frame": lambda r: f"{1000 * r['seconds']:.1f}",
        "PSNR, dB": lambda r: f"{r['psnr']:.2f}",
        "sharpness": lambda r: f"{r['sharpness']:.2f}",
        **{name: lambda r, name=name: f"{r['control'][name]:.2f}" for name in CONTROL},
        "flicker, ‰": lambda r: f"{1000 * r['flicker']:.1f}" if "drift" in r else "",
        "seams seen": lambda r: f"{r['seams_seen']:.0%}" if "drift" in r else "",
        "drift in 100 frames, ‰": lambda r: (
            "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(1000 * x for x in r["drift"])) if "drift" in r else ""
        ),
    }
    lines = [f"| | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    lines += [f"| {name} | {' | '.join(cell(row) for cell in columns.values())} |" for name, row in found.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("rows", nargs="+", type=parsed)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--frames", type=int, default=160, help="of the longer clips that tell flicker, seams and drift")
    args = parser.parse_args()
    path = args.out.with_suffix(".json")
    found = json.loads(path.read_text()) if path.exists() else {}
    for name, engine, sampling in args.rows:
        data = engine.config.data
        calls = sampling.steps * branches(engine, sampling)
        gflop = sum(segment_flops(dataclasses.replace(engine.config, sampling=sampling)).values()) / data.frames / 1e9
        if name not in found:
            clips = toy_score.unseen_clips(data, args.clips)
            scores = toy_score.measured(clips, toy_score.generate(engine, clips, sampling), data.frames)
            found[name] = toy_score.summary(scores)
        if "drift" not in found[name] and calls <= PATIENCE:
            clips = toy_score.unseen_clips(data, args.clips, args.frames)
            lasting = toy_score.endurance(toy_score.generate(engine, clips, sampling), clips.target, data.frames)
            drift = lasting["drift"]
            found[name] |= {part: float(lasting[part].mean()) for part in ("flicker", "seams_seen")}
            found[name] |= {"drift": [float(drift.mean()), *metrics.interval(drift)]}
        found[name] |= {"calls": calls, "gflop": gflop}
        path.write_text(json.dumps(found, indent=1))
    for name, seconds in times(args.rows, SEGMENTS * args.rows[0][1].config.data.frames).items():
        found[name]["seconds"] = seconds
    path.write_text(json.dumps(found, indent=1))
    print(table({name: found[name] for name, *_ in args.rows}))


if __name__ == "__main__":
    main()
