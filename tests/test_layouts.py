"""Every network from every kind of file that people have, by the command, against PyTorch."""

import json
import time

import jax
import numpy as np
import published
import pytest
from published import LAYOUTS, NETWORKS
from torch_reference import library

import convert.__main__ as command
from convert import networks, rules
from svdp_jax.weights.checkpoint import load_arrays, load_network

PLAIN = "safetensors, float32"
SEVERAL = {"liveportrait", "lpips_alex", "lpips_vgg"}  # networks in several files, none of which comes in shards


@pytest.fixture(scope="module", autouse=True)
def once():
    """Sizes of a network are worked out once, not in every layout."""
    library("torch")
    library("diffusers")
    found, shapes = {}, rules.shapes

    def cached(network, config):
        key = network.name, network.folder, config
        found[key] = found.get(key) or shapes(network, config)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "shapes", cached)
        yield


@pytest.fixture(scope="module")
def extra(tmp_path_factory):
    """The file of the layers that the video model adds, as `--reverse` leaves it."""
    from convert.sd35 import VIDEO_MODEL
    from svdp_jax.weights.checkpoint import save_weights

    folder = tmp_path_factory.mktemp("svdp")
    random = np.random.default_rng(0)
    structs = rules.shapes(VIDEO_MODEL, published.VIDEO)
    params = {path: random.normal(size=s.shape).astype(np.float32) for path, s in structs.items()}
    save_weights(folder / "flax", "svdp", published.VIDEO, params, {})
    convert("svdp", folder / "flax", folder / "torch", "--reverse")
    return {file.name: file.read_bytes() for file in (folder / "torch").glob("svdp_video.*")}


def convert(*arguments):
    assert command.main([str(argument) for argument in arguments]) == 0


def read(network, source, out, extra):
    """What the command would write, path by path: Orbax takes ten times as long as everything before it."""
    kept = {}

    def keep(folder, name, config, arrays, facts):
        folder.mkdir()
        kept.update({path: np.asarray(array) for path, array in arrays.items()})

    if network == "svdp":
        for name, content in extra.items():
            (source / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "save_weights", keep)
        convert(network, source, out)
    return kept


@pytest.fixture(scope="module")
def expected(tmp_path_factory, extra):
    """What a network's weights become by the plainest layout, if each tensor is rounded before."""
    known = {}

    def get(network, rounded):
        key = network, getattr(rounded, "func", rounded), str(getattr(rounded, "keywords", ""))
        if key not in known:
            made = NETWORKS[network]()
            files = {name: {k: rounded(k, v).astype(v.dtype) for k, v in state.items()} for name, state in made.files.items()}
            folder = tmp_path_factory.mktemp(network)
            source = published.lay(made._replace(files=files), LAYOUTS[PLAIN], folder / "source")
            known[key] = read(network, source, folder / "out", extra)
        return known[key]

    return get


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_weights(network, layout, tmp_path, expected, extra):
    how = LAYOUTS[layout]
    if how.shards and network in SEVERAL:
        return
    source = published.lay(NETWORKS[network](), how, tmp_path / "source")
    ours, theirs = read(network, source, tmp_path / "out", extra), expected(network, how.rounded)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        wanted = theirs[path].astype(array.dtype)
        if network == "liveportrait" and array.dtype != np.float32:  # where a norm is folded in before rounding
            np.testing.assert_allclose(array.astype(np.float32), wanted.astype(np.float32), rtol=2e-2, atol=1e-3)
        else:
            np.testing.assert_array_equal(array, wanted, err_msg=path)
