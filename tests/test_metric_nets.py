"""The networks of the metrics against PyTorch, and their files into them."""

import jax
import numpy as np
import pytest
from einops import rearrange
from published import drawn
from torch_reference import assert_close, library, ported

import convert.__main__ as command
from convert import metric_nets as tables
from convert.rules import shapes
from svdp_jax.models.metric_nets import ArcFaceConfig, I3DConfig, LPIPSConfig, SyncNetConfig
from svdp_jax.weights.checkpoint import load_network

FACES = ArcFaceConfig(layers=(1, 2, 1, 1), width=4, embedding=8, size=32)


@pytest.fixture(scope="module")
def reference():
    library("torch")
    import metric_reference

    return metric_reference


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
    network = {"alex": tables.LPIPS_ALEX, "vgg": tables.LPIPS_VGG}[net]
    ours = ported(module, network, config, lambda name: name if name.startswith("trunk.") else f"heads.{name}")
    a, b = pictures(2, size, 40, 3), pictures(3, size, 40, 3)[1:]
    # Two distances that are nearly the same: their deviation is no measure of an error.
    np.testing.assert_allclose(jax.jit(ours)(a, b), theirs(module, a, b), rtol=1e-5)
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


# From the usual files


def converted(name, source, folder):
    assert command.main([name, str(source), str(folder / name)]) == 0
    return load_network(folder / name)


def test_lpips_from_its_two_files(reference, tmp_path):
    import torch

    module = drawn(reference.LPIPS("alex", 8))
    trunk = dict(module.trunk.state_dict()) | {"classifier.1.weight": torch.ones(2, 2)}
    heads = {k: v for k, v in module.state_dict().items() if k.startswith("lin")}
    torch.save(trunk, tmp_path / "alexnet-owt-7be5be79.pth", _use_new_zipfile_serialization=False)
    torch.save(heads, tmp_path / "alex.pth")
    a, b = pictures(2, 48, 40, 3), pictures(3, 48, 40, 3)[1:]
    ours = converted("lpips_alex", tmp_path, tmp_path)
    np.testing.assert_allclose(jax.jit(ours)(a, b), theirs(module, a, b), rtol=1e-5)


@pytest.mark.parametrize("old", [True, False])
def test_syncnet_from_its_model_file(reference, tmp_path, old):
    import torch

    module = drawn(reference.SyncNet(8, 16))
    torch.save(module.state_dict(), tmp_path / "syncnet_v2.model", _use_new_zipfile_serialization=not old)
    sound = 10 * pictures(2, 13, 20, 1)
    ours = converted("syncnet", tmp_path / "syncnet_v2.model", tmp_path)
    assert_close(jax.jit(ours.sound)(sound[..., 0]), theirs(module.sound, sound))


def onnx_file(module, path, melted):
    """The module's graph as an exporter writes it; `melted`: norms after convolutions are part of these."""
    onnx = pytest.importorskip("onnx", reason="the onnx package writes the file; install svdp_jax[test]")
    nodes, weights, names = [], [], iter(f"t{i}" for i in range(10_000))

    def keep(tensor):
        weights.append(onnx.numpy_helper.from_array(tensor.detach().numpy(), name := next(names)))
        return name

    def apply(kind, x, *tensors, **attributes):
        nodes.append(onnx.helper.make_node(kind, [x, *map(keep, tensors)], [out := next(names)], **attributes))
        return out

    def norm(bn, x):
        return apply("BatchNormalization", x, bn.weight, bn.bias, bn.running_mean, bn.running_var)

    def conv(layer, bn, x):
        if not melted:
            return norm(bn, apply("Conv", x, layer.weight))
        factor = bn.weight / (bn.running_var + bn.eps).sqrt()
        return apply("Conv", x, layer.weight * factor[:, None, None, None], bn.bias - bn.running_mean * factor)

    def prelu(layer, x):
        return apply("PRelu", x, layer.weight[:, None, None])

    x = prelu(module.prelu, conv(module.conv1, module.bn1, "input"))
    for number in range(1, 5):
        for block in getattr(module, f"layer{number}"):
            y = conv(block.conv2, block.bn3, prelu(block.prelu, conv(block.conv1, block.bn2, norm(block.bn1, x))))
            x = x if block.downsample is None else conv(*block.downsample, x)
            nodes.append(onnx.helper.make_node("Add", [y, x], [total := next(names)]))
            x = total
    x = apply("Flatten", norm(module.bn2, x))
    norm(module.features, apply("Gemm", x, module.fc.weight, module.fc.bias, transB=1))
    graph = onnx.helper.make_graph(nodes, "arcface", [], [], weights)
    onnx.save(onnx.helper.make_model(graph), path)


@pytest.mark.parametrize("melted", [True, False])
def test_arcface_from_onnx(reference, tmp_path, melted):
    module = drawn(reference.ArcFace(FACES.layers, FACES.width, FACES.embedding, FACES.size))
    onnx_file(module, tmp_path / "r.onnx", melted)
    x = pictures(2, 32, 32, 3)
    ours = converted("arcface", tmp_path / "r.onnx", tmp_path)
    assert_close(jax.jit(ours)(x), theirs(module, x))


def test_a_broken_onnx_file_is_one_sentence(reference, tmp_path, capsys):
    onnx_file(drawn(reference.ArcFace(FACES.layers, 4, 8, 32)), tmp_path / "whole.onnx", True)
    whole = (tmp_path / "whole.onnx").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>", whole[:100] + bytes(60) + whole[160:]):
        (tmp_path / "r.onnx").write_bytes(damaged)
        assert command.main(["arcface", str(tmp_path / "r.onnx"), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.split("convert: ")[-1]
        assert error.count("\n") == 1 and "r.onnx" in error, error
