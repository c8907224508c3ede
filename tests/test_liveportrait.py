"""LivePortrait against a PyTorch reading of its description, through the converter; the sampler."""

import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REAL
from einops import rearrange
from flax import nnx
from torch_reference import assert_close, library

import convert.__main__ as command
from svdp_jax.config import Transfer
from svdp_jax.engines.liveportrait import LivePortraitEngine, computing_in, draw
from svdp_jax.faces import face, follow, scene
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.faces.framing import Turned
from svdp_jax.media import video
from svdp_jax.media.images import read_image
from svdp_jax.models import keypoints, volume
from svdp_jax.models.keypoints import Motion
from svdp_jax.models.liveportrait import LivePortrait, LivePortraitConfig, grid
from svdp_jax.weights.checkpoint import load_network

SMALL = LivePortraitConfig(
    channels=4,
    depth=4,
    appearance=(8, 8, 16),
    resblocks=2,
    motion=(8, 8, 16, 16),
    motion_blocks=(1, 1, 2, 1),
    compress=2,
    hourglass=(4, 8, 8, 16),
    warped=8,
    generator=(16, 8, 8),
    middle=1,
    spade=8,
    shoulder=(16, 8),
    mouth=(16, 8),
    eye=(16, 8, 8),
)
SIDE = 64  # of pictures going in
PUBLISHED = {"appearance": 0.836, "motion": 28.119, "warping": 45.530, "generator": 55.365, "stitching": 0.227}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pictures(count, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, SIDE, SIDE, 3)).astype(np.float32)


def first(x):
    """Channels first, in PyTorch."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def last(x):
    return x.movedim(1, -1)


@pytest.fixture(scope="module")
def theirs():
    library("torch")
    import liveportrait_reference as reference

    return reference.randomized(SMALL)


@pytest.fixture(scope="module")
def published(theirs, tmp_path_factory):
    """The reference's weights in the files of the release."""
    import liveportrait_reference as reference

    return reference.write(theirs, SMALL, tmp_path_factory.mktemp("liveportrait") / "published")


