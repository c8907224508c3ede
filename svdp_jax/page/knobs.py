"""What a visitor may turn, for each option that the command has of an engine: parts of the page, and the option's value."""

from collections.abc import Callable
from typing import Any, NamedTuple, get_args

from svdp_jax.config import ALIKE, MotionKind, Region, Transfer

USUAL = Transfer()
MOST_STEPS, STRONGEST, WIDEST = 100, 5.0, 0.8  # ends of the sliders


class Knob(NamedTuple):
    name: str  # of the page's function's parameter
    label: str
    kind: str  # slider, radio, check
    range: tuple  # least, most and step; or the choices
    usual: Callable[[Any], Any]  # of the engine


def same(value):
    return value


def ratio(wanted: bool, opening: float) -> float | None:
    return opening if wanted else None


def strength(name: str, field: str, label: str) -> Knob:
    return Knob(name, label, "slider", (0, STRONGEST, 0.1), lambda engine: getattr(engine.config.sampling, field))


def opening(part: str, plural: str) -> tuple[Knob, Knob]:
    return (
        Knob(f"open_{plural}", f"Open the {plural} as far as the slider says, rather than by the driver's motion", "check", (),
             lambda _: False),
        Knob(f"{part}_ratio", f"How far the {plural} are open, height over width", "slider", (0, WIDEST, 0.01), lambda _: 0.35),
    )  # fmt: skip


# By the command's name of the option: its parts, and its value from theirs.
KNOBS: dict[str, tuple[tuple[Knob, ...], Callable[..., Any]]] = {
    "steps": (
        (Knob("steps", "Steps", "slider", (1, MOST_STEPS, 1), lambda engine: engine.config.sampling.steps),), same
    ),
    "guidance": (
        (
            strength("guide_source", "source", "λs: follow the picture"),
            strength("guide_driving", "driving", "λd: follow the driver"),
            strength("guide_past", "past", "λp: follow the frames before"),
        ),
        lambda *weights: weights,
    ),
    "motion": (
        (Knob("motion", "Move as the driver has moved since its first frame, or take on its pose", "radio",
              get_args(MotionKind), lambda _: USUAL.motion),), same,
    ),
    "first_frame": (
        (Knob("begin_alike", "Begin with the driver's frame that is most like the picture", "check", (), lambda _: False),),
        lambda alike: ALIKE if alike else 0,
    ),
    "driving_multiplier": ((Knob("driving_multiplier", "Strength of motion", "slider", (0, 2, 0.05), lambda _: USUAL.driving_multiplier),), same),
    "animation_region": (
        (Knob("animation_region", "What moves", "radio", get_args(Region), lambda _: USUAL.animation_region),), same
    ),
    "eye_retargeting": (opening("eye", "eyes"), ratio),
    "lip_retargeting": (opening("lip", "lips"), ratio),
    "stitching": ((Knob("stitching", "Keep the shoulders where they are", "check", (), lambda _: USUAL.stitching),), same),
}  # fmt: skip


def of(flags: tuple[str, ...]) -> list[Knob]:
    return [knob for flag in flags for knob in KNOBS[flag][0]]


def values(flags: tuple[str, ...], turned: list) -> dict[str, Any]:
    """Options by the command's names, of the parts' values in their order."""
    taken = iter(turned)
    return {flag: KNOBS[flag][1](*(next(taken) for _ in KNOBS[flag][0])) for flag in flags}
