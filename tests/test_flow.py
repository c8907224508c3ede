import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdp_jax.config import Flow
from svdp_jax.diffusion import flow


def drawn(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_path_runs_from_clean_to_noise():
    x0, noise = drawn(3, 2, 4), drawn(3, 2, 4, seed=1)
    x = flow.noised(x0, noise, jnp.array([0.0, 0.25, 1.0]))
    np.testing.assert_allclose(x[0], x0[0])
    np.testing.assert_allclose(x[1], 0.75 * x0[1] + 0.25 * noise[1], rtol=1e-6)
    np.testing.assert_allclose(x[2], noise[2])


@pytest.mark.parametrize("predict", ["velocity", "clean"])
def test_perfect_prediction_has_no_loss_and_the_true_velocity(predict):
    x0, noise, s = drawn(4, 2, 3), drawn(4, 2, 3, seed=1), jnp.array([0.1, 0.4, 0.8, 1.0])
    perfect = noise - x0 if predict == "velocity" else x0
    np.testing.assert_allclose(flow.loss(perfect, x0, noise, s, predict), 0, atol=1e-10)
    x = flow.noised(x0, noise, s)
    np.testing.assert_allclose(flow.velocity(perfect, x, s, predict), noise - x0, atol=1e-5)


def test_clean_and_velocity_predictions_of_one_error_have_one_loss():
    x0, noise, s = drawn(2, 5), drawn(2, 5, seed=1), jnp.array([0.3, 0.9])
    clean = x0 + drawn(2, 5, seed=2)
    as_velocity = (flow.noised(x0, noise, s) - clean) / s[:, None]
    np.testing.assert_allclose(
        flow.loss(clean, x0, noise, s, "clean"), flow.loss(as_velocity, x0, noise, s, "velocity"), rtol=1e-5
    )


def test_shift_has_its_closed_form_and_keeps_the_ends():
    s = jnp.linspace(0, 1, 11)
    np.testing.assert_allclose(flow.shifted(s, 3.0), 3 * s / (1 + 2 * s), rtol=1e-6)
    np.testing.assert_allclose(flow.shifted(flow.shifted(s, 3.0), 1 / 3), s, atol=1e-6)


def test_training_times_are_logit_normal_then_shifted():
    s = flow.sample_times(jax.random.key(0), 20000, Flow(mean=0.3, std=1.2, shift=2.0))
    logit = jax.scipy.special.logit(flow.shifted(s, 1 / 2.0))
    assert abs(float(logit.mean()) - 0.3) < 0.03 and abs(float(logit.std()) - 1.2) < 0.03


def test_schedule_falls_from_noise_to_clean():
    times = flow.schedule(4, 3.0)
    np.testing.assert_allclose(times, [1, 0.9, 0.75, 0.5, 0], atol=1e-6)
