"""A part of the weights learns: exact at the start, nothing kept for the rest, killed and gone on with, its base known."""

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import little_run
import numpy as np
import pytest
from conftest import TO_THE_BIT, randomized, tiny_model
from flax import nnx
from harness import STEPS, Run, differing, metrics, pair, state

from svdp_jax import config as configs, parallel, train
from svdp_jax.animator import Animator
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError
from svdp_jax.models import learned
from svdp_jax.models.svdp import SVDP
from svdp_jax.training import preflight, records, start, step as training
from svdp_jax.values import learn
from svdp_jax.weights import adapter as adapter_files, checkpoint

pytestmark = pytest.mark.usefixtures("noise")

MIXED = r"video_.*=full image\.dual\.attn\.to_q\.kernel=frozen image\..*\.attn2?\..*kernel=lora:3 image\.norm_out\..*=full .*=frozen"


def arrays(*parts) -> dict:
    return {name: array for part in parts for name, array in checkpoint.named(part).items()}


def call(model, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape, np.float32))
    frames, picture = draw(1, 2, 4, 4, 48), draw(1, 4, 4, 48)
    graph, weights = nnx.split(model)
    run = lambda weights: nnx.merge(graph, weights)(
        frames, jnp.full(1, 0.5), draw(1, 3, 8), draw(1, 8), picture, frames, picture[:, None]
    )
    return jax.jit(run, compiler_options=TO_THE_BIT)(weights)


@pytest.fixture(scope="module")
def whole():
    """Graph and weights of a model with a block of either attention."""
    model = tiny_model()
    model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, blocks=2))
    return nnx.split(randomized(SVDP(model, nnx.Rngs(3))))


@pytest.mark.parametrize("table, frozen", [("adapter", "bfloat16"), (MIXED, "int8")])
def test_at_first_an_adapter_is_its_base_as_it_lies(whole, table, frozen):
    """The same numbers as of the plain network with the frozen weights rounded: to the bit in bfloat16."""
    graph, weights = whole
    model = learned.adapted(nnx.merge(graph, jax.tree.map(jnp.copy, weights)), table, frozen, nnx.Rngs(1))
    graph_now, learns, rest = learned.parted(model, table)
    plain = learned.folded(arrays(learns, rest))
    rounded = checkpoint.replaced(weights, {name: jnp.asarray(array, jnp.float32) for name, array in plain.items()})
    expected = call(nnx.merge(graph, rounded))
    found = call(nnx.merge(graph_now, *learned.cast((learns, rest), jnp.float32)))
    assert jnp.abs(found - expected).max() <= (0 if frozen == "bfloat16" else 2e-5)
    # And near to the whole weights: bfloat16 keeps 8 bits, int8 as many of the largest of a column.
    for name, array in checkpoint.named(weights).items():
        row = learn.how(learn.rows(table), name)
        coarse = 2**-8 if frozen == "bfloat16" or not name.endswith("kernel") else 0.51 / 127 + 2**-8
        bound = 0 if row.how == "full" or name.endswith("line") else coarse
        assert np.abs(plain[name] - array).max() <= bound * np.abs(array).max(), name


def test_what_is_frozen_has_no_moments_no_average_and_no_gradient():
    config = little_run.config(learn="adapter", backbone="weights")
    graph, shapes = training.abstract_state(config, parallel.make_mesh(config.mesh))
    names = set(checkpoint.named(shapes.weights))
    assert {name.split(".")[0] for name in names if "lora" not in name} == {"video_last"}
    assert "image.last.attn.to_q.lora_a" in names and "image.last.ff.linear_2.lora_b" in names
    assert not any("norm1" in name for name in names)
    for tree in (shapes.average, shapes.optimizer[1].mu, shapes.optimizer[1].nu):
        assert set(checkpoint.named(tree)) == names
    assert {leaf.dtype.name for name, leaf in checkpoint.named(shapes.constants).items() if "line" not in name} == {"bfloat16"}


