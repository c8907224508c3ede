"""Frames that come by themselves, as of a camera or a pipe: read beside the work on those before."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from svdp_jax.engines.engine import Step


class Held:
    """Frames on their way from one thread to another: no more than `most` wait.

    drop: the one that waits longest makes room for a new one, and `dropped` counts them; else who puts waits.
    """

    def __init__(self, most: int, drop: bool = True):
        self.most, self.drop, self.dropped, self.ended = most, drop, 0, False
        self.waiting, self.changed = deque(), threading.Condition()

    def put(self, frame) -> bool:
        """Whether somebody may still ask for it."""
        with self.changed:
            self.changed.wait_for(lambda: self.drop or self.ended or len(self.waiting) < self.most)
            if self.ended:
                return False
            if len(self.waiting) >= self.most:
                self.waiting.popleft()
                self.dropped += 1
            self.waiting.append(frame)
            self.changed.notify_all()
        return True

    def get(self, patience: float | None = None) -> Any:
        """The one that waits longest; None at the end, or when none has come within so many seconds."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting or self.ended, patience)
            found = self.waiting.popleft() if self.waiting else None
            self.changed.notify_all()
        return found

    def ready(self, count: int) -> bool:
        """Whether so many frames can be had without waiting."""
        with self.changed:
            return len(self.waiting) >= count or self.ended

    def close(self) -> None:
        """No more are taken; what waits is still given."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()


class Arriving(Held):
    """An iterator over `frames`, which a thread of its own reads. `taken` has those given out until somebody takes them
    from there. What the source raises is raised here."""

    def __init__(self, frames: Iterable, most: int, drop: bool):
        super().__init__(most, drop)
        self.taken: deque = deque()
        self.error: Exception | None = None
        threading.Thread(target=self.read, args=(frames,), daemon=True).start()

    def read(self, frames: Iterable) -> None:
        try:
            for frame in frames:
                if not self.put(frame):
                    return
        except Exception as error:
            self.error = error
        finally:
            self.close()

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        frame = self.get()
        if frame is not None:
            self.taken.append(frame)
            return frame
        raise self.error or StopIteration


def overlapped(parts: Iterable, ready: Callable[[], bool]) -> Iterator:
    """Parts of a video that a device may still be computing, in order, and Steps as they come. Where what the next part
    needs is `ready`, it is begun before this one is taken from the device, so that neither waits for the other."""
    under_way = deque()
    for part in parts:
        if isinstance(part, Step):
            yield part
            continue
        under_way.append(part)
        while under_way and (len(under_way) > 1 or not ready()):
            yield under_way.popleft()
    yield from under_way
