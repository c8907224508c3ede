"""Frames while they come: what a camera gives is what a video gives, and who falls behind leaves frames out."""

import threading
from fractions import Fraction

import numpy as np
import pytest
from flax import nnx
from test_animate import CONFIG

from svdp_jax.animator import Animator
from svdp_jax.engines.arriving import Arriving
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.models.svdp import SVDP
from svdp_jax.weights import checkpoint


@pytest.fixture(scope="module")
def animator() -> Animator:
    return Animator(SVDPEngine(CONFIG, SVDP(CONFIG.model, nnx.Rngs(0)), checkpoint.load_codec(CONFIG.model.codec)))


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)


def cropped(frames: np.ndarray) -> list[DrivingFrame]:
    return [DrivingFrame(frame, frame, Fraction(0)) for frame in frames]


def test_a_stream_gives_what_a_video_does(animator):
    """Also of a last segment that is not full, and each frame after its own driver's."""
    source, frames = pictures(1)[0], pictures(11)
    video = [made[0] for made in animator.engine.generate(source[None], (frame[None] for frame in frames), segment=3)]
    live = list(animator.stream(source, cropped(frames), source_crop="none", drop=False, segment=3))
    np.testing.assert_array_equal([shown.picture for shown in live], video)
    assert all(shown.delay >= 0 and shown.dropped == 0 for shown in live)


def test_a_segment_is_not_kept_waiting_for_the_next_one(animator):
    """The camera gives no more frames until the first ones have come out."""
    seen = threading.Event()

    def camera():
        yield from cropped(pictures(4))
        assert seen.wait(300), "the first segment was held back"
        yield from cropped(pictures(4, 1))

    stream = animator.stream(pictures(1)[0], camera(), source_crop="none", drop=False)
    next(stream)
    seen.set()
    assert len(list(stream)) == 7


def test_where_the_next_segment_is_there_it_is_begun_before_this_one_is_taken(animator, monkeypatch):
    begun, decode = [], animator.engine.decode
    monkeypatch.setattr(animator.engine, "decode", lambda x: begun.append(1) or decode(x))
    frames = (frame[None] for frame in pictures(12))
    stream = animator.engine.generate(pictures(1), frames, ready=lambda count: len(begun) < 3)
    next(stream)
    assert len(begun) == 2
    assert len(list(stream)) == 11


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
