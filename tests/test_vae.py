"""The codecs: the pixel codec, the autoencoder against diffusers, chunks and tiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_model
from einops import rearrange
from flax import nnx
from torch_reference import assert_close, count_ours, count_theirs, library, ported, randomize

from convert.vae import VAE, write_config
from svdp_jax import config as configs, parallel
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.models.svdp import SVDP
from svdp_jax.models.vae import Autoencoder, AutoencoderConfig, PixelCodec, each_frame, tiled
from svdp_jax.weights.checkpoint import load_codec, named, replaced, save_weights

SMALL = AutoencoderConfig(block_out_channels=(8, 16, 32), layers_per_block=1, latent_channels=4, norm_num_groups=4)
TINY = AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def waves(rows, columns, period):
    """A smooth picture, y x 3, that repeats every `period` pixels."""
    y, x = np.mgrid[:rows, :columns] * (2 * np.pi / period)
    return np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1).astype(np.float32)


# The pixel codec


@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_pixel_codec_is_exact(leading):
    codec, images = PixelCodec(4), normal(*leading, 8, 12, 3)
    latents = codec.encode(images)
    assert latents.shape == (*leading, 2, 3, codec.channels)
    np.testing.assert_array_equal(codec.decode(latents), images)


def test_pixel_codec_keeps_places():
    images = normal(8, 8, 3)
    latents = PixelCodec(4).encode(images)
    np.testing.assert_array_equal(latents[1, 0], images[4:8, 0:4].ravel())


# The autoencoder against diffusers, from its parts to the whole


def autoencoder_kl(config):
    diffusers = library("diffusers")
    fields = write_config(config)
    del fields["_class_name"]
    return diffusers.AutoencoderKL(**fields)


@pytest.fixture(scope="module")
def theirs():
    return randomize(autoencoder_kl(SMALL))


@pytest.fixture(scope="module")
def ours(theirs):
    return ported(theirs, VAE, SMALL)


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("encoder.down_blocks.0.resnets.0", 8),
        ("encoder.down_blocks.1.resnets.0", 8),  # wider afterwards: has a shortcut
        ("encoder.down_blocks.0.downsamplers.0", 8),
        ("encoder.mid_block.attentions.0", 32),
        ("encoder.mid_block", 32),
        ("decoder.up_blocks.1.upsamplers.0", 16),
        ("decoder.up_blocks.1", 32),
    ],
)
def test_part_equals_diffusers(ours, theirs, path, size):
    import torch

    x = normal(2, 6, 8, size)
    module = ours
    for name in path.split("."):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    reference = theirs.get_submodule(path)
    images = torch.from_numpy(rearrange(x, "b y x c -> b c y x").copy())
    expected = reference(images, None) if "resnets" in path else reference(images)
    assert_close(jax.jit(module)(x), rearrange(expected, "b c y x -> b y x c"))


@pytest.mark.parametrize("shape", [(2, 32, 32), (1, 16, 40), (1, 48, 24)])
def test_autoencoder_equals_diffusers(ours, theirs, shape):
    import torch

    images = normal(*shape, 3)
    latents = jax.jit(ours.encode)(images)
    mean = theirs.encode(torch.from_numpy(rearrange(images, "b y x c -> b c y x").copy()))
    mean = mean.latent_dist.mean
    scaled = (mean - SMALL.shift_factor) * SMALL.scaling_factor
    assert_close(latents, rearrange(scaled, "b c y x -> b y x c"))
    decoded = jax.jit(ours.decode)(rearrange(scaled.numpy(), "b c y x -> b y x c"))
    assert_close(decoded, rearrange(theirs.decode(mean).sample, "b c y x -> b y x c"))


def test_full_size():
    config = AutoencoderConfig()
    assert count_ours(VAE, config) == count_theirs(lambda: autoencoder_kl(config))

    def both(images):
        codec = Autoencoder(config, nnx.Rngs(0))
        assert codec.factor == 8 and codec.channels == 16
        latents = codec.encode(images)
        return latents, codec.decode(latents)

    images = jax.ShapeDtypeStruct((2, 5, 512, 256, 3), jnp.float32)
    latents, decoded = jax.eval_shape(both, images)
    assert latents.shape == (2, 5, 64, 32, 16) and decoded.shape == images.shape


# Chunks, tiles and dtypes


@pytest.fixture(scope="module")
def local():
    """Small residual branches and attention, as a trained codec depends mostly on what is near."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Autoencoder(TINY, nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def draw(path, shape):
        if len(shape) == 1:
            return jnp.full(shape, float(path.endswith("scale")))
        size = 0.1 if "conv2" in path or "to_out" in path else 1
        return jnp.asarray(rng.normal(size=shape) * size / np.prod(shape[:-1]) ** 0.5, jnp.float32)

    arrays = {path: draw(path, leaf.shape) for path, leaf in named(state).items()}
    return nnx.merge(graph, replaced(state, arrays))


