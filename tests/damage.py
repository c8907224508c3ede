"""Damage of a video in the toy world, in three strengths each, and the metric that is meant to see it."""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from svdp_jax.evaluation import metrics, toy_score
from svdp_jax.toy import fit, person
from svdp_jax.training.records import to_uint8

SIZE, FRAMES = 32, 32


class Truth(NamedTuple):
    """One clip: who, driven by whom, and how; frames (f y x 3) uint8."""

    identity: person.Identity
    driver: person.Identity
    motion: person.Motion
    frames: np.ndarray


class Damage(NamedTuple):
    """strengths: none, then three. measure: of one video for each. better: is it higher or lower."""

    make: Callable[[Truth, float], np.ndarray]
    strengths: tuple[float, ...]
    metric: str
    measure: Callable[[Truth, list[np.ndarray]], list[float]]
    better: str


@jax.jit
def cast(key) -> tuple[person.Identity, person.Motion]:
    """Two people, and one motion."""
    keys = jax.random.split(key, 3)
    return jax.vmap(person.sample_identity)(keys[:2]), person.sample_motion(keys[2], FRAMES)


def truth(seed: int = 0, size: int = SIZE) -> Truth:
    people, motion = cast(jax.random.key(seed))
    identity, driver = (toy_score.at(people, i) for i in range(2))
    return Truth(identity, driver, motion, drawn(identity, motion, size))


def drawn(identity: person.Identity, motion: person.Motion, size: int) -> np.ndarray:
    # Twice, since the renderer is compiled for two people already.
    return to_uint8(toy_score.portraits([identity, identity], motion, size)[0])


def blurred(truth: Truth, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(x, (0, 0), sigma) for x in truth.frames]) if sigma else truth.frames


def late(truth: Truth, frames: float) -> np.ndarray:
    return truth.frames[np.maximum(np.arange(FRAMES) - int(frames), 0)]


def darkening(truth: Truth, levels: float) -> np.ndarray:
    """The upper third loses so many levels of 255 in 100 frames."""
    result = truth.frames.astype(np.float32)
    result[:, : result.shape[1] // 3] -= levels / 100 * np.arange(FRAMES, dtype=np.float32)[:, None, None, None]
    return result.clip(0, 255).astype(np.uint8)


def swapped(truth: Truth, share: float) -> np.ndarray:
    """Somebody on the way from the person to the driver."""
    mixed = jax.tree.map(lambda a, b: (1 - share) * a + share * b, truth.identity, truth.driver)
    return drawn(mixed, truth.motion, truth.frames.shape[1])


def frozen(truth: Truth, share: float) -> np.ndarray:
    """The mouth stays, by this share, as it was at first."""
    hold = lambda field: (1 - share) * field + share * field[0]
    motion = truth.motion._replace(mouth_open=hold(truth.motion.mouth_open), mouth_width=hold(truth.motion.mouth_width))
    return drawn(truth.identity, motion, truth.frames.shape[1])


def shimmering(truth: Truth, levels: float) -> np.ndarray:
    """Every other frame is brighter."""
    return (truth.frames + levels * (np.arange(FRAMES) % 2)[:, None, None, None]).clip(0, 255).astype(np.uint8)


def against_truth(metric: Callable) -> Callable[[Truth, np.ndarray], float]:
    return lambda truth, frames: float(metric(frames, truth.frames).mean())


def colour_drift(truth: Truth, frames: np.ndarray) -> float:
    return metrics.drift_of_colour(metrics.colours(frames), metrics.colours(truth.frames))[0]


def likeness(index: int) -> Callable[[Truth, np.ndarray], float]:
    """Identity error (0) or leak (1), with the true motion."""

    def measure(truth: Truth, frames: np.ndarray) -> float:
        one = lambda tree: jax.tree.map(lambda field: field[None], tree)
        clips = toy_score.Clips(None, None, None, one(truth.identity), one(truth.driver), None)
        return float(toy_score.likeness(frames[None], clips, one(truth.motion))[index][0])

    return measure


def mouth_errors(truth: Truth, videos: list[np.ndarray]) -> list[float]:
    """Control errors of the mouth's opening in the one frame in which it is furthest from the first, of all
    videos, fitted at once."""
    opening = np.asarray(truth.motion.mouth_open)
    place = int(np.abs(opening - opening[0]).argmax())
    shown = np.stack([frames[place] for frames in videos]) / np.float32(255)
    fitted = fit.fit(jnp.asarray(shown), truth.identity)
    true = toy_score.at(truth.motion, place)
    return [toy_score.control_error(true, toy_score.at(fitted, i))["mouth_open"] for i in range(len(videos))]


def each(measure: Callable[[Truth, np.ndarray], float]) -> Callable[[Truth, list[np.ndarray]], list[float]]:
    return lambda truth, videos: [measure(truth, frames) for frames in videos]


DAMAGES = {
    "blur": Damage(blurred, (0, 0.5, 1, 2), "SSIM", each(against_truth(metrics.ssim)), "higher"),
    "delay": Damage(late, (0, 1, 2, 4), "PSNR", each(against_truth(metrics.psnr)), "higher"),
    "flicker": Damage(shimmering, (0, 2, 5, 10), "flicker", each(against_truth(metrics.flicker)), "lower"),
    "colour drift": Damage(darkening, (0, 20, 60, 120), "colour drift", each(colour_drift), "lower"),
    "identity swap": Damage(swapped, (0, 0.3, 0.6, 1), "identity error", each(likeness(0)), "lower"),
    "identity leak": Damage(swapped, (0, 0.3, 0.6, 1), "leak", each(likeness(1)), "lower"),
    "frozen mouth": Damage(frozen, (0, 0.3, 0.6, 1), "control error of mouth_open", mouth_errors, "lower"),
}


def curve(truth: Truth, name: str) -> list[float]:
    """The metric without damage and at each strength."""
    damage = DAMAGES[name]
    return damage.measure(truth, [damage.make(truth, strength) for strength in damage.strengths])
