"""A weights folder that holds what learned, and names the base beneath it: the rest of the network.

`adapter` in its config.json tells which folder the base was, the SHA-256 of its manifest, what learned and how the
rest lay (`models.learned`). The base itself, a converted image model or a whole video model, stays where it is.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from safetensors.numpy import load_file

from svdp_jax import config as configs
from svdp_jax.buckets import storage
from svdp_jax.errors import UserError
from svdp_jax.files import MANIFEST, hash_of, verify
from svdp_jax.models import learned
from svdp_jax.values import learn
from svdp_jax.weights import checkpoint
from svdp_jax.weights.older import renewed

AS_STORED = "as stored"  # how the base of an adapter lies that others trained
IMAGE = "image."  # where an image model lies in a video model


class Adapter(NamedTuple):
    """What config.json tells of an adapter: the base's folder, the hash of its manifest, the table and how the rest lies."""

    folder: str
    manifest: str
    learn: str
    frozen: str


def of(folder: Path) -> Adapter | None:
    """What a weights folder tells of its base; None where it is whole by itself."""
    found = checkpoint.about(folder).get("adapter")
    try:
        return Adapter(**found) if found else None
    except TypeError:
        raise UserError(f"{folder}/config.json does not tell what its base is; make or fetch it again.") from None


def beneath(folder: Path, config: configs.Config) -> dict:
    """What the config.json of a model tells that was trained by this config from a weights folder; {} where it is whole."""
    if not learn.adapts(config.learn):
        return {}
    base = of(folder) or Adapter(storage.name_of(folder), hash_of(folder / MANIFEST), "", "")
    return {"adapter": base._replace(learn=config.learn, frozen=config.frozen)._asdict()}


def network(config: configs.Config, rngs: nnx.Rngs) -> Any:
    """What the config trains, with all that its table adds to it and takes from it."""
    return learned.adapted(checkpoint.fresh_network(config, rngs), config.learn, config.frozen, rngs)


def abstract(config: configs.Config) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The graph of that, what of it learns and the rest, with shapes in place of arrays."""
    return shapes(*checkpoint.trained_network(config), config.learn, config.frozen)


@lru_cache(maxsize=8)  # tracing the full size takes a second
def shapes(name: str, part, table: str, frozen: str) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    make = lambda rngs: learned.adapted(checkpoint.NETWORKS[name][1](part, rngs), table, frozen, rngs)
    return learned.parted(nnx.eval_shape(lambda: make(nnx.Rngs(0))), table)


def started_from(config: configs.Config) -> Path | None:
    """The weights folder whose values a training begins with: of a student, where nothing else is named, its teacher's."""
    if config.start:
        return checkpoint.model_folder(Path(config.start))
    if config.teacher:
        return taught_by(config)
    return storage.here(config.backbone) if config.backbone else None


def taught_by(config: configs.Config) -> Path:
    """The weights folder of a student's teacher."""
    return checkpoint.SHIPPED if config.teacher == "shipped" else checkpoint.model_folder(Path(config.teacher))


def trained_with(config: configs.Config) -> dict:
    """What the config.json of a trained model tells beside its network."""
    folder = started_from(config)
    return checkpoint.trained_with(config) | (beneath(folder, config) if folder else {})


def kept(config: configs.Config, average: nnx.State, constants: nnx.State) -> tuple[nnx.State, ...]:
    """Of a trained network what its weights folder holds."""
    return (average,) if learn.adapts(config.learn) else (average, constants)


def model(config: configs.Config, average: nnx.State, constants: nnx.State) -> tuple[nnx.State, ...]:
    """What of it is left when the training is done: an adapter in the dtype in which it is computed with, to be small."""
    parts = kept(config, average, constants)
    return learned.cast(parts, config.dtype) if learn.adapts(config.learn) else parts


def base_of(folder: Path, adapter: Adapter, given: Path | None = None) -> Path:
    """The base of an adapter's folder, where it was or where it is said to be. UserError where it is not that one."""
    base = checkpoint.model_folder(given) if given else storage.here(adapter.folder)
    if not (base / MANIFEST).is_file():
        raise UserError(
            f"{folder} is an adapter on weights that were at {adapter.folder}, and {base} has none; name them with --base DIR."
        )
    if hash_of(base / MANIFEST) != adapter.manifest:
        raise UserError(
            f"{base} holds other weights than those that the adapter {folder} was trained on; name the right ones with --base DIR."
        )
    return base


class Place(NamedTuple):
    """Where the values of a parameter are stored: in which folder, below which name, of which shape."""

    folder: Path
    name: str
    shape: Any


def source(folder: Path, prefix: str = "", base: Path | None = None) -> dict[str, Place]:
    """The places of a weights folder's parameters, an adapter's with those of its base, by their names in a network in
    which they lie below `prefix`. base: where that of an adapter is, if it has moved."""
    own = {prefix + name: Place(folder, name, leaf) for name, leaf in stored(folder).items()}
    if not (adapter := of(folder)):
        return own
    below = base_of(folder, adapter, base)
    inner = checkpoint.about(below)["network"] != checkpoint.about(folder)["network"]
    return source(below, prefix + IMAGE * inner) | own


