"""Evaluation as a user starts it: folders of videos that fit, or do not, and what is written about them."""

import json
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from conftest import REAL
from flax import nnx
from torch_reference import library

import convert.__main__ as command
from svdp_jax import config as configs, evaluate, prepare
from svdp_jax.animator import Animator
from svdp_jax.errors import UserError
from svdp_jax.evaluation import clips, coding, measure, metrics, reenact, report, unseen
from svdp_jax.faces import face, masks
from svdp_jax.faces.framing import LivePortraitFraming, Portrait
from svdp_jax.media import video
from svdp_jax.media.images import resize
from svdp_jax.media.writer import VideoWriter
from svdp_jax.models.metric_nets import ArcFaceConfig, I3DConfig, LPIPSConfig, SyncNetConfig
from svdp_jax.preparation import encode
from svdp_jax.weights import checkpoint

SIZE = 160
NETWORKS = {
    "lpips_alex": LPIPSConfig("alex", 4),
    "lpips_vgg": LPIPSConfig("vgg", 2),
    "i3d": I3DConfig(6, 4),
    "arcface": ArcFaceConfig((1, 1, 1, 1), 4, 8),
    "syncnet": SyncNetConfig(4, 8),
}


def noise(count, size=(48, 40), seed=0):
    """Frames (f y x 3) of blobs that move."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    return [resize(x, size) for x in coarse]


def write(path, images, fps=Fraction(25), sound=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps, sound) as writer:
        for image in images:
            writer.write(image)


# Matching


@pytest.fixture
def folders(tmp_path):
    for name in ("good", "missing", "short", "other_fps", "same_count", "small", "wide"):
        write(tmp_path / "truth" / f"{name}.mp4", noise(30), Fraction(30))
    made = {
        "good": (30, 30, (48, 40)),
        "short": (26, 30, (48, 40)),
        "other_fps": (25, 25, (48, 40)),
        "same_count": (30, 25, (48, 40)),
        "small": (30, 30, (24, 20)),
        "wide": (30, 30, (60, 40)),
        "extra": (30, 30, (48, 40)),
    }
    for name, (frames, fps, size) in made.items():
        write(tmp_path / "out" / f"{name}.mp4", noise(frames, size), Fraction(fps))
    return clips.Folders(tmp_path / "out", tmp_path / "truth")


def test_each_clip_is_matched_or_refused_with_the_reason(folders):
    matched, refused = clips.match(folders)
    found = {clip.name: clip for clip in matched}
    assert found.keys() == {"good", "other_fps", "same_count", "small"} and not found["good"].notes
    assert "nearest in time" in found["other_fps"].notes[0] and found["other_fps"].frames == 25
    np.testing.assert_array_equal(found["other_fps"].places["reference"], np.round(np.arange(25) * 1.2))
    assert "frame by frame" in found["same_count"].notes[0]
    assert found["small"].notes == ("scaled from 24x20 to the 48x40 pixels of the reference",)
    assert found["small"].size == (48, 40)
    assert refused.keys() == {"missing", "short", "wide", "extra"}
    assert refused["missing"] == "no result of this name"
    assert refused["short"] == "26 frames (0.87 s) against 30 (1.00 s) of the reference"
    assert "60x40 pixels against 48x40" in refused["wide"] and "nothing of this name" in refused["extra"]


def test_frames_matched_in_time_are_the_nearest(folders):
    (clip,) = [clip for clip in clips.match(folders)[0] if clip.name == "other_fps"]
    truth = [frame.image for frame in video.read_frames(clip.paths["reference"])]
    for place, image in zip(clip.places["reference"], clips.frames(clip, "reference"), strict=True):
        np.testing.assert_array_equal(image, truth[place])


def test_stretches_cover_every_frame_once(folders):
    clip = clips.match(folders)[0][0]
    parts = [result for result, _ in clips.stretches(clip, ("result", "reference"))]
    assert [len(part) for part in parts] == [16, 14]
    overlapping = [part for (part,) in clips.stretches(clip, ("result",), overlap=1)]
    assert [len(part) for part in overlapping] == [17, 14]
    np.testing.assert_array_equal(overlapping[1][0], overlapping[0][-1])


def test_a_video_that_ends_early_is_not_cut_silently(folders, tmp_path):
    clip = clips.match(folders)[0][0]
    longer = clip._replace(frames=33, places={})
    with pytest.raises(UserError, match="ends after 30 frames, fewer"):
        list(clips.frames(longer, "result"))


# The report


def save_networks(folder):
    """Random networks of the metrics, as the converter would leave them."""
    random = np.random.default_rng(0)

    def draw(path, shape):
        if len(shape) > 1:
            return np.float32(random.normal(size=shape) / np.prod(shape[:-1]) ** 0.5)
        return np.float32(random.uniform(0.5, 1.5, shape) * (not path.endswith(("bias", "mean"))))

    for name, config in NETWORKS.items():
        network = nnx.eval_shape(lambda: checkpoint.NETWORKS[name][1](config, nnx.Rngs(0)))
        leaves = checkpoint.named(nnx.state(network))
        checkpoint.save_weights(folder / name, name, config, {p: draw(p, x.shape) for p, x in leaves.items()})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    save_networks(folder)
    return folder


def landmarks(count):
    """Eyes that move, as MediaPipe's mesh has them."""
    points = np.zeros((count, measure.MESH_POINTS, 2))
    for part, numbers in zip(metrics.Eyes._fields, measure.MESH):
        x, y = {"outer": (-20, 0), "inner": (20, 0), "top": (0, -6), "bottom": (0, 6), "iris": (3, 1)}[part]
        points[:, numbers] = [[60 + x, 70 + y], [110 - x if part in ("outer", "inner") else 110 + x, 70 + y]]
    points[:, measure.MESH.iris, 0] += 4 * np.sin(np.arange(count))[:, None]
    return points


