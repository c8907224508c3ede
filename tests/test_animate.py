"""The product, with a model that knows nothing: everything but the likeness is checked."""

import dataclasses
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import jax
import numpy as np
import pytest
from conftest import randomized, tiny_model
from flax import nnx
from test_face import canvas, draw, drawn_clip

import svdp_jax
from svdp_jax import animate, config as configs
from svdp_jax.animator import Animator
from svdp_jax.engines.engine import Step
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError
from svdp_jax.faces import face, follow, scene as scenes
from svdp_jax.media import video
from svdp_jax.media.images import read_image, write_image
from svdp_jax.media.writer import VideoWriter
from svdp_jax.models.liveportrait import LivePortrait, LivePortraitConfig
from svdp_jax.models.svdp import SVDP
from svdp_jax.weights import checkpoint, shipped

ROOT = Path(__file__).parents[1]
BACKBONE = dataclasses.replace(tiny_model().backbone, blocks=2)  # half the time to compile
CONFIG = configs.Config(
    "tiny",
    dataclasses.replace(tiny_model(), backbone=BACKBONE),
    data=configs.Data(size=16, frames=4, past=2),
    sampling=configs.Sampling(steps=2),
    dtype="float32",
)


LITTLE = LivePortraitConfig(
    channels=2, depth=2, appearance=(4, 4, 4), resblocks=1, motion=(4, 4, 4, 8), motion_blocks=(1, 1, 1, 1), compress=2,
    hourglass=(2, 4, 4), warped=4, generator=(8, 4, 4), middle=1, spade=4, shoulder=(8,), mouth=(8,), eye=(8,),
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> SVDP:
    return randomized(SVDP(CONFIG.model, nnx.Rngs(0)), 0.1)


@pytest.fixture(scope="module")
def engine(model) -> SVDPEngine:
    return SVDPEngine(CONFIG, model, checkpoint.load_codec(CONFIG.model.codec))


@pytest.fixture(scope="module")
def animator(engine) -> Animator:
    return Animator(engine)


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    _, weights, constants = nnx.split(model, nnx.Param, ...)
    checkpoint.save_model(folder / "model", CONFIG, weights, constants)
    return folder


@pytest.fixture(scope="module", params=["svdp", "liveportrait"])
def weights(request, trained, tmp_path_factory) -> Path:
    """A folder that a user names, of each kind: what is promised of `animate` is promised of both."""
    if request.param == "svdp":
        return trained
    folder = tmp_path_factory.mktemp("liveportrait") / "weights"
    network = randomized(LivePortrait(LITTLE, nnx.Rngs(0)), 0.1)
    checkpoint.save_weights(folder, "liveportrait", LITTLE, checkpoint.named(nnx.state(network)))
    return folder


@pytest.fixture(scope="module")
def either(weights) -> Animator:
    return Animator.load(weights)


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("before", [False, True])
def test_only_a_segment_that_nothing_comes_before_asks_for_no_past(engine, monkeypatch, before):
    """The first one, unless pictures of before it are given."""
    asked = []
    monkeypatch.setattr(
        engine, "advance", lambda state, x, times, weights, conditions: asked.append((set(weights), conditions["past"])) or x
    )
    past = np.moveaxis(pictures(2, 5), 1, 0) if before else None
    list(engine.generate(pictures(1)[0], pictures(8), past=past))
    assert [levels for levels, _ in asked] == [{0, 1, 2, 3} if before else {0, 1, 2}, {0, 1, 2, 3}]
    first = engine.encode(past) if before else np.zeros_like(asked[0][1])
    np.testing.assert_array_equal(asked[0][1], first)


def kind(weights: Path) -> str:
    return checkpoint.about(checkpoint.model_folder(weights))["network"]


def command(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["animate", *map(str, arguments)])
    animate.main()


def test_any_length_comes_out_as_long(engine):
    for length in (1, 4, 5, 11):
        frames = list(engine.generate(pictures(1)[0], pictures(length)))
        assert len(frames) == length and frames[0].shape == (1, 16, 16, 3)


def test_frames_come_segment_by_segment(engine):
    drawn = []
    stream = engine.generate(pictures(1)[0], (drawn.append(x) or x for x in pictures(12)))
    next(stream)
    assert len(drawn) == 4


def test_the_last_segment_is_padded_without_a_trace(engine):
    """The first frames do not depend on how the video goes on in the next segment."""
    short = list(engine.generate(pictures(1)[0], pictures(8)))
    long = list(engine.generate(pictures(1)[0], pictures(11)))
    assert all((a == b).all() for a, b in zip(short, long))


def test_the_past_of_a_segment_is_the_end_of_the_one_before(engine, monkeypatch):
    seen, original = [], engine.advance

    def spy(state, x, times, weights, conditions):
        out = original(state, x, times, weights, conditions)
        seen.append((np.asarray(conditions["past"]), np.asarray(out)))
        return out

    monkeypatch.setattr(engine, "advance", spy)
    list(engine.generate(pictures(1)[0], pictures(12)))
    assert not seen[0][0].any()
    for (_, before), (past, _) in zip(seen, seen[1:]):
        np.testing.assert_array_equal(past, before[:, -2:])


def test_one_shape_compiles(engine):
    list(engine.generate(pictures(1)[0], pictures(11)))
    before = engine.advance._cache_size()
    list(engine.generate(pictures(1)[0], pictures(5), 2))
    assert engine.advance._cache_size() == before


def test_a_seed_gives_one_video(engine):
    once, again = (np.stack(list(engine.generate(pictures(1)[0], pictures(5), 3))) for _ in range(2))
    other = np.stack(list(engine.generate(pictures(1)[0], pictures(5), 4)))
    assert (once == again).all() and (once != other).any()


def test_a_saved_model_is_the_model(trained, engine):
    loaded = Animator.load(trained).engine
    assert loaded.config == CONFIG
    for a, b in zip(jax.tree.leaves(loaded.state), jax.tree.leaves(engine.state)):
        np.testing.assert_array_equal(a, b)


def test_steps_can_be_watched_and_change_nothing(engine):
    plain = list(engine.generate(pictures(1)[0], pictures(6)))
    watched = list(engine.generate(pictures(1)[0], pictures(6), watch=True))
    steps = [event for event in watched if isinstance(event, Step)]
    assert steps == [(0, 0), (0, 1), (1, 0), (1, 1)] and watched[6] == (1, 0)
    frames = [event for event in watched if not isinstance(event, Step)]
    assert np.abs(np.stack(frames).astype(int) - np.stack(plain)).max() <= 1


def test_guidance_and_steps_are_chosen_without_compiling_again(engine):
    usual = engine.config.sampling
    make = lambda **changes: np.stack(
        list(engine.generate(pictures(1)[0], pictures(4), sampling=dataclasses.replace(usual, **changes), watch=True))[-4:]
    )
    strong, before = make(source=3.0), engine.advance._cache_size()
    assert (strong != make(source=3.5)).any() and (strong != make(source=3.0, steps=3)).any()
    assert engine.advance._cache_size() == before


# --- a model that is shipped


def test_an_exported_model_is_the_model(trained, engine, tmp_path, monkeypatch):
    run = shutil.copytree(trained, tmp_path / "run")
    (run / "results").mkdir()
    for log in ("metrics.jsonl", "results/results.md"):
        (run / log).write_text("the log of its training")
    shipped.export(run, tmp_path / "toy")
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {
        "config.json",
        "manifest.json",
        "metrics.jsonl",
        "results.md",
        checkpoint.EXPORTED,
    }
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "toy")
    loaded = Animator.load().engine
    assert loaded.config == CONFIG
    for a, b in zip(jax.tree.leaves(loaded.state), jax.tree.leaves(engine.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-11, atol=1e-7)  # it is stored in float16
        assert a.dtype == b.dtype
    arrays = tmp_path / "toy" / checkpoint.EXPORTED
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match="damaged"):
        Animator.load()


