"""The engine: a table of rules moves a checkpoint into a Flax tree, or back.

A rule is a pattern of source names, the place in the Flax tree, and an einops
pattern for the transform; each is used in both directions. What a table does
not account for, on either side, is an error.
"""

import difflib
import hashlib
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange
from flax import nnx
from tqdm import tqdm

from convert.tensors import BECOMES, CODES, Tensor
from svdp_jax.errors import UserError
from svdp_jax.weights.checkpoint import named

SAME = "... -> ..."


class Way(NamedTuple):
    """A transform that no einops pattern states, and the way back."""

    there: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray], np.ndarray]


EXPONENT = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}  # all set: inf or NaN


@dataclass(frozen=True)
class Rule:
    """`source` is a regular expression with flat groups, `target` may refer to them.

    A target `name[\\1]` is one layer of the stack `name`.
    """

    source: str
    target: str
    pattern: str | Way = SAME

    @cached_property
    def inverse(self) -> tuple[re.Pattern, str]:
        """Expression of targets and template of source names."""
        texts = re.split(r"\(([^()]*)\)", self.source)
        groups = [f"(?P<g{i}>{text})" for i, text in enumerate(texts[1::2], 1)]
        literal, *rest = re.split(r"\\(\d)", self.target)
        pairs = zip(rest[::2], rest[1::2])
        expression = re.escape(literal) + "".join(groups[int(number) - 1] + re.escape(text) for number, text in pairs)
        template = texts[0] + "".join(rf"\g<g{i}>{text}" for i, text in enumerate(texts[2::2], 1))
        return re.compile(expression), template.replace(r"\.", ".")


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """A layer with weight (o i) and bias."""
    return (Rule(rf"{source}\.weight", f"{target}.kernel", "o i -> i o"), Rule(rf"{source}\.bias", f"{target}.bias"))


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """A normalisation with weight and bias."""
    return (Rule(rf"{source}\.weight", f"{target}.scale"), Rule(rf"{source}\.bias", f"{target}.bias"))


@dataclass(frozen=True)
class Layout:
    """A network's table.

    stacks: for the name of a stack in targets, the path in the Flax tree that
    each layer belongs to, in order. axes: sizes that einops cannot infer.
    """

    rules: tuple[Rule, ...]
    stacks: dict[str, tuple[str, ...]] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)

    def place(self, target: str) -> "Place | None":
        """Path and layer of a target `stack[3].rest`; None if there is no such layer."""
        match = re.fullmatch(r"(.*)\[(\d+)\](.*)", target)
        if not match:
            return Place(target, None)
        stack, layer = self.stacks[match[1]], int(match[2])
        if layer >= len(stack):
            return None
        return Place(stack[layer] + match[3], stack[:layer].count(stack[layer]))

    def targets(self, path: str) -> list[tuple["Place", str]]:
        """The places of one parameter, each with the target that a rule writes for it."""
        for name, stack in self.stacks.items():
            for kind in set(stack):
                if path.startswith(kind + "."):
                    layers = [i for i, k in enumerate(stack) if k == kind]
                    rest = path[len(kind) :]
                    return [(Place(path, n), f"{name}[{i}]{rest}") for n, i in enumerate(layers)]
        return [(Place(path, None), path)]

    def transform(self, array: np.ndarray, pattern: str | Way) -> np.ndarray:
        if isinstance(pattern, Way):
            return pattern.there(array)
        axes = {k: v for k, v in self.axes.items() if re.search(rf"\b{k}\b", pattern)}
        return rearrange(array, pattern, **axes)


class Place(NamedTuple):
    """A parameter, or one layer of a stacked one."""

    path: str
    layer: int | None

    def __str__(self):
        return self.path if self.layer is None else f"{self.path}[{self.layer}]"


class Wanted(NamedTuple):
    """What the checkpoint must hold for one place."""

    name: str
    shape: tuple[int, ...]
    pattern: str | Way


