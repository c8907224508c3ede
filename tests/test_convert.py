"""The converter: round trips, namings, and every bad input, on small random checkpoints."""

import errno
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

import convert.__main__ as command
from convert import networks, rules, sources, tensors
from convert.sd35 import SD35, VIDEO_MODEL, table_of
from convert.text import CLIP_L, T5
from convert.vae import VAE
from svdp_jax.config import Backbone, Model, Video
from svdp_jax.errors import UserError
from svdp_jax.models.text import CLIPConfig, T5Config
from svdp_jax.models.vae import AutoencoderConfig
from svdp_jax.weights.checkpoint import (
    about,
    abstract_network,
    load_network,
    load_weights,
    named,
    replaced,
    save_weights,
    write_manifest,
)

SMALL = Backbone(width=16, heads=2, blocks=4, dual=1, text_width=12, pooled_width=8, channels=4, patch=2, table=6, base=2)
VIDEO = Model(backbone=SMALL, video=Video(heads=2))
CODER = AutoencoderConfig((8, 16), 1, 4, 4)
CLIP = CLIPConfig(20, 16, 32, 12, 2, 2, 7)
T5_SMALL = T5Config(20, 16, 4, 32, 2, 4)
TO_Q = "transformer_blocks.1.attn.to_q.weight"
TABLE = "pos_embed.pos_embed"


