"""Conditions that are computed once: the same numbers, and nothing of z in them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TO_THE_BIT, randomized, tiny_model
from flax import nnx

from svdp_jax import config as configs
from svdp_jax.diffusion import flow, guidance, sampler
from svdp_jax.models.svdp import SVDP

B, F, P = 2, 3, 2
SAMPLING = configs.Sampling(steps=3, source=1.7, driving=2.2, past=1.4)


def network(**changes) -> tuple[configs.Model, SVDP]:
    told = changes.pop("told", False)
    tiny = tiny_model(references="cached", **changes)
    few = dataclasses.replace(tiny.backbone, blocks=2)  # a dual one, and the last: half the time to compile
    model = dataclasses.replace(tiny, backbone=few, told=told)
    return model, randomized(SVDP(model, nnx.Rngs(0)))


def inputs() -> tuple[jax.Array, dict, dict]:
    """Noise, conditions, prompt."""
    keys = iter(jax.random.split(jax.random.key(0), 8))
    draw = lambda *shape: jax.random.normal(next(keys), shape)
    latents = lambda *frames: draw(B, *frames, 4, 4, 48)
    conditions = {"source": latents(), "driving": latents(F), "past": latents(P)}
    return latents(F), conditions, {"text": draw(B, 2, 8), "pooled": draw(B, 8)}


@pytest.mark.parametrize(
    ("null", "temporal", "told"), [("drop", "full", False), ("zeros", "none", False), ("zeros", "factorized", True)]
)
def test_what_is_computed_once_samples_what_is_computed_at_every_step(null, temporal, told):
    config, model = network(null=null, temporal=temporal, told=told)
    noise, conditions, prompt = inputs()
    weights = guidance.weights(SAMPLING, told)

    @jax.jit
    def anew(noise):
        asked = sampler.asking(conditions, weights, prompt["text"], prompt["pooled"], config)
        step = lambda x, s, r: sampler.velocity(model, x, s, r, asked, config)
        return sampler.euler(step, noise, flow.schedule(SAMPLING.steps, SAMPLING.shift))

    once = jax.jit(
        lambda noise: sampler.sample(model, noise, **prompt, conditions=conditions, config=config, sampling=SAMPLING)
    )
    np.testing.assert_allclose(once(noise), anew(noise), rtol=1e-5, atol=1e-5)
    assert np.abs(once(noise) - once(noise + 1)).max() > 1e-2


def test_each_condition_is_seen_and_a_frame_of_the_driver_in_its_own_frame_first():
    config, model = network()
    one = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, blocks=1, dual=0))
    noise, conditions, prompt = inputs()
    time = jnp.array([0.3, 0.8])
    call = nnx.jit(lambda model, conditions: model(noise, time, **prompt, **conditions))
    before = call(model, conditions)
    for name, latents in conditions.items():
        assert np.abs(call(model, conditions | {name: latents + 1}) - before).max() > 1e-3, name
    model = randomized(SVDP(one, nnx.Rngs(0)))
    other = conditions | {"driving": conditions["driving"].at[:, 1].add(1.0)}
    changed = np.abs(call(model, other) - call(model, conditions)).max((0, 2, 3, 4))
    assert changed[1] > 1e-3 and changed[0] == changed[2] == 0


def test_what_is_remembered_of_a_condition_has_nothing_of_the_others():
    """So the source's lasts for a whole video."""
    _, model = network()
    _, conditions, prompt = inputs()
    remember = jax.jit(lambda conditions: model.remember(conditions, **prompt), compiler_options=TO_THE_BIT)
    memory = remember(conditions)
    for name in conditions:
        alone = remember({name: conditions[name]})[name]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), alone, memory[name])
