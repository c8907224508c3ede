"""Videos and pictures in and out: streaming, bounded memory, exact timing, safe with any input file.

Reading opens local regular files of the formats in FORMATS and nothing else: playlists, which name
further files, and addresses are refused. Writing happens in a hidden folder beside the target and
ends with one rename, so a failed run leaves nothing. Images are (h, w, 3) uint8 RGB throughout.
"""

import contextlib
import math
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import av.filter
import cv2
import numpy as np

from svdp_jax.errors import UserError
from svdp_jax.files import write_whole

MAX_FRAME_PIXELS = 2 * 3840 * 2160  # 4K footage passes; a 261 KB file of 4096x4096 frames does not
MAX_IMAGE_PIXELS = 100_000_000
MAX_IMAGE_BYTES = 1 << 30  # more than that many pixels take as an uncompressed file
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg,asf"
OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": FORMATS,
    "max_pixels": str(MAX_FRAME_PIXELS),
}
# In these codecs every packet is one shown picture, so counting packets counts frames.
PACKET_IS_FRAME = {"h264", "hevc", "av1", "vp9", "gif", "mjpeg", "prores"}
# What a container's coarse clock may hide: Matroska's milliseconds turn 60000/1001 into 19001/317.
RATES = [Fraction(n, d) for n in (24000, 30000, 60000, 120000) for d in (1000, 1001)]
MP4_AUDIO = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}
MP4_CLOCK = 90_000  # ticks per second, at least
H264_OPTIONS = {"crf": "16", "preset": "medium"}
SMALLEST_SHOWN = 256  # pixels
PNG_HEAD = 33  # bytes: signature and IHDR, after which text may stand
GIF_HEAD = 13  # bytes: signature and screen, after which a palette may stand
BT709, SRGB_CURVE, STUDIO_RANGE = 1, 1, 1  # ffmpeg's numbers; bt709 shares one number for all three


class VideoInfo(NamedTuple):
    """Facts of a video: upright size in stored pixels, frames that decode, seconds as fractions.

    A varying frame rate is given by its mean; `duration` is `frames / fps`, the last frame included.
    """

    width: int
    height: int
    fps: Fraction
    frames: int
    duration: Fraction
    has_audio: bool


class Frame(NamedTuple):
    image: np.ndarray  # (h, w, 3) uint8 RGB
    time: Fraction  # seconds since the first frame of the clip


class Clip(NamedTuple):
    """A silent video in memory; `probe` and `read_frames` take it in place of a path."""

    images: np.ndarray  # (f, h, w, 3) uint8 RGB
    fps: Fraction

    def __str__(self):
        return "the clip"


def probe(path) -> VideoInfo:
    """Reads the whole file, but decodes it only where packets alone cannot tell the frames."""
    if isinstance(path, Clip):
        count, height, width = path.images.shape[:3]
        return VideoInfo(width, height, path.fps, count, count / path.fps, False)
    with _open(path) as (container, stream):
        first = next(_decode(path, container, stream), None)
        if first is None:
            raise UserError(f"{path}: no frame of it can be decoded; export the video again.")
        height, width = _upright(first).shape[:2]
        has_audio = bool(container.streams.audio)
        guess, clock = _nominal_rate(stream), stream.time_base
    ticks = _packet_ticks(path) or _frame_ticks(path)
    fps = _exact_rate(ticks, guess, clock)
    return VideoInfo(width, height, fps, len(ticks), len(ticks) / fps, has_audio)


def promised_frames(path) -> int:
    """How many frames the header promises; for estimates, since headers may lie."""
    with _open(path) as (container, stream):
        seconds = Fraction(container.duration or 0, av.time_base)
        return stream.frames or round(seconds * _nominal_rate(stream))


