"""python -m svdp_jax.train --config configs/toy_cpu.py [--workdir DIR] [--config.a.b=value ...]

Trains the video model. The work folder gets checkpoints, config.json, metrics
as JSON lines and TensorBoard, and at the end `model/` (weights for
`svdp_jax.animate`), a sample video, a contact sheet and a table of results.
Started again with the same folder, a run goes on where it was.
"""

import json
import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from einops import pack, rearrange, reduce, unpack
from flax import nnx
from ml_collections import config_flags
from tensorboardX import SummaryWriter
from tqdm import tqdm

from svdp_jax import checkpoint, config as configs, evaluate, parallel
from svdp_jax.animate import prompt_of
from svdp_jax.data import face, records
from svdp_jax.diffusion import flow, guidance
from svdp_jax.errors import UserError, say_errors
from svdp_jax.models.svdp import SVDP
from svdp_jax.models.vae import each_frame, from_uint8


class State(NamedTuple):
    """All that a run knows. Weights are nnx states, float32; `average` is their moving average."""

    step: jax.Array
    weights: nnx.State
    average: nnx.State
    constants: nnx.State
    optimizer: optax.OptState


def rate(config: configs.Config) -> optax.Schedule:
    """Learning rate by step: a cosine from peak to end in each stage, after one warm-up."""
    pieces = [
        optax.cosine_decay_schedule(stage.rate, stage.steps, stage.final_rate / stage.rate)
        for stage in config.stages
    ]
    staged = optax.join_schedules(pieces, configs.stage_ends(config)[:-1])
    warmup = optax.linear_schedule(1 / config.optimizer.warmup, 1, config.optimizer.warmup - 1)
    return lambda step: staged(step) * warmup(step)


def make_optimizer(config: configs.Config) -> optax.GradientTransformation:
    o = config.optimizer
    named = lambda path, _: parallel.parameter_name(path).endswith("kernel")
    kernels = lambda weights: jax.tree_util.tree_map_with_path(named, weights)
    adamw = optax.adamw(
        rate(config), o.beta1, o.beta2, weight_decay=o.weight_decay, mask=kernels, mu_dtype=o.moment
    )
    return optax.chain(optax.clip_by_global_norm(o.clip), adamw)


def state_maker(config: configs.Config, mesh: jax.sharding.Mesh):
    """The network's graph, and a function from a random key to a fresh State, jitted for the mesh.

    The optimizer's moments lie as their weights do.
    """
    graph = nnx.graphdef(nnx.eval_shape(lambda: SVDP(config.model, nnx.Rngs(0))))

    def make(key):
        _, weights, constants = nnx.split(SVDP(config.model, nnx.Rngs(key)), nnx.Param, ...)
        average = jax.tree.map(jnp.copy, weights)
        optimizer = make_optimizer(config).init(weights)
        return State(jnp.zeros((), jnp.int32), weights, average, constants, optimizer)

    shapes = jax.eval_shape(make, jax.random.key(0))
    return graph, jax.jit(make, out_shardings=parallel.parameter_shardings(shapes, mesh))


def initial_state(config: configs.Config, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, State]:
    """A fresh state on the mesh, with the backbone of the folder that the config names."""
    graph, make = state_maker(config, mesh)
    state = make(jax.random.key(config.seed))
    if config.backbone:
        image = checkpoint.load_parts(
            Path(config.backbone), state.weights["image"], state.constants["image"]
        )
        for part, loaded in zip((state.weights, state.constants), image):
            part["image"] = loaded
        state = state._replace(average=jax.tree.map(jnp.copy, state.weights))
    return graph, state


def seen(driving: jax.Array, factor: int, dtype) -> jax.Array:
    """How much of each latent's place the driver (b f y x 3, uint8) shows: b f y x 1."""
    shown = (driving != face.GREY).any(-1, keepdims=True).astype(dtype)
    return reduce(shown, "b f (y i) (x j) c -> b f y x c", "mean", i=factor, j=factor)


def loss(model, batch: dict, key: jax.Array, config: configs.Config, real_past) -> jax.Array:
    """Mean flow-matching loss of a batch of latents; `real_past` is 0 where past frames are zeros.

    batch: conditions and target as latents, text, pooled, and `seen` (b f y x 1).
    """
    keys = jax.random.split(key, 3)
    x0 = batch["target"]  # b f y x c
    noise = jax.random.normal(keys[0], x0.shape, x0.dtype)
    s = flow.sample_times(keys[1], len(x0), config.flow)
    conditions = {name: batch[name] for name in guidance.CONDITIONS}
    conditions["past"] *= real_past
    x, text, pooled = flow.noised(x0, noise, s), batch["text"], batch["pooled"]
    predict = lambda kept: model(x, s, text, pooled, policy=config.remat, **kept)
    prediction = guidance.with_dropout(
        predict, conditions, keys[2], config.flow.dropout, config.model.video.null
    )
    weight = 1 + config.flow.focus * batch["seen"]
    return flow.loss(prediction, x0, noise, s, config.model.predict, weight).mean()


