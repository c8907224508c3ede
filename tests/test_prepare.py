"""The whole way from videos to records: the toy world as raw footage, against its truth; faults, kills, hosts."""

import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import cv2
import jax
import numpy as np
import pytest
from conftest import tiny_model, training_data

from svdp_jax import config as configs, prepare
from svdp_jax.errors import UserError
from svdp_jax.faces import face, landmarks, masks
from svdp_jax.media import video
from svdp_jax.media.images import read_image
from svdp_jax.media.writer import VideoWriter
from svdp_jax.models.vae import PixelCodec
from svdp_jax.preparation import crops, encode, ingest, left
from svdp_jax.toy import footage
from svdp_jax.training import identity, preflight, records, step as training

SIZE, FRAMES, PEOPLE = 64, 25, 3
DRAWN = 128  # pixels; to render more takes most of the time
LOOP = ["--", "--runner=none"]
# Noses of the toy world stand further out than people's, so that its 34 degrees are read as up to 45.
EASED = ["--limit", "yaw=0:50", "--limit", "face=50"]


def options(films, out, *more, pairs="toy"):
    return [str(films), str(out), "--size", str(SIZE), "--codec", "pixels:4", "--pairs", pairs,
            "--landmarks", f"files:{films}", *EASED, *more]  # fmt: skip


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".contents.json")  # holds times
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "films"
    footage.write(folder, PEOPLE, FRAMES / 25, DRAWN)
    return folder


@pytest.fixture(scope="module")
def out(films):
    folder = films.parent / "out"
    prepare.main(options(films, folder) + LOOP)
    return folder


@pytest.fixture(scope="module")
def clips(films, out):
    return left.Results(out).clips(ingest.find([str(films)]).sources)


def test_every_clip_comes_through(out, clips):
    assert [clip.name for clip in clips] == [f"person{i:03}-000" for i in range(PEOPLE)]
    assert all(clip.count == FRAMES and clip.fps == 25 for clip in clips)
    manifest = json.loads((out / "records" / "manifest.json").read_text())
    assert manifest["frames"] == PEOPLE * FRAMES and manifest["latents"] == [16, 16, 48]
    assert all(entry["driver"] not in ("", entry["name"]) for entry in manifest["clips"])
    page = (out / "report.html").read_text()
    assert "contact_sheet.png" in page and all(clip.name in page for clip in clips)
    assert read_image(out / "contact_sheet.png").shape[0] > 2 * PEOPLE * 100


def truth_in_crop(clip, size, driver=None):
    """True regions (f, size, size) bool by name, of the clip's person or of a driver in its place."""
    truth = footage.load(Path(clip.path))
    who = truth.identity if driver is None else footage.load(driver).identity
    frames = list(footage.regions(truth, who, clip.first, clip.count))
    shown = lambda mask: face.crop(np.repeat(mask[..., None], 3, 2).astype(np.uint8) * 255, clip.box, size)[..., 0] > 127
    return {name: np.stack([shown(frame[name]) for frame in frames]) for name in frames[0]}


def middle(mask):
    """The mean place of a region; of two regions, the middle between theirs."""
    count, parts = cv2.connectedComponents(mask.astype(np.uint8))
    places = [np.argwhere(parts == part).mean(0) @ [1j, 1] for part in range(1, count)]
    return np.mean(places)


def test_crops_and_masks_stand_where_the_truth_does(out, clips):
    """Centre within 3 % of the face's width; eyes, nose and mouth inside what is kept, all of them in all frames."""
    for clip in clips:
        film, truth = footage.load(Path(clip.path)), truth_in_crop(clip, SIZE)
        track = crops.unpack(np.load(left.frames_of(out, clip).with_suffix(".npy")))
        points = np.load(out / "masks" / f"{clip.name}.npy")
        width = 2 * 0.56 * float(film.identity.face_width) * film.drawn / 2 * SIZE / clip.box.side
        eyes = (track.faces.left_eye + track.faces.right_eye) / 2
        assert (abs(eyes - [middle(mask) for mask in truth["eyes"]]) / width).mean() < 0.03
        assert (abs(track.faces.mouth - [middle(mask) for mask in truth["mouth"]]) / width).mean() < 0.03
        for index, frame in enumerate(points):
            kept = masks.mask(frame, SIZE)
            for name, region in truth.items():
                assert not (region[index] & ~kept).any(), name
        assert 0.02 < np.mean([masks.mask(frame, SIZE).mean() for frame in points]) < 0.25


