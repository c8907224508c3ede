"""What a player shows of a decoded frame: upright, in square pixels, in the colours of an ordinary screen."""

import math
import warnings
from fractions import Fraction

import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, VideoReformatter

from svdp_jax.media import tone
from svdp_jax.media.filters import Chain, kind
from svdp_jax.media.images import check_pixels

MAX_FRAME_PIXELS = 2 * 3840 * 2160  # 4K footage passes; a 261 KB file of 4096x4096 frames does not
UNTAGGED = 2  # ffmpeg's number for colours that a file does not name
AS_STORED = (1, 0), (0, 1)  # linear part of a display matrix
QUARTER_TURNS = AS_STORED, ((0, -1), (1, 0)), ((-1, 0), (0, -1)), ((0, 1), (-1, 0))  # counterclockwise
# FFmpeg's names of transpositions, by whether rows and columns then keep their directions.
TRANSPOSE = {
    (True, True): "cclock_flip", (False, True): "clock", (True, False): "cclock", (False, False): "clock_flip",
}  # fmt: skip
HD_HEIGHT = 720  # pixels, from which untagged video is bt709 by convention


class Display:
    """Pictures (h, w, 3) uint8 RGB of the decoded frames of one stream; `path` is for what is said of it."""

    def __init__(self, path, stream):
        shape = stream.sample_aspect_ratio or Fraction(1)
        self.path, self.pixel_shape = path, shape if shape > 0 else Fraction(1)
        self.reformatter, self.scaler = VideoReformatter(), None

    def size(self, frame) -> tuple[int, int]:
        """(width, height) of the frame's picture. UserError where that is too large."""
        linear = matrix(frame)
        width, height = self._square(frame, turned(linear))
        return (height, width) if turned(linear) else (width, height)

    def picture(self, frame) -> np.ndarray:
        linear, colours = matrix(frame), tone.Colours.of(frame)
        width, height = self._square(frame, turned(linear))
        # Untagged high-definition video is bt709 by convention; the decoder would assume bt601.
        untagged_hd = frame.colorspace == UNTAGGED and frame.height >= HD_HEIGHT
        form = "rgb24" if colours is None else tone.FORMAT
        if (width, height) == (frame.width, frame.height):
            matrix_of = Colorspace.ITU709 if untagged_hd else None
            # With several threads rows where their parts meet differ from time to time.
            shown = self.reformatter.reformat(frame, format=form, src_colorspace=matrix_of, threads=1)
        else:
            # In the order of players, since chroma lies between pixels: turned, then stretched.
            size = f"{height}:{width}" if turned(linear) else f"{width}:{height}"
            scale = f"{size}:flags=bicubic" + ":in_color_matrix=bt709" * untagged_hd
            if colours is not None:  # these stay as they are: `tone` knows what they mean
                scale += ":in_color_matrix=bt601:out_color_matrix=bt601:in_range=tv:out_range=tv"
            shown = self._scaled(frame, *turning(linear), ("scale", scale), ("format", form))
            linear = AS_STORED
        return upright(
            shown.to_ndarray() if colours is None else colours.seen(shown, frame.colorspace, frame.color_range), linear
        )

    def _scaled(self, frame, *filters):
        if self.scaler is None or self.scaler[0] != (kind(frame), filters):
            self.scaler = (kind(frame), filters), Chain(frame, *filters)
        return next(self.scaler[1].put(frame))

    def changes(self, frame) -> list[str]:
        """What else than a turn makes the picture differ from the stored one, in words."""
        (a, b), (c, d) = linear = matrix(frame)
        found, (width, height), colours = [], self._square(frame, turned(linear)), tone.Colours.of(frame)
        if a * d < b * c:
            found.append("mirrored, as its display matrix says")
        if (width, height) != (frame.width, frame.height):
            shape = f"{self.pixel_shape.numerator}:{self.pixel_shape.denominator}"
            found.append(f"its pixels of {shape} made square, {frame.width}x{frame.height} to {width}x{height}")
        return found + ([] if colours is None else [colours.change])

    def _square(self, frame, turns: bool) -> tuple[int, int]:
        """The frame's size in square pixels, before it is turned; what ends up as its width changes."""
        width, height = frame.width, frame.height
        if turns:
            height = max(1, math.floor(height / self.pixel_shape))
        else:
            width = max(1, math.floor(width * self.pixel_shape))
        check_pixels(self.path, width, height, MAX_FRAME_PIXELS)
        return width, height


def say(path, changes: list[str]) -> None:
    """Warns, once for a file, of what is read otherwise than stored."""
    if changes:
        warnings.warn(f"{path}: shown as players do: {'; '.join(changes)}", stacklevel=1)


def matrix(frame) -> tuple[tuple[int, int], tuple[int, int]]:
    """The linear part ((a, b), (c, d)) of the display matrix: stored (x, y) is shown at (ax + cy, bx + dy)."""
    try:
        data = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # there is side data of a kind that this PyAV has no name for
        return QUARTER_TURNS[round(frame.rotation / 90) % 4]
    if data is None:
        return AS_STORED
    a, b, _, c, d, *_ = np.frombuffer(data, np.int32).tolist()
    return ((a, b), (c, d)) if a * d != b * c else AS_STORED


def turned(linear) -> bool:
    """Whether rows are shown as columns, to the nearest quarter turn."""
    (a, b), (c, d) = linear
    return abs(a) + abs(d) < abs(b) + abs(c)


def turning(linear) -> list[tuple[str, str]]:
    """FFmpeg's filters that do what `upright` does."""
    (a, b), (c, d) = linear
    if turned(linear):
        return [("transpose", TRANSPOSE[c > 0, b > 0])]
    return [(name, "") for name, along in (("hflip", a), ("vflip", d)) if along < 0]


def upright(image: np.ndarray, linear) -> np.ndarray:
    """The stored picture turned and mirrored as its display matrix says, to the nearest quarter turn."""
    (a, b), (c, d) = linear
    across, down = a, d
    if turned(linear):
        image, across, down = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1])
