"""Reads videos: streaming, bounded memory, exact timing, safe with any input file.

Local regular files of the formats in FORMATS are opened and nothing else: playlists, which name
further files, and addresses are refused. Images are (h, w, 3) uint8 RGB throughout, as players
show them (`display`): the default track, upright, in square pixels and an ordinary screen's colours.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition

from svdp_jax.errors import UserError
from svdp_jax.media.display import MAX_FRAME_PIXELS, Display, say
from svdp_jax.media.filters import deinterlaced
from svdp_jax.media.images import check_pixels, check_regular_file, resize

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,mpegts,mpeg,flv,ogg,asf"
OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": FORMATS, "max_pixels": str(MAX_FRAME_PIXELS)}
# Tags in another encoding are no reason to refuse a video; PyAV 19 knows that by itself.
ANY_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
# In these codecs every packet is one shown picture, so counting packets counts frames.
PACKET_IS_FRAME = {"h264", "hevc", "av1", "vp9", "gif", "mjpeg", "prores"}
# What a container's coarse clock may hide: Matroska's milliseconds turn 60000/1001 into 19001/317.
RATES = [Fraction(n, d) for n in (24000, 30000, 60000, 120000) for d in (1000, 1001)]


class VideoInfo(NamedTuple):
    """Facts of a video: upright size in square pixels, frames that decode, seconds as fractions.

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
    with opened(path) as (container, stream):
        first = next(_decode(path, container, stream), None)
        if first is None:
            raise UserError(f"{path}: no frame of it can be decoded; export the video again.")
        width, height = Display(path, stream).size(first)
        has_audio = track(container.streams.audio) is not None
        guess, clock = _nominal_rate(stream), stream.time_base
    ticks = _packet_ticks(path) or _frame_ticks(path)
    fps = _exact_rate(ticks, guess, clock)
    return VideoInfo(width, height, fps, len(ticks), len(ticks) / fps, has_audio)


def promised_frames(path) -> int:
    """How many frames the header promises; for estimates, since headers may lie."""
    with opened(path) as (container, stream):
        seconds = Fraction(container.duration or 0, av.time_base)
        return stream.frames or round(seconds * _nominal_rate(stream))


def read_frames(path, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
    """Frames `start` to `stop` (exclusive) of the video, decoded one at a time, as players show them.

    Times rise strictly. They are those of a constant rate wherever the container's clock is too
    coarse to tell the difference, else the file's own. Frames that change size within the clip are
    scaled to the first one's. A file cut off in the middle warns and ends early; a warning also says
    what is shown otherwise than stored.
    """
    if isinstance(path, Clip):
        stretch = enumerate(path.images[start:stop], start)
        yield from (Frame(image, Fraction(index) / path.fps) for index, image in stretch)
        return
    with opened(path) as (container, stream):
        rate, clock = _nominal_rate(stream), stream.time_base
        display = Display(path, stream)
        first, previous, size = None, Fraction(-1), None
        index = -1
        whole = deinterlaced(_decode(path, container, stream), lambda: say(path, ["deinterlaced"]))
        for index, frame in enumerate(whole):
            if index == 0:
                say(path, _passed_over(container, stream) + display.changes(frame))
            first = frame.pts if first is None else first
            time = _time(frame.pts, first, index, rate, clock)
            previous = time if time > previous else previous + 1 / rate
            if stop is not None and index >= stop:
                return
            if index >= start:
                image = display.picture(frame)
                size = size or image.shape[1::-1]
                yield Frame(resize(image, size), previous)
    if index < 0:
        raise UserError(f"{path}: no frame of it can be decoded; export the video again.")


def still(stream) -> bool:
    """Whether a track of pictures is a cover or a row of thumbnails beside the video."""
    return bool(stream.disposition & (Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image))


def track(streams):
    """The track that players choose: the first one marked default, else the first; None if none can be decoded."""
    known = [stream for stream in streams if stream.codec_context is not None and not still(stream)]
    return next((stream for stream in known if stream.disposition & Disposition.default), next(iter(known), None))


def _passed_over(container, stream) -> list[str]:
    """What is said of other tracks of pictures."""
    others = [other for other in container.streams.video if other is not stream]
    covers = sum(map(still, others))
    found = ["without its cover picture"] if covers else []
    return found + ([f"its default track of {len(others) - covers + 1}"] if len(others) > covers else [])


@contextlib.contextmanager
def opened(path):
    """The container and its video stream; every way this can fail is a UserError."""
    check_regular_file(path)
    try:
        # The "file:" prefix keeps a name such as "concat:a|b" from being read as a protocol.
        container = av.open(f"file:{os.path.abspath(path)}", options=OPEN_OPTIONS, **ANY_TAGS)
    except av.FFmpegError as error:
        why = f"not a video that can be read ({error.strerror})"
        raise UserError(f"{path}: {why}; give an mp4, mov, mkv or webm file.") from None
    with container:
        if not container.streams.video:
            raise UserError(f"{path}: holds no pictures, as it is cut off or only sound; give a whole video.")
        if all(map(still, container.streams.video)):
            raise UserError(f"{path}: is sound with a cover picture; give a video, or the picture itself.")
        stream = track(container.streams.video)
        if stream is None:
            raise UserError(f"{path}: its pictures are in an unknown code; export it again as H.264 in mp4.")
        check_pixels(path, stream.codec_context.width, stream.codec_context.height, MAX_FRAME_PIXELS)
        yield container, stream


def packets_of(path, container, *streams) -> Iterator:
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
    sound = track(container.streams.audio)
    for packet in packets_of(path, container, *filter(None, (stream, sound))):
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


def read_sound(path, rate: int) -> np.ndarray:
    """The sound (n,) int16, mono, `rate` samples a second, from the first picture on; empty if there is none."""
    with opened(path) as (container, stream):
        sound, blocks, first = track(container.streams.audio), [], None
        if sound is None:
            return np.zeros(0, np.int16)
        resampler = av.AudioResampler("s16", "mono", rate)
        for packet in packets_of(path, container, sound):
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
    with opened(path) as (container, stream):
        if stream.codec_context.codec.canonical_name not in PACKET_IS_FRAME:
            return []
        for packet in packets_of(path, container, stream):
            if not packet.size or packet.is_discard:
                continue
            starts_clean = ticks or packet.is_keyframe
            sound = sound and starts_clean and packet.pts is not None and not packet.is_corrupt
            ticks.append(packet.pts)
    return sorted(ticks) if sound else []


def _frame_ticks(path) -> list[int]:
    with opened(path) as (container, stream):
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
    return (Fraction(len(ticks) - 1) / span).limit_denominator(100_000) if span else guess


def _time(pts, first, index: int, rate: Fraction, clock: Fraction) -> Fraction:
    even = index / rate
    if pts is None or first is None:
        return even
    time = (pts - first) * clock
    return even if abs(time - even) <= clock else time
