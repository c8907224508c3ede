"""The device mesh, and the table from logical dimensions to its axes.

Sharding is named per dimension: PARAMETERS gives every parameter the names of
its dimensions, AXES gives every name its mesh axes. A parameter that no row
matches, or a dimension that does not divide, is an error.

Clips lie on `data` and `fsdp`, their frames on `context`; `attention` tells what follows from that.
"""

import os
import re
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.clusters import ClusterEnv  # `jax.distributed` tells only by an error whether there is a cluster
from jax.experimental import mesh_utils
from jax.sharding import NamedSharding, PartitionSpec

from svdp_jax import config as configs
from svdp_jax.errors import UserError

AXES = {"batch": ("data", "fsdp"), "frames": "context", "in": ("fsdp", "context"), "out": None, "layers": None}

STACK = r"(image\.)?(dual|plain|last)|video_(dual|plain|last)"
PARAMETERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (rf"({STACK})\..*\.lora_a", ("layers", "in", None)),
    (rf"({STACK})\..*\.lora_b", ("layers", None, "out")),
    (r".*\.lora_a", ("in", None)),
    (r".*\.lora_b", (None, "out")),
    (rf"({STACK})\..*\.?kernel", ("layers", "in", "out")),
    (rf"({STACK})\..*\.?(bias|scale)", ("layers", "out")),
    (r"(encoder|decoder)\..*\.?kernel", (None, None, None, "out")),  # of convolutions, small and whole everywhere
    (r".*\.?kernel", ("in", "out")),
    (r".*\.?(bias|scale)", ("out",)),
    (r".*pos_embed\.line", ("out", "out")),
)


def start() -> None:
    """Joins the processes of a run on several hosts, before any device is touched.

    JAX knows a TPU slice (on Compute Engine, where the hosts ask its metadata, and on GKE), Slurm and
    Open MPI by itself; elsewhere JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID tell.
    A single machine starts at once.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address and "JAX_NUM_PROCESSES" in os.environ:
        count, index = (int(os.environ[f"JAX_{x}"]) for x in ("NUM_PROCESSES", "PROCESS_ID"))
        jax.distributed.initialize(address, count, index)
    elif any(kind.is_env_present() for kind in ClusterEnv._cluster_types if not kind.opt_in_only_method):
        jax.distributed.initialize()


def batch_dimensions(name: str) -> tuple[str, ...]:
    """The names of the leading dimensions of a part of a training batch."""
    return ("batch",) if name == "source" else ("batch", "frames")


def own_rows(mesh: jax.sharding.Mesh, count: int) -> list[int]:
    """Which of `count` examples of a batch lie, wholly or in part, on this process's devices."""
    places = sharding(mesh, "batch").addressable_devices_indices_map((count,))
    return sorted({row for (rows,) in filter(None, places.values()) for row in range(count)[rows]})


def global_batch(batch: dict, mesh: jax.sharding.Mesh, count: int) -> dict:
    """This process's rows of every part, as arrays of the whole batch of `count` examples."""
    rows = {row: index for index, row in enumerate(own_rows(mesh, count))}

    def place(name, part):
        def piece(where):
            return part[[rows[row] for row in range(count)[where[0]]], *where[1:]]

        layout = sharding(mesh, *batch_dimensions(name))
        return jax.make_array_from_callback((count, *part.shape[1:]), layout, piece)

    return {name: place(name, part) for name, part in batch.items()}


def poll(mesh: jax.sharding.Mesh, vote: int) -> jax.Array:
    """The largest vote of all processes, on its way: reading it later gives each of them the same."""
    layout = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    piece = lambda where: np.full(len(range(mesh.size)[where[0]]), vote, np.int32)
    return largest(jax.make_array_from_callback((mesh.size,), layout, piece))


largest = jax.jit(jnp.max)


def need(topology: str) -> None:
    """Raises UserError where a slice such as v4:2x2x4 is asked for and these devices are another."""
    if not topology:
        return
    generation, _, shape = topology.partition(":")
    count = int(np.prod([int(side) for side in shape.split("x")]))
    here = jax.devices()
    if here[0].platform != "tpu" or len(here) != count:
        raise UserError(
            f"this config is for {count} chips of TPU {generation} ({topology}), and here are {len(here)} of "
            f"{here[0].device_kind}; run it on such a slice, set config.topology= and config.mesh for these "
            "devices, or see what it needs with `python -m svdp_jax.plan`."
        )


NO_ACCELERATOR = ", or install the JAX that sees this machine's GPUs or TPUs: pip install 'svdp_jax[cuda]' or 'svdp_jax[tpu]'"


