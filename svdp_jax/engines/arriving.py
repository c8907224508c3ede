"""Frames that come by themselves, as of a camera or a pipe: read beside the work on those before."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator


class Arriving:
    """An iterator over `frames`, which a thread of its own reads: no more than `most` wait.

    drop: what waits longest is left out when there are more, rather than that the newest wait too; else the
    source waits. `dropped` counts them, and `taken` has those given out until somebody takes them from there.
    What the source raises is raised here.
    """

    def __init__(self, frames: Iterable, most: int, drop: bool):
        self.most, self.drop, self.dropped = most, drop, 0
        self.waiting, self.taken, self.changed = deque(), deque(), threading.Condition()
        self.ended, self.error = False, None
        threading.Thread(target=self.read, args=(frames,), daemon=True).start()

    def read(self, frames: Iterable) -> None:
        try:
            for frame in frames:
                with self.changed:
                    while len(self.waiting) >= self.most and not self.drop and not self.ended:
                        self.changed.wait()
                    if self.ended:
                        return
                    if len(self.waiting) >= self.most:
                        self.waiting.popleft()
                        self.dropped += 1
                    self.waiting.append(frame)
                    self.changed.notify_all()
        except Exception as error:
            self.error = error
        finally:
            self.close()

    def __iter__(self) -> Iterator:
        return self

    def __next__(self):
        with self.changed:
            while not self.waiting and not self.ended:
                self.changed.wait()
            if self.waiting:
                self.taken.append(self.waiting.popleft())
                self.changed.notify_all()
                return self.taken[-1]
        if self.error:
            raise self.error
        raise StopIteration

    def ready(self, count: int) -> bool:
        """Whether so many frames can be had without waiting."""
        with self.changed:
            return len(self.waiting) >= count or self.ended

    def close(self) -> None:
        """Nothing more is read; what waits is still given."""
        with self.changed:
            self.ended = True
            self.changed.notify_all()
