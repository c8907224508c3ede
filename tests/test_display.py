"""Files as cameras, phones and broadcasters write them, against the pictures that the ffmpeg program gives."""

import shutil
import struct
import subprocess
import warnings

import numpy as np
import pytest

from svdp_jax.errors import UserError
from svdp_jax.media import display, video
from svdp_jax.media.writer import VideoWriter

pytestmark = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="no ffmpeg program to compare with; apt-get install ffmpeg")
CLOSE = 2  # of 255
SQUARE = "scale=iw*sar:ih,setsar=1"
LINEAR = "zscale=t=linear:npl=100,format=gbrpf32le,zscale=p=bt709"
SCREEN = "zscale=t=bt709:m=gbr:r=pc,format=gbrp"  # without the rounding of a second chroma
HLG = f"{LINEAR},tonemap=hable:desat=0,{SCREEN}"
# Beyond 0..1, where chroma puts the edges of strong colours, the usual short cut gives one processor this and another that.
EXACT = LINEAR.replace("100", "100:agamma=0")
PQ = f"{EXACT},tonemap=hable:desat=0,{SCREEN}"
HDR = {"smpte2084": PQ, "arib-std-b67": HLG, "bt2020-10": f"{EXACT},{SCREEN}"}
SMOOTH = "testsrc2=s=96x64:r=10,hue=s=0.7,gblur=sigma=3"
# Nothing, half and all of red, green and blue side by side; patches of every colour, with edges on chroma's pixels and between
# them; and gradients.
ANY = "255*mod(abs(sin(X*12.9898+Y*78.233+{}))*43758.5453,1)"
STRONG = {
    "primaries": "nullsrc=s=36x24:r=10,format=gbrp,geq=r='127.5*mod(X,3)':g='127.5*mod(Y,3)':b='127.5*mod(floor(X/3)+floor(Y/3),3)'",
    "patches": f"nullsrc=s=36x24:r=10,format=gbrp,geq=r='{ANY.format(0)}':g='{ANY.format(1)}':b='{ANY.format(2)}'",
    "gradients": "nullsrc=s=180x120:r=10,format=gbrp,geq=r='128+128*sin(X/17+Y/29)':g='128+128*sin(X/23-Y/13)':b='128+128*sin(Y/19)'",
}
# Linear part of the display matrix, as (a, b, c, d): x' = ax + cy, y' = bx + dy.
MATRICES = {
    "as stored": (1, 0, 0, 1), "left": (0, -1, 1, 0), "over": (-1, 0, 0, -1), "right": (0, 1, -1, 0),
    "mirrored": (-1, 0, 0, 1), "upside down": (1, 0, 0, -1), "transposed": (0, 1, 1, 0), "the other way": (0, -1, -1, 0),
}  # fmt: skip


def ffmpeg(*arguments) -> bytes:
    command = ["ffmpeg", "-y", "-v", "error", "-threads", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True, timeout=300).stdout


def film(path, filters="format=yuv420p", options=("-c:v", "libx264", "-qp", "4"), source="testsrc2=s=96x64:r=10", count=3):
    ffmpeg("-f", "lavfi", "-i", f"{source},{filters}", "-frames:v", count, *options, path)
    return path


def hdr(path, curve, filters="format=yuv420p10le", more="", source=SMOOTH):
    """A film in 10 bits and BT.2020, as phones write it."""
    about = f"lossless=1:log-level=error:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc{more}"
    tags = ("-color_primaries", "bt2020", "-color_trc", curve, "-colorspace", "bt2020nc")
    options = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", about, *tags)
    return film(path, filters, options, source, 3 if source == SMOOTH else 1)


def read(path) -> np.ndarray:
    """All frames (f h w 3), each change said by a warning that is not wanted here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return np.stack([frame.image for frame in video.read_frames(path)]).astype(int)


def said(path) -> list[str]:
    """What is said of a file that is looked at and read twice, as Python shows warnings by default."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        video.probe(path), list(video.read_frames(path)), list(video.read_frames(path))
    return [str(warning.message) for warning in caught]


def assert_as_ffmpeg(path, filters="null", start=0) -> np.ndarray:
    images, info = read(path), video.probe(path)
    assert images.shape[:3] == (info.frames, info.height, info.width)
    raw = ffmpeg("-i", path, "-vf", f"{filters},format=rgb24", "-fps_mode", "passthrough", "-f", "rawvideo", "-")
    wanted = np.frombuffer(raw, np.uint8).reshape(images.shape)
    assert np.abs(images - wanted)[start:].max() <= CLOSE
    return images


