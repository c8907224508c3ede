"""Pickles of weights, read without executing anything.

A pickle is a program. Here its operations are looked up in a table of those that build
dictionaries, tuples and numbers, and the names that it calls in a table of those that describe
tensors, each of which is a function of this file. Whatever is in neither is refused, and no object
of the file's choosing ever comes to be: a class of TorchScript becomes a dictionary, an array of
NumPy the record of what it would hold.
"""

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

MOST_AXES = 8
BYTES = "torch.storage UntypedStorage"  # whose tensors tell their own dtype
STORAGES = {
    "torch FloatStorage": np.float32,
    "torch DoubleStorage": np.float64,
    "torch HalfStorage": np.float16,
    "torch BFloat16Storage": ml_dtypes.bfloat16,
    "torch LongStorage": np.int64,
    "torch IntStorage": np.int32,
    "torch ShortStorage": np.int16,
    "torch CharStorage": np.int8,
    "torch ByteStorage": np.uint8,
    "torch BoolStorage": np.bool_,
    BYTES: np.uint8,
}
# Dtypes that came after the storages with a dtype.
DTYPES = {
    "torch float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "torch float8_e5m2": ml_dtypes.float8_e5m2,
    "torch uint16": np.uint16,
    "torch uint32": np.uint32,
    "torch uint64": np.uint64,
}
ARRAYS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}  # NumPy's plain numbers


class Refused(Exception):
    """What of a file is not accepted, to follow the file's name."""


class Storage(NamedTuple):
    """A run of numbers, by the name that it has in the file; `start` of them lie before it there."""

    key: str
    dtype: np.dtype
    count: int
    start: int = 0


class View(NamedTuple):
    """Elements of a storage: from which on, how many along each axis, how far apart."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Module(dict):
    """An object of TorchScript: its attributes by name."""


@dataclass
class Dtype:
    """A dtype of NumPy, whose byte order comes after its code."""

    code: str


@dataclass
class Array:
    """An array of NumPy, in the order of memory that `columns` says."""

    dtype: np.dtype | None = None
    shape: tuple[int, ...] = ()
    columns: bool = False
    data: bytes = b""

    def read(self) -> np.ndarray:
        return np.frombuffer(self.data, self.dtype).reshape(self.shape, order="F" if self.columns else "C")


def run(program: BinaryIO, storages: dict[str, Storage]) -> Any:
    """The value that the pickle in a stream describes. storages: gets those that it refers to."""
    stack, memo = [], {}
    for operation, argument, _ in pickletools.genops(program):
        name = operation.name
        if name == "STOP":
            return stack.pop()
        if name in VALUES:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name]())
        elif name in STEPS:
            STEPS[name](stack, argument)
        elif name in PUT:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in GET:
            stack.append(memo[argument])
        elif name == "BINPERSID":
            found = storage(*stack.pop())
            storages[found.key] = found._replace(start=0)
            stack.append(found)
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"has the pickle operation {name}, which no weights need")


# What a pickle may call


def storage(what: str, kind: str, key: str, _device: str, count: int, view: tuple | None = None) -> Storage:
    if text(what) != "storage" or text(kind) not in STORAGES:
        raise Refused("refers to something that is no storage of numbers")
    whole = Storage(text(key), np.dtype(STORAGES[kind]), count)
    return whole if view is None else part(whole, *view)


def part(whole: Storage, _key: str, start: int, count: int) -> Storage:
    """A storage within another, as files of before PyTorch 0.4 have them."""
    if not sizes(whole.count, start, count) or start + count > whole.count:
        raise Refused("has a storage that leaves the one it is part of")
    return whole._replace(count=count, start=start)


def sizes(*numbers: Any) -> bool:
    return all(type(n) is int and n >= 0 for n in numbers)


def rebuild(storage: Storage, offset: int, shape: tuple, strides: tuple, *_) -> View:
    """As torch._utils._rebuild_tensor_v2, with every element seen to lie within the storage."""
    if not sizes(storage.count, offset, *shape, *strides) or len(shape) != len(strides):
        raise Refused("has a tensor with a place, shape or strides that are no sizes")
    view = View(storage, offset, tuple(shape), tuple(strides))
    # One with more elements than the storage would repeat them, and could fill any memory.
    if max(math.prod(shape), offset + span(view)) > storage.count or len(shape) > MOST_AXES:
        raise Refused(f"has a tensor of shape {shape} and strides {strides} that leaves its storage")
    return view


def rebuild_typed(storage: Storage, offset: int, shape: tuple, strides: tuple, _grad, _hooks, dtype: str, *_) -> View:
    """As torch._utils._rebuild_tensor_v3: the storage is bytes, and the tensor tells their dtype."""
    if text(dtype) not in DTYPES or storage.dtype != np.uint8:
        raise Refused("has a tensor of a dtype that is none of weights")
    kind = np.dtype(DTYPES[dtype])
    return rebuild(storage._replace(dtype=kind, count=storage.count // kind.itemsize), offset, shape, strides)


def span(view: View) -> int:
    """From its first element to its last, both included."""
    steps = sum((size - 1) * step for size, step in zip(view.shape, view.strides))
    return steps + 1 if math.prod(view.shape) else 0


def ordered(pairs: list | tuple = ()) -> dict:
    """As OrderedDict of a list of pairs, which is how Python 2 writes one."""
    if type(pairs) not in (list, tuple) or not all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        raise Refused("has an OrderedDict of what are no pairs")
    result = {}
    for pair in pairs:
        put(result, tuple(pair))
    return result


def array(kind: str, _shape: tuple, _code: bytes) -> Array:
    """As numpy's _reconstruct: an empty array, which a state follows."""
    if text(kind) != "numpy ndarray":
        raise Refused("has an array of a kind of its own")
    return Array()


