"""The names in Stability's single file `sd3.5_medium.safetensors`, as diffusers names them.

A row is an expression, the name it becomes, and which of how many parts of the
rows. Query, key and value are one matrix there, and the final modulations hold
shift before scale; diffusers has it the other way round.
"""

import re
from dataclasses import replace

from convert.tensors import Tensor

BACKBONE, AUTOENCODER, TEXT = "model.diffusion_model.", "first_stage_model.", "text_encoders."
WHOLE, SWAPPED = ((0,), 1), ((1, 0), 2)
QUERY, KEY, VALUE = (((i,), 3) for i in range(3))
JOINT = r"joint_blocks\.(\d+)\."
OURS = r"transformer_blocks.\1."

Row = tuple[str, str, tuple]


def stream(name: str, suffix: str, q: str, k: str, v: str, out: str, norm: str) -> list[Row]:
    """One stream (image or text) of a block; `suffix` is diffusers' for what is the stream's."""
    block = JOINT + name
    attention = block + r"\.(attn2?)\."
    return [
        (attention + r"qkv\.(\w+)", rf"{OURS}\2.{q}.\3", QUERY),
        (attention + r"qkv\.(\w+)", rf"{OURS}\2.{k}.\3", KEY),
        (attention + r"qkv\.(\w+)", rf"{OURS}\2.{v}.\3", VALUE),
        (attention + r"ln_([qk])\.(\w+)", rf"{OURS}\2.{norm}_\3.\4", WHOLE),
        (attention + r"proj\.(\w+)", rf"{OURS}\2.{out}.\3", WHOLE),
        (block + r"\.mlp\.fc1\.(\w+)", rf"{OURS}ff{suffix}.net.0.proj.\2", WHOLE),
        (block + r"\.mlp\.fc2\.(\w+)", rf"{OURS}ff{suffix}.net.2.\2", WHOLE),
        (block + r"\.adaLN_modulation\.1\.(\w+)", rf"{OURS}norm1{suffix}.linear.\2", WHOLE),
    ]


ENDS: list[Row] = [
    (r"pos_embed", "pos_embed.pos_embed", WHOLE),
    (r"x_embedder\.proj\.(\w+)", r"pos_embed.proj.\1", WHOLE),
    (r"context_embedder\.(\w+)", r"context_embedder.\1", WHOLE),
    (r"t_embedder\.mlp\.0\.(\w+)", r"time_text_embed.timestep_embedder.linear_1.\1", WHOLE),
    (r"t_embedder\.mlp\.2\.(\w+)", r"time_text_embed.timestep_embedder.linear_2.\1", WHOLE),
    (r"y_embedder\.mlp\.0\.(\w+)", r"time_text_embed.text_embedder.linear_1.\1", WHOLE),
    (r"y_embedder\.mlp\.2\.(\w+)", r"time_text_embed.text_embedder.linear_2.\1", WHOLE),
    (r"final_layer\.linear\.(\w+)", r"proj_out.\1", WHOLE),
    (r"final_layer\.adaLN_modulation\.1\.(\w+)", r"norm_out.linear.\1", SWAPPED),
]
IMAGE = stream("x_block", "", "to_q", "to_k", "to_v", "to_out.0", "norm")
PROMPT = stream("context_block", "_context", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added")

RESNET = r"(norm[12]|conv[12]|nin_shortcut)\.(\w+)"
ATTENTION = r"(encoder|decoder)\.mid\.attn_1\."
DOWN = r"encoder\.down\.(\d+)\."
CODER = [
    (r"(encoder|decoder)\.(conv_in|conv_out)\.(\w+)", r"\1.\2.\3", WHOLE),
    (r"(encoder|decoder)\.norm_out\.(\w+)", r"\1.conv_norm_out.\2", WHOLE),
    (DOWN + r"block\.(\d+)\." + RESNET, r"encoder.down_blocks.\1.resnets.\2.\3.\4", WHOLE),
    (DOWN + r"downsample\.(.+)", r"encoder.down_blocks.\1.downsamplers.0.\2", WHOLE),
    (r"(encoder|decoder)\.mid\.block_1\." + RESNET, r"\1.mid_block.resnets.0.\2.\3", WHOLE),
    (r"(encoder|decoder)\.mid\.block_2\." + RESNET, r"\1.mid_block.resnets.1.\2.\3", WHOLE),
    (ATTENTION + r"norm\.(\w+)", r"\1.mid_block.attentions.0.group_norm.\2", WHOLE),
    (ATTENTION + r"([qkv])\.(\w+)", r"\1.mid_block.attentions.0.to_\2.\3", WHOLE),
    (ATTENTION + r"proj_out\.(\w+)", r"\1.mid_block.attentions.0.to_out.0.\2", WHOLE),
]


def backbone(tensors: list[Tensor]) -> list[Tensor]:
    """The backbone's tensors under diffusers' names; those that have them already as they are."""
    last = last_number(JOINT, tensors, BACKBONE)
    if last is None:
        return tensors
    end = (
        rf"joint_blocks\.{last}\.context_block\.adaLN_modulation\.1\.(\w+)",
        rf"transformer_blocks.{last}.norm1_context.linear.\1",
        SWAPPED,
    )
    return renamed(tensors, [*ENDS, end, *IMAGE, *PROMPT], BACKBONE)


def autoencoder(tensors: list[Tensor]) -> list[Tensor]:
    """As `backbone`, for the autoencoder."""
    last = last_number(r"decoder\.up\.(\d+)\.", tensors, AUTOENCODER)
    if last is None:
        return tensors
    table = list(CODER)
    for i in range(last + 1):  # counted from the other end
        up, ours = rf"decoder\.up\.{i}\.", f"decoder.up_blocks.{last - i}."
        table.append((up + r"block\.(\d+)\." + RESNET, ours + r"resnets.\1.\2.\3", WHOLE))
        table.append((up + r"upsample\.(.+)", ours + r"upsamplers.0.\1", WHOLE))
    return [linear(t) for t in renamed(tensors, table, AUTOENCODER)]


def linear(tensor: Tensor) -> Tensor:
    """Attention's 1x1 convolutions are matrices, and the shortcut has another name."""
    if ".attentions." in tensor.name and tensor.shape[2:] == (1, 1):
        return replace(tensor, shape=tensor.shape[:2])
    return replace(tensor, name=tensor.name.replace("nin_shortcut", "conv_shortcut"))


def last_number(pattern: str, tensors: list[Tensor], prefix: str) -> int | None:
    names = (t.name.removeprefix(prefix) for t in tensors)
    return max((int(m[1]) for name in names if (m := re.match(pattern, name))), default=None)


def renamed(tensors: list[Tensor], table: list[Row], prefix: str) -> list[Tensor]:
    """By every row of the first expression that matches; what no row matches keeps its name."""
    others = tuple({BACKBONE, AUTOENCODER, TEXT} - {prefix})
    result = []
    for tensor in tensors:
        if tensor.name.startswith(others):
            continue
        name = tensor.name.removeprefix(prefix)
        found = next((match for source, _, _ in table if (match := re.fullmatch(source, name))), None)
        rows = [(found.expand(to), part) for source, to, part in table if found and source == found.re.pattern]
        result += [replace(tensor.parts(*part), name=to) for to, part in rows] or [tensor]
    return result