class Frozen(NamedTuple):
    """What training reads and never changes: the codec's weights, and the prompt (t w), (w,)."""

    codec: nnx.State
    prompt: tuple[jax.Array, jax.Array]


def load_frozen(config: configs.Config, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, Frozen]:
    """The codec's graph, and what is frozen, whole on every device."""
    graph, weights = nnx.split(checkpoint.load_codec(config.model.codec))
    return graph, jax.device_put(Frozen(weights, prompt_of(config)), parallel.sharding(mesh))


def encode(codec, batch: dict, dtype) -> dict:
    """Parts of uint8 pictures (b ... y x 3) as latents. The codec's weights are cast to dtype."""
    graph, weights = nnx.split(codec)
    weights = jax.tree.map(lambda w: w.astype(dtype), weights)

    def local(weights, batch):
        run = lambda frame: nnx.merge(graph, weights).encode(from_uint8(frame, dtype))
        frames, shapes = pack(list(batch.values()), "* y x c")
        return dict(zip(batch, unpack(each_frame(run, frames, codec.at_once), shapes, "* y x c")))

    return parallel.per_device(local, weights, batch)


def as_latents(codec, batch: dict, dtype) -> dict:
    """All parts as latents, and `seen`; records hold just these, pictures are encoded."""
    if batch["target"].dtype != jnp.uint8:
        parts = {name: part.astype(dtype) for name, part in batch.items()}
        return parts | {"seen": parts["seen"] / 255}
    return encode(codec, batch, dtype) | {"seen": seen(batch["driving"], codec.factor, dtype)}


def make_loss(config: configs.Config, graph: nnx.GraphDef, codec_graph: nnx.GraphDef):
    """The loss of a batch of uint8 pictures or of records, computed in the config's dtype.

    Takes weights, constants, frozen, batch, key, and 1 or 0 for past frames that are real or zeros.
    """
    dtype = jnp.dtype(config.dtype)

    def batch_loss(weights, constants, frozen, batch, key, real_past):
        weights, constants = jax.tree.map(lambda w: w.astype(dtype), (weights, constants))
        latents = as_latents(nnx.merge(codec_graph, frozen.codec), batch, dtype)
        b = len(latents["target"])
        text, pooled = (jnp.broadcast_to(x.astype(dtype), (b, *x.shape)) for x in frozen.prompt)
        model = nnx.merge(graph, parallel.gathered(weights), constants)
        parts = latents | {"text": text, "pooled": pooled}
        return loss(model, parts, key, config, real_past)

    return batch_loss


def make_update(config: configs.Config, graph: nnx.GraphDef, codec_graph: nnx.GraphDef):
    """The step: (state, frozen, batch of uint8 pictures) to (state, metrics), jitted, donating the state."""
    optimizer, o = make_optimizer(config), config.optimizer
    gradient = jax.value_and_grad(make_loss(config, graph, codec_graph))
    real_past = np.array([stage.past for stage in config.stages], np.float32)
    ends = np.array(configs.stage_ends(config))

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, frozen: Frozen, batch: dict):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        stage = jnp.searchsorted(ends, state.step, side="right")
        past_on = jnp.asarray(real_past)[stage].astype(config.dtype)

        def accumulate(total, micro):
            value = gradient(state.weights, state.constants, frozen, *micro, past_on)
            return jax.tree.map(lambda t, v: t + v / o.accumulate, total, value), None

        # Every device has its share of every micro-batch.
        micros = jax.tree.map(lambda x: rearrange(x, "(b a) ... -> a b ...", a=o.accumulate), batch)
        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.weights)
        keys = jax.random.split(key, o.accumulate)
        (value, gradients), _ = jax.lax.scan(accumulate, zeros, (micros, keys))
        updates, moments = optimizer.update(gradients, state.optimizer, state.weights)
        weights = optax.apply_updates(state.weights, updates)
        # The early average forgets faster, or it would remember the initial weights for long.
        age = state.step.astype(jnp.float32)
        decay = jnp.minimum(o.average, (1 + age) / (10 + age))
        average = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, state.average, weights)
        metrics = {
            "loss": value,
            "gradient_norm": optax.global_norm(gradients),
            "rate": rate(config)(state.step),
        }
        return State(state.step + 1, weights, average, state.constants, moments), metrics

    return update


