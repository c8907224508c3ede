"""A preparation told again after any change, and stopped on the way, ends with the bytes of a fresh one.

One folder of tiny films and one preparation of it live through all CHANGES; after each, the preparation is
stopped once, at the stage that is next in turn, ended, and held against a fresh one of the same films.
"""

import itertools
import json
import os
import re
import shutil
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from test_prepare import LOOP, content

from svdp_jax import files, prepare
from svdp_jax.evaluation import unseen
from svdp_jax.media import video
from svdp_jax.media.writer import VideoWriter
from svdp_jax.preparation import alike, contents, crops, drivers, encode, left, stages, work
from svdp_jax.toy import footage

FRAMES, PADDED = 4, 1 << 15  # of a film; bytes
RING = np.exp(2j * np.pi * np.arange(16) / 16)
MARKS = np.concatenate([48 + 36j + 30 * at + 8 * RING for at in (-0.5 - 0.5j, 0.5 - 0.5j, 0, 0.7j)])
GATES = ["face=10", "sharpness=0", "seconds=0", "frozen=0:1"]


def film(path: Path, seed: int) -> None:
    """Blobs that landmarks call a face, and a truth as of the toy world; every film of one size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, last = np.random.default_rng(seed).integers(0, 256, (2, 9, 12, 3)).astype(np.uint8)
    with VideoWriter(path, Fraction(25)) as writer:
        for share in np.linspace(0, 0.1, FRAMES):  # a glide is one shot
            writer.write(cv2.resize(cv2.addWeighted(first, 1 - share, last, share, 0), (96, 72), interpolation=cv2.INTER_CUBIC))
    space = PADDED - path.stat().st_size
    with open(path, "ab") as file:
        file.write(space.to_bytes(4) + b"free" + bytes(space - 8))
    landmarks(path, MARKS)
    footage.truth_path(path).write_bytes(bytes([seed % 256]))


def landmarks(path: Path, marks: np.ndarray, frames: int = FRAMES) -> None:
    name = "__".join(path.with_suffix("").parts[-2:])
    np.save(path.parents[1] / f"{name}.npy", np.tile(np.stack([marks.real, marks.imag], -1), (frames, 1, 1)))


def maker(reads) -> drivers.Maker:
    """In place of networks: B's frames, shifted by what is read."""

    def make(a, b, size):
        for frame in itertools.islice(itertools.cycle(crops.read(b.frames)), a.clip.count):
            yield np.roll(frame, reads(b), 1)

    points = lambda a, b, frames, size: np.full((a.clip.count, 64), size / 2 + size / 2j) + size / 4 * np.tile(RING, 4)
    return drivers.Maker(make, points, lambda a, b, frames: "")


class Stopped(BaseException):
    pass