@pytest.fixture(scope="module")
def weights(published):
    out = published.with_name("weights")
    assert command.main(["liveportrait", str(published), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def ours(weights):
    return load_network(weights)


# Sizes


def test_published_sizes():
    model = nnx.eval_shape(lambda: LivePortrait(LivePortraitConfig(), nnx.Rngs(0)))
    for name, millions in PUBLISHED.items():
        trained = jax.tree.leaves(nnx.state(getattr(model, name), nnx.Param))
        assert f"{sum(leaf.size for leaf in trained) / 1e6:.3f}" == f"{millions:.3f}", name


def test_published_shapes():
    def run(source, driving):
        model = LivePortrait(LivePortraitConfig(), nnx.Rngs(0))
        features = model.appearance(source)
        x_s, x_d = (keypoints.points(model.motion(x)) for x in (source, driving))
        return features, *model.render(features, x_s, model.stitch(x_s, x_d))

    shapes = [jax.ShapeDtypeStruct((b, 256, 256, 3), jnp.float32) for b in (1, 3)]
    features, out, seen = jax.eval_shape(run, *shapes)
    assert features.shape == (1, 16, 64, 64, 32)
    assert out.shape == (3, 512, 512, 3) and seen.shape == (3, 64, 64, 1)


# Each network, and the whole path


def test_appearance(ours, theirs):
    x = pictures(2)
    assert_close(jax.jit(ours.appearance)(x), last(theirs.appearance(first(x))))


def test_motion(ours, theirs):
    x = pictures(3)
    found, expected = jax.jit(ours.motion)(x), theirs.motion(first(x))
    for field, name in zip(Motion._fields, ("kp", "exp", "t", "scale", "pitch", "yaw", "roll")):
        assert_close(getattr(found, field), expected[name])


def two_sets(theirs):
    """Keypoints of a source, and others that warp it visibly: b k 3."""
    x_s = 0.5 * normal(2, keypoints.KEYPOINTS, 3)
    return x_s, x_s + 0.2 * normal(2, keypoints.KEYPOINTS, 3, seed=1)


def test_warping(ours, theirs):
    import torch

    x, points = normal(2, 4, 16, 16, 4), two_sets(theirs)
    found = jax.jit(ours.warping)(x, *points)
    features, seen = theirs.warping(first(x), *map(torch.from_numpy, points))
    assert_close(found.features, last(features))
    assert_close(found.seen, last(seen))
    unmoved = theirs.warping(first(x), *[torch.from_numpy(points[0])] * 2)[0]
    assert (unmoved - features).abs().max() > 0.1 * features.std()  # so that the flow is put to the test


def test_generator(ours, theirs):
    x = normal(2, 8, 8, 8)
    assert_close(jax.jit(ours.generator)(x), last(theirs.generator(first(x))))


@pytest.mark.parametrize("name, size", [("shoulder", 126), ("mouth", 65), ("eye", 66)])
def test_stitching_and_retargeting(ours, theirs, name, size):
    import torch

    x = normal(2, size)
    assert_close(getattr(ours.stitching, name)(x), getattr(theirs, name)(torch.from_numpy(x)))


@pytest.mark.parametrize("relative", [True, False])
def test_whole_path(ours, theirs, relative):
    source, driving = pictures(1), pictures(3, seed=1)

    def run(source, driving):
        s, d = ours.motion(source), ours.motion(driving)
        start = jax.tree.map(lambda x: x[:1], d)
        moved = keypoints.relative(s, start, d) if relative else keypoints.absolute(s, d)
        x_s = keypoints.points(s)
        return ours.render(ours.appearance(source), x_s, ours.stitch(x_s, moved))[0]

    expected = last(theirs(first(source), first(driving), relative))
    assert_close(jax.jit(run)(source, driving), expected)
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.std()


OPENING = np.float32([0.3, 0.28, 0.1])
USES = {
    "relative": ({}, {}),
    "absolute, lips": ({"motion": "absolute", "animation_region": "lip"}, {"relative": False, "region": "lip"}),
    "absolute": ({"motion": "absolute"}, {"relative": False}),
    "later": (
        {"first_frame": 2, "driving_multiplier": 0.7, "animation_region": "exp"},
        {"first": 2, "multiplier": 0.7, "region": "exp"},
    ),
    "opened": ({"eye_retargeting": 0.4, "lip_retargeting": 0.2}, {"eyes": 0.4, "lips": 0.2, "opening": OPENING}),
}  # fmt: skip


@pytest.fixture(scope="module")
def engine(weights):
    return LivePortraitEngine.load(weights)


class Real(NamedTuple):
    """A portrait and some frames of a driver, with their faces, as ours crops them and as the reference does."""

    picture: np.ndarray
    place: Turned
    source: DrivingFrame
    driver: list[DrivingFrame]
    matrix: np.ndarray
    crop: np.ndarray
    crops: list[np.ndarray]


@pytest.fixture(scope="module")
def real(engine):
    import liveportrait_reference as reference

    if not REAL.is_dir():
        pytest.skip(f"real clips are not at {REAL}")
    picture, framing = read_image(REAL / "s9.jpg"), engine.framing
    frames = [frame.image for frame in video.read_frames(REAL / "d18.mp4", 80, 126)][::15]
    seen, driver = follow.one(picture), scene.watched(frames, framing)
    middles = lambda f: [(z.real, z.imag) for z in ((f.left_eye + f.right_eye) / 2, f.mouth)]
    here = reference.placed(*middles(seen), 2.3, -0.125, True)
    mean = face.Face(*(np.mean(values) for values in driver.track.faces[:7]))
    there = reference.placed(*middles(mean), 2.2, -0.1, False)
    place = framing.place(seen)
    source = DrivingFrame(*[framing.cut(picture, place)] * 2, opening=OPENING)
    crops = [reference.driving_crop(frame, there) for frame in frames]
    return Real(picture, place, source, list(driver.frames()), here, reference.source_crop(picture, here), crops)


@pytest.fixture(scope="module")
def usual(theirs, real):
    """What the reference makes without any option."""
    import liveportrait_reference as reference

    return reference.animated(theirs, real.crop, real.crops)


@pytest.mark.parametrize("name", USES)
def test_the_whole_way_of_a_real_picture(engine, theirs, real, usual, name):
    """Crops, motion, retargeting, stitching, networks and the soft rim: every pixel within 2 of 255."""
    import liveportrait_reference as reference

    ours_does, theirs_does = USES[name]
    made = reference.animated(theirs, real.crop, real.crops, **theirs_does) if theirs_does else usual
    found = list(engine.play(real.source, real.driver, lambda: real.driver, transfer=Transfer(**ours_does)))
    for ours, expected in zip(found, made, strict=True):
        assert np.abs(ours - expected).max() <= 2
        back = engine.framing.paste(real.picture, real.place, ours)
        assert np.abs(back - reference.pasted(real.picture, real.matrix, np.uint8(np.round(expected)))).max() <= 2
    if name != "relative":  # the option is put to the test
        assert np.abs(made - usual).max() > 4


def test_bfloat16_is_near(engine):
    """As accelerators compute; places are not told in it, so that nothing moves."""
    picture = np.round(255 * pictures(1)[0]).astype(np.uint8)
    known, batches = engine.reenact(DrivingFrame(picture, picture), [DrivingFrame(picture[::-1], picture)])
    (made,) = batches
    state = computing_in(engine.state, jnp.bfloat16)
    found = draw(engine.graph, state, known, jnp.asarray(made.asked), jnp.asarray(made.driver))
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state["generator"]))
    away = np.abs(np.asarray(found.pictures, int) - made.pictures)
    assert 0 < away.mean() < 1.5 and away.max() < 40


