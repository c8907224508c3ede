"""Adapters as files: low-rank parts that PEFT wrote over diffusers' transformer, in and out again, and folded in."""

import json
from pathlib import Path

import jax
import little_run
import numpy as np
import pytest
from conftest import randomized
from flax import nnx
from safetensors.numpy import load_file, save_file
from torch_reference import library, randomize

from convert.__main__ import main as convert
from svdp_jax import config as configs, parallel
from svdp_jax.errors import UserError
from svdp_jax.models import learned
from svdp_jax.models.svdp import SVDP
from svdp_jax.training import start
from svdp_jax.weights import adapter, checkpoint, shipped

SIZES = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 3, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 8,
    "pos_embed_max_size": 12, "dual_attention_layers": [0], "qk_norm": "rms_norm",
}  # fmt: skip


class Reference:
    """diffusers' transformer with random weights, its folder, and what it makes of one input."""

    def __init__(self, folder: Path):
        self.torch, self.diffusers, self.peft = library("torch"), library("diffusers"), library("peft")
        self.folder = folder / "transformer"
        table = self.plain().pos_embed.pos_embed.clone()
        model = randomize(self.plain())
        model.pos_embed.pos_embed.data = table
        model.save_pretrained(self.folder)
        random = np.random.default_rng(1)
        self.latents, self.text, self.pooled = (
            random.standard_normal(size, np.float32) for size in ((2, 4, 8, 8), (2, 5, 12), (2, 8))
        )
        self.time = np.float32([0.0, 0.001])  # small, as float32 knows large angles less well than 1e-5

    def plain(self):
        return self.diffusers.SD3Transformer2DModel(**SIZES)

    def loaded(self):
        return self.diffusers.SD3Transformer2DModel.from_pretrained(self.folder)

    def theirs(self, model) -> np.ndarray:
        tensor = self.torch.from_numpy
        with self.torch.no_grad():
            made = model(tensor(self.latents), tensor(self.text), tensor(self.pooled), tensor(1000 * self.time))
        return made.sample.numpy()

    def ours(self, model) -> np.ndarray:
        latents = self.latents.transpose(0, 2, 3, 1)
        made = nnx.jit(lambda model, *x: model(*x))(model, latents, self.time, self.text, self.pooled)
        return np.asarray(made).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
    return Reference(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def backbone(reference) -> Path:
    out = reference.folder.parent / "backbone"
    assert convert(["sd35", str(reference.folder), str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def written(reference) -> tuple[Path, np.ndarray]:
    """Low-rank parts as PEFT saves them, of two ranks, with alpha other than the rank, and what they make."""
    config = reference.peft.LoraConfig(
        r=4, lora_alpha=6, init_lora_weights=False, target_modules=["to_q", "to_out.0", "add_k_proj", "net.0.proj", "linear_1"],
        rank_pattern={"transformer_blocks.1.attn.to_q": 2}, alpha_pattern={"transformer_blocks.0.attn.to_q": 1},
    )  # fmt: skip
    reference.torch.manual_seed(0)
    model = reference.peft.get_peft_model(reference.loaded(), config).eval()
    folder = reference.folder.parent / "peft"
    model.save_pretrained(folder)
    return folder, reference.theirs(model)


@pytest.fixture(scope="module")
def taken(written, backbone) -> Path:
    out = backbone.parent / "lora"
    assert convert(["lora", str(written[0]), str(out), "--base", str(backbone)]) == 0
    return out


def close(ours, theirs) -> bool:
    print(f"error {np.abs(ours - theirs).max() / theirs.std():.1e}")  # shown by pytest -s
    return np.abs(ours - theirs).max() < 1e-5 * theirs.std()


def test_low_rank_parts_of_peft_equal_it_beside_their_base_and_folded_in(reference, written, taken):
    expected = written[1]
    assert not close(reference.theirs(reference.loaded()), expected)
    graph, state, arrays = adapter.load_arrays(taken)
    assert close(reference.ours(nnx.merge(graph, checkpoint.replaced(state, arrays))), expected)
    folded = taken.with_name("folded")
    assert convert(["adapter", str(taken), str(folded)]) == 0
    assert close(reference.ours(checkpoint.load_network(folded)), expected)


def test_they_go_back_to_peft_and_to_diffusers(reference, written, taken):
    out = taken.with_name("back")
    assert convert(["lora", str(taken), str(out), "--reverse"]) == 0
    again = reference.peft.PeftModel.from_pretrained(reference.loaded(), out).eval()
    assert close(reference.theirs(again), written[1])
    model = reference.loaded()
    model.load_lora_adapter(out, weight_name="pytorch_lora_weights.safetensors", prefix="transformer")
    assert close(reference.theirs(model.eval()), written[1])
    third = taken.with_name("third")  # as the two files hold the same
    arguments = ["lora", str(out / "pytorch_lora_weights.safetensors"), str(third), "--base", str(taken.with_name("backbone"))]
    assert convert(arguments) == 0
    one, other = (checkpoint.load_arrays(folder) for folder in (taken, third))
    assert set(one) == set(other) and all(np.allclose(one[name], other[name], atol=1e-7) for name in one)


def test_training_starts_with_low_rank_parts_of_others(taken, backbone):
    """They are the values of its own, on the same base; attention through time is fresh."""
    facts = checkpoint.about(backbone)
    image = configs.Backbone(**facts["config"])
    rows = adapter.of(taken).learn.split()
    table = " ".join(["video_.*=full", *(f"image\\.{row}" for row in rows[:-1]), rows[-1]])
    codec = configs.Codec("pixels", 1)
    model = configs.Model(backbone=image, video=configs.Video(heads=2), codec=codec)
    config = configs.Config("more", model, backbone=str(taken), learn=table)
    assert adapter.faults(config, taken) == []
    _, state = start.initial_state(config, parallel.make_mesh(config.mesh))
    weights, own = checkpoint.named(state.weights), checkpoint.load_arrays(taken)
    assert all((np.asarray(weights[f"image.{name}"]) == own[name]).all() for name in own)
    assert adapter.trained_with(config)["adapter"]["folder"] == str(backbone.resolve())


def said(capsys, *arguments) -> str:
    assert convert(list(map(str, arguments))) == 2
    return capsys.readouterr().err


def test_what_cannot_be_taken_is_said(written, backbone, tmp_path, capsys):
    folder, out = written[0], tmp_path / "out"
    assert "name the converted image model with --base" in said(capsys, "lora", folder, out)
    assert "is neither a .safetensors file nor a folder" in said(capsys, "lora", tmp_path, out, "--base", backbone)
    assert "is no adapter: it is whole" in said(capsys, "adapter", backbone, out)
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, words in ((next(iter(tensors)), "no low-rank parts of a Stable"), ("text_model.q.lora_A.weight", "text_model")):
        other = tmp_path / f"{len(words)}.safetensors"
        rest = {key: value for key, value in tensors.items() if key != name}
        save_file(rest | ({name: np.zeros((2, 2), np.float32)} if name not in tensors else {}), other)
        assert words in said(capsys, "lora", other, out, "--base", backbone)
    copy = tmp_path / "peft"
    copy.mkdir()
    save_file(tensors, copy / "adapter_model.safetensors")
    told = json.loads((folder / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps(told | {"use_dora": True}))
    assert "asks for use_dora" in said(capsys, "lora", copy, out, "--base", backbone)
    assert not out.exists()


def test_a_trained_adapter_is_folded_into_its_base_which_may_have_moved(tmp_path, capsys):
    """The whole model makes what the adapter on its base does, and needs it no more."""
    model = little_run.config().model
    config = configs.Config("tiny", model, start=str(tmp_path / "base"), learn="adapter", frozen="int8", dtype="float32")
    _, weights, constants = learned.parted(randomized(SVDP(model, nnx.Rngs(0))), "all")
    checkpoint.save_model(tmp_path / "base" / "model", config, weights, constants)
    _, state = start.initial_state(config, parallel.make_mesh(config.mesh))
    average = jax.tree.map(lambda w: w + 0.1, state.average)
    checkpoint.save_model(tmp_path / "run" / "model", config, average, facts=adapter.trained_with(config))
    (tmp_path / "base").rename(tmp_path / "moved")
    words = said(capsys, "adapter", tmp_path / "run", tmp_path / "whole")
    assert "name them with --base DIR" in words and len(words.splitlines()) == 1
    assert convert(["adapter", str(tmp_path / "run"), str(tmp_path / "whole"), "--base", str(tmp_path / "moved")]) == 0
    _, whole = adapter.load(tmp_path / "whole")
    arrays = adapter.load_arrays(tmp_path / "run" / "model", tmp_path / "moved" / "model")[2]
    expected = learned.folded(arrays)
    found = checkpoint.named(nnx.state(whole))
    assert set(found) == set(expected) and all(np.allclose(found[name], expected[name], atol=1e-6) for name in found)
    with pytest.raises(UserError, match="is an adapter, which is nothing without its base"):
        shipped.export(tmp_path / "run", tmp_path / "exported")
