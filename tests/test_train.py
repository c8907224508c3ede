"""Training as a user starts it, on the smallest model."""

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from conftest import randomized, tiny_model
from flax import nnx

from svdp_jax import config as configs, parallel, train
from svdp_jax.diffusion import flow, guidance
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError
from svdp_jax.models.mmdit import MMDiT
from svdp_jax.models.svdp import SVDP
from svdp_jax.training import start, step as training
from svdp_jax.weights import checkpoint

ROOT = Path(__file__).parents[1]
BACKBONE = dataclasses.replace(tiny_model().backbone, blocks=1, dual=0)  # a third of the time to compile


@pytest.fixture(autouse=True)
def lenient_promotion():
    """Optax's Adam mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def tiny_config(**changes) -> configs.Config:
    return configs.Config(
        **{
            "name": "tiny",
            "model": dataclasses.replace(tiny_model(), backbone=BACKBONE),
            "data": configs.Data(size=16, frames=2, past=1, batch=2, threads=1),
            "optimizer": configs.Optimizer(warmup=2),
            "stages": (configs.Stage(steps=6, rate=2e-3), configs.Stage(steps=4, past=True, rate=1e-3)),
            "sampling": configs.Sampling(steps=2),
            "dtype": "float32",
            "log_every": 1,
            "save_every": 30,
            "evaluate": 1,
        }
        | changes
    )


def config_file(folder: Path, config: configs.Config) -> Path:
    path = folder / "tiny.py"
    values = configs.as_flags(config).to_dict()
    path.write_text(f"from ml_collections import ConfigDict\n\ndef get_config():\n    return ConfigDict({values!r})\n")
    return path


# Everything is kept, so that losses can be compared; the first stage is long enough to learn in.
COMMON = tiny_config(
    flow=configs.Flow(dropout=(0.0, 0.0, 0.0, 1.0)),
    stages=(configs.Stage(steps=60, rate=5e-3), configs.Stage(steps=4, past=True, rate=1e-3)),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The work folder of an undisturbed run of COMMON; tests/test_faults.py has runs that are processes."""
    folder, said = tmp_path_factory.mktemp("run"), io.StringIO()
    with contextlib.redirect_stdout(said), jax.numpy_dtype_promotion("standard"):
        train.main(["train", "--config", str(config_file(folder, COMMON)), "--workdir", str(folder / "work")])
    assert "gain" in said.getvalue() and "control of yaw" in said.getvalue()
    return folder / "work"


def test_a_run_leaves_all_it_promises(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 65))
    assert all(np.isfinite(line["loss"]) for line in lines)
    for name in ("config.json", "results/sample.mp4", "results/contact_sheet.png", "results/results.md"):
        assert (finished / name).stat().st_size > 0
    assert list((finished / "tensorboard").iterdir())


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--config.data.frame=3"], "frame"),
        (["--config.data.size=30"], "config.data.size=30 must be a multiple of 8"),
        (["--config.model.backbone.heads=5"], "backbone.heads=5 must divide"),
        (["--config.data.source=videos", "--config.data.path=nowhere"], "is not a folder"),
        (["--config.mesh.data=3"], "cannot be made from 1 devices"),
        (["--config.backbone=nowhere", "--config.seed=1"], "nowhere is not a folder"),
        (["--config.mesh.data=3", "--config.prompt=no"], "2 problems, and nothing was started:"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, arguments, sentence):
    work, path = tmp_path / "work", config_file(tmp_path, tiny_config())
    with pytest.raises(UserError) as error:
        train.main(["train", "--config", str(path), "--workdir", str(work), *arguments])
    assert sentence in str(error.value) and ("\n" in str(error.value)) == ("problems" in sentence)
    assert not work.exists()