# Keypoints


@pytest.fixture(scope="module")
def motions(theirs):
    return theirs.motion(first(pictures(1))), theirs.motion(first(pictures(4, seed=1)))


def as_motion(found):
    return Motion(*(jnp.asarray(found[n]) for n in ("kp", "exp", "t", "scale", "pitch", "yaw", "roll")))


def test_rotation_is_a_rotation_by_these_angles():
    turned = lambda **angles: keypoints.rotation(
        Motion(*[None] * 4, **{n: jnp.float32([angles.get(n, 0)]) for n in ("pitch", "yaw", "roll")})
    )[0]
    x, y, z = np.eye(3, dtype=np.float32)
    for angle, start, end in (("pitch", y, z), ("yaw", z, x), ("roll", x, y)):
        np.testing.assert_allclose(start @ turned(**{angle: 90}), end, atol=1e-6)
    each = [turned(**{n: a}) for n, a in (("pitch", 10), ("yaw", 20), ("roll", 30))]
    whole = turned(pitch=10, yaw=20, roll=30)
    np.testing.assert_allclose(whole, each[0] @ each[1] @ each[2], atol=1e-6)


def test_first_frame_of_relative_motion_is_the_source(motions):
    """Hence the expression-friendly multiplier, the ratio of the two hulls, is always one."""
    from scipy.spatial import ConvexHull

    source, driver = map(as_motion, motions)
    start = jax.tree.map(lambda x: x[:1], driver)
    x_s, x_0 = keypoints.points(source), keypoints.relative(source, start, start)
    np.testing.assert_allclose(x_s, x_0, atol=1e-5)
    assert ConvexHull(x_s[0]).volume / ConvexHull(x_0[0]).volume == pytest.approx(1, abs=1e-4)


def test_stitching_moves_all_in_the_plane(motions):
    moved = keypoints.stitched(jnp.zeros((1, 21, 3)), jnp.arange(65, dtype=jnp.float32)[None])
    expected = np.arange(63, dtype=np.float32).reshape(21, 3) + [63, 64, 0]
    np.testing.assert_array_equal(moved[0], expected)