def test_low_rank_parts_have_the_gradient_that_the_chain_rule_gives():
    """Of a kernel W + A B: B's is Aᵀ of the kernel's own, A's that times Bᵀ."""
    config = little_run.config(start="run", learn=r".*attn\..*kernel=lora:2 .*=frozen")
    plain = dataclasses.replace(config, start="", learn="all")
    random = np.random.default_rng(0)
    graph, learns, rest = learned.parted(adapter_files.network(config, nnx.Rngs(0)), config.learn)
    noisy = lambda x: jnp.asarray(random.standard_normal(x.shape, np.float32) * 0.2)
    learns, rest = jax.tree.map(noisy, learns), jax.tree.map(noisy, learned.cast(rest, jnp.float32))
    graph_whole, weights, constants = adapter_files.abstract(plain)
    folded = {name: jnp.asarray(array) for name, array in learned.folded(arrays(learns, rest)).items()}
    weights, constants = (checkpoint.replaced(part, folded) for part in (weights, constants))
    codec_graph, frozen = start.load_frozen(config, parallel.make_mesh(config.mesh))
    batch, key = records.SOURCES["toy"], jax.random.key(1)
    batch = {name: part[None] for name, part in little_run.noise(config, None)(0).items()}
    gradient = lambda config, graph: jax.jit(jax.value_and_grad(training.make_loss(config, graph, codec_graph)))
    loss, of_parts = gradient(config, graph)(learns, rest, frozen, batch, key, 1)
    expected, of_kernels = gradient(plain, graph_whole)(weights, constants, frozen, batch, key, 1)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    parts, slopes, kernels = (checkpoint.named(x) for x in (learns, of_parts, of_kernels))
    layers = {name.rpartition(".")[0] for name in parts}
    assert "image.last.attn.add_k_proj" in layers
    for layer in layers:
        a, b, slope = parts[f"{layer}.lora_a"], parts[f"{layer}.lora_b"], kernels[f"{layer}.kernel"]
        for part, chain in (("lora_b", jnp.einsum("lir,lio->lro", a, slope)), ("lora_a", jnp.einsum("lio,lro->lir", slope, b))):
            error, size = jnp.abs(slopes[f"{layer}.{part}"] - chain).max(), jnp.abs(chain).max()
            assert error <= 1e-3 * size and (size > 0) == (layer != "image.last.attn.add_q_proj"), (layer, part)


@pytest.mark.parametrize(
    "table, sentence",
    [
        ("none", "'none' is neither all, video, adapter nor PATTERN=HOW"),
        ("video_.*=some", "is neither"),
        (".*=lora:0", "is neither"),
        ("(=full", "is no regular expression"),
        (".*=frozen", "freezes all there is"),
        ("video_.*=full", "config.learn has no row for image."),
        ("vidio_.*=full image.*=full .*=frozen", "no parameter has vidio_.* for its first row"),
        (r"video_.*=lora:2 .*=frozen", "video_last.norm.bias is no kernel"),
    ],
)
def test_a_table_that_cannot_be_is_said_in_one_sentence(table, sentence, tmp_path):
    with pytest.raises(UserError) as error:
        config = little_run.config(learn=table, start=str(tmp_path))
        configs.check(config)
        preflight.check(config, tmp_path / "work")
    assert sentence in str(error.value)


def test_frozen_weights_must_be_those_of_something():
    with pytest.raises(UserError, match="learn='video' freezes weights, which must be those of something"):
        configs.check(little_run.config(learn="video"))


