"""The names of Stability's single file, against diffusers' own reading of it."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_convert import CODER, SMALL

from convert import networks, rules, single_file, tensors
from convert.sd35 import SD35
from convert.vae import VAE


class Original(dict):
    """Random tensors under the names of Stability's single file."""

    def __init__(self, prefix):
        self.prefix, self.rng = prefix, np.random.default_rng(0)

    def add(self, name, *shape, bias=True):
        for leaf, size in (("weight", shape), ("bias", shape[:1]))[: 1 + bias]:
            self[f"{self.prefix}{name}.{leaf}"] = self.rng.normal(size=size).astype(np.float32)

    def resnet(self, name, size_in, size_out):
        for i, size in ((1, size_in), (2, size_out)):
            self.add(f"{name}.norm{i}", size)
            self.add(f"{name}.conv{i}", size_out, size, 3, 3)
        if size_in != size_out:
            self.add(f"{name}.nin_shortcut", size_out, size_in, 1, 1)


def original_backbone():
    d, file = SMALL.width, Original("model.diffusion_model.")
    file["model.diffusion_model.pos_embed"] = np.ones((1, SMALL.table**2, d), np.float32)
    file.add("x_embedder.proj", d, SMALL.channels, 2, 2)
    for name, size in (("t_embedder", 256), ("y_embedder", SMALL.pooled_width)):
        file.add(f"{name}.mlp.0", d, size)
        file.add(f"{name}.mlp.2", d, d)
    file.add("context_embedder", d, SMALL.text_width)
    file.add("final_layer.linear", 4 * SMALL.channels, d)
    file.add("final_layer.adaLN_modulation.1", 2 * d, d)
    for i in range(SMALL.blocks):
        dual, last = i < SMALL.dual, i == SMALL.blocks - 1
        for stream, chunks in (("x_block", 9 if dual else 6), ("context_block", 2 if last else 6)):
            block = f"joint_blocks.{i}.{stream}"
            file.add(f"{block}.adaLN_modulation.1", chunks * d, d)
            for attention in ("attn", "attn2") if chunks == 9 else ("attn",):
                file.add(f"{block}.{attention}.qkv", 3 * d, d)
                file.add(f"{block}.{attention}.ln_q", d // SMALL.heads, bias=False)
                file.add(f"{block}.{attention}.ln_k", d // SMALL.heads, bias=False)
                if chunks > 2:
                    file.add(f"{block}.{attention}.proj", d, d)
            if chunks > 2:
                file.add(f"{block}.mlp.fc1", 4 * d, d)
                file.add(f"{block}.mlp.fc2", d, 4 * d)
    return file


def original_autoencoder():
    small, large = CODER.block_out_channels
    file = Original("first_stage_model.")
    for side, ends in (("encoder", (small, large)), ("decoder", (large, small))):
        file.add(f"{side}.conv_in", ends[0], 3 if side == "encoder" else 4, 3, 3)
        file.add(f"{side}.conv_out", 8 if side == "encoder" else 3, ends[1], 3, 3)
        file.add(f"{side}.norm_out", ends[1])
        file.add(f"{side}.mid.attn_1.norm", large)
        for leaf in ("q", "k", "v", "proj_out"):
            file.add(f"{side}.mid.attn_1.{leaf}", large, large, 1, 1)
        for i in (1, 2):
            file.resnet(f"{side}.mid.block_{i}", large, large)
    for name, sizes in (
        ("encoder.down.0", (small, small)),
        ("encoder.down.1", (small, large)),
        ("decoder.up.1", (large, large, large)),
        ("decoder.up.0", (large, small, small)),
    ):
        for i, pair in enumerate(zip(sizes, sizes[1:])):
            file.resnet(f"{name}.block.{i}", *pair)
    file.add("encoder.down.0.downsample.conv", small, small, 3, 3)
    file.add("decoder.up.1.upsample.conv", large, large, 3, 3)
    return file


@pytest.fixture
def single(tmp_path):
    """The single file with both networks."""
    path = tmp_path / "sd3.5_medium.safetensors"
    save_file(original_backbone() | original_autoencoder(), path)
    return path


def theirs(convert, original, *rest):
    torch = pytest.importorskip("torch", reason="diffusers' own conversion is the reference")
    loaders = pytest.importorskip("diffusers.loaders.single_file_utils", reason="as for torch", exc_type=ImportError)
    original = {name: torch.tensor(array) for name, array in original.items()}
    return {k: v.numpy() for k, v in getattr(loaders, convert)(original, *rest).items()}


def renamed(rename, file):
    return {t.name: t.read() for t in rename(tensors.read_header(file))}


def same(ours, others):
    assert ours.keys() == others.keys()
    assert all((ours[name] == others[name]).all() for name in ours)


def test_single_file_is_read_as_diffusers_reads_it(single):
    ours = renamed(single_file.backbone, single)
    name = "convert_sd3_transformer_checkpoint_to_diffusers"
    same(ours, theirs(name, original_backbone()))
    ours = renamed(single_file.autoencoder, single)
    name = "convert_ldm_vae_checkpoint"
    same(ours, theirs(name, original_autoencoder(), VAE.write_config(CODER)))


def test_single_file_converts(tmp_path, single):
    config, params = networks.read(single, SD35, None, False)
    prefix, d = "model.diffusion_model.", SMALL.width
    original = original_backbone()
    qkv = original[prefix + "joint_blocks.1.x_block.attn.qkv.weight"]
    assert (params.arrays["plain.attn.to_k.kernel"][0] == qkv[d : 2 * d].T).all()
    final = original[prefix + "final_layer.adaLN_modulation.1.bias"]
    assert (params.arrays["norm_out.bias"] == np.roll(final, d)).all()
    last = original[prefix + "joint_blocks.3.context_block.adaLN_modulation.1.bias"]
    assert (params.arrays["last.norm1_context.bias"][0] == np.roll(last, d)).all()
    assert (config.blocks, config.dual, config.heads, config.table) == (4, 1, 2, 6)
    structs = rules.shapes(VAE, CODER)
    rules.match(VAE.layout(CODER), structs, single_file.autoencoder(tensors.read_header(single)))
