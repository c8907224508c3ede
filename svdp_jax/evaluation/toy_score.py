"""Scores a model in the toy world, where the truth is known exactly.

People and motions are drawn from a seed that training never uses. PSNR is that
of each clip's mean squared error, averaged over clips. The motion of a generated
video is fitted (`fit.fit`) with the person known; `control` is its
correlation with the driver's true motion over all frames, and the control error
their mean difference. The trivial answer repeats the source picture.

`measured` has the numbers of every clip, from which means and intervals are made;
`summary` has the means.
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
from svdp_jax.animator import provenance
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.evaluation import metrics, report
from svdp_jax.media.images import contact_sheet, enlarged, write_image
from svdp_jax.media.writer import VideoWriter
from svdp_jax.preparation.report import spread
from svdp_jax.preparation.work import encoder
from svdp_jax.toy import fit, person, world
from svdp_jax.training.records import to_uint8

UNSEEN = 1 << 20  # seed of people and motions for scoring only
FRAMES = 4  # of each clip: motion drifts slowly, so more clips tell more than longer ones
BOARD_FRAMES = 4  # of each clip on the contact sheet
LASTING = 40  # frames of a clip from which on drift and seams are told
FITTED = 10  # frames of a clip, evenly over it, whose motion is measured: a frame takes 0.3 s of a core

FEWEST = 8  # frames that a correlation is told from
CONTROL = ("yaw", "pitch", "gaze_x", "gaze_y", "blink", "mouth_open")  # whose mean is `control`

render = jax.jit(world.render, static_argnums=2)


class Clips(NamedTuple):
    """Cross-identity clips of the toy world; pictures uint8, b f y x c, source b y x c."""

    source: np.ndarray
    driving: np.ndarray
    target: np.ndarray
    identity: person.Identity
    driver: person.Identity
    motion: person.Motion
    hidden: np.ndarray | None = None  # whether a part of the driver is, b f; None where none ever is


def unseen_clips(data: configs.Data, count: int, frames: int = FRAMES) -> Clips:
    keys = jax.random.split(jax.random.key(UNSEEN), count)
    draw = lambda key: world.triple(key, frames, 0, data.size, masked=data.masked, difficulty=data.difficulty)
    drawn = jax.jit(jax.vmap(draw))(keys)
    pictures = (to_uint8(drawn[name]) for name in ("source", "driving", "target"))
    return Clips(*pictures, drawn["identity"], drawn["driver"], drawn["motion"], np.asarray(drawn["hidden"]))


def generate(engine: SVDPEngine, clips: Clips, sampling: configs.Sampling | None = None) -> np.ndarray:
    """Videos (b f y x c) uint8 of all clips at once, segment after segment; `sampling` is the config's by default."""
    driving = np.moveaxis(clips.driving, 1, 0)
    frames = engine.generate(clips.source, driving, sampling=sampling)
    return np.stack(list(tqdm(frames, total=len(driving), desc="Sampling", unit="frame")), 1)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of uint8 videos b f y x c, in dB by clip: (b,)."""
    return decibels(((a.astype(np.float32) - b) ** 2).mean(axis=(1, 2, 3, 4)))


def decibels(error):
    """Of a mean squared error of uint8 pictures; at most 78."""
    return 10 * np.log10(255**2 / np.maximum(error, 1e-3))


def fitted_motion(videos: np.ndarray, identity: person.Identity) -> person.Motion:
    """The motion (b f) that the videos show of these people (b)."""
    fitted = [
        fit.fit(frames / np.float32(255), at(identity, i))
        for i, frames in enumerate(tqdm(videos, desc="Measuring motion", unit="clip"))
    ]
    return jax.tree.map(lambda *fields: np.stack(fields), *fitted)


def at(tree, index: int | np.ndarray):
    return jax.tree.map(lambda field: field[index], tree)


def correlation(true: person.Motion, fitted: person.Motion) -> dict[str, float]:
    """Pearson's r per parameter over all frames; nan where the truth is constant."""
    with np.errstate(invalid="ignore"):
        return {
            name: float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) for name, a, b in zip(person.Motion._fields, true, fitted)
        }


def control_error(true: person.Motion, fitted: person.Motion) -> dict[str, float]:
    """Mean absolute difference per motion parameter, in the units of `toy.world`."""
    return {name: float(np.abs(np.asarray(a) - b).mean()) for name, a, b in zip(person.Motion._fields, true, fitted)}


