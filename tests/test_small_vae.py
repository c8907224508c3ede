"""The small codec: what it starts as, the one that is shipped, its loss, and the trainer that trains it."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import little_run
import numpy as np
import pytest
from flax import nnx

from svdp_jax import config as configs
from svdp_jax.animator import Animator
from svdp_jax.errors import UserError
from svdp_jax.evaluation import metrics, toy_codec
from svdp_jax.models.small_vae import SmallAutoencoder, SmallAutoencoderConfig, cosines
from svdp_jax.models.vae import decode_frames, encode_frames
from svdp_jax.train import train
from svdp_jax.training import preflight, reconstruction
from svdp_jax.weights import checkpoint, shipped

TINY = SmallAutoencoderConfig(widths=(4, 4), channels=6)


def test_it_starts_as_the_lowest_cosines():
    basis, spreads = cosines(8, 16)
    np.testing.assert_allclose(basis @ basis.T, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(abs(basis[0]), 1 / np.sqrt(192))  # the mean of brightness
    assert (np.diff(spreads) <= 0).all()
    codec = SmallAutoencoder(TINY, nnx.Rngs(0))
    assert (codec.factor, codec.channels) == (4, 6)
    latents = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5, 6)), jnp.float32)
    pictures = codec.decode(latents)
    assert pictures.shape == (2, 12, 20, 3)
    np.testing.assert_allclose(codec.encode(pictures), latents, atol=1e-5)
    np.testing.assert_array_equal(codec.encode(pictures[None])[0], codec.encode(pictures))  # any leading dimensions


def test_divergence_is_that_of_a_unit_gaussian():
    latents = np.random.default_rng(0).standard_normal((4, 8, 8, 3))
    latents = (latents - latents.mean((0, 1, 2))) / latents.std((0, 1, 2))
    assert float(reconstruction.divergence(latents)) == pytest.approx(0, abs=1e-6)
    mean, deviation = np.array([0, 1, -2]), np.array([1, 2, 0.5])
    expected = (0.5 * (mean**2 + deviation**2 - 1) - np.log(deviation)).mean()
    assert float(reconstruction.divergence(latents * deviation + mean)) == pytest.approx(expected, rel=1e-4)


def test_crops_are_squares_of_their_own_pictures():
    rows, columns = np.mgrid[:16, :16]
    pictures = np.stack([np.stack([rows, columns, np.full((16, 16), n)], -1) for n in range(5)]).astype(np.uint8)
    crops = np.asarray(reconstruction.cropped(pictures, jax.random.key(0), 6)).astype(int)
    assert crops.shape == (5, 6, 6, 3) and len({tuple(crop[0, 0, :2]) for crop in crops}) > 2
    np.testing.assert_array_equal(
        crops - crops[:, :1, :1], np.broadcast_to(pictures[0, :6, :6].astype(int) * [1, 1, 0], crops.shape)
    )
    np.testing.assert_array_equal(crops[:, 0, 0, 2], range(5))


def test_the_shipped_codec_brings_drawn_pictures_back():
    assert sum(path.stat().st_size for path in checkpoint.SMALL.iterdir()) < 3_000_000
    codec = checkpoint.load_codec(configs.Codec("small"))
    pictures = toy_codec.toy_score.unseen_clips(configs.Data(size=64), 6, 1).target[:, 0]
    latents = jax.jit(lambda x: encode_frames(codec, x))(pictures)
    assert latents.shape == (6, 8, 8, 16) and latents.dtype == jnp.float32
    made = np.asarray(jax.jit(lambda z: decode_frames(codec, z))(latents))
    assert metrics.psnr(made, pictures).mean() > 25 and 0.15 < metrics.sharpness(made, pictures).mean() < 1
    assert 0.7 < latents.std((0, 1, 2)).min() and latents.std((0, 1, 2)).max() < 1.7


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work folder of a codec that learned for a moment."""
    folder = tmp_path_factory.mktemp("codec") / "run"
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
        patch.setitem(little_run.records.SOURCES, "toy", little_run.noise)
        train(config(), folder)
    return folder


def config(**changes) -> configs.Config:
    """Of a run that trains a codec of six channels."""
    little = little_run.config()
    backbone = dataclasses.replace(little.model.backbone, channels=6, patch=1)
    model = dataclasses.replace(little.model, backbone=backbone, codec=configs.Codec("small"))
    data = configs.Data(size=16, frames=1, past=0, batch=2, threads=1)
    return dataclasses.replace(
        little,
        **{"model": model, "trains": "codec", "data": data, "watch_every": 0, "stages": (configs.Stage(steps=4),)} | changes,
    )


def test_the_one_trainer_trains_it(trained):
    codec = checkpoint.load_network(checkpoint.model_folder(trained))
    assert isinstance(codec, SmallAutoencoder) and codec.channels == 6
    fresh = SmallAutoencoder(SmallAutoencoderConfig(channels=6), nnx.Rngs(0))
    assert not np.array_equal(codec.synthesis.kernel[...], fresh.synthesis.kernel[...])
    with pytest.raises(UserError, match="holds 'small_vae'"):
        Animator.load(trained)


def test_an_exported_one_is_the_same_codec(trained, tmp_path):
    shipped.export(trained, tmp_path / "codec")
    wanted = checkpoint.named(nnx.state(checkpoint.load_network(trained / "model")))
    found = checkpoint.named(nnx.state(checkpoint.load_codec(configs.Codec("small", weights=str(tmp_path / "codec")))))
    for name, leaf in wanted.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-3, atol=1e-6)
    (tmp_path / "codec" / checkpoint.EXPORTED).write_bytes(b"cut off")
    with pytest.raises(UserError):
        checkpoint.load_codec(configs.Codec("small", weights=str(tmp_path / "codec")))


def test_a_video_model_works_with_it_or_says_why_not(trained, tmp_path):
    codec = configs.Codec("small", weights=str(trained))
    video = config(trains="video", model=dataclasses.replace(config().model, codec=codec))
    assert not list(preflight.weights(video))
    other = dataclasses.replace(video, model=dataclasses.replace(video.model, codec=configs.Codec("small")))
    assert "has latents of factor 8 and 16 channels" in next(preflight.weights(other))
    shutil.copytree(trained / "model", tmp_path / "vae")
    named_so = dataclasses.replace(codec, kind="sd3", weights=str(tmp_path / "vae"))
    (said,) = preflight.weights(dataclasses.replace(video, model=dataclasses.replace(video.model, codec=named_so)))
    assert "holds no autoencoder of kind sd3" in said


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"watch_every": 100}, "leaves nothing to watch"),
        ({"model": little_run.config().model}, "is for codec.kind=small"),
        ({"data": configs.Data(source="records", size=16, frames=1, past=0)}, "and pictures"),
    ],
)
def test_what_cannot_train_a_codec_is_said(changes, said):
    with pytest.raises(UserError, match=said):
        configs.check(config(**changes))
