"""Pairs: frames as the networks make them, in bounded memory, and judged by what is wrong with them."""

from fractions import Fraction
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import randomized
from flax import nnx
from test_face import canvas, draw

from svdp_jax import prepare
from svdp_jax.config import Backbone
from svdp_jax.engines import liveportrait
from svdp_jax.engines.liveportrait import Known, LivePortraitEngine
from svdp_jax.errors import UserError
from svdp_jax.faces import cascades, face, follow
from svdp_jax.faces.framing import LivePortraitFraming
from svdp_jax.media.images import read_image
from svdp_jax.media.writer import VideoWriter
from svdp_jax.models import keypoints
from svdp_jax.models.keypoints import KEYPOINTS, Motion
from svdp_jax.models.liveportrait import LivePortrait, LivePortraitConfig
from svdp_jax.preparation import crops, encode, left, pairs
from svdp_jax.preparation.pairs import LIMITS, Measured, Reenactment, judge
from svdp_jax.weights.checkpoint import named, save_weights

TINY = LivePortraitConfig(
    channels=2,
    depth=2,
    appearance=(4, 4, 4),
    resblocks=1,
    motion=(4, 4, 4, 8),
    motion_blocks=(1, 1, 1, 1),
    compress=2,
    hourglass=(2, 4, 4),
    warped=4,
    generator=(8, 4, 4),
    middle=1,
    spade=4,
    shoulder=(8,),
    mouth=(8,),
    eye=(8,),
)


def photographs(count, side=64):
    rng = np.random.default_rng(0)
    return [cv2.resize(rng.integers(0, 256, (8, 8, 3), np.uint8), (side, side)) for _ in range(count)]


@pytest.fixture(scope="module")
def network():
    return randomized(LivePortrait(TINY, nnx.Rngs(0)), 0.1)


@pytest.fixture(scope="module")
def engine(network):
    return LivePortraitEngine(network, at_once=2)


@pytest.fixture(scope="module")
def clip(engine):
    """A source, five driving frames of any size, and the result: two batches and a padded one."""
    source, *driving = photographs(6)
    driving[1] = cv2.resize(driving[1], (300, 300))
    made = Reenactment(engine, source, driving)
    return source, driving, made, list(made)


def test_frames_are_those_of_the_networks(clip, network):
    source, driving, made, frames = clip
    assert [frame.shape for frame in frames] == [(512, 512, 3)] * 5 and frames[0].dtype == np.uint8
    # As many at once as there, since sums are taken in another order otherwise.
    s, *d = (jnp.float32(x)[None].repeat(2, 0) / 255 for x in liveportrait.ready([source, driving[0], driving[4]]))

    @jax.jit
    def alone(s, first, last):
        known, start, now = map(network.motion, (s, first, last))
        x_s = keypoints.points(known)
        x_d = network.stitch(x_s, keypoints.relative(known, start, now))
        return network.render(network.appearance(s), x_s, x_d)[0]

    expected = np.asarray(alone(s, *d))[0] * 255
    assert np.abs(expected - frames[4]).max() < 0.6
    assert np.abs(expected - frames[0]).max() > 2  # another motion is another picture


def test_every_frame_is_measured_once(clip):
    made = clip[2]
    measured = Measured(*map(np.concatenate, zip(*made.measured)))
    assert [len(x) for x in measured] == [5] * len(measured)
    assert judge(made).measures.keys() == LIMITS.keys()


def test_memory_is_that_of_two_batches(engine):
    asked = []

    def endless():
        while True:
            asked.append(None)
            yield photographs(1)[0]

    frames = iter(Reenactment(engine, photographs(1)[0], endless()))
    for _ in range(3):
        next(frames)
    assert len(asked) <= 3 * engine.count


def test_numbers_that_are_not_finite(network):
    broken = nnx.clone(network)
    broken.generator.conv_img.bias[...] = jnp.full(12, jnp.nan)
    made = Reenactment(LivePortraitEngine(broken, at_once=2), photographs(1)[0], photographs(2))
    assert len(list(made)) == 2
    verdict = judge(made)
    assert not verdict.accepted and "not finite (broken 1.00" in verdict.reasons[0]


def test_weights_are_loaded_and_others_refused(tmp_path, network):
    save_weights(tmp_path / "weights", "liveportrait", TINY, named(nnx.state(network)))
    loaded = LivePortraitEngine.load(tmp_path / "weights")
    leaves = zip(jax.tree.leaves(loaded.state), jax.tree.leaves(nnx.state(network)), strict=True)
    assert all((a == b).all() for a, b in leaves)
    save_weights(tmp_path / "other", "sd35", Backbone(), {"x": np.zeros(1, np.float32)})
    with pytest.raises(UserError, match="holds 'sd35'; make weights with `python -m convert liveportrait"):
        LivePortraitEngine.load(tmp_path / "other")