def portraits(people: Sequence[person.Identity], motion: person.Motion, size: int) -> np.ndarray:
    """Several people, each in every frame of a motion (f): i f y x c in [0, 1]."""
    stacked = jax.tree.map(lambda *fields: jnp.stack(fields), *people)
    motions = jax.tree.map(lambda field: jnp.broadcast_to(field, (len(people), *field.shape)), motion)
    return np.asarray(render(stacked, motions, size))


def likeness(videos: np.ndarray, clips: Clips, fitted: person.Motion) -> tuple[np.ndarray, np.ndarray]:
    """Identity error, and leak of the driver's looks, means over frames: (b,) each.

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
    return np.array(errors), np.array(leaks)


def endurance(videos: np.ndarray, target: np.ndarray, segment: int) -> dict[str, np.ndarray]:
    """How videos (b f y x c) keep up over segments of so many frames, by clip (b,), or by frame too (b f).

    error (b f): mean difference of pictures, in [0, 1]. drift: slope of a line through its means
    over segments, in 100 frames. flicker: `metrics.flicker`, mean. seam: that between the frames
    where segments meet, less that between others; 0 where no seam shows. seams_seen: the share of
    those meetings that flicker more than 95 % of the other pairs do, some 0.05 where no seam shows.
    nan where there are too few frames.
    """
    error = np.abs(videos.astype(np.float32) - target).mean((2, 3, 4)) / 255
    count = videos.shape[1] // segment
    means = rearrange(error[:, : count * segment], "b (s f) -> b s f", f=segment).mean(-1)
    excess = np.stack([metrics.flicker(made, true) for made, true in zip(videos, target)])  # b f-1
    meeting = np.arange(1, videos.shape[1]) % segment == 0
    scores = {"error": error, "flicker": excess.mean(1)}
    if segment == 1 or count < 2:
        return scores | dict.fromkeys(("drift", "seam", "seams_seen"), np.full(len(videos), np.nan))
    met, inside = excess[:, meeting], excess[:, ~meeting]
    return scores | {
        "drift": 100 / segment * np.polyfit(np.arange(count), means.T, 1)[0],
        "seam": met.mean(1) - inside.mean(1),
        "seams_seen": (met > np.quantile(inside, 0.95, axis=1, keepdims=True, method="higher")).mean(1),
    }


def feature_distance(videos: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Root mean square difference of latents of the small codec, whose deviation is about 1, by clip: (b,).

    Unlike PSNR it does not prefer a blur: brightness counts no more than the shapes that make an eye. nan where it does not
    divide the pictures.
    """
    codec = configs.Codec("small")
    if videos.shape[2] % codec.factor:
        return np.full(len(videos), np.nan)
    encode, pairs = encoder(codec), zip(videos, target)
    return np.array([np.sqrt(np.square(encode(made) - encode(true)).mean()) for made, true in pairs])


def where_hidden(scores: dict[str, np.ndarray]) -> dict[str, float]:
    """PSNR, dB, and mean correlation of the CONTROL motions, over the frames of `measured` in which a part of the driver
    is hidden; nan where there are too few."""
    hidden, some = scores["hidden"], scores["hidden"][:, spread(scores["hidden"].shape[1], FITTED)]
    if some.sum() < FEWEST:
        return {"psnr": np.nan, "control": np.nan}
    fitted = correlation(*(person.Motion(*scores[name][some].T) for name in ("true", "fitted")))
    return {
        "psnr": float(decibels(scores["squares"][hidden].mean())),
        "control": float(np.mean([fitted[name] for name in CONTROL])),
    }


def measured(clips: Clips, videos: np.ndarray, segment: int) -> dict[str, np.ndarray]:
    """All scores of videos (b f y x c) made in segments of so many frames, by clip: (b,) or (b f ...).

    psnr, and trivial of repeating the source, dB; squares (b f), mean squared error by frame; hidden (b f), of the driver;
    sharpness, `metrics.sharpness`; features, `feature_distance`; true and fitted motion (b f m) of FITTED frames, in the
    order of `person.Motion`; identity_error and leak of `likeness` in these; what `endurance` measures.
    """
    some = spread(videos.shape[1], FITTED)
    fitted = fitted_motion(videos[:, some], clips.identity)
    identity_error, leak = likeness(videos[:, some], clips, fitted)
    repeated = np.broadcast_to(clips.source[:, None], clips.target.shape)
    scores = {
        "psnr": psnr(videos, clips.target), "trivial": psnr(repeated, clips.target),
        "squares": np.square(videos.astype(np.float32) - clips.target).mean((2, 3, 4)),
        "hidden": np.zeros(videos.shape[:2], bool) if clips.hidden is None else clips.hidden,
        "features": feature_distance(videos, clips.target),
        "sharpness": np.array([metrics.sharpness(made, true).mean() for made, true in zip(videos, clips.target)]),
        "true": np.stack(clips.motion, -1)[:, some], "fitted": np.stack(fitted, -1),
        "identity_error": identity_error, "leak": leak,
    }  # fmt: skip
    return scores | endurance(videos, clips.target, segment)


