import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model

from svdp_jax.config import Sampling
from svdp_jax.diffusion import flow, sampler


def test_euler_reaches_a_single_clean_point_exactly():
    clean = jnp.array([0.3, -1.2])
    noise = jnp.array([2.0, 0.5])
    end = sampler.euler(lambda x, s, r: (x - clean) / s, noise, flow.schedule(5, 3.0))
    np.testing.assert_allclose(end, clean, atol=1e-6)


def test_euler_converges_to_the_closed_form_of_gaussian_data():
    """Data N(m, q²): the flow maps noise e to m + q e."""
    m, q = 0.7, 0.5
    noise = jnp.linspace(-2, 2, 9)

    def velocity(x, s, r):
        variance = ((1 - s) * q) ** 2 + s**2
        slope = (s - (1 - s) * q**2) / variance
        return -m + slope * (x - (1 - s) * m)

    errors = [
        float(jnp.abs(sampler.euler(velocity, noise, flow.schedule(n, 1.0)) - (m + q * noise)).max()) for n in (25, 50, 100)
    ]
    assert errors[2] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.4)  # first order
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.4)


def test_sampling_with_a_perfect_network_returns_the_truth_under_any_guidance():
    config = tiny_model()
    truth = jax.random.uniform(jax.random.key(0), (2, 3, 4, 4, 48))
    conditions = {"source": truth[:, 0], "driving": truth, "past": truth[:, :1]}

    def network(z, time, text, pooled, source, driving, past):
        assert text.shape[0] == pooled.shape[0] == len(z) == len(source)
        return jnp.concatenate([truth] * (len(z) // 2))

    out = sampler.sample(
        network,
        jax.random.normal(jax.random.key(1), truth.shape),
        jnp.zeros((2, 1, 8)),
        jnp.zeros((2, 8)),
        conditions,
        config,
        Sampling(steps=6),
    )
    np.testing.assert_allclose(out, truth, atol=1e-4)