def test_the_last_checkpoint_of_an_unfinished_run_is_its_model(trained, tmp_path):
    for step in (9, 10):
        shutil.copytree(trained / "model", tmp_path / "checkpoints" / f"{step}")
    (tmp_path / "config.json").write_text("{}")
    assert shipped.find(tmp_path) == tmp_path / "checkpoints" / "10"
    assert Animator.load(tmp_path).provenance == Animator.load(trained).provenance


def test_what_is_too_heavy_is_not_exported(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "LIMIT", 1000)
    with pytest.raises(UserError, match="bytes of weights"):
        shipped.export(trained, tmp_path / "toy")
    assert not list(tmp_path.iterdir())


# --- the library


def test_arrays_in_frames_out(either, drawn):
    source = read_image(drawn.source)
    clip = np.stack([frame.image for frame in video.read_frames(drawn.driving)])
    options = {"source_crop": "none", "driving_crop": "none", "landmarks": drawn.landmarks}
    from_arrays = list(either.animate(source, clip, **options))
    from_paths = list(either.animate(drawn.source, drawn.driving, **options))
    assert len(from_arrays) == len(clip) and from_arrays[0].shape == (max(256, either.size),) * 2 + (3,)
    assert all((a == b).all() for a, b in zip(from_arrays, from_paths, strict=True))


