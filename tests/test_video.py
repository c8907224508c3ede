"""Videos and pictures in and out, against clips whose every frame, time and sound is known."""

import os
import struct
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from svdp_jax.errors import UserError
from svdp_jax.media import images, video
from svdp_jax.media.images import _image_size, contact_sheet, read_image, side_by_side
from svdp_jax.media.writer import VideoWriter

PORTRAITS = Path(__file__).parents[2] / "shared/data/portraits"
needs_portraits = pytest.mark.skipif(not PORTRAITS.is_dir(), reason=f"no real clips in {PORTRAITS}")
NTSC = Fraction(30000, 1001)


def numbered(index, h=64, w=96):
    """A picture that tells its index: eight columns, each a bit."""
    bits = (index >> np.arange(8)) & 1
    return np.repeat(np.kron(bits, np.ones((h, w // 8)))[..., None] * 200 + 20, 3, -1).astype(np.uint8)


def number(image):
    h, w = image.shape[:2]
    columns = image[h // 2, np.arange(8) * w // 8 + w // 16, 1] > 120
    return int(columns @ (1 << np.arange(8)))


def make(path, rate=Fraction(30), count=40, codec="libx264", ticks=None, rotation=0, sound=None, size=(96, 64)):
    """Writes a clip with PyAV alone. `ticks` are presentation times in ms; `sound` = (codec, start, seconds)."""
    clock = 1 / rate if ticks is None else Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        stream.codec_context.time_base = clock
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        if sound:
            audio = container.add_stream(sound[0], rate=48000, layout="mono")
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(i, size[1], size[0]), format="rgb24")
            frame.pts, frame.time_base = (i if ticks is None else ticks[i]), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            samples = clicks(sound[2])
            for at in range(0, len(samples), 960):
                piece = np.ascontiguousarray(samples[None, at : at + 960])
                frame = av.AudioFrame.from_ndarray(piece, format="flt", layout="mono")
                frame.rate, frame.time_base = 48000, Fraction(1, 48000)
                frame.pts = at + round(sound[1] * 48000)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def clicks(seconds):
    """A 1 kHz burst of 20 ms in the middle of every quarter of a second."""
    time = np.arange(round(seconds * 48000)) / 48000
    return (0.5 * np.sin(2 * np.pi * 1000 * time) * (abs(time % 0.25 - 0.125) < 0.01)).astype(np.float32)


def listen(path):
    """(samples at 48 kHz, start in seconds after the first picture) of the sound of `path`."""
    with av.open(str(path)) as container:
        picture, sound = container.streams.video[0], container.streams.audio[0]
        resampler = av.AudioResampler("flt", "mono", 48000)
        frames = [f for frame in container.decode(sound) for f in resampler.resample(frame)]
        start = frames[0].pts * frames[0].time_base - picture.start_time * picture.time_base
        return np.concatenate([f.to_ndarray()[0] for f in frames + resampler.resample(None)]), start


def bursts(path):
    """Seconds at which bursts begin."""
    samples, start = listen(path)
    loud = np.convolve(abs(samples), np.ones(96) / 96, "same") > 0.1
    return np.flatnonzero(loud[1:] & ~loud[:-1]) / 48000 + float(start)


def copy(source, target, **options):
    info = video.probe(source)
    with VideoWriter(target, info.fps, **options) as writer:
        for frame in video.read_frames(source):
            writer.write(frame.image, frame.time)
    return info


CODECS = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "webm": "libvpx", "avi": "mpeg4"}


@pytest.mark.parametrize(
    "name,rate",
    [(f"a.{suffix}", NTSC) for suffix in CODECS]
    + [("a.mkv", Fraction(rate)) for rate in ("24000/1001", "25", "60000/1001", "15/2")],
)
def test_rate_count_and_times_are_exact(tmp_path, name, rate):
    path = make(tmp_path / name, rate, codec=CODECS[name[2:]])
    info = video.probe(path)
    assert (info.fps, info.frames, info.duration) == (rate, 40, 40 / rate)
    assert [frame.time for frame in video.read_frames(path)] == [i / rate for i in range(40)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_written_mp4_keeps_rate_count_and_order(tmp_path, name):
    path, out = make(tmp_path / name, NTSC), tmp_path / "out.mp4"
    info = copy(path, out)
    assert video.probe(out) == info and info.fps == NTSC
    assert [number(frame.image) for frame in video.read_frames(out)] == list(range(40))
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.frames == 40 and stream.average_rate == NTSC
        assert stream.duration * stream.time_base == 40 / NTSC
        context = stream.codec_context
        assert (context.colorspace, context.color_trc, context.color_primaries, context.color_range) == (1, 1, 1, 1)
    assert set(os.listdir(tmp_path)) == {name, "out.mp4"}


def test_frames_without_times_follow_the_rate(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", NTSC) as writer:
        for i in range(50):
            writer.write(numbered(i))
    assert video.probe(tmp_path / "a.mp4")[2:4] == (NTSC, 50)


def test_colours_survive(tmp_path):
    colours = np.array([(200, 40, 30), (30, 180, 60), (40, 60, 220), (128, 128, 128)], np.uint8)
    image = np.repeat(np.repeat(colours[None], 64, 0), 24, 1)
    for name in ["a.mp4", "a.gif"]:
        with VideoWriter(tmp_path / name, Fraction(25)) as writer:
            for _ in range(5):
                writer.write(image)
        read = list(video.read_frames(tmp_path / name))[2].image
        assert np.abs(read[32, 12::24].astype(int) - colours).max() <= 6


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_rate_is_kept(tmp_path, name):
    steps = np.random.default_rng(0).integers(20, 90, 40)
    ticks = [int(t) for t in np.cumsum(steps) - steps[0]]
    path, out = make(tmp_path / name, ticks=ticks), tmp_path / "out.mp4"
    copy(path, out)
    for file in path, out:
        times = [frame.time for frame in video.read_frames(file)]
        assert np.abs(np.array(times, float) * 1000 - ticks).max() <= 0.1
    info = video.probe(out)
    assert info.frames == 40 and abs(float(info.fps) - 39 / (ticks[-1] / 1000)) < 1e-3


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_flag_is_honoured(tmp_path, rotation):
    path = make(tmp_path / "a.mp4", rotation=rotation, count=3)
    upright = np.rot90(numbered(2), rotation // 90)
    info = video.probe(path)
    assert (info.height, info.width) == upright.shape[:2]
    image = list(video.read_frames(path))[2].image
    assert np.abs(image.astype(int) - upright).mean() < 10


def test_odd_sizes_grow_by_a_replicated_edge(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (3, 5, 3)).repeat(11, 0).repeat(11, 1).astype(np.uint8)
    with VideoWriter(tmp_path / "a.mp4", Fraction(25)) as writer:
        writer.write(image)
    info, read = video.probe(tmp_path / "a.mp4"), next(video.read_frames(tmp_path / "a.mp4")).image
    assert (info.width, info.height) == (56, 34)
    assert np.abs(read[-1, ::7].astype(int) - read[-2, ::7]).mean() < 10
    with VideoWriter(tmp_path / "a.gif", Fraction(25)) as writer:
        writer.write(image)
    assert video.probe(tmp_path / "a.gif")[:2] == (55, 33)


def test_range_of_frames(tmp_path):
    path = make(tmp_path / "a.mp4")
    frames = list(video.read_frames(path, 5, 9))
    assert [number(frame.image) for frame in frames] == [5, 6, 7, 8]
    assert frames[0].time == Fraction(5, 30)


def test_gif_is_right_on_average(tmp_path):
    out = tmp_path / "a.gif"
    copy(make(tmp_path / "a.mp4", count=40), out)
    with av.open(str(out)) as container:
        ticks = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert ticks == [round(i * 100 / 30) for i in range(40)]
    assert [number(frame.image) for frame in video.read_frames(out)] == list(range(40))


def test_pictures_are_numbered_and_nothing_is_overwritten(tmp_path):
    copy(make(tmp_path / "a.mp4", count=3), tmp_path / "out.png")
    assert sorted(os.listdir(tmp_path / "out")) == ["00000.png", "00001.png", "00002.png"]
    assert number(read_image(tmp_path / "out/00002.png")) == 2
    with pytest.raises(UserError, match="exists"):
        VideoWriter(tmp_path / "out.png", Fraction(25))


@pytest.mark.parametrize(
    "name,codec,kept",
    [("a.mp4", "aac", "aac"), ("a.ts", "aac", "aac"), ("a.mkv", "libopus", "opus"), ("a.mkv", "libmp3lame", "mp3"),
     ("a.avi", "pcm_s16le", "aac"), ("a.mkv", "mp2", "aac")],
)  # fmt: skip
def test_sound_stays_in_step_and_ends_with_the_pictures(tmp_path, name, codec, kept):
    path = make(tmp_path / name, NTSC, 60, CODECS[name[2:]], sound=(codec, 0, 3))
    out = tmp_path / "out.mp4"
    info = copy(path, out, audio_from=path)
    with av.open(str(out)) as container:
        assert container.streams.audio[0].codec_context.codec.canonical_name == kept
        assert abs(container.duration / av.time_base - float(info.duration)) <= 1 / 30
    samples, start = listen(out)
    assert abs(len(samples) / 48000 + start - info.duration) <= 0.034
    was, now = bursts(path), bursts(out)
    assert len(now) == 8 and np.abs(now - was[:8]).max() < 0.004


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_late_sound_stays_late(tmp_path, codec):
    path, out = make(tmp_path / "a.mkv", count=60, sound=(codec, 0.4, 1)), tmp_path / "out.mp4"
    copy(path, out, audio_from=path)
    was, now = bursts(path), bursts(out)
    assert abs(was[0] - 0.515) < 0.03 and len(now) == len(was)
    assert np.abs(now - was).max() < 0.004


def test_silent_driver_gives_silent_video(tmp_path):
    path = make(tmp_path / "a.mp4")
    copy(path, tmp_path / "out.mp4", audio_from=path)
    assert not video.probe(tmp_path / "out.mp4").has_audio


def test_metadata_is_kept(tmp_path):
    copy(make(tmp_path / "a.mp4"), tmp_path / "out.mp4", metadata={"comment": "made by a test"})
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.metadata["comment"] == "made by a test"


@needs_portraits
@pytest.mark.parametrize("name", ["d18.mp4", "d19.mp4"])
def test_real_sound_is_copied_sample_for_sample(tmp_path, name):
    out = tmp_path / "out.mp4"
    info = video.probe(PORTRAITS / name)
    with VideoWriter(out, info.fps, audio_from=PORTRAITS / name) as writer:
        for i in range(info.frames):
            writer.write(numbered(i % 256))
    assert video.probe(out)[2:] == info[2:] and info.has_audio
    (was, start), (now, new_start) = listen(PORTRAITS / name), listen(out)
    assert start == new_start and abs(len(now) / 48000 - info.duration) <= 1 / info.fps
    assert np.array_equal(was[: len(now)], now[: len(was)])


def test_failure_leaves_nothing(tmp_path):
    path = make(tmp_path / "a.mp4")
    for out, error in [("b.mp4", KeyboardInterrupt), ("b.gif", ValueError), ("b.png", ValueError)]:
        with pytest.raises(error), VideoWriter(tmp_path / out, NTSC, audio_from=path) as writer:
            for i in range(20):
                writer.write(numbered(i))
            raise error
        with pytest.raises(ValueError, match="the first was"), VideoWriter(tmp_path / out, NTSC) as writer:
            writer.write(numbered(0))
            writer.write(numbered(0)[:-2])
        with pytest.raises(UserError, match="no frames"), VideoWriter(tmp_path / out, NTSC):
            pass
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_older_result_survives_a_failure(tmp_path):
    (tmp_path / "b.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "b.mp4", NTSC) as writer:
        writer.write(numbered(0))
        raise RuntimeError
    assert (tmp_path / "b.mp4").read_bytes() == b"old"


@pytest.mark.parametrize("name,hint", [("a.xyz", ".mp4, .gif, .png"), ("no/a.mp4", "create"), ("d.mp4", "folder")])
def test_bad_targets(tmp_path, name, hint):
    (tmp_path / "d.mp4").mkdir()
    with pytest.raises(UserError, match=hint):
        VideoWriter(tmp_path / name, NTSC)


@pytest.fixture(scope="module")
def bad_videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    good = make(folder / "good.mp4").read_bytes()
    (folder / "text.mp4").write_text("this is no video\n" * 200)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "cut.mp4").write_bytes(good[: len(good) * 2 // 3])
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{folder / 'good.mp4'}'\n")
    (folder / "list.ffconcat").write_text("ffconcat version 1.0\nfile good.mp4\n")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n"
    (folder / "list.m3u8").write_text(playlist)
    os.mkfifo(folder / "pipe.mp4")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return folder


@pytest.mark.parametrize(
    "name,hint",
    [("text.mp4", "not a video"), ("empty.mp4", "empty"), ("cut.mp4", "not a video|cut off"),
     ("list.mp4", "not a video"), ("list.ffconcat", "not a video"), ("list.m3u8", "not a video"),
     ("pipe.mp4", "regular file"), (".", "folder"),
     ("nothing.mp4", "does not exist"), ("concat:good.mp4|good.mp4", "does not exist"), ("sound.mp4", "only sound")],
)  # fmt: skip
def test_bad_videos_get_one_sentence(bad_videos, name, hint):
    for read in video.probe, lambda path: next(video.read_frames(path)):
        with pytest.raises(UserError, match=hint) as caught:
            read(bad_videos / name)
        assert str(bad_videos / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/a.mp4", "file:///etc/passwd", "rtsp://127.0.0.1/a"])
def test_addresses_are_refused(url):
    with pytest.raises(UserError, match="addresses are not opened"):
        video.probe(url)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_size_limit_comes_before_decoding(tmp_path, monkeypatch, name):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 4096
        container.mux(stream.encode(av.VideoFrame(4096, 4096, "yuv420p")) + stream.encode())
    monkeypatch.setattr(video, "_decode", lambda *_: pytest.fail("decoded"))
    for read in video.probe, lambda path: next(video.read_frames(path)):
        with pytest.raises(UserError, match="over the limit of 16,588,800"):
            read(path)


@pytest.mark.parametrize("name", ["a.mkv", "a.ts", "a.webm"])
def test_truncated_tail_gives_what_is_there(tmp_path, name):
    path = make(tmp_path / name, count=150, codec="libvpx" if name == "a.webm" else "libx264")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        numbers = [number(frame.image) for frame in video.read_frames(path)]
        assert video.probe(path).frames == len(numbers)
    assert 30 < len(numbers) < 140 and numbers == sorted(set(numbers))
    assert name == "a.ts" or any("cut off" in str(warning.message) for warning in caught)


def test_damage_in_the_middle_warns(tmp_path):
    path = make(tmp_path / "a.mkv", count=100)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        count = sum(1 for _ in video.read_frames(path))
    assert 20 < count <= 100 and caught


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_is_flat_in_length(tmp_path):
    """Peak memory of a reader and writer of 1000 frames against one of 100, each in its own process."""
    # getrusage would not do: a child inherits the peak of the process that started it.
    path = make(tmp_path / "a.mp4", count=1000, size=(128, 96))
    code = (
        "import sys; from svdp_jax.media import video; from svdp_jax.media.writer import VideoWriter\n"
        "path, out, stop = sys.argv[1], sys.argv[2], int(sys.argv[3])\n"
        "with VideoWriter(out, 30) as writer:\n"
        "    for frame in video.read_frames(path, stop=stop): writer.write(frame.image, frame.time)\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
    )
    peaks = []
    for stop in 100, 1000:
        command = [sys.executable, "-c", code, str(path), str(tmp_path / "out.mp4"), str(stop)]
        result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        peaks.append(int(result.stdout))
    assert peaks[1] < 1.05 * peaks[0]


# Pictures


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tiff", "gif"])
def test_pictures_are_read_and_sized_from_the_header(tmp_path, suffix, monkeypatch):
    path, image = tmp_path / f"a.{suffix}", numbered(37)
    assert cv2.imwrite(str(path), image)
    read = read_image(path)
    assert read.shape == (64, 96, 3) and number(read) == 37
    assert _image_size(path) == (96, 64)
    monkeypatch.setattr(images, "MAX_IMAGE_PIXELS", 96 * 64 - 1)
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="96x64"):
        read_image(path)


def test_grey_deep_and_transparent_pictures(tmp_path):
    grey = np.full((8, 8), 77, np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert (read_image(tmp_path / "grey.png") == 77).all()
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((8, 8, 3), 77 * 257, np.uint16))
    assert (read_image(tmp_path / "deep.png") == 77).all()
    for name, dtype, top in [("clear.png", np.uint8, 255), ("deep_clear.png", np.uint16, 65535)]:
        clear = np.zeros((8, 8, 4), dtype)
        clear[:, :4] = (0, 0, top, top)
        cv2.imwrite(str(tmp_path / name), clear)
        read = read_image(tmp_path / name)
        assert (read[:, :4] == (255, 0, 0)).all() and (read[:, 4:] == 255).all()


def test_exif_orientation(tmp_path):
    path = tmp_path / "a.jpg"
    cv2.imwrite(str(path), numbered(5))
    tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0) + bytes(4)
    exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    path.write_bytes(path.read_bytes()[:2] + exif + path.read_bytes()[2:])
    assert number(np.rot90(read_image(path))) == 5


BROKEN = [b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\x00\x00", b"II*\0", b"RIFFabcdWEBPxxxx"]


@pytest.mark.parametrize("content", BROKEN)
def test_bad_pictures_get_one_sentence(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match="a.png: "):
        read_image(tmp_path / "a.png")


def test_truncated_picture(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="a.png: "):
        read_image(tmp_path / "a.png")


def test_sheets():
    row = [numbered(1), numbered(2, 32, 48)]
    assert side_by_side(row).shape == (64, 2 * 96 + 4, 3)
    sheet = contact_sheet([row, row[:1]])
    assert sheet.shape == (2 * 64 + 4, 2 * 96 + 4, 3) and number(sheet[:64, 100:]) == 2
    assert (sheet[68:, 96:] == 255).all()
