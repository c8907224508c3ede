"""In a bfloat16 config the network alone computes in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model
from reference.precision import as_trained, moments, pictures

from svdp_jax import config as configs
from svdp_jax.diffusion import flow, sampler
from svdp_jax.training import step


def test_training_noise_is_normal_to_the_fourth_moment_and_the_tail():
    noise, loss = as_trained(10**6)
    assert all(abs(away) < 4 for away in moments(noise).values()), moments(noise)
    assert len(np.unique(noise)) > len(noise) / 10
    assert loss == pytest.approx((noise**2).mean(), rel=1e-6)  # bfloat16 has steps of 0.4 %


def test_a_path_is_where_the_network_is_told_it_is():
    x0, noise, s = jnp.zeros((1, 4)), jnp.ones((1, 4)), jnp.array([0.70123])
    np.testing.assert_array_equal(flow.noised(x0, noise, s)[0], s[0])


@pytest.mark.parametrize("null", ["zeros", "drop"])
def test_sampler_state_and_guided_sum_are_exact_where_the_network_is_not(null):
    told = []

    def network(z, time, text, pooled, **conditions):
        assert {part.dtype for part in (z, text, pooled, *conditions.values())} == {jnp.dtype("bfloat16")}
        told.append(time.dtype)
        return jnp.full_like(z, 1 / 3)

    config = configs.Model(video=configs.Video(null=null))
    z = flow.noise(jax.random.key(0), (2, 3, 4, 4, 16))
    conditions = {"source": z[:, 0], "driving": z, "past": z[:, :1]}
    text, pooled = jnp.zeros((2, 1, 8), jnp.bfloat16), jnp.zeros((2, 8), jnp.bfloat16)
    sampling = configs.Sampling(source=2.7, driving=3.3, past=1.9)
    out = sampler.sample(network, z, text, pooled, conditions, config, sampling)
    assert out.dtype == jnp.float32 and set(told) == {jnp.dtype("float32")}
    np.testing.assert_allclose(out, z - np.float32(jnp.bfloat16(1 / 3)), atol=1e-5)


def test_what_a_trained_model_makes_in_bfloat16_is_as_bright():
    with jax.numpy_dtype_promotion("standard"):
        exact, half = (pictures(8, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert abs(half.mean() / exact.mean() - 1) < 0.002
    assert np.abs(half - exact).mean() < 1  # of 255; noise and steps in bfloat16 make it 5


def test_noise_and_examples_are_drawn_from_different_numbers():
    config = configs.Config("streams", tiny_model())
    number = lambda key: tuple(jax.random.key_data(key).tolist())
    examples = {number(jax.random.fold_in(jax.random.key(config.seed), index)) for index in range(20)}
    streams = {number(jax.random.fold_in(step.stream(config, step.NOISE), index)) for index in range(20)}
    assert not examples & streams and number(step.stream(config, step.WEIGHTS)) not in examples | streams
