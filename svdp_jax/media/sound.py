"""Mel-frequency cepstral coefficients, as lip-sync networks were trained with."""

import numpy as np

RATE = 16_000  # samples per second
WINDOW, STEP, FFT = 400, 160, 512  # samples: 25 ms every 10 ms
FILTERS, COEFFICIENTS, LIFTER, EMPHASIS = 26, 13, 22, 0.97


def mfcc(samples: np.ndarray) -> np.ndarray:
    """Cepstral coefficients (t 13), a hundred a second, of 16-bit samples (n,) at 16 kHz.

    Pre-emphasis, rectangular windows, triangular mel filters, logarithm, orthonormal cosine
    transform, sine lifter; the first is the logarithm of the frame's energy. Definition and
    defaults: python_speech_features.
    """
    samples = np.asarray(samples, np.float64)
    power = np.abs(np.fft.rfft(frames(emphasised(samples)), FFT)) ** 2 / FFT  # t 257
    energy, bands = positive(power.sum(1)), positive(power @ mel_filters().T)
    order = np.arange(COEFFICIENTS)
    angles = np.pi * np.outer(2 * np.arange(FILTERS) + 1, order) / (2 * FILTERS)
    cosines = np.cos(angles) * np.sqrt(np.where(order, 2, 1) / FILTERS)
    result = np.log(bands) @ cosines * (1 + LIFTER / 2 * np.sin(np.pi * order / LIFTER))
    result[:, 0] = np.log(energy)
    return result


def emphasised(samples: np.ndarray) -> np.ndarray:
    return np.append(samples[:1], samples[1:] - EMPHASIS * samples[:-1])


def frames(samples: np.ndarray) -> np.ndarray:
    """Overlapping windows (t WINDOW); the last is filled up with zeros."""
    count = 1 + max(0, -(-(len(samples) - WINDOW) // STEP))
    padded = np.zeros((count - 1) * STEP + WINDOW)
    padded[: len(samples)] = samples
    return np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::STEP]


def positive(x: np.ndarray) -> np.ndarray:
    """Silence as the smallest step of numbers around one, so that its logarithm exists."""
    return np.where(x == 0, np.finfo(float).eps, x)


def mel_filters() -> np.ndarray:
    """Triangles (FILTERS, bins) evenly spaced in mel, 2595 log10(1 + Hz / 700), from 0 to half the rate."""
    mels = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), FILTERS + 2)
    edges = np.floor((FFT + 1) * 700 * (10 ** (mels / 2595) - 1) / RATE)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = np.arange(FFT // 2 + 1)
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.where(bins < middle, rising, falling).clip(0) * (bins >= low) * (bins < high)