def read_frames(path, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
    """Frames `start` to `stop` (exclusive) of the video, decoded one at a time, turned upright.

    Times rise strictly. They are those of a constant rate wherever the container's clock is too
    coarse to tell the difference, else the file's own. Frames that change size within the clip are
    scaled to the first one's. A file cut off in the middle warns and ends early.
    """
    if isinstance(path, Clip):
        stretch = enumerate(path.images[start:stop], start)
        yield from (Frame(image, index / path.fps) for index, image in stretch)
        return
    with _open(path) as (container, stream):
        rate, clock = _nominal_rate(stream), stream.time_base
        first, previous, size = None, Fraction(-1), None
        index = -1
        for index, frame in enumerate(_decode(path, container, stream)):
            first = frame.pts if first is None else first
            time = _time(frame.pts, first, index, rate, clock)
            previous = time if time > previous else previous + 1 / rate
            if stop is not None and index >= stop:
                return
            if index >= start:
                image = _upright(frame)
                size = size or image.shape[1::-1]
                yield Frame(resize(image, size), previous)
    if index < 0:
        raise UserError(f"{path}: no frame of it can be decoded; export the video again.")


@contextlib.contextmanager
def _open(path):
    """The container and its video stream; every way this can fail is a UserError."""
    _check_regular_file(path)
    try:
        # The "file:" prefix keeps a name such as "concat:a|b" from being read as a protocol.
        container = av.open(f"file:{os.path.abspath(path)}", options=OPEN_OPTIONS, metadata_errors="replace")
    except av.FFmpegError as error:
        why = f"not a video that can be read ({error.strerror})"
        raise UserError(f"{path}: {why}; give an mp4, mov, mkv or webm file.") from None
    with container:
        if not container.streams.video:
            raise UserError(f"{path}: holds no pictures, as it is cut off or only sound; give a whole video.")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise UserError(f"{path}: its pictures are in an unknown code; export it again as H.264 in mp4.")
        _check_pixels(path, stream.codec_context.width, stream.codec_context.height, MAX_FRAME_PIXELS)
        yield container, stream


def _check_regular_file(path):
    if "://" in str(path):
        raise UserError(f"{path}: addresses are not opened; download the file and give its path.")
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; give one file.")
    if not os.path.exists(path):
        raise UserError(f"{path}: does not exist; check the path.")
    if not os.path.isfile(path):
        raise UserError(f"{path}: is a pipe or device; give a regular file.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: may not be read; change its permissions.")
    if os.path.getsize(path) == 0:
        raise UserError(f"{path}: is empty; copy or export it again.")


def _check_pixels(path, width, height, limit):
    if not 0 < width * height <= limit:
        # The decoder itself says 0x0 where it meets more than it may.
        size = f"{width}x{height}" if width * height else "the size of its pictures"
        raise UserError(f"{path}: {size} is over the limit of {limit:,} pixels; scale it down first.")


def _packets(path, container, *streams) -> Iterator:
    """Packets up to the end or to the first place where the container itself is broken."""
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, EOFError):
            return
        except av.FFmpegError as error:
            warnings.warn(f"{path}: broken, read only up to the damage ({error.strerror})", stacklevel=2)
            return
        yield packet


def _decode(path, container, stream) -> Iterator:
    """Decoded frames; damaged packets are left out and, as an early end, warned about."""
    damaged, end = 0, Fraction(0)
    for packet in _packets(path, container, stream, *container.streams.audio[:1]):
        if packet.pts is not None:
            end = max(end, packet.pts * packet.time_base)
        if packet.stream is not stream:
            continue
        try:
            yield from packet.decode()
        except av.FFmpegError:
            damaged += 1
    if damaged:
        warnings.warn(f"{path}: {damaged} damaged packets left out", stacklevel=2)
    promised = Fraction((container.duration or 0) + (container.start_time or 0), av.time_base)
    if promised > end + 1:
        message = f"{path}: cut off, {float(promised):.1f} s promised, frames end at {float(end):.1f} s"
        warnings.warn(message, stacklevel=2)


