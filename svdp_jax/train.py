"""python -m svdp_jax.train --config configs/toy_cpu.py [--workdir DIR] [--config.a.b=value ...]

Trains the video model. The work folder gets checkpoints, config.json, metrics
as JSON lines and TensorBoard, and at the end `model/` (weights for
`svdp_jax.animate`), a sample video, a contact sheet and a table of results.
Started again with the same folder, a run goes on where it was.
"""

import json
import logging
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
from flax import nnx
from ml_collections import config_flags
from tensorboardX import SummaryWriter
from tqdm import tqdm

from svdp_jax import checkpoint, config as configs, evaluate, parallel
from svdp_jax.animate import prompt_of
from svdp_jax.data import records
from svdp_jax.diffusion import flow, guidance
from svdp_jax.errors import UserError, say_errors
from svdp_jax.models.svdp import SVDP


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
    staged = optax.join_schedules(pieces, stage_ends(config)[:-1])
    warmup = optax.linear_schedule(1 / config.optimizer.warmup, 1, config.optimizer.warmup - 1)
    return lambda step: staged(step) * warmup(step)


def stage_ends(config: configs.Config) -> list[int]:
    return np.cumsum([stage.steps for stage in config.stages]).tolist()


def make_optimizer(config: configs.Config) -> optax.GradientTransformation:
    o = config.optimizer
    matrices = lambda weights: jax.tree.map(lambda w: w.ndim > 1, weights)
    return optax.chain(
        optax.clip_by_global_norm(o.clip),
        optax.adamw(rate(config), o.beta1, o.beta2, weight_decay=o.weight_decay, mask=matrices),
    )


def initial_state(config: configs.Config, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, State]:
    """A fresh state, made in place on the mesh. The optimizer's moments lie as their weights do."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: SVDP(config.model, nnx.Rngs(0))))

    def make(key):
        _, weights, constants = nnx.split(SVDP(config.model, nnx.Rngs(key)), nnx.Param, ...)
        average = jax.tree.map(jnp.copy, weights)
        optimizer = make_optimizer(config).init(weights)
        return State(jnp.zeros((), jnp.int32), weights, average, constants, optimizer)

    key = jax.random.key(config.seed)
    shardings = parallel.parameter_shardings(jax.eval_shape(make, key), mesh)
    return graph, jax.jit(make, out_shardings=shardings)(key)


def loss(model, batch: dict, key: jax.Array, config: configs.Config, real_past) -> jax.Array:
    """Mean flow-matching loss of a batch of latents; `real_past` is 0 where past frames are zeros."""
    keys = jax.random.split(key, 3)
    x0 = batch["target"]  # b f y x c
    noise = jax.random.normal(keys[0], x0.shape, x0.dtype)
    s = flow.sample_times(keys[1], len(x0), config.flow)
    conditions = {name: batch[name] for name in guidance.CONDITIONS}
    conditions["past"] *= real_past
    predict = lambda kept: model(flow.noised(x0, noise, s), s, batch["text"], batch["pooled"], **kept)
    prediction = guidance.with_dropout(
        predict, conditions, keys[2], config.flow.dropout, config.model.video.null
    )
    return flow.loss(prediction, x0, noise, s, config.model.predict).mean()


def make_update(config: configs.Config, graph: nnx.GraphDef, codec, prompt):
    """The step: (state, batch of uint8 pictures) to (state, metrics), jitted, donating the state."""
    optimizer, o = make_optimizer(config), config.optimizer
    dtype = jnp.dtype(config.dtype)
    real_past = jnp.array([stage.past for stage in config.stages], dtype)
    ends = jnp.array(stage_ends(config))

    def batch_loss(weights, constants, batch, key, past_on):
        weights, constants = jax.tree.map(lambda w: w.astype(dtype), (weights, constants))
        latents = {k: codec.encode(x.astype(dtype) / 127.5 - 1) for k, x in batch.items()}
        b = len(latents["target"])
        text, pooled = (jnp.broadcast_to(x.astype(dtype), (b, *x.shape)) for x in prompt)
        model = nnx.merge(graph, weights, constants)
        return loss(model, latents | {"text": text, "pooled": pooled}, key, config, past_on)

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, batch: dict):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        past_on = real_past[jnp.searchsorted(ends, state.step, side="right")]

        def accumulate(total, micro):
            value = jax.value_and_grad(batch_loss)(state.weights, state.constants, *micro, past_on)
            return jax.tree.map(lambda t, v: t + v / o.accumulate, total, value), None

        micros = jax.tree.map(lambda x: x.reshape(o.accumulate, -1, *x.shape[1:]), batch)
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
    """Metrics as JSON lines and TensorBoard, averaged over the steps since the last line."""

    def __init__(self, folder: Path):
        self.lines = open(folder / "metrics.jsonl", "a")
        self.board = SummaryWriter(str(folder / "tensorboard"))
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
    mesh = parallel.make_mesh(config.mesh)
    codec = checkpoint.load_codec(config.model.codec)
    prompt = prompt_of(config)
    data = iter(records.batches(config, workdir / "clips"))
    workdir.mkdir(parents=True, exist_ok=True)
    graph, state = initial_state(config, mesh)
    runs = checkpoint.Runs(workdir, config)
    state = runs.resume(state, data)
    update = make_update(config, graph, codec, prompt)
    size = sum(w.size for w in jax.tree.leaves(state.weights))
    logging.info("%s: %.2f M parameters on %s, in %s", config.name, size / 1e6, mesh.shape, workdir)

    stop = stop_signal()
    log = Log(workdir)
    total = stage_ends(config)[-1]
    bar = tqdm(initial=int(state.step), total=total, desc=config.name, unit="step")
    for step in range(int(state.step) + 1, total + 1):
        batch = jax.device_put(next(data), parallel.sharding(mesh, "batch"))
        state, metrics = update(state, batch)
        log.add(metrics)
        if step % config.log_every == 0 or step == total:
            bar.set_postfix(loss=f"{log.write(step)['loss']:.4f}", refresh=False)
        bar.update()
        if step % config.save_every == 0 or step == total or stop.is_set():
            runs.save(state, data)
        if stop.is_set():
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


def parse(arguments: list[str]) -> tuple[configs.Config, Path]:
    """The config and the work folder. Raises UserError for what is neither flag nor field."""
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string("workdir", "", "Folder of the run; runs/NAME by default.", **define)
    config_flags.DEFINE_config_file("config", sys_argv=arguments, **define)
    try:
        values(arguments)
        if values.config is None:
            raise UserError("name a config, such as --config configs/toy_cpu.py.")
        config = configs.from_flags(values.config)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error.args[-1]).split())
        raise UserError(f"cannot use these flags: {reason}") from None
    return config, Path(values.workdir or f"runs/{config.name}")


def main(arguments: list[str]) -> None:
    if "--help" in arguments:
        print(__doc__)
        return
    config, workdir = parse(arguments)
    train(config, workdir)
    if config.data.source == "toy" and config.evaluate:
        animator = evaluate.Animator.load(workdir)
        print(evaluate.table(evaluate.evaluate(animator, config.evaluate, workdir / "results")))
    print(f"The model is in {workdir / 'model'}; animate with --checkpoint {workdir}.")


if __name__ == "__main__":
    say_errors("train", lambda: main(sys.argv))
