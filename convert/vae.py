"""The table of the SD3 autoencoder."""

import dataclasses
import re
from typing import Any

from convert import single_file
from convert.rules import Layout, Network, Rule, linear, norm
from convert.tensors import Tensor
from svdp_jax.models.vae import Autoencoder, AutoencoderConfig

CONV = r"(.*)\.(conv|conv1|conv2|conv_in|conv_out|conv_shortcut)"
FIRST = r"encoder\.down_blocks\.(\d+)\.resnets\.0\.conv1\.weight"  # tells the channels of each resolution
NORM = r"(.*)\.(norm1|norm2|conv_norm_out|group_norm)"

RULES = (
    Rule(CONV + r"\.weight", r"\1.\2.kernel", "o i y x -> y x i o"),
    Rule(CONV + r"\.bias", r"\1.\2.bias"),
    *norm(NORM, r"\1.\2"),
    *linear(r"(.*\.to_[qkv])", r"\1"),
    *linear(r"(.*\.to_out)\.0", r"\1"),
)


def read_config(tensors: dict[str, Tensor], source: dict) -> AutoencoderConfig:
    """The config.json's, or what the shapes tell; the rest is SD3's."""
    if not source:
        source = shapes(tensors)
    fields = {f.name for f in dataclasses.fields(AutoencoderConfig)} & set(source)
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in source.items() if k in fields}
    return AutoencoderConfig(**values)


def shapes(tensors: dict[str, Tensor]) -> dict:
    """Sizes of an autoencoder; of SD3's where the tensors are another network's."""
    rows = {int(m[1]): t.shape[0] for name, t in tensors.items() if (m := re.fullmatch(FIRST, name))}
    layers = [int(m[1]) for name in tensors if (m := re.match(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", name))]
    if sorted(rows) != list(range(len(rows))) or not layers or "decoder.conv_in.weight" not in tensors:
        return {}
    return {
        "block_out_channels": [rows[i] for i in range(len(rows))],
        "layers_per_block": max(layers) + 1,
        "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
    }


def write_config(config: AutoencoderConfig) -> dict:
    """The config.json of diffusers' AutoencoderKL."""
    count = len(config.block_out_channels)
    return dataclasses.asdict(config) | {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "act_fn": "silu",
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


VAE = Network(
    name="vae",
    folder="vae",
    file="diffusion_pytorch_model.safetensors",
    rename=single_file.autoencoder,
    read_config=read_config,
    write_config=write_config,
    layout=lambda config: Layout(RULES),
    build=Autoencoder,
)
