"""A small random pipeline of diffusers and transformers, with their own classes."""

import pytest
from torch_reference import REASON, randomize

from convert import networks
from svdp_jax import draw
from svdp_jax.config import Backbone
from svdp_jax.models.vae import AutoencoderConfig


def tokenizers():
    """CLIP's and T5's, with a vocabulary of letters."""
    transformers = pytest.importorskip("transformers", reason=REASON)
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    clip = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0)]
    pieces += [(letter, -2.0) for letter in letters]
    return clip, transformers.T5TokenizerFast(vocab=pieces, extra_ids=0)


def build(backbone_config: Backbone, coder_config: AutoencoderConfig):
    """With text of width 32 and 24 pooled."""
    diffusers = pytest.importorskip("diffusers", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    clip_tokenizer, t5_tokenizer = tokenizers()
    clip = transformers.CLIPTextConfig(
        vocab_size=56,
        hidden_size=12,
        intermediate_size=24,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        bos_token_id=54,
        eos_token_id=55,
    )
    t5 = transformers.T5Config(
        vocab_size=31, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    backbone = dict(networks.SD35.write_config(backbone_config))
    coder = dict(networks.VAE.write_config(coder_config))
    del backbone["_class_name"], coder["_class_name"]
    encoders = [transformers.CLIPTextModelWithProjection(clip) for _ in range(2)]
    parts = [
        diffusers.SD3Transformer2DModel(**backbone),
        diffusers.AutoencoderKL(**coder),
        *encoders,
        transformers.T5EncoderModel(t5),
    ]
    for seed, network in enumerate(parts):
        randomize(network, seed)
    transformer, vae, clip_l, clip_g, t5_encoder = parts
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=draw.SHIFT),
        vae=vae,
        text_encoder=clip_l,
        tokenizer=clip_tokenizer,
        text_encoder_2=clip_g,
        tokenizer_2=clip_tokenizer,
        text_encoder_3=t5_encoder,
        tokenizer_3=t5_tokenizer,
    )
