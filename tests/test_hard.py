"""The hard world: what is hidden, what swings, how pictures get poor; and that truth stays exact."""

import jax
import jax.numpy as jnp
import little_run
import numpy as np
import pytest

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.evaluation import toy_score
from svdp_jax.models.vae import PixelCodec
from svdp_jax.preparation import drawn
from svdp_jax.toy import hard, person, world
from svdp_jax.training import records

SIZE, FRAMES = 32, 24


@pytest.fixture(scope="module")
def example():
    return jax.jit(lambda key: world.triple(key, FRAMES, 0, SIZE, difficulty=1.0))(jax.random.key(2))


def test_parts_are_hidden_for_some_frames_and_not_for_more():
    parts = np.asarray(jax.vmap(lambda key: hard.hidden(key, 200, 1.0))(jax.random.split(jax.random.key(0), 20)))  # b 3 f
    eyes, nose, mouth = np.moveaxis(parts, 1, 0)
    assert (eyes >= nose).all() and (mouth >= nose).all() and (eyes != nose).any() and (mouth != nose).any()
    assert 0.3 < parts.any(1).mean() < 0.7 and (nose.mean(1) > 0).mean() > 0.9
    lengths = np.concatenate([np.diff(np.flatnonzero(np.diff(np.pad(row, 1).astype(int))))[::2] for row in nose])
    assert {1, 2, 3, 4, 5, 6} <= set(lengths) and np.median(lengths) <= hard.LONGEST
    assert not hard.hidden(jax.random.key(0), 50, 0.0).any()


def test_a_hidden_driver_shows_nothing_and_windows_are_coarse(example):
    seen = np.asarray((example["driving"] != world.GREY).any(-1))  # f y x
    assert example["hidden"].any() and not example["hidden"].all()
    exact = world.regions(example["driver"], example["motion"], SIZE)
    exact = np.asarray(jnp.maximum(jnp.maximum(exact.eyes, exact.nose), exact.mouth)) > 0
    shown, cell = ~np.asarray(example["hidden"]), SIZE // hard.CELLS
    assert (seen[shown] >= exact[shown]).mean() > 0.999  # a pixel may be grey by chance
    assert seen[shown].sum() > 1.1 * exact[shown].sum()
    assert (seen[~shown].sum((1, 2)) < 0.9 * np.median(seen[shown].sum((1, 2)))).all()
    cells = seen[shown].reshape(-1, hard.CELLS, cell, hard.CELLS, cell).mean((2, 4))
    assert ((cells < 0.2) | (cells > 0.8)).mean() > 0.99


def test_what_swings_hangs_where_the_head_was():
    key, fps = jax.random.key(5), 40.0
    scene = hard.scene(jax.random.key(6), key, 60, fps, 1.0)
    motion, ago = person.sample_motion(key, 60, fps), round(hard.LAG * fps)
    turned = np.asarray(motion.yaw + 0.5 * motion.roll)
    np.testing.assert_allclose(scene.swing[ago:], (turned[:-ago] - turned[ago:]), atol=1e-4)
    assert np.abs(np.diff(scene.light)).max() < 0.05 and np.ptp(scene.light) > 0.02
    plain = hard.scene(jax.random.key(6), key, 60, fps, 0.0)
    assert not plain.swing.any() and not plain.pattern.any() and not plain.earrings.any() and (plain.light == 1).all()


def test_a_scene_of_nothing_is_the_plain_world_and_its_parts_show():
    who, motion = jax.jit(lambda: (person.sample_identity(jax.random.key(0)), person.sample_motion(jax.random.key(1), 2)))()
    render = jax.jit(lambda scene: world.render(who, motion, SIZE, scene))
    nothing = hard.scene(jax.random.key(6), jax.random.key(1), 2, person.FPS, 0.0)
    plain = jax.jit(lambda: world.render(who, motion, SIZE))()
    np.testing.assert_allclose(render(nothing), plain, atol=1e-6)
    for name, value in (("pattern", 0.5), ("light", 0.8), ("earrings", 1.0), ("swing", 0.4)):
        changed = nothing._replace(**{name: jnp.full(2, value)})
        assert np.abs(np.asarray(render(changed) - render(nothing))).max() > 0.05, name


def test_compression_rounds_waves_of_eight_pixels():
    pictures = jax.random.uniform(jax.random.key(0), (1, 16, 16, 3))
    np.testing.assert_allclose(hard.compressed(pictures, 0.0), pictures, atol=1e-5)
    flat = jnp.full((1, 8, 8, 3), 0.5)  # a first coefficient of 4
    np.testing.assert_allclose(hard.compressed(flat, 12.0), 0.375, atol=1e-6)  # to a multiple of 12 / 4
    errors = [float(jnp.abs(hard.compressed(pictures, step) - pictures).mean()) for step in (0.1, 0.4, 1.6)]
    assert errors[0] < errors[1] < errors[2]


def test_scores_are_told_apart_where_the_driver_is_hidden():
    random = np.random.default_rng(0)
    clips, frames = 4, toy_score.FITTED
    true = random.standard_normal((clips, frames, len(person.RANGES)))
    hidden = random.uniform(size=(clips, frames)) < 0.4
    fitted = np.where(hidden[..., None], -true, true)
    squares = np.where(hidden, 255.0**2 / 100, 1.0)
    told = toy_score.where_hidden({"hidden": hidden, "true": true, "fitted": fitted, "squares": squares})
    assert told["psnr"] == pytest.approx(20) and told["control"] == pytest.approx(-1)
    nothing = toy_score.where_hidden({"hidden": hidden & False, "true": true, "fitted": fitted, "squares": squares})
    assert np.isnan(nothing["psnr"]) and np.isnan(nothing["control"])


def test_drawn_records_hold_what_a_run_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, "FRAMES", 4)
    model = little_run.config().model
    drawn.write(tmp_path / "drawn", clips=3, size=16, codec=model.codec)
    data = configs.Data(source="records", path=str(tmp_path / "drawn"), size=16, frames=2, past=1, batch=2)
    example = records.record_example(little_run.config(data=data), tmp_path)
    keys = jax.random.split(jax.random.key(0), 3)
    draw = jax.jit(drawn.clip, static_argnums=(1, 2, 3))
    wanted = [jax.device_get(draw(key, 16, False, 0.0)) for key in keys]
    for index in range(3):
        read = example(index)
        pictures = {
            name: np.round((np.asarray(PixelCodec(4).decode(read[name].astype(np.float32))) + 1) * 127.5)
            for name in ("source", "past", "target", "driving")
        }
        (clip,) = [clip for clip in wanted if np.array_equal(pictures["source"], clip[0][0])]
        (at,) = [i for i in range(2, 4) if np.array_equal(pictures["target"], clip[0][i : i + 2])]
        np.testing.assert_array_equal(pictures["past"], clip[0][at - 1 : at])
        np.testing.assert_array_equal(pictures["driving"], clip[1][at : at + 2])
        assert read["seen"].any() and not read["seen"].all()
    with pytest.raises(UserError, match="is there already"):
        drawn.write(tmp_path / "drawn", clips=1)
