"""Writes videos: MP4, GIF, folders of pictures.

Writing happens in a hidden folder beside the target and ends with one rename, so a failed run leaves nothing.
"""

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np

from svdp_jax import errors
from svdp_jax.errors import UserError
from svdp_jax.files import apart
from svdp_jax.media.images import write_image
from svdp_jax.media.video import opened, packets_of, track

MP4_AUDIO = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}
MP4_CLOCK = 90_000  # ticks per second, at least
H264_OPTIONS = {"crf": "16", "preset": "medium"}
GIF_HEAD = 13  # bytes: signature and screen, after which a palette may stand
BT709, SRGB_CURVE, STUDIO_RANGE = 1, 1, 1  # ffmpeg's numbers; bt709 shares one number for all three


def leave(path: Path) -> None:
    """Finishes a file by leaving it as it is."""


class VideoWriter:
    """Writes frames as they come; a context manager whose target appears complete or not at all.

    The suffix of `path` chooses the kind: `.mp4` is H.264 (yuv420p, so an odd width or height grows
    by one replicated row or column), `.gif` has a palette per frame and hundredths of a second as
    its clock (30 fps become delays of 3, 4, 3, ...: right on average; above 50 fps viewers slow it
    down), `.png` is a folder of numbered pictures named like the path without its suffix.

    Frames follow each other at `fps` exactly, or appear at the `time` given with each of them, in
    seconds from the start. `.mp4` also takes the sound of the video `audio_from`, copied packet by
    packet where the container allows, else encoded as AAC, kept in step with the pictures and cut
    at the end of the last one. `metadata`, such as {"comment": "..."}, becomes tags of the MP4, the
    comment of the GIF, text in every PNG. `finish` is called with the whole file or folder before
    it appears.
    """

    def __init__(
        self,
        path,
        fps: Fraction | float,
        audio_from=None,
        metadata: dict[str, str] | None = None,
        finish: Callable[[Path], None] = leave,
    ):
        self.path = Path(path)
        kind = self.path.suffix.lower()
        if kind not in WRITERS:
            raise UserError(f"{path}: unknown kind of output; end its name in one of {', '.join(WRITERS)}.")
        self.target = self.path.with_suffix("") if kind == ".png" else self.path
        parent = self.target.parent
        if not parent.is_dir():
            raise UserError(f"{path}: the folder {parent} does not exist; create it first.")
        if kind == ".png" and self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
            raise UserError(f"{self.target}: exists already; remove it or choose another name.")
        if kind != ".png" and self.target.is_dir():
            raise UserError(f"{path}: is a folder; choose another name.")
        if not os.access(parent, os.W_OK):
            raise UserError(f"{path}: the folder {parent} cannot be written; choose another.")
        apart(self.target, audio_from)
        self.fps = Fraction(fps).limit_denominator(10_000)
        self.audio_from, self.metadata, self.finish = audio_from, metadata or {}, finish
        self.make = WRITERS[kind]
        self.writer: Any = None
        self.frames, self.size = 0, None

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
        errors.unfinished.add(self.folder)
        return self

    def write(self, image: np.ndarray, time: Fraction | None = None) -> None:
        """Adds one (h, w, 3) uint8 picture; all must have the size of the first (ValueError)."""
        if self.size is None:
            self.size = image.shape
            self.writer = self.make(self.folder / self.target.name, image.shape, self)
        if image.shape != self.size or image.dtype != np.uint8:
            raise ValueError(f"frame {self.frames} is {image.dtype} {image.shape}, the first was uint8 {self.size}")
        self.writer.write(image, self.frames / self.fps if time is None else Fraction(time))
        self.frames += 1

    def __exit__(self, kind, error, trace):
        try:
            if kind is None and self.frames == 0:
                raise UserError(f"{self.path}: no frames were made, so nothing is written; check the input.")
            if self.writer:
                self.writer.close(kind is None)
            if kind is None:
                self.finish(self.folder / self.target.name)
                os.replace(self.folder / self.target.name, self.target)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            errors.unfinished.discard(self.folder)


