"""What there is to prepare: videos of folders and globs, or the clips that a dataset's own list names.

    kind            how it is recognised                                            who is who
    HDTF            a folder with *_annotion_time.txt, *_crop_wh.txt, ...           the video's name, digits stripped
    TalkingHead-1KH lines `name,H,W,first,last,left,top,right,bottom`               the video's identifier
    CelebV-HQ       JSON with `clips`: ytb_id, duration, bbox                       the video's identifier
    folders         videos, or folders of numbered pictures; names of VFHQ, CelebV-HQ and TalkingHead-1KH
                    clips are understood, else a person is a subfolder, or a video of the top folder

Nothing is downloaded: videos that a list names and the folder lacks are reported as missing.
"""

import glob
import json
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from svdp_jax.errors import UserError
from svdp_jax.media import video
from svdp_jax.media.images import read_image, resize

# What files of the formats that `video` opens are called.
SUFFIXES = {
    ".mp4", ".mov", ".m4v", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".gif", ".flv", ".ogv",
    ".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts", ".wmv", ".asf",
}  # fmt: skip
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}
PICTURE_RATE = Fraction(25)  # frames per second of a folder of pictures
UPLOADERS = "the videos belong to their uploaders; the list gives no licence for them"
# Names of clips that datasets' own scripts cut: pattern, person, licence.
STYLES = (
    (r"Clip\+(.+)\+(P\d+)\+C\d+\+F\d+-\d+", r"\1+\2", "VFHQ: research only, see its page"),
    (r"(.{11})_\d{4}_S\d+_E\d+_L\d+_T\d+_R\d+_B\d+", r"\1", "TalkingHead-1KH: CC BY 3.0"),
    (r"([\w-]{11})_\d+(_\d+)?", r"\1", "CelebV-HQ: non-commercial research only, see its page"),
)


class Segment(NamedTuple):
    """A stretch of a video, and where in the picture to look.

    `start` and `end` (exclusive) count `unit`, seconds or frames. `region` (left, top, right,
    bottom) is in a picture of `extent` = (width, height); a width of 0 means in proportion.
    """

    start: float = 0
    end: float = float("inf")
    unit: str = "seconds"
    region: tuple[float, ...] | None = None
    extent: tuple[float, float] = (0, 0)

    def holds(self, index: int, time: Fraction) -> bool:
        return self.start <= (index if self.unit == "frames" else float(time)) < self.end

    def pixels(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the region in a picture of this size; all of it where there is none."""
        if self.region is None:
            return slice(0, height), slice(0, width)
        down = height / self.extent[1]
        across = width / self.extent[0] if self.extent[0] else down
        left, top, right, bottom = self.region
        rows = slice(max(0, round(top * down)), min(height, round(bottom * down)))
        return rows, slice(max(0, round(left * across)), min(width, round(right * across)))


class Source(NamedTuple):
    """One pass over a video. `name` is unique, sorts, and is fit for a file name."""

    name: str
    path: str
    person: str
    licence: str
    segments: tuple[Segment, ...] = (Segment(),)
    content: str = ""  # digest, once it has been looked at


class Listing(NamedTuple):
    sources: list[Source]
    missing: list[tuple[str, str]]  # what is not there, and why


def find(inputs: list[str], listing: str = "", licence: str = "unknown") -> Listing:
    """The sources in files, folders and globs, or those of them that a dataset's list names.

    UserError where an input or the list is not there, or cannot be told.
    """
    if listing:
        return _listed(Path(listing), _files(inputs))
    sources = []
    for name, path in _named(inputs):
        person, licence_of = _style(path.stem if path.is_file() else path.name) or (_person(name), licence)
        sources.append(Source(name, str(path), person, licence_of))
    return Listing(sources, [])


def frames(path: str) -> Iterator[video.Frame]:
    """The frames of a video, or of a folder of pictures in the order of their names."""
    if not Path(path).is_dir():
        yield from video.read_frames(path)
        return
    first = None
    for index, file in enumerate(files(path)):
        image = read_image(file)
        first = image.shape[1::-1] if first is None else first
        yield video.Frame(resize(image, first), index / PICTURE_RATE)


def expected_frames(path: str) -> int:
    """About how many frames a source has, from its header alone; for progress, not to be relied on."""
    if Path(path).is_dir():
        return len(files(path))
    return video.promised_frames(path)


def exact_frames(path: str) -> int:
    return len(files(path)) if Path(path).is_dir() else video.probe(path).frames


def files(path: str) -> list[Path]:
    """The video itself, or the pictures of a folder in the order of their names."""
    if not Path(path).is_dir():
        return [Path(path)]
    return sorted(p for p in Path(path).iterdir() if p.suffix.lower() in PICTURES)


def below(folder: Path) -> list[Path]:
    """Every file below a folder that is named as videos are, sorted."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES]


def _files(inputs) -> list[tuple[Path, Path]]:
    """(root, path) of every video and folder of pictures, sorted, each once, whichever links lead to it."""
    found, places = {}, set()
    for pattern in inputs:
        roots = [Path(p) for p in sorted(glob.glob(pattern, recursive=True))] or [Path(pattern)]
        for root in roots:
            if not root.exists():
                raise UserError(f"{pattern}: no such file or folder; name videos, folders or globs.")
            for path in [root] if root.is_file() else sorted(root.rglob("*")):
                if path.is_file() and (path == root or path.suffix.lower() in SUFFIXES):
                    there = path
                elif path.suffix.lower() in PICTURES and path.parent.name:
                    there = path.parent
                else:
                    continue
                if there not in found and (place := there.resolve()) not in places:
                    places.add(place)
                    found[there] = root if there != root else root.parent
    if not found:
        raise UserError(f"{', '.join(inputs)}: holds no video ending in {', '.join(sorted(SUFFIXES))}.")
    return sorted((root, path) for path, root in found.items())


def _named(inputs) -> Iterator[tuple[str, Path]]:
    taken = set()
    for root, path in _files(inputs):
        parts = path.relative_to(root)
        name = safe("__".join((parts.with_suffix("") if path.is_file() else parts).parts))
        while name in taken:
            name += "-again"
        taken.add(name)
        yield name, path


def safe(name: str) -> str:
    return re.sub(r"[^\w.+-]", "_", name, flags=re.ASCII)


def _person(name: str) -> str:
    return name.rsplit("__", 1)[0]


def _style(stem: str) -> tuple[str, str] | None:
    for pattern, person, licence in STYLES:
        if match := re.fullmatch(pattern, stem):
            return match.expand(person), licence
    return None


# Lists


class _Listed(NamedTuple):
    """A video that a list names; `stems` are its possible file names without suffix, the likeliest first."""

    name: str
    stems: tuple[str, ...]
    person: str
    segments: tuple[Segment, ...]


def _listed(path: Path, files) -> Listing:
    kind = next((kind for kind in LISTS if kind.matches(path)), None)
    if kind is None:
        raise UserError(f"{path}: not a list of HDTF (its folder), TalkingHead-1KH (text) or CelebV-HQ (JSON).")
    there = {file.stem: file for _, file in reversed(files) if file.is_file()}
    sources, missing = [], []
    try:
        entries = list(kind.read(path))
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path}: not a readable {kind.name} list ({error}); fetch it again.") from None
    for name, stems, person, segments in entries:
        file = next((there[stem] for stem in stems if stem in there), None)
        if file is None:
            missing.append((name, f"no file named {' or '.join(stems)}"))
            continue
        for number, layer in enumerate(_layers(segments)):
            layer_name = safe(name) + (f"-{number}" if number else "")
            sources.append(Source(layer_name, str(file), person, kind.licence, layer))
    return Listing(sorted(sources), missing)