def test_the_face_fills_half_of_the_crop(clips):
    for clip in clips:
        assert 0.4 < clip.facts["face"] / clip.box.side < 0.6


def test_drivers_are_other_people_in_the_same_motion(films, out, clips):
    for clip, driver in left.Results(out).paired(clips):
        a, b = (footage.load(films / f"{name[:9]}.mp4") for name in (clip.name, driver))
        expected = [face.crop(p, clip.box, SIZE) for p in footage.pictures(a, b.identity, clip.first, clip.count)]
        path, points = left.driver_of(out, clip, driver)
        kept = np.stack([masks.mask(frame, SIZE) for frame in points])
        shown = truth_in_crop(clip, SIZE, films / f"{driver[:9]}.mp4").values()
        assert not any((region & ~kept).any() for region in shown)
        error = np.abs(np.stack(list(crops.read(path))).astype(int) - np.stack(expected))
        assert error.mean() < 2.5 and len(points) == clip.count  # JPEG and nothing else
        target = np.stack(list(crops.read(left.frames_of(out, clip)))).astype(int)
        assert np.abs(target - np.stack(expected)).mean() > 4 * error.mean()


def test_drivers_that_were_never_recorded_say_so(out, clips):
    clip, driver = left.Results(out).paired(clips)[0]
    path, _ = left.driver_of(out, clip, driver)
    said = b"comment: Drawn by svdp_jax; not a recording of a real event"
    assert all(said in data for data in crops.encoded(path))
    assert not any(said in data for data in crops.encoded(left.frames_of(out, clip)))
    _, manifest = encode.read_manifest(out)
    assert all("Drawn by svdp_jax" in entry["driver_made_by"]["comment"] for entry in manifest["clips"])
    assert b"Drawn by svdp_jax" in (out / "contact_sheet.png").read_bytes()


def test_records_hold_what_was_cropped_and_masked(out, clips):
    folder, manifest = encode.read_manifest(out)
    layout, codec = encode.Layout(*manifest["latents"]), PixelCodec(4)
    entry, clip = manifest["clips"][1], clips[1]
    source = records.grain.sources.ArrayRecordDataSource([str(p) for p in encode.check_files(folder, manifest)])
    target, driving, seen = layout.unpack(source[entry["first"] + 5])
    picture = np.round((np.asarray(codec.decode(target.astype(np.float32))) + 1) * 127.5)
    assert (picture == next(crops.read(left.frames_of(out, clip), [5]))).all()
    path, points = left.driver_of(out, clip, entry["driver"])
    mask = masks.mask(points[5], SIZE)
    masked = np.round((np.asarray(codec.decode(driving.astype(np.float32))) + 1) * 127.5)
    assert (masked == face.mask_driving(next(crops.read(path, [5])), mask)).all()
    assert abs(seen.mean() / 255 - mask.mean()) < 0.01


def test_a_second_run_changes_nothing(films, out):
    before = content(out)
    prepare.main(options(films, out) + LOOP)
    assert content(out) == before


def test_one_stage_can_be_made_again(films, out, tmp_path):
    before = content(out)
    prepare.main([str(films), str(out), "--redo", "masks", "--stage", "masks", *LOOP])
    assert not (out / "records").exists() and not (out / "pairs").exists()
    prepare.main([str(films), str(out), *LOOP])
    assert content(out) == before


@pytest.fixture(scope="module")
def undisturbed(films):
    """A small preparation whose every stage is quick: the reference for those that are killed."""
    folder = films.parent / "undisturbed"
    prepare.main(options(films, folder, pairs="self") + LOOP)
    return content(folder)


