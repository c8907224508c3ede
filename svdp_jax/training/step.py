"""The training step, pure: what a run knows (`State`), the loss of a batch, and the update of the state.

A batch of uint8 pictures or of records becomes latents, a loss and a new state; nothing here reads a file,
so that `planning` compiles just what `svdp_jax.train` runs. The networks alone compute in the config's dtype:
latents, noise, target and loss are float32.
"""

from collections import defaultdict
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from einops import pack, rearrange, reduce, unpack
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.diffusion import flow, guidance
from svdp_jax.faces import face
from svdp_jax.models import learned
from svdp_jax.models.vae import encode_frames
from svdp_jax.training import distill, own_past, reconstruction
from svdp_jax.weights import adapter, checkpoint

# Streams of random numbers, apart from one another and from the examples, whose indices are smaller.
NOISE, WEIGHTS = (1 << 32) - 1, (1 << 32) - 2


def stream(config: configs.Config, number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(config.seed), np.uint32(number))


class State(NamedTuple):
    """All that a run knows. Weights, what of the network learns, are an nnx state, float32; `average` is their
    moving average; `constants` are the rest of the network."""

    step: jax.Array
    weights: nnx.State
    average: nnx.State
    constants: nnx.State
    optimizer: optax.OptState


def rate(config: configs.Config) -> optax.Schedule:
    """Learning rate by step: a cosine from peak to end in each stage, after one warm-up."""
    pieces = [optax.cosine_decay_schedule(stage.rate, stage.steps, stage.final_rate / stage.rate) for stage in config.stages]
    staged = optax.join_schedules(pieces, configs.stage_ends(config)[:-1])
    warmup = optax.linear_schedule(1 / config.optimizer.warmup, 1, config.optimizer.warmup - 1)
    return lambda step: staged(step) * warmup(step)


def make_optimizer(config: configs.Config) -> optax.GradientTransformation:
    """AdamW but for its rate, which goes by the step of the state: the optimizer does not count steps that are skipped."""
    o = config.optimizer
    named = lambda path, _: parallel.parameter_name(path).endswith("kernel")
    kernels = lambda weights: jax.tree_util.tree_map_with_path(named, weights)
    return optax.chain(
        optax.clip_by_global_norm(o.clip),
        optax.scale_by_adam(o.beta1, o.beta2, mu_dtype=o.moment),
        optax.add_decayed_weights(o.weight_decay, kernels),
    )


def state_maker(config: configs.Config, mesh: jax.sharding.Mesh):
    """The network's graph, and a function from a random key to a fresh State, jitted for the mesh.

    The optimizer's moments lie as their weights do.
    """
    graph = adapter.abstract(config)[0]

    def make(key):
        _, weights, constants = learned.parted(adapter.network(config, nnx.Rngs(key)), config.learn)
        average = jax.tree.map(jnp.copy, weights)
        optimizer = make_optimizer(config).init(weights)
        return State(jnp.zeros((), jnp.int32), weights, average, constants, optimizer)

    shapes = jax.eval_shape(make, jax.random.key(0))
    return graph, jax.jit(make, out_shardings=parallel.parameter_shardings(shapes, mesh))


def abstract_state(config: configs.Config, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, State]:
    """The network's graph, and the training state as shapes with their layout."""
    graph, make = state_maker(config, mesh)
    shapes = jax.eval_shape(make, jax.random.key(0))
    layouts = parallel.parameter_shardings(shapes, mesh)
    place = lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)
    return graph, jax.tree.map(place, shapes, layouts)


class Frozen(NamedTuple):
    """What training reads and never changes: the codec's weights, the prompt (t w), (w,), and a student's teacher."""

    codec: nnx.State
    prompt: tuple[jax.Array | np.ndarray, jax.Array | np.ndarray]
    teacher: tuple[nnx.GraphDef, nnx.State] | None = None


def seen(driving: jax.Array, factor: int) -> jax.Array:
    """How much of each latent's place the driver (b f y x 3, uint8) shows: b f y x 1."""
    shown = (driving != face.GREY).any(-1, keepdims=True).astype(jnp.float32)
    return reduce(shown, "b f (y i) (x j) c -> b f y x c", "mean", i=factor, j=factor)


def encode(codec, batch: dict, dtype) -> dict:
    """Parts of uint8 pictures (b ... y x 3) as latents. The codec's weights are cast to dtype."""
    graph, weights = nnx.split(codec)
    weights = jax.tree.map(lambda w: w.astype(dtype), weights)

    def local(weights, batch):
        frames, shapes = pack(list(batch.values()), "* y x c")
        return dict(zip(batch, unpack(encode_frames(nnx.merge(graph, weights), frames), shapes, "* y x c")))

    return parallel.per_device(local, weights, batch)


def as_latents(codec, batch: dict, dtype) -> dict:
    """All parts as latents, and `seen`, float32; records hold just these, pictures are encoded in the dtype."""
    if batch["target"].dtype != jnp.uint8:
        parts = {name: part.astype(jnp.float32) for name, part in batch.items()}
        return parts | {"seen": parts["seen"] / 255}
    return encode(codec, batch, dtype) | {"seen": seen(batch["driving"], codec.factor)}