@pytest.fixture(scope="module")
def talking(tmp_path_factory):
    """Folders of a face with sound, of the same again, and of its blurred twin."""
    if not REAL.is_dir():
        pytest.skip(f"real clips are not at {REAL}")
    folder = tmp_path_factory.mktemp("talking")
    path = REAL / "d18.mp4"
    frames = [resize(f.image, (SIZE, SIZE)) for f in video.read_frames(path, stop=32)]
    blurred = [resize(resize(x, (40, 40)), (SIZE, SIZE)) for x in frames]
    made = {"truth": frames, "same": frames, "blurred": blurred}
    for name, images in made.items():
        write(folder / name / "<clip>.mp4", images, Fraction(30), path)
        np.save(folder / name / "<clip>.npy", landmarks(32))
    return folder


def motion(batch):
    """In place of a network: pose and expression from mean colours."""
    means = batch.reshape(len(batch), -1, 3).mean(1)
    return means, np.tile(means, 21)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
    evaluate.main()


def test_same_videos_are_perfect_on_all_and_blurred_ones_on_none(weights, talking, tmp_path, monkeypatch, capsys):
    load = measure.load
    monkeypatch.setattr(measure, "load", lambda folder: load(folder) | {"motion": motion})
    run(monkeypatch, "--results", talking / "same", "--results", f"soft={talking / 'blurred'}",
        "--reference", talking / "truth", "--weights", weights, "--output", tmp_path / "out")  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    same, soft = results["same"], results["soft"]
    expected = set(metrics.METRICS) - {"leak"}
    assert set(same["metrics"]) == expected and "other people" in same["skipped"]["leak"]
    assert same["clips"][0]["faults"] == {} and same["refused"] == {}
    for name in expected:
        perfect, mean = metrics.METRICS[name].perfect, same["metrics"][name]["mean"]
        if perfect is not None:
            assert mean == pytest.approx(perfect, abs=1e-3), name
            if name not in ("gaze MAE", "eye MAE", "colour drift"):  # which blur leaves alone
                worse = soft["metrics"][name]["mean"] - mean
                assert worse > 0 if metrics.METRICS[name].better == "lower" else worse < 0, name
    text = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;clip&gt;" in text and "<clip>" not in text and text.count("<svg") > 8
    assert video.probe(tmp_path / "out/videos/soft/<clip>.mp4").frames == 32
    said = capsys.readouterr().out
    assert "| PSNR ↑ | 100 dB |" in said
    assert "same: 32 of 32 frames equal the reference; their PSNR is infinite and enters the mean as 100 dB." in said
    assert "soft: FVD is of 2 windows in 6 dimensions, too few to estimate it" in said and "soft: 32 of 32" not in said
    assert same["metrics"]["FVD"]["samples"] == 2 and "Videos differ in bit rate, which moves Sync and FVD" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def coarsely(path, images, codec, **options):
    """As another program would write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def test_files_coded_differently_are_told_and_recoded(tmp_path, monkeypatch, capsys):
    images = noise(20, (96, 64))
    coarsely(tmp_path / "truth" / "a.mp4", images, "libx264", crf="10")
    coarsely(tmp_path / "ours" / "a.avi", images, "mpeg4", qscale="2")
    (tmp_path / "ours" / "a.npy").write_bytes(b"landmarks")
    found = coding.coding(tmp_path / "ours" / "a.avi")
    size = sum(p.size for p in av.open(str(tmp_path / "ours" / "a.avi")).demux(video=0))
    assert found.codec == "mpeg4" and found.size == (96, 64) and found.kbps == pytest.approx(8 * size / 1000 / 0.8)
    arguments = ("--results", tmp_path / "ours", "--reference", tmp_path / "truth", "--weights", tmp_path / "none")
    run(monkeypatch, *arguments, "--output", tmp_path / "plain")
    said = capsys.readouterr().out
    assert (
        "ours: files are mpeg4, 96x64" in said
        and "Videos differ in codec" in said
        and "--recode codes all in one codec" in said
    )
    run(monkeypatch, *arguments, "--recode", "--output", tmp_path / "alike")
    said = capsys.readouterr().out
    assert "ours: files are h264, 96x64" in said and "Videos differ in codec" not in said
    plain, alike = (json.loads((tmp_path / out / "results.json").read_text())["ours"] for out in ("plain", "alike"))
    assert alike["files"]["reference"]["codec"] == ["h264"] and alike["clips"][0]["frames"] == 20
    assert alike["metrics"]["PSNR"]["mean"] != plain["metrics"]["PSNR"]["mean"]
    assert not list((tmp_path / "alike").glob("tmp*")) and (tmp_path / "ours" / "a.avi").is_file()
    place = tmp_path / "place"
    place.mkdir()
    folder = coding.recoded(clips.Folders(tmp_path / "ours"), place, {}).result
    assert sorted(p.name for p in folder.iterdir()) == ["a.mp4", "a.npy"]  # landmarks go along


def test_missing_weights_are_skipped_with_the_way_to_get_them(folders, tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--results", folders.result, "--reference", folders.reference,
        "--weights", tmp_path / "none", "--output", tmp_path / "report")  # fmt: skip
    out = capsys.readouterr().out
    assert "Skipped CSIM, identity drift" in out and "python -m convert arcface SRC" in out
    assert "short refused, 26 frames" in out and "| L1 ↓ |" in out


def test_worst_clip_comes_first():
    def scored(name, l1, psnr):
        clip = clips.Clip(name, {}, 1, Fraction(25), (1, 1), {}, ())
        return measure.Scored(clip, {"L1": l1, "PSNR": psnr}, {}, {})

    ordered = report.worst_first([scored("good", 0.1, 30), scored("bad", 0.3, 10), scored("fair", 0.2, 20)])
    assert [s.clip.name for s in ordered] == ["bad", "fair", "good"]


def test_a_foreign_folder_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="is no evaluation's"), report.whole(tmp_path / "mine"):
        pass
    with pytest.raises(ZeroDivisionError), report.whole(tmp_path / "new") as partial:
        (partial / "half").write_text("x")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name what to score"),
        (["--results", "nowhere", "--reference", "nowhere"], "nowhere is not a folder"),
        (["--results", "nowhere"], "something to be compared with"),
        (["--results", "a/../..=nowhere", "--reference", "x"], "a name of its own"),
        (["--checkpoint", "nowhere"], "holds no model"),
        (["--method", "liveportrait"], "needs --data"),
        (["--method", "liveportrait", "--data", "."], "holds no video"),
        (["--results", "x", "--reference", "x", "--landmarks", "windows"], "give mediapipe:MODEL.task"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# Gaze from a model that finds landmarks


def test_gaze_by_a_model(tmp_path, monkeypatch):
    """Eyes whose irises stand where the red of a frame says; in a black one no face is seen."""

    def find(image):
        red = float(image[..., 0].mean())
        points = (landmarks(1)[0] @ [1, 1j]).astype(complex)
        points[measure.MESH.iris] = [60 + 70j + (red - 128) / 16, 110 + 70j + (red - 128) / 16]
        return points if red > 20 else None

    monkeypatch.setattr(masks, "_landmarker", lambda model: find)
    plain = lambda red: np.full((40, 48, 3), (red, 90, 90) if red else 0, np.uint8)
    write(tmp_path / "truth" / "a.mp4", [plain(128)] * 4)
    write(tmp_path / "out" / "a.mp4", [plain(192), plain(192), plain(0), plain(192)])
    (clip,), _ = clips.match(clips.Folders(tmp_path / "out", tmp_path / "truth"))
    missing = measure.unusable("gaze MAE", {}, clip, tmp_path)
    assert "--landmarks mediapipe:face_landmarker.task" in missing and "beside each" in missing
    calls = measure.mesh("mediapipe:any.task")
    assert measure.unusable("gaze MAE", calls, clip, tmp_path) is None
    reader = measure.Reader(clip, calls)
    errors = metrics.gaze_error(reader.feature("gaze result"), reader.feature("gaze driving"))
    expected = np.rad2deg(np.arcsin(4 / (40 * metrics.EYEBALL)))  # 4 pixels on a ball in an opening of 40
    np.testing.assert_allclose(errors, expected, rtol=0.05)  # within what the coding of red leaves


# Reenactment


def test_pairs_are_of_the_same_or_of_other_people(tmp_path):
    for name in ("ann/1.mp4", "ann/2.mp4", "bob/1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    known = lambda folder: configs.Data(source="videos", path=str(folder))
    found = unseen.find(tmp_path, known(tmp_path / "elsewhere")).clips
    own = reenact.paired(found, "self")
    assert [p.driving.name for p in own] == ["ann_1", "ann_2", "bob_1"] and all(p.source == p.driving for p in own)
    people = [(p.source.person, p.driving.person) for p in reenact.paired(found, "cross")]
    assert people == [("bob", "ann"), ("bob", "ann"), ("ann", "bob")]
    with pytest.raises(UserError, match="two people"):
        reenact.paired(found[:2], "cross")
    clips, refused, _ = unseen.find(tmp_path, known(tmp_path / "ann"))
    assert [clip.name for clip in clips] == ["bob_1"] and refused.keys() == {"ann_1", "ann_2"}
    with pytest.raises(UserError, match="the model was trained on"):
        unseen.find(tmp_path, known(tmp_path))
    (tmp_path / "bob_1.mp4").touch()
    with pytest.raises(UserError, match="both be called bob_1"):
        unseen.find(tmp_path, known("elsewhere"))


class Mirror:
    """In place of an engine: shows the source for ever, and keeps what it was given."""

    name, framing, fingerprint, data = "mirror", Portrait(64), "of a mirror", configs.Data(size=64)

    def __init__(self):
        self.given = []

    def play(self, source, driving):
        self.given.append((source, []))
        for frame in driving:
            self.given[-1][1].append(frame.masked)
            yield source.crop


def test_a_folder_is_reenacted_and_scored(portraits, tmp_path):
    for name in ("d18", "d19"):
        frames = video.read_frames(portraits / f"{name}.mp4", stop=4)
        write(tmp_path / "data" / f"{name}.mp4", [frame.image for frame in frames])
    write(tmp_path / "data" / "faceless.mp4", noise(4, (96, 96)))
    pairs = reenact.paired(unseen.find(tmp_path / "data", Mirror.data).clips, "self")
    methods, refused = reenact.reenact([reenact.animated(Animator(Mirror()))], pairs, 64, "self", tmp_path / "made")
    assert refused["mirror"].keys() == {"faceless"} and "no face" in refused["mirror"]["faceless"]
    out = tmp_path / "out"
    out.mkdir()
    results = evaluate.score(methods, refused, {}, tmp_path / "none", out)["mirror"]
    assert {clip["name"] for clip in results["clips"]} == {"d18", "d19"}
    assert results["refused"] == refused["mirror"] and 10 < results["metrics"]["PSNR"]["mean"] < 60
    assert all(clip["frames"] == 4 and clip["size"] == (64, 64) for clip in results["clips"])


BLOBS = 4  # frames
RING = np.exp(2j * np.pi * np.arange(16) / 16)
MARKS = np.concatenate([48 + 36j + 30 * at + 8 * RING for at in (-0.5 - 0.5j, 0.5 - 0.5j, 0, 0.7j)])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A preparation, without its last stages, of blobs that landmarks call faces: two people, three clips."""
    films = tmp_path_factory.mktemp("prepared") / "films"
    for seed, name in enumerate(("ann/1", "ann/2", "bob/1")):
        first, last = (x.astype(float) for x in noise(2, (96, 72), seed))  # a glide between them is one shot
        write(
            films / f"{name}.mp4", [(first + share * (last - first)).astype(np.uint8) for share in np.linspace(0, 0.1, BLOBS)]
        )
        np.save(films / f"{name.replace('/', '__')}.npy", np.tile(np.stack([MARKS.real, MARKS.imag], -1), (BLOBS, 1, 1)))
    out, gates = films.with_name("out"), ("face=10", "sharpness=0", "seconds=0", "frozen=0:1")
    given = [str(films), str(out), "--size", "64", "--landmarks", f"files:{films}", "--codec", "pixels:4",
             *(word for gate in gates for word in ("--limit", gate)), "--pairs", "self"]  # fmt: skip
    for stage in ("faces", "crops", "masks"):
        prepare.main([*given, "--stage", stage, "--", "--runner=none"])
    return out