def _upright(frame) -> np.ndarray:
    """RGB picture with the rotation flag undone."""
    # Untagged high-definition video is bt709 by convention; the decoder would assume bt601.
    untagged_hd = frame.colorspace == 2 and frame.height >= 720
    image = frame.to_ndarray(format="rgb24", src_colorspace="ITU709" if untagged_hd else None)
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def read_sound(path, rate: int) -> np.ndarray:
    """The sound (n,) int16, mono, `rate` samples a second, from the first picture on; empty if there is none."""
    with _open(path) as (container, stream):
        if not container.streams.audio:
            return np.zeros(0, np.int16)
        sound, blocks, first = container.streams.audio[0], [], None
        resampler = av.AudioResampler("s16", "mono", rate)
        for packet in _packets(path, container, sound):
            with contextlib.suppress(av.InvalidDataError):
                for frame in packet.decode():
                    first = frame.time if first is None else first
                    blocks += [block.to_ndarray()[0] for block in resampler.resample(frame)]
        blocks += [block.to_ndarray()[0] for block in resampler.resample(None)]
        late = round(((first or 0) - float((stream.start_time or 0) * stream.time_base)) * rate)
    samples = np.concatenate([np.zeros(max(0, late), np.int16), *blocks])
    return samples[max(0, -late) :]


def _packet_ticks(path) -> list[int]:
    """Sorted presentation ticks of all frames from packets alone, or [] where these cannot tell."""
    ticks, sound = [], True
    with _open(path) as (container, stream):
        if stream.codec_context.codec.canonical_name not in PACKET_IS_FRAME:
            return []
        for packet in _packets(path, container, stream):
            if not packet.size or packet.is_discard:
                continue
            starts_clean = ticks or packet.is_keyframe
            sound = sound and starts_clean and packet.pts is not None and not packet.is_corrupt
            ticks.append(packet.pts)
    return sorted(ticks) if sound else []


def _frame_ticks(path) -> list[int]:
    with _open(path) as (container, stream):
        step = 1 / (_nominal_rate(stream) * stream.time_base)
        frames = enumerate(_decode(path, container, stream))
        return [round(i * step) if frame.pts is None else frame.pts for i, frame in frames]


def _nominal_rate(stream) -> Fraction:
    rate = Fraction(stream.guessed_rate or stream.average_rate or 25)
    return next((r for r in RATES if abs(rate / r - 1) < 1e-5), rate)


def _exact_rate(ticks, guess: Fraction, clock: Fraction) -> Fraction:
    """The constant rate that explains all ticks, else the mean rate."""
    for rate in (guess, *RATES):
        if all(_time(t, ticks[0], i, rate, clock) == i / rate for i, t in enumerate(ticks)):
            return rate
    span = (ticks[-1] - ticks[0]) * clock
    return ((len(ticks) - 1) / span).limit_denominator(100_000) if span else guess


def _time(pts, first, index: int, rate: Fraction, clock: Fraction) -> Fraction:
    even = index / rate
    if pts is None or first is None:
        return even
    time = (pts - first) * clock
    return even if abs(time - even) <= clock else time