# Judging: a clip without fault, and one fault at a time


def points(seed):
    return np.random.default_rng(seed).normal(size=(KEYPOINTS, 3)).astype(np.float32)


SHAPES = {"b": points(0), "a": points(1)}
FRAMES = 6
SWAY = np.linspace(-0.2, 0.2, FRAMES, dtype=np.float32)[:, None, None] * points(2)


def flawless(**changes):
    same = lambda shape: np.repeat(shape[None], FRAMES, 0)
    asked = SHAPES["b"] + SWAY
    clip = Measured(
        asked=asked,
        found=asked,
        shape=same(SHAPES["b"]),
        driver=same(SHAPES["a"]),
        seen=np.full(FRAMES, 0.9),
        black=np.full(FRAMES, 0.1),
        finite=np.ones(FRAMES, bool),
    )
    motion = Motion(SHAPES["b"][None], *[None] * 6)
    made = object.__new__(Reenactment)
    made.known, made.black = Known(None, motion, None), 0.1
    clip = clip._replace(**{name: change(clip) for name, change in changes.items()})
    made.measured = [Measured(*(x[:4] for x in clip)), Measured(*(x[4:] for x in clip))]
    return made


def test_a_flawless_clip():
    verdict = judge(flawless())
    assert verdict.accepted and not verdict.reasons
    expected = dict(broken=0, black=0, hidden=0.1, distance=0, correlation=1, identity=0)
    assert verdict.measures == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "changes, name, value",
    [
        ({"finite": lambda c: np.arange(FRAMES) > 0}, "broken", 1 / FRAMES),
        ({"black": lambda c: np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.4])}, "black", 0.3),
        ({"seen": lambda c: np.full(FRAMES, 0.2)}, "hidden", 0.8),
        ({"found": lambda c: c.asked + np.float32([0, 0.3 * pairs.spread(c.asked.mean(0)), 0])}, "distance", 0.3),
        ({"found": lambda c: c.asked - 1.25 * SWAY}, "correlation", -1),
        ({"found": lambda c: np.repeat(SHAPES["b"][None], FRAMES, 0)}, "correlation", 0),
        ({"shape": lambda c: c.driver + 0 * SWAY}, "identity", 1),
    ],
)
def test_each_fault_has_its_reason(changes, name, value):
    verdict = judge(flawless(**changes))
    assert not verdict.accepted
    assert [reason for reason in verdict.reasons if LIMITS[name].complaint in reason and name in reason]
    assert verdict.measures[name] == pytest.approx(value, abs=1e-4)


def test_a_driver_that_keeps_still_is_not_blamed():
    still = lambda c: np.repeat(SHAPES["b"][None], FRAMES, 0) + 1e-3 * SWAY[::-1]
    assert judge(flawless(asked=still, found=lambda c: still(c)[::-1])).accepted


def test_numbers_that_are_missing_are_faults():
    verdict = judge(flawless(found=lambda c: c.found * np.nan))
    assert not verdict.accepted and len(verdict.reasons) == 2


# Crops


def seen(middle, eyes, turn=1):
    """A face with its eyes `eyes` apart around `middle`."""
    return cascades.face_by(middle, 2.6 * eyes, middle - turn * eyes / 2, middle + turn * eyes / 2, 1.0)


def test_driving_crop():
    faces = [seen(200 + 100j, 50), seen(220 + 100j, 54)]
    box = LivePortraitFraming().box(face.Face(*[np.array(column) for column in zip(*faces)][:7]))
    lips = 1.15 * 52  # from the eyes to the mouth
    side = 2.2 * 2.1 * lips
    assert box.side == round(side)
    assert box.left == pytest.approx(210 - side / 2, abs=1)
    assert box.top == pytest.approx(100 + 0.7 * lips - 0.1 * side - side / 2, abs=1)


def test_source_crop_is_upright():
    turn = np.exp(1j * np.deg2rad(25))
    middle, eyes = 260 + 230j, 60
    image = np.zeros((500, 500, 3), np.uint8)
    marks = [middle - turn * eyes / 2, middle + turn * eyes / 2, middle + turn * eyes * cascades.MOUTH]
    for channel, mark in enumerate(marks):
        cv2.circle(image, (round(mark.real), round(mark.imag)), 6, tuple(255.0 * (np.arange(3) == channel)), -1)
    framing = LivePortraitFraming()
    crop = framing.cut(image, framing.place(seen(middle, eyes, turn)))
    assert crop.shape == (512, 512, 3)
    found = [np.argwhere(crop[..., i] > 128).mean(0) for i in range(3)]
    scale = 512 / (2.3 * 2.1 * 1.15 * eyes)
    left, right, mouth = found
    assert left[0] == pytest.approx(right[0], abs=1.5)  # the eyes are level,
    assert mouth[1] == pytest.approx((left + right)[1] / 2, abs=1.5)  # the mouth is below their middle,
    assert right[1] - left[1] == pytest.approx(scale * eyes, abs=1.5)
    lips = scale * 1.15 * eyes
    assert left[0] == pytest.approx(255.5 - 0.7 * lips + 0.125 * 512, abs=1.5)  # and all is where it should