def motions(scores: dict[str, np.ndarray]) -> tuple[person.Motion, person.Motion]:
    """The true and the fitted motion that `measured` holds."""
    true, fitted = (person.Motion(*np.moveaxis(scores[name], -1, 0)) for name in ("true", "fitted"))
    return true, fitted


def summary(scores: dict[str, np.ndarray]) -> dict:
    """The means of what `measured` gives. Of drift and seams, where there are frames enough, with
    the 95 % interval over clips."""
    clips, frames = scores["error"].shape
    results = {"clips": clips, "frames": frames}
    results |= {"control": correlation(*motions(scores)), "control_error": control_error(*motions(scores))}
    results |= {
        name: float(scores[name].mean()) for name in ("psnr", "trivial", "sharpness", "features", "identity_error", "leak")
    }
    results |= {"hidden": where_hidden(scores)} if scores["hidden"].any() else {}
    if frames >= LASTING:
        results |= {name: [float(scores[name].mean()), *metrics.interval(scores[name])] for name in ("drift", "seams_seen")}
    return results


def table(results: dict) -> str:
    """Results as Markdown."""
    errors = results["control_error"]
    rows = {
        "PSNR": f"{results['psnr']:.2f} dB",
        "PSNR of repeating the source": f"{results['trivial']:.2f} dB",
        "gain": f"{results['psnr'] - results['trivial']:+.2f} dB",
        "fine detail over the truth's": f"{results['sharpness']:.2f}",
        "distance of the codec's features": f"{results['features']:.3f}",
        "identity error": f"{results['identity_error']:.3f}",
        "leak of the driver's looks": f"{results['leak']:.2f}",
    }
    if "hidden" in results:
        rows["PSNR where the driver is hidden"] = f"{results['hidden']['psnr']:.2f} dB"
        rows["control where the driver is hidden"] = f"{results['hidden']['control']:.2f}"
    if "drift" in results:
        drift, low, high = (1000 * value for value in results["drift"])
        rows["drift: growth of the error in 100 frames, ‰"] = f"{drift:+.2f} [{low:+.2f}, {high:+.2f}]"
        rows["seams between segments that show"] = f"{results['seams_seen'][0]:.0%}, where 5% are chance"
    rows |= {f"control of {name}": f"{value:.2f}, error {errors[name]:.3f}" for name, value in results["control"].items()}
    head = f"| {results['clips']} unseen clips of {results['frames']} frames | |"
    return "\n".join([head, "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def write(folder: Path, clips: Clips, videos: np.ndarray, results: dict, provenance: dict[str, str]) -> None:
    """results.json, results.md, sample.mp4 and contact_sheet.png, both source | driving | generated | truth.

    provenance: tags of the pictures, `animator.provenance`.
    """
    (folder / "results.json").write_text(json.dumps(results, indent=2))
    (folder / "results.md").write_text(table(results) + "\n")
    columns = (clips.driving, videos, clips.target)
    shown = spread(videos.shape[1], BOARD_FRAMES)
    rows = [[clips.source[i]] + [column[i, frame] for column in columns for frame in shown] for i in range(len(videos))]
    write_image(folder / "contact_sheet.png", enlarged(contact_sheet(rows)), provenance)
    with VideoWriter(folder / "sample.mp4", person.FPS, metadata=provenance) as writer:
        for frame in range(videos.shape[1]):
            rows = [[clips.source[i]] + [column[i, frame] for column in columns] for i in range(len(videos))]
            writer.write(enlarged(contact_sheet(rows)))


def evaluate(engine: SVDPEngine, count: int, folder: Path, frames: int = FRAMES) -> dict:
    """Generates, scores and writes everything to the folder; returns the `summary`."""
    clips = unseen_clips(engine.config.data, count, frames)
    videos = generate(engine, clips)
    results = summary(measured(clips, videos, engine.config.data.frames))
    with report.whole(folder) as partial:
        write(partial, clips, videos, results, provenance(engine.fingerprint))
    return results