class Network(NamedTuple):
    """What a table module tells about a network.

    folder, file: where a diffusers pipeline keeps it. rename: tensors of other
    known namings to the diffusers one. read_config: tensors by name and the
    source's config.json (or {}) to our config. write_config: the reverse; None where
    there is no way back. extra: a second file (and .json) next to the folder, whose names
    and config get that prefix. parts: for a network in several files, the prefix that the
    names in each get. choose: picks what is the network's from all files of a folder. alone: how
    the network's file begins where it lies beside others.
    """

    name: str
    folder: str
    file: str
    rename: Callable[[list], list]
    read_config: Callable[[dict[str, Tensor], dict], Any]
    write_config: Callable[[Any], dict] | None
    layout: Callable[[Any], Layout]
    build: Callable[[Any, nnx.Rngs], nnx.Module]
    extra: str = ""
    parts: dict[str, str] = {}
    choose: Callable[[Path, dict[Path, list]], list] | None = None
    alone: str = ""


class Params(NamedTuple):
    """Arrays by path, and the checksum of the tensors that they came from."""

    arrays: dict[str, jax.Array]
    checksum: "Checksum"


def shapes(network: Network, config) -> dict[str, Any]:
    """Shape and dtype of every parameter by path; nothing is allocated."""
    model = nnx.eval_shape(lambda: network.build(config, nnx.Rngs(0)))
    return named(nnx.state(model))


def reversed_pattern(pattern: str | Way) -> str | Way:
    if isinstance(pattern, Way):
        return Way(pattern.back, pattern.there)
    return " -> ".join(reversed(pattern.split(" -> ")))


def wanted(layout: Layout, structs: dict) -> dict[Place, Wanted]:
    """What the source must hold for each place. Raises KeyError where the table has a gap."""
    result = {}
    for path, struct in structs.items():
        for place, target in layout.targets(path):
            shape = struct.shape if place.layer is None else struct.shape[1:]
            rule, name = source_of(layout, target)
            # No bytes behind it: only the shape goes through the pattern.
            ghost = np.broadcast_to(np.int8(0), shape)
            shape = layout.transform(ghost, reversed_pattern(rule.pattern)).shape
            result[place] = Wanted(name, shape, rule.pattern)
    return result


def source_of(layout: Layout, target: str) -> tuple[Rule, str]:
    for rule in layout.rules:
        expression, template = rule.inverse
        if match := expression.fullmatch(target):
            return rule, match.expand(template)
    raise KeyError(f"no rule leads to {target}")


def target_of(layout: Layout, name: str) -> str | None:
    for rule in layout.rules:
        if match := re.fullmatch(rule.source, name):
            return match.expand(rule.target)
    return None


def match(layout: Layout, structs: dict, tensors: list[Tensor]) -> dict[Place, tuple[Tensor, str | Way]]:
    """The tensor and the pattern for each place. Raises UserError that lists all faults at once."""
    wants, found, faults = wanted(layout, structs), defaultdict(list), []
    expected, there = {want.name for want in wants.values()}, {t.name for t in tensors}
    missing, spare = sorted(expected - there), sorted(there - expected)
    for tensor in tensors:
        target = target_of(layout, tensor.name)
        place = target and layout.place(target)
        if target is None:
            faults.append(f"unmapped source key: {tensor.name}{nearest(tensor.name, missing)}")
        elif place not in wants:
            faults.append(
                f"unexpected target: {tensor.name} would set {target}, which this network "
                f"does not have{nearest(tensor.name, missing)}"
            )
        else:
            found[place].append(tensor)
    for place, want in wants.items():
        names = [t.name for t in found[place]]
        if not names:
            faults.append(f"target never set: {place} needs {want.name}{nearest(want.name, spare)}")
        if len(names) > 1:
            faults.append(f"target set twice: {place} by {' and '.join(names)}")
        faults += [
            f"wrong shape: {t.name} is {t.shape}, expected {want.shape} for {place}"
            for t in found[place]
            if t.shape != want.shape
        ]
        faults += [f"unread dtype: {t.name} is {t.dtype}; take a file in fp16 or bf16" for t in found[place] if unread(t)]
    if faults:
        raise UserError("\n  ".join([f"{len(faults)} faults, nothing was written:", *faults]))
    return {place: (found[place][0], want.pattern) for place, want in wants.items()}


