"""The backbone against diffusers: embedding, blocks of each kind, the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx
from torch_reference import REASON, assert_close, ported, randomize

from convert.sd35 import SD35
from svdp_jax.config import Backbone, Model, Video
from svdp_jax.models import layers
from svdp_jax.models.mmdit import MMDiT
from svdp_jax.models.svdp import SVDP
from svdp_jax.weights.checkpoint import named, replaced

SIZES = [(16, 16), (8, 24), (20, 12)]  # rows and columns of latents
SMALL = Backbone(width=32, heads=4, blocks=5, dual=2, text_width=24, pooled_width=20, channels=4, patch=2, table=24, base=8)


@pytest.fixture(scope="module")
def reference():
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    config = {k: v for k, v in SD35.write_config(SMALL).items() if k != "_class_name"}
    return randomize(diffusers.SD3Transformer2DModel(**config))


@pytest.fixture(scope="module")
def model(reference):
    return ported(reference, SD35, SMALL)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def layer(stack, index):
    graph, state = nnx.split(stack)
    return nnx.merge(graph, jax.tree.map(lambda x: x[index], state))


def tensor(array):
    torch = pytest.importorskip("torch", reason=REASON)
    return torch.tensor(array)


def flat(latents):
    return tensor(rearrange(latents, "b y x c -> b c y x"))


@pytest.mark.parametrize("rows, columns", SIZES)
def test_patch_embedding(reference, model, rows, columns):
    latents = normal(2, rows, columns, 4)
    assert_close(model.pos_embed(latents), reference.pos_embed(flat(latents)))


def test_time_and_text_embedding(reference, model):
    time, pooled = np.array([0.0, 0.003, 0.5, 1.0], np.float32), normal(4, 20)
    theirs = reference.time_text_embed(tensor(1000 * time), tensor(pooled))
    assert_close(model.time_text_embed(time, pooled), theirs)


def test_position_table_is_that_of_the_checkpoint(model):
    made = layers.position_table(SMALL.table, SMALL.width, SMALL.base)
    np.testing.assert_allclose(made, model.pos_embed.pos_embed[...], atol=1e-6)


@pytest.mark.parametrize("kind, index, number", [("dual", 1, 1), ("plain", 1, 3), ("last", 0, 4)])
@pytest.mark.parametrize("tokens", [1, 7])
def test_block(reference, model, kind, index, number, tokens):
    image, text, cond = normal(2, 12, 32), normal(2, tokens, 32, seed=1), normal(2, 32, seed=2)
    their_text, their_image = reference.transformer_blocks[number](tensor(image), tensor(text), tensor(cond))
    our_image, our_text = layer(getattr(model, kind), index)(image, text, cond)
    assert_close(our_image, their_image)
    if kind != "last":
        assert_close(our_text, their_text)


@pytest.mark.parametrize("rows, columns, tokens", [(*SIZES[0], 1), (*SIZES[1], 5), (*SIZES[2], 33)])
def test_model(reference, model, rows, columns, tokens):
    latents, text, pooled = normal(2, rows, columns, 4), normal(2, tokens, 24), normal(2, 20)
    time = np.array([0.2, 0.9], np.float32)
    theirs = reference(flat(latents), tensor(text), tensor(pooled), tensor(1000 * time)).sample
    assert_close(model(latents, time, text, pooled), theirs.permute(0, 2, 3, 1))


def test_video_model_starts_as_the_image_model(model):
    video = nnx.jit(lambda: SVDP(Model(backbone=SMALL, video=Video(heads=4)), nnx.Rngs(0)))()
    state = nnx.state(video)
    backbone = {f"image.{path}": leaf for path, leaf in named(nnx.state(model)).items()}
    nnx.update(video, replaced(state, named(state) | backbone))
    z, text, pooled = normal(2, 3, 8, 8, 4), normal(2, 5, 24), normal(2, 20)
    time = np.array([0.3, 0.8], np.float32)
    call = nnx.jit(lambda network, *inputs: network(*inputs))
    frames = call(video, z, time, text, pooled)
    assert frames.std() > 0.1
    for frame in range(3):
        alone = call(model, z[:, frame], time, text, pooled)
        np.testing.assert_allclose(frames[:, frame], alone, atol=1e-5 * frames.std())


def test_full_size_shapes():
    model = nnx.eval_shape(lambda: MMDiT(Backbone(), nnx.Rngs(0)))
    trained = nnx.state(model, nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 2_243_171_520
    assert model.dual.norm1.kernel.shape == (13, 1536, 9 * 1536)


def test_strict_dtypes(model):
    with jax.numpy_dtype_promotion("strict"):
        latents = jnp.asarray(normal(1, 8, 8, 4))
        out = model(latents, jnp.ones(1), jnp.asarray(normal(1, 3, 24)), jnp.asarray(normal(1, 20)))
    assert out.dtype == jnp.float32