def test_the_stored_crops_and_masks_are_evaluated(prepared, tmp_path):
    found = unseen.find(prepared, configs.Data())
    assert [(c.name, c.person) for c in found.clips] == [("ann__1-000", "ann"), ("ann__2-000", "ann"), ("bob__1-000", "bob")]
    mirror = Mirror()
    methods, refused = reenact.reenact(
        [reenact.animated(Animator(mirror))], reenact.paired(found.clips, "cross"), found.size, "cross", tmp_path / "made"
    )
    assert refused == {"mirror": {}} and found.size == 64
    crops = [[f.crop for f in c.portrait(64).frames()] for c in found.clips]
    for index, (source, masked) in enumerate(mirror.given):
        np.testing.assert_array_equal(source.crop, crops[0 if index == 2 else 2][0])
        for crop, shown in zip(crops[index], masked, strict=True):
            kept = (shown != face.GREY).any(-1)
            np.testing.assert_array_equal(shown[kept], crop[kept])
            assert 0.03 < kept.mean() < 0.4
    track = found.clips[0].portrait(64).track
    assert kept[tuple(int(x) for x in (track.faces.mouth[0].imag, track.faces.mouth[0].real))]
    (clip, *_), _ = clips.match(methods["mirror"])
    assert (clip.frames, clip.fps, clip.size) == (BLOBS, 25, (64, 64))