def draw(network, config, dtype=np.float32):
    """A random checkpoint by tensor name."""
    rng = np.random.default_rng(0)
    wants = rules.wanted(network.layout(config), rules.shapes(network, config)).values()
    arrays = {w.name: rng.normal(size=w.shape).astype(dtype) for w in wants}
    if TABLE in arrays:  # whose columns and rows have the same sines in every checkpoint
        _, places, width = arrays[TABLE].shape
        arrays[TABLE] = table_of(rng.normal(size=(round(places**0.5), width // 2)).astype(dtype))
    return arrays


def put(folder, network, config, arrays):
    """A network's folder in a diffusers pipeline; returns the folder of the pipeline."""
    (folder / network.folder).mkdir(parents=True, exist_ok=True)
    written = network.write_config(config)
    (folder / network.folder / "config.json").write_text(json.dumps(written))
    save_file(arrays, folder / network.folder / network.file)
    return folder


@pytest.fixture(scope="module")
def arrays():
    return draw(SD35, SMALL)


@pytest.fixture
def source(tmp_path, arrays):
    return put(tmp_path / "source", SD35, SMALL, arrays)


@pytest.fixture
def edit(source, arrays):
    """Rewrites the source with some tensors changed; None removes one."""

    def write(changes):
        changed = {k: v for k, v in (arrays | changes).items() if v is not None}
        return put(source, SD35, SMALL, changed)

    return write


def convert(*arguments):
    return command.main([str(argument) for argument in arguments])


def fails(capsys, out, *arguments):
    """The one complaint of a conversion that must leave nothing behind."""
    before = set(out.parent.iterdir())
    assert convert(*arguments) == 2
    assert set(out.parent.iterdir()) == before
    return capsys.readouterr().err.split("convert: ")[-1]


# Round trips


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_backbone_round_trip_is_bit_exact(tmp_path, dtype):
    arrays = draw(SD35, SMALL, dtype)
    source = put(tmp_path / "source", SD35, SMALL, arrays)
    assert convert("sd35", source, tmp_path / "flax") == 0
    assert convert("sd35", tmp_path / "flax", tmp_path / "back", "--reverse") == 0
    back = load_file(tmp_path / "back/transformer" / SD35.file)
    assert back.keys() == arrays.keys()
    for name in arrays:
        assert back[name].dtype == dtype
        assert (back[name] == arrays[name]).all(), name
    assert json.loads((tmp_path / "back/transformer/config.json").read_text())["num_layers"] == 4


def test_video_model_round_trip_is_bit_exact(tmp_path):
    structs = rules.shapes(VIDEO_MODEL, VIDEO)
    rng = np.random.default_rng(0)
    params = {p: rng.normal(size=s.shape).astype(np.float32) for p, s in structs.items()}
    save_weights(tmp_path / "trained", "svdp", VIDEO, params, {"training": {"name": "x"}})
    assert convert("svdp", tmp_path / "trained", tmp_path / "torch", "--reverse") == 0
    new = load_file(tmp_path / "torch/svdp_video.safetensors")
    assert set(new) == {p for p in params if not p.startswith("image.")}
    assert convert("svdp", tmp_path / "torch", tmp_path / "again") == 0
    restored = named(nnx.state(load_network(tmp_path / "again")))
    assert about(tmp_path / "trained").items() <= about(tmp_path / "again").items()
    assert all((restored[p] == params[p]).all() for p in params)
    assert convert("sd35", tmp_path / "torch", tmp_path / "backbone") == 0


@pytest.mark.parametrize("network, config", [(VAE, CODER), (CLIP_L, CLIP), (T5, T5_SMALL)])
def test_other_networks_round_trip(tmp_path, network, config):
    arrays = draw(network, config)
    source = put(tmp_path / "source", network, config, arrays)
    row = networks.forward(source, tmp_path / "flax", network, None, False)
    back = networks.reverse(tmp_path / "flax", tmp_path / "back", network, None, False)
    assert row == back
    written = load_file(tmp_path / "back" / network.folder / network.file)
    assert all((written[name] == arrays[name]).all() for name in arrays)
    assert network.read_config({}, sources.find(tmp_path / "back", network).config) == config


def test_sharded_source_beside_stray_folders(tmp_path, source, arrays):
    folder = source / "transformer"
    (folder / SD35.file).unlink()
    (source / "transformer copy").mkdir()
    (source / "transformer copy" / SD35.file).write_bytes(b"stray")
    names, index = sorted(arrays), {}
    for i in range(3):
        part = {name: arrays[name] for name in names[i::3]}
        save_file(part, folder / f"part-{i}.safetensors")
        index |= dict.fromkeys(part, f"part-{i}.safetensors")
    (folder / f"{SD35.file}.index.json").write_text(json.dumps({"weight_map": index}))
    _, params = networks.read(source, SD35, None, False)
    assert params.checksum.hex() == whole(tmp_path, arrays).checksum.hex()
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(UserError, match="part-1.safetensors, which is absent"):
        networks.read(source, SD35, None, False)


def whole(tmp_path, arrays):
    return networks.read(put(tmp_path / "whole", SD35, SMALL, arrays), SD35, None, False)[1]


# What comes of it


def test_other_dtype(tmp_path, source, arrays):
    assert convert("sd35", source, tmp_path / "flax", "--dtype", "bfloat16") == 0
    kernel = load_network(tmp_path / "flax").plain.attn.to_q.kernel[0]
    assert (kernel == arrays[TO_Q].T.astype(ml_dtypes.bfloat16)).all()
    assert load_network(tmp_path / "flax", np.float32).proj_out.bias.dtype == np.float32


def test_restores_onto_a_mesh(tmp_path, source):
    networks.forward(source, tmp_path / "flax", SD35, None, False)
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("fsdp",))
    state = nnx.state(abstract_network(tmp_path / "flax"))
    sharding = NamedSharding(mesh, PartitionSpec(None, None, "fsdp"))
    path = "dual.attn.to_q.kernel"
    leaf = named(state)[path]
    leaves = named(state) | {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)}
    loaded = named(load_weights(tmp_path / "flax", replaced(state, leaves)))[path]
    assert loaded.sharding == sharding
    assert (loaded == load_network(tmp_path / "flax").dual.attn.to_q.kernel[...]).all()


def test_summary_tells_what_was_written(capsys, tmp_path, source, arrays):
    convert("sd35", source, tmp_path / "flax")
    head, line = capsys.readouterr().out.strip().splitlines()
    assert head.split() == ["network", "tensors", "parameters", "bytes", "dtype", "checksum"]
    repeated = arrays[TABLE].size - SMALL.table * SMALL.width // 2  # of the position table, one line is kept
    count = sum(x.size for x in arrays.values()) - repeated
    cells = line.replace(",", "").split()
    assert cells[:5] == ["transformer", str(len(arrays)), str(count), str(4 * count), "float32"]
    assert about(tmp_path / "flax")["checksum"] == cells[5]


# Bad input: one clear complaint, nothing written


def test_five_faults_are_listed_at_once(capsys, tmp_path, source, edit, arrays):
    block = "transformer_blocks.2"
    edit(
        {
            f"{block}.attn.to_q.weight": None,
            f"{block}.attn.to_qq.weight": arrays[TO_Q],
            f"{block}.attn2.to_q.weight": None,
            f"{block}.ff.net.2.bias": np.zeros(17, np.float32),
            "transformer_blocks.3.ff_context.net.2.bias": np.zeros(16, np.float32),
        }
    )
    complaint = fails(capsys, tmp_path / "flax", "sd35", source, tmp_path / "flax")
    for part in (
        "4 faults, nothing was written",
        f"unmapped source key: {block}.attn.to_qq.weight (nearest: {block}.attn.to_q.weight)",
        f"target never set: plain.attn.to_q.kernel[1] needs {block}.attn.to_q.weight",
        f"wrong shape: {block}.ff.net.2.bias is (17,), expected (16,) for plain.ff.linear_2.bias",
        "unexpected target: transformer_blocks.3.ff_context.net.2.bias would set",
    ):
        assert part in complaint


def test_target_set_twice(tmp_path, source):
    structs = rules.shapes(SD35, SMALL)
    there = tensors.read_header(source / "transformer" / SD35.file)
    twice = [t for t in there if t.name == "proj_out.bias"]
    with pytest.raises(UserError, match="set twice: proj_out.bias by proj_out.bias and proj_out.b"):
        rules.match(SD35.layout(SMALL), structs, there + twice)


def test_absent_block_and_absent_layout(edit, arrays):
    block = {name: None for name in arrays if name.startswith("transformer_blocks.2.")}
    with pytest.raises(UserError, match=r"target never set: plain.norm1.kernel\[1\]"):
        networks.read(edit(block), SD35, None, False)
    with pytest.raises(UserError, match="context_embedder.weight is missing"):
        networks.read(edit({"context_embedder.weight": None}), SD35, None, False)


def test_a_table_that_no_line_repeats_is_refused(capsys, tmp_path, edit, arrays):
    """One column of one row is another than in all other rows: the network could not make that again."""
    table = arrays[TABLE].copy()
    table[0, SMALL.table + 3, 0] += 0.1
    complaint = fails(capsys, tmp_path / "flax", "sd35", edit({TABLE: table}), tmp_path / "flax")
    assert f"{TABLE} does not hold the same sines for its columns and its rows" in complaint


def test_nonfinite_weight_is_named(capsys, tmp_path, edit, arrays):
    out = tmp_path / "flax"
    source = edit({TO_Q: np.where(arrays[TO_Q] > 1, np.float32(np.nan), arrays[TO_Q])})
    assert f"{TO_Q} holds NaN" in fails(capsys, out, "sd35", source, out)
    assert convert("sd35", source, out, "--allow-nonfinite") == 0
    with pytest.raises(UserError, match=f"{TO_Q} holds NaN or infinite values as float16"):
        networks.read(edit({TO_Q: arrays[TO_Q] * 1e6}), SD35, "float16", False)


def raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(start=0, end=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header, complaint",
    [
        ({"../../x": entry()}, "is refused"),
        ({"/etc/x": entry()}, "is refused"),
        ({"a": entry(0, 8)}, "do not fit its shape"),
        ({"a": entry(-4, 0)}, "impossible"),
        ({"a": entry(shape=(1 << 62, 1 << 62))}, "do not fit its shape"),
        ({"a": entry(), "b": entry(2, 6)}, "overlaps"),
        ({"a": entry(8, 12)}, "cut off"),
        ({"a": entry(4, 0, shape=(0,), dtype="F4")}, "impossible"),
        ({"a": {"dtype": "F32"}}, "broken safetensors header"),
        ({"a": 1}, "broken safetensors header"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 100_000, "broken safetensors header"),
        (b"\xff", "broken safetensors header"),
    ],
)
def test_hostile_headers(tmp_path, header, complaint):
    with pytest.raises(UserError, match=complaint):
        tensors.read_header(raw(tmp_path / "x.safetensors", header, b"\0" * 8))


def test_a_dtype_that_cannot_be_read_is_refused_where_it_is_needed(tmp_path, source):
    path = source / "transformer" / SD35.file
    length = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + length])
    header["text_encoders.t5xxl.transformer.shared.weight"] = header[TO_Q] | {"dtype": "F4"}
    last = max(e["data_offsets"][1] for name, e in header.items() if name != "__metadata__")
    header["text_encoders.t5xxl.transformer.shared.weight"]["data_offsets"] = [last, last + 4]
    raw(path, header, path.read_bytes()[8 + length :] + b"1234")
    prefixed = [t for t in tensors.read_header(path) if t.dtype == "F4"]
    with pytest.raises(UserError, match="as F4; only F32"):
        prefixed[0].read()
    header[TO_Q]["dtype"] = "F4"
    raw(path, header, path.read_bytes()[-last - 4 :])
    with pytest.raises(UserError, match=f"unread dtype: {TO_Q} is F4; take a file in fp16"):
        networks.read(source, SD35, None, False)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_truncated_file(capsys, tmp_path, source, length):
    file = source / "transformer" / SD35.file
    file.write_bytes(file.read_bytes()[:length])
    out = tmp_path / "flax"
    assert "cut off" in fails(capsys, out, "sd35", source, out)