def test_the_command_says_it_on_stderr_and_fails(tmp_path):
    command = [sys.executable, "-m", "svdp_jax.train", "--config", tmp_path / "none.py"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("train: ") and "none.py" in line


def make(config):
    """The graph, a fresh state, and the step as a run calls it, so that one compiled before is found again."""
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        graph, state = start.initial_state(config, mesh)
        codec_graph, frozen = start.load_frozen(config, mesh)
    update = training.make_update(config, graph, codec_graph)

    def step(state, batch):
        with jax.set_mesh(mesh):
            return update(state, frozen=frozen, batch=parallel.global_batch(batch, mesh, config.data.batch))

    return graph, state, step


def batch(config, seed=0):
    d, random = config.data, np.random.default_rng(seed)
    shape = (d.size, d.size, 3)
    draw = lambda *lead: random.integers(0, 256, (d.batch, *lead, *shape), np.uint8)
    return {"source": draw(), "past": draw(d.past), "target": draw(d.frames), "driving": draw(d.frames)}


@pytest.fixture(scope="module")
def compiled():
    with jax.numpy_dtype_promotion("standard"):
        return make(COMMON)[1:]


@pytest.fixture
def common(compiled):
    """A fresh state and the step of COMMON, compiled once."""
    state, update = compiled
    return jax.tree.map(jax.numpy.copy, state), update


def test_loss_falls_on_one_batch(common):
    state, update = common
    losses = []
    for _ in range(60):
        state, metrics = update(state, batch(COMMON))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_accumulation_sees_the_whole_batch():
    """Two micro-batches of half the batch move the weights by their own mean gradient."""
    halves = dataclasses.replace(COMMON, optimizer=configs.Optimizer(warmup=2, accumulate=2))
    graph, state, update = make(halves)
    codec_graph, frozen = start.load_frozen(halves, parallel.make_mesh(halves.mesh))
    gradient = jax.jit(jax.grad(training.make_loss(halves, graph, codec_graph)))
    keys = jax.random.split(jax.random.fold_in(training.stream(halves, training.NOISE), 0), 2)
    parts = ({name: part[i::2] for name, part in batch(COMMON).items()} for i in range(2))
    one, other = (gradient(state.weights, state.constants, frozen, half, key, 0) for half, key in zip(parts, keys))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, one, other)
    expected = float(optax.tree.norm(mean))
    state, metrics = update(state, batch(COMMON))
    assert float(metrics["gradient_norm"]) == pytest.approx(expected, rel=1e-4)
    assert int(state.step) == 1


def test_past_is_zeros_in_the_first_stage_only(common):
    """Another past changes the loss in stage 2 and cannot in stage 1."""
    state, update = common
    placed = lambda x, like: jax.device_put(x, like.sharding)  # another layout would be compiled anew
    state = state._replace(weights=jax.tree.map(lambda w: placed(w + 0.1, w), state.weights))  # no zero gates
    one, other = batch(COMMON), batch(COMMON)
    other["past"] = 255 - other["past"]
    for step, matters in ((2, False), (61, True)):
        losses = []
        for pictures in (one, other):
            copy = jax.tree.map(jax.numpy.copy, state)._replace(step=placed(np.int32(step), state.step))
            losses.append(float(update(copy, pictures)[1]["loss"]))
        assert (losses[0] != losses[1]) == matters


def test_the_rate_warms_up_and_falls_in_each_stage():
    rate = training.rate(tiny_config())
    assert float(rate(0)) == pytest.approx(1e-3) and float(rate(1)) > float(rate(5))
    assert float(rate(6)) == pytest.approx(1e-3)


def test_the_rate_is_that_of_the_step_although_steps_were_skipped(common):
    """The optimizer has not moved in the first five steps; a first step of Adam is as long as its rate."""
    state, update = common
    late = jax.device_put(np.int32(5), state.step.sharding)
    lengths = []
    for step, one in ((0, jax.tree.map(jax.numpy.copy, state)), (5, state._replace(step=late))):
        metrics = update(one, batch(COMMON))[1]
        assert float(metrics["rate"]) == pytest.approx(float(training.rate(COMMON)(step)))
        lengths.append(float(metrics["update_norm/image.last"]) / float(metrics["rate"]))
    assert lengths[0] == pytest.approx(lengths[1], rel=0.1)


def test_norms_are_told_by_group(common):
    state, update = common
    _, metrics = update(state, batch(COMMON))
    groups = {name.split("/")[1] for name in metrics if "/" in name}
    assert {"image.last", "image.pos_embed", "image.proj_out", "video_last"} < groups
    parts = [float(metrics[f"gradient_norm/{group}"]) for group in groups]
    assert np.linalg.norm(parts) == pytest.approx(float(metrics["gradient_norm"]), rel=1e-4)