def dtype(code: str, *_) -> Dtype:
    if text(code) not in ARRAYS:
        raise Refused(f"has an array of {code}, which are no plain numbers")
    return Dtype(code)


CALLS: dict[str, Callable] = {
    "collections OrderedDict": ordered,
    "torch._utils _rebuild_tensor": rebuild,
    "torch._utils _rebuild_tensor_v2": rebuild,
    "torch._utils _rebuild_tensor_v3": rebuild_typed,
    "torch._utils _rebuild_parameter": lambda view, *_: view,
    "numpy.core.multiarray _reconstruct": array,
    "numpy._core.multiarray _reconstruct": array,
    "numpy dtype": dtype,
    # Attributes of TorchScript that hold no weights.
    "torch.jit._pickle build_intlist": lambda *_: None,
    "torch.jit._pickle build_doublelist": lambda *_: None,
    "torch.jit._pickle build_boollist": lambda *_: None,
    "torch.jit._pickle build_tensorlist": lambda *_: None,
    "torch.jit._pickle restore_type_tag": lambda value, *_: value,
    "torch device": lambda *_: None,
}
NAMES = {*CALLS, *STORAGES, *DTYPES, "numpy ndarray"}
SCRIPT = "__torch__"  # the module of all classes of TorchScript
MARK = object()


def text(value: Any) -> str:
    # Also keeps nested tuples, whose hash and text can take forever, from being looked up.
    if type(value) is not str:
        raise Refused("names something by what is no text")
    return value


# Its operations


def name(stack: list, wanted: str) -> None:
    if wanted not in NAMES and wanted.partition(" ")[0].partition(".")[0] != SCRIPT:
        raise Refused(
            f"would call {wanted.replace(' ', '.')!r}, which is no part of a tensor; "
            "take a file of weights alone, such as a state_dict or .safetensors"
        )
    stack.append(wanted)


def call(stack: list, _) -> None:
    arguments, function = stack.pop(), text(stack.pop())
    if function not in CALLS:
        raise Refused(f"would call {function.replace(' ', '.')!r}, which is no part of a tensor")
    stack.append(CALLS[function](*arguments))


def new(stack: list, _) -> None:
    """An object of TorchScript."""
    arguments, kind = stack.pop(), text(stack.pop())
    if not kind.startswith(SCRIPT) or arguments != ():
        raise Refused(f"would make an object of {kind.replace(' ', '.')!r}, which is no part of a tensor")
    stack.append(Module())


def build(stack: list, _) -> None:
    """Gives the object below it a state. That of a dictionary, such as a state dict's _metadata, is no weight."""
    state, thing = stack.pop(), stack[-1]
    if type(thing) is Module:
        if type(state) is not dict:
            raise Refused("has an object of TorchScript without attributes")
        thing.update(state)
    elif type(thing) is Dtype:
        if state[1] not in ("<", "|"):
            raise Refused("holds big-endian numbers")
    elif type(thing) is Array:
        fill(thing, *state)


def fill(thing: Array, _version: int, shape: tuple, kind: Dtype, columns: bool, data: bytes) -> None:
    if type(kind) is not Dtype or type(data) is not bytes or not sizes(*shape) or len(shape) > MOST_AXES:
        raise Refused("has an array whose parts are no shape, dtype and bytes")
    thing.dtype, thing.shape, thing.columns, thing.data = np.dtype(kind.code), tuple(shape), bool(columns), data
    if math.prod(shape) * thing.dtype.itemsize != len(data):
        raise Refused(f"has an array of shape {shape} whose bytes do not fit it")


def taken(stack: list, count: int) -> tuple:
    items = tuple(stack[len(stack) - count :])
    del stack[len(stack) - count :]
    return items


def since_mark(stack: list) -> tuple:
    items = []
    while (item := stack.pop()) is not MARK:  # an IndexError where there is none
        items.append(item)
    return tuple(reversed(items))


def put(target: dict, items: tuple) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int):
            raise Refused("has a dictionary with keys that are no names")
        target[key] = value


def extend(stack: list, items: tuple) -> None:
    stack[-1].extend(items)


def put_on(stack: list, items: tuple) -> None:
    put(stack[-1], items)


VALUES = {
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
}  # fmt: skip
CONSTANTS = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "MARK": lambda: MARK,
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple,
}  # fmt: skip
PUT, GET = {"BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"BINGET", "LONG_BINGET"}
STEPS: dict[str, Callable[[list, Any], None]] = {
    "GLOBAL": name,
    "STACK_GLOBAL": lambda stack, _: name(stack, " ".join(map(text, taken(stack, 2)))),
    "REDUCE": call,
    "NEWOBJ": new,
    "BUILD": build,
    "TUPLE": lambda stack, _: stack.append(since_mark(stack)),
    "TUPLE1": lambda stack, _: stack.append(taken(stack, 1)),
    "TUPLE2": lambda stack, _: stack.append(taken(stack, 2)),
    "TUPLE3": lambda stack, _: stack.append(taken(stack, 3)),
    "APPEND": lambda stack, _: stack[-2].append(stack.pop()),
    "APPENDS": lambda stack, _: extend(stack, since_mark(stack)),
    "SETITEM": lambda stack, _: put_on(stack, taken(stack, 2)),
    "SETITEMS": lambda stack, _: put_on(stack, since_mark(stack)),
}
