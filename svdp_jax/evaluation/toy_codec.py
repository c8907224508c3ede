"""Scores a codec in the toy world: how pictures of people whom no training draws come back from latents.

A generator does not hit latents exactly, so they are also decoded with noise on them.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from svdp_jax import config as configs
from svdp_jax.evaluation import metrics, report, toy_score
from svdp_jax.media.images import contact_sheet, write_image
from svdp_jax.models.vae import decode_frames, encode_frames

NOISES = (0.0, 0.1, 0.2, 0.4)  # deviations of a latent channel
SHOWN = 8  # pictures on the contact sheet


def evaluate(codec, data: configs.Data, count: int, folder: Path) -> dict:
    """Scores `count` unseen pictures and writes results.json, results.md and contact_sheet.png; returns the results."""
    pictures = toy_score.unseen_clips(data, count, 1).target[:, 0]  # b y x 3
    latents = jax.jit(lambda x: encode_frames(codec, x))(pictures)
    spread = np.asarray(latents.std((0, 1, 2)))
    noise = spread * jax.random.normal(jax.random.key(toy_score.UNSEEN), latents.shape)
    decode = jax.jit(lambda share: decode_frames(codec, latents + share * noise))
    made = np.stack([np.asarray(decode(jnp.float32(share))) for share in NOISES])
    results = {
        "pictures": count,
        "psnr": {str(share): float(metrics.psnr(shown, pictures).mean()) for share, shown in zip(NOISES, made)},
        "sharpness": float(metrics.sharpness(made[0], pictures).mean()),
        "deviation of a channel": [float(spread.min()), float(spread.max())],
        "neighbours alike": neighbours(np.asarray(latents)),
    }
    with report.whole(folder) as partial:
        (partial / "results.json").write_text(json.dumps(results, indent=2))
        (partial / "results.md").write_text(table(results) + "\n")
        write_image(partial / "contact_sheet.png", contact_sheet([list(pictures[:SHOWN]), *(list(x[:SHOWN]) for x in made)]))
    return results


def neighbours(latents: np.ndarray) -> float:
    """Correlation of each place's latents (b y x c) with those to the right of it, the mean over channels."""
    left, right = (rearrange(part, "b y x c -> c (b y x)") for part in (latents[:, :, :-1], latents[:, :, 1:]))
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(left, right)]))


def table(results: dict) -> str:
    """Results as Markdown."""
    low, high = results["deviation of a channel"]
    rows = {
        f"PSNR, noise of {float(share):.0%} on the latents": f"{value:.1f} dB" for share, value in results["psnr"].items()
    } | {
        "sharpness": f"{results['sharpness']:.2f}",
        "deviation of a channel of latents": f"{low:.2f} to {high:.2f}",
        "correlation of neighbouring latents": f"{results['neighbours alike']:.2f}",
    }
    head = f"| {results['pictures']} unseen pictures | |"
    return "\n".join([head, "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