def unread(tensor: Tensor) -> bool:
    """Whether it is of a dtype that weights are not stored in."""
    return tensor.dtype not in CODES and tensor.dtype not in BECOMES


def nearest(name: str, candidates: list[str]) -> str:
    # Names of the same layer type first: a search through thousands would take minutes.
    alike = [c for c in candidates if c.rsplit(".", 2)[-2:] == name.rsplit(".", 2)[-2:]]
    close = difflib.get_close_matches(name, (alike or candidates)[:200], 1, 0.4)
    return f" (nearest: {close[0]})" if close else ""


def gather(layout: Layout, structs: dict, tensors: list, dtype: str | None, nonfinite: bool) -> Params:
    """Reads a checkpoint into arrays by path. Memory: the result, one parameter and one tensor."""
    sources = defaultdict(list)
    for place, (tensor, pattern) in match(layout, structs, tensors).items():
        sources[place.path].append((place.layer, tensor, pattern))
    arrays, checksum = {}, Checksum()
    with tqdm(total=len(tensors), desc="reading", unit="tensor") as bar:
        for path, layers in sources.items():
            kind = np.dtype(dtype) if dtype else widest({BECOMES.get(t.dtype, t.dtype) for _, t, _ in layers})
            array = np.empty(structs[path].shape, kind)
            for layer, tensor, pattern in layers:
                raw = cast(tensor.name, tensor.read(), kind, nonfinite)
                checksum.add(tensor.name, raw)
                array[... if layer is None else layer] = layout.transform(raw, pattern)
                bar.update()
            arrays[path] = jax.device_put(array)
            del array  # before the next one is allocated
    return Params(arrays, checksum)


def widest(kinds: set[np.dtype]) -> np.dtype:
    return kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)


def cast(name: str, array: np.ndarray, kind: np.dtype, nonfinite: bool) -> np.ndarray:
    """The array as `kind`. Raises UserError if it then is not finite."""
    with np.errstate(over="ignore"):  # what overflows is found below
        array = np.ascontiguousarray(array.astype(kind, copy=False))
    mask = EXPONENT[kind.name]
    if not nonfinite and ((array.view(f"u{kind.itemsize}") & mask) == mask).any():
        raise UserError(f"{name} holds NaN or infinite values as {kind.name}; --allow-nonfinite converts them nevertheless.")
    return array


class Output(NamedTuple):
    """A tensor to be written; `make` computes it."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def scatter(
    layout: Layout, arrays: dict[str, np.ndarray], dtype: str | None, nonfinite: bool, checksum: "Checksum"
) -> list[Output]:
    """The checkpoint's tensors, from arrays by path. Memory: one tensor, while it is written."""

    def make(place, want, kind):
        array = arrays[place.path]
        array = array if place.layer is None else array[place.layer]
        array = layout.transform(array, reversed_pattern(want.pattern))
        array = cast(want.name, array, kind, nonfinite)
        checksum.add(want.name, array)
        return array

    outputs = []
    for place, want in wanted(layout, arrays).items():
        kind = np.dtype(dtype or arrays[place.path].dtype)
        outputs.append(Output(want.name, kind, want.shape, partial(make, place, want, kind)))
    return outputs


class Checksum:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, whatever their order and files."""

    def __init__(self):
        self.lines = []

    def add(self, name: str, array: np.ndarray) -> None:
        data = hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self.lines.append(f"{name} {array.dtype.name} {array.shape} {data.hexdigest()}")

    def hex(self) -> str:
        return hashlib.sha256("\n".join(sorted(self.lines)).encode()).hexdigest()[:16]