class World:
    """A folder of films, and the options that are given."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch):
        self.films, self.out, self.weights, self.patch = folder / "films", folder / "out", folder / "weights", patch
        self.options = {"size": 32, "codec": "pixels:4", "pairs": "toy", "landmarks": f"files:{self.films}", "limit": GATES}
        film(self.films / "ann/1.mp4", 1)
        film(self.films / "ann/2.mp4", 2)
        film(self.films / "dan/1.mp4", 4)
        self.whole = (self.films / "dan/1.mp4").read_bytes()
        (self.films / "dan/1.mp4").write_bytes(self.whole[:1000])

    def prepare(self, out: Path, *more: str, videos=None, loop=LOOP) -> None:
        """Exit codes are errors said in a sentence: there may be nobody to drive anybody."""
        words = [
            word
            for name, values in self.options.items()
            for value in (values if isinstance(values, list) else [values])
            for word in (f"--{name}", str(value))
        ]
        try:
            prepare.main([*map(str, videos or [self.films]), str(out), *words, *more, *loop])
        except SystemExit as stopped:
            assert stopped.code == 2

    def stopped(self, out: Path, stage: stages.Entry) -> bool:
        """Prepares, and stops where a second file is about to appear in the folder of a stage. Whether one was."""
        really, left = os.replace, 2

        def replace(old, new):
            nonlocal left
            left -= (out / stage.folder) in Path(new).parents
            if left == 0:
                raise Stopped
            really(old, new)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                self.prepare(out)
            except Stopped:
                return True
        return False

    def set(self, **options) -> None:
        self.options |= {name.replace("_", "-"): value for name, value in options.items()}

    def learn(self, kind: int) -> None:
        """Weights of LivePortrait, in the one folder for them."""
        self.weights.mkdir(exist_ok=True)
        (self.weights / "config.json").write_text('{"network": "liveportrait", "config": {}}')
        (self.weights / "manifest.json").write_text(f"{kind}")
        self.set(pairs="liveportrait", pair_weights=self.weights)

    def finish_download(self) -> None:
        (self.films / "dan/1.mp4").write_bytes(self.whole)

    def replace(self) -> None:
        """Another film under the name, of the same size and time."""
        path = self.films / "bob/1.mp4"
        before = path.stat()
        film(path, 5)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size

    def move(self, old: str, new: str, do=os.rename) -> None:
        for suffix in (".mp4", ".toy.npz"):
            target = self.films / f"{new}{suffix}"
            target.parent.mkdir(exist_ok=True)
            do(self.films / f"{old}{suffix}", target)
        do(self.films / f"{old.replace('/', '__')}.npy", self.films / f"{new.replace('/', '__')}.npy")

    def remove(self, name: str) -> None:
        (self.films / f"{name}.mp4").unlink()

    def improve(self, stage: str) -> None:
        self.patch.setitem(stages.CODE, stage, stages.CODE[stage] + 1)

    def damage(self) -> None:
        """Files that somebody deleted, one cut off, and one that a crash of the machine left empty."""
        (self.out / "faces/ann__1.npy").unlink()
        (self.out / "crops/bob__2/000.frames").unlink()
        (self.out / "masks/ann__1-000.json").write_bytes(b"")
        (self.out / "pairs/dan__1-000.frames").write_bytes(b"cut off")
        (self.out / "records/frames-00001.array_record").unlink()


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    """Shards of a clip or two, makers without networks, times of files that are trusted at once, and none flushed."""
    monkeypatch.setattr(encode, "SHARD", FRAMES + 1)
    monkeypatch.setattr(contents, "STEP", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    true = lambda b: footage.truth_path(Path(b.clip.path)).read_bytes()[0]
    monkeypatch.setitem(work.MAKERS, "toy", lambda _: maker(true))
    monkeypatch.setitem(
        work.MAKERS, "liveportrait", lambda folder: maker(lambda _: int((Path(folder) / "manifest.json").read_text()))
    )
    return World(tmp_path, monkeypatch)


# What changes, and how many jobs of each stage are then done. Where clips change, so does what drives some others, and a
# shard holds two clips or three.
def jobs(faces=0, crops=0, masks=0, pairs=0, encoding=0):
    counts = dict(Faces=faces, Crops=crops, Masks=masks, Pairs=pairs, Encoding=encoding)
    return {title: count for title, count in counts.items() if count}


CHANGES = {
    "nobody to drive": (lambda w: None, jobs(3, 3, 2, 2)),
    "added": (lambda w: film(w.films / "bob/1.mp4", 3), jobs(1, 1, 1, 3, 2)),
    "downloaded": (World.finish_download, jobs(1, 1, 1, 4, 2)),
    "replaced": (World.replace, jobs(1, 1, 1, 4, 2)),
    "renamed": (lambda w: w.move("bob/1", "bob/2"), jobs(1, 1, 1, 4, 2)),
    "copied": (lambda w: w.move("dan/1", "eva/1", shutil.copy), jobs()),
    "copied before": (lambda w: w.move("dan/1", "cat/1", shutil.copy), jobs(1, 1, 1, 4, 2)),
    "copy removed": (lambda w: w.remove("cat/1"), jobs(1, 1, 1, 4, 2)),
    "removed": (lambda w: w.remove("ann/2"), jobs(0, 0, 0, 0, 2)),
    "landmarks": (lambda w: landmarks(w.films / "ann/1.mp4", MARKS + 3), jobs(1, 1, 1, 3, 2)),
    "longest": (lambda w: w.set(longest=0.1), jobs(3, 3, 6, 6, 2)),
    "longest as before": (lambda w: w.set(longest=1), jobs(3, 3, 3, 3, 2)),
    "size": (lambda w: w.set(size=48), jobs(0, 3, 3, 3, 2)),
    "limit": (lambda w: w.set(limit=[*GATES, "face=11"]), jobs(0, 3, 3)),
    "limit of masks": (lambda w: w.set(limit=[*GATES, "face=11", "yaw=0:41"]), jobs(0, 0, 3)),
    "self-driven": (lambda w: w.set(pairs="self"), jobs(0, 0, 0, 3, 2)),
    "other landmarks": (lambda w: w.set(landmarks="windows"), jobs(3, 3)),  # no face is found: no clip is left
    "as before": (lambda w: w.set(landmarks=f"files:{w.films}", pairs="toy"), jobs(3, 3, 3, 3, 2)),
    "truth": (lambda w: footage.truth_path(w.films / "ann/1.mp4").write_bytes(b"9"), jobs(0, 0, 0, 3, 1)),
    "seed": (lambda w: w.set(seed=3), jobs(0, 0, 0, 2, 2)),
    "other makers": (lambda w: w.learn(1), jobs(0, 0, 0, 3, 2)),
    "weights": (lambda w: w.learn(2), jobs(0, 0, 0, 3, 2)),
    "codec": (lambda w: w.set(codec="pixels:8"), jobs(0, 0, 0, 0, 2)),
    "licence": (lambda w: w.set(licence="CC BY 4.0"), jobs()),
    "code of faces": (lambda w: w.improve("faces"), jobs(3)),
    "code of crops": (lambda w: w.improve("crops"), jobs(0, 3)),
    "code of masks": (lambda w: w.improve("masks"), jobs(0, 0, 3)),
    "code of pairs": (lambda w: w.improve("pairs"), jobs(0, 0, 0, 3)),
    "code of encode": (lambda w: w.improve("encode"), jobs(0, 0, 0, 0, 2)),
    "damage": (World.damage, jobs(1, 1, 1, 1, 1)),
}


def done(said: str) -> dict[str, int]:
    return {title: int(count) for title, count in re.findall(r"^(\w+): (\d+) of \d+ \w+; ", said, re.M)}


def test_after_any_change_it_is_as_if_fresh(world, tmp_path, capsys):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    for (name, (change, expected)), stage in zip(CHANGES.items(), itertools.cycle(stages.STAGES.values())):
        change(world)
        capsys.readouterr()
        world.stopped(out, stage)
        before = done(capsys.readouterr().out)
        world.prepare(out)
        told = done(capsys.readouterr().out) | before
        world.prepare(fresh)
        assert content(out) == content(fresh), name
        assert told == expected, name
        shutil.rmtree(fresh)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_stopped_in_a_change_that_is_taken_back_nothing_is_mixed(world, tmp_path, stage):
    """A result that is half of the one and half of the other must not count as either."""
    out, entry = tmp_path / "out", stages.STAGES[stage]
    film(world.films / "bob/1.mp4", 3)
    world.prepare(out)
    before = content(out)
    world.set(longest=0.1, size=48, codec="pixels:8")
    assert world.stopped(out, entry)
    assert (out / "records" / encode.MANIFEST).exists() == (stage != "encode")
    world.set(longest=10, size=32, codec="pixels:4")
    world.prepare(out)
    assert content(out) == before


def test_stage_by_stage_each_needs_the_one_before(world, tmp_path, capsys):
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    film(world.films / "bob/1.mp4", 3)
    world.prepare(out)
    world.replace()
    before = content(out)
    world.prepare(out, "--stage", "masks")
    assert "needs what --stage faces makes, and 1 of 4 films" in capsys.readouterr().err
    assert content(out).items() >= {k: v for k, v in before.items() if "/" in k}.items()
    for stage in stages.STAGES:
        world.prepare(out, "--stage", stage)
    world.prepare(fresh)
    assert content(out) == content(fresh)


def test_beam_makes_the_same_again(world, tmp_path):
    pytest.importorskip("apache_beam")
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    film(world.films / "bob/1.mp4", 3)
    world.prepare(out)
    world.replace()
    world.prepare(out, loop=["--workers", "1"])
    world.prepare(fresh)
    assert content(out) == content(fresh)


# One film is one film


def listed(out: Path) -> dict:
    return {name: about["person"] for name, about in json.loads((out / left.FILMS).read_text()).items()}


def test_a_copy_and_a_link_are_the_film_and_this_is_said(world, tmp_path, capsys):
    film(world.films / "bob/1.mp4", 3)
    world.move("bob/1", "eva/1", shutil.copy)
    (world.films / "fay").symlink_to(world.films / "bob")
    (world.films / "again.mp4").symlink_to(world.films / "ann/1.mp4")
    (tmp_path / "link").symlink_to(world.films)
    world.prepare(tmp_path / "out", videos=[tmp_path / "link"])
    assert listed(tmp_path / "out") == {"ann__2": "ann", "again": "again", "bob__1": "bob", "dan__1": "dan"}
    assert "rejected: the same video again: 1" in capsys.readouterr().out
    assert "eva__1 (it is bob__1)" in (tmp_path / "out" / "report.html").read_text()
    for entry in json.loads((tmp_path / "out/records/manifest.json").read_text())["clips"]:
        assert entry["driver"].split("__")[0] != entry["person"]


def test_files_whose_download_has_not_begun_are_not_one_film(world, tmp_path):
    for name in ("x/1.mp4", "y/1.mp4"):
        (world.films / name).parent.mkdir()
        (world.films / name).write_bytes(b"")
    world.prepare(tmp_path / "out", "--stage", "faces")
    assert {"x__1", "y__1"} < listed(tmp_path / "out").keys()


def test_a_film_compressed_anew_does_not_drive_itself(world, tmp_path, capsys):
    """Smaller, darker and cut at its end, under another person's name."""
    film(world.films / "bob/1.mp4", 3)
    film(world.films / "eva/1.mp4", 3)
    frames = [frame.image for frame in video.read_frames(world.films / "bob/1.mp4")]
    with VideoWriter(world.films / "eva/1.mp4", Fraction(25)) as writer:
        for frame in frames[:-1]:
            writer.write(cv2.resize(frame, (80, 60), interpolation=cv2.INTER_AREA) // 2)
    landmarks(world.films / "eva/1.mp4", MARKS * 80 / 96, len(frames) - 1)
    world.prepare(tmp_path / "out")
    drivers_of = {e["person"]: e["driver"] for e in json.loads((tmp_path / "out/records/manifest.json").read_text())["clips"]}
    assert drivers_of["bob"].startswith("ann") and drivers_of["eva"].startswith("ann")
    assert "pairs of nearly identical videos, which do not drive each other: 1" in capsys.readouterr().out
    assert "bob__1 and eva__1" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("change", ["half", "15 frames a second", "second half"])
def test_copies_of_real_films_look_alike_and_people_do_not(portraits, change):
    ways = {
        "half": lambda images: [cv2.resize(i, None, fx=0.5, fy=0.5) for i in images],
        "15 frames a second": lambda images: images[::2],
        "second half": lambda images: images[len(images) // 2 :],
    }
    films = {path.stem: [f.image for f in video.read_frames(path)] for path in portraits.glob("*.mp4")}
    looks = {name: look(images) for name, images in films.items()}
    looks |= {f"{name} again": look(ways[change](images)) for name, images in films.items()}
    assert sorted(alike.pairs(looks)) == [("d18", "d18 again"), ("d19", "d19 again")]


def look(images) -> str:
    seen = alike.Look()
    for image in images:
        seen.see(image)
    return seen.hex()


# Folders that are not what they seem


def test_other_films_and_other_folders_are_left_alone(world, tmp_path, capsys):
    out, other = tmp_path / "out", tmp_path / "other"
    world.prepare(out)
    before = content(out)
    film(other / "zoe/1.mp4", 9)
    world.prepare(out, videos=[other])
    assert "was made of other videos" in capsys.readouterr().err and content(out) == before
    (other / "masks").mkdir()
    (other / "masks" / "mine.npy").write_bytes(b"mine")
    world.prepare(other)
    assert "no preparation is" in capsys.readouterr().err and (other / "masks" / "mine.npy").read_bytes() == b"mine"


def test_what_earlier_versions_made_is_read_and_not_gone_on_with(world, tmp_path, capsys):
    """Without what results are made from; what films are of whom stood with the clips."""
    out = tmp_path / "out"
    film(world.films / "bob/1.mp4", 3)
    world.prepare(out)
    fresh, films = content(out), json.loads((out / left.FILMS).read_text())
    (out / left.FILMS).unlink()
    for path in out.rglob("*.json"):
        about = json.loads(path.read_text())
        if "made_from" in about:
            del about["made_from"], about["files"]
        for clip in about.get("clips", []) if path.name == "clips.json" else []:
            del clip["digest"]
            clip |= {key: films[clip["video"]][key] for key in ("path", "person", "licence")}
        path.write_text(json.dumps(about))
    before = content(out)
    clips, size = unseen.prepared(out)
    assert [clip.person for clip in clips] == ["ann", "ann", "bob"] and size == 32
    assert len(list(clips[0].portrait(32).frames())) == FRAMES
    encode.check_files(*encode.read_manifest(out))
    world.prepare(out)
    said = capsys.readouterr().err
    assert "made by an earlier version" in said and "--redo faces" in said and content(out) == before
    world.prepare(out, "--redo", "faces")
    assert content(out) == fresh


def test_two_at_once_in_one_folder_are_one_too_many(world, tmp_path, capsys):
    with files.alone(tmp_path, "another preparation"):
        world.prepare(tmp_path)
    assert f"another preparation is at work in {tmp_path}; wait until it ends" in capsys.readouterr().err
    world.prepare(tmp_path)
    assert (tmp_path / "report.html").exists() and not (tmp_path / ".lock").exists()