# The sampler and the convolutions


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 1), (1, 4, 2, 6)])
def test_sampler_equals_grid_sample(shape):
    torch = library("torch")
    volumes = normal(*shape, 3)
    places = np.random.default_rng(1).uniform(-1.6, 1.6, (shape[0], 7, 5, 6, 3)).astype(np.float32)
    # The edges, the corners, the outermost cells' centres, and far beyond.
    special = [-1e6, -1.5, -1, *(2 * np.arange(5) + 1) / 5 - 1, 1, 1.25, 1e6, 0]
    places[0].reshape(-1, 3)[: 3 * len(special)] = np.resize(special, (3 * len(special), 3))
    places[0, 0, 0, :, 0], places[0, 0, 1, :, 1] = special[:6], special[-6:]
    expected = torch.nn.functional.grid_sample(first(volumes), torch.from_numpy(places), align_corners=False)
    np.testing.assert_allclose(jax.jit(volume.sample)(volumes, places), last(expected), atol=2e-6)


def test_a_shifted_grid_is_sampled_like_any_other():
    torch, shape = library("torch"), (2, 3, 5, 4)
    volumes, shifts = normal(*shape, 3), np.random.default_rng(1).uniform(-2.5, 2.5, (2, 6, 3)).astype(np.float32)
    shifts[:, 0] = 0
    cells = np.asarray(grid(shape[1:], np.float32))
    places = cells[:, :, :, None] + shifts[:, None, None, None]  # b z y x k 3
    flat = torch.from_numpy(rearrange(places, "b z y x k i -> b z y (x k) i").copy())
    expected = last(torch.nn.functional.grid_sample(first(volumes), flat, align_corners=False)).numpy()
    found = np.asarray(jax.jit(volume.sample_shifted)(volumes, cells, shifts))
    np.testing.assert_allclose(rearrange(found, "b z y x k c -> b z y (x k) c"), expected, atol=2e-6)


@pytest.mark.parametrize("kernel, depth", [(1, 4), (3, 4), (7, 4), (7, 2), (3, 1)])
def test_volume_convolution(kernel, depth):
    torch = library("torch")
    layer = volume.Conv3d(3, 5, nnx.Rngs(0), kernel)
    x = normal(2, depth, 6, 5, 3)
    weight = torch.from_numpy(rearrange(np.asarray(layer.kernel[...]), "z y x i o -> o i z y x").copy())
    expected = torch.nn.functional.conv3d(first(x), weight, padding=kernel // 2)
    assert_close(jax.jit(layer)(x), last(expected), 1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_convolution_of_enlarged_pictures(factor):
    x, kernel = normal(2, 5, 4, 3), normal(3, 3, 3, 6, seed=1)
    large = x.repeat(factor, 1).repeat(factor, 2)
    found = volume.convolve_enlarged(x, jnp.asarray(kernel), factor)
    np.testing.assert_allclose(found, volume.convolve(large, kernel), atol=1e-5)


# Conversion


def complaint(capsys, *arguments):
    assert command.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err.split("convert: ")[-1]


def test_faults_of_the_files_are_listed(capsys, tmp_path, published):
    import torch

    shutil.copytree(published, tmp_path / "published")
    path, out = tmp_path / "published/base_models/spade_generator.pth", tmp_path / "out"
    state = torch.load(path)
    del state["up_0.conv_s.weight_v"], state["fc.bias"]
    state["conv_img.0.weight"] = state["conv_img.0.weight"][:5]
    torch.save(state | {"module.fc.weight": state["fc.weight"], "extra": torch.ones(1)}, path)
    said = complaint(capsys, "liveportrait", tmp_path / "published", out)
    for part in (
        "7 faults, nothing was written",
        "unmapped source key: generator.extra",
        "unmapped source key: generator.up_0.conv_s.weight_orig",
        "target never set: generator.up_0.conv_s.kernel needs generator.up_0.conv_s.weight",
        "target never set: generator.fc.bias needs generator.fc.bias",
        "target set twice: generator.fc.kernel by generator.fc.weight and generator.fc.weight",
        "wrong shape: generator.conv_img.weight is (5, 8, 3, 3), expected (12, 8, 3, 3)",
    ):
        assert part in said
    path.unlink()
    said = complaint(capsys, "liveportrait", tmp_path / "published", out)
    assert "has no base_models/spade_generator.pth" in said
    assert not out.exists()


def test_no_way_back(capsys, tmp_path, weights):
    said = complaint(capsys, "liveportrait", weights, tmp_path / "back", "--reverse")
    assert "liveportrait cannot go back" in said
