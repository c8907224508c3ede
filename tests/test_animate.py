"""The product, with a model that knows nothing: everything but the likeness is checked."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import jax
import numpy as np
import pytest
from flax import nnx

from svdp_jax import checkpoint, config as configs
from svdp_jax.animate import Animator
from svdp_jax.data import video
from svdp_jax.models.svdp import SVDP
from conftest import randomized, tiny_model

ROOT = Path(__file__).parents[1]
CONFIG = configs.Config(
    "tiny", tiny_model(), data=configs.Data(size=16, frames=4, past=2),
    sampling=configs.Sampling(steps=2), dtype="float32",
)


@pytest.fixture(scope="module")
def model() -> SVDP:
    return randomized(SVDP(CONFIG.model, nnx.Rngs(0)), 0.1)


@pytest.fixture(scope="module")
def animator(model) -> Animator:
    return Animator(CONFIG, model, checkpoint.load_codec(CONFIG.model.codec))


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    _, weights, constants = nnx.split(model, nnx.Param, ...)
    checkpoint.save_model(folder / "model", CONFIG, weights, constants)
    return folder


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 16, 16, 3), np.uint8)


def command(*arguments) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "svdp_jax.animate", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True)


def test_any_length_comes_out_as_long(animator):
    for length in (1, 4, 5, 11):
        frames = list(animator.animate(pictures(1)[0], pictures(length)))
        assert len(frames) == length and frames[0].shape == (1, 16, 16, 3)


def test_frames_come_segment_by_segment(animator):
    drawn = []
    stream = animator.animate(pictures(1)[0], (drawn.append(x) or x for x in pictures(12)))
    next(stream)
    assert len(drawn) == 4


def test_the_last_segment_is_padded_without_a_trace(animator):
    """The first frames do not depend on how the video goes on in the next segment."""
    short = list(animator.animate(pictures(1)[0], pictures(8)))
    long = list(animator.animate(pictures(1)[0], pictures(11)))
    assert all((a == b).all() for a, b in zip(short, long))


def test_the_past_of_a_segment_is_the_end_of_the_one_before(animator, monkeypatch):
    seen, original = [], animator.segment

    def spy(state, noise, source, driving, past):
        out = original(state, noise, source, driving, past)
        seen.append((np.asarray(past), np.asarray(out[0])))
        return out

    monkeypatch.setattr(animator, "segment", spy)
    list(animator.animate(pictures(1)[0], pictures(12)))
    assert not seen[0][0].any()
    for (_, before), (past, _) in zip(seen, seen[1:]):
        np.testing.assert_array_equal(past, before[:, -2:])


def test_one_shape_compiles(animator):
    list(animator.animate(pictures(1)[0], pictures(11)))
    assert animator.segment._cache_size() == 1


def test_a_seed_gives_one_video(animator):
    once, again = (np.stack(list(animator.animate(pictures(1)[0], pictures(5), 3))) for _ in range(2))
    other = np.stack(list(animator.animate(pictures(1)[0], pictures(5), 4)))
    assert (once == again).all() and (once != other).any()


def test_a_saved_model_is_the_model(trained, animator):
    loaded = Animator.load(trained)
    assert loaded.config == CONFIG
    for a, b in zip(jax.tree.leaves(loaded.state), jax.tree.leaves(animator.state)):
        np.testing.assert_array_equal(a, b)


def test_a_real_picture_follows_a_real_video(trained, portraits, tmp_path):
    driving, out = portraits / "d18.mp4", tmp_path / "out.mp4"
    result = command(
        "--source", portraits / "s9.jpg", "--driving", driving, "--output", out,
        "--checkpoint", trained, "--compare",
    )
    assert result.returncode == 0, result.stderr
    made, driver = video.probe(out), video.probe(driving)
    assert made.frames == driver.frames and made.fps == driver.fps == 30
    assert made.has_audio and abs(made.duration - driver.duration) <= Fraction(1, 30)
    with av.open(str(out)) as container:
        sound = container.streams.audio[0]
        assert abs(float(sound.duration * sound.time_base - made.duration)) <= 1 / 30
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"--source": "grey.png"}, "face"),
        ({"--driving": "text.mp4"}, "text.mp4"),
        ({"--driving": "empty.mp4"}, "empty.mp4"),
        ({"--source": "text.mp4"}, "text.mp4"),
        ({"--driving": "none.mp4"}, "none.mp4"),
        ({"--checkpoint": "nowhere"}, "nowhere"),
        ({"--output": "out.doc"}, ".mp4, .gif, .png"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(trained, portraits, tmp_path, change, sentence):
    video.write_image(tmp_path / "grey.png", np.full((64, 64, 3), 128, np.uint8))
    (tmp_path / "text.mp4").write_text("this is no video")
    (tmp_path / "empty.mp4").touch()
    before = sorted(tmp_path.iterdir())
    arguments = {
        "--source": portraits / "s9.jpg", "--driving": portraits / "d18.mp4",
        "--output": tmp_path / "out.mp4", "--checkpoint": trained,
    } | {name: tmp_path / value for name, value in change.items()}
    result = command(*(part for pair in arguments.items() for part in pair))
    assert result.returncode == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("animate: ") and sentence in last
    assert "Traceback" not in result.stderr and sorted(tmp_path.iterdir()) == before
