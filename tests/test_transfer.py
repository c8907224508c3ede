"""LivePortrait's options: what moves, how far, from which frame on; eyes and lips that are opened; motion without a video."""

import dataclasses
import json
import struct
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import randomized
from flax import nnx
from safetensors import safe_open
from test_animate import LITTLE, command
from test_face import canvas, draw
from test_pairs import photographs

from svdp_jax.animator import Animator
from svdp_jax.config import ALIKE, AS_DRIVEN, Transfer
from svdp_jax.engines import liveportrait
from svdp_jax.engines.liveportrait import LivePortraitEngine
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError
from svdp_jax.faces import landmarks, scene
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.media import video
from svdp_jax.media.images import write_image
from svdp_jax.models import keypoints
from svdp_jax.models.liveportrait import LivePortrait
from svdp_jax.weights import checkpoint

OPEN = np.float32([0.3, 0.28, 0.1])  # of the source


@pytest.fixture(scope="module")
def engine():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(liveportrait, "SIDE", 32)  # which is fast
        yield LivePortraitEngine(randomized(LivePortrait(LITTLE, nnx.Rngs(0)), 0.1), at_once=2)


def shown(picture, opening=None) -> DrivingFrame:
    return DrivingFrame(picture, picture, opening=opening)


SOURCE, *FRAMES = photographs(6)
DRIVER = [shown(picture, np.float32([0.1 * i, 0.5, 0.05 * i])) for i, picture in enumerate(FRAMES)]


def asked(engine, source=OPEN, driver=DRIVER, **transfer) -> np.ndarray:
    """Keypoints that the frames are made with, f k 3, less those of the source."""
    known, batches = engine.reenact(shown(SOURCE, source), driver, Transfer(**transfer), lambda: driver)
    return np.concatenate([made.asked for made in batches]) - np.asarray(known.points)


def moved(x) -> list[int]:
    """Keypoints that are elsewhere in any frame."""
    return sorted(set(np.argwhere(np.abs(x) > 1e-5)[:, 1].tolist()))


def test_regions_move_what_they_name(engine):
    still = {"stitching": False}
    part = lambda **changes: asked(engine, **still, **changes)
    for motion in ("relative", "absolute"):
        whole = part(motion=motion)
        assert len(moved(part(motion=motion, animation_region="pose"))) == keypoints.KEYPOINTS
        for region, points in (("lip", [6, 12, 14, 17, 19, 20]), ("eyes", [11, 13, 15, 16, 18])):
            change = part(motion=motion, animation_region=region)
            assert moved(change) == points and np.abs(change - whole).max() > 1e-3
    assert moved(part(animation_region="exp")) == list(range(keypoints.KEYPOINTS))
    assert moved(part(motion="absolute", animation_region="exp")) == np.flatnonzero(keypoints.TAKEN.any(1)).tolist()


def test_the_multiplier_is_of_all_motion(engine):
    np.testing.assert_allclose(asked(engine, driving_multiplier=0.5), 0.5 * asked(engine), atol=1e-6)
    assert not asked(engine, driving_multiplier=0).any()


def test_relative_motion_begins_with_the_frame_that_is_named(engine):
    """There the source is as it is; the frame most like it is found."""
    for first in (0, 3):
        change = np.abs(asked(engine, stitching=False, first_frame=first)).max((1, 2))
        assert change[first] < 1e-5 and np.delete(change, first).min() > 1e-3
    driver = [*DRIVER[:2], shown(SOURCE), *DRIVER[2:]]
    change = np.abs(asked(engine, driver=driver, stitching=False, first_frame=ALIKE)).max((1, 2))
    assert np.argmin(change) == 2 and change[2] < 1e-5
    with pytest.raises(UserError, match="first_frame 5 is not in the driver, which has 5 frames"):
        asked(engine, first_frame=5)
    with pytest.raises(UserError, match="first_frame must be 0"):
        list(engine.play(shown(SOURCE), DRIVER, transfer=Transfer(first_frame=1)))


