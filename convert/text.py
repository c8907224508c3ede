"""The tables of SD3.5's text encoders: CLIP-L, CLIP-G and T5-XXL."""

import dataclasses

from convert.rules import Layout, Network, Rule, linear, norm
from convert.tensors import Tensor
from svdp_jax.errors import UserError
from svdp_jax.models.text import CLIPConfig, CLIPText, T5Config, T5Encoder

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

# Old files store these too; they follow from the others.
DERIVED = {"text_model.embeddings.position_ids", "encoder.embed_tokens.weight"}


def rename(tensors: list[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.name not in DERIVED]


def typed(kind, source: dict):
    """The fields of a transformers config.json that ours has too."""
    names = [f.name for f in dataclasses.fields(kind)]
    missing = [name for name in names if name not in source]
    if missing:
        raise UserError(f"a text encoder needs the config.json beside its weights; {missing[0]} is not there.")
    return kind(**{name: source[name] for name in names})


def read_clip(tensors: dict[str, Tensor], source: dict) -> CLIPConfig:
    return typed(CLIPConfig, source)


def read_t5(tensors: dict[str, Tensor], source: dict) -> T5Config:
    kind = source.get("feed_forward_proj")
    if kind not in (None, "gated-gelu"):
        raise UserError(f"T5 with feed_forward_proj={kind!r} is not SD3's; that has gated-gelu.")
    return typed(T5Config, source)


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
    rename=rename,
    read_config=read_clip,
    write_config=write_clip,
    layout=clip_layout,
    build=CLIPText,
)
CLIP_G = CLIP_L._replace(folder="text_encoder_2")
T5 = CLIP_L._replace(
    name="t5", folder="text_encoder_3", read_config=read_t5, write_config=write_t5, layout=t5_layout, build=T5Encoder
)
