"""ONNX files, read without the onnx package: a graph's nodes, and its weights tensor by tensor.

A file is a protocol buffer: fields, each with a number and a kind, one inside the other. The few
that are needed here are looked up by number; the rest is passed over. Nothing is executed, and
weights are read only when asked for. Source: onnx.proto of the ONNX specification.
"""

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from convert.tensors import Tensor
from svdp_jax.errors import UserError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # kinds of fields
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_WEIGHT = 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_KIND = 1, 2, 4
WEIGHT_SHAPE, WEIGHT_TYPE, WEIGHT_FLOATS, WEIGHT_NAME, WEIGHT_RAW, WEIGHT_ELSEWHERE = 1, 2, 4, 8, 9, 14
TYPES = {1: np.dtype(np.float32), 10: np.dtype(np.float16), 16: np.dtype(ml_dtypes.bfloat16)}


class Node(NamedTuple):
    """One operation: its kind, such as Conv, and the names of what goes in and comes out."""

    kind: str
    inputs: list[str]
    outputs: list[str]


class Span(NamedTuple):
    """Bytes of the file, from `start` to `end`."""

    start: int
    end: int


class Broken(Exception):
    """What is wrong with a file, to follow its name."""


def read(path: Path) -> tuple[list[Node], dict[str, Tensor]]:
    """Nodes in order of execution, and weights by name. UserError for what is not a sound ONNX file."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graphs = values(data, Span(0, len(data)), MODEL_GRAPH)
            if len(graphs) != 1:
                raise Broken("holds no graph")
            nodes = [node(data, span) for span in values(data, graphs[0], GRAPH_NODE)]
            weights = [weight(path, data, span) for span in values(data, graphs[0], GRAPH_WEIGHT)]
    except (Broken, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path} is not an ONNX file that can be read ({error}).") from None
    named = {tensor.name: tensor for tensor in weights if tensor}
    for same in (n for n in nodes if n.kind == "Identity" and n.inputs[0] in named):  # how exporters share a weight
        named[same.outputs[0]] = named[same.inputs[0]]
    return nodes, named


def fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Numbers of the fields in a message, each with its number or its bytes."""
    place = span.start
    while place < span.end:
        key, place = varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = varint(data, place)
        elif kind in (BYTES, FIXED32, FIXED64):
            length, start = varint(data, place) if kind == BYTES else ({FIXED32: 4, FIXED64: 8}[kind], place)
            value, place = Span(start, start + length), start + length
        else:
            raise Broken(f"field of kind {kind}")
        if place > span.end:
            raise Broken("cut off")
        yield number, value


def varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise Broken("number without end")


def values(data: mmap.mmap, span: Span, number: int) -> list:
    return [value for found, value in fields(data, span) if found == number]


def texts(data: mmap.mmap, span: Span, number: int) -> list[str]:
    return [data[start:end].decode() for start, end in values(data, span, number)]


def node(data: mmap.mmap, span: Span) -> Node:
    (kind,) = texts(data, span, NODE_KIND)
    return Node(kind, texts(data, span, NODE_INPUT), texts(data, span, NODE_OUTPUT))


def weight(path: Path, data: mmap.mmap, span: Span) -> Tensor | None:
    """A tensor of floating-point numbers; None for others, such as shapes."""
    (name,), (kind,) = texts(data, span, WEIGHT_NAME), values(data, span, WEIGHT_TYPE)
    if kind not in TYPES:
        return None
    if any(values(data, span, WEIGHT_ELSEWHERE)):
        raise Broken(f"{name} lies in another file")
    shape = tuple(sizes(data, span))
    # Plain bytes, or packed 32-bit numbers: the same bytes for these types.
    raw = values(data, span, WEIGHT_RAW) or values(data, span, WEIGHT_FLOATS)
    place = raw[0] if raw else Span(0, 0)
    if place.end - place.start != int(np.prod(shape, dtype=object)) * TYPES[kind].itemsize:
        raise Broken(f"the bytes of {name} do not fit its shape {shape}")
    return Tensor(name, path, TYPES[kind], shape, (tuple(place),))


def sizes(data: mmap.mmap, span: Span) -> Iterator[int]:
    """The shape, which may be packed."""
    for value in values(data, span, WEIGHT_SHAPE):
        place = value.start if isinstance(value, Span) else None
        if place is None:
            yield value
        while place is not None and place < value.end:
            size, place = varint(data, place)
            yield size
