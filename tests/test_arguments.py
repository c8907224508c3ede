"""The library's calls at the edges of every argument: a sentence each, and no traceback of somebody else."""

import dataclasses
import inspect

import numpy as np
import pytest
from PIL import Image
from test_animate import CONFIG

from svdp_jax.animator import Animator
from svdp_jax.config import Transfer
from svdp_jax.engines.liveportrait import LivePortraitEngine
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError
from svdp_jax.faces import arguments, scene
from svdp_jax.faces.framing import Portrait

PICTURE, FILM = np.zeros((32, 32, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8)
NAN, HUGE = float("nan"), 10**30
STRANGE = (
    None,
    True,
    -1,
    1.5,
    NAN,
    HUGE,
    "",
    "x",
    b"x" * 10_000,
    [],
    {},
    object(),
    PICTURE,
    FILM[:0],
    Image.new("RGB", (9, 9)),
)
FITTING = {
    "source": PICTURE, "driving": FILM, "output": "out.mp4", "folder": None, "network": "svdp", "transfer": Transfer(), "face": np.int64(1), "driving_face": None,
    "source_crop": "none", "driving_crop": "auto", "landmarks": "a.npy", "fps": 25, "paste_back": False, "compare": True,
    "watch": False, "seed": 0, "sampling": CONFIG.sampling, "show": print, "finish": print, "crops": FILM,
    "drivers": iter(FILM), "frame": PICTURE, "drop": True, "segment": 4,
}  # fmt: skip
# What of STRANGE each argument can be given.
TAKEN = {
    "source": ("x", PICTURE), "driving": ("x",), "output": ("x",), "folder": (None, "x"), "network": (None, "x"), "transfer": (None,), "driving_face": (None,),
    "landmarks": (None, "x"), "fps": (1.5,), "paste_back": (True,), "compare": (True,), "watch": (True,),
    "sampling": (None,), "drivers": ([], {}, PICTURE, FILM[:0]), "frame": (PICTURE,), "drop": (True,), "segment": (None,),
}  # fmt: skip


def a_sentence(error) -> bool:
    text = str(error.value)
    return text.endswith(".") and "\n" not in text and len(text) < 300


@pytest.mark.parametrize("name", arguments.ARGUMENTS)
def test_every_argument_at_its_edges(name):
    arguments.check(**{name: FITTING[name]})
    for value in STRANGE:
        if any(value is taken for taken in TAKEN.get(name, ())) or (name == "drivers" and hasattr(value, "__iter__")):
            continue
        if isinstance(value, np.ndarray) and any(value.shape == getattr(taken, "shape", None) for taken in TAKEN.get(name, ())):
            continue
        with pytest.raises(UserError, match=f"{name} must be ") as error:
            arguments.check(**{name: value})
        assert a_sentence(error)


def test_every_argument_is_declared():
    calls = (Animator.animate, Animator.save, Animator.load, scene.prepare, SVDPEngine.generate, LivePortraitEngine.play)
    named = {name for call in calls for name in inspect.signature(call).parameters} - {
        "self",
        "options",
        "framing",
        "past",
        "ready",
        "again",
    }
    assert named <= set(arguments.ARGUMENTS)


@pytest.fixture(scope="module")
def animator() -> Animator:
    """One that would fail at the first computation."""
    engine = object.__new__(SVDPEngine)
    engine.config, engine.name, engine.framing, engine.fingerprint = CONFIG, "tiny", Portrait(32), "none"
    return Animator(engine)


@pytest.mark.parametrize(
    "wrong",
    [
        {"source": Image.new("RGB", (9, 9))},
        {"source": None},
        {"driving": (frame for frame in FILM)},
        {"driving": [FILM[0], FILM[1, :9]]},
        {"driving": None},
        {"fps": 0},
        {"face": -1},
        {"seed": 1.5},
        {"seed": -1},
        {"landmarks": 0},
        {"source_crop": ["none"]},
        {"sampling": dataclasses.replace(CONFIG.sampling, steps=0)},
        {"sampling": dataclasses.replace(CONFIG.sampling, past=NAN)},
        {"sampling": {"steps": 3}},
        {"paste_back": "no"},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
@pytest.mark.parametrize("saved", [False, True])
def test_calls_refuse_what_is_not_theirs(animator, tmp_path, wrong, saved):
    options = {"source": PICTURE, "driving": FILM, "source_crop": "none", "driving_crop": "none"} | wrong
    with pytest.raises(UserError, match=f"{next(iter(wrong))}.* must be") as error:
        animator.save(tmp_path / "out.mp4", **options) if saved else next(animator.animate(**options))
    assert a_sentence(error) and not list(tmp_path.iterdir())
