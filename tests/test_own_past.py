"""Past frames that the model makes itself."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import little_run
import numpy as np
import pytest
from conftest import randomized
from flax import nnx

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.models.svdp import SVDP
from svdp_jax.toy import world
from svdp_jax.train import train
from svdp_jax.training import own_past
from svdp_jax.weights import checkpoint

CONFIG = configs.Config(
    name="own", model=little_run.config().model, data=configs.Data(size=16, frames=2, past=2, batch=2), dtype="float32"
)


def parts(seed: int) -> dict:
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)
    names = {"past": 2, "past_driving": 2, "target": 2, "driving": 2}
    latents = {name: draw(24, count, 4, 4, 48) for name, count in names.items()} | {"source": draw(24, 4, 4, 48)}
    return latents | {"text": draw(24, 1, 8), "pooled": draw(24, 8)}


def test_a_share_of_the_past_is_made_of_its_own_drivers_without_gradients():
    graph, weights = nnx.split(randomized(SVDP(CONFIG.model, nnx.Rngs(0))))

    @jax.jit
    def mixed(weights, batch, share):
        make = lambda weights: own_past.mixed(nnx.merge(graph, weights), batch, jax.random.key(0), share, CONFIG)
        return make(weights), jax.grad(lambda weights: make(weights).sum())(weights)

    batch = parts(0)
    real, _ = mixed(weights, batch, 0.0)
    np.testing.assert_array_equal(real, batch["past"])
    own, slope = mixed(weights, batch, 1.0)
    assert own.shape == real.shape and (abs(own - real).max((1, 2, 3, 4)) > 0.1).all()
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(slope))
    again, _ = mixed(weights, batch | {"past": 0 * real, "target": 0 * real, "driving": 0 * real}, 1.0)
    np.testing.assert_array_equal(own, again)  # of source and the past's driver alone
    for name in ("source", "past_driving"):
        other, _ = mixed(weights, batch | {name: parts(1)[name]}, 1.0)
        assert abs(other - own).max() > 1e-3, name
    half, _ = mixed(weights, batch, 0.5)
    kept = [np.array_equal(a, b) for a, b in zip(half, real)]
    assert 4 < sum(kept) < 20


def test_the_driver_of_the_past_is_part_of_the_one_video_of_the_driver():
    draw = jax.jit(partial(world.triple, frames=2, past=2, size=16, led=True))
    led = draw(jax.random.key(0))
    plain = jax.jit(partial(world.triple, frames=2, past=2, size=16))(jax.random.key(0))
    for name, part in plain.items():
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), part, led[name])
    assert led["past_driving"].shape == (2, 16, 16, 3) and (led["past_driving"] != world.GREY).any()


def test_a_run_trains_by_it(tmp_path):
    base = little_run.config()
    stages = (configs.Stage(steps=2), configs.Stage(steps=3, past=True, own_past=0.5))
    drawn = dataclasses.replace(base, stages=stages, data=dataclasses.replace(base.data, batch=2))
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        patch.setitem(little_run.records.SOURCES, "toy", little_run.noise)
        train(drawn, tmp_path / "run")
    _, model = checkpoint.load_model(tmp_path / "run")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize("stage, past", [(configs.Stage(own_past=0.5), 2), (configs.Stage(past=True, own_past=0.5), 0)])
def test_without_a_past_there_is_none_of_its_own(stage, past):
    data = dataclasses.replace(CONFIG.data, past=past)
    with pytest.raises(UserError, match="own_past is for stages with past=True"):
        configs.check(dataclasses.replace(CONFIG, stages=(stage,), data=data))