class _Mp4:
    def __init__(self, path, shape, options):
        height, width = (side + side % 2 for side in shape[:2])
        self.rate = options.fps.numerator * math.ceil(MP4_CLOCK / options.fps.numerator)
        self.step = round(self.rate / options.fps)
        self.last = -1
        self.container = av.open(str(path), "w", options={"movflags": "+faststart+use_metadata_tags"})
        self.container.metadata.update(options.metadata)
        self.stream = self.container.add_stream("libx264", rate=options.fps, options=H264_OPTIONS)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        context = self.stream.codec_context
        context.time_base = Fraction(1, self.rate)
        context.colorspace = context.color_primaries = BT709
        context.color_trc, context.color_range = SRGB_CURVE, STUDIO_RANGE
        self.audio = None if options.audio_from is None else _Audio(options.audio_from, self.container)

    def write(self, image, time):
        h, w = image.shape[:2]
        image = np.pad(image, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        self.last = max(round(time * self.rate), self.last + 1)
        frame.pts = self.last
        frame.time_base, frame.duration = Fraction(1, self.rate), self.step
        self.container.mux(self.stream.encode(frame))
        if self.audio:
            self.audio.advance(Fraction(self.last + self.step, self.rate))

    def close(self, complete):
        if complete:
            self.container.mux(self.stream.encode())
        if self.audio:
            self.audio.close()
        self.container.close()


class _Audio:
    """The sound of the video `path` on its way into `container`, read no further than the pictures are.

    It travels in pieces of some 20 ms: packets where they are copied, decoded samples where not.
    """

    def __init__(self, path, container):
        self.path, self.container = path, container
        self.output: Any = None
        self.opened = contextlib.ExitStack()
        source, video = self.opened.enter_context(opened(path))
        self.origin = (video.start_time or 0) * video.time_base
        self.input = track(source.streams.audio)
        if self.input is None:
            return
        self.copied = self.input.codec_context.codec.canonical_name in MP4_AUDIO
        if self.copied:
            self.output = container.add_stream_from_template(self.input)
        else:
            layout = "mono" if self.input.channels == 1 else "stereo"
            self.output = container.add_stream("aac", rate=48_000, layout=layout)
        packets = (p for p in packets_of(path, source, self.input) if p.pts is not None)
        self.pieces = packets if self.copied else self._decoded(packets)
        self.waiting = next(self.pieces, None)

    def _decoded(self, packets):
        resampler = av.AudioResampler("fltp", self.output.layout, self.output.rate, frame_size=1024)
        for packet in packets:
            with contextlib.suppress(av.InvalidDataError):
                for frame in packet.decode():
                    yield from resampler.resample(frame)
        yield from resampler.resample(None)

    def advance(self, end: Fraction):
        """Passes on the pieces of which the greater part sounds before `end` seconds."""
        while self.output and self.waiting:
            piece = self.waiting
            start = piece.pts * piece.time_base - self.origin
            length = piece.duration * piece.time_base if self.copied else Fraction(piece.samples, piece.sample_rate)
            if start + length / 2 >= end:
                return
            # What ends before the first picture is left out; what ends with it primes the decoder.
            if start + length >= 0:
                self._pass_on(piece)
            self.waiting = next(self.pieces, None)

    def _pass_on(self, piece):
        shift = round(self.origin / piece.time_base)
        piece.pts -= shift
        if self.copied:
            piece.dts -= shift
            piece.stream = self.output
            self.container.mux(piece)
        else:
            self.container.mux(self.output.encode(piece))

    def close(self):
        if self.output and not self.copied:
            self.container.mux(self.output.encode())
        self.opened.close()


class _Gif:
    def __init__(self, path, shape, options):
        height, width = shape[:2]
        self.last = -1
        self.path, self.metadata = path, options.metadata
        self.container = av.open(str(path), "w")
        self.stream = self.container.add_stream("gif", rate=100)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "pal8"
        graph = self.graph = av.filter.Graph()
        source = graph.add_buffer(width=width, height=height, format=av.VideoFormat("rgb24"), time_base=Fraction(1, 100))
        split, palette = graph.add("split"), graph.add("palettegen", "stats_mode=single")
        paint, sink = graph.add("paletteuse", "new=1:dither=bayer:bayer_scale=4"), graph.add("buffersink")
        source.link_to(split)
        split.link_to(paint, 0, 0)
        split.link_to(palette, 1, 0)
        palette.link_to(paint, 0, 1)
        paint.link_to(sink)
        graph.configure()

    def write(self, image, time):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self.last = max(round(time * 100), self.last + 1)
        frame.pts = self.last
        frame.time_base = Fraction(1, 100)
        self.graph.push(frame)
        self._drain()

    def _drain(self):
        with contextlib.suppress(BlockingIOError, EOFError):
            while True:
                self.container.mux(self.stream.encode(self.graph.vpull()))

    def close(self, complete):
        if complete:
            self.graph.push(None)
            self._drain()
            self.container.mux(self.stream.encode())
        self.container.close()
        if complete and self.metadata:
            self._comment("; ".join(f"{name}: {value}" for name, value in self.metadata.items()))

    def _comment(self, text):
        """Puts a comment, which FFmpeg does not write, before the first picture."""
        text = text.encode()
        parts = [text[i : i + 255] for i in range(0, len(text), 255)]
        comment = b"\x21\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\0"
        commented = self.path.with_suffix(".commented")
        with open(self.path, "rb") as old, open(commented, "wb") as new:
            head = old.read(GIF_HEAD)
            colours = 3 << (head[10] & 7) + 1 if head[10] & 0x80 else 0  # bytes of the palette for all pictures
            new.write(head + old.read(colours) + comment)
            shutil.copyfileobj(old, new)
        os.replace(commented, self.path)


class _Pictures:
    def __init__(self, folder, shape, options):
        self.folder, self.count, self.metadata = folder, 0, options.metadata
        folder.mkdir()

    def write(self, image, time):
        write_image(self.folder / f"{self.count:05}.png", image, self.metadata)
        self.count += 1

    def close(self, complete):
        pass


WRITERS = {".mp4": _Mp4, ".gif": _Gif, ".png": _Pictures}
