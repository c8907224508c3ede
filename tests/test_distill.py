"""A student learns its teacher's guided path, and is then asked once where the teacher is asked four times."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomized, tiny_model
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.diffusion import flow, guidance, sampler
from svdp_jax.errors import UserError
from svdp_jax.models.svdp import SVDP
from svdp_jax.training import distill, preflight, start, step as training
from svdp_jax.weights import adapter, checkpoint

TINY = tiny_model()
MODEL = dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, blocks=1, dual=0))
TOLD = dataclasses.replace(MODEL, told=True)
STUDENT = configs.Config(
    "student",
    TOLD,
    data=configs.Data(size=16, frames=2, past=1, batch=4),
    optimizer=configs.Optimizer(warmup=2, average=0.5),
    stages=(configs.Stage(steps=120, kind="path", calls=(2, 1), path=4, past=True, rate=1e-2, final_rate=1e-3),),
    flow=configs.Flow(dropout=(0, 0, 0, 1)),
    teaching=configs.Teaching(source=(1.0, 1.0), driving=(1.0, 3.0), past=(2.0, 2.0)),
    teacher="somewhere",
    dtype="float32",
)


@pytest.fixture(autouse=True)
def lenient_promotion():
    """Optax's Adam mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    config = dataclasses.replace(STUDENT, model=MODEL, teacher="", stages=(configs.Stage(),))
    _, weights, constants = nnx.split(randomized(SVDP(MODEL, nnx.Rngs(0)), 0.1), nnx.Param, ...)
    checkpoint.save_model(folder / "model", config, weights, constants)
    return folder


def test_a_teacher_is_read_in_the_dtype_of_the_training_and_may_be_an_adapter(folder, tmp_path):
    """Of one whose stored weights would not fit a device nothing is read in their own dtype."""
    whole = dataclasses.replace(STUDENT, teacher=str(folder), dtype="bfloat16")
    mesh = parallel.make_mesh(whole.mesh)
    _, state = start.load_teacher(whole, mesh)
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("bfloat16")}
    assert all(leaf.sharding.mesh.shape == mesh.shape for leaf in jax.tree.leaves(state))

    config = dataclasses.replace(
        STUDENT, model=MODEL, teacher="", start=str(folder), stages=(configs.Stage(),), learn="adapter", frozen="int8"
    )
    _, taught = start.initial_state(config, mesh)
    changed = jax.tree.map(lambda w: w + 0.01, taught.average)
    kept = adapter.model(config, changed, taught.constants)
    checkpoint.save_model(tmp_path / "model", config, *kept, facts=adapter.trained_with(config))
    graph, state = start.load_teacher(dataclasses.replace(STUDENT, teacher=str(tmp_path)), mesh)
    _, network = adapter.load(tmp_path / "model")
    expected = checkpoint.named(nnx.state(network))
    found = checkpoint.named(state)
    assert found.keys() == expected.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, expected[name].astype(leaf.dtype))


def test_a_teacher_must_hold_the_whole_network(folder, tmp_path):
    """A training could start with an image model and fresh attention through time; nobody can learn from that."""
    faults = lambda teacher: list(preflight.weights(dataclasses.replace(STUDENT, teacher=str(teacher))))
    assert faults(folder) == []
    still = dataclasses.replace(MODEL, video=dataclasses.replace(MODEL.video, temporal="none"))
    config = dataclasses.replace(STUDENT, model=still, teacher="", stages=(configs.Stage(),))
    _, weights, constants = nnx.split(SVDP(still, nnx.Rngs(0)), nnx.Param, ...)
    checkpoint.save_model(tmp_path / "model", config, weights, constants)
    assert "missing: video_" in " ".join(faults(tmp_path))


def batch(seed: int) -> dict:
    random = np.random.default_rng(seed)
    draw = lambda *lead: random.integers(0, 256, (4, *lead, 16, 16, 3), np.uint8)
    return {"source": draw(), "past": draw(1), "target": draw(2), "driving": draw(2)}