def test_index_cannot_leave_its_folder(source):
    folder = source / "transformer"
    (folder / SD35.file).rename(folder.parent / "x.safetensors")
    index = {"weight_map": {"a": "../x.safetensors"}}
    (folder / f"{SD35.file}.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        networks.read(source, SD35, None, False)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.ckpt", "model.bin"])
def test_pickles_are_never_executed(capsys, tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    for source in (tmp_path / name, tmp_path):
        complaint = fails(capsys, tmp_path / "flax", "sd35", source, tmp_path / "flax")
        assert "is no PyTorch file" in complaint


def test_source_that_is_not_there(capsys, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub", reason="needed to ask the hub")

    def offline(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    out = tmp_path / "flax"
    assert "does not exist" in fails(capsys, out, "sd35", tmp_path / "nowhere", out)
    assert "the hub did not give it" in fails(capsys, out, "sd35", "someone/something", out)
    (tmp_path / "empty").mkdir()
    assert "holds neither" in fails(capsys, out, "sd35", tmp_path / "empty", out)


def test_full_disk_leaves_nothing(capsys, tmp_path, source, monkeypatch):
    def full(folder, *_):
        folder.mkdir()
        (folder / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    out = tmp_path / "flax"
    with monkeypatch.context() as patch:
        patch.setattr(networks, "save_weights", full)
        assert "is full" in fails(capsys, out, "sd35", source, out)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
        assert "bytes are free" in fails(capsys, out, "sd35", source, out)


def test_interruption_leaves_nothing(tmp_path, source, monkeypatch):
    def interrupt(folder, *_):
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(networks, "save_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert("sd35", source, tmp_path / "flax")
    assert list(tmp_path.iterdir()) == [source]


def test_output_is_never_overwritten(capsys, tmp_path, source):
    (tmp_path / "flax").mkdir()
    assert "exists already" in fails(capsys, tmp_path / "flax", "sd35", source, tmp_path / "flax")


def test_damage_is_found_on_loading(tmp_path, source):
    networks.forward(source, tmp_path / "flax", SD35, None, False)
    files = [p for p in (tmp_path / "flax/params").rglob("*") if p.is_file()]
    data = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match=f"{data.name} is damaged"):
        load_network(tmp_path / "flax")
    with pytest.raises(UserError, match="no converted weights"):
        load_network(tmp_path)


def test_weights_of_another_network_do_not_fit(capsys, tmp_path, source):
    networks.forward(source, tmp_path / "flax", SD35, None, False)
    facts = about(tmp_path / "flax")
    facts["config"]["blocks"] = 5
    (tmp_path / "flax/config.json").write_text(json.dumps(facts))
    (tmp_path / "flax/manifest.json").unlink()
    write_manifest(tmp_path / "flax")
    with pytest.raises(UserError, match="does not fit this network"):
        load_network(tmp_path / "flax")
    out = tmp_path / "back"
    complaint = fails(capsys, out, "vae", tmp_path / "flax", out, "--reverse")
    assert "holds 'sd35', not 'vae'" in complaint


def test_needs_no_pytorch(tmp_path, source):
    code = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("torch", "diffusers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from convert.__main__ import main
code = main(["sd35", {str(source)!r}, {str(tmp_path / "flax")!r}])
sys.exit(code or "torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    assert about(tmp_path / "flax")["network"] == "sd35"