def test_stopped_before_any_rename_it_ends_the_same(films, undisturbed, tmp_path, monkeypatch):
    """Stops where something is about to become visible, each time a little further."""

    class Stopped(BaseException):
        pass

    really = {"os": os.replace, "path": Path.rename}
    stops, left = 0, 0

    def counting(kind):
        def move(*paths):
            nonlocal left
            left -= 1
            if left == 0:
                raise Stopped
            return really[kind](*paths)

        return move

    monkeypatch.setattr(os, "replace", counting("os"))
    monkeypatch.setattr(Path, "rename", counting("path"))
    for left in [5, 2, 4, 1, 3] * 8:  # no job makes more than two such moves, so each five get further
        try:
            prepare.main(options(films, tmp_path / "out", pairs="self") + LOOP)
            left = 0
        except Stopped:
            stops += 1
            continue
        break
    assert stops > 10 and content(tmp_path / "out") == undisturbed


KILLED = """
import os, signal, sys
from svdp_jax import prepare
really, left = os.replace, int(sys.argv.pop(1))
def replace(*paths):
    global left
    left -= 1
    if left == 0: os.kill(os.getpid(), signal.SIGKILL)
    really(*paths)
os.replace = replace
prepare.main(sys.argv[1:])
"""


@pytest.mark.parametrize("moment", [4, 9])
def test_killed_it_ends_the_same(films, undisturbed, tmp_path, moment):
    command = [sys.executable, "-c", KILLED, str(moment), *options(films, tmp_path / "out", pairs="self"), *LOOP]
    killed = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True)
    assert killed.returncode == -signal.SIGKILL and content(tmp_path / "out") != undisturbed
    prepare.main(options(films, tmp_path / "out", pairs="self") + LOOP)
    assert content(tmp_path / "out") == undisturbed


def test_beam_gives_the_same_bytes(films, undisturbed, tmp_path):
    pytest.importorskip("apache_beam")
    prepare.main(options(films, tmp_path / "out", "--workers", "1", pairs="self"))
    assert content(tmp_path / "out") == undisturbed


def test_stopped_while_processes_work_they_say_nothing_and_are_gone(films, undisturbed, tmp_path):
    """By Ctrl-C, which a terminal sends to them as well, then by SIGTERM in a later stage; what they made is as ever."""
    pytest.importorskip("apache_beam")
    out, heard = tmp_path / "out", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # where these tests do not hear it
    command = [sys.executable, "-m", "svdp_jax.prepare", *options(films, out, "--workers", "2", pairs="self")]
    for number, name, stage in ((signal.SIGINT, "Ctrl-C", "faces"), (signal.SIGTERM, "SIGTERM", "masks")):
        process = subprocess.Popen(
            command, cwd=Path(__file__).parents[1], text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            start_new_session=True, preexec_fn=heard,
        )  # fmt: skip
        while process.poll() is None and not any((out / stage).glob("*.json")):
            time.sleep(0.02)
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=120)  # until nobody is left who could say more
        *bars, last = filter(None, re.split(r"[\r\n]+", said))
        assert last == f"prepare: stopped by {name}; the same command goes on where it was."
        assert process.returncode == 128 + number and all(re.match(r"\w+: +\d+%\|", bar) for bar in bars), said
    prepare.main(options(films, out, pairs="self") + LOOP)
    assert content(out) == undisturbed