def test_saved_file_shows_the_frames_and_says_that_it_is_generated(either, drawn, tmp_path):
    options = {**drawn._asdict(), "compare": True}
    for suffix in ("mp4", "gif", "png"):
        either.save(tmp_path / f"out.{suffix}", **options)
    with av.open(str(tmp_path / "out.mp4")) as container:
        tags = dict(container.metadata)
    assert either.provenance.items() <= tags.items()
    words = (f"svdp_jax {svdp_jax.__version__}", "AI-generated", f"checkpoint {either.engine.fingerprint}")
    assert "sha256:" in words[-1]
    gif, png = (tmp_path / "out.gif").read_bytes(), (tmp_path / "out" / "00007.png").read_bytes()
    for data in (gif, png):
        assert all(word.encode() in data.replace(b"\xff", b"") for word in words)
    assert video.probe(tmp_path / "out.gif").frames == video.probe(tmp_path / "out.mp4").frames == 8
    # Source, driver, what is seen of it where that is not all, and result.
    views, side = (4, 256) if either.engine.framing.windows else (3, 512)
    assert cv2.imread(str(tmp_path / "out" / "00007.png")).shape == (side, views * side + (views - 1) * 4, 3)


def test_the_checkpoint_is_named_by_its_content(trained, tmp_path):
    one = Animator.load(trained).provenance["comment"]
    assert one == Animator.load(trained / "model").provenance["comment"] and "sha256:" in one
    config = dataclasses.replace(CONFIG, name="other")
    _, weights, constants = nnx.split(SVDP(CONFIG.model, nnx.Rngs(1)), nnx.Param, ...)
    checkpoint.save_model(tmp_path / "model", config, weights, constants)
    assert Animator.load(tmp_path).provenance["comment"] != one


def test_readme_example_runs(trained, drawn, tmp_path):
    text = (ROOT / "README.md").read_text().split("<!-- library example -->")[1]
    code = text.split("```python")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 12
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "toy_cpu").symlink_to(trained)
    (tmp_path / "me.png").symlink_to(drawn.source)
    (tmp_path / "driver.mp4").symlink_to(drawn.driving)
    (tmp_path / "landmarks.npy").symlink_to(drawn.landmarks)
    (tmp_path / "example.py").write_text(code)
    result = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["(256, 256, 3)"] * 8 and (tmp_path / "out.mp4").exists()


# --- the command


