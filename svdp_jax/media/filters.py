"""FFmpeg's filters over decoded frames."""

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av.filter

CLOCK = Fraction(1, 1000)


class Chain:
    """Filters, as (name, options), for frames of the size and format of `like`; one comes out for each put in."""

    def __init__(self, like, *filters: tuple[str, str]):
        self.kind, self.times, self.count = kind(like), deque(), 0
        self.graph = graph = av.filter.Graph()
        last = graph.add_buffer(width=like.width, height=like.height, format=like.format, time_base=CLOCK)
        for part in [*(graph.add(*each) for each in filters), graph.add("buffersink")]:
            last.link_to(part)
            last = part
        graph.configure()

    def put(self, frame) -> Iterator:
        """What is ready after this frame, with its time."""
        self.times.append((frame.pts, frame.time_base))
        # Filters want times that rise, which a file's own need not.
        frame.pts, frame.time_base = self.count, CLOCK
        self.graph.push(frame)
        frame.pts, frame.time_base = self.times[-1]
        self.count += 1
        return self._ready()

    def end(self) -> Iterator:
        self.graph.push(None)
        return self._ready()

    def _ready(self) -> Iterator:
        while self.times:
            try:
                frame = self.graph.pull()
            except (BlockingIOError, EOFError):
                return
            frame.pts, frame.time_base = self.times.popleft()
            yield frame


def kind(frame) -> tuple[int, int, str]:
    return frame.width, frame.height, frame.format.name


def deinterlaced(frames: Iterable, started) -> Iterator:
    """Decoded frames; those flagged as interlaced are made whole, each at its own time.

    From the first such on frames come one or two late. started: called when that is met.
    """
    chain = None
    for frame in frames:
        if chain is None and not frame.interlaced_frame:
            yield frame
            continue
        if chain is None:
            started()
        if chain is None or chain.kind != kind(frame):
            yield from chain.end() if chain else ()
            chain = Chain(frame, ("bwdif", "mode=send_frame:deint=interlaced"))
        yield from chain.put(frame)
    yield from chain.end() if chain else ()