def make_mesh(config: configs.Mesh, devices: list | None = None) -> jax.sharding.Mesh:
    """The mesh of all devices, or of these. Raises UserError where they do not fill it."""
    devices = jax.devices() if devices is None else devices
    shape = {"data": config.data, "fsdp": config.fsdp, "context": config.context}
    count = len(devices)
    free = [axis for axis, size in shape.items() if size == -1]
    taken = int(np.prod([size for size in shape.values() if size != -1]))
    if len(free) > 1 or count % taken or (not free and taken != count):
        sizes = " x ".join(f"{axis}={size}" for axis, size in shape.items())
        raise UserError(
            f"A mesh of {sizes} cannot be made from {count} devices; set config.mesh so that "
            f"the product is {count} (one axis may be -1){NO_ACCELERATOR if devices[0].platform == 'cpu' else ''}."
        )
    shape |= dict.fromkeys(free, count // taken)
    auto = (jax.sharding.AxisType.Auto,) * len(shape)
    # A side of the slice may serve two axes of the mesh, as of 4x4 chips for 8 by 2.
    places = mesh_utils.create_device_mesh(tuple(shape.values()), devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(places, tuple(shape), auto)


def sharding(mesh: jax.sharding.Mesh, *dimensions: str | None) -> NamedSharding:
    """The sharding of an array whose leading dimensions have these names."""
    return NamedSharding(mesh, spec(*dimensions))


def parameter_shardings(state, mesh: jax.sharding.Mesh):
    """Shardings of a state of parameters, or of anything that holds such states, leaf by leaf.

    Scalars are whole everywhere. Raises ValueError where a parameter has no row.
    """
    place = lambda path, leaf: sharding(mesh, *parameter_dimensions(path, leaf))
    return jax.tree_util.tree_map_with_path(place, state)


def parameter_dimensions(path: tuple, leaf) -> tuple[str | None, ...]:
    if leaf.ndim == 0:
        return ()
    name = parameter_name(path)
    rows = [dimensions for pattern, dimensions in PARAMETERS if re.fullmatch(pattern, name)]
    if not rows or len(rows[0]) != leaf.ndim:
        raise ValueError(f"no row of PARAMETERS fits {name} {leaf.shape}")
    return rows[0]


def gathered(state):
    """Parameters whole on every device, as a layer is about to use them; stacks stay as they lie.

    The gradient goes back to where its parameter lies. Left to itself the compiler may
    spread the activations as the parameters are, instead.
    """
    if not many():
        return state

    def gather(path, leaf):
        dimensions = parameter_dimensions(path, leaf)
        return leaf if "layers" in dimensions else whole(leaf, spec(*dimensions))

    return jax.tree_util.tree_map_with_path(gather, state)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def whole(x: jax.Array, place: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


whole.defvjp(lambda x, place: (whole(x, place), None), lambda place, _, g: (jax.lax.with_sharding_constraint(g, place),))


def parameter_name(path: tuple) -> str:
    """The dotted name of a parameter from its path in any tree: image.dual.attn.to_q.kernel."""
    keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return ".".join(keys)


def many() -> jax.sharding.AbstractMesh | None:
    """The mesh that this computation is spread over, if it is."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def constrain(arrays, *dimensions: str | None):
    """Asks the compiler to lay out a tree of arrays by their leading dimensions, where there is a mesh."""
    if not many():
        return arrays
    return jax.lax.with_sharding_constraint(arrays, spec(*dimensions))


def per_device(function: Callable, constants, batch: dict) -> dict:
    """`function(constants, batch)` on every device's part of a batch, with the constants whole everywhere."""
    if not many():
        return function(constants, batch)
    places = {name: spec(*batch_dimensions(name)) for name in batch}
    run = jax.shard_map(function, in_specs=(PartitionSpec(), places), out_specs=places, check_vma=False)
    return run(constants, batch)


def spec(*dimensions: str | None) -> PartitionSpec:
    return PartitionSpec(*(AXES[d] if d else None for d in dimensions))


def on_devices(function: Callable, *dimensions: str) -> Callable:
    """`function` on every device's part of its arrays, whose leading dimensions have these names."""
    if not many():
        return function
    place = spec(*dimensions)
    return jax.shard_map(function, in_specs=place, out_specs=place, check_vma=False)


def evenly(function: Callable, rows) -> jax.Array:
    """`function` of a tree of arrays (b ...), made `even`."""
    return function(even(rows))[: len(jax.tree.leaves(rows)[0])]


def even(rows):
    """A tree of arrays (b ...), filled up so that they divide over the devices that share a batch."""
    mesh, b = many(), len(jax.tree.leaves(rows)[0])
    extra = -b % (mesh.shape["data"] * mesh.shape["fsdp"]) if mesh else 0
    return jax.tree.map(lambda x: filled(x, extra), rows)


def filled(x: jax.Array, extra: int) -> jax.Array:
    """x (b ...) and its last row so many times again."""
    return jnp.concatenate([x, jnp.repeat(x[-1:], extra, 0)]) if extra else x


def each_spread(function: Callable, constants, frames: jax.Array) -> jax.Array:
    """`function(constants, frames)` of frames (i ...), as even parts of them on all devices; whole everywhere after."""
    mesh, count = many(), len(frames)
    if not mesh:
        return function(constants, frames)
    places = PartitionSpec(mesh.axis_names)
    run = jax.shard_map(function, in_specs=(PartitionSpec(), places), out_specs=places, check_vma=False)
    made = run(constants, filled(frames, -count % mesh.size))
    return jax.lax.with_sharding_constraint(made, PartitionSpec())[:count]


def context_size() -> int:
    """How many devices share a clip's frames."""
    mesh = many()
    return mesh.shape["context"] if mesh else 1


def join(groups: list[jax.Array]) -> jax.Array:
    """Groups of frames, b f ... each, as one: every device puts its own behind each other, so that none
    move. On several devices the whole has no order that means something; `split` undoes it."""
    return on_devices(lambda *groups: jnp.concatenate(groups, 1), "batch", "frames")(*groups)


def split(joined: jax.Array, counts: tuple[int, ...]) -> list[jax.Array]:
    """The groups that were joined, of so many frames; empty ones are left out."""
    sizes = [count // context_size() for count in counts if count]

    def local(x):
        ends = np.cumsum(sizes)
        return [x[:, end - size : end] for size, end in zip(sizes, ends)]

    return on_devices(local, "batch", "frames")(joined)