def parts(seed: int) -> dict:
    """A batch as latents, and its prompt."""
    latents = jax.jit(lambda x: training.as_latents(checkpoint.load_codec(STUDENT.model.codec), x, np.float32))(batch(seed))
    return latents | {"text": jnp.zeros((4, 1, 8)), "pooled": jnp.zeros((4, 8))}


def test_a_student_goes_in_two_calls_and_in_one_where_guided_steps_of_its_teacher_lead(folder):
    config = dataclasses.replace(STUDENT, teacher=str(folder))
    mesh = parallel.make_mesh(config.mesh)
    codec_graph, frozen = start.load_frozen(config, mesh)
    graph, state = start.initial_state(config, mesh)
    begun = jax.tree.map(jnp.copy, (state.average, state.constants))
    update = training.make_update(config, graph, codec_graph)
    for seed in range(config.stages[0].steps):
        state, _ = update(state, frozen, batch(seed))

    unseen = parts(1000)
    conditions = {name: unseen[name] for name in guidance.CONDITIONS}
    noise = flow.noise(jax.random.key(0), unseen["target"].shape)
    sampling = configs.Sampling(steps=4, source=1.0, driving=2.2, past=2.0)
    sample = lambda network, model, steps: sampler.sample(
        network, noise, unseen["text"], unseen["pooled"], conditions, model, dataclasses.replace(sampling, steps=steps)
    )
    goal = jax.jit(lambda: sample(nnx.merge(*frozen.teacher), MODEL, 4))()
    for steps in (2, 1):
        away = jax.jit(lambda weights: jnp.abs(sample(nnx.merge(graph, *weights), TOLD, steps) - goal).mean())
        before, after = float(away(begun)), float(away((state.average, state.constants)))
        assert after < 0.5 * before, (steps, before, after)


def test_where_a_call_is_one_step_without_guidance_the_teacher_itself_has_no_error(folder):
    """And with guidance it has: the loss is of the guided path."""
    config = dataclasses.replace(STUDENT, teacher=str(folder), stages=(dataclasses.replace(STUDENT.stages[0], calls=(4,)),))
    mesh = parallel.make_mesh(config.mesh)
    graph, state = start.initial_state(config, mesh)
    student = nnx.merge(graph, state.weights, state.constants)
    teacher = nnx.merge(*start.load_frozen(config, mesh)[1].teacher)
    errors = {}
    for strength in (1.0, 3.0):
        taught = configs.Teaching(**dict.fromkeys(guidance.CONDITIONS, (strength, strength)))
        of = dataclasses.replace(config, teaching=taught)
        errors[strength] = float(jax.jit(lambda: distill.loss(student, teacher, parts(0), jax.random.key(1), of, 0))())
    assert errors[1.0] < 1e-9 < 1e-4 < errors[3.0]


def test_weights_are_drawn_in_their_ranges_and_only_of_branches_that_can_count():
    taught = configs.Teaching(source=(1.0, 1.0), driving=(1.0, 3.0), past=(2.0, 2.0))
    told, weights = guidance.drawn(jax.random.key(0), taught, 1000)
    assert set(weights) == {1, 2, 3}
    np.testing.assert_allclose(sum(weights.values()), 1, atol=1e-6)
    np.testing.assert_allclose((told.min(0), told.max(0)), ((1, 1, 2), (1, 3, 2)), atol=0.01)
    same = configs.Teaching(source=(1.0, 1.0), driving=(1.0, 1.0), past=(1.0, 1.0))
    assert set(guidance.drawn(jax.random.key(0), same, 2)[1]) == {3}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"teacher": ""}, "teacher must be named"),
        ({"model": MODEL}, "model.told be True"),
        ({"stages": (configs.Stage(),)}, "nowhere else"),
        ({"stages": (configs.Stage(kind="path", calls=(3,), path=4),)}, "each of `calls` must divide"),
        ({"teaching": configs.Teaching(source=(2.0, 1.0))}, "a least and a most"),
        ({"sampling": configs.Sampling(shift=2.0)}, "sampling.shift must be 3.0"),
        ({"backbone": "weights/backbone"}, "brings a backbone"),
    ],
)
def test_what_no_student_can_have_is_said(change, sentence):
    with pytest.raises(UserError, match=sentence):
        configs.check(dataclasses.replace(STUDENT, **change))
