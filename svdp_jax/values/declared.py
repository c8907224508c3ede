"""Ranges that fields are declared with, and dataclasses built and checked from plain values."""

import dataclasses
import re
import types
import typing
from typing import Annotated, Literal

from svdp_jax.errors import UserError


class Range(typing.NamedTuple):
    """The least and the most that a number may be, both allowed."""

    least: float
    most: float


FREE = "free"
Count = Annotated[int, Range(1, 1 << 16)]
Whole = Annotated[int, Range(0, 1 << 16)]  # 0: none of it
Steps = Annotated[int, Range(1, 1 << 30)]
Side = Annotated[int, Range(1, 1 << 13)]  # of a picture or table
Few = Annotated[int, Range(1, 1 << 10)]
Axis = Annotated[int, Range(-1, 1 << 16)]
Seed = Annotated[int, Range(0, (1 << 31) - 1)]
Positive = Annotated[float, Range(1e-9, 1e6)]
Amount = Annotated[float, Range(0, 1e6)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 0.999999)]  # 1, in float32, would forget nothing
Rate = Annotated[float, Range(1e-12, 10)]
Guidance = Annotated[float, Range(0, 100)]
TEXT = 1000  # characters that a string may have


def build(kind, values, path):
    """`values` (of JSON, say) as a dataclass or field of type `kind`; `path` names it in errors."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:  # with None, the only one there is
        return None if values is None else build(typing.get_args(kind)[0], values, path)
    kind, marks = declared(kind)
    if typing.get_origin(kind) is tuple:
        (item, _) = typing.get_args(kind)
        if not isinstance(values, (tuple, list)):
            raise UserError(f"{path} must be a list, not {shown(values)}.")
        return tuple(build(item, value, f"{path}[{i}]") for i, value in enumerate(values))
    if not dataclasses.is_dataclass(kind):
        return leaf(kind, marks, values, path)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold the fields {', '.join(typing.get_type_hints(kind))}, not be {shown(values)}.")
    hints = typing.get_type_hints(kind, include_extras=True)
    if unknown := sorted(map(str, set(values) - set(hints))):
        raise UserError(f"{path} has no field {unknown[0]!r}; its fields are {', '.join(hints)}.")
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in needed if name not in values]:
        raise UserError(f"{path}.{missing[0]} is missing.")
    return kind(**{name: build(hints[name], value, f"{path}.{name}") for name, value in values.items()})


def find(kind, field: str, path: str) -> None:
    """Looks for a field such as stages[0].rate of a type, which `path` names. UserError where it has none."""
    for word in re.findall(r"[^.\[\]]+", field):
        kind, _ = declared(kind)
        listed = typing.get_origin(kind) is tuple
        hints = typing.get_type_hints(kind, include_extras=True) if dataclasses.is_dataclass(kind) else {}
        if listed and word.isdigit():
            kind, path = typing.get_args(kind)[0], f"{path}[{word}]"
        elif word in hints:
            kind, path = hints[word], f"{path}.{word}"
        else:
            fields = "[0] and so on" if listed else ", ".join(hints) or "none"
            raise UserError(f"{path} has no field {word!r}; it has {fields}.")
    if dataclasses.is_dataclass(kind):
        raise UserError(f"{path} holds fields; set one of them: {', '.join(typing.get_type_hints(kind))}.")


def declared(kind) -> tuple:
    """A type, and what it is annotated with."""
    if typing.get_origin(kind) is Annotated:
        return kind.__origin__, kind.__metadata__
    return kind, ()


def leaf(kind, marks: tuple, value, path: str):
    """A value that is no dataclass, as its declaration allows it. UserError where it does not."""
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise UserError(f"{path} must be one of {', '.join(typing.get_args(kind))}, not {shown(value)}.")
        return value
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"{path} must be {kind.__name__}, not {shown(value)}.")
    if kind is str and not (value.isprintable() and len(value) <= TEXT):
        raise UserError(f"{path} must be at most {TEXT} printable characters, not {shown(value)}.")
    for least, most in (mark for mark in marks if isinstance(mark, Range)):
        if not least <= value <= most:  # as no NaN is
            raise UserError(f"{path} must be from {least} to {most}, not {shown(value)}.")
    return kind(value)


def shown(value) -> str:
    """A value in a sentence, on one line and not for pages."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
