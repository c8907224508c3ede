"""What a run starts from: fresh weights or another run's, and what it reads and never changes."""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.models.vae import PixelCodec
from svdp_jax.training.step import WEIGHTS, Frozen, State, state_maker, stream
from svdp_jax.weights import checkpoint, shipped
from svdp_jax.weights.prompts import prompt_of


def initial_state(config: configs.Config, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, State]:
    """A fresh state on the mesh, with the weights of the folder that the config names, if it does."""
    graph, make = state_maker(config, mesh)
    state = make(stream(config, WEIGHTS))
    weights, constants = state.weights, state.constants
    if not (config.start or config.teacher or config.backbone):
        return graph, state
    if config.start:
        weights, constants = checkpoint.load_parts(checkpoint.model_folder(Path(config.start)), weights, constants)
    elif config.teacher:
        taught = checkpoint.named(load_teacher(config, "float32", mesh)[1])
        same = lambda part: {name: taught.get(name, leaf) for name, leaf in checkpoint.named(part).items()}
        weights, constants = (checkpoint.replaced(part, same(part)) for part in (weights, constants))
    else:
        image = checkpoint.load_parts(Path(config.backbone), weights["image"], constants["image"])
        for part, loaded in zip((weights, constants), image):
            part["image"] = loaded
    return graph, state._replace(weights=weights, constants=constants, average=jax.tree.map(jnp.copy, weights))


def load_frozen(config: configs.Config, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, Frozen]:
    """The codec's graph, and what is frozen, whole on every device: no codec, where it is what learns."""
    whole = parallel.sharding(mesh)
    codec = PixelCodec(1) if config.trains == "codec" else checkpoint.load_codec(config.model.codec, config.dtype, whole)
    graph, weights = nnx.split(codec)
    teacher = load_teacher(config, config.dtype, mesh) if config.teacher else None
    return graph, Frozen(weights, jax.device_put(prompt_of(config), whole), teacher)


def load_teacher(config: configs.Config, dtype: str, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """Its graph and weights, laid out as parameters are."""
    _, network = checkpoint.load_model(shipped.find(None if config.teacher == "shipped" else config.teacher))
    graph, state = nnx.split(network)
    state = jax.tree.map(lambda weight: weight.astype(dtype), state)
    return graph, jax.device_put(state, parallel.parameter_shardings(state, mesh))
