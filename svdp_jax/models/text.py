"""The three text encoders of SD3.5: CLIP-L, OpenCLIP bigG and T5-XXL.

They take integer tokens, b t, and know no tokenizer. Configs are named as in
the checkpoints' `config.json`; parameter names follow the transformers
checkpoints (`CLIPTextModelWithProjection`, `T5EncoderModel`), layers stacked.

Sources: Radford et al. 2021 (arXiv 2103.00020); Raffel et al. 2020
(arXiv 1910.10683); Shazeer 2020 (arXiv 2002.05202) for T5 v1.1's gated MLP.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx

from svdp_jax.models import layers


@dataclass(frozen=True)
class CLIPConfig:
    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    projection_dim: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"  # quick_gelu | gelu
    eos_token_id: int = 2  # as SD3's files say; see `CLIPText.end`


@dataclass(frozen=True)
class T5Config:
    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128


def clip_l() -> CLIPConfig:
    return CLIPConfig()


def clip_g() -> CLIPConfig:
    return CLIPConfig(
        hidden_size=1280, intermediate_size=5120, projection_dim=1280,
        num_hidden_layers=32, num_attention_heads=20, hidden_act="gelu",
    )  # fmt: skip


def t5_xxl() -> T5Config:
    return T5Config()


def quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


def gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


class LayerNorm(nnx.Module):
    def __init__(self, size: int):
        self.scale, self.bias = nnx.Param(jnp.ones(size)), nnx.Param(jnp.zeros(size))

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.layer_norm(x, 1e-5) * self.scale[...] + self.bias[...]


class CLIPLayer(nnx.Module):
    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        d = config.hidden_size
        self.heads = config.num_attention_heads
        self.activation = ACTIVATIONS[config.hidden_act]
        self.layer_norm1, self.layer_norm2 = LayerNorm(d), LayerNorm(d)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nnx.Linear(d, d, rngs=rngs) for _ in range(4))
        self.fc1 = nnx.Linear(d, config.intermediate_size, rngs=rngs)
        self.fc2 = nnx.Linear(config.intermediate_size, d, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        normed = self.layer_norm1(x)  # b t d
        q, k, v = split(self.heads, self.q_proj(normed), self.k_proj(normed), self.v_proj(normed))
        attended = jax.nn.dot_product_attention(q, k, v, is_causal=True)  # b t h k
        x = x + self.out_proj(rearrange(attended, "b t h k -> b t (h k)"))
        return x + self.fc2(self.activation(self.fc1(self.layer_norm2(x))))


def split(heads: int, *streams: jax.Array) -> list[jax.Array]:
    return [rearrange(x, "b t (h k) -> b t h k", h=heads) for x in streams]


class CLIPText(nnx.Module):
    """CLIP's text encoder. Tokens b t to states b t d and a pooled vector b projection_dim."""

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        d = config.hidden_size
        self.eos = config.eos_token_id
        self.token_embedding = nnx.Embed(config.vocab_size, d, rngs=rngs)
        self.position_embedding = nnx.Embed(config.max_position_embeddings, d, rngs=rngs)
        self.layers = layers.stack(lambda r: CLIPLayer(config, r), config.num_hidden_layers, rngs)
        self.final_layer_norm = LayerNorm(d)
        self.text_projection = nnx.Linear(d, config.projection_dim, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the states before the last layer, not normalised, and the pooled vector."""
        x = self.token_embedding.embedding[tokens]  # b t d
        x = x + self.position_embedding.embedding[: tokens.shape[1]]
        step = lambda layer, carry: (layer(carry[0]), carry[0])
        last, penultimate = layers.scan(step, self.layers, (x, x))  # b t d
        pooled = self.final_layer_norm(last)[jnp.arange(len(tokens)), self.end(tokens)]  # b d
        return penultimate, self.text_projection(pooled)

    def end(self, tokens: jax.Array) -> jax.Array:
        """Where each text ends, (b,)."""
        # A config that says 2 is wrong about its own vocabulary, in which the end is the last
        # token of all; transformers keeps reading it so, and SD3's files say 2.
        marks = tokens if self.eos == 2 else tokens == self.eos
        return jnp.argmax(marks, axis=-1)


def relative_buckets(length: int, config: T5Config) -> np.ndarray:
    """Which bias each query (rows) adds for each key (columns), length x length.

    Half of the buckets are for keys after the query. In each half, the first
    half holds one distance each, the others ever more, up to the maximum.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = config.relative_attention_num_buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    span = np.log(config.relative_attention_max_distance / exact)
    # float32, since a distance on the edge of a bucket falls where rounding puts it.
    octave = np.log(np.maximum(distance, 1).astype(np.float32) / exact) / np.float32(span)
    far = np.minimum(exact + (octave * (half - exact)).astype(np.int32), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, far)


class T5Block(nnx.Module):
    """Self-attention and a gated MLP, with neither biases nor scaled scores."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        d, inner = config.d_model, config.num_heads * config.d_kv
        linear = lambda size_in, size_out: nnx.Linear(size_in, size_out, use_bias=False, rngs=rngs)
        self.heads = config.num_heads
        self.attention_norm, self.mlp_norm = layers.RMSNorm(d), layers.RMSNorm(d)
        self.q, self.k, self.v = (linear(d, inner) for _ in range(3))
        self.o = linear(inner, d)
        self.wi_0, self.wi_1 = linear(d, config.d_ff), linear(d, config.d_ff)
        self.wo = linear(config.d_ff, d)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """x: b t d. bias: 1 h t t, added to the attention scores."""
        normed = self.attention_norm(x)
        q, k, v = split(self.heads, self.q(normed), self.k(normed), self.v(normed))
        attended = jax.nn.dot_product_attention(q, k, v, bias, scale=1.0)  # b t h k
        x = x + self.o(rearrange(attended, "b t h k -> b t (h k)"))
        normed = self.mlp_norm(x)
        return x + self.wo(layers.gelu_tanh(self.wi_0(normed)) * self.wi_1(normed))


class T5Encoder(nnx.Module):
    """T5 v1.1's encoder. Tokens b t to states b t d; padding is attended to, as SD3 does."""

    def __init__(self, config: T5Config, rngs: nnx.Rngs):
        self.config = config
        self.shared = nnx.Embed(config.vocab_size, config.d_model, rngs=rngs)
        self.relative_attention_bias = nnx.Embed(config.relative_attention_num_buckets, config.num_heads, rngs=rngs)
        self.block = layers.stack(lambda r: T5Block(config, r), config.num_layers, rngs)
        self.final_layer_norm = layers.RMSNorm(config.d_model)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        buckets = relative_buckets(tokens.shape[1], self.config)  # q k
        bias = self.relative_attention_bias.embedding[buckets]
        bias = rearrange(bias, "q k h -> 1 h q k")
        step = lambda block, x: block(x, bias)
        return self.final_layer_norm(layers.scan(step, self.block, self.shared.embedding[tokens]))


def sd3_prompt(
    clip_l_out: tuple[jax.Array, jax.Array], clip_g_out: tuple[jax.Array, jax.Array], t5_out: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Joins what the three encoders return of one prompt into SD3's text and pooled prompt.

    CLIP's channels lie side by side, filled with zeros to T5's width; T5's
    tokens follow. Returns text b t d (77 + 256 tokens of 4096) and pooled
    b 2048, as `StableDiffusion3Pipeline.encode_prompt` of diffusers.
    """
    states, pooled = (jnp.concatenate(pair, axis=-1) for pair in zip(clip_l_out, clip_g_out))
    states = jnp.pad(states, ((0, 0), (0, 0), (0, t5_out.shape[-1] - states.shape[-1])))  # b t d
    return jnp.concatenate([states, t5_out], axis=1), pooled
