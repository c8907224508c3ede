"""A visitor's camera: frames of a driver who is there now, and those made of them as they come."""

import threading
import time
from collections import deque
from collections.abc import Iterator

import numpy as np

from svdp_jax.animator import Animator, Live
from svdp_jax.engines.arriving import Held
from svdp_jax.errors import UserError

HELD = 2  # frames of the camera that wait to be looked at
SPAN = 2.0  # seconds over which the rate is told
SILENCE = 5.0  # seconds without a frame after which a camera is taken to be off


class Show:
    """An animation that lasts as long as frames are given. What it shows is the newest frame, never one it must catch up with."""

    def __init__(self, animator: Animator, source: str, **options):
        """options: of `Animator.stream`."""
        self.source, self.coming = source, Held(HELD)
        self.newest: Live | None = None
        self.error: Exception | None = None
        self.times: deque[float] = deque()
        self.ended = threading.Event()
        threading.Thread(target=self.run, args=(animator, options), daemon=True).start()

    def run(self, animator: Animator, options: dict) -> None:
        try:
            for shown in animator.stream(self.source, self.frames(), **options):
                self.newest = shown
                self.times.append(time.monotonic())
                if self.ended.is_set():
                    return
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()

    def frames(self) -> Iterator[np.ndarray]:
        while not self.ended.is_set() and (image := self.coming.get(SILENCE)) is not None:
            yield image

    def give(self, image: np.ndarray) -> None:
        """A frame of the camera; the oldest of those that wait makes room for it."""
        self.coming.put(image)

    def told(self) -> str:
        """Rate, delay and frames left out, in words. Raises what went wrong."""
        if self.error:
            raise self.error
        now, newest = time.monotonic(), self.newest
        while self.times and self.times[0] < now - SPAN:
            self.times.popleft()
        if newest is None:
            return "Looking for a face ..."
        return f"{len(self.times) / SPAN:.0f} frames a second, {1000 * newest.delay:.0f} ms behind, {newest.dropped} left out"

    def close(self) -> None:
        self.ended.set()


def started(show: Show | None, animator: Animator, source: str | None, **options) -> Show:
    """The show of this picture: the one that runs, or a new one. UserError without a picture."""
    if not source:
        raise UserError("give a picture first, or choose an example.")
    if show and show.source == source and not (show.ended.is_set() and not show.error):
        return show
    if show:
        show.close()
    return Show(animator, source, **options)
