"""python -m svdp_jax.train --config configs/toy_cpu.py [--workdir DIR] [--config.a.b=value ...]

Trains the video model. The work folder gets checkpoints, config.json, metrics
as JSON lines and TensorBoard, events.jsonl for all that is out of the ordinary,
and at the end `model/` (weights for `svdp_jax.animate`), a sample video, a
contact sheet and a table of results.

Ctrl-C or SIGTERM saves and ends with 0, at any moment; a second Ctrl-C ends at
once. Started again with the same folder, a run goes on exactly where it was, on
as many devices as there are then. It refuses to with another config, other data
or other code, unless --force-resume is given.
"""

# Imports take seconds, and a signal in them must be heard too.
from svdp_jax import stop

if __name__ == "__main__":
    stop.listen()

import contextlib
import dataclasses
import logging
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from einops import pack, rearrange, reduce, repeat, unpack
from flax import nnx
from jax._src import distributed  # the only way to its client, on which Orbax and others rely as well
from ml_collections import config_flags
from tqdm import tqdm

from svdp_jax import checkpoint, config as configs, parallel, preflight, toy_score
from svdp_jax.alarm import Watch
from svdp_jax.animator import Animator
from svdp_jax.data import face, records
from svdp_jax.data.feed import Feed, Reading
from svdp_jax.diffusion import flow, guidance
from svdp_jax.errors import UserError, say_errors
from svdp_jax.health import Health
from svdp_jax.journal import Journal
from svdp_jax.models.svdp import SVDP
from svdp_jax.models.vae import each_frame, from_uint8, to_uint8
from svdp_jax.prompts import prompt_of
from svdp_jax.runs import Runs, fingerprint

logger = logging.getLogger("svdp_jax.train")  # also where this is __main__


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
    """A fresh state on the mesh, with the weights of the folder that the config names, if it does."""
    graph, make = state_maker(config, mesh)
    state = make(jax.random.key(config.seed))
    weights, constants = state.weights, state.constants
    if not (config.start or config.backbone):
        return graph, state
    if config.start:
        weights, constants = checkpoint.load_parts(checkpoint.model_folder(Path(config.start)), weights, constants)
    else:
        image = checkpoint.load_parts(Path(config.backbone), weights["image"], constants["image"])
        for part, loaded in zip((weights, constants), image):
            part["image"] = loaded
    return graph, state._replace(weights=weights, constants=constants, average=jax.tree.map(jnp.copy, weights))


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


