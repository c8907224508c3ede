"""Colours of HDR and wide-gamut video as an ordinary screen shows them (BT.709).

For numbers like those of ffmpeg's usual chain, without its zimg, which PyAV's wheels lack:

    zscale=t=linear:npl=100, zscale=p=bt709, tonemap=hable:desat=0, zscale=t=bt709

Light is counted in units of 100 cd/m2, the white of SDR. Curves are those of ITU-R BT.2100 (PQ;
HLG with its system gamma of 1.2 on each channel, for a screen of 1000 cd/m2) and BT.1886 (power
2.4, for all else and for the result); the tone curve is Hable's of 2010, applied to the strongest
of a pixel's three colours, so that hues stay. At the edges of strong colours red, green and blue go
beyond 0..1, as chroma is stored at half the size; there the curves go on, as in zimg where it is
exact. (By default it is not, and on processors with AVX-512 gives up to 17 of 255 more or less there.)
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from av.sidedata.sidedata import Type

FORMAT = "yuv444p16le"  # in which frames are handed to `Colours.seen`
FULL_RANGE = 2  # ffmpeg's number
SDR_WHITE = 100  # cd/m2
USUAL_PEAK = 10.0  # times SDR's white, where a file does not say how bright it gets
BRIGHTEST = 100.0  # times SDR's white: PQ's highest
# Of a table: the lowest signal, how far signals reach, and its length. It's fine, as what a colour at the rim of BT.709 has of its
# weakest light is the difference of two strong ones, and an error of one in 100,000 there is two steps of 255 on the screen. For
# HLG zimg has a table too, whose errors of up to four steps are what players show.
LOWEST, REACH, FINE, ZIMG = -0.5, 2, 1 << 21, 1 << 16
STRIP = 32  # rows that are worked on at once: what they need stays in a processor's cache
SCREEN_GAMMA = 2.4
DARKEST = 1e-8  # black on the screen; the power of nothing takes eight times as long
# Chromaticities x, y of red, green and blue, by ffmpeg's number of the primaries; white is D65.
BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
WIDE = {
    9: ("BT.2020", ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))),
    12: ("Display P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))),
}
D65 = (0.3127, 0.3290)
# Weights of red and blue in luma, by ffmpeg's number of the matrix.
LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087)}
BT2020_LUMA = (0.2627, 0.0593)


def pq(signal: np.ndarray) -> np.ndarray:
    root = np.maximum(signal, 0) ** (32 / 2523)
    return 100 * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)


def hlg(signal: np.ndarray) -> np.ndarray:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, np.maximum(signal, 0) ** 2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return 10 * scene**1.2


def bt1886(signal: np.ndarray) -> np.ndarray:
    return np.maximum(signal, 0) ** SCREEN_GAMMA


HDR = {16: ("PQ", pq), 18: ("HLG", hlg)}  # by ffmpeg's number of the transfer curve


class Colours(NamedTuple):
    """How the frames of a stream that are no ordinary BT.709 are to be shown."""

    curve: Callable
    primaries: int
    peak: float | None  # in SDR's white; None for what needs no tone mapping
    change: str  # what is done, in words

    @classmethod
    def of(cls, frame) -> "Colours | None":
        """Of a decoded frame's tags; None for ordinary video."""
        name, curve = HDR.get(frame.color_trc, ("", bt1886))
        wide, _ = WIDE.get(frame.color_primaries, ("", ()))
        if not name and not wide:
            return None
        source = " ".join(filter(None, (name, wide)))
        peak = brightest(frame) if name else None
        done = f"HDR ({source}) tone-mapped to SDR" if name else f"colours of {source} brought to those of BT.709"
        return cls(curve, frame.color_primaries, peak, done)

    def seen(self, frame, matrix: int, colour_range: int) -> np.ndarray:
        """(h, w, 3) uint8 RGB of a frame in FORMAT; matrix and range by ffmpeg's numbers."""
        stored, mix = frame.to_ndarray(channel_last=True), to_rgb(matrix, colour_range, len(table(self.curve)))
        picture = np.empty(stored.shape, np.uint8)
        for top in range(0, len(stored), STRIP):
            part = slice(top, top + STRIP)
            picture[part] = self._shown(cv2.transform(stored[part].astype(np.float32), mix))
        return picture

    def _shown(self, signal: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 of red, green and blue as `table` counts them."""
        light = table(self.curve).take(signal.astype(np.int32), mode="clip")  # h w 3 float32
        if self.primaries in WIDE:
            light = cv2.transform(light, to_bt709(self.primaries))
        if self.peak is not None:
            light = toned(light, self.peak)
        return cv2.convertScaleAbs(cv2.pow(light.clip(DARKEST, 1), 1 / SCREEN_GAMMA), alpha=255)


def brightest(frame) -> float:
    """The peak that an HDR file names of its content, or else of the screen it was made on."""
    try:
        content = frame.side_data.get(Type.CONTENT_LIGHT_LEVEL)
        screen = frame.side_data.get(Type.MASTERING_DISPLAY_METADATA)
    except ValueError:  # there is side data of a kind that this PyAV has no name for
        return USUAL_PEAK
    said = np.frombuffer(content, np.uint32)[0] if content else 0
    if not said and screen:
        # Ten fractions of 32-bit numbers, the highest luminance being the last, and two flags.
        numbers = np.frombuffer(screen, np.int32).tolist()
        said = numbers[18] / numbers[19] if numbers[21] and numbers[19] else 0
    return float(min(max(said / SDR_WHITE, 1.0), BRIGHTEST)) if said > 0 else USUAL_PEAK


@functools.cache
def table(curve: Callable) -> np.ndarray:
    """Light (places,) float32 by signal."""
    places = ZIMG if curve is hlg else FINE
    return curve(LOWEST + np.arange(places) * (REACH / places)).astype(np.float32)


@functools.cache
def to_rgb(matrix: int, colour_range: int, places: int) -> np.ndarray:
    """(3 4) from 16-bit luma and chroma to red, green and blue as a `table` of so many places counts them."""
    red, blue = LUMA.get(matrix, BT2020_LUMA)
    green = 1 - red - blue
    mix = np.array([
        [1, 0, 2 * (1 - red)],
        [1, -2 * (1 - blue) * blue / green, -2 * (1 - red) * red / green],
        [1, 2 * (1 - blue), 0],
    ])  # fmt: skip
    black, middle = (0, 32768) if colour_range == FULL_RANGE else (16 << 8, 32768)
    luma, chroma = (65535, 65535) if colour_range == FULL_RANGE else (219 << 8, 224 << 8)
    mix = mix / [luma, chroma, chroma] * (places / REACH)
    # With a half, so that whole numbers are the nearest ones.
    return np.concatenate([mix, 0.5 - LOWEST * places / REACH - mix @ [[black], [middle], [middle]]], axis=1)


@functools.cache
def to_bt709(primaries: int) -> np.ndarray:
    """(3 3) from linear colours of a wide gamut to those of BT.709."""
    return np.linalg.solve(to_xyz(BT709), to_xyz(WIDE[primaries][1]))


def to_xyz(primaries) -> np.ndarray:
    xyz = lambda x, y: (x / y, 1, (1 - x - y) / y)
    colours = np.array([xyz(*place) for place in primaries]).T
    return colours * np.linalg.solve(colours, xyz(*D65))


def toned(light: np.ndarray, peak: float) -> np.ndarray:
    """Light in which `peak` becomes 1; each pixel's colours keep their ratios."""
    red, green, blue = cv2.split(light)
    strongest = np.maximum(cv2.max(cv2.max(red, green), blue), np.float32(1e-6))
    gain = hable(strongest) / (hable(peak) * strongest)
    return cv2.multiply(light, cv2.merge([gain, gain, gain]))


def hable(x):
    return (x * (0.15 * x + 0.05) + 0.004) / (x * (0.15 * x + 0.5) + 0.06) - 0.02 / 0.3
