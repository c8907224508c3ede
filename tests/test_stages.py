"""A stage of the curriculum with data and shapes of its own, and what a run shows of itself meanwhile."""

import dataclasses

import jax
import little_run
import numpy as np
import pytest
from harness import differing, metrics, state

from svdp_jax import config as configs, train
from svdp_jax.errors import UserError
from svdp_jax.media import video
from svdp_jax.training import identity, preflight, records
from svdp_jax.weights import checkpoint

pytestmark = pytest.mark.usefixtures("noise")

FIRST, SECOND = 4, 4  # steps
LARGER = configs.Changes(size=24, frames=4, batch=4)
CONFIG = little_run.config(
    stages=(configs.Stage(steps=FIRST, rate=2e-3), configs.Stage(steps=SECOND, past=True, data=LARGER)),
    sampling=configs.Sampling(steps=2),
    watch_every=6,
    sample_every=2,
    save_every=50,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    work = tmp_path_factory.mktemp("stages") / "work"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setitem(records.SOURCES, "toy", little_run.noise)
        train.train(CONFIG, work)
    return work


def test_each_stage_trains_on_its_own_data_and_the_model_makes_what_the_last_one_had(whole):
    assert [line["step"] for line in metrics(whole) if "loss" in line] == list(range(1, FIRST + SECOND + 1))
    saved = {step: checkpoint.about(path)["training"]["data"] for step, path in checkpoint.run_checkpoints(whole)}
    assert [(saved[step]["size"], saved[step]["frames"], saved[step]["batch"]) for step in (4, 8)] == [(16, 2, 8), (24, 4, 4)]
    trained = checkpoint.load_model(whole)[0].data
    assert (trained.size, trained.frames, trained.past, trained.batch) == (24, 4, 2, 4)


@pytest.mark.parametrize("seen, step", [(8 * FIRST, FIRST), (8 * FIRST + 4 * 2, FIRST + 2)])
def test_a_run_goes_on_in_the_stage_that_it_was_in(whole, tmp_path, monkeypatch, seen, step):
    """Ended by data that cannot be read, between the stages and in the second one. What is sampled has no part in it."""
    work, plain = tmp_path / "work", dataclasses.replace(CONFIG, sample_every=0, watch_every=0)
    with monkeypatch.context() as broken, pytest.raises(UserError, match="the disk is gone"):
        broken.setattr(little_run, "FAULTS", {"die": seen})
        train.train(plain, work)
    assert next(iter(checkpoint.run_checkpoints(work)))[0] == step
    train.train(plain, work)
    assert differing(state(whole, 8), state(work, 8)) == [] and not (work / "samples").exists()


def test_a_run_shows_held_out_losses_and_videos(whole):
    lines = [line for line in metrics(whole) if "held_out_loss" in line]
    assert [line["step"] for line in lines] == [2, 4, 6, 8] and all(np.isfinite(line["held_out_loss"]) for line in lines)
    shapes = {}
    for path in (whole / "samples").iterdir():
        shapes[int(path.stem)] = np.stack([frame.image for frame in video.read_frames(path)]).shape
    beside = lambda size: (size, 4 * size + 3 * 4, 3)  # four pictures and the strips between
    assert shapes == dict.fromkeys((2, 4), (2, *beside(16))) | dict.fromkeys((6, 8), (4, *beside(24)))


def test_no_example_comes_twice_where_the_batch_changes():
    stages = (configs.Stage(steps=3), configs.Stage(steps=2, data=configs.Changes(batch=5)), configs.Stage(steps=1))
    config = dataclasses.replace(CONFIG, stages=stages)
    assert records.example_ends(config) == [24, 35, 48]  # in batches of 8, from example 25 in batches of 5, from 40 on in 8


def test_stages_with_the_same_data_are_one_stretch_of_the_loop():
    same = dataclasses.replace(CONFIG, stages=(configs.Stage(2), configs.Stage(3), configs.Stage(4, data=LARGER)))
    lasts = lambda step: [(staged.data.size, last) for staged, last in train.stretches(same, step)]
    assert [lasts(step) for step in (0, 2, 5, 9)] == [[(16, 5), (24, 9)]] * 2 + [[(24, 9)], []]


def test_what_a_later_stage_cannot_have_is_said_at_the_start(tmp_path):
    later = lambda **data: dataclasses.replace(
        CONFIG, stages=(configs.Stage(1), configs.Stage(1, data=configs.Changes(**data)))
    )
    for data, words in (
        ({"size": 20}, r"config.stages\[1\].data: data.size=20 must be a multiple of 8"),
        ({"past": 3}, r"config.stages\[1\].data: data.past=3 must lie between 0 and data.frames=2"),
    ):
        with pytest.raises(UserError, match=words):
            configs.check(later(**data))
    for source in ("records", "videos"):
        with pytest.raises(UserError, match="nowhere"):
            preflight.check(later(source=source, path=str(tmp_path / "nowhere")), tmp_path / "work")


def test_another_stage_is_another_run_and_its_folder_may_move(whole, tmp_path):
    other = dataclasses.replace(CONFIG.stages[1], data=dataclasses.replace(LARGER, frames=2))
    found = identity.changes(whole, dataclasses.replace(CONFIG, stages=(CONFIG.stages[0], other)))
    assert found == ["config.stages[1].data.frames is 2 and was 4"]
    assert "stages.data.path." in identity.free()