# --- runs


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A work folder with a whole model, as a run leaves it."""
    work, config = tmp_path_factory.mktemp("base") / "work", little_run.config()
    _, weights, constants = learned.parted(randomized(SVDP(config.model, nnx.Rngs(7))), "all")
    checkpoint.save_model(work / "model", config, weights, constants)
    return work


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    """The work folder of an undisturbed run on it, in this process."""
    work = tmp_path_factory.mktemp("adapter") / "work"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setitem(records.SOURCES, "toy", little_run.noise)
        train.train(little_run.config(start=str(base), learn="adapter", frozen="int8"), work)
    return work


def test_a_run_that_is_killed_goes_on_bit_for_bit(adapter, base, tmp_path):
    work = tmp_path / "work"
    flags = (f"--config.start={base}", "--config.learn=adapter", "--config.frozen=int8")
    run = Run(work, *flags, faults={"gate": (8 * 10, "never")}).until_step(5)
    assert run.signal(signal.SIGKILL).end() == -signal.SIGKILL
    run = Run(work, *flags)
    assert run.end() == 0, run.said()
    assert re.search("step [2-9] of 16", run.said())
    assert differing(state(adapter), state(work)) == []
    assert [line["step"] for line in metrics(work)] == list(range(1, STEPS + 1))


def test_a_student_of_an_adapter_learns_on_two_hosts_that_share_the_frames_as_on_one(adapter, base, tmp_path):
    """Scales of what lies in int8 are told among the hosts, in one order; the teacher is an adapter too."""
    stage = configs.Stage(steps=3, past=True, kind="path", calls=(2, 1), path=4)
    whole = little_run.config(teacher=str(adapter), learn="adapter", frozen="int8", stages=(stage,))
    config = dataclasses.replace(whole, model=dataclasses.replace(whole.model, told=True))
    with jax.numpy_dtype_promotion("standard"):
        train.train(config, tmp_path / "one")
    changed = {"config.teacher": adapter, "config.learn": "adapter", "config.frozen": "int8", "config.model.told": True}
    changed |= {"config.mesh.data": 1, "config.mesh.context": 2, "config.stages": (dataclasses.asdict(stage),)}
    both = pair(tmp_path / "both", arguments=[f"--{name}={value}" for name, value in changed.items()])
    assert [run.end() for run in both] == [0, 0], both[0].said()
    alone, together = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("one", "both"))
    assert len(alone) == 3
    np.testing.assert_allclose(together, alone, rtol=1e-3)
    assert json.loads((tmp_path / "one/model/config.json").read_text())["adapter"]["folder"] == str(base / "model")
    with pytest.raises(UserError, match="an adapter learned with 'adapter'; set config.learn so, or fold it in"):
        preflight.check(dataclasses.replace(config, learn="all"), tmp_path / "other")


def test_its_folders_hold_what_learned_alone(adapter, base):
    for folder in (adapter / "model", adapter / "checkpoints" / str(STEPS)):
        names = set(checkpoint.stored_arrays(folder / "params"))
        assert names == set(arrays(adapter_files.abstract(little_run.config(start="run", learn="adapter"))[1]))
    told = json.loads((adapter / "model" / "config.json").read_text())["adapter"]
    assert told["folder"] == str(base / "model") and told["learn"] == "adapter" and told["frozen"] == "int8"


def frames(engine: SVDPEngine) -> np.ndarray:
    random = np.random.default_rng(0)
    source, driving = random.integers(0, 256, (1, 16, 16, 3), np.uint8), random.integers(0, 256, (2, 1, 16, 16, 3), np.uint8)
    return np.stack(list(engine.generate(source, driving)))


def test_it_animates_as_it_was_trained_and_finds_its_base(adapter, base, tmp_path):
    config = little_run.config(start=str(base), learn="adapter", frozen="int8")
    mesh = parallel.make_mesh(config.mesh)
    graph, fresh = start.initial_state(config, mesh)
    average = checkpoint.replaced(fresh.average, jax.device_put(checkpoint.load_arrays(adapter / "model")))
    own = SVDPEngine(config, nnx.merge(graph, average, fresh.constants), checkpoint.load_codec(config.model.codec))
    loaded = Animator.load(adapter).engine
    assert loaded.config == configs.by_stage(config)[-1] and (frames(own) == frames(loaded)).all()
    moved = shutil.copytree(adapter, tmp_path / "adapter")
    file = moved / "model" / "config.json"
    file.write_text(file.read_text().replace(str(base), "/gone"))
    with pytest.raises(UserError) as error:
        Animator.load(moved)
    assert "is an adapter on weights that were at /gone/model" in str(error.value) and "--base DIR" in str(error.value)
    checkpoint.write_manifest(moved / "model")
    assert (frames(Animator.load(moved, base=base).engine) == frames(loaded)).all()
    (tmp_path / "liveportrait").mkdir()
    (tmp_path / "liveportrait/config.json").write_text('{"network": "liveportrait", "config": {}}')
    checkpoint.write_manifest(tmp_path / "liveportrait")
    for whole in (base, tmp_path / "liveportrait"):
        with pytest.raises(UserError, match="is no adapter"):
            Animator.load(whole, base=base)


def test_a_base_of_other_weights_is_refused(adapter, base, tmp_path):
    other, config = tmp_path / "base", little_run.config()
    _, weights, constants = learned.parted(randomized(SVDP(config.model, nnx.Rngs(8))), "all")
    checkpoint.save_model(other / "model", config, weights, constants)
    with pytest.raises(UserError, match="holds other weights than those that the adapter .* was trained on"):
        Animator.load(adapter, base=other)
    again = little_run.config(start=str(other), learn="adapter", frozen="int8")
    with pytest.raises(UserError, match="what config.start names is not what it was started with"):
        preflight.check(again, Path(shutil.copytree(adapter, tmp_path / "work")))


def test_training_goes_on_from_an_adapter_on_its_base(adapter, base, tmp_path):
    """With as much or more to learn; not with less, which would lose what was learned."""
    config = little_run.config(start=str(adapter), learn="adapter", frozen="int8", stages=(configs.Stage(steps=2),))
    _, found = start.initial_state(config, parallel.make_mesh(config.mesh))
    trained = checkpoint.load_arrays(adapter / "model")
    assert all((np.asarray(array) == trained[name]).all() for name, array in checkpoint.named(found.weights).items())
    train.train(config, tmp_path / "second")
    assert json.loads((tmp_path / "second/model/config.json").read_text())["adapter"]["folder"] == str(base / "model")
    for table in ("video", "all"):
        with pytest.raises(UserError, match="not part of it: image.last.attn.add_k_proj.lora_a"):
            preflight.check(dataclasses.replace(config, learn=table), tmp_path / "third")


def test_the_image_model_of_a_run_without_time_is_a_start(tmp_path):
    config = little_run.config()
    still = dataclasses.replace(config, model=dataclasses.replace(config.model, video=configs.Video(heads=2, temporal="none")))
    _, weights, constants = learned.parted(randomized(SVDP(still.model, nnx.Rngs(7))), "all")
    checkpoint.save_model(tmp_path / "run" / "model", still, weights, constants)
    config = dataclasses.replace(config, start=str(tmp_path / "run"))
    preflight.check(config, tmp_path / "work")
    _, found = start.initial_state(config, parallel.make_mesh(config.mesh))
    _, fresh = start.initial_state(little_run.config(), parallel.make_mesh(config.mesh))
    for name, array in checkpoint.named(found.weights).items():
        expected = checkpoint.named(weights).get(name, checkpoint.named(fresh.weights)[name])
        assert (np.asarray(array) == np.asarray(expected)).all(), name