def test_the_demo_needs_no_files(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "FOLDER", trained / "model")
    command(monkeypatch, "--demo", "--steps", 1, "--guidance", 3, 2.5, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.mp4"]
    assert "demo.mp4: 8 frames at 12.5 per second" in capsys.readouterr().out


def test_a_real_picture_follows_a_real_video(weights, portraits, tmp_path, monkeypatch):
    driving, out, frames = portraits / "d18.mp4", tmp_path / "out.mp4", 216
    if kind(weights) == "liveportrait":  # whose pictures are large: a second of it will do
        driving, frames = tmp_path / "short.mp4", 24
        cut(portraits / "d18.mp4", driving, frames)
    files = ("--source", portraits / "s9.jpg", "--driving", driving, "--output", out)
    command(monkeypatch, *files, "--checkpoint", weights, "--compare")
    made, driver = video.probe(out), video.probe(driving)
    assert made.frames == driver.frames == frames and made.fps == driver.fps == 30
    assert made.has_audio and abs(made.duration - driver.duration) <= Fraction(1, 30)
    with av.open(str(out)) as container:
        sound = container.streams.audio[0]
        assert abs(float(sound.duration * sound.time_base - made.duration)) <= 1 / 30
    assert {path.name for path in tmp_path.iterdir()} <= {"out.mp4", "short.mp4"}


def cut(path: Path, out: Path, frames: int) -> None:
    """The beginning of a video with its sound."""
    if not shutil.which("ffmpeg"):
        pytest.skip("ffmpeg, which cuts the clip, is not installed")
    line = ["ffmpeg", "-v", "error", "-i", path, "-t", f"{frames / 30}", "-frames:v", f"{frames}", out]
    subprocess.run([str(word) for word in line], check=True)


def test_pasted_back_only_the_crop_changes(either, portraits):
    picture = read_image(portraits / "s9.jpg")
    clip = np.stack([frame.image for frame in video.read_frames(portraits / "d18.mp4", stop=3)])
    framing, crop = either.engine.framing, np.zeros(picture.shape[:2], np.uint8)
    corners = framing.corners(framing.place(follow.one(picture)))
    cv2.fillPoly(crop, [np.round(np.stack([corners.real, corners.imag], -1)).astype(np.int32)], 1)
    for frame in either.animate(picture, clip, paste_back=True):
        assert frame.shape == picture.shape
        changed = (frame != picture).any(-1)
        assert changed[crop > 0].mean() > 0.8
        assert not changed[cv2.dilate(crop, np.ones((3, 3), np.uint8)) == 0].any()


def test_several_faces_are_chosen_among(either):
    """The largest is animated, or that which was named; where there is none such, one sentence says so."""
    image = canvas(240, 480)
    draw(image, 100 + 120j, 1.1), draw(image, 340 + 120j, 1.9)
    image = image.astype(np.uint8)
    for options, left in (({}, False), ({"face": 1, "driving_face": 0}, True)):
        (frame,) = either.animate(image, image[None], paste_back=True, **options)
        changed = np.flatnonzero((frame != image).any((0, 2)))
        assert (changed.mean() < 240) == left
    with pytest.raises(UserError, match="2 faces are found, so --face 5"):
        next(either.animate(image, image[None], face=5))


def test_a_lost_face_is_bridged(either):
    images, _ = drawn_clip(12, hidden=range(4, 7))
    scene = scenes.prepare(images[0], images, either.engine.framing)
    assert face.missing(scene.driver.track)[0][0] == 4 and len(list(either.play(scene))) == 12


def test_options_of_another_kind_of_model_are_refused(either, weights, drawn, tmp_path, monkeypatch, capsys):
    other, words = {
        "svdp": ({"transfer": configs.Transfer()}, ["--motion", "absolute"]),
        "liveportrait": ({"sampling": configs.Sampling()}, ["--steps", 2]),
    }[kind(weights)]
    with pytest.raises(UserError, match=f"is not for {either.engine.name}, which takes "):
        next(either.animate(drawn.source, drawn.driving, **other))
    files = ("--source", drawn.source, "--driving", drawn.driving, "--output", tmp_path / "out.mp4", "--checkpoint", weights)
    with pytest.raises(SystemExit):
        command(monkeypatch, *files, *words)
    assert f"{words[0]} is not for {either.engine.name}, which takes --" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(monkeypatch, *files, "--method", {"svdp": "liveportrait", "liveportrait": "svdp"}[kind(weights)])
    assert f"holds '{kind(weights)}', not" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_command_is_its_exit_code(tmp_path):
    line = [sys.executable, "-m", "svdp_jax.animate", "--source", "a.png", "--driving", "a.mp4"]
    result = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert result.stderr == "animate: --output must be given; or try --demo, which needs no files.\n"


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"--source": "grey.png"}, "no face is found"),
        ({"--driving": "grey.mp4"}, "no face is found"),
        ({"--driving": "text.mp4"}, "text.mp4"),
        ({"--driving": "empty.mp4"}, "empty.mp4"),
        ({"--source": "text.mp4"}, "text.mp4"),
        ({"--driving": "none.mp4"}, "none.mp4"),
        ({"--checkpoint": "nowhere"}, "nowhere"),
        ({"--checkpoint": None}, "no model comes with"),
        ({"--output": "out.doc"}, ".mp4, .gif, .png"),
        ({"--output": "missing/out.mp4"}, "does not exist"),
        ({"--landmarks": "text.mp4"}, "no landmarks"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(weights, drawn, tmp_path, monkeypatch, capsys, change, sentence):
    write_image(tmp_path / "grey.png", np.full((64, 64, 3), 128, np.uint8))
    with VideoWriter(tmp_path / "grey.mp4", 25) as writer:
        writer.write(np.full((64, 64, 3), 128, np.uint8))
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").touch()
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "not there")
    before = sorted(tmp_path.iterdir())
    arguments = {
        "--source": drawn.source,
        "--driving": drawn.driving,
        "--output": tmp_path / "out.mp4",
        "--checkpoint": weights,
    } | {name: value and tmp_path / value for name, value in change.items()}
    given = [part for name, value in arguments.items() if value for part in (name, value)]
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, *given)
    assert ended.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("animate: ") and sentence in last
    assert sorted(tmp_path.iterdir()) == before