def test_people_of_the_training_records_are_left_out(prepared, tmp_path, caplog):
    gone = configs.Data(source="records", path=str(tmp_path / "gone"))
    assert not unseen.find(prepared, gone).refused and "nobody can be left out" in caplog.text
    trained = configs.Data(source="records", path=str(tmp_path))
    with pytest.raises(UserError, match="no finished records"):
        unseen.find(prepared, trained)
    encode.write_json(tmp_path / "manifest.json", {"kind": "svdp_jax records", "clips": [{"person": "ann"}]})
    clips, refused, _ = unseen.find(prepared, trained)
    assert [clip.name for clip in clips] == ["bob__1-000"] and refused == dict.fromkeys(
        ("ann__1-000", "ann__2-000"), unseen.SEEN
    )
    on_videos = configs.Data(source="videos", path=str(prepared.with_name("films") / "bob"))
    assert unseen.find(prepared, on_videos).refused.keys() == {"bob__1-000"}


# LivePortrait as a method


def test_the_baseline_stands_in_the_source_crop(prepared, tmp_path, monkeypatch):
    """Where LivePortrait changes nothing, the source comes back as it was."""

    class Same:
        name, fingerprint, framing = "same", "none", LivePortraitFraming()
        play = lambda self, source, driving: (source.crop for _ in driving)

    checkpoint.save_weights(tmp_path / "liveportrait", "arcface", NETWORKS["arcface"], {"x": np.zeros(1, np.float32)})
    monkeypatch.setattr(reenact.LivePortraitEngine, "load", lambda folder: Same())
    portrait = unseen.find(prepared, configs.Data()).clips[0].portrait(64)
    made = list(reenact.baseline(tmp_path).make(portrait, portrait))
    assert len(made) == BLOBS and np.abs(made[-1].astype(int) - portrait.first()).mean() < 1.5


