"""What the page shows, as HTML: pictures, how far an animation is, what was wrong."""

import base64
import html
import math
import time

import cv2
import numpy as np

from svdp_jax.engines.engine import Step
from svdp_jax.media.images import resize

LARGEST = 480  # pixels of a whole picture's longer side


class Progress:
    """How far an animation is: a bar, and a line that tells segment, step, frames and time left."""

    def __init__(self, frames: int, segment: int, steps: int):
        self.frames, self.steps, self.segments = frames, steps, math.ceil(frames / segment)
        self.done, self.last, self.start = 0, Step(0, -1), time.monotonic()

    def step(self, step: Step) -> None:
        self.last = step

    def __str__(self):
        segment, step = self.last
        taken, total = segment * self.steps + step + 1, self.segments * self.steps
        left = (time.monotonic() - self.start) / max(1, taken) * (total - taken)
        return (
            f"<progress aria-label='Sampling steps' max={total} value={taken}></progress><br>"
            f"Segment {segment + 1} of {self.segments}, step {step + 1} of {self.steps}; "
            f"{self.done} of {self.frames} frames done, about {left:.0f} s left"
        )


def sentence(error: Exception) -> str:
    """An error's. Names of uploads are long paths on the server; visitors know the last part."""
    return html.escape(" ".join(word.rsplit("/", 1)[-1] for word in str(error).split(" ")))


def alert(sentence: str) -> str:
    return f"<p role=alert class=wrong>{sentence}</p>"


def picture(image: np.ndarray, about: str) -> str:
    """An (h, w, 3) uint8 picture, carried in the page itself, so that no file is left. about: for who cannot see it."""
    data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    return f'<img alt="{html.escape(about)}" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def framed(image: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The picture with its crop drawn in, whose corners are x + iy, small enough for a page."""
    scale = min(1.0, LARGEST / max(image.shape[:2]))
    points = np.round(np.stack([corners.real, corners.imag], -1) * scale).astype(np.int32)
    small = resize(image, (round(image.shape[1] * scale), round(image.shape[0] * scale))).copy()
    return cv2.polylines(small, [points], True, (0, 200, 0), 3)
