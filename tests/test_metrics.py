"""Metrics against other implementations, closed forms, and known damage."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from damage import DAMAGES, curve, truth
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from svdp_jax.evaluation import fvd, metrics
from svdp_jax.media import sound


@pytest.fixture(scope="module")
def random():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def videos(random):
    a = random.integers(0, 256, (3, 40, 52, 3)).astype(np.uint8)
    return a, np.clip(a + random.normal(0, 30, a.shape), 0, 255).astype(np.uint8)


# Frames


def test_psnr_and_l1(videos):
    a, b = videos
    np.testing.assert_allclose(metrics.psnr(a, b), [peak_signal_noise_ratio(x, y) for x, y in zip(a, b)], rtol=1e-6)
    np.testing.assert_allclose(metrics.l1(a, b), np.abs(a - b.astype(float)).mean((1, 2, 3)) / 255, rtol=1e-12)
    assert (metrics.psnr(a, a) == metrics.MOST_PSNR).all() and (metrics.l1(a, a) == 0).all()


def test_ssim_equals_scikit_image(videos):
    a, b = videos
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1, "data_range": 255}
    theirs = [structural_similarity(x, y, **options) for x, y in zip(a, b)]
    np.testing.assert_allclose(metrics.ssim(a, b), theirs, atol=1e-6)
    np.testing.assert_allclose(metrics.ssim(a, a), 1, atol=1e-12)


def test_flicker_is_only_what_the_reference_has_not():
    reference = np.arange(0, 60, 10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(metrics.flicker(reference + 50, reference), 0)
    np.testing.assert_array_equal(metrics.flicker(reference[:1].repeat(6, 0), reference), 0)
    np.testing.assert_allclose(metrics.flicker(2 * reference, reference), 10 / 255)


def test_sharpness_is_the_energy_of_fine_waves_alone():
    rows, columns = np.arange(24)[:, None], np.arange(40)
    wave = lambda size, place, at: np.cos(np.pi / size * at * (place + 0.5))
    coarse, fine = wave(24, rows, 5) * wave(40, columns, 15), wave(24, rows, 18) * wave(40, columns, 3)
    picture = lambda a, b: np.repeat((128 + a * coarse + b * fine)[None, ..., None], 3, -1)
    truth = picture(40, 20)
    for a, b, expected in ((40, 20, 1), (10, 20, 1), (40, 5, 1 / 16), (0, 40, 4), (40, 0, 0)):
        np.testing.assert_allclose(metrics.sharpness(picture(a, b), truth), expected, atol=1e-12)
    assert np.isnan(metrics.sharpness(truth, picture(40, 0))).all()


def test_drift_is_the_slope_per_hundred_frames():
    frames = np.arange(100)
    np.testing.assert_allclose(metrics.drift(0.3 + 0.002 * frames), 0.2)
    assert np.isnan(metrics.drift(frames[:31])).all()


# Identity


def test_csim_and_leak(random):
    source, driver, aside = np.eye(8)[:3]
    assert metrics.csim(3 * source[None], source[None])[0] == 1
    assert metrics.csim(aside[None], source[None])[0] == 0
    way = np.stack([source, driver, (source + driver) / 2, source + 5 * aside])
    np.testing.assert_allclose(metrics.leak(way, source[None], driver[None]), [0, 1, 0.5, 0])
    assert np.isnan(metrics.leak(way, source[None], source[None])).all()
    frames = driver + np.zeros((4, 8))
    np.testing.assert_allclose(metrics.leak_of_identity(frames, source[None], frames), 1)


# Eyes


def looking(yaw, pitch, roll=0.0, height=10.0):
    """Both eyes, 29 pixels wide with a ball of 12, on a head rolled by so many degrees."""
    yaw, pitch, turn = np.deg2rad(yaw), np.deg2rad(pitch), np.exp(1j * np.deg2rad(roll))
    middles = np.array([[-40.0, 40.0]])
    iris = middles + 12 * (np.sin(yaw) * np.cos(pitch) + 1j * np.sin(pitch))
    outward = np.array([[-14.5, 14.5]])
    points = (middles + outward, middles - outward, middles - 1j * height / 2, middles + 1j * height / 2, iris)
    return metrics.Eyes(*(turn * p + 200 + 300j for p in points))


@pytest.mark.parametrize("roll", [0, 20, -35])
def test_gaze_is_the_angle_of_the_eyeball(roll):
    direction = metrics.gaze(looking(20, 10, roll))
    expected = np.array([np.sin(0.349066) * np.cos(0.174533), np.sin(0.174533), np.cos(0.349066) * np.cos(0.174533)])
    np.testing.assert_allclose(direction[0], [expected, expected], atol=1e-5)
    ahead = metrics.gaze(looking(0, 0, 0))
    np.testing.assert_allclose(metrics.gaze_error(metrics.gaze(looking(25, 0, roll)), ahead), 25, atol=1e-6)
    np.testing.assert_allclose(metrics.gaze_error(metrics.gaze(looking(0, -15, roll)), ahead), 15, atol=1e-6)


def test_opening_is_the_angle_between_the_lids():
    np.testing.assert_allclose(metrics.opening(looking(0, 0, 10, height=12)), 60)
    np.testing.assert_allclose(metrics.opening(looking(0, 0, height=0)), 0)


# Lips and sound


def test_mfcc_equals_python_speech_features(random):
    theirs = pytest.importorskip("python_speech_features").mfcc
    for length in (300, 16_000, 7_777):
        samples = (8000 * random.normal(size=length)).clip(-32768, 32767).astype(np.int16)
        samples[length // 2 : length // 2 + 2000] = 0  # silence has a logarithm too
        np.testing.assert_allclose(sound.mfcc(samples), theirs(samples, 16_000), atol=1e-9)


def test_sync_finds_the_offset(random):
    speech = random.normal(size=(60, 16))
    for offset in (0, 4, -7):
        lips = np.roll(speech, offset, 0)[20:40]
        distances = metrics.sync_distances(lips, speech[20:40])
        assert distances.argmin() == metrics.OFFSETS - offset
    lips, late = speech[:40], speech[5:45] + 0.1 * random.normal(size=(40, 16))
    apart = [[np.linalg.norm(lips[i] - (late[j] if 0 <= (j := i + s) < 40 else 0)) for i in range(40)] for s in range(-15, 16)]
    means = np.mean(apart, 1)
    np.testing.assert_allclose(metrics.sync_distance(lips, late), means.min())
    np.testing.assert_allclose(metrics.sync_confidence(lips, late), np.median(means) - means.min())


# Sets


def gathered(features, pieces):
    gaussian = metrics.Gaussian(features.shape[1])
    for piece in np.array_split(features, pieces):
        gaussian.add(piece)
    return gaussian


def test_frechet_equals_scipy(random):
    mix = random.normal(size=(48, 48))
    a, b = random.normal(size=(10_000, 48)) @ mix, 1.3 * random.normal(size=(10_000, 48)) @ mix.T + 0.4
    streamed = metrics.frechet(gathered(a, 37), gathered(b, 11))
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances) - 2 * root)
    np.testing.assert_allclose(streamed, expected, rtol=1e-8)
    halves = metrics.frechet(gathered(a[::2], 5), gathered(a[1::2], 5))
    assert halves < 0.01 * expected
    assert metrics.frechet(gathered(a, 1), gathered(a, 9)) < 1e-8 * expected


def test_frechet_of_fewer_clips_than_features(random):
    few = random.normal(size=(6, 20))
    assert metrics.frechet(gathered(few, 2), gathered(few, 3)) < 1e-8
    assert metrics.frechet(gathered(few, 2), gathered(few + 1, 1)) == pytest.approx(20)


def test_interval_equals_scipy(random):
    values = random.normal(3, 1, 40)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=random).confidence_interval
    np.testing.assert_allclose(metrics.interval(values), theirs, atol=0.02)
    assert np.isnan(metrics.interval(values[:1])).all()


# Damage


@pytest.fixture(scope="module")
def clip():
    return truth(size=16)  # fitting costs in proportion to the pixels


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_worsens_its_metric_step_by_step(clip, name):
    values = np.array(curve(clip, name))
    print(name, values)  # shown by pytest -s
    steps = np.diff(values) * (1 if DAMAGES[name].better == "lower" else -1)
    assert (steps > 0).all(), values


# What FVD looks at


@pytest.mark.parametrize("shape", [(5, 7), (9, 4), (224, 224), (6, 6)])
def test_frames_are_resized_as_in_tensorflow_1(random, shape):
    """Pixel by pixel by the definition: the place is index × old size / new size, without halves."""
    image, size = random.integers(0, 256, (*shape, 3)).astype(np.uint8), 6 if shape[0] < 200 else 224
    expected = np.zeros((size, size, 3))
    for i in range(size):
        for j in range(size):
            y, x = i * shape[0] / size, j * shape[1] / size
            a, b = int(y), int(x)
            c, d = min(a + 1, shape[0] - 1), min(b + 1, shape[1] - 1)
            upper, lower = (image[row, b] * (1 - x + b) + image[row, d] * (x - b) for row in (a, c))
            expected[i, j] = upper * (1 - y + a) + lower * (y - a)
    np.testing.assert_allclose(fvd.resized(image, size), expected, atol=1e-3)
