"""The tables of the networks that metrics use: LPIPS, I3D, ArcFace, SyncNet."""

import re
from functools import partial

from convert.metric_files import CONVS, i3d_names, lpips_files
from convert.rules import Layout, Network, Rule, linear
from convert.tensors import Tensor
from svdp_jax.errors import UserError
from svdp_jax.models.metric_nets import I3D, LPIPS, ArcFace, ArcFaceConfig, I3DConfig, LPIPSConfig, SyncNet, SyncNetConfig

KERNEL = "o i ... -> ... i o"  # of a convolution over any number of axes


def conv(source: str, target: str) -> tuple[Rule, Rule]:
    """A convolution with weight and bias."""
    return Rule(rf"{source}\.weight", f"{target}.kernel", KERNEL), Rule(rf"{source}\.bias", f"{target}.bias")


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """A norm with weight, bias and statistics."""
    names = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return tuple(Rule(rf"{source}\.{theirs}", f"{target}.{ours}") for theirs, ours in names.items())


# Places of the convolutions in SyncNet's two towers.
TOWER = (0, 4, 8, 11, 14, 18)


def lpips_rules(net: str) -> tuple[Rule, ...]:
    numbered = enumerate(CONVS[net])
    trunk = [rule for ours, theirs in numbered for rule in conv(rf"trunk\.features\.{theirs}", f"features.{ours}")]
    return *trunk, Rule(r"heads\.lin(\d)\.model\.1\.weight", r"lin.\1", "1 d 1 1 -> d")


I3D_RULES = (
    # The first rule that fits is taken, and the last layer has a convolution's name.
    Rule(r"logits\.conv3d\.weight", "logits.kernel", "o i 1 1 1 -> i o"),
    Rule(r"logits\.conv3d\.bias", "logits.bias"),
    Rule(r"(.*)\.conv3d\.weight", r"\1.conv3d.kernel", KERNEL),
    *batch_norm(r"(.*\.bn)", r"\1"),
)
ARCFACE_RULES = (
    Rule(r"(.*conv\d)\.weight", r"\1.kernel", KERNEL),
    Rule(r"(.*downsample)\.0\.weight", r"\1.conv.kernel", KERNEL),
    *batch_norm(r"(.*downsample)\.1", r"\1.bn"),
    Rule(r"(.*prelu)\.weight", r"\1.slope"),
    Rule(r"fc\.weight", "fc.kernel", "o (d y x) -> (y x d) o"),
    Rule(r"fc\.bias", "fc.bias"),
    *batch_norm(r"(.*bn\d|features)", r"\1"),
)
SYNCNET_RULES = (
    *(rule for ours, theirs in enumerate(TOWER) for rule in conv(rf"(netcnn\w+)\.{theirs}", rf"\1.{ours}.conv")),
    *(rule for ours, theirs in enumerate(TOWER) for rule in batch_norm(rf"(netcnn\w+)\.{theirs + 1}", rf"\1.{ours}.bn")),
    *linear(r"(netfc\w+)\.0", r"\1.linear_1"),
    *batch_norm(r"(netfc\w+)\.1", r"\1.bn"),
    *linear(r"(netfc\w+)\.3", r"\1.linear_2"),
)


def as_they_are(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


def rows(tensors: dict[str, Tensor], name: str) -> int:
    """Output channels of a layer. UserError where the checkpoint is of another network."""
    if name not in tensors:
        raise UserError(f"there is no {name} among the weights, so this is another network's checkpoint.")
    return tensors[name].shape[0]


def arcface_config(tensors: dict[str, Tensor], source: dict) -> ArcFaceConfig:
    blocks = [max((int(m[1]) for n in tensors if (m := re.match(rf"layer{i}\.(\d+)\.", n))), default=-1) for i in range(1, 5)]
    width = rows(tensors, "conv1.weight")
    embedding = rows(tensors, "fc.weight")
    side = round((tensors["fc.weight"].shape[1] / (8 * width)) ** 0.5)
    return ArcFaceConfig(tuple(block + 1 for block in blocks), width, embedding, 16 * side)


def arcface_layout(config: ArcFaceConfig) -> Layout:
    return Layout(ARCFACE_RULES, axes={"y": config.size // 16, "x": config.size // 16})


def lpips(net: str) -> Network:
    return Network(
        name=f"lpips_{net}",
        folder=f"lpips_{net}",
        file="",
        choose=partial(lpips_files, net),
        rename=as_they_are,
        read_config=lambda tensors, source: LPIPSConfig(net, rows(tensors, "trunk.features.0.weight")),
        write_config=None,
        layout=lambda config: Layout(lpips_rules(net)),
        build=LPIPS,
    )


LPIPS_ALEX, LPIPS_VGG = lpips("alex"), lpips("vgg")
I3D_NETWORK = Network(
    name="i3d",
    folder="i3d",
    file="model.safetensors",
    rename=i3d_names,
    read_config=lambda tensors, source: I3DConfig(
        rows(tensors, "logits.conv3d.weight"), rows(tensors, "Conv3d_1a_7x7.conv3d.weight")
    ),
    write_config=None,
    layout=lambda config: Layout(I3D_RULES),
    build=I3D,
)
ARCFACE = I3D_NETWORK._replace(
    name="arcface", folder="arcface", rename=as_they_are, read_config=arcface_config, layout=arcface_layout, build=ArcFace
)
SYNCNET = I3D_NETWORK._replace(
    name="syncnet",
    folder="syncnet",
    rename=as_they_are,
    read_config=lambda tensors, source: SyncNetConfig(rows(tensors, "netcnnaud.0.weight"), rows(tensors, "netfcaud.3.weight")),
    layout=lambda config: Layout(SYNCNET_RULES),
    build=SyncNet,
)