@pytest.fixture(scope="module")
def liveportrait(tmp_path_factory):
    """Random small LivePortrait, published as the real one is and converted."""
    library("torch")
    import liveportrait_reference as reference
    from test_pairs import TINY

    folder = tmp_path_factory.mktemp("liveportrait")
    published = reference.write(reference.randomized(TINY), TINY, folder / "published")
    assert command.main(["liveportrait", str(published), str(folder / "weights" / "liveportrait")]) == 0
    return folder / "weights"


@pytest.mark.parametrize("protocol", reenact.PROTOCOLS)
def test_liveportrait_beside_a_model(prepared, liveportrait, tmp_path, monkeypatch, capsys, protocol):
    monkeypatch.setattr(evaluate.Animator, "load", lambda folder: Animator(Mirror()))
    run(monkeypatch, "--checkpoint", "mirror", "--method", "liveportrait", "--data", prepared,
        "--weights", liveportrait, "--protocol", protocol, "--output", tmp_path / "out")  # fmt: skip
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results.keys() == {"mirror", "liveportrait"} and not results["liveportrait"]["refused"]
    assert [c["frames"] for c in results["liveportrait"]["clips"]] == [BLOBS] * 3
    psnr = [m["metrics"].get("PSNR") for m in results.values()]
    assert all(psnr) if protocol == "self" else "true videos" in results["liveportrait"]["skipped"]["PSNR"]
    said = capsys.readouterr().out
    assert "| mirror (3 clips) | liveportrait (3 clips) |" in said
    assert "liveportrait: APD fails on 3 clips; the first: " in said and "no face is found" in said
    frames = lambda name: np.stack([f.image for f in video.read_frames(tmp_path / "out/generated" / name / "bob__1-000.mp4")])
    still, moving = frames("mirror").astype(int), frames("liveportrait").astype(int)
    assert (
        np.abs(still - moving).mean() > 3 and np.abs(np.diff(moving, axis=0)).mean() > 3 * np.abs(np.diff(still, axis=0)).mean()
    )


def test_another_size_and_missing_weights_are_refused(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Mirror, "framing", Portrait(32))
    monkeypatch.setattr(evaluate.Animator, "load", lambda folder: Animator(Mirror()))
    for arguments, words in (
        (["--checkpoint", "mirror"], "prepared with --size 64, but the model's pictures have 32"),
        (["--method", "liveportrait", "--weights", tmp_path], "then python -m convert liveportrait SRC"),
    ):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments, "--data", prepared, "--output", tmp_path / "out")
        assert words in capsys.readouterr().err
