"""The tables of SD3.5-Medium's backbone and of the video model that is built on it."""

import dataclasses
import re
from dataclasses import replace

import numpy as np
from einops import rearrange

from convert import single_file
from convert.rules import Layout, Network, Rule, Way, linear, nearest
from convert.tensors import Tensor
from svdp_jax.config import Backbone, Model
from svdp_jax.errors import UserError
from svdp_jax.models.layers import position_grid
from svdp_jax.models.mmdit import MMDiT, kinds
from svdp_jax.models.svdp import SVDP
from svdp_jax.values.declared import build

BLOCK = r"transformer_blocks\.(\d+)"
ROUNDING = 2e-3  # of a sine in bfloat16, the coarsest that a checkpoint stores
VIDEO = "svdp_video"  # the file of the layers that the video model adds


def line_of(table: np.ndarray) -> np.ndarray:
    """The places of a row, x d/2, that a position table, 1 (y x) d, repeats for columns and for rows. UserError where it does not."""
    side = round(table.shape[1] ** 0.5)
    line = np.array(table[0, :side, : table.shape[2] // 2])
    for row, places in zip(line, rearrange(table, "1 (y x) d -> y x d", y=side)):  # a row at a time: the whole has a gigabyte
        made = position_grid(row[None], line)[0]
        if np.abs(made.astype(np.float32) - places.astype(np.float32)).max() > ROUNDING:
            raise UserError(
                "pos_embed.pos_embed does not hold the same sines for its columns and its rows; nothing was written."
            )
    return line


def table_of(line: np.ndarray) -> np.ndarray:
    return rearrange(position_grid(line, line), "y x d -> 1 (y x) d")


RULES = (
    Rule(r"pos_embed\.pos_embed", "pos_embed.line", Way(line_of, table_of)),
    Rule(r"pos_embed\.proj\.weight", "pos_embed.proj.kernel", "d c p q -> (p q c) d"),
    Rule(r"pos_embed\.proj\.bias", "pos_embed.proj.bias"),
    Rule(BLOCK + r"\.(attn|attn2)\.(norm_\w+)\.weight", r"blocks[\1].\2.\3.scale"),
    *linear(BLOCK + r"\.(attn|attn2)\.to_out\.0", r"blocks[\1].\2.to_out"),
    *linear(BLOCK + r"\.(attn|attn2)\.(to_[qkv]|add_[qkv]_proj|to_add_out)", r"blocks[\1].\2.\3"),
    *linear(BLOCK + r"\.(norm1|norm1_context)\.linear", r"blocks[\1].\2"),
    *linear(BLOCK + r"\.(ff|ff_context)\.net\.0\.proj", r"blocks[\1].\2.linear_1"),
    *linear(BLOCK + r"\.(ff|ff_context)\.net\.2", r"blocks[\1].\2.linear_2"),
    *linear(r"(time_text_embed\.\w+\.linear_[12]|context_embedder|proj_out)", r"\1"),
    *linear(r"norm_out\.linear", "norm_out"),
)


def read_config(tensors: dict[str, Tensor], source: dict) -> Backbone:
    """The block layout and the sizes, from what the checkpoint holds."""

    def shape(name, rank):
        if name not in tensors or len(tensors[name].shape) != rank:
            there = "is misshapen" if name in tensors else "is missing"
            raise UserError(f"{name} {there}, so this is no SD3.5 backbone{nearest(name, list(tensors))}; nothing was written.")
        return tensors[name].shape

    indices = [int(m[1]) for name in tensors if (m := re.match(BLOCK, name))]
    dual = {int(m[1]) for name in tensors if (m := re.match(BLOCK + r"\.attn2\.", name))}
    if dual != set(range(len(dual))):
        raise UserError(f"blocks {sorted(dual)} have a second attention; only the first blocks may have one.")
    width, channels, patch, _ = shape("pos_embed.proj.weight", 4)
    table = shape("pos_embed.pos_embed", 3)[1]
    head = shape("transformer_blocks.0.attn.norm_q.weight", 1)[0]
    return Backbone(
        width=width,
        heads=width // max(head, 1),
        blocks=max(indices) + 1,
        dual=len(dual),
        text_width=shape("context_embedder.weight", 2)[1],
        pooled_width=shape("time_text_embed.text_embedder.linear_1.weight", 2)[1],
        channels=channels,
        patch=patch,
        table=round(table**0.5),
        base=source.get("sample_size", Backbone.base * patch) // patch,
    )


def write_config(config: Backbone) -> dict:
    """The config.json of diffusers' SD3Transformer2DModel."""
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": config.base * config.patch,
        "patch_size": config.patch,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "num_layers": config.blocks,
        "attention_head_dim": config.width // config.heads,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.text_width,
        "caption_projection_dim": config.width,
        "pooled_projection_dim": config.pooled_width,
        "pos_embed_max_size": config.table,
        "dual_attention_layers": list(range(config.dual)),
        "qk_norm": "rms_norm",
    }


def layout(config: Backbone, at: str = "") -> Layout:
    """The table; `at` is where the backbone lies in the Flax tree."""
    blocks = tuple(at + kind for kind, count in kinds(config).items() for _ in range(count))
    return Layout(
        rules=tuple(replace(rule, target=at + rule.target) for rule in RULES),
        stacks={f"{at}blocks": blocks},
        axes={"p": config.patch, "q": config.patch},
    )


SD35 = Network(
    name="sd35",
    folder="transformer",
    file="diffusion_pytorch_model.safetensors",
    rename=single_file.backbone,
    read_config=read_config,
    write_config=write_config,
    layout=layout,
    build=MMDiT,
)


def read_video_config(tensors: dict[str, Tensor], source: dict) -> Model:
    rest = build(Model, source[VIDEO], f"{VIDEO}.json")
    return replace(rest, backbone=read_config(tensors, source))


def write_video_config(config: Model) -> dict:
    return write_config(config.backbone) | {VIDEO: dataclasses.asdict(config)}


def video_layout(config: Model) -> Layout:
    backbone = layout(config.backbone, "image.")
    return replace(backbone, rules=(*backbone.rules, Rule(VIDEO + r"\.(video_.*)", r"\1")))


VIDEO_MODEL = SD35._replace(
    name="svdp", extra=VIDEO, read_config=read_video_config, write_config=write_video_config, layout=video_layout, build=SVDP
)
