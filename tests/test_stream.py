"""Frames while they come: what a camera gives is what a video gives, and who falls behind leaves frames out."""

import threading
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import randomized
from flax import nnx
from test_animate import CONFIG, LITTLE

from svdp_jax import config as configs
from svdp_jax.animator import Animator
from svdp_jax.engines import liveportrait
from svdp_jax.engines.arriving import Arriving
from svdp_jax.engines.liveportrait import LivePortraitEngine
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError
from svdp_jax.faces import scene as scenes
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.models.liveportrait import LivePortrait
from svdp_jax.models.svdp import SVDP
from svdp_jax.weights import checkpoint


class Kind(NamedTuple):
    """An engine, what it is told so that a segment has 3 frames, and the last thing that it has a device do for one."""

    animator: Animator
    options: dict
    made: tuple[Any, str]


@pytest.fixture(scope="module")
def kinds() -> dict[str, Kind]:
    svdp = SVDPEngine(CONFIG, SVDP(CONFIG.model, nnx.Rngs(0)), checkpoint.load_codec(CONFIG.model.codec))
    network = randomized(LivePortrait(LITTLE, nnx.Rngs(0)), 0.1)
    other = LivePortraitEngine(network, at_once=3)
    return {
        "svdp": Kind(Animator(svdp), {"segment": 3}, (svdp, "decode")),
        "liveportrait": Kind(Animator(other), {}, (liveportrait, "draw")),
    }


@pytest.fixture(scope="module", params=["svdp", "liveportrait"])
def kind(request, kinds) -> Kind:
    return kinds[request.param]


@pytest.fixture(scope="module")
def animator(kinds) -> Animator:
    return kinds["svdp"].animator


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


def cropped(frames: np.ndarray) -> list[DrivingFrame]:
    return [DrivingFrame(frame, frame, Fraction(0)) for frame in frames]


def played(kind: Kind, source: np.ndarray, frames) -> list:
    """What the engine makes of them as of a video."""
    *_, portrait = scenes.portrait(source, kind.animator.engine.framing, 0, "none")
    return list(kind.animator.engine.play(portrait, frames, **kind.options))


def test_a_stream_gives_what_a_video_does(kind):
    """Also of a last segment that is not full, and each frame after its own driver's."""
    source, frames = pictures(1)[0], pictures(11)
    video = played(kind, source, cropped(frames))
    live = list(kind.animator.stream(source, cropped(frames), source_crop="none", drop=False, **kind.options))
    np.testing.assert_array_equal([shown.picture for shown in live], video)
    assert all(shown.delay >= 0 and shown.dropped == 0 for shown in live)


def test_a_segment_is_not_kept_waiting_for_the_next_one(kind):
    """The camera gives no more frames until the first ones have come out."""
    seen = threading.Event()

    def camera():
        yield from cropped(pictures(3))
        assert seen.wait(300), "the first segment was held back"
        yield from cropped(pictures(3, 1))

    stream = kind.animator.stream(pictures(1)[0], camera(), source_crop="none", drop=False, **kind.options)
    next(stream)
    seen.set()
    assert len(list(stream)) == 5


def test_where_the_next_segment_is_there_it_is_begun_before_this_one_is_taken(kind, monkeypatch):
    begun, original = [], getattr(*kind.made)
    monkeypatch.setattr(*kind.made, lambda *given: begun.append(1) or original(*given))
    frames = Arriving(cropped(pictures(12)), 12, drop=False)
    monkeypatch.setattr(frames, "ready", lambda count: len(begun) < 3)
    source = pictures(1)[0]
    stream = kind.animator.engine.play(DrivingFrame(source, source), frames, **kind.options)
    next(stream)
    assert len(begun) == 2
    assert len(list(stream)) == 11


def test_relative_motion_begins_with_the_first_frame_of_a_stream(kinds):
    """However long it lasts; another can only be looked for in a driver that can be read again."""
    kind, source, frames = kinds["liveportrait"], pictures(1)[0], cropped(pictures(9))
    stream = lambda **options: kind.animator.stream(source, frames, source_crop="none", drop=False, **options)
    last = np.array([shown.picture for shown in stream()][-3:])
    np.testing.assert_array_equal(last, played(kind, source, frames[:1] + frames[-3:])[1:])
    assert (last != np.array(played(kind, source, frames[-3:]))).any()
    with pytest.raises(UserError, match="first_frame must be 0 of a driver that comes only once"):
        next(stream(transfer=configs.Transfer(first_frame=configs.ALIKE)))


def test_who_falls_behind_leaves_out_what_waited_longest():
    all_read, frames = threading.Event(), iter(range(10))

    def source():
        yield from frames
        all_read.set()

    arriving = Arriving(source(), 3, drop=True)
    assert all_read.wait(300)
    while not arriving.ended:
        pass
    assert list(arriving) == [7, 8, 9] and arriving.dropped == 7 and list(arriving.taken) == [7, 8, 9]


def test_a_source_that_can_wait_is_read_no_further_than_is_held():
    read = []
    arriving = Arriving((read.append(i) or i for i in range(10)), 3, drop=False)
    assert next(arriving) == 0
    while not arriving.ready(3):
        pass
    assert len(read) <= 5 and list(arriving) == list(range(1, 10)) and arriving.dropped == 0


def test_what_goes_wrong_while_reading_is_said_after_what_was_read(animator):
    def camera():
        yield from cropped(pictures(4))
        raise UserError("the camera is gone.")

    stream, made = animator.stream(pictures(1)[0], camera(), source_crop="none", drop=False), []
    with pytest.raises(UserError, match="the camera is gone"):
        made.extend(next(stream) for _ in range(5))
    with pytest.raises(UserError, match="face networks"):  # which follow a driver as they come
        next(animator.stream(pictures(1)[0], list(pictures(4)), source_crop="none"))
    with pytest.raises(UserError, match="segment must be 2 frames"):
        next(animator.stream(pictures(1)[0], cropped(pictures(4)), source_crop="none", segment=1))
