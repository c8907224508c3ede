"""PyTorch's files without PyTorch: what it writes is read, and everything else is refused."""

import io
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from convert import pickles, unpickle
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


# Each allowance has a hostile twin


def program(*parts, end=b"."):
    """A pickle of protocol 2 put together by hand."""
    return b"\x80\x02" + b"".join(parts) + end


def word(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def name(path):
    return b"c" + "\n".join(path.split(" ")).encode() + b"\n"


def state(shape=b"K\x02\x85", code=b"f4", order=b"<", data=bytes(8), kind="numpy ndarray", built=True):
    """A dictionary with one array of NumPy."""
    dtype = (
        name("numpy dtype")
        + word(code.decode())
        + b"\x89\x88\x87R(K\x03"
        + word(order.decode())
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    made = name("numpy.core.multiarray _reconstruct") + name(kind) + b"K\x00\x85C\x01b\x87R"
    filled = b"(K\x01" + shape + dtype + b"\x89C" + struct.pack("<B", len(data)) + data + b"tb"
    return b"}" + word("a") + made + (filled if built else b"") + b"s"


def test_an_array_by_hand_is_read(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(program(state(data=struct.pack("<ff", 1, 2))))
    (found,) = pickles.read(tmp_path / "x.ckpt")
    np.testing.assert_array_equal(found.read(), np.float32([1, 2]))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_as_numpy_pickles_them(tmp_path, order, protocol):
    arrays = {
        "a": np.asarray(np.arange(6, dtype=np.float32).reshape(2, 3), order=order),
        "b/c": {"d": np.ones((2, 2), np.float16)},
    }
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps(arrays, protocol))
    found = {t.name: t.read() for t in pickles.read(tmp_path / "x.ckpt")}
    np.testing.assert_array_equal(found["a"], arrays["a"])
    np.testing.assert_array_equal(found["b.c.d"], 1)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (state(code=b"O8"), "no plain numbers"),
        (state(code=b"V8"), "no plain numbers"),
        (state(order=b">"), "big-endian"),
        (state(shape=b"K\x03\x85"), "do not fit"),
        (state(shape=b"J\xff\xff\xff\xff\x85"), "no shape, dtype and bytes"),
        (state(kind="numpy matrix"), "would call 'numpy.matrix'"),
        (state(kind="os system"), "would call 'os.system'"),
        (state(built=False), "without a state"),
        (b"}" + word("a") + name("numpy.core.multiarray scalar") + b"s", "would call 'numpy.core.multiarray.scalar'"),
        (b"K\x05", "a pickle of something else"),
    ],
)
def test_arrays_that_are_more_than_numbers(tmp_path, content, complaint):
    (tmp_path / "x.ckpt").write_bytes(program(content))
    with pytest.raises(UserError, match=complaint):
        pickles.read(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (name("collections OrderedDict") + b"](](K\x01ee\x85R", "no pairs"),
        (name("collections OrderedDict") + word("ab") + b"\x85R", "no pairs"),
        (name("collections OrderedDict") + b"](](K\x01\x85K\x02ee\x85R", "no names"),
        (
            name("collections OrderedDict") + b"](](" + word("a") + name("os system") + word("true") + b"\x85Ree\x85R",
            "would call 'os.system'",
        ),
        (name("torch._utils _rebuild_tensor_v3") + name("torch complex64"), "would call 'torch.complex64'"),
        (name("os system") + b")\x81", "would call 'os.system'"),
        (name("__torch__x Net") + b")\x81", "would call '__torch__x.Net'"),
        (name("collections OrderedDict") + b")\x81", "would make an object of 'collections.OrderedDict'"),
        (name("__torch__.m Net") + b"K\x01\x85\x81", "would make an object of '__torch__.m.Net'"),
        (name("__torch__.m Net") + b")R", "would call '__torch__.m.Net'"),
        (name("__torch__.m Net") + b")\x81K\x01b", "without attributes"),
        (name("torch FloatStorage") + b")R", "would call 'torch.FloatStorage'"),
        (name("numpy ndarray") + b")R", "would call 'numpy.ndarray'"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_what_looks_like_an_allowance(tmp_path, content, complaint, old):
    path = tmp_path / "x.pth"
    if old:
        path.write_bytes(b"".join([*(dumped(part) for part in (pickles.MAGIC, 1001, {})), program(content), dumped([])]))
    else:
        archive(path, program(content))
    with pytest.raises(UserError, match=complaint):
        pickles.read(path)


@pytest.mark.parametrize("call", unpickle.CALLS)
def test_no_call_makes_its_arguments_run(tmp_path, call):
    marker = tmp_path / "marker"
    argument = name("os system") + word(f"touch {marker}") + b"\x85R"
    with pytest.raises(UserError, match="would call 'os.system'"):
        pickles.read(archive(tmp_path / "x.pth", program(name(call), argument, b"\x85R")))
    assert not marker.exists()


def referred(path, function, arguments, reference):
    """A file of one tensor that `function` makes of a storage and arguments."""
    stand = Stand()
    tail = dumped({"a": Global(function, stand, *arguments)}, references=[(stand, reference)])
    return archive(path, tail, {"0": np.arange(4, dtype=np.float32).tobytes()})


@pytest.mark.parametrize(
    ("view", "complaint"),
    [((1, 2), None), ((3, 2), "leaves the one"), ((-1, 2), "leaves the one"), ((0, 1 << 62), "leaves the one")],
)
def test_a_storage_within_another(torch, tmp_path, view, complaint):
    """As files of before PyTorch 0.4 have them."""
    reference = ("storage", torch.FloatStorage, "0", "cpu", 4, ("v", *view))
    path = referred(tmp_path / "x.pth", torch._utils._rebuild_tensor, (0, (2,), (1,)), reference)
    if complaint is None:
        np.testing.assert_array_equal(pickles.read(path)[0].read(), [1, 2])
        return
    with pytest.raises(UserError, match=complaint):
        pickles.read(path)


@pytest.mark.parametrize("arguments", [(3, (2,), (1,)), (0, (5,), (1,)), (-1, (1,), (1,)), (0, (2,), (-1,))])
def test_a_tensor_of_the_first_version_stays_in_its_storage(torch, tmp_path, arguments):
    reference = ("storage", torch.FloatStorage, "0", "cpu", 4)
    with pytest.raises(UserError, match="leaves its storage|no sizes"):
        pickles.read(referred(tmp_path / "x.pth", torch._utils._rebuild_tensor, arguments, reference))


@pytest.mark.parametrize(
    ("kind", "arguments", "complaint"),
    [
        ("UntypedStorage", (0, (16,), (1,)), None),
        ("UntypedStorage", (0, (17,), (1,)), "leaves its storage"),
        ("FloatStorage", (0, (2,), (1,)), "none of weights"),
    ],
)
def test_float8(torch, tmp_path, kind, arguments, complaint):
    storage = getattr(torch, kind, None) or getattr(torch.storage, kind)
    reference = ("storage", storage, "0", "cpu", 16)
    more = (*arguments, False, OrderedDict(), torch.float8_e4m3fn)
    path = referred(tmp_path / "x.pth", torch._utils._rebuild_tensor_v3, more, reference)
    if complaint is None:
        assert pickles.read(path)[0].dtype.name == "float8_e4m3fn"
        return
    with pytest.raises(UserError, match=complaint):
        pickles.read(path)


def test_the_code_of_torchscript_is_not_looked_at(tmp_path):
    path = archive(tmp_path / "x.pt", dumped({}))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/code/__torch__.py", bytes(1 << 26))
    content = bytearray(path.read_bytes())
    at = content.index(b"archive/code/__torch__.py") + len("archive/code/__torch__.py")
    content[at : at + 100] = bytes(100)  # it could not even be unpacked
    path.write_bytes(content)
    assert pickles.read(path) == []


def test_what_a_file_is_and_which_to_take(torch, tmp_path):
    module = torch.nn.Linear(2, 2)
    torch.save(module, tmp_path / "whole.pth")
    with pytest.raises(UserError, match="take a file of weights alone, such as a state_dict"):
        pickles.read(tmp_path / "whole.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.freeze(torch.jit.script(module.eval())).save(tmp_path / "frozen.pt")
    with pytest.raises(UserError, match="frozen TorchScript, whose weights have no names; take"):
        pickles.read(tmp_path / "frozen.pt")
    with tarfile.open(tmp_path / "x.ckpt", "w:gz") as file:
        file.add(tmp_path / "whole.pth", "whole.pth")
    with pytest.raises(UserError, match="it is packed, so unpack it"):
        pickles.read(tmp_path / "x.ckpt")
