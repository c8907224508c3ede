"""PyTorch networks with random weights, and the same weights in ours by the converter's tables."""

import jax
import numpy as np
import pytest
from flax import nnx

from convert.rules import wanted
from svdp_jax.weights.checkpoint import named, replaced

REASON = "PyTorch networks are the reference; install svdp_jax[reference]"


def library(name):
    """A library that needs PyTorch; skips the test where either is not installed."""
    pytest.importorskip("torch", reason=REASON)
    return pytest.importorskip(name, reason=REASON)


def randomize(module, seed=0):
    """Redraws all parameters, so that no bias is zero and no norm's scale is one."""
    torch = library("torch")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            drawn = drawn / parameter[0].numel() ** 0.5
        else:
            drawn = 0.1 * drawn + name.endswith("weight")
        parameter.data = drawn
    return module.eval().requires_grad_(False)


UNUSED = {"encoder.embed_tokens.weight"}  # follows from another


def ported(module, network, config, rename=lambda name: name):
    """Our network (a `convert.rules.Network`) with the weights of the PyTorch module."""
    model = nnx.eval_shape(lambda: network.build(config, nnx.Rngs(0)))
    layout, (graph, state) = network.layout(config), nnx.split(model)
    wants = wanted(layout, named(state))
    tensors = {rename(k): x for k, x in module.state_dict().items() if not k.endswith(".num_batches_tracked")}
    assert {want.name for want in wants.values()} == set(tensors) - UNUSED
    arrays = {path: np.empty(leaf.shape, np.float32) for path, leaf in named(state).items()}
    for place, want in wants.items():
        value = layout.transform(tensors[want.name].numpy(), want.pattern)
        arrays[place.path][... if place.layer is None else place.layer] = value
    return nnx.merge(graph, replaced(state, jax.tree.map(jax.numpy.asarray, arrays)))


def assert_close(ours, theirs, tolerance=1e-4):
    """Largest difference, relative to the reference's standard deviation."""
    ours, theirs = np.asarray(ours, np.float32), theirs.numpy()
    assert ours.shape == theirs.shape
    error = np.abs(ours - theirs).max() / theirs.std()
    print(f"error {error:.1e}")  # shown by pytest -s
    assert error <= tolerance


def count_ours(network, config) -> int:
    model = nnx.eval_shape(lambda: network.build(config, nnx.Rngs(0)))
    return sum(leaf.size for leaf in named(nnx.state(model)).values())


def count_theirs(make) -> int:
    torch = library("torch")
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make().parameters())
