from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from svdp_jax.evaluation import toy_score
from svdp_jax.toy import fit, person, world

SIZE = 32
render = jax.jit(world.render, static_argnums=2)
regions = jax.jit(world.regions, static_argnums=2)
examples = jax.jit(jax.vmap(partial(world.triple, frames=4, past=2, size=SIZE)))


@pytest.fixture(scope="module")
def people():
    """Four identities in all styles. Pictures are mostly made four by four, since every new shape compiles."""
    drawn = jax.vmap(person.sample_identity)(jax.random.split(jax.random.key(0), 4))
    return drawn._replace(style=jnp.eye(3)[jnp.array([0, 1, 2, 0])])


@pytest.fixture(scope="module")
def batch():
    return examples(jax.random.split(jax.random.key(1), 4))


def still(**fields):
    """Motions (f) of a face at rest but for the given fields, which may be (f)."""
    rest = person.Motion(**{name: (low + high) / 2 for name, (low, high) in person.RANGES.items()})
    rest = rest._replace(**{"yaw": 0.2, "blink": 0.2, "mouth_open": 0.3} | fields)
    return person.Motion(*(jnp.asarray(field, jnp.float32) for field in jnp.broadcast_arrays(*rest)))


def changed(people, **fields):
    """How much each person's picture (4 h w) changes between the ends of a field, and the regions on the way."""
    motion = still(**{name: jnp.linspace(*ends, 4) for name, ends in fields.items()})
    motion = jax.tree.map(lambda field: jnp.tile(field, (4, 1)), motion)
    frames = render(people, motion, SIZE)
    return jnp.abs(frames[:, 0] - frames[:, -1]).sum(-1), regions(people, motion, SIZE)


def test_samples_stay_in_their_ranges_and_fill_them():
    motion = jax.jit(jax.vmap(lambda key: person.sample_motion(key, 16)))(jax.random.split(jax.random.key(2), 300))
    for name, (low, high) in person.RANGES.items():
        field = np.asarray(getattr(motion, name))
        reach = (field - low) / (high - low)
        assert field.shape == (300, 16) and reach.min() >= -1e-5 and reach.max() <= 1 + 1e-5
        assert reach.min() < 0.1 and reach.max() > 0.9
        assert np.median(np.ptp(reach, axis=1)) > 0.1, f"{name} hardly varies within a clip"
        assert reach.mean(1).std() > 0.05, f"{name} hardly varies across clips"
    someone = person.sample_identity(jax.random.key(3))
    assert all(field.min() >= 0 and field.max() <= 1 for field in someone if field.shape == (3,))
    assert all(low <= getattr(someone, name) <= high for name, (low, high) in person.TRAITS.items())


def test_sequences_are_smooth_and_longer_ones_begin_alike():
    short, long = (person.sample_motion(jax.random.key(4), frames, fps=25.0) for frames in (10, 200))
    for name, (low, high) in person.RANGES.items():
        np.testing.assert_allclose(getattr(short, name), getattr(long, name)[:10], atol=1e-4)
        limit = 0.8 if name in ("blink", "mouth_open") else 0.25  # a blink and a syllable take a few frames
        assert np.abs(np.diff(getattr(long, name))).max() < limit * (high - low)


def test_pictures_have_the_right_shape_and_values(people):
    turns = still(yaw=jnp.linspace(-0.6, 0.6, 16))
    frames = render(people, jax.tree.map(lambda field: jnp.tile(field[::5], (4, 1)), turns), SIZE)
    assert frames.shape == (4, 4, SIZE, SIZE, 3) and frames.dtype == jnp.float32
    assert frames.min() >= 0 and frames.max() <= 1 + 1e-6
    one = jax.tree.map(lambda field: field[0], people)
    np.testing.assert_allclose(render(one, turns, SIZE)[::5], frames[0], atol=1e-5)


def test_same_key_same_example_other_key_other_example(batch):
    again = examples(jax.random.split(jax.random.key(1), 4))
    assert jax.tree.all(jax.tree.map(np.array_equal, batch, again))
    assert np.abs(batch["target"][0] - batch["target"][1]).mean() > 0.05


def test_every_motion_parameter_has_a_gradient(people):
    one = jax.tree.map(lambda field: field[0], people)
    picture = lambda motion: jnp.sum(jnp.square(world.render(one, motion, SIZE) - 0.5))
    motion = jax.tree.map(lambda field: field[()], still(gaze_x=0.2, gaze_y=0.1, roll=0.1))
    for name, slope in zip(person.Motion._fields, jax.jit(jax.grad(picture))(motion)):
        assert np.isfinite(slope) and abs(slope) > 1e-3, name