def test_source_crop_of_a_photograph(portraits: Path):
    image = read_image(portraits / "s5.jpg")
    framing = LivePortraitFraming()
    crop = framing.cut(image, framing.place(follow.one(image)))
    found = follow.detect(crop)[0]
    assert 0.3 < found.size / 512 < 0.6


# From films to records

WALLS = [cv2.resize(np.random.default_rng(i).uniform(0.3, 1.2, (2, 5, 1)), (240, 60))[..., None] for i in range(3)]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three people, that is three films of a drawn face before a wall of its own, 4 frames each: two batches."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(3):
        with VideoWriter(folder / f"{'abc'[number]}.mp4", Fraction(25)) as writer:
            for t in range(4):
                image = canvas()
                image[:60] = WALLS[number] * image[:60]
                draw(image, 120 + 115j + t, 1.6 + 0.2 * number)
                writer.write(np.uint8(image * (1 - 0.1 * number)))
    return folder


@pytest.fixture
def arguments(films, network, engine, tmp_path, monkeypatch):
    save_weights(tmp_path / "weights", "liveportrait", TINY, named(nnx.state(network)))
    monkeypatch.setattr(pairs, "loaded", lambda folder: engine)
    limits = ["seconds=0.1", "face=20", "sharpness=0", "frozen=0:1"]
    return [str(films), str(tmp_path / "out"), "--size", "128", "--codec", "pixels:4", "--pair-weights",
            str(tmp_path / "weights"), *(word for limit in limits for word in ("--limit", limit)), "--", "--runner=none"]  # fmt: skip


def test_pairs_of_a_random_network_are_all_rejected_and_this_is_said(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        prepare.main(arguments)
    said, out = capsys.readouterr(), tmp_path / "out"
    assert stopped.value.code and "no clip is left for --stage encode" in said.err
    assert "clips driven: 0" in said.out and "rejected: nobody to drive it: 3" in said.out
    assert sum(int(line.split(": ")[-1]) for line in said.out.splitlines() if "rejected: pair: " in line) == 6
    page = (out / "report.html").read_text()
    assert all(f"{b}-000 as driver of {a}-000: " in page for a in "abc" for b in "abc" if a != b)
    assert not list((out / "pairs").glob("*.frames")) and not (out / "records").exists()


def test_a_rejected_pair_is_drawn_again_from_another_person(arguments, tmp_path, monkeypatch):
    """Every clip's first try is judged bad, its second good; windows stand where A's do."""
    verdicts, out = [], tmp_path / "out"

    def judged(made):
        verdicts.append(pairs.Verdict(len(verdicts) % 2 == 1, ("bad (by 1)",), {}))
        return verdicts[-1]._replace(reasons=verdicts[-1].reasons * (not verdicts[-1].accepted))

    monkeypatch.setattr(pairs, "judge", judged)
    monkeypatch.setattr(pairs, "outlines", lambda frames, name: np.load(out / "masks" / f"{name[-5:]}.npy"))
    prepare.main(arguments)
    _, manifest = encode.read_manifest(out)
    for entry in manifest["clips"]:
        ((tried, _),) = left.read_json(out / "pairs" / f"{entry['name']}.json")["rejected"]
        assert {entry["name"], entry["driver"], tried} == {"a-000", "b-000", "c-000"}
    assert manifest["frames"] == 12 and len(verdicts) == 6
    assert "pair: bad: 3" in (out / "report.html").read_text()
    # The frames kept are the second person's, made by the network, and say so.
    entry = manifest["clips"][0]
    made = list(crops.encoded(out / "pairs" / f"{entry['name']}.frames"))
    assert len(made) == 4 and all(b"AI-generated by svdp_jax" in data and b"LivePortrait sha256:" in data for data in made)


def test_an_accelerator_is_left_to_one_process(monkeypatch):
    assert prepare.processes(4, 9, network=True) == prepare.processes(4, 9, network=False) == 4
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert prepare.processes(4, 9, network=True) == 1 and prepare.processes(4, 9, network=False) == 4
