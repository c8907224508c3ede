"""The table of LivePortrait's five networks, as published in .pth files."""

import re
from dataclasses import replace
from functools import partial

import numpy as np

from convert.rules import Layout, Network, Rule
from convert.tensors import Derived, Tensor
from svdp_jax.models.liveportrait import LivePortrait, LivePortraitConfig
from svdp_jax.values.declared import build

PARTS = {
    "base_models/appearance_feature_extractor.pth": "appearance",
    "base_models/motion_extractor.pth": "motion",
    "base_models/warping_module.pth": "warping",
    "base_models/spade_generator.pth": "generator",
    "retargeting_models/stitching_retargeting_module.pth": "stitching",
}
# What of the published names is not in ours.
NAMES = (
    (r"\bmodule\.", ""),
    (r"^motion\.detector\.", "motion."),
    (r"\b3dr(\d)", r"\1"),
    (r"\bG_middle_(\d)", r"middle.\1"),
    (r"\b(conv_img|mlp_shared)\.0\.", r"\1."),
    (r"\bretarget_", ""),
)
SPECTRAL = ("weight_orig", "weight_u", "weight_v")

NORM = r"(.*\.norm[12]?|motion\.downsample_layers\.0\.1|motion\.downsample_layers\.[1-9]\.0)"
RULES = (
    Rule(NORM + r"\.weight", r"\1.scale"),
    Rule(NORM + r"\.running_(mean|var)", r"\1.\2"),
    Rule(r"(.*)\.grn\.(gamma|beta)", r"\1.grn.\2", "1 1 1 d -> d"),
    Rule(r"(.*)\.weight", r"\1.kernel", "o i ... -> ... i o"),
    Rule(r"(.*)\.bias", r"\1.bias"),
)


def rename(tensors: list[Tensor]) -> list[Tensor]:
    """Our names; spectral norm folded into the weights."""
    tensors = [replace(t, name=our_name(t.name)) for t in tensors]
    named, folded = {t.name: t for t in tensors}, []
    for layer in (name.removesuffix("weight_orig") for name in named if name.endswith(".weight_orig")):
        parts = [named[layer + part] for part in SPECTRAL if layer + part in named]
        if len(parts) == len(SPECTRAL):
            folded.append(fold(layer + "weight", *parts))
            tensors = [t for t in tensors if t not in parts]
    return folded + tensors


def our_name(name: str) -> str:
    for theirs, ours in NAMES:
        name = re.sub(theirs, ours, name)
    return name


def fold(name: str, weight: Tensor, u: Tensor, v: Tensor) -> Derived:
    """The weight divided by its largest singular value, which u and v tell."""
    return Derived(name, weight.dtype, weight.shape, partial(divided, weight, u, v))


def divided(weight: Tensor, u: Tensor, v: Tensor) -> np.ndarray:
    array = weight.read()
    rows = array.reshape(len(array), -1).astype(np.float64)
    return (array / (u.read() @ rows @ v.read())).astype(array.dtype)


LIVEPORTRAIT = Network(
    name="liveportrait",
    folder="liveportrait",
    file="",
    rename=rename,
    read_config=lambda tensors, source: build(LivePortraitConfig, source, "config.json"),
    write_config=None,
    layout=lambda config: Layout(RULES),
    build=LivePortrait,
    parts=PARTS,
)