@pytest.mark.parametrize(
    "name, ends, region",
    [
        ("gaze_x", (-1, 1), "eyes"),
        ("gaze_y", (-1, 1), "eyes"),
        ("blink", (0, 1), "eyes"),
        ("brow", (-1, 1), "eyes"),
        ("mouth_open", (0, 1), "mouth"),
        ("mouth_width", (-1, 1), "mouth"),
    ],
)
def test_a_feature_moves_inside_its_region_only(people, name, ends, region):
    change, masks = changed(people, **{name: ends})
    inside = getattr(masks, region).max(1)
    assert (change.max((1, 2)) > 0.2).all(), "hardly visible"
    assert ((change * inside).sum((1, 2)) > 0.96 * change.sum((1, 2))).all()


@pytest.mark.parametrize("name", ["yaw", "pitch", "roll", "shift_x", "shift_y", "scale"])
def test_the_head_moves_as_a_whole(people, name):
    change, masks = changed(people, **{name: person.RANGES[name]})
    for region in masks:
        assert ((change * region.max(1)).sum((1, 2)) > 1).all()
    assert (change[:, :4].sum((1, 2)) < 0.5 * change.sum((1, 2))).all() and (change > 0.05).mean() > 0.05


def test_positive_is_right_and_down(people):
    # at rest, then one movement at a time
    motion = still(yaw=jnp.array([0, 0.5, 0, 0]), pitch=jnp.array([0, 0, 0.4, 0]), shift_x=jnp.array([0, 0, 0, 0.05]))
    noses = regions(people, jax.tree.map(lambda field: jnp.tile(field, (4, 1)), motion), SIZE).nose[0]
    row, column = np.array([np.argwhere(nose > 0).mean(0) for nose in np.asarray(noses)]).T
    assert column[1] - column[0] > 3 and row[2] - row[0] > 2 and column[3] - column[0] > 1


def test_driving_shows_the_regions_of_the_driver_and_nothing_else(batch):
    masks = regions(batch["driver"], batch["motion"], SIZE)
    keep = np.maximum(np.maximum(masks.eyes, masks.nose), masks.mouth) > 0
    driver = render(batch["driver"], batch["motion"], SIZE)
    np.testing.assert_array_equal(batch["driving"][~keep], world.GREY)
    np.testing.assert_allclose(batch["driving"][keep], driver[keep], atol=1e-5)
    assert 0.1 < keep.mean() < 0.25


def test_target_and_past_are_one_sequence_of_the_source_person(batch):
    target = render(batch["identity"], batch["motion"], SIZE)
    np.testing.assert_allclose(batch["target"], target, atol=1e-5)
    clip = np.concatenate([batch["past"], batch["target"]], 1)
    steps = np.abs(np.diff(clip, axis=1)).mean((0, 2, 3, 4))
    assert steps[1] < 2 * np.delete(steps, 1).max()  # step 1 leads from the past into the target
    jumps = np.abs(np.asarray(batch["source"]) - batch["past"][:, 0]).mean()
    assert jumps > 1.5 * steps[1], "the source is a moment of its own"


def test_fit_recovers_the_motion(people, monkeypatch):
    # The one program here that runs for longer than it compiles.
    quick = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    monkeypatch.setattr(fit, "refined", jax.jit(fit.refined, compiler_options=quick))
    one = jax.tree.map(lambda field: field[1], people)
    true = jax.jit(jax.vmap(lambda key: person.sample_motion(key, 1)))(jax.random.split(jax.random.key(5), 8))
    true = jax.tree.map(lambda field: field[:, 0], true)
    scores = toy_score.correlation(true, fit.fit(render(one, true, SIZE), one))
    assert min(scores.values()) > 0.99, scores  # one frame of the eight gone astray shows


def test_correlation_knows_likeness_and_constants():
    wave = jnp.sin(jnp.arange(8.0))
    scores = toy_score.correlation(still(yaw=wave, pitch=wave), still(yaw=2 * wave + 1, pitch=-wave))
    assert scores["yaw"] == pytest.approx(1) and scores["pitch"] == pytest.approx(-1) and np.isnan(scores["roll"])