class Log:
    """Metrics as JSON lines and TensorBoard, averaged over the steps since the last line.

    One process writes; on the others there is nothing to be seen.
    """

    def __init__(self, folder: Path):
        first = jax.process_index() == 0
        self.lines = open(folder / "metrics.jsonl" if first else os.devnull, "a")
        self.board = SummaryWriter(str(folder / "tensorboard"), write_to_disk=first)
        self.pending, self.start = [], time.monotonic()

    def add(self, metrics: dict) -> None:
        self.pending.append(metrics)

    def write(self, step: int) -> dict:
        pending = jax.device_get(self.pending)
        means = {name: float(np.mean([m[name] for m in pending])) for name in pending[0]}
        means["seconds_per_step"] = (time.monotonic() - self.start) / len(pending)
        self.pending, self.start = [], time.monotonic()
        self.lines.write(json.dumps({"step": step} | means) + "\n")
        self.lines.flush()
        for name, value in means.items():
            self.board.add_scalar(name, value, step)
        return means


def train(config: configs.Config, workdir: Path) -> None:
    """Runs or resumes a training, to the finished model in `workdir/model`."""
    parallel.start()
    parallel.need(config.topology)
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        run(config, workdir, mesh)


def run(config: configs.Config, workdir: Path, mesh: jax.sharding.Mesh) -> None:
    codec_graph, frozen = load_frozen(config, mesh)
    rows = parallel.own_rows(mesh, config.data.batch)
    data = iter(records.batches(config, workdir / "clips", rows))
    workdir.mkdir(parents=True, exist_ok=True)
    graph, state = initial_state(config, mesh)
    runs = checkpoint.Runs(workdir, config)
    state = runs.resume(state, data)
    update = make_update(config, graph, codec_graph)
    size = sum(w.size for w in jax.tree.leaves(state.weights))
    logging.info("%s: %.2f M parameters on %s, in %s", config.name, size / 1e6, mesh.shape, workdir)

    stop = stop_signal()
    log = Log(workdir)
    total = configs.stage_ends(config)[-1]
    first = jax.process_index() == 0
    bar = tqdm(initial=int(state.step), total=total, desc=config.name, unit="step", disable=not first)
    for step in range(int(state.step) + 1, total + 1):
        batch = parallel.global_batch(next(data), mesh, config.data.batch)
        state, metrics = update(state, frozen, batch)
        log.add(metrics)
        if step % config.log_every == 0 or step == total:
            bar.set_postfix(loss=f"{log.write(step)['loss']:.4f}", refresh=False)
        bar.update()
        stopping = stop.is_set() or runs.preempted(step)
        if step % config.save_every == 0 or step == total or stopping:
            runs.save(state, data)
        if stopping:
            runs.close()
            logging.warning("Stopped at step %d, saved; the same command goes on from there.", step)
            sys.exit(0)
    bar.close()
    runs.close()
    checkpoint.save_model(workdir / "model", config, state.average, state.constants)


def stop_signal() -> threading.Event:
    """An event that SIGTERM sets, so that a preempted run saves before it ends."""
    event = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: event.set())
    return event


def parse(arguments: list[str], values: flags.FlagValues) -> configs.Config:
    """The config, beside the flags already defined. Raises UserError for what is neither."""
    config_flags.DEFINE_config_file("config", sys_argv=arguments, flag_values=values)
    try:
        values(arguments)
        if values.config is None:
            raise UserError("name a config, such as --config configs/toy_cpu.py.")
        return configs.from_flags(values.config)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error.args[-1]).split())
        raise UserError(f"cannot use these flags: {reason}") from None


def main(arguments: list[str]) -> None:
    if "--help" in arguments:
        print(__doc__)
        return
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", "", "Folder of the run; runs/NAME by default.", flag_values=values)
    config = parse(arguments, values)
    workdir = Path(values.workdir or f"runs/{config.name}")
    train(config, workdir)
    if jax.process_index() > 0:
        return
    if config.data.source == "toy" and config.evaluate:
        animator = evaluate.Animator.load(workdir)
        print(evaluate.table(evaluate.evaluate(animator, config.evaluate, workdir / "results")))
    print(f"The model is in {workdir / 'model'}; animate with --checkpoint {workdir}.")


if __name__ == "__main__":
    say_errors("train", lambda: main(sys.argv))
