"""The networks of the metrics against PyTorch, and their files into them."""

import jax
import numpy as np
import pytest
from einops import rearrange
from torch_reference import assert_close, library, ported, randomize

from convert import metric_nets as tables
from convert.rules import shapes
from svdp_jax.models.metric_nets import ArcFaceConfig, I3DConfig, LPIPSConfig, SyncNetConfig

FACES = ArcFaceConfig(layers=(1, 2, 1, 1), width=4, embedding=8, size=32)


@pytest.fixture(scope="module")
def reference():
    library("torch")
    import metric_reference

    return metric_reference


def drawn(module):
    """The module with random weights and statistics, and sizes that keep activations alive."""
    import torch

    randomize(module)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.copy_(0.1 + torch.rand(buffer.shape, generator=generator))
    return module


def pictures(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def theirs(module, *inputs):
    import torch

    return module(*(torch.from_numpy(rearrange(x, "b ... c -> b c ...").copy()) for x in inputs))


@pytest.mark.parametrize(("net", "size"), [("alex", 63), ("vgg", 33)])
def test_lpips_equals_pytorch(reference, net, size):
    config = LPIPSConfig(net, 8)
    module = drawn(reference.LPIPS(net, 8))
    for name, weight in module.named_parameters():
        if name.startswith("lin"):
            weight.data.abs_()  # as trained ones are
    ours = ported(module, tables.lpips(net), config, lambda name: name.removeprefix("trunk."))
    a, b = pictures(2, size, 40, 3), pictures(3, size, 40, 3)[1:]
    distance = jax.jit(ours)(a, b)
    assert_close(distance, theirs(module, a, b))
    np.testing.assert_array_equal(ours(a, a), 0)


def test_i3d_equals_pytorch(reference):
    module = drawn(reference.I3D(10, 8))
    ours = ported(module, tables.I3D_NETWORK, I3DConfig(10, 8))
    for shape in ((2, 16, 32, 32, 3), (1, 13, 33, 30, 3)):  # odd sizes pad unevenly
        x = pictures(*shape)
        assert_close(jax.jit(ours)(x), theirs(module, x))


def test_arcface_equals_pytorch(reference):
    module = drawn(reference.ArcFace(FACES.layers, FACES.width, FACES.embedding, FACES.size))
    ours = ported(module, tables.ARCFACE, FACES)
    x = pictures(2, 32, 32, 3)
    assert_close(jax.jit(ours)(x), theirs(module, x))


def test_syncnet_equals_pytorch(reference):
    module = drawn(reference.SyncNet(8, 16))
    ours = ported(module, tables.SYNCNET, SyncNetConfig(8, 16))
    frames = 127.5 + 127.5 * pictures(2, 5, 224, 224, 3)
    assert_close(jax.jit(ours.lips)(frames), theirs(module.lips, frames))
    sound = 10 * pictures(2, 13, 20, 1)
    assert_close(jax.jit(ours.sound)(sound[..., 0]), theirs(module.sound, sound))


@pytest.mark.parametrize(
    ("network", "config", "parameters"),
    [
        (tables.LPIPS_ALEX, LPIPSConfig("alex"), 2_470_848),
        (tables.LPIPS_VGG, LPIPSConfig("vgg"), 14_716_160),
        (tables.I3D_NETWORK, I3DConfig(), 12_711_824),
        (tables.ARCFACE, ArcFaceConfig(), 65_225_792),
        (tables.SYNCNET, SyncNetConfig(), 13_640_256),
    ],
)
def test_full_size(network, config, parameters):
    """As many numbers as the published files hold, the norms' statistics included."""
    assert sum(np.prod(s.shape, dtype=int) for s in shapes(network, config).values()) == parameters
