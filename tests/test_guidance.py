import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdp_jax.config import Flow, Sampling, Stage
from svdp_jax.diffusion import guidance

CONDITIONS = {"source": jnp.ones((2, 3)), "driving": 10 * jnp.ones((2, 3)), "past": 100 * jnp.ones((2, 3))}


def total(conditions, copies=1):
    """A network whose answer is the sum of what it is told: 0, 1, 11 or 111."""
    kept = [x for x in conditions.values() if x is not None]
    return sum(kept) if kept else jnp.zeros((2, 3))


@pytest.mark.parametrize("null", ["zeros", "drop"])
def test_guidance_is_the_papers_formula(null):
    s, d, p = 2.0, 2.5, 1.5
    weights = guidance.weights(Sampling(source=s, driving=d, past=p))
    result = guidance.guided(total, guidance.branches(CONDITIONS, weights, null))
    np.testing.assert_allclose(result, s * 1 + d * 10 + p * 100, rtol=1e-5)


@pytest.mark.parametrize("null", ["zeros", "drop"])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(source=1.0, driving=1.4, past=1.4), Sampling(past=2.5)])
def test_at_the_start_no_past_is_asked_for_and_nothing_twice(null, sampling):
    """Without it, `all` is source and driving: the formula without its last term."""
    asked = []

    def predict(conditions, copies):
        asked.append(conditions.get("past"))
        return jnp.stack([total(conditions)]) if null == "drop" else total(conditions)

    nothing = CONDITIONS | {"past": 0 * CONDITIONS["past"]}
    weights = guidance.weights(sampling)
    less = guidance.at_start(weights, null)
    result = guidance.guided(predict, guidance.branches(nothing, less, null))
    np.testing.assert_allclose(result.reshape(2, 3), sampling.source * 1 + sampling.driving * 10, rtol=1e-5)
    assert not {2, 3} <= set(less) and (null == "zeros" or all(past is None for past in asked))
    assert guidance.at_start(weights, null).keys() == weights.keys() or null == "drop" or {2, 3} <= set(weights)


def test_in_training_too_all_is_source_and_driving_where_there_is_no_past():
    config, stages = Flow(dropout=(0.1, 0.2, 0.3, 0.4)), (Stage(), Stage(past=True))
    np.testing.assert_allclose(guidance.chances(config, stages, jnp.array(0)), (0.1, 0.2, 0.7, 0.0), rtol=1e-6)
    np.testing.assert_allclose(guidance.chances(config, stages, jnp.array(1)), config.dropout, rtol=1e-6)


def test_weights_sum_to_one():
    assert sum(guidance.weights(Sampling(source=2, driving=2.5, past=1)).values()) == pytest.approx(1)


def test_weights_of_one_ask_only_for_everything():
    calls = []

    def predict(conditions, copies):
        calls.append(copies)
        return total(conditions)

    weights = guidance.weights(Sampling(source=1.0, driving=1.0, past=1.0))
    result = guidance.guided(predict, guidance.branches(CONDITIONS, weights, "zeros"))
    np.testing.assert_allclose(result, 111)
    assert calls == [1]


def test_levels_gain_conditions_in_order():
    for level, value in enumerate((0, 1, 11, 111)):
        np.testing.assert_allclose(total(guidance.zeroed(CONDITIONS, jnp.full(2, level))), value)
        np.testing.assert_allclose(total(guidance.dropped(CONDITIONS, level)), value)


@pytest.mark.parametrize("null", ["zeros", "drop"])
def test_dropout_follows_its_chances(null):
    chances = (0.1, 0.2, 0.3, 0.4)
    draw = lambda key: guidance.with_dropout(total, CONDITIONS, key, jnp.array(chances), null)
    values = jax.vmap(draw)(jax.random.split(jax.random.key(0), 4000))[:, :, 0].ravel()
    shares = [float((values == v).mean()) for v in (0, 1, 11, 111)]
    np.testing.assert_allclose(shares, chances, atol=0.03)
