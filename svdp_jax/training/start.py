"""What a run starts from: fresh weights or another run's, and what it reads and never changes."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.models import learned
from svdp_jax.models.vae import PixelCodec
from svdp_jax.training.step import WEIGHTS, Frozen, State, abstract_state, state_maker, stream
from svdp_jax.weights import adapter, checkpoint
from svdp_jax.weights.prompts import prompt_of


def initial_state(config: configs.Config, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, State]:
    """A state on the mesh, with the weights of the folder that the config names, if it does; fresh ones where that has none."""
    graph, make = state_maker(config, mesh)
    key, folder = stream(config, WEIGHTS), adapter.started_from(config)
    if not folder:
        return graph, make(key)
    _, shapes = abstract_state(config, mesh)
    layouts = parallel.parameter_shardings(shapes, mesh)
    structs = checkpoint.named(shapes.weights) | checkpoint.named(shapes.constants)
    source = adapter.source(folder, adapter.IMAGE * bool(config.backbone))
    absent = adapter.missing(structs, source)

    def fresh(key):
        """What the source has not. The rest of a fresh state is not made: a chip may have no room for both."""
        state = make(key)
        arrays = checkpoint.named(state.weights) | checkpoint.named(state.constants)
        return state.step, {name: arrays[name] for name in absent}, state.optimizer

    places = {name: structs[name].sharding for name in absent}
    step, arrays, optimizer = jax.jit(fresh, out_shardings=(layouts.step, places, layouts.optimizer))(key)
    arrays |= adapter.read({name: leaf for name, leaf in structs.items() if name not in arrays}, source)
    weights, constants = (checkpoint.replaced(part, arrays) for part in (shapes.weights, shapes.constants))
    return graph, State(step, weights, jax.tree.map(jnp.copy, weights), constants, optimizer)


def load_frozen(config: configs.Config, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, Frozen]:
    """The codec's graph, and what is frozen, whole on every device: no codec, where it is what learns."""
    whole = parallel.sharding(mesh)
    codec = PixelCodec(1) if config.trains == "codec" else checkpoint.load_codec(config.model.codec, config.dtype, whole)
    graph, weights = nnx.split(codec)
    teacher = load_teacher(config, mesh) if config.teacher else None
    return graph, Frozen(weights, jax.device_put(prompt_of(config), whole), teacher)


def load_teacher(config: configs.Config, mesh: jax.sharding.Mesh) -> tuple[nnx.GraphDef, nnx.State]:
    """The graph and weights of a student's teacher, in the config's dtype and laid out as parameters are.

    Each device reads what it will hold, as narrow as it may be: as it is stored a whole teacher may be too large for one.
    """
    folder = adapter.taught_by(config)
    graph, state = nnx.split(adapter.abstract_network(folder))
    layouts = checkpoint.named(parallel.parameter_shardings(state, mesh))
    narrow = lambda dtype: min(dtype, jnp.dtype(config.dtype), key=lambda dtype: dtype.itemsize)
    structs = {
        name: jax.ShapeDtypeStruct(leaf.shape, narrow(leaf.dtype), sharding=layouts[name])
        for name, leaf in checkpoint.named(state).items()
    }
    state = checkpoint.replaced(state, adapter.read(structs, adapter.source(folder)))
    return graph, jax.jit(partial(learned.cast, dtype=config.dtype), donate_argnums=0)(state)