def _layers(segments) -> list[tuple[Segment, ...]]:
    """Segments dealt out so that within a layer none overlap: each layer is one pass over the video."""
    layers = []
    for segment in sorted(segments, key=lambda s: (s.start, s.end, s.region or ())):
        layer = next((la for la in layers if la[-1].end <= segment.start), None)
        if layer is None:
            layers.append(layer := [])
        layer.append(segment)
    return [tuple(layer) for layer in layers]


def _table(path: Path) -> dict[str, list[str]]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].removesuffix(".mp4"): words[1:] for words in lines if words}


def _hdtf(folder: Path) -> Iterator[_Listed]:
    """Times by video; crop (left, width, top, height) by clip, at the height that `resolution` gives."""
    for times in sorted(folder.glob("*_annotion_time.txt")):
        part = times.name.split("_")[0]
        other = {what: folder / f"{part}_{what}.txt" for what in ("crop_wh", "resolution", "video_url")}
        crops, heights, urls = (_table(p) if p.exists() else {} for p in other.values())
        for name, spans in _table(times).items():
            height = int(heights.get(name, ["0"])[0])
            segments = []
            for number, span in enumerate(spans):
                start, end = (sum(60 * int(m) + int(s) for m, s in [t.split(":")]) for t in span.split("-"))
                crop = crops.get(f"{name}_{number}") if height else None
                left, w, top, h = map(int, crop) if crop else (0,) * 4
                region = (left, top, left + w, top + h) if crop else None
                segments.append(Segment(start, end, "seconds", region, (0, height)))
            identifier = [url.split("v=")[-1] for url in urls.get(name, [])]
            person = name if part == "RD" else name.rstrip("0123456789")
            yield _Listed(f"{part}_{name}", (f"{part}_{name}", name, *identifier), f"{part}_{person}", tuple(segments))


def _talking_head(path: Path) -> Iterator[_Listed]:
    """Frames first to last, inclusive, and a box in a picture of W x H."""
    videos = {}
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        name, *numbers = line.split(",")
        height, width, first, last, *box = map(int, numbers)
        segment = Segment(first, last + 1, "frames", tuple(box), (width, height))
        videos.setdefault(name, []).append(segment)
    for name, segments in videos.items():
        yield _Listed(name, (name,), re.sub(r"_\d{4}$", "", name), tuple(segments))


def _celebv(path: Path) -> Iterator[_Listed]:
    """Seconds, and a box in fractions of the picture."""
    videos = {}
    for clip in json.loads(path.read_text())["clips"].values():
        box = tuple(float(clip["bbox"][side]) for side in ("left", "top", "right", "bottom"))
        times = (float(clip["duration"][end]) for end in ("start_sec", "end_sec"))
        videos.setdefault(clip["ytb_id"], []).append(Segment(*times, "seconds", box, (1, 1)))
    for name, segments in videos.items():
        yield _Listed(name, (name,), name, tuple(segments))


class _Kind(NamedTuple):
    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Iterator[_Listed]]
    licence: str


def _first_line(path: Path) -> str:
    with open(path, errors="replace") as file:
        return file.readline()


LISTS = (
    _Kind("HDTF", lambda p: p.is_dir() and any(p.glob("*_annotion_time.txt")), _hdtf, f"HDTF: {UPLOADERS}"),
    _Kind("CelebV-HQ", lambda p: p.suffix == ".json", _celebv, STYLES[2][2]),
    _Kind("TalkingHead-1KH", lambda p: p.is_file() and _first_line(p).count(",") == 8, _talking_head, STYLES[1][2]),
)