def test_without_beam_the_fix_is_said(films, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(SystemExit):
        prepare.main(options(films, tmp_path / "out", "--workers", "1", pairs="self"))
    assert "--runner=none" in capsys.readouterr().err


def plain_film(path: Path, frames: int = 30, points: int = 64):
    """Noise of different kinds, and so many landmarks that claim a face in it."""
    random = np.random.default_rng(list(path.name.encode()))
    with VideoWriter(path, Fraction(25)) as writer:
        for _ in range(frames):
            writer.write(random.integers(0, 255, (72, 96, 3), np.uint8))
    marks, layout = np.full(points, 48 + 36j), landmarks.LAYOUTS[points]
    for part, at in zip((layout.left_eye, layout.right_eye, layout.nose, layout.mouth), (-15 - 15j, 15 - 15j, 0, 21j)):
        marks[part] += at + 8 * np.exp(2j * np.pi * np.arange(len(part)) / len(part))
    np.save(path.with_suffix(".npy"), np.tile(np.stack([marks.real, marks.imag], -1), (frames, 1, 1)))


def giant(path: Path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 4096
        container.mux(stream.encode(av.VideoFrame(4096, 4096, "yuv420p")) + stream.encode())


def test_a_broken_video_costs_itself_alone(tmp_path, monkeypatch, capsys):
    films = tmp_path / "films"
    films.mkdir()
    for number in range(10):
        plain_film(films / f"{number}.mp4")
    data = (films / "4.mp4").read_bytes()
    (films / "4.mp4").write_bytes(data[: len(data) // 2])
    giant(films / "big.mp4")
    np.save(films / "big.npy", np.load(films / "0.npy"))
    decoded, real = [], video._decode
    monkeypatch.setattr(video, "_decode", lambda path, *rest: decoded.append(Path(path).name) or real(path, *rest))
    limits = ["--limit", "face=10", "--limit", "sharpness=0"]
    prepare.main(options(films, tmp_path / "out", *limits, "--stage", "faces", pairs="self") + LOOP)
    prepare.main(options(films, tmp_path / "out", *limits, "--stage", "crops", pairs="self") + LOOP)
    said = capsys.readouterr().out
    assert "clips accepted: 0" in said and "rejected: video cannot be read: 2" in said
    page = (tmp_path / "out" / "report.html").read_text()
    assert "over the limit of 16,588,800 pixels" in page and "big.mp4" not in decoded
    found = left.Results(tmp_path / "out").clips(ingest.find([str(films)]).sources)
    assert sorted(clip.video for clip in found) == list("012356789")


@pytest.mark.parametrize("arguments,said", [
    (["--codec", "sd3:x", "--pairs", "self"], "sd3:x holds no converted weights"),
    (["--pairs", "self"], "no autoencoder"), (["--codec", "pixels:4"], "--pairs self"),
    (["--codec", "pixels:4", "--pairs", "self", "--size", "50"], "multiple of 4"),
    (["--codec", "pixels:4", "--pairs", "self", "--limit", "beauty=1"], "facts are"),
])  # fmt: skip
def test_what_would_fail_later_fails_first(films, tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        prepare.main([str(films), str(tmp_path / "out"), *arguments, *LOOP])
    assert stopped.value.code == 2 and said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_memory_is_flat_in_length(tmp_path):
    """A frame more costs a few numbers and its share of a thumbnail, never its landmarks, which are 1024 bytes."""
    peaks = []
    for frames in (250, 1000):
        films = tmp_path / str(frames)
        films.mkdir()
        plain_film(films / "a.mp4", frames)
        limits = ["--limit", "face=10", "--limit", "sharpness=0"]
        tracemalloc.start()
        for stage in ("faces", "crops"):
            prepare.main(options(films, tmp_path / f"out{frames}", *limits, "--stage", stage, pairs="self") + LOOP)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 750 * 512


# Training on records


def config(out, batch=4, **data):
    data = {"source": "records", "path": str(out), "size": SIZE, "frames": 3, "past": 2, "batch": batch} | data
    return configs.Config("tiny", tiny_model(), data=configs.Data(**data))


def test_any_number_of_hosts_reads_the_same_batches(out, tmp_path):
    for hosts in (1, 2, 4):
        share = 4 // hosts
        streams = [iter(training_data(config(out), tmp_path, [*range(h * share, (h + 1) * share)])) for h in range(hosts)]
        batches = [[next(stream) for stream in streams] for _ in range(12)]
        read = [{name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in batches]
        first = read if hosts == 1 else first  # noqa: F821
        assert all((a[name] == b[name]).all() for a, b in zip(first, read, strict=True) for name in a)
    shapes = {name: (part.shape, part.dtype) for name, part in first[0].items() if name != "problem"}
    latents = lambda *leading: ((4, *leading, 16, 16, 48), np.float16)
    assert shapes == {"source": latents(), "past": latents(2), "target": latents(3), "driving": latents(3),
                      "seen": ((4, 3, 16, 16, 1), np.uint8)}  # fmt: skip


def test_an_epoch_visits_every_stretch_once_and_the_next_in_another_order(out, tmp_path):
    whole = config(out, batch=1)
    count = len(records.open_records(whole).stretches)
    stream = iter(training_data(whole, tmp_path, [0]))
    epochs = [[hashlib.sha256(next(stream)["target"].tobytes()).hexdigest() for _ in range(count)] for _ in range(2)]
    assert count == PEOPLE * 7 and all(len(set(epoch)) == count for epoch in epochs) and epochs[0] != epochs[1]


def test_the_middle_of_an_epoch_is_gone_on_from(out, tmp_path):
    stream = iter(training_data(config(out), tmp_path, [0, 1, 2, 3]))
    for _ in range(5):
        next(stream)
    state, expected = stream.get_state(), [next(stream) for _ in range(5)]
    again = iter(training_data(config(out), tmp_path, [0, 1, 2, 3]))
    again.set_state(state)
    assert all((batch[name] == other[name]).all() for batch in expected for other in [next(again)] for name in batch)


def copied(out, folder):
    folder.mkdir()
    for path in (out / "records").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder, json.loads((folder / "manifest.json").read_text())


def test_other_codecs_and_damage_are_refused(out, tmp_path):
    copy, manifest = copied(out, tmp_path / "copy")
    records.open_records(config(copy))
    with pytest.raises(UserError, match="prepared with size"):
        records.open_records(config(copy, size=32))
    coarse = dataclasses.replace(config(copy), model=dataclasses.replace(tiny_model(), codec=configs.Codec("pixels", 8)))
    with pytest.raises(UserError, match="prepared with codec"):
        records.open_records(coarse)
    with pytest.raises(UserError, match="no clip of"):
        records.open_records(config(copy, frames=99))
    shard = copy / manifest["shards"][0]["file"]
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match="not whole"):
        records.open_records(config(copy))
    with pytest.raises(UserError, match="no finished records"):
        records.open_records(config(tmp_path))


def test_a_run_goes_on_with_the_records_it_began_with(out, tmp_path):
    """Wherever they lie now; others are refused, unless that is asked for."""
    run, (copy, manifest) = tmp_path / "run", copied(out, tmp_path / "copy")
    (run / "checkpoints" / "1").mkdir(parents=True)
    identity.write(run, config(out))
    assert identity.changes(run, config(copy)) == []
    encode.write_json(copy / "manifest.json", manifest | {"note": "changed"})
    assert identity.changes(run, config(copy)) == ["what config.data.path names is not what it was started with"]
    with pytest.raises(UserError, match="what config.data.path names .* --force-resume"):
        preflight.check(config(copy), run)
    preflight.check(config(copy), run, force=True)


def test_training_takes_records_as_it_takes_pictures(out, tmp_path):
    batch = next(iter(training_data(config(out), tmp_path, [0, 1, 2, 3])))
    del batch["problem"]
    codec = PixelCodec(4)
    shown = lambda latents: np.round((np.asarray(codec.decode(latents.astype(np.float32))) + 1) * 127.5).astype(np.uint8)
    pictures = {name: shown(part) for name, part in batch.items() if name != "seen"}
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "context"))
    with jax.set_mesh(mesh):
        put = lambda parts: {name: jax.numpy.asarray(part) for name, part in parts.items()}
        ours = training.as_latents(codec, put(batch), jax.numpy.float32)
        theirs = training.as_latents(codec, put(pictures), jax.numpy.float32)
    assert sorted(ours) == sorted(theirs)
    assert all(np.abs(ours[name] - theirs[name]).max() < 5e-3 for name in ours if name != "seen")
    # A kept pixel may be grey by chance, which only the mask knows to be kept.
    assert np.abs(ours["seen"] - theirs["seen"]).mean() < 0.01
