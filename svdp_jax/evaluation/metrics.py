"""Metrics: each is a definition, an implementation and a test.

Pure functions of NumPy arrays. Frames are (f y x 3) uint8; what networks make of
them is an array with one row per frame. `METRICS` says what each metric needs,
and which way is better. A metric's value for a clip is the mean of what its
function returns, which is a number per frame where there is one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

MOST_PSNR = 100.0  # dB; of identical pictures, whose true value is infinite
CELLS = 8  # colour is compared in a grid of so many rows and columns
SEGMENT = 16  # frames averaged before a slope is fitted
OFFSETS = 15  # frames by which sound is shifted to and fro, in search of the lips
EYEBALL = 12 / 29  # radius of an eyeball, in widths of its opening (12 mm and 29 mm in adults)


# --- frames against frames


def l1(result: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean absolute difference of colours in [0, 1], per frame (f,)."""
    difference = cv2.absdiff(result.reshape(len(result), -1), reference.reshape(len(result), -1))
    return difference.mean(1) / 255


def psnr(result: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """10 log10(255² / mean squared difference), dB, per frame (f,); at most 100."""
    squares = [np.square(a.astype(np.float32) - b).mean(dtype=np.float64) for a, b in zip(result, reference)]
    return np.minimum(10 * np.log10(255**2 / np.maximum(squares, 1e-12)), MOST_PSNR)


def ssim(result: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Structural similarity, per frame (f,), 1 for the same picture.

    Gaussian windows of 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03, mean over the pixels
    whose window lies inside and over colours. Source: Wang et al. 2004, "Image quality assessment".
    """
    return np.array([_similarity(a, b) for a, b in zip(result, reference)])


def _similarity(a: np.ndarray, b: np.ndarray) -> float:
    kernel = cv2.getGaussianKernel(11, 1.5)
    smooth = lambda x: cv2.sepFilter2D(x, cv2.CV_64F, kernel, kernel)
    a, b, c1, c2 = a.astype(np.float64), b.astype(np.float64), (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = smooth(a), smooth(b)
    mixed = smooth(a * b) - mean_a * mean_b
    spread = smooth(a * a + b * b) - mean_a**2 - mean_b**2
    similar = (2 * mean_a * mean_b + c1) * (2 * mixed + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
    return float(similar[5:-5, 5:-5].mean())


def flicker(result: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Change between frames that the reference does not have, in [0, 1], (f - 1,).

    Mean over pixels of max(0, |change of the result| - |change of the reference|). Ours.
    """
    pairs = zip(result, result[1:], reference, reference[1:])
    excess = [cv2.subtract(cv2.absdiff(a, b), cv2.absdiff(c, d)).mean() for a, b, c, d in pairs]
    return np.array(excess) / 255


def sharpness(result: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Fine detail of the result over that of the reference, per frame (f,): 1 for as much, less where it is blurred.

    The energy of the luminance (BT.601, gamma as it is) whose cosine transform lies above half the band, which is 0.25
    cycles a pixel, along the picture's columns and rows together. nan where the reference has none. Ours.
    """
    fine, wanted = _fine_energy(result), _fine_energy(reference)
    return np.where(wanted > 1e-6, fine / np.maximum(wanted, 1e-6), np.nan)


def _fine_energy(frames: np.ndarray) -> np.ndarray:
    luminance = frames.astype(np.float64) @ np.array([0.299, 0.587, 0.114])
    waves = _cosines(luminance.shape[1]) @ luminance @ _cosines(luminance.shape[2]).T
    down, across = (np.arange(size) / size for size in luminance.shape[1:])  # 1 is 0.5 cycles a pixel
    return (np.square(waves) * (np.hypot(down[:, None], across) > 0.5)).sum((1, 2))


def _cosines(size: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II): frequencies by places. Unlike Fourier's it sees no jump at the borders."""
    waves = np.cos(np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5))
    return waves * np.sqrt(np.where(np.arange(size) == 0, 1, 2)[:, None] / size)


def colours(frames: np.ndarray) -> np.ndarray:
    """Mean colours (f CELLS CELLS 3) of a grid of cells, in [0, 255]."""
    return np.stack([cv2.resize(x.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA) for x in frames])


# --- features against features


def csim(result: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Cosine of the identity embeddings (f d) of result and source (1 d), per frame (f,).

    Source of the embedding: ArcFace, Deng et al. 2019 (arXiv 1801.07698). 1 is the same person.
    """
    return (unit(result) * unit(source)).sum(-1)


def unit(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def leak(result: np.ndarray, source: np.ndarray, driver: np.ndarray) -> np.ndarray:
    """Where the result (f d) lies on the way from the source's identity to the driver's, (f,).

    0 at the source (1 d), 1 at the driver (f d): the result's embedding, projected on the line
    between the two. nan where they are one person. Ours.
    """
    way = driver - source
    length = np.square(way).sum(-1)
    along = ((result - source) * way).sum(-1)
    return np.where(length > 1e-9, along / np.maximum(length, 1e-9), np.nan)


def leak_of_identity(result: np.ndarray, source: np.ndarray, driver: np.ndarray) -> np.ndarray:
    """`leak` of identity embeddings at unit length; the driver's is the mean of its frames."""
    return leak(unit(result), unit(source), unit(unit(driver).mean(0, keepdims=True)))


def drift(errors: np.ndarray) -> np.ndarray:
    """Growth of an error (f,) in 100 frames: slope of a line through means of 16 frames, (1,).

    nan where there are fewer than two such segments. Ours.
    """
    count = len(errors) // SEGMENT
    if count < 2:
        return np.array([np.nan])
    means = np.asarray(errors, np.float64)[: count * SEGMENT].reshape(count, SEGMENT).mean(1)
    return 100 * np.polyfit(SEGMENT * np.arange(count), means, 1)[:1]


def drift_of_colour(result: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`drift` of the mean difference of `colours`, in levels of 255 per 100 frames. Ours.

    Cells of an eighth of the picture see a forehead that darkens, and no small misplacement.
    """
    return drift(np.abs(result - reference).mean((1, 2, 3)))


def drift_of_identity(result: np.ndarray, source: np.ndarray) -> np.ndarray:
    """`drift` of 1 - `csim`, per 100 frames. Ours."""
    return drift(1 - csim(result, source))


def pose_distance(result: np.ndarray, driving: np.ndarray) -> np.ndarray:
    """Average pose distance (APD): mean absolute difference of head angles (f 3), degrees, (f,)."""
    return np.abs(result - driving).mean(-1)


def expression_distance(result: np.ndarray, driving: np.ndarray) -> np.ndarray:
    """Average expression distance (AED): mean absolute difference of expressions (f e), (f,).

    Expressions are the deformations of LivePortrait's 21 implicit keypoints (arXiv 2407.03168).
    """
    return np.abs(result - driving).mean(-1)


# --- eyes


class Eyes(NamedTuple):
    """Points of the picture's left and right eye, complex pixels x + iy, each (f, 2)."""

    outer: np.ndarray
    inner: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    iris: np.ndarray


def gaze(eyes: Eyes) -> np.ndarray:
    """Directions of both eyes (f, 2, 3), unit length: x along the eye's opening, y down, z ahead.

    The iris sits on a ball around the middle of the opening. Angles are relative to the face.
    """
    across = np.where(eyes.inner.real > eyes.outer.real, eyes.inner - eyes.outer, eyes.outer - eyes.inner)
    turn = across / np.abs(across)
    offset = (eyes.iris - (eyes.inner + eyes.outer) / 2) / turn / (EYEBALL * np.abs(across))
    offset /= np.maximum(1, np.abs(offset))
    ahead = np.sqrt(np.maximum(0, 1 - np.abs(offset) ** 2))
    return np.stack([offset.real, offset.imag, ahead], -1)


def opening(eyes: Eyes) -> np.ndarray:
    """The angle (f, 2) that the open part of each eye takes, seen from the eyeball's middle, degrees."""
    height = np.abs(eyes.bottom - eyes.top) / np.abs(eyes.inner - eyes.outer)
    return np.rad2deg(2 * np.arcsin(np.minimum(1, height / 2 / EYEBALL)))


def gaze_error(result: np.ndarray, driving: np.ndarray) -> np.ndarray:
    """Mean angle between the directions (f, 2, 3) of result's and driver's eyes, degrees, (f,).

    The mean angular error (MAE) of eyeball direction in LivePortrait's table (arXiv 2407.03168),
    from landmarks in place of a gaze network.
    """
    sine = np.linalg.norm(np.cross(result, driving), axis=-1)
    return np.rad2deg(np.arctan2(sine, (result * driving).sum(-1))).mean(-1)


def opening_error(result: np.ndarray, driving: np.ndarray) -> np.ndarray:
    """Mean absolute difference of `opening` (f, 2), degrees, (f,). Ours."""
    return np.abs(result - driving).mean(-1)


# --- lips and sound


def sync_distances(lips: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Mean distance of embeddings (w d) of lips and sound at each offset, (2 OFFSETS + 1,).

    The longer of the two is cut at the end. Sound beyond the clip's ends is zeros, as in the
    published evaluation.
    Source: Chung and Zisserman 2016, "Out of time: automated lip sync in the wild".
    """
    count = min(len(lips), len(sound))
    lips, padded = lips[:count], np.pad(sound[:count], ((OFFSETS, OFFSETS), (0, 0)))
    shifts = range(2 * OFFSETS + 1)
    return np.array([np.linalg.norm(lips - padded[i : i + count], axis=1).mean() for i in shifts])


def sync_distance(lips: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Sync-D (LSE-D): the distance at the best offset, (1,)."""
    return sync_distances(lips, sound).min(keepdims=True)


def sync_confidence(lips: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Sync-C (LSE-C): how far the best offset's distance lies below the median one, (1,)."""
    distances = sync_distances(lips, sound)
    return np.median(distances, keepdims=True) - distances.min()


# --- sets against sets


class Gaussian:
    """Mean and covariance of features that come in pieces; memory is that of one piece."""

    def __init__(self, size: int):
        self.count, self.mean, self.scatter = 0, np.zeros(size), np.zeros((size, size))

    def add(self, features: np.ndarray) -> None:
        """Takes in features (n d)."""
        if not len(features):
            return
        features = np.asarray(features, np.float64)
        mean, total = features.mean(0), self.count + len(features)
        centred, step = features - mean, mean - self.mean
        self.scatter += centred.T @ centred + np.outer(step, step) * self.count * len(features) / total
        self.mean, self.count = self.mean + step * len(features) / total, total

    @property
    def covariance(self) -> np.ndarray:
        return self.scatter / (self.count - 1)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Fréchet distance of two Gaussians: |μ₁ - μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½).

    Of I3D's logits of 16-frame clips it is the FVD. Source: Unterthiner et al. 2018 (arXiv
    1812.01717). It is biased upwards for few clips: compare only figures of equally many.
    """
    # tr (Σ₁Σ₂)^½ from a symmetric matrix of the same eigenvalues, which stays exact where Σ is singular.
    values, vectors = np.linalg.eigh(a.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b.covariance @ root), 0)).sum()
    apart = np.square(a.mean - b.mean).sum()
    return float(max(0.0, apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * shared))


def interval(values: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """95 % percentile-bootstrap interval of the mean of values (n,); nan for fewer than two.

    Source: Efron 1979. Always the same draws, so a report can be made again.
    """
    if len(values) < 2:
        return np.nan, np.nan
    draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(np.asarray(values)[draws].mean(1), [0.025, 0.975])
    return float(low), float(high)


# --- the table


class Metric(NamedTuple):
    """A column of the report.

    needs: the arguments of `measure`, each a feature and the videos it is made of, such as
    "identity result" (features: `measure.FEATURES`). better: higher or lower. perfect: the
    value of a result that is its own reference, None where that depends on the clip. pooled:
    one figure for all clips, from a `Gaussian` of each need.
    """

    measure: Callable[..., Any]
    needs: tuple[str, ...]
    better: str
    unit: str = ""
    perfect: float | None = 0.0
    pooled: bool = False


def itself(values: np.ndarray) -> np.ndarray:
    """A feature that is the metric."""
    return values


METRICS = {
    "L1": Metric(itself, ("l1 result reference",), "lower"),
    "PSNR": Metric(itself, ("psnr result reference",), "higher", "dB", MOST_PSNR),
    "SSIM": Metric(itself, ("ssim result reference",), "higher", perfect=1.0),
    "LPIPS (Alex)": Metric(itself, ("lpips_alex result reference",), "lower"),
    "LPIPS (VGG)": Metric(itself, ("lpips_vgg result reference",), "lower"),
    "FVD": Metric(frechet, ("i3d result", "i3d reference"), "lower", pooled=True),
    "CSIM": Metric(csim, ("identity result", "identity source"), "higher", perfect=None),
    "Sync-C": Metric(sync_confidence, ("lips result", "sound result"), "higher", perfect=None),
    "Sync-D": Metric(sync_distance, ("lips result", "sound result"), "lower", perfect=None),
    "gaze MAE": Metric(gaze_error, ("gaze result", "gaze driving"), "lower", "°"),
    "eye MAE": Metric(opening_error, ("opening result", "opening driving"), "lower", "°"),
    "APD": Metric(pose_distance, ("pose result", "pose driving"), "lower", "°"),
    "AED": Metric(expression_distance, ("expression result", "expression driving"), "lower"),
    "sharpness": Metric(itself, ("sharpness result reference",), "higher", perfect=1.0),
    "flicker": Metric(itself, ("flicker result reference",), "lower"),
    "colour drift": Metric(drift_of_colour, ("colours result", "colours reference"), "lower", "/100 frames"),
    "identity drift": Metric(drift_of_identity, ("identity result", "identity source"), "lower", "/100 frames", None),
    "leak": Metric(leak_of_identity, ("identity result", "identity source", "identity driver"), "lower", perfect=None),
}