def faults(config: configs.Config, folder: Path) -> list[str]:
    """What keeps a training from starting with the values of a folder, a clause for each kind of fault. What an image model
    has not, or an adapter with less in it, will be fresh."""
    _, *parts = abstract(config)
    structs = {name: leaf for part in parts for name, leaf in checkpoint.named(part).items()}
    about, found = checkpoint.about(folder), source(folder, IMAGE * bool(config.backbone))
    image_alone = about["network"] == "sd35" or about["config"].get("video", {}).get("temporal") == "none"
    fresh = lambda name: name.endswith((learned.SCALE, *learned.PARTS)) or (image_alone and name.startswith("video_"))
    wanted = {name: leaf for name, leaf in structs.items() if name in found or not fresh(name)}
    named = lambda name: name.removeprefix(IMAGE * bool(config.backbone))
    return checkpoint.misfits(
        {named(name): leaf for name, leaf in wanted.items()}, {named(name): place.shape for name, place in found.items()}
    )


def stored(folder: Path) -> dict:
    """Shapes of what a weights folder holds, by dotted path, as this version names them."""
    return renewed(checkpoint.stored_shapes(folder))


def read_folder(folder: Path, like: dict) -> dict[str, Any]:
    """Some of the arrays of a weights folder, or of an exported model."""
    if not (folder / checkpoint.EXPORTED).is_file():
        return checkpoint.read_arrays(folder / "params", like, part=True)
    exported = renewed(load_file(folder / checkpoint.EXPORTED))
    return {name: jax.device_put(exported[name].astype(leaf.dtype), leaf.sharding) for name, leaf in like.items()}


def maker(name: str, source: dict[str, Place]) -> str:
    """The parameter whose stored value this one is made of: of the scale of a kernel in int8, the kernel."""
    return name.removesuffix("_scale") if name.endswith(learned.SCALE) and name not in source else name


def missing(structs: dict, source: dict[str, Place]) -> list[str]:
    """What of a network has no value in a source."""
    return sorted(name for name in structs if maker(name, source) not in source)


def read(structs: dict, source: dict[str, Place]) -> dict[str, Any]:
    """Arrays by dotted path, each with the shape, dtype and sharding of its twin in `structs`.

    A kernel that is to lie in int8 is made so of what is stored. UserError where files are damaged or do not fit.
    """
    coarse = {maker(name, source) for name in structs if maker(name, source) != name}
    wanted = {name: source[name] for name in structs if name in source}
    arrays = {}
    for folder in dict.fromkeys(place.folder for place in wanted.values()):
        verify(folder)
        like, names = {}, {}
        for name, place in wanted.items():
            if place.folder == folder:
                leaf = structs[name]
                dtype = jnp.bfloat16 if name in coarse else leaf.dtype
                like[place.name] = jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
                names[place.name] = name
        found = read_folder(folder, like)
        arrays |= {names[name]: array for name, array in found.items()}
    for name in sorted(coarse):  # on several hosts these talk to each other, so all of them do so in one order
        pair = (name, f"{name}_scale")
        layouts = tuple(structs[each].sharding for each in pair)
        arrays |= zip(pair, jax.jit(learned.quantized, out_shardings=layouts)(arrays.pop(name)))
    return arrays


def abstract_network(folder: Path) -> Any:
    """The network of a weights folder, an adapter's adapted, with shapes in place of arrays."""
    if not (adapter := of(folder)):
        return checkpoint.abstract_network(folder)
    return checkpoint.abstract_network(
        folder, lambda network: learned.adapted(network, adapter.learn, adapter.frozen, nnx.Rngs(0))
    )


def load_arrays(folder: Path, base: Path | None = None) -> tuple[nnx.GraphDef, nnx.State, dict[str, Any]]:
    """Of an adapter's folder and its base: the graph, a state of shapes, and the arrays by dotted path."""
    graph, state = nnx.split(abstract_network(folder))
    found, adapter = source(folder, base=base), of(folder)
    assert adapter

    def dtype(name: str, leaf):
        stored_as = name in found and (adapter.frozen == AS_STORED or found[name].folder == folder)
        return found[name].shape.dtype if stored_as else leaf.dtype

    leaves = checkpoint.named(state)
    if absent := missing(leaves, found):
        raise UserError(f"{folder} and its base lack {len(absent)} parameters, such as {absent[0]}; make or fetch them again.")
    structs = {name: jax.ShapeDtypeStruct(leaf.shape, dtype(name, leaf)) for name, leaf in leaves.items()}
    return graph, state, read(structs, found)


def load(folder: Path, base: Path | None = None) -> tuple[configs.Config, nnx.Module]:
    """A trained model, of an adapter with its base, and the config it was trained with. base: where that has moved.

    An adapter runs as it was trained: what it adds is not folded in, which in bfloat16 would round most of it away.
    """
    facts = checkpoint.about(folder)
    if not of(folder):
        return checkpoint.load_model(folder)
    if "training" not in facts:
        raise UserError(f"{folder} holds {facts['network']!r}, not a model trained by svdp_jax.train.")
    graph, state, arrays = load_arrays(folder, base)
    return configs.from_flags(facts["training"]), nnx.merge(graph, checkpoint.replaced(state, arrays))
