"""PyTorch's files without PyTorch: what it writes is read, and everything else is refused."""

import io
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from convert import pickles
from svdp_jax.errors import UserError


class Global:
    """Pickled as a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def dumped(value, protocol=2, references=()):
    """A pickle in which objects of `references` are said to lie outside it."""
    outside = {id(thing): reference for thing, reference in references}

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return outside.get(id(thing))

    buffer = io.BytesIO()
    Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def archive(path, program, storages=None, compress=zipfile.ZIP_STORED, root="archive"):
    with zipfile.ZipFile(path, "w", compress) as file:
        file.writestr(f"{root}/data.pkl", program)
        for key, data in (storages or {}).items():
            file.writestr(f"{root}/data/{key}", data)
    return path


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch writes the files")


def saved(torch, path, value, **options):
    torch.save(value, path, **options)
    return {t.name: t for t in pickles.read(path)}


# What PyTorch writes


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool"])
def test_every_dtype(torch, tmp_path, dtype, old):
    value = (10 * torch.randn(3, 4)).to(getattr(torch, dtype))
    new = not old
    found = saved(torch, tmp_path / "x.pth", {"a.weight": value}, _use_new_zipfile_serialization=new)
    array = found["a.weight"].read()
    assert array.dtype.name == dtype and found["a.weight"].shape == array.shape == (3, 4)
    np.testing.assert_array_equal(array.astype(np.float64), value.double().numpy())


@pytest.mark.parametrize("old", [False, True])
def test_module_state_and_nested_dictionaries(torch, tmp_path, old):
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    value = {"net": module.state_dict(), "more": {"raw": module[0].weight}, "epoch": 3, "names": ["a"]}
    new = not old
    found = saved(torch, tmp_path / "x.pth", value, _use_new_zipfile_serialization=new)
    expected = {f"net.{k}": v for k, v in module.state_dict().items()} | {"more.raw": module[0].weight}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name].read(), tensor.detach().numpy())


def test_views_and_shared_storages(torch, tmp_path):
    base = torch.arange(60.0).reshape(3, 4, 5)
    views = {
        "whole": base,
        "turned": base.permute(2, 0, 1),
        "rows": base[1:, 2],
        "stepped": base[:, ::2, 1::3],
        "number": base[1, 1, 1],
        "empty": base[:0],
        "column": base[:, :, 4],
        "flat": base.reshape(-1)[7:20],
        "last": base.to(memory_format=torch.contiguous_format)[2:],
    }
    found = saved(torch, tmp_path / "x.pth", views)
    assert {t.file for t in found.values() if isinstance(t, pickles.Tensor)} == {tmp_path / "x.pth"}
    for name, view in views.items():
        assert found[name].shape == tuple(view.shape)
        np.testing.assert_array_equal(found[name].read(), view.numpy(), err_msg=name)


def test_repeating_view_is_refused(torch, tmp_path):
    with pytest.raises(UserError, match="leaves its storage"):
        saved(torch, tmp_path / "x.pth", {"a": torch.ones(1).expand(1 << 40)})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_newer_pickle_protocols(torch, tmp_path, protocol):
    found = saved(torch, tmp_path / "x.pth", OrderedDict(a=torch.ones(2)), pickle_protocol=protocol)
    assert (found["a"].read() == 1).all()


# What it does not


def hostile(marker):
    import os

    return {"a": Global(os.system, f"touch {marker}"), "b": Global(eval, f"open({str(marker)!r}, 'w')"), "c": Global(Path, "x")}


@pytest.mark.parametrize("key", ["a", "b", "c"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("old", [False, True])
def test_nothing_is_executed(tmp_path, key, protocol, old):
    marker = tmp_path / "marker"
    value = {key: hostile(marker)[key]}
    path = tmp_path / "x.pth"
    if old:
        parts = (pickles.MAGIC, 1001, {}, value, [])
        path.write_bytes(b"".join(dumped(part, 2 if part is not value else protocol) for part in parts))
    else:
        archive(path, dumped(value, protocol))
    with pytest.raises(UserError, match="would call '.*', which is no part|operation .*, which no weights need"):
        pickles.read(path)
    assert not marker.exists()
    pickle.loads(dumped(hostile(marker)["a"]))  # it would have been, by pickle itself
    assert marker.exists()


class Stand:
    """Stands for a storage in a pickle."""


def described(path, offset=0, shape=(2,), strides=(1,), count=4, kind="FloatStorage", key="0", more=None):
    """A file with one tensor so described, and a storage of four numbers."""
    torch = pytest.importorskip("torch", reason="the names in the pickle are PyTorch's")
    stand = Stand()
    reference = ("storage", getattr(torch, kind), key, "cpu", count)
    tensor = Global(torch._utils._rebuild_tensor_v2, stand, offset, shape, strides, False, OrderedDict())
    program = dumped({"a": tensor} | (more or {}), references=[(stand, reference)])
    return archive(path, program, {"0": np.arange(4, dtype=np.float32).tobytes()})


def test_a_description_by_hand_is_read(tmp_path):
    found = pickles.read(described(tmp_path / "x.pth", offset=1, shape=(1, 3)[1:]))
    np.testing.assert_array_equal(found[0].read(), [1, 2, 3])


@pytest.mark.parametrize(
    "what, complaint",
    [
        ({"offset": 3}, "leaves its storage"),
        ({"offset": -1}, "no sizes"),
        ({"shape": (5,)}, "leaves its storage"),
        ({"shape": (1 << 70,)}, "leaves its storage"),
        ({"shape": (1 << 40,), "strides": (0,)}, "leaves its storage"),
        ({"shape": (2, 2), "strides": (3, 1)}, "leaves its storage"),
        ({"shape": (2,), "strides": (-1,)}, "no sizes"),
        ({"shape": (2,), "strides": (1, 1)}, "no sizes"),
        ({"shape": (2.0,)}, "no sizes"),
        ({"shape": (1,) * 60, "strides": (1,) * 60}, "leaves its storage"),
        ({"count": 5, "shape": (5,)}, "it is smaller"),
        ({"kind": "DoubleStorage"}, "it is smaller"),
        ({"kind": "ComplexFloatStorage"}, "would call 'torch.ComplexFloatStorage'"),
        ({"key": "../../etc/passwd"}, "broken pickle"),
        ({"key": ("0",)}, "no text"),
        ({"more": {"../x": OrderedDict()}}, None),
        ({"more": {("x",): 1}}, "keys that are no names"),
    ],
)
def test_impossible_tensors(tmp_path, what, complaint):
    path = described(tmp_path / "x.pth", **what)
    if complaint is None:
        assert [t.name for t in pickles.read(path)] == ["a"]
        return
    with pytest.raises(UserError, match=complaint):
        pickles.read(path)


def test_names_that_lead_elsewhere(torch, tmp_path):
    for name in ("../../x", "/etc/x", "a..b"):
        with pytest.raises(UserError, match="as no network does"):
            saved(torch, tmp_path / "x.pth", {name: torch.ones(1)})


def test_dictionary_within_itself(tmp_path):
    loop = {}
    loop["a"] = loop
    with pytest.raises(UserError, match="in two places"):
        pickles.read(archive(tmp_path / "x.pth", dumped(loop)))


def test_growing_tuples_take_no_time(tmp_path):
    grown = ()
    for _ in range(200):
        grown = (grown, grown)
    assert pickles.read(archive(tmp_path / "x.pth", dumped({"a": grown}))) == []
    with pytest.raises(UserError, match="no names"):
        pickles.read(archive(tmp_path / "y.pth", b"\x80\x02}" + dumped(grown)[2:-1] + b"K\x01s."))


@pytest.mark.parametrize(
    "program",
    [b"", b"\x80\x02", b".", b"\x80\x02}s.", b"\x80\x02K\x01u.", b"\x80\x02h\x07.", b"\xff", b"\x80\x02X\xff\xff\xff\x7fa."],
)
def test_broken_pickles(tmp_path, program):
    with pytest.raises(UserError, match="has a broken pickle"):
        pickles.read(archive(tmp_path / "x.pth", program))


def test_compressed_entries_are_refused_unread(tmp_path):
    path = archive(tmp_path / "x.pth", dumped({}), {"0": bytes(1 << 26)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 18
    with pytest.raises(UserError, match="compressed"):
        pickles.read(path)


def test_entry_larger_than_the_file(tmp_path):
    path = archive(tmp_path / "x.pth", dumped({}), {"0": bytes(8)})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content)
    with pytest.raises(UserError, match="larger than the file"):
        pickles.read(path)


@pytest.mark.parametrize("name", ["archive/../../x", "/etc/x", "other/x"])
def test_entries_that_lead_elsewhere(tmp_path, name):
    path = archive(tmp_path / "x.pth", dumped({}))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, b"x")
    with pytest.raises(UserError, match="names the entry"):
        pickles.read(path)


def test_entry_that_is_there_twice(tmp_path):
    path = archive(tmp_path / "x.pth", dumped({}))
    with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr("archive/data.pkl", dumped({}))
    with pytest.raises(UserError, match="names the entry"):
        pickles.read(path)


@pytest.mark.parametrize("old", [False, True])
def test_files_cut_off_and_flipped_bits(torch, tmp_path, old):
    path = tmp_path / "x.pth"
    new = not old
    saved(torch, path, {"a": torch.arange(1000.0)}, _use_new_zipfile_serialization=new)
    content = path.read_bytes()
    for end in (0, 1, 5, 100, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:end])
        with pytest.raises(UserError, match="broken|no PyTorch file"):
            pickles.read(path)
    if new:
        path.write_bytes(content.replace(struct.pack("<f", 500), struct.pack("<f", 501), 1))
        with pytest.raises(UserError, match="checksum of .*data/0 is wrong"):
            pickles.read(path)


def test_big_endian_and_other_archives(tmp_path):
    path = archive(tmp_path / "x.pth", dumped({}))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("archive/byteorder", "big")
    with pytest.raises(UserError, match="big-endian"):
        pickles.read(path)
    with zipfile.ZipFile(tmp_path / "y.pth", "w") as file:
        file.writestr("folder/readme.txt", "not weights")
    with pytest.raises(UserError, match="without a data.pkl"):
        pickles.read(tmp_path / "y.pth")
