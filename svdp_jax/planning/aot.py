"""Compiles the train step and the sampler for devices that need not be there, and tells their memory."""

import dataclasses
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.diffusion import guidance, sampler
from svdp_jax.errors import UserError
from svdp_jax.models import learned
from svdp_jax.models.svdp import SVDP
from svdp_jax.planning.flops import text_tokens
from svdp_jax.training import own_past, step
from svdp_jax.weights.checkpoint import CODECS

GIB = 1 << 30

# The compiler's names of generations, and what else it must be told.
GENERATIONS = {
    "v4": ("v4", {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}),
    "v5p": ("v5", {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}),
    "v5e": ("v5e", {}),
    "v6e": ("v6e", {}),
}


def slice_devices(topology: str) -> list:
    """The chips of a slice such as v4:2x2x4, for the compiler only. UserError where it cannot be."""
    generation, _, shape = topology.partition(":")
    if generation not in GENERATIONS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        known = ", ".join(GENERATIONS)
        raise UserError(f"{topology!r} is no TPU slice; write one such as v4:2x2x4, of {known}.")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{generation}-8")
    from jax.experimental import topologies

    name, more = GENERATIONS[generation]
    if set(shape) <= set("1x"):  # else hosts have four
        more = more | {"chips_per_host_bounds": (1, 1, 1)}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=f"{name}:{shape}", num_slices=1, **more)
    except Exception as error:  # whatever the plugin raises
        if "libtpu" in str(error).lower() or "plugin" in str(error).lower():
            raise UserError("the TPU compiler is missing; `pip install svdp_jax[tpu]`.") from None
        raise UserError(f"the compiler knows no slice {topology}: {str(error).splitlines()[0]}") from None
    return found.devices


def abstract(tree, mesh: jax.sharding.Mesh, *dimensions: str):
    """Shapes in place of arrays, with their layout."""
    layout = parallel.sharding(mesh, *dimensions)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree)


def abstract_batch(config: configs.Config, mesh) -> dict:
    """A training batch as shapes: pictures, or what records hold."""
    d, model = config.data, config.model
    leading = {"source": (), "past": (d.past,), "target": (d.frames,), "driving": (d.frames,)}
    leading |= {"past_driving": (d.past,)} if own_past.needed(config) else {}
    side = d.size // model.codec.factor
    frame = dict.fromkeys(leading, ((d.size, d.size, 3), jnp.uint8))
    if d.source == "records":
        frame = dict.fromkeys(leading, ((side, side, model.backbone.channels), jnp.float16))
        leading, frame["seen"] = leading | {"seen": (d.frames,)}, ((side, side, 1), jnp.uint8)
    place = lambda name: parallel.sharding(mesh, *parallel.batch_dimensions(name))
    return {
        name: jax.ShapeDtypeStruct((d.batch, *frames, *frame[name][0]), frame[name][1], sharding=place(name))
        for name, frames in leading.items()
    }


def compile_train(config: configs.Config, mesh):
    """The compiled train step, and its abstract state."""
    traced, state = trace_train(config, mesh)
    with jax.set_mesh(mesh):
        return traced.lower().compile(), state


def trace_train(config: configs.Config, mesh):
    """The train step before it is lowered for any platform, and its abstract state."""
    graph, state = step.abstract_state(config, mesh)
    update = step.make_update(config, graph, abstract_codec(config)[0])
    with jax.set_mesh(mesh):
        return update.trace(state, abstract_frozen(config, mesh), abstract_batch(config, mesh)), state


def abstract_codec(config: configs.Config) -> tuple[nnx.GraphDef, nnx.State]:
    """As a training holds it: in the dtype in which it computes."""
    graph, state = nnx.split(nnx.eval_shape(lambda: CODECS[config.model.codec.kind](config.model.codec)))
    return graph, jax.eval_shape(lambda state: learned.cast(state, config.dtype), state)


def abstract_frozen(config: configs.Config, mesh) -> step.Frozen:
    """What a training reads and never changes, as shapes."""
    frozen = abstract(step.Frozen(abstract_codec(config)[1], prompt_shapes(config)), mesh)
    return frozen._replace(teacher=abstract_teacher(config, mesh))


