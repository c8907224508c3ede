"""What an engine is: a source's crop and a driver's in, frames out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.faces.framing import Framing
from svdp_jax.faces.scene import Driver, Recorded


class Step(NamedTuple):
    """A sampling step that is done, both counted from 0."""

    segment: int
    step: int


class Engine(Protocol):
    name: str  # in tables of results
    framing: Framing  # how it wants faces, and the size of what it makes
    fingerprint: str  # of its weights
    data: configs.Data  # that it was trained on; the usual where this is unknown
    options: tuple[str, ...]  # what `play` takes by name
    flags: tuple[str, ...]  # what the command says of it
    still: bool  # whether there is something to make of a picture without a driver

    @property
    def play(self) -> Callable[..., Iterator[Any]]:
        """(source, driving, again, **options): a picture (size, size, 3) uint8 for each driving frame, and, of engines that
        can tell, a `Step` after each step; no more frames are held than are made at once. source: a `DrivingFrame`
        as driving's, which are a stream of them. again: gives that stream once more, where it can be had."""
        ...

    @property
    def chosen(self) -> Callable[..., dict[str, Any]]:
        """(**flags): options of `play` from those that the command was given."""
        ...

    @property
    def pace(self) -> Callable[..., tuple[int, int]]:
        """(**options): how many frames are made at once, in how many `Step`s."""
        ...

    def recorded(self, driving) -> Any:
        """A driver as it was given, or, of a file of motion that this engine has kept, a `scene.Recorded`."""
        ...

    def recorder(self, output: Path) -> Callable[[Driver | Recorded], int]:
        """What keeps in a file all that this engine needs of a driver, for `recorded`, and tells its frames. UserError,
        before anything is looked at, where it keeps nothing or not there."""
        ...

    def compile(self) -> None:
        """Makes a little of everything, so that nobody waits for the compiler later."""
        ...


def check(engine: Engine, options: Iterable[str]) -> None:
    """UserError for options that belong to another kind of model."""
    for name in options:
        if name not in engine.options:
            raise UserError(f"{name} is not for {engine.name}, which takes {', '.join(engine.options)}.")


def chosen(engine: Engine, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `play` from the command's, None where not given; UserError for another kind of model's."""
    given = {name: value for name, value in flags.items() if value is not None}
    flag = lambda name: f"--{name.replace('_', '-')}"
    for name in given:
        if name not in engine.flags:
            raise UserError(f"{flag(name)} is not for {engine.name}, which takes {', '.join(map(flag, engine.flags))}.")
    return engine.chosen(**given)
