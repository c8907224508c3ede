"""Evaluation as a user starts it: folders of videos that fit, or do not, and what is written about them."""

import json
import sys
from fractions import Fraction

import numpy as np
import pytest
from conftest import REAL, tiny_model
from flax import nnx

from svdp_jax import checkpoint, clips, config as configs, evaluate, measure, metrics, reenact, report
from svdp_jax.data import video
from svdp_jax.errors import UserError
from svdp_jax.models.metric_nets import ArcFaceConfig, I3DConfig, LPIPSConfig, SyncNetConfig

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
    return [video.resize(x, size) for x in coarse]


def write(path, images, fps=Fraction(25), sound=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with video.VideoWriter(path, fps, sound) as writer:
        for image in images:
            writer.write(image)


# Matching


@pytest.fixture
def folders(tmp_path):
    for name in ("good", "missing", "short", "other_fps", "same_count", "small", "wide"):
        write(tmp_path / "truth" / f"{name}.mp4", noise(30), Fraction(30))
    made = {
        "good": (30, 30, (48, 40)), "short": (26, 30, (48, 40)), "other_fps": (25, 25, (48, 40)),
        "same_count": (30, 25, (48, 40)), "small": (30, 30, (24, 20)), "wide": (30, 30, (60, 40)),
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
    overlapping = [part for part, in clips.stretches(clip, ("result",), overlap=1)]
    assert [len(part) for part in overlapping] == [17, 14]
    np.testing.assert_array_equal(overlapping[1][0], overlapping[0][-1])


def test_a_video_that_ends_early_is_not_cut_silently(folders, tmp_path):
    clip = clips.match(folders)[0][0]
    longer = clip._replace(frames=33, places={})
    with pytest.raises(UserError, match="ends after 30 frames, fewer"):
        list(clips.frames(longer, "result"))


# The report


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random networks, as the converter would leave them."""
    folder, random = tmp_path_factory.mktemp("weights"), np.random.default_rng(0)

    def draw(path, shape):
        if len(shape) > 1:
            return np.float32(random.normal(size=shape) / np.prod(shape[:-1]) ** 0.5)
        return np.float32(random.uniform(0.5, 1.5, shape) * (not path.endswith(("bias", "mean"))))

    for name, config in NETWORKS.items():
        network = nnx.eval_shape(lambda: checkpoint.NETWORKS[name][1](config, nnx.Rngs(0)))
        leaves = checkpoint.named(nnx.state(network))
        checkpoint.save_weights(folder / name, name, config, {p: draw(p, x.shape) for p, x in leaves.items()})
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
    frames = [video.resize(f.image, (SIZE, SIZE)) for f in video.read_frames(path, stop=32)]
    blurred = [video.resize(video.resize(x, (40, 40)), (SIZE, SIZE)) for x in frames]
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
    assert "| PSNR ↑ | 100 dB |" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


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
        (["--checkpoint", "nowhere"], "holds no trained model"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# Reenactment


def test_pairs_are_of_the_same_or_of_other_people(tmp_path):
    for name in ("ann/1.mp4", "ann/2.mp4", "bob/1.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    data = configs.Data(source="videos", path=str(tmp_path / "elsewhere"))
    own = reenact.unseen(tmp_path, "self", data)
    assert [p.name for p in own] == ["ann_1", "ann_2", "bob_1"] and all(p.source == p.driving for p in own)
    cross = reenact.unseen(tmp_path, "cross", data)
    people = [(p.source.parent.name, p.driving.parent.name) for p in cross]
    assert people == [("bob", "ann"), ("bob", "ann"), ("ann", "bob")]
    with pytest.raises(UserError, match="two people"):
        reenact.unseen(tmp_path / "ann", "cross", data) and reenact.another(0, ["ann", "ann"])
    with pytest.raises(UserError, match="the model was trained on"):
        reenact.unseen(tmp_path / "ann", "self", configs.Data(source="videos", path=str(tmp_path)))


class Mirror:
    """In place of a model: shows the source for ever."""

    config = configs.Config("mirror", tiny_model(), configs.Data(size=64))
    provenance = {"comment": "a mirror"}

    def generate(self, source, driving):
        return (source for _ in driving)


def test_a_folder_is_reenacted_and_scored(portraits, tmp_path, monkeypatch):
    for name in ("d18", "d19"):
        frames = video.read_frames(portraits / f"{name}.mp4", stop=4)
        write(tmp_path / "data" / f"{name}.mp4", [frame.image for frame in frames])
    write(tmp_path / "data" / "faceless.mp4", noise(4, (96, 96)))
    pairs = reenact.unseen(tmp_path / "data", "self", Mirror.config.data)
    methods, refused = reenact.reenact(Mirror(), pairs, "self", tmp_path / "made")
    assert refused.keys() == {"faceless"} and "no face" in refused["faceless"]
    out = tmp_path / "out"
    out.mkdir()
    results = evaluate.score(methods, refused, tmp_path / "none", out)["mirror"]
    assert {clip["name"] for clip in results["clips"]} == {"d18", "d19"}
    assert results["refused"] == refused and 10 < results["metrics"]["PSNR"]["mean"] < 60
    assert all(clip["frames"] == 4 and clip["size"] == (64, 64) for clip in results["clips"])