def test_any_leading_dimensions(local):
    images = normal(2, 3, 16, 8, 3)
    latents = jax.jit(local.encode)(images)
    assert latents.shape == (2, 3, 8, 4, local.channels)
    assert jax.eval_shape(local.decode, latents).shape == images.shape
    alone = jax.jit(local.encode)(images[1, 2])
    np.testing.assert_allclose(latents[1, 2], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16(local):
    graph, state = nnx.split(local)
    half = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    images = waves(16, 16, 16)
    exact = jax.jit(local.encode)(images)
    # jax.nn's own attention mixes its dtypes.
    with jax.numpy_dtype_promotion("standard"):
        latents = jax.jit(half.encode)(jnp.asarray(images, jnp.bfloat16))
        assert latents.dtype == jax.eval_shape(half.decode, latents).dtype == jnp.bfloat16
    assert np.abs(np.asarray(latents, np.float32) - exact).max() < 0.1 * exact.std()


def test_frame_by_frame_equals_all_at_once(local):
    frames = normal(5, 16, 16, 3)
    whole = jax.jit(local.encode)(frames)
    cut = jax.jit(lambda x: each_frame(local.encode, x, 2))(frames)
    np.testing.assert_allclose(cut, whole, rtol=1e-4, atol=1e-5)


def workspace(fn, *shape):
    """Bytes that `fn` needs beside its input and its result."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.jit(fn).lower(x).compile().memory_analysis().temp_size_in_bytes


def test_chunks_bound_memory(local):
    few, many = (workspace(lambda x: each_frame(local.encode, x, 2), count, 32, 32, 3) for count in (4, 32))
    assert many < 1.5 * few
    assert workspace(local.encode, 32, 32, 32, 3) > 4 * many


@pytest.fixture(scope="module")
def engine():
    """One that has an autoencoder."""
    backbone = dataclasses.replace(tiny_model().backbone, channels=4, blocks=1, dual=0)
    model = dataclasses.replace(tiny_model(), backbone=backbone, codec=configs.Codec("sd3", factor=2))
    config = configs.Config("coded", model, configs.Data(size=16, frames=2, past=1), dtype="float32")
    return SVDPEngine(config, zeros(lambda: SVDP(model, nnx.Rngs(0))), zeros(lambda: Autoencoder(TINY, nnx.Rngs(0))))


def zeros(make):
    graph, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state))


@pytest.mark.parametrize("name, shape, dtype", [("encode", (32, 32, 3), np.uint8), ("decode", (16, 16, 4), np.float32)])
def test_animate_codes_frame_by_frame_with_weights_that_are_arguments(engine, name, shape, dtype):
    """As constants they would be in the program twice; all frames at once need many times the memory."""
    run, weights = getattr(engine, name).args
    constants, memory = [], []
    for frames in (4, 32):
        traced = run.trace(weights, jax.ShapeDtypeStruct((1, frames, *shape), dtype))
        constants.append(sum(np.size(constant) for constant in traced.jaxpr.consts))
        stats = traced.lower().compile().memory_analysis()
        memory.append(stats.temp_size_in_bytes)
    half = sum(leaf.nbytes for leaf in jax.tree.leaves(weights[f"{name}r"]))
    assert stats.argument_size_in_bytes >= half and max(constants) < 100
    assert memory[1] < 1.5 * memory[0] + 28 * 32 * 32 * 3 * 4  # of the frames themselves


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_codec_has_its_own_widths_the_dtype_of_the_run_and_lies_on_its_devices(tmp_path, dtype):
    """Whatever the folder holds, here float16."""
    arrays = {
        name: leaf.astype(np.float16) for name, leaf in named(nnx.state(zeros(lambda: Autoencoder(TINY, nnx.Rngs(0))))).items()
    }
    save_weights(tmp_path / "vae", "vae", TINY, arrays)
    whole = parallel.sharding(parallel.make_mesh(configs.Mesh()))
    codec = load_codec(configs.Codec("sd3", 2, str(tmp_path / "vae")), dtype, whole)
    assert (codec.factor, codec.channels) == (2, 4)
    assert {(leaf.dtype, leaf.sharding) for leaf in named(nnx.state(codec)).values()} == {(jnp.dtype(dtype), whole)}


def test_tiles_bound_memory(local):
    cut = workspace(lambda x: tiled(local.decode, x, 16, 4, 2), 96, 96, 4)
    assert workspace(local.decode, 96, 96, 4) > 8 * cut


@pytest.mark.parametrize("shape", [(64, 64), (96, 40), (24, 80)])
def test_tiles_of_an_exact_codec_are_exact(shape):
    codec, images = PixelCodec(4), normal(2, *shape, 3)
    latents = jax.jit(lambda x: tiled(codec.encode, x, 32, 8, 1 / 4))(images)
    np.testing.assert_allclose(latents, codec.encode(images), atol=1e-6)
    decoded = jax.jit(lambda x: tiled(codec.decode, x, 8, 2, 4))(latents)
    np.testing.assert_allclose(decoded, images, atol=1e-6)


def test_seams_are_linear():
    x = np.broadcast_to(np.arange(12)[:, None] >= 8, (8, 12, 1)).astype(np.float32)
    last = lambda tile: jnp.full_like(tile, tile[0, -1, 0])  # 0 of the left tile, 1 of the right
    out = jax.jit(lambda x: tiled(last, x, 8, 4, 1))(x)
    np.testing.assert_allclose(out[3, :, 0], [*[0] * 4, 0.125, 0.375, 0.625, 0.875, *[1] * 4])


def test_tiled_is_close_to_untiled(local):
    images = waves(96, 160, 16)
    latents = jax.jit(local.encode)(images)
    decoded = jax.jit(local.decode)(latents)
    cut_latents = jax.jit(lambda x: tiled(local.encode, x, 64, 32, 1 / 2))(images)
    cut_decoded = jax.jit(lambda x: tiled(local.decode, x, 32, 16, 2))(latents)
    for cut, whole in ((cut_latents, latents), (cut_decoded, decoded)):
        error = np.abs(cut - whole) / whole.std()
        print(f"error: largest {error.max():.3f}, mean {error.mean():.3f}")
        assert error.max() < 0.25 and error.mean() < 0.03