def as_pictures(codec, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pictures of a batch; those of records are decoded, grey where the driver is not seen."""
    if batch["target"].dtype == np.uint8:
        return batch
    seen = repeat(batch["seen"] > 127, "b f y x c -> b f (y i) (x j) c", i=codec.factor, j=codec.factor)
    show = jax.jit(lambda x: each_frame(lambda z: to_uint8(codec.decode(z.astype(jnp.float32))), x, codec.at_once))
    pictures = {name: np.asarray(show(part)) for name, part in batch.items() if name != "seen"}
    return pictures | {"driving": face.mask_driving(pictures["driving"], seen[..., 0])}


def make_watch(config, graph, codec_graph, frozen: Frozen, mesh, example, journal: Journal) -> Watch:
    """The watch for copying: errors with all conditions but the past, always at the same times and noise."""
    everything = dataclasses.replace(config.flow, dropout=(0.0, 0.0, 0.0, 1.0))
    measured = jax.jit(make_loss(dataclasses.replace(config, flow=everything), graph, codec_graph))
    no_past = jnp.zeros((), config.dtype)
    rows = parallel.own_rows(mesh, config.data.batch)

    def error(weights, constants, batch):
        placed = parallel.global_batch(batch, mesh, config.data.batch)
        return measured(weights, constants, frozen, placed, jax.random.key(config.seed), no_past)

    codec = nnx.merge(codec_graph, frozen.codec)
    return Watch(lambda: as_pictures(codec, records.held_out(config, example, rows)), error, journal)


def make_update(config: configs.Config, graph: nnx.GraphDef, codec_graph: nnx.GraphDef):
    """The step: (state, frozen, batch of uint8 pictures) to (state, metrics), jitted, donating the state.

    Where the loss or a gradient is not finite, nothing of the state changes but its step.
    """
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
        norm = optax.tree.norm(gradients)
        metrics = {"loss": value, "gradient_norm": norm, "rate": rate(config)(state.step)}
        metrics |= norms("gradient", gradients) | norms("update", updates)
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        metrics["skipped"] = ~sound
        kept = (state.weights, state.average, state.optimizer)
        changed = (weights, average, moments)
        weights, average, moments = jax.tree.map(partial(jnp.where, sound), changed, kept)
        return State(state.step + 1, weights, average, state.constants, moments), metrics

    return update


def norms(kind: str, tree: nnx.State) -> dict[str, jax.Array]:
    """Norms of gradients or updates by group of parameters, such as gradient_norm/image.dual."""
    groups = defaultdict(list)
    for name, leaf in checkpoint.named(tree).items():
        groups[".".join(name.split(".")[: 2 if name.startswith("image.") else 1])].append(leaf)
    return {f"{kind}_norm/{group}": optax.tree.norm(leaves) for group, leaves in groups.items()}


def train(config: configs.Config, workdir: Path, force: bool = False) -> None:
    """Runs or resumes a training, to the finished model in `workdir/model`. force: see `preflight.check`."""
    preflight.check(config, workdir, force)
    mesh = parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        run(config, workdir, mesh)


def run(config: configs.Config, workdir: Path, mesh: jax.sharding.Mesh) -> None:
    codec_graph, frozen = load_frozen(config, mesh)
    rows = parallel.own_rows(mesh, config.data.batch)
    example = Reading(records.examples(config, workdir / "clips"))
    data = iter(records.batches(config, example, rows))
    workdir.mkdir(parents=True, exist_ok=True)
    graph, state = initial_state(config, mesh)
    runs = Runs(workdir, config)
    state, place = runs.resume(state)
    if place is not None:
        data.set_state(place)
    with contextlib.closing(Journal(workdir, int(state.step), configs.stage_ends(config)[-1])) as journal:
        introduce(config, workdir, mesh, state, journal)
        update = partial(make_update(config, graph, codec_graph), frozen=frozen)
        watch = make_watch(config, graph, codec_graph, frozen, mesh, example, journal)
        state = steps(config, mesh, state, update, Feed(data, journal.tell, example), runs, journal, watch)
        checkpoint.save_model(workdir / "model", config, state.average, state.constants)
        journal.tell("finished", {})


def introduce(config: configs.Config, workdir: Path, mesh, state: State, journal: Journal) -> None:
    """Says what the run is and where its files are."""
    size = sum(w.size for w in jax.tree.leaves(state.weights))
    step, facts = int(state.step), fingerprint(config)
    logger.info(
        "%s: %.2f M parameters on %s (%s), step %d of %d, %s, seed %d\n"
        "in %s: checkpoints/ every %d steps, the newest %d kept; metrics.jsonl, tensorboard/, events.jsonl",
        config.name, size / 1e6, facts["devices"], ", ".join(f"{a}={n}" for a, n in mesh.shape.items()),
        step, journal.total, facts["data"], config.seed, workdir, config.save_every, config.keep,
    )  # fmt: skip
    journal.tell("started", facts | {"parameters": size, "mesh": dict(mesh.shape), "seed": config.seed})


def steps(config: configs.Config, mesh, state: State, update, feed, runs: Runs, journal: Journal, watch: Watch) -> State:
    """The loop. Whatever ends it early, what was done is saved first."""
    start, total = int(state.step), journal.total
    health, told = Health(config.data.batch, journal), Told(mesh)
    bar = tqdm(
        initial=start, total=total, desc=config.name, unit="step", disable=jax.process_index() > 0
    )
    with contextlib.ExitStack() as unsaved:
        for step in range(start + 1, total + 1):
            batch = parallel.global_batch(next_or_save(feed, state, runs), mesh, config.data.batch)
            state, metrics = update(state, batch=batch)
            if step == start + 1:
                jax.block_until_ready(metrics)  # compiled: from here on there is something to lose
                unsaved.enter_context(stop.work_to_save())
            journal.add(step, metrics)
            hopeless = health.hopeless(step, metrics)
            if step % config.log_every == 0 or step == total:
                bar.set_postfix(loss=journal.write()["loss"], refresh=False)
            if config.watch_every and step % config.watch_every == 0:
                watch.check(state.average, state.constants)
            bar.update()
            stopping = told.stop()
            if step % config.save_every == 0 or step == total or stopping or hopeless:
                runs.save(state, feed.state)
            if stopping or hopeless:
                end(step, hopeless, runs, journal)
        runs.close()
    bar.close()
    return state


def next_or_save(feed: Feed, state: State, runs: Runs) -> dict:
    """The next batch; where data fails, the state is saved before the error is raised."""
    try:
        return next(feed)
    except UserError:
        if jax.process_count() == 1 and int(state.step) > 0:  # of several hosts, the others are at the step
            runs.save(state, feed.state)
            runs.close()
        raise


def end(step: int, hopeless: str, runs: Runs, journal: Journal) -> None:
    """Ends the process when the state is on disk: with 0 where it was told to stop."""
    runs.close()
    journal.step = step
    journal.tell("failed" if hopeless else "stopped", {"why": hopeless})
    if hopeless:
        raise UserError(hopeless)
    logger.warning("Stopped at step %d, saved; the same command goes on from there.", step)
    sys.exit(0)


class Told:
    """Whether to stop. Several hosts find out together, one step after the first of them was told."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self.mesh, self.poll = mesh, None

    def stop(self) -> bool:
        if jax.process_count() == 1:
            return stop.asked()
        last, self.poll = self.poll, parallel.poll(self.mesh, stop.asked())
        return last is not None and bool(last)


def speak() -> None:
    """Lets the package's own words through to stderr, without those of its libraries."""
    handler, package = logging.StreamHandler(), logging.getLogger("svdp_jax")
    handler.setFormatter(logging.Formatter("%(message)s"))
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False


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
    flags.DEFINE_bool("force-resume", False, "Go on although the run is another.", flag_values=values)
    config = parse(arguments, values)
    workdir = Path(values.workdir or f"runs/{config.name}")
    parallel.start()
    if jax.process_count() > 1:
        stop.listen()  # again, as jax.distributed takes SIGTERM for itself
        stop.together(distributed.global_state.client, jax.process_index())
    train(config, workdir, values["force-resume"].value)
    if jax.process_index() > 0:
        return
    if config.data.source == "toy" and config.evaluate:
        animator = Animator.load(workdir)
        print(toy_score.table(toy_score.evaluate(animator, config.evaluate, workdir / "results")))
    print(f"The model is in {workdir / 'model'}; animate with --checkpoint {workdir}.")


if __name__ == "__main__":
    speak()
    with stop.at_once():
        say_errors("train", lambda: main(sys.argv))