def test_eyes_and_lips_open_as_the_small_networks_say(engine):
    network = nnx.merge(engine.graph, engine.state)
    known, _ = engine.reenact(shown(SOURCE), DRIVER)
    delta = lambda part, *ratios: np.asarray(network.retarget(part, known.points, np.float32([ratios])))[0]
    eyes, lips = delta("eye", OPEN[0], OPEN[1], 0.4), delta("mouth", OPEN[2], 0.2)
    still = {"stitching": False}
    # Relative motion moves nothing else, absolute all.
    found = asked(engine, eye_retargeting=0.4, lip_retargeting=0.2, **still)
    np.testing.assert_allclose(found, np.broadcast_to(eyes + lips, found.shape), atol=1e-6)
    plain = asked(engine, motion="absolute", **still)
    np.testing.assert_allclose(
        asked(engine, motion="absolute", eye_retargeting=0.4, **still) - plain, 0 * plain + eyes, atol=1e-6
    )
    # As far as the driver's, frame by frame.
    found = asked(engine, eye_retargeting=AS_DRIVEN, **still)
    expected = np.stack([delta("eye", OPEN[0], OPEN[1], frame.opening[0]) for frame in DRIVER])
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("source, driver, whose", [(None, DRIVER, "picture"), (OPEN, [shown(FRAMES[0])], "driver")])
def test_openings_that_nobody_knows_are_a_sentence(engine, source, driver, whose):
    with pytest.raises(UserError, match=f"lip_retargeting needs the landmarks of the {whose}.*docs/faces.md"):
        asked(engine, source, driver, lip_retargeting=AS_DRIVEN)


def test_openings_are_height_over_width():
    points = np.zeros(478, complex)
    for upper, lower, (a, b), height in zip(*zip(*landmarks.OPENINGS[478]), (3, 4, 5)):
        points[a], points[b], points[upper], points[lower] = -10, 10, 1j * height, -1j * height
    np.testing.assert_allclose(landmarks.opening(points), [0.3, 0.4, 0.5])
    turned = landmarks.opening(np.stack([points, 7 * np.exp(0.5j) * points + 100]))
    np.testing.assert_allclose(turned[0], turned[1])
    assert landmarks.opening(points[:64]) is None


def test_other_values_of_the_options_compile_nothing_new(engine):
    asked(engine, eye_retargeting=0.1)
    before = liveportrait.steer._cache_size()
    asked(engine, eye_retargeting=0.3, driving_multiplier=0.7)
    assert liveportrait.steer._cache_size() == before


# Motion templates


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("liveportrait") / "weights"
    network = randomized(LivePortrait(LITTLE, nnx.Rngs(0)), 0.1)
    checkpoint.save_weights(folder, "liveportrait", LITTLE, checkpoint.named(nnx.state(network)))
    return folder


def test_a_motion_template_stands_for_the_video(weights, drawn, tmp_path, monkeypatch, capsys):
    out, files = tmp_path / "motion.safetensors", drawn._asdict()
    given = lambda *names: [
        w for name in names if files[name] is not None for w in (f"--{name.replace('_', '-')}", files[name])
    ]
    command(monkeypatch, *given("driving", "driving_crop", "landmarks"), "--output", out, "--checkpoint", weights)
    assert "motion.safetensors: 8 frames at 12.5 per second" in capsys.readouterr().out
    with safe_open(out, "numpy") as file:  # no pictures in it
        assert {name: file.get_tensor(name).shape for name in file.keys()}.items() >= {
            "expression": (8, 21, 3),
            "time": (8, 2),
        }.items()
    assert out.stat().st_size < 10_000
    animator = Animator.load(weights)
    options = {"source_crop": drawn.source_crop, "transfer": Transfer(first_frame=2)}
    video_driven = list(
        animator.animate(drawn.source, drawn.driving, driving_crop="none", landmarks=drawn.landmarks, **options)
    )
    recorded = list(animator.animate(drawn.source, str(out), **options))
    assert len(recorded) == 8 and all(np.array_equal(a, b) for a, b in zip(recorded, video_driven))
    command(
        monkeypatch, *given("source", "source_crop"), "--driving", out, "--output", tmp_path / "a.mp4", "--checkpoint", weights,
        "--compare",
    )  # fmt: skip
    made = video.probe(tmp_path / "a.mp4")
    assert made.frames == 8 and made.fps == 12.5 and not made.has_audio