def read_image(path) -> np.ndarray:
    """The picture at `path` as (h, w, 3) uint8 RGB, turned upright; transparent parts become white.

    PNG, JPEG, WebP, BMP, TIFF or GIF; its size is read from the header and checked before decoding.
    """
    _check_regular_file(path)
    if os.path.getsize(path) > MAX_IMAGE_BYTES:
        raise UserError(f"{path}: is larger than a picture may be; save it again as PNG or JPEG.")
    _check_pixels(path, *_image_size(path), MAX_IMAGE_PIXELS)
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UserError(f"{path}: damaged picture; save it again as PNG or JPEG.")
    layers = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data[0] != 0xFF else image
    if layers.ndim == 3 and layers.shape[2] == 4 and layers.shape[:2] == image.shape[:2]:
        alpha = layers[..., 3:] / np.float32(np.iinfo(layers.dtype).max)
        image = np.round(image * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return image


def _image_size(path) -> tuple[int, int]:
    with open(path, "rb") as file:
        head = file.read(32)
        reader = next((read for magic, read in IMAGE_HEADERS.items() if head.startswith(magic)), None)
        try:
            if reader is None:
                raise ValueError("unknown kind of file")
            return reader(head, file)
        except (ValueError, struct.error, KeyError, IndexError) as error:
            raise UserError(f"{path}: not a picture that can be read ({error}); give PNG, JPEG or WebP.") from None


def _jpeg_size(head, file):
    file.seek(2)
    while True:
        marker, length = struct.unpack(">HH", file.read(4))
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            return struct.unpack(">xHH", file.read(5))[::-1]
        if marker < 0xFF01 or length < 2:
            raise ValueError("broken JPEG header")
        file.seek(length - 2, os.SEEK_CUR)


def _webp_size(head, file):
    kind, bits = head[12:16], int.from_bytes(head[21:25], "little")
    return {
        b"VP8 ": lambda: tuple(v & 0x3FFF for v in struct.unpack("<HH", head[26:30])),
        b"VP8L": lambda: (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)),
        b"VP8X": lambda: (1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")),
    }[kind]()


def _tiff_size(head, file):
    order = "<" if head[:2] == b"II" else ">"
    file.seek(struct.unpack(order + "I", head[4:8])[0])
    entries = struct.unpack(order + "H", file.read(2))[0]
    tags = {}
    for _ in range(entries):
        tag, kind, _, value = struct.unpack(order + "HHI4s", file.read(12))
        tags[tag] = struct.unpack_from(order + {3: "H", 4: "I"}.get(kind, "I"), value)[0]
    return tags[256], tags[257]


IMAGE_HEADERS = {
    b"\x89PNG\r\n\x1a\n": lambda head, file: struct.unpack(">II", head[16:24]),
    b"\xff\xd8\xff": _jpeg_size,
    b"RIFF": _webp_size,
    b"BM": lambda head, file: tuple(map(abs, struct.unpack("<ii", head[18:26]))),
    b"II*\0": _tiff_size,
    b"MM\0*": _tiff_size,
    b"GIF8": lambda head, file: struct.unpack("<HH", head[6:10]),
}


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
        self, path, fps: Fraction, audio_from=None, metadata: dict[str, str] | None = None,
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
        self.fps = Fraction(fps).limit_denominator(10_000)
        self.audio_from, self.metadata, self.finish = audio_from, metadata or {}, finish
        self.make = WRITERS[kind]
        self.writer, self.frames, self.size = None, 0, None

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
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
        self.path, self.container, self.output = path, container, None
        self.opened = contextlib.ExitStack()
        source, video = self.opened.enter_context(_open(path))
        self.origin = (video.start_time or 0) * video.time_base
        if not source.streams.audio:
            return
        self.input = source.streams.audio[0]
        self.copied = self.input.codec_context.codec.canonical_name in MP4_AUDIO
        if self.copied:
            self.output = container.add_stream_from_template(self.input)
        else:
            layout = "mono" if self.input.channels == 1 else "stereo"
            self.output = container.add_stream("aac", rate=48_000, layout=layout)
        packets = (p for p in _packets(path, source, self.input) if p.pts is not None)
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
        source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=Fraction(1, 100))
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
                self.container.mux(self.stream.encode(self.graph.pull()))

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


def write_image(path, image: np.ndarray, metadata: dict[str, str] | None = None) -> None:
    """One (h, w, 3) uint8 picture as PNG; `metadata` becomes text chunks with capitalised keywords."""
    data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
    texts = [b"tEXt%s\0%s" % (k.capitalize().encode(), v.encode()) for k, v in (metadata or {}).items()]
    chunks = [struct.pack(">I", len(t) - 4) + t + struct.pack(">I", zlib.crc32(t)) for t in texts]
    write_whole(Path(path), data[:PNG_HEAD] + b"".join(chunks) + data[PNG_HEAD:])


def enlarged(image: np.ndarray) -> np.ndarray:
    """A small model's picture in a whole multiple of its size, large enough to watch."""
    times = -(-SMALLEST_SHOWN // image.shape[0])
    return resize(image, (times * image.shape[1], times * image.shape[0]))


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`image` at `size` = (width, height): area average where it shrinks, cubic where it grows."""
    if image.shape[1::-1] == tuple(size):
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def side_by_side(images: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Pictures in one row, brought to the height of the first, white strips of `gap` pixels between."""
    height = images[0].shape[0]
    images = [resize(image, (round(image.shape[1] * height / image.shape[0]), height)) for image in images]
    strip = np.full((height, gap, 3), 255, np.uint8)
    return np.concatenate([part for i in images for part in (strip, i)][1:], axis=1)


def contact_sheet(rows: list[list[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Rows of pictures as one picture; shorter rows are filled up with white."""
    rows = [side_by_side(row, gap) for row in rows]
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(r, ((gap, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    return np.concatenate(rows)[gap:]
