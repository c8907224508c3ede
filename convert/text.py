"""The tables of SD3.5's text encoders: CLIP-L, CLIP-G and T5-XXL."""

import dataclasses
import re
from dataclasses import replace
from functools import partial

import numpy as np

from convert.rules import Layout, Network, Rule, linear, nearest, norm
from convert.tensors import BECOMES, Derived, Tensor
from svdp_jax.errors import UserError
from svdp_jax.models.text import CLIPConfig, CLIPText, T5Config, T5Encoder, clip_g, clip_l

LAYER = r"text_model\.encoder\.layers\.(\d+)\."
CLIP_RULES = (
    Rule(r"text_model\.embeddings\.(\w+)\.weight", r"\1.embedding"),
    *linear(LAYER + r"self_attn\.(\w+_proj)", r"layers[\1].\2"),
    *linear(LAYER + r"mlp\.(fc[12])", r"layers[\1].\2"),
    *norm(LAYER + r"(layer_norm[12])", r"layers[\1].\2"),
    *norm(r"text_model\.final_layer_norm", "final_layer_norm"),
    Rule(r"text_projection\.weight", "text_projection.kernel", "o i -> i o"),
)

BLOCK = r"encoder\.block\.(\d+)\.layer\."
T5_RULES = (
    Rule(r"shared\.weight", "shared.embedding"),
    Rule(r"encoder\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight", "relative_attention_bias.embedding"),
    Rule(BLOCK + r"0\.SelfAttention\.([qkvo])\.weight", r"block[\1].\2.kernel", "o i -> i o"),
    Rule(BLOCK + r"0\.layer_norm\.weight", r"block[\1].attention_norm.scale"),
    Rule(BLOCK + r"1\.DenseReluDense\.(\w+)\.weight", r"block[\1].\2.kernel", "o i -> i o"),
    Rule(BLOCK + r"1\.layer_norm\.weight", r"block[\1].mlp_norm.scale"),
    Rule(r"encoder\.final_layer_norm\.weight", "final_layer_norm.scale"),
)

PREFIX = r"text_encoders\.(\w+)\.(?:transformer\.)?"  # of Stability's file that holds everything
HEAD = 64  # of every encoder here
CLIP_SHAPES = "text_model.embeddings.position_embedding.weight"
T5_SHAPES = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
PROJECTION = "text_projection.weight"


def own(which: str, tensors: list[Tensor]) -> list:
    """The tensors of one encoder in a file that may hold all three, and more, under their prefixes."""
    prefixed = [(t, match) for t in tensors if (match := re.match(PREFIX, t.name))]
    if not prefixed:
        return tensors
    return [replace(t, name=t.name[match.end() :]) for t, match in prefixed if match[1] == which]


def rename_clip_l(tensors: list[Tensor]) -> list[Tensor | Derived]:
    """SD3 takes CLIP-L's pooled output as it is: where a diffusers folder has the identity as projection,
    Stability's files have none, or one that is not used."""
    mine = own("clip_l", tensors)
    alone = len(mine) == len(tensors)
    if PROJECTION in {t.name for t in mine} and alone or CLIP_SHAPES not in {t.name for t in mine}:
        return mine
    like = next(t for t in mine if t.name == CLIP_SHAPES)
    dtype, size = BECOMES.get(like.dtype, like.dtype), like.shape[1]
    identity = Derived(PROJECTION, dtype, (size, size), lambda: np.eye(size, dtype=dtype))
    return [*(t for t in mine if t.name != PROJECTION), identity]


def typed(kind, source: dict):
    """The fields of a transformers config.json that ours has too."""
    names = [f.name for f in dataclasses.fields(kind)]
    missing = [name for name in names if name not in source]
    if missing:
        raise UserError(f"the config.json of a text encoder has no {missing[0]}; fetch it again.")
    return kind(**{name: source[name] for name in names})


def shape(tensors: dict[str, Tensor], name: str) -> tuple[int, ...]:
    if name not in tensors:
        raise UserError(
            f"there is no {name} among the weights, so this is another network's file{nearest(name, list(tensors))}."
        )
    return tensors[name].shape


def count(tensors: dict[str, Tensor], layer: str) -> int:
    return max((int(m[1]) + 1 for name in tensors if (m := re.match(layer, name))), default=0)


def read_clip(published: CLIPConfig, tensors: dict[str, Tensor], source: dict) -> CLIPConfig:
    """The config.json's, or what the shapes tell; the rest is as published."""
    if source:
        return typed(CLIPConfig, source)
    positions, width = shape(tensors, CLIP_SHAPES)
    other = next((c for c in (clip_l(), clip_g()) if c.hidden_size == width != published.hidden_size), None)
    if other:
        raise UserError(f"the weights are {width} wide, as the other CLIP's are; take the file of the {published.hidden_size}.")
    return dataclasses.replace(
        published,
        vocab_size=shape(tensors, "text_model.embeddings.token_embedding.weight")[0],
        hidden_size=width,
        intermediate_size=shape(tensors, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        projection_dim=shape(tensors, PROJECTION)[0],
        num_hidden_layers=count(tensors, LAYER),
        num_attention_heads=width // HEAD,
        max_position_embeddings=positions,
    )


def read_t5(tensors: dict[str, Tensor], source: dict) -> T5Config:
    """As `read_clip`."""
    kind = source.get("feed_forward_proj")
    if kind not in (None, "gated-gelu"):
        raise UserError(f"T5 with feed_forward_proj={kind!r} is not SD3's; that has gated-gelu.")
    if source:
        return typed(T5Config, source)
    buckets, heads = shape(tensors, T5_SHAPES)
    vocabulary, width = shape(tensors, "shared.weight")
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shape(tensors, "encoder.block.0.layer.0.SelfAttention.q.weight")[0] // heads,
        d_ff=shape(tensors, "encoder.block.0.layer.1.DenseReluDense.wo.weight")[1],
        num_layers=count(tensors, BLOCK),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )


def write_clip(config: CLIPConfig) -> dict:
    return dataclasses.asdict(config) | {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}


def write_t5(config: T5Config) -> dict:
    return dataclasses.asdict(config) | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
    }


def clip_layout(config: CLIPConfig) -> Layout:
    return Layout(CLIP_RULES, {"layers": ("layers",) * config.num_hidden_layers})


def t5_layout(config: T5Config) -> Layout:
    return Layout(T5_RULES, {"block": ("block",) * config.num_layers})


CLIP_L = Network(
    name="clip",
    folder="text_encoder",
    file="model.safetensors",
    rename=rename_clip_l,
    read_config=partial(read_clip, clip_l()),
    write_config=write_clip,
    layout=clip_layout,
    build=CLIPText,
    alone="clip_l",
)
CLIP_G = CLIP_L._replace(
    folder="text_encoder_2", rename=partial(own, "clip_g"), read_config=partial(read_clip, clip_g()), alone="clip_g"
)
T5 = CLIP_L._replace(
    name="t5", folder="text_encoder_3", rename=partial(own, "t5xxl"), read_config=read_t5, write_config=write_t5,
    layout=t5_layout, build=T5Encoder, alone="t5xxl",
)  # fmt: skip
