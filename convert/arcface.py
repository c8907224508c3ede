"""An ArcFace network from its ONNX graph: weights get the names that the PyTorch module gives them.

Exporters drop names and melt a norm into the convolution before it, so what a weight is follows
from the order of the operations: a stem, blocks that each end in an addition, a head.
"""

from functools import partial
from pathlib import Path

import numpy as np

from convert import onnx
from convert.onnx import Node
from convert.tensors import Derived, Tensor
from svdp_jax.errors import UserError

NORM = ("weight", "bias", "running_mean", "running_var")
EPSILON = 1e-5  # of the norms, which is added to the variance
USED = ("Conv", "BatchNormalization", "PRelu", "Gemm", "Add")
# Convolutions of a stem and a block in order of execution, each with the norm after it.
STEM, BLOCK = [("conv1", "bn1")], [("conv1", "bn2"), ("conv2", "bn3"), ("downsample.0", "downsample.1")]


def read(path: Path) -> list[Tensor | Derived]:
    """UserError where the graph is no improved residual network."""
    nodes, weights = onnx.read(path)
    nodes = [node for node in nodes if node.kind in USED]
    try:
        return named(nodes, weights)
    except (KeyError, IndexError, StopIteration) as error:
        raise UserError(f"{path} is not an ArcFace network of residual blocks (at {error}).") from None


def named(nodes: list[Node], weights: dict) -> list[Tensor | Derived]:
    first = next(i for i, node in enumerate(nodes) if node.kind == "PRelu") + 1
    result = section(nodes[:first], weights, "", STEM)
    layer, number, begin = 0, 0, first
    for end in (i for i, node in enumerate(nodes) if node.kind == "Add"):
        block = nodes[begin:end]
        opens = sum(node.kind == "Conv" for node in block) == 3
        layer, number = (layer + 1, 0) if opens else (layer, number + 1)
        result += section(block, weights, f"layer{layer}.{number}.", BLOCK)
        begin = end + 1
    return result + section(nodes[begin:], weights, "", [("fc", "features")], first_norm="bn2")


def section(nodes: list[Node], weights: dict, prefix: str, layers: list, first_norm: str = "bn1") -> list:
    """Names for the weights of one stem, block or head."""
    result, waiting, before = [], iter(layers), None
    for node in nodes:
        own = [weights[name] for name in node.inputs[1:]]
        if node.kind in ("Conv", "Gemm"):
            layer, norm = next(waiting)
            result.append(renamed(own[0], f"{prefix}{layer}.weight"))
            melted = node.kind == "Conv" and len(own) == 2
            result += unfolded(own[1], f"{prefix}{norm}") if melted else []
            result += [renamed(own[1], f"{prefix}{layer}.bias")] if node.kind == "Gemm" else []
            before = node, norm
        elif node.kind == "BatchNormalization":
            follows = before and before[0].outputs[0] == node.inputs[0]
            name = before[1] if follows else first_norm
            result += [renamed(x, f"{prefix}{name}.{part}") for x, part in zip(own, NORM, strict=True)]
        else:
            result.append(flat(own[0], f"{prefix}prelu.weight"))
    return result


def renamed(tensor: Tensor, name: str) -> Derived:
    return Derived(name, tensor.dtype, tensor.shape, tensor.read)


def flat(tensor: Tensor, name: str) -> Derived:
    """A slope per channel, without the axes that let it broadcast."""
    return Derived(name, tensor.dtype, (max(tensor.shape),), lambda: tensor.read().reshape(-1))


def unfolded(bias: Tensor, name: str) -> list[Derived]:
    """A norm that only adds the bias, in place of the one melted into the convolution."""
    fill = {"weight": 1.0, "running_mean": 0.0, "running_var": 1 - EPSILON}
    constant = lambda value: np.full(bias.shape, value, bias.dtype)
    return [renamed(bias, f"{name}.bias")] + [
        Derived(f"{name}.{part}", bias.dtype, bias.shape, partial(constant, value)) for part, value in fill.items()
    ]