def displayed(path, target, linear):
    """The MP4 with another display matrix in the header of its track."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (each << 16 for each in linear)
    struct.pack_into(">9i", data, data.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target


@pytest.mark.parametrize("name", MATRICES)
def test_turned_and_mirrored_as_the_display_matrix_says(tmp_path, name):
    path = displayed(film(tmp_path / "a.mp4"), tmp_path / "b.mp4", MATRICES[name])
    assert_as_ffmpeg(path)
    a, b, c, d = MATRICES[name]
    assert len(said(path)) == (a * d < b * c)


@pytest.mark.parametrize("turns", range(4))
def test_a_turn_is_seen_beside_side_data_that_has_no_name_here(turns):
    """As in spatial videos of phones, when PyAV is older than what its FFmpeg finds in them."""

    class Frame:
        rotation = [0, 90, 180, -90][turns]

        @property
        def side_data(self):
            raise ValueError("77 is not a valid Type")

    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert np.array_equal(display.upright(image, display.matrix(Frame())), np.rot90(image, turns))


def test_a_damaged_display_matrix_changes_nothing(tmp_path):
    path = film(tmp_path / "a.mp4")
    flat = displayed(path, tmp_path / "b.mp4", (1, 1, 1, 1))
    assert np.array_equal(read(path), read(flat))


@pytest.mark.parametrize(
    "name,shape,linear",
    [("a.mp4", "16/11", (1, 0, 0, 1)), ("a.mkv", "12/11", None), ("a.mpg", "8/9", None)]
    + [("a.mp4", "4/3", linear) for linear in list(MATRICES.values())[1:]],
)
def test_pixels_are_made_square(tmp_path, name, shape, linear):
    codec = ("-c:v", "mpeg2video", "-q:v", "2", "-r", "25") if name == "a.mpg" else ("-c:v", "libx264", "-qp", "4")
    path = film(tmp_path / name, f"format=yuv420p,setsar={shape}", codec)
    path = path if linear is None else displayed(path, tmp_path / "b.mp4", linear)
    assert_as_ffmpeg(path, SQUARE)
    (sentence,) = said(path)
    assert "made square" in sentence and str(path) in sentence


@pytest.mark.parametrize("matrix", ["bt709", "bt601", "bt2020"])
@pytest.mark.parametrize("span", ["pc", "tv"])
@pytest.mark.parametrize("shape", ["1", "4/3"])
def test_matrix_and_range_are_those_of_the_tags(tmp_path, matrix, span, shape):
    tag = {"bt709": "bt709", "bt601": "smpte170m", "bt2020": "bt2020nc"}[matrix]
    encode = ("-c:v", "libx264", "-qp", "4", "-color_range", span, "-colorspace", tag)
    change = f"scale=out_color_matrix={matrix}:out_range={span},format=yuv420p,setsar={shape}"
    assert_as_ffmpeg(film(tmp_path / "a.mp4", change, encode, count=1), SQUARE)


@pytest.mark.parametrize("form", ["yuv420p10le", "yuv444p10le"])
@pytest.mark.parametrize("curve", HDR)
def test_hdr_and_wide_gamut_as_an_ordinary_screen_shows_them(tmp_path, curve, form):
    path = hdr(tmp_path / "a.mp4", curve, f"format={form}")
    assert_as_ffmpeg(path, HDR[curve])
    (sentence,) = said(path)
    assert "BT.2020" in sentence


@pytest.mark.parametrize("source", STRONG)
@pytest.mark.parametrize("curve", HDR)
def test_the_strongest_colours_as_phones_write_them(tmp_path, curve, source):
    change = "scale=180:120:flags=neighbor,zscale=m=2020_ncl:r=tv,format=yuv420p10le"
    assert_as_ffmpeg(hdr(tmp_path / "a.mp4", curve, change, source=STRONG[source]), HDR[curve])


@pytest.mark.parametrize(
    "light",
    [":max-cll=600,200", ":master-display=G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(40000000,50):hdr10=1"],
)
def test_hdr_as_bright_as_the_file_says(tmp_path, light):
    path = hdr(tmp_path / "a.mp4", "smpte2084", more=light)
    plain = read(hdr(tmp_path / "b.mp4", "smpte2084"))
    assert np.abs(assert_as_ffmpeg(path, PQ) - plain).max() > 5


def test_hdr_with_pixels_that_are_not_square(tmp_path):
    path = hdr(tmp_path / "a.mp4", "arib-std-b67", "format=yuv420p10le,setsar=4/3")
    assert_as_ffmpeg(path, f"{SQUARE},format=yuv444p16le,{HLG}")
    assert len(said(path)) == 1


@pytest.mark.parametrize("name", ["a.mp4", "a.mpg"])
def test_interlaced_video_is_made_whole(tmp_path, name):
    codec = {"a.mp4": ("libx264", "-qp", "4", "-x264-params", "tff=1"), "a.mpg": ("mpeg2video", "-q:v", "2", "-top", "1")}[name]
    path = film(
        tmp_path / name, "format=yuv420p,interlace=lowpass=0", ("-c:v", *codec, "-flags", "+ilme+ildct"),
        "testsrc2=s=96x64:r=50", 8,
    )  # fmt: skip
    # The first rows of the first frame are garbage in ffmpeg 5.1's filter.
    assert_as_ffmpeg(path, "bwdif=mode=send_frame:deint=interlaced", start=1)
    raw = ffmpeg("-i", path, "-vf", "format=rgb24", "-f", "rawvideo", "-")
    combed = np.frombuffer(raw, np.uint8).reshape(read(path).shape).astype(int)
    nearest = [min(range(8), key=lambda i: np.abs(combed[i] - image).mean()) for image in read(path)]
    assert nearest == list(range(8))
    assert [frame.time for frame in video.read_frames(path)] == [i / video.probe(path).fps for i in range(8)]
    (sentence,) = said(path)
    assert "deinterlaced" in sentence


def test_one_interlaced_frame(tmp_path):
    encode = ("-c:v", "libx264", "-x264-params", "tff=1", "-flags", "+ilme+ildct")
    path = film(tmp_path / "a.mp4", "format=yuv420p,interlace=lowpass=0", encode, "testsrc2=s=96x64:r=50", 1)
    assert len(read(path)) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_cover_is_no_video(tmp_path):
    film(tmp_path / "cover.png", "null", ("-update", "1"), "color=red:s=300x300", 1)
    path, song, both = film(tmp_path / "a.mp4"), tmp_path / "song.m4a", tmp_path / "both.mp4"
    tone = ("-f", "lavfi", "-i", "sine=d=0.3", "-i", tmp_path / "cover.png")
    attach = ("-c:v", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg(*tone, "-map", 0, "-map", 1, "-c:a", "aac", *attach, song)
    for look in video.probe, lambda it: next(video.read_frames(it)):
        with pytest.raises(UserError, match="cover picture"):
            look(song)
    ffmpeg(
        "-i", tmp_path / "cover.png", "-i", path, "-map", 0, "-map", 1, "-c", "copy", "-disposition:v:0", "attached_pic", both
    )
    assert np.array_equal(read(both), read(path)) and "cover" in said(both)[0]
    assert video.probe(both) == video.probe(path)


def test_the_track_marked_default_is_taken(tmp_path):
    first = film(tmp_path / "a.mp4", source="color=red:s=32x32")
    second, both = film(tmp_path / "b.mp4"), tmp_path / "both.mkv"
    ffmpeg(
        "-i",
        first,
        "-i",
        second,
        "-map",
        0,
        "-map",
        1,
        "-c",
        "copy",
        "-disposition:v:0",
        0,
        "-disposition:v:1",
        "default",
        both,
    )
    assert np.array_equal(read(both), read(second)) and "track of 2" in said(both)[0]


def test_the_sound_marked_default_is_taken(tmp_path):
    path, both = film(tmp_path / "a.mp4", count=10), tmp_path / "both.mkv"
    tones = [part for pitch in (300, 3000) for part in ("-f", "lavfi", "-i", f"sine={pitch}:d=1")]
    choose = ("-disposition:a:0", 0, "-disposition:a:1", "default")
    ffmpeg("-i", path, *tones, "-map", 0, "-map", 1, "-map", 2, "-c:v", "copy", "-c:a", "aac", *choose, both)
    info = video.probe(both)
    with VideoWriter(tmp_path / "out.mp4", info.fps, audio_from=both) as writer:
        for frame in video.read_frames(both):
            writer.write(frame.image)
    for file in both, tmp_path / "out.mp4":
        sound = video.read_sound(file, 16000)
        assert abs(np.argmax(np.abs(np.fft.rfft(sound))) * 16000 / len(sound) - 3000) < 30


@pytest.mark.parametrize("across,down", [(1 << 20, 1), (1, 1 << 20), (0, 5), (5, 0), (0xFFFFFFFF, 1)])
def test_pixels_of_any_shape_stay_within_bounds(tmp_path, across, down):
    path = film(tmp_path / "a.mp4", "format=yuv420p,setsar=4/3")
    data = bytearray(path.read_bytes())
    struct.pack_into(">2I", data, data.index(b"pasp") + 4, across, down)
    path.write_bytes(data)
    if across == 1 << 20:
        with pytest.raises(UserError, match="over the limit"):
            read(path)
    else:
        assert read(path).shape[1] == 64