def test_bad_templates_are_a_sentence(weights, tmp_path, engine):
    from svdp_jax.engines import template

    rows = list(engine.moving(DRIVER))
    path = tmp_path / "a.safetensors"
    template.write(path, rows, video.Fraction(25), "other weights")
    with pytest.raises(UserError, match="other weights, whose keypoints"):
        engine.recorded(path)
    template.write(path, rows, video.Fraction(25), engine.fingerprint)
    again = engine.recorded(path)
    for a, b in zip(again.rows, rows, strict=True):
        assert a.time == b.time and all(map(np.array_equal, (*a.motion, a.opening), (*b.motion, b.opening)))
    whole = path.read_bytes()
    head = struct.unpack("<Q", whole[:8])[0]
    for bad in (
        b"",
        whole[:-4],
        b"\xff" * 64,
        whole[:8] + whole[8 : 8 + head].replace(b"template 1", b"template 2") + whole[8 + head :],
    ):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="no motion template"):
            engine.recorded(path)
    broken = rows[0]._replace(motion=jax.tree.map(lambda x: x * np.nan, rows[0].motion))
    template.write(path, [broken], video.Fraction(25), engine.fingerprint)
    with pytest.raises(UserError, match="not finite"):
        engine.recorded(path)


# The page


def test_a_still_picture_is_opened_on_the_page(weights, tmp_path, monkeypatch):
    """Every option is a part of the page; without a driver, eyes and lips open as the sliders say."""
    pytest.importorskip("gradio")
    from svdp_jax.page import knobs, layout, studio as studios

    animator = Animator.load(weights)
    studio = studios.Studio(animator, tmp_path, 60, [])
    assert set(animator.engine.flags) <= set(knobs.KNOBS) and layout.page(studio)
    one = scene.following.one
    monkeypatch.setattr(scene.following, "one", lambda *given: one(*given)._replace(opening=OPEN))
    picture = tmp_path / "me.png"
    drawn_face = canvas()
    draw(drawn_face, 120 + 115j, 1.6)
    write_image(picture, drawn_face)
    usual = [knob.usual(animator.engine) for knob in knobs.of(animator.engine.flags)]
    names = [knob.name for knob in knobs.of(animator.engine.flags)]

    def last(**changes):
        turned = [changes.get(name, value) for name, value in zip(names, usual)]
        *_, end = studio.animate(
            str(picture), None, 0, 0, "auto", "auto", None, False, *turned, 0, SimpleNamespace(session_hash="a")
        )
        assert "Finished" in end[1]
        (frame,) = video.read_frames(end[2])
        return frame.image.astype(int)

    plain = last()
    assert np.abs(last(open_eyes=True, eye_ratio=0.7) - plain).max() > 3
    assert np.abs(last(open_lips=True, lip_ratio=0.7) - plain).max() > 3


def test_motion_is_not_kept_where_it_cannot_be(engine, tmp_path):
    """Before the driver is looked at."""
    film = tmp_path / "a.safetensors"
    film.touch()
    for output, driving, sentence in (
        (film, film, "would replace the input"),
        (tmp_path / "a.mp4", "b.mp4", "files that end in .safetensors"),
        (tmp_path / "none" / "a.safetensors", "b.mp4", "does not exist"),
    ):
        with pytest.raises(UserError, match=sentence):
            Animator(engine).record(output, driving)
    other = object.__new__(SVDPEngine)
    other.name, other.framing, other.fingerprint = "tiny", None, ""
    with pytest.raises(UserError, match="motion alone is kept for LivePortrait"):
        other.recorder(tmp_path / "b.safetensors")


def test_an_option_out_of_its_range_is_a_sentence(weights, drawn, tmp_path, monkeypatch, capsys):
    files = ("--source", drawn.source, "--driving", drawn.driving, "--output", tmp_path / "out.mp4", "--checkpoint", weights)
    with pytest.raises(SystemExit):
        command(monkeypatch, *files, "--driving-multiplier", 100)
    assert "transfer.driving_multiplier must be from 0 to 10, not 100" in capsys.readouterr().err
    assert dataclasses.asdict(Transfer())["eye_retargeting"] is None and json.dumps(dataclasses.asdict(Transfer()))
    assert scene.OPTIONS and not list(tmp_path.iterdir())
