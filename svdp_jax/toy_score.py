"""Scores a model in the toy world, where the truth is known exactly.

People and motions are drawn from a seed that training never uses. PSNR is that
of each clip's mean squared error, averaged over clips. The motion of a generated
video is fitted (`data.toy.fit`) with the person known; `control` is its
correlation with the driver's true motion over all frames, and the control error
their mean difference. The trivial answer repeats the source picture.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from tqdm import tqdm

from svdp_jax import config as configs
from svdp_jax import metrics, report
from svdp_jax.animator import Animator
from svdp_jax.data import toy
from svdp_jax.data.images import contact_sheet, enlarged, write_image
from svdp_jax.data.records import to_uint8
from svdp_jax.data.writer import VideoWriter

UNSEEN = 1 << 20  # seed of people and motions for scoring only
FRAMES = 4  # of each clip: motion drifts slowly, so more clips tell more than longer ones
BOARD_FRAMES = 4  # of each clip on the contact sheet

render = jax.jit(toy.render, static_argnums=2)


class Clips(NamedTuple):
    """Cross-identity clips of the toy world; pictures uint8, b f y x c, source b y x c."""

    source: np.ndarray
    driving: np.ndarray
    target: np.ndarray
    identity: toy.Identity
    driver: toy.Identity
    motion: toy.Motion


def unseen_clips(data: configs.Data, count: int, frames: int = FRAMES) -> Clips:
    keys = jax.random.split(jax.random.key(UNSEEN), count)
    draw = lambda key: toy.triple(key, frames, 0, data.size, masked=data.masked)
    drawn = jax.jit(jax.vmap(draw))(keys)
    pictures = (to_uint8(drawn[name]) for name in ("source", "driving", "target"))
    return Clips(*pictures, drawn["identity"], drawn["driver"], drawn["motion"])


def generate(animator: Animator, clips: Clips, sampling: configs.Sampling | None = None) -> np.ndarray:
    """Videos (b f y x c) uint8 of all clips at once, segment after segment; `sampling` is the config's by default."""
    driving = np.moveaxis(clips.driving, 1, 0)
    frames = animator.generate(clips.source, driving, sampling=sampling)
    return np.stack(list(tqdm(frames, total=len(driving), desc="Sampling", unit="frame")), 1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over clips, in dB, of uint8 videos b f y x c."""
    error = ((a.astype(np.float32) - b) ** 2).mean(axis=(1, 2, 3, 4))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-3))).mean())


def fitted_motion(videos: np.ndarray, identity: toy.Identity) -> toy.Motion:
    """The motion (b f) that the videos show of these people (b)."""
    fitted = [
        toy.fit(frames / np.float32(255), at(identity, i))
        for i, frames in enumerate(tqdm(videos, desc="Measuring motion", unit="clip"))
    ]
    return jax.tree.map(lambda *fields: np.stack(fields), *fitted)


def at(tree, index: int):
    return jax.tree.map(lambda field: field[index], tree)


def control_error(true: toy.Motion, fitted: toy.Motion) -> dict[str, float]:
    """Mean absolute difference per motion parameter, in the units of `data.toy`."""
    return {
        name: float(np.abs(np.asarray(a) - b).mean())
        for name, a, b in zip(toy.Motion._fields, true, fitted)
    }


def portraits(people: Sequence[toy.Identity], motion: toy.Motion, size: int) -> np.ndarray:
    """Several people, each in every frame of a motion (f): i f y x c in [0, 1]."""
    stacked = jax.tree.map(lambda *fields: jnp.stack(fields), *people)
    motions = jax.tree.map(lambda field: jnp.broadcast_to(field, (len(people), *field.shape)), motion)
    return np.asarray(render(stacked, motions, size))


def likeness(videos: np.ndarray, clips: Clips, fitted: toy.Motion) -> tuple[float, float]:
    """Identity error, and leak of the driver's looks, means over all frames.

    The error is the mean absolute difference of colours in [0, 1] from the person making the
    fitted motion, so pose has no part in it. Leak is `metrics.leak` on the pixels of that picture
    and the same one of the driver.
    """
    errors, leaks = [], []
    for i, frames in enumerate(videos):
        people = at(clips.identity, i), at(clips.driver, i)
        own, other = rearrange(portraits(people, at(fitted, i), frames.shape[1]), "i f y x c -> i f (y x c)")
        shown = rearrange(frames / np.float32(255), "f y x c -> f (y x c)")
        errors.append(np.abs(shown - own).mean())
        leaks.append(metrics.leak(shown, own, other).mean())
    return float(np.mean(errors)), float(np.mean(leaks))


def score(clips: Clips, videos: np.ndarray) -> dict:
    repeated = np.broadcast_to(clips.source[:, None], clips.target.shape)
    fitted = fitted_motion(videos, clips.identity)
    identity_error, leak = likeness(videos, clips, fitted)
    return {
        "clips": len(videos),
        "frames": videos.shape[1],
        "psnr": psnr(videos, clips.target),
        "psnr_trivial": psnr(repeated, clips.target),
        "control": toy.correlation(clips.motion, fitted),
        "control_error": control_error(clips.motion, fitted),
        "identity_error": identity_error,
        "leak": leak,
    }


def endurance(videos: np.ndarray, target: np.ndarray, segment: int) -> dict[str, np.ndarray]:
    """How videos (b f y x c) keep up over segments of so many frames, by clip (b,) or frame (f,).

    error: mean difference of pictures, in [0, 1], by frame. drift: slope of it over the means of
    segments, per segment. flicker: `metrics.flicker`, mean. seam: that between the frames where
    segments meet, less that between others; 0 where no seam shows.
    """
    error = np.abs(videos.astype(np.float32) - target).mean((2, 3, 4)) / 255
    count = videos.shape[1] // segment
    means = rearrange(error[:, : count * segment], "b (s f) -> b s f", f=segment).mean(-1)
    excess = np.stack([metrics.flicker(made, true) for made, true in zip(videos, target)])  # b f-1
    met = np.arange(1, videos.shape[1]) % segment == 0
    inside = excess[:, ~met] if segment > 1 else excess
    return {
        "error": error.mean(0),
        "drift": np.polyfit(np.arange(count), means.T, 1)[0],
        "flicker": excess.mean(1),
        "seam": excess[:, met].mean(1) - inside.mean(1),
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
        f"| identity error | {results['identity_error']:.3f} |",
        f"| leak of the driver's looks | {results['leak']:.2f} |",
    ]
    errors = results["control_error"]
    lines += [
        f"| control of {name} | {value:.2f}, error {errors[name]:.3f} |"
        for name, value in results["control"].items()
    ]
    return "\n".join(lines)


def write(folder: Path, clips: Clips, videos: np.ndarray, results: dict, provenance: dict[str, str]) -> None:
    """results.json, results.md, sample.mp4 and contact_sheet.png, both source | driving | generated | truth.

    provenance: tags of the pictures, `Animator.provenance`.
    """
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    (folder / "results.md").write_text(table(results) + "\n")
    columns = (clips.driving, videos, clips.target)
    shown = np.linspace(0, videos.shape[1] - 1, BOARD_FRAMES).astype(int)
    rows = [
        [clips.source[i]] + [column[i, frame] for column in columns for frame in shown]
        for i in range(len(videos))
    ]
    write_image(folder / "contact_sheet.png", enlarged(contact_sheet(rows)), provenance)
    with VideoWriter(folder / "sample.mp4", toy.FPS, metadata=provenance) as writer:
        for frame in range(videos.shape[1]):
            rows = [
                [clips.source[i]] + [column[i, frame] for column in columns]
                for i in range(len(videos))
            ]
            writer.write(enlarged(contact_sheet(rows)))


def evaluate(animator: Animator, count: int, folder: Path) -> dict:
    """Generates, scores and writes everything to the folder; returns the results."""
    clips = unseen_clips(animator.config.data, count)
    videos = generate(animator, clips)
    results = score(clips, videos)
    with report.whole(folder) as partial:
        write(partial, clips, videos, results, animator.provenance)
    return results