def test_the_average_follows_the_weights(common):
    state, update = common
    before = jax.device_get(state.weights)
    state, _ = update(state, batch(COMMON))
    decay = 1 / 10
    expected = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, before, state.weights)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state.average)):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_past_frames_matter():
    """After training with real past, a segment begins nearer to the frame before it.

    Each clip has a colour that only its past shows: the driver is all grey and the
    source is another clip's.
    """
    config = tiny_config(
        data=configs.Data(size=16, frames=2, past=1, batch=8),
        stages=(configs.Stage(steps=250, past=True, rate=4e-3),),
        flow=configs.Flow(mean=1.5, dropout=(0, 0, 0.2, 0.8)),
        optimizer=configs.Optimizer(warmup=10, average=0.9),
        sampling=configs.Sampling(steps=4, source=1.0, driving=1.0),
    )
    graph, state, update = make(config)
    codec = checkpoint.load_codec(config.model.codec)

    def clips(seed):
        colour = np.random.default_rng(seed).integers(0, 256, (8, 1, 1, 1, 3), np.uint8)
        film = np.broadcast_to(colour, (8, 3, 16, 16, 3))
        grey = np.full((8, 2, 16, 16, 3), 128, np.uint8)
        return {"source": film[::-1, 0], "past": film[:, :1], "target": film[:, 1:], "driving": grey}

    for seed in range(250):
        state, _ = update(state, clips(seed))
    engine = SVDPEngine(config, nnx.merge(graph, state.average, state.constants), codec)
    unseen = clips(1000)
    known = {name: engine.encode(unseen[name]) for name in ("source", "driving", "past")}
    noise = jax.random.normal(jax.random.key(0), known["driving"].shape)
    times = flow.schedule(config.sampling.steps, config.sampling.shift)

    def distance(conditions):
        clean = engine.advance(engine.state, noise, times, guidance.weights(config.sampling), conditions)
        first = np.asarray(engine.decode(clean)[:, 0], int)
        return np.abs(first - unseen["past"][:, -1]).mean()

    assert distance(known) < 0.6 * distance(known | {"past": 0 * known["past"]})


def test_what_the_driver_shows_is_counted_by_place():
    driving = np.full((1, 1, 4, 8, 3), 128, np.uint8)
    driving[..., :2, 4:, :] = 7  # the upper half of the right place
    shown = training.seen(jax.numpy.asarray(driving), 4)
    assert shown[0, 0, :, :, 0].tolist() == [[0.0, 0.5]]


def test_focus_weighs_the_loss_where_the_driver_is_seen():
    random = np.random.default_rng(0)
    latents = {name: random.standard_normal((2, 2, 4, 4, 48), np.float32) for name in ("target", "driving", "past")}
    parts = latents | {"source": latents["target"][:, 0], "seen": np.ones((2, 2, 4, 4, 1), np.float32)}
    halve = lambda x, *_, policy, **conditions: x / 2
    losses = {}
    for focus in (0.0, 3.0):
        config = tiny_config(flow=configs.Flow(focus=focus))
        losses[focus] = float(training.flow_loss(halve, None, parts | {"text": 0, "pooled": 0}, jax.random.key(0), config, 0))
    assert losses[3.0] == pytest.approx(4 * losses[0.0], rel=1e-5)


def test_weight_decay_spares_biases_and_scales(common):
    weights = jax.tree.map(lambda w: w + 1.0, common[0].weights)
    optimizer = training.make_optimizer(tiny_config(optimizer=configs.Optimizer(weight_decay=1.0, warmup=2)))
    still = jax.tree.map(jax.numpy.zeros_like, weights)
    updates, _ = jax.jit(lambda w: optimizer.update(still, optimizer.init(w), w))(weights)
    for name, change in checkpoint.named(updates).items():
        assert bool((change != 0).any()) == name.endswith("kernel"), name


def test_training_starts_from_the_model_of_another_run(tmp_path):
    """With other stages and other frames a segment; its average becomes the weights."""
    config = tiny_config()
    _, weights, constants = nnx.split(randomized(SVDP(config.model, nnx.Rngs(5))), nnx.Param, ...)
    checkpoint.save_model(tmp_path / "run" / "model", config, weights, constants)
    data = dataclasses.replace(config.data, frames=2 * config.data.frames)
    _, state, _ = make(dataclasses.replace(config, start=str(tmp_path / "run"), data=data))
    for loaded, saved in ((state.weights, weights), (state.average, weights), (state.constants, constants)):
        loaded, saved = checkpoint.named(loaded), checkpoint.named(saved)
        assert set(loaded) == set(saved) and all((np.asarray(loaded[name]) == saved[name]).all() for name in saved)
    assert int(state.step) == 0


def test_training_starts_from_a_converted_backbone(tmp_path):
    config = tiny_config()
    backbone = randomized(MMDiT(config.model.backbone, nnx.Rngs(5)))
    folder = tmp_path / "backbone"
    checkpoint.save_weights(folder, "sd35", config.model.backbone, checkpoint.named(nnx.state(backbone)))
    config = dataclasses.replace(config, backbone=str(folder))
    _, state, _ = make(config)
    mine = checkpoint.named(nnx.state(backbone, nnx.Param))
    for part in (state.weights, state.average):
        loaded = checkpoint.named(part["image"])
        assert set(loaded) == set(mine)
        assert all((np.asarray(loaded[name]) == np.asarray(mine[name])).all() for name in mine)