def abstract_teacher(config: configs.Config, mesh) -> tuple | None:
    """A student's teacher as shapes: the paper's own, whose conditions are joint."""
    if not config.teacher:
        return None
    video = dataclasses.replace(config.model.video, references="joint")
    untold = dataclasses.replace(config.model, told=False, video=video)
    graph, weights = nnx.split(nnx.eval_shape(lambda: SVDP(untold, nnx.Rngs(0))))
    layouts, dtype = parallel.parameter_shardings(weights, mesh), jnp.dtype(config.dtype)
    return graph, jax.tree.map(lambda x, layout: jax.ShapeDtypeStruct(x.shape, dtype, sharding=layout), weights, layouts)


def sampled_clips(config: configs.Config, mesh) -> int:
    """How many clips the sampler makes at once, so that the branches of guidance fill the mesh."""
    return max(1, mesh.shape["data"] * mesh.shape["fsdp"] // len(guidance.weights(config.sampling, config.model.told)))


def abstract_latents(config: configs.Config, clips: int, layout=None) -> dict:
    """Noise and conditions of one segment of so many clips, as shapes."""
    d, c = config.data, config.model.codec.factor
    latent = (d.size // c, d.size // c, config.model.backbone.channels)
    leading = {"noise": (d.frames,), "source": (), "driving": (d.frames,), "past": (d.past,)}
    return {
        name: jax.ShapeDtypeStruct((clips, *frames, *latent), jnp.dtype(config.dtype), sharding=layout)
        for name, frames in leading.items()
    }


def segment_sampler(config: configs.Config, graph: nnx.GraphDef):
    """One segment: ((weights, constants), latents as above, text b t w, pooled b w) to latents."""

    def segment(weights, latents, text, pooled):
        network = nnx.merge(graph, parallel.gathered(weights[0]), weights[1])
        conditions = {name: x for name, x in latents.items() if name != "noise"}
        return sampler.sample(network, latents["noise"], text, pooled, conditions, config.model, config.sampling)

    return segment


def compile_sample(config: configs.Config, mesh):
    """The compiled sampler of one segment, all steps, weights in the config's dtype."""
    with jax.set_mesh(mesh):
        return trace_sample(config, mesh).lower().compile()


def trace_sample(config: configs.Config, mesh):
    """That sampler before it is lowered for any platform."""
    clips, dtype = sampled_clips(config, mesh), jnp.dtype(config.dtype)
    graph, state = step.abstract_state(config, mesh)
    kind = lambda x: x.dtype if jnp.issubdtype(x.dtype, jnp.integer) else dtype  # as `learned.cast`
    weights = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, kind(x), sharding=x.sharding), (state.weights, state.constants)
    )
    text, pooled = (jax.ShapeDtypeStruct((clips, *x.shape), dtype) for x in prompt_shapes(config))
    segment = jax.jit(segment_sampler(config, graph))
    with jax.set_mesh(mesh):
        return segment.trace(weights, abstract_latents(config, clips), text, pooled)


def prompt_shapes(config: configs.Config) -> tuple:
    """Text (t, w) and pooled (w,), as shapes: the prompt's file need not be there yet."""
    b, t = config.model.backbone, text_tokens(config)
    sizes = (t, b.text_width), (b.pooled_width,)
    return tuple(jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)


def bytes_of(tree) -> int:
    """Bytes on one chip of abstract arrays with layouts."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape), initial=1)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def memory(compiled, state: step.State | None = None) -> dict[str, float]:
    """GiB on a chip by kind. `peak` is the compiler's figure for all at once."""
    stats = compiled.memory_analysis()
    kinds = {}
    if state is not None:
        kinds = {
            "parameters": bytes_of((state.weights, state.constants)),
            "optimizer": bytes_of(state.optimizer),
            "moving average": bytes_of(state.average),
        }
    kinds["other inputs"] = stats.argument_size_in_bytes - sum(kinds.values())
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    kinds["outputs"] = total - stats.argument_size_in_bytes
    kinds["activations and scratch"] = stats.temp_size_in_bytes
    kinds["peak"] = total + stats.temp_size_in_bytes
    return {kind: size / GIB for kind, size in kinds.items()}