def flow_loss(model, teacher, batch: dict, key: jax.Array, config: configs.Config, stage: jax.Array) -> jax.Array:
    """Mean flow-matching loss of a batch of latents, in the stage of this number.

    batch: conditions and target as latents, float32, text and pooled in the network's dtype, and
    `seen` (b f y x 1). teacher: who makes the past, where it is the model's own.
    """
    keys = jax.random.split(key, 3)
    if teacher and own_past.needed(config):
        share = jnp.asarray([stage.own_past for stage in config.stages], jnp.float32)[stage]
        batch = batch | {"past": own_past.mixed(teacher, batch, jax.random.fold_in(key, 3), share, config)}
    x0, dtype = batch["target"], jnp.dtype(config.dtype)  # b f y x c
    noise = flow.noise(keys[0], x0.shape)
    s = flow.sample_times(keys[1], len(x0), config.flow)
    conditions = {name: batch[name].astype(dtype) for name in guidance.CONDITIONS}
    x, text, pooled = flow.noised(x0, noise, s), batch["text"], batch["pooled"]
    told = {"told": jnp.stack([*[jnp.ones_like(s)] * 3, s], 1)} if config.model.told else {}  # no guidance, a step of no length
    predict = lambda kept: model(x.astype(dtype), s, text, pooled, policy=config.remat, **told, **kept)
    chances = guidance.chances(config.flow, config.stages, stage)
    prediction = guidance.with_dropout(predict, conditions, keys[2], chances, config.model.video.null)
    weight = 1 + config.flow.focus * batch["seen"]
    return flow.loss(prediction.astype(jnp.float32), x0, noise, s, config.model.predict, weight).mean()


LOSSES = {"flow": flow_loss, "path": distill.loss}  # by kind of stage


def make_loss(config: configs.Config, graph: nnx.GraphDef, codec_graph: nnx.GraphDef):
    """The loss of a batch of uint8 pictures or of records, its network computed in the config's dtype.

    Takes weights, constants, frozen, batch, key, and the number of the stage.
    """
    dtype, kinds = jnp.dtype(config.dtype), sorted({stage.kind for stage in config.stages})
    kind_of = np.array([kinds.index(stage.kind) for stage in config.stages])

    def batch_loss(weights, constants, frozen, batch, key, stage):
        weights, constants = learned.cast((weights, constants), dtype)
        latents = as_latents(nnx.merge(codec_graph, frozen.codec), batch, dtype)
        b = len(latents["target"])
        text, pooled = (jnp.broadcast_to(x.astype(dtype), (b, *x.shape)) for x in frozen.prompt)
        model = nnx.merge(graph, parallel.gathered(weights), constants)
        parts = latents | {"text": text, "pooled": pooled}
        teacher = nnx.merge(frozen.teacher[0], parallel.gathered(frozen.teacher[1])) if frozen.teacher else None
        losses = [partial(LOSSES[kind], model, teacher, parts, key, config, stage) for kind in kinds]
        return jax.lax.switch(jnp.asarray(kind_of)[stage], losses)

    return batch_loss


MAKERS = {"video": make_loss, "codec": reconstruction.make_loss}  # of losses, by what a run trains


def make_update(config: configs.Config, graph: nnx.GraphDef, codec_graph: nnx.GraphDef):
    """The step: (state, frozen, batch of uint8 pictures) to (state, metrics), jitted, donating the state.

    Where the loss or a gradient is not finite, nothing of the state changes but its step.
    """
    optimizer, o = make_optimizer(config), config.optimizer
    gradient = jax.value_and_grad(MAKERS[config.trains](config, graph, codec_graph))
    ends = np.array(configs.stage_ends(config))

    @partial(jax.jit, donate_argnums=0)
    def update(state: State, frozen: Frozen, batch: dict):
        key = jax.random.fold_in(stream(config, NOISE), state.step)
        stage = jnp.searchsorted(ends, state.step, side="right")

        if own_past.needed(config):
            average = learned.cast(nnx.merge_state(state.average, state.constants), config.dtype)
            frozen = frozen._replace(teacher=(graph, average))

        def accumulate(total, micro):
            value = gradient(state.weights, state.constants, frozen, *micro, stage)
            return jax.tree.map(lambda t, v: t + v / o.accumulate, total, value), None

        # Every device has its share of every micro-batch.
        micros = jax.tree.map(lambda x: rearrange(x, "(b a) ... -> a b ...", a=o.accumulate), batch)
        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.weights)
        keys = jax.random.split(key, o.accumulate)
        if o.accumulate > 1:
            (value, gradients), _ = jax.lax.scan(accumulate, zeros, (micros, keys))
        else:  # in no loop, as there XLA makes convolutions some thirty times slower on a CPU
            (value, gradients), _ = accumulate(zeros, jax.tree.map(lambda x: x[0], (micros, keys)))
        directions, moments = optimizer.update(gradients, state.optimizer, state.weights)
        now = jnp.asarray(rate(config)(state.step))
        updates = jax.tree.map(lambda d: -now * d, directions)
        weights = optax.apply_updates(state.weights, updates)
        # The early average forgets faster, or it would remember the initial weights for long.
        age = state.step.astype(jnp.float32)
        decay = jnp.minimum(o.average, (1 + age) / (10 + age))
        average = jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, state.average, weights)
        norm = optax.tree.norm(gradients)
        metrics = {"loss": value, "gradient_norm": norm, "rate": now}
        metrics |= norms("gradient", gradients) | norms("update", updates)
        sound = jnp.isfinite(value) & jnp.isfinite(norm)
        metrics["skipped"] = ~sound
        kept = (state.weights, state.average, state.optimizer)
        changed = (weights, average, moments)
        weights, average, moments = jax.tree.map(partial(jnp.where, sound), changed, kept)
        return State(state.step + 1, weights, average, state.constants, moments), metrics

    return update


def norms(kind: str, tree: nnx.State | optax.Updates) -> dict[str, jax.Array]:
    """Norms of gradients or updates by group of parameters, such as gradient_norm/image.dual."""
    groups = defaultdict(list)
    for name, leaf in checkpoint.named(tree).items():
        groups[".".join(name.split(".")[: 2 if name.startswith("image.") else 1])].append(leaf)
    return {f"{kind}_norm/{group}": optax.tree.norm(leaves) for group, leaves in groups.items()}
