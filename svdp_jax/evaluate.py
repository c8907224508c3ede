"""Scores a model in the toy world, where the truth is known exactly.

python -m svdp_jax.evaluate --checkpoint DIR [--clips N] [--output DIR]

People and motions are drawn from a seed that training never uses. PSNR is that
of each clip's mean squared error, averaged over clips; `control` is the
correlation, over all frames, of the driver's true motion with the motion
fitted to the generated video (`data.toy.fit`). The trivial answer repeats the
source picture.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from svdp_jax import config as configs
from svdp_jax.animator import Animator
from svdp_jax.data import toy, video
from svdp_jax.data.records import to_uint8
from svdp_jax.data.video import enlarged
from svdp_jax.errors import say_errors

UNSEEN = 1 << 20  # seed of people and motions for scoring only
FRAMES = 4  # of each clip: motion drifts slowly, so more clips tell more than longer ones
BOARD_FRAMES = 4  # of each clip on the contact sheet


class Clips(NamedTuple):
    """Cross-identity clips of the toy world; pictures uint8, b f y x c, source b y x c."""

    source: np.ndarray
    driving: np.ndarray
    target: np.ndarray
    identity: toy.Identity
    motion: toy.Motion


def unseen_clips(data: configs.Data, count: int) -> Clips:
    keys = jax.random.split(jax.random.key(UNSEEN), count)
    drawn = jax.jit(jax.vmap(lambda key: toy.triple(key, FRAMES, 0, data.size)))(keys)
    pictures = (to_uint8(drawn[name]) for name in ("source", "driving", "target"))
    return Clips(*pictures, drawn["identity"], drawn["motion"])


def generate(animator: Animator, clips: Clips) -> np.ndarray:
    """Videos (b f y x c) uint8 of all clips at once, segment after segment."""
    driving = np.moveaxis(clips.driving, 1, 0)
    frames = animator.generate(clips.source, driving)
    return np.stack(list(tqdm(frames, total=len(driving), desc="Sampling", unit="frame")), 1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over clips, in dB, of uint8 videos b f y x c."""
    error = ((a.astype(np.float32) - b) ** 2).mean(axis=(1, 2, 3, 4))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-3))).mean())


def control(videos: np.ndarray, clips: Clips) -> dict[str, float]:
    """Correlation per motion parameter of what the videos do with what the drivers did."""
    fitted = [
        toy.fit(frames / np.float32(255), jax.tree.map(lambda field: field[i], clips.identity))
        for i, frames in enumerate(tqdm(videos, desc="Measuring motion", unit="clip"))
    ]
    fitted = jax.tree.map(lambda *fields: np.stack(fields), *fitted)
    return toy.correlation(clips.motion, fitted)


def score(clips: Clips, videos: np.ndarray) -> dict:
    repeated = np.broadcast_to(clips.source[:, None], clips.target.shape)
    return {
        "clips": len(videos),
        "frames": videos.shape[1],
        "psnr": psnr(videos, clips.target),
        "psnr_trivial": psnr(repeated, clips.target),
        "control": control(videos, clips),
    }


def table(results: dict) -> str:
    """Results as Markdown."""
    gain = results["psnr"] - results["psnr_trivial"]
    lines = [
        f"| {results['clips']} unseen clips of {results['frames']} frames | |",
        "|---|---|",
        f"| PSNR | {results['psnr']:.2f} dB |",
        f"| PSNR of repeating the source | {results['psnr_trivial']:.2f} dB |",
        f"| gain | {gain:+.2f} dB |",
    ]
    lines += [f"| control of {name} | {value:.2f} |" for name, value in results["control"].items()]
    return "\n".join(lines)


def write(folder: Path, clips: Clips, videos: np.ndarray, results: dict) -> None:
    """results.json, results.md, sample.mp4 and contact_sheet.png, both source | driving | generated | truth."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    (folder / "results.md").write_text(table(results) + "\n")
    columns = (clips.driving, videos, clips.target)
    shown = np.linspace(0, videos.shape[1] - 1, BOARD_FRAMES).astype(int)
    rows = [
        [clips.source[i]] + [column[i, frame] for column in columns for frame in shown]
        for i in range(len(videos))
    ]
    video.write_image(folder / "contact_sheet.png", enlarged(video.contact_sheet(rows)))
    with video.VideoWriter(folder / "sample.mp4", toy.FPS) as writer:
        for frame in range(videos.shape[1]):
            rows = [
                [clips.source[i]] + [column[i, frame] for column in columns]
                for i in range(len(videos))
            ]
            writer.write(enlarged(video.contact_sheet(rows)))


def evaluate(animator: Animator, count: int, folder: Path) -> dict:
    """Generates, scores and writes everything to the folder; returns the results."""
    clips = unseen_clips(animator.config.data, count)
    videos = generate(animator, clips)
    results = score(clips, videos)
    write(folder, clips, videos, results)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=Path, metavar="DIR", help="a work folder of svdp_jax.train")
    add("--clips", type=int, default=8, metavar="N", help="how many unseen clips (default 8)")
    add("--output", type=Path, metavar="DIR", help="default: results in the checkpoint's folder")
    options = parser.parse_args()
    say_errors("evaluate", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    folder = options.output or options.checkpoint / "results"
    print(table(evaluate(Animator.load(options.checkpoint), options.clips, folder)))


if __name__ == "__main__":
    main()
