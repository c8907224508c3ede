"""The text encoders against transformers, and the SD3 prompt against diffusers' pipeline."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_reference import assert_close, count_ours, count_theirs, library, ported, randomize

from convert.text import CLIP_L, T5, write_clip, write_t5
from svdp_jax.models import layers
from svdp_jax.models.text import CLIPConfig, T5Config, clip_g, clip_l, relative_buckets, sd3_prompt, t5_xxl

SMALL_CLIP = CLIPConfig(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=64,
    projection_dim=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=20,
)
CLIPS = {
    "quick gelu, largest token ends": SMALL_CLIP,
    "gelu, first token 60 ends": replace(SMALL_CLIP, hidden_act="gelu", eos_token_id=60),
}
SMALL_T5 = T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=6)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def clip_model(config, make=randomize):
    transformers = library("transformers")
    fields = write_clip(config)
    return make(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**fields)))


def t5_model(config, make=randomize):
    transformers = library("transformers")
    return make(transformers.T5EncoderModel(transformers.T5Config(**write_t5(config))))


def ids(length, end=98):
    """Two texts, the first of which ends early and is padded with its end."""
    tokens = np.random.default_rng(0).integers(0, 98, (2, length)).astype(np.int32)
    tokens[tokens == end] = 0
    tokens[0, length // 2 :] = tokens[1, -1] = end
    return tokens


def as_torch(tokens):
    import torch

    return torch.from_numpy(tokens.astype(np.int64))


# CLIP


@pytest.fixture(scope="module", params=CLIPS)
def clip(request):
    config = CLIPS[request.param]
    theirs = clip_model(config)
    return config, theirs, ported(theirs, CLIP_L, config)


def test_clip_layer_equals_transformers(clip):
    import torch

    config, theirs, ours = clip
    x = np.random.default_rng(0).normal(size=(2, 9, config.hidden_size)).astype(np.float32)
    causal = torch.full((1, 1, 9, 9), -torch.inf).triu(1)
    expected = torch.from_numpy(x)
    for layer in theirs.text_model.encoder.layers:
        expected = layer(expected, causal)
    step = lambda layer, x: layer(x)
    assert_close(jax.jit(lambda x: layers.scan(step, ours.layers, x))(x), expected)


@pytest.mark.parametrize("length", [20, 9])
def test_clip_equals_transformers(clip, length):
    config, theirs, ours = clip
    tokens = ids(length, end=98 if config.eos_token_id == 2 else config.eos_token_id)
    expected = theirs(as_torch(tokens), output_hidden_states=True)
    states, pooled = jax.jit(ours)(tokens)
    assert_close(states, expected.hidden_states[-2])
    assert_close(pooled, expected.text_embeds)


def test_clip_pools_where_the_text_ends(clip):
    config, _, ours = clip
    end = 98 if config.eos_token_id == 2 else config.eos_token_id
    np.testing.assert_array_equal(ours.end(ids(12, end)), [6, 11])


# T5


@pytest.fixture(scope="module")
def t5():
    theirs = t5_model(SMALL_T5)
    ours = ported(theirs, T5, SMALL_T5)
    # In float32 PyTorch's own attention is off by 1e-4 at 300 tokens.
    return theirs.double(), ours


@pytest.mark.parametrize("buckets", [32, 16])
def test_relative_buckets_equal_transformers(buckets):
    library("transformers")
    from transformers.models.t5.modeling_t5 import T5Attention

    config = replace(SMALL_T5, relative_attention_num_buckets=buckets)
    offsets = np.arange(600)[None, :] - np.arange(600)[:, None]
    expected = T5Attention._relative_position_bucket(as_torch(offsets), num_buckets=buckets)
    np.testing.assert_array_equal(relative_buckets(600, config), expected.numpy())


@pytest.mark.parametrize("length", [1, 7, 40, 300])
def test_t5_equals_transformers(t5, length):
    theirs, ours = t5
    tokens = ids(length)
    expected = theirs(as_torch(tokens)).last_hidden_state
    assert_close(jax.jit(ours)(tokens), expected)


# SD3's prompt


def test_prompt_equals_pipeline():
    Pipeline = library("diffusers").StableDiffusion3Pipeline
    configs = [*CLIPS.values(), replace(SMALL_T5, d_model=80)]
    models = [clip_model(configs[0]), clip_model(configs[1]), t5_model(configs[2])]
    tokens = [ids(20), ids(20, end=60), ids(30)]

    def tokenizer(tokens):
        return lambda *_, **__: SimpleNamespace(input_ids=as_torch(tokens))

    class Stub:
        """The pipeline's own methods around our tokens."""

        _execution_device = "cpu"
        tokenizer_max_length = 20
        text_encoder, text_encoder_2, text_encoder_3 = models
        tokenizer, tokenizer_2, tokenizer_3 = (staticmethod(tokenizer(t)) for t in tokens)
        _get_clip_prompt_embeds = Pipeline._get_clip_prompt_embeds
        _get_t5_prompt_embeds = Pipeline._get_t5_prompt_embeds
        encode_prompt = Pipeline.encode_prompt

    text, _, pooled, _ = Stub().encode_prompt(["a", "b"], None, None, do_classifier_free_guidance=False, max_sequence_length=30)
    networks = zip(models, (CLIP_L, CLIP_L, T5), configs)
    outputs = [jax.jit(ported(*network))(t) for network, t in zip(networks, tokens)]
    our_text, our_pooled = sd3_prompt(*outputs)
    assert our_text.shape == (2, 50, 80)
    assert_close(our_text, text)
    assert_close(our_pooled, pooled)


# Full size and dtypes


@pytest.mark.parametrize("config", [clip_l(), clip_g()], ids=["CLIP-L", "CLIP-G"])
def test_full_size_clip(config):
    assert count_ours(CLIP_L, config) == count_theirs(lambda: clip_model(config, lambda m: m))


def test_full_size_t5():
    assert count_ours(T5, t5_xxl()) == count_theirs(lambda: t5_model(t5_xxl(), lambda m: m))


def test_full_size_prompt():
    def encode(clip_tokens, t5_tokens):
        outputs = []
        for network, config in ((CLIP_L, clip_l()), (CLIP_L, clip_g())):
            outputs.append(network.build(config, nnx.Rngs(0))(clip_tokens))
        return sd3_prompt(*outputs, T5.build(t5_xxl(), nnx.Rngs(0))(t5_tokens))

    shapes = (jax.ShapeDtypeStruct((1, length), jnp.int32) for length in (77, 256))
    text, pooled = jax.eval_shape(encode, *shapes)
    assert text.shape == (1, 333, 4096) and pooled.shape == (1, 2048)


def test_bfloat16(t5):
    graph, state = nnx.split(t5[1])
    half = nnx.merge(graph, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state))
    tokens = ids(40)
    # jax.nn's own attention mixes its dtypes.
    with jax.numpy_dtype_promotion("standard"):
        states = jax.jit(half)(tokens)
    assert states.dtype == jnp.bfloat16
    exact = jax.jit(t5[1])(tokens)
    assert np.abs(np.asarray(states, np.float32) - exact).max() < 0.2 * exact.std()
