"""Adapters: folded into their base, and low-rank parts of the image model under the names of diffusers and PEFT.

A folder of low-rank parts for them holds the same tensors twice, as `adapter_model.safetensors` with
`adapter_config.json`, which PEFT reads, and as `pytorch_lora_weights.safetensors`, which diffusers does.
"""

import json
import re
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np

from convert import tensors
from convert.rules import Layout, Output, source_of, target_of
from convert.sd35 import layout
from svdp_jax import config as configs
from svdp_jax.errors import UserError
from svdp_jax.files import MANIFEST, hash_of
from svdp_jax.models import learned
from svdp_jax.values.declared import build
from svdp_jax.weights import adapter, checkpoint

PEFT, PEFT_CONFIG, DIFFUSERS = "adapter_model.safetensors", "adapter_config.json", "pytorch_lora_weights.safetensors"
PREFIXES = {PEFT: "base_model.model.", DIFFUSERS: "transformer."}
KERNEL = "o i -> i o"  # the only weights that low-rank parts stand beside
A, B = learned.PARTS


def fold(src: Path, out: Path, base: Path | None, dtype: str | None) -> str:
    """Writes the network of an adapter's folder as one that needs no base. What was added to is float32, or all is `dtype`."""
    folder = checkpoint.model_folder(src)
    if not adapter.of(folder):
        raise UserError(f"{folder} is no adapter: it is whole as it is.")
    _, _, arrays = adapter.load_arrays(folder, base)
    whole = learned.folded({name: np.asarray(array) for name, array in arrays.items()})
    whole = {name: array.astype(dtype) if dtype else array for name, array in whole.items()}
    facts = {key: value for key, value in checkpoint.about(folder).items() if key not in ("network", "config", "adapter")}
    if "training" in facts:
        facts["training"] = facts["training"] | {"learn": "all"}
    about = checkpoint.about(folder)
    config = build(checkpoint.NETWORKS[about["network"]][0], about["config"], f"{folder}/config.json")
    checkpoint.save_weights(out, about["network"], config, whole, facts)
    return f"{len(arrays) - len(whole)} parts were folded into {out}, which needs no base."


# --- low-rank parts in


def read(src: Path, out: Path, base: Path | None) -> str:
    """Writes low-rank parts by PEFT or diffusers, a folder or a file, as an adapter on the image model `base`."""
    if base is None:
        raise UserError(
            "low-rank parts are nothing without what they stand beside; name the converted image model with --base DIR."
        )
    about = checkpoint.about(base)
    if about["network"] != "sd35" or adapter.of(base):
        raise UserError(f"{base} is no converted image model; make one with `python -m convert sd35`.")
    config = build(configs.Backbone, about["config"], f"{base}/config.json")
    parts = gathered(src, layout(config))
    arrays = stacked(parts, checkpoint.stored_arrays(base / "params"))
    layers = {name.rpartition(".")[0]: array.shape[-1] for name, array in arrays.items() if name.endswith(A)}
    rows = [f"{re.escape(layer)}\\.kernel=lora:{rank}" for layer, rank in layers.items()]
    beneath = adapter.Adapter(str(base.resolve()), hash_of(base / MANIFEST), " ".join((*rows, ".*=frozen")), adapter.AS_STORED)
    checkpoint.save_weights(out, "sd35", config, arrays, {"adapter": beneath._asdict()})
    return f"{len(parts)} low-rank parts beside {len(layers)} stacks of layers are in {out}, an adapter on {base}."


def found(src: Path) -> Path:
    """The file of low-rank parts that a name stands for."""
    paths = [src] if src.is_file() else [src / name for name in (PEFT, DIFFUSERS) if (src / name).is_file()]
    if not paths:
        raise UserError(f"{src} is neither a .safetensors file nor a folder with {PEFT} or {DIFFUSERS}.")
    return paths[0]


def gathered(src: Path, layout: Layout) -> dict[tuple, dict[str, np.ndarray]]:
    """A (i r) and B (r o), as float32, by the parameter and layer that they stand beside. UserError lists what is neither."""
    path = found(src)
    told = path.with_name(PEFT_CONFIG)
    scale = scales(json.loads(told.read_text())) if told.is_file() else lambda module, rank: 1.0
    parts, alphas, faults = defaultdict(dict), {}, []
    for tensor in tensors.read_header(path):
        name = re.sub(r"^(base_model\.model\.)?(transformer\.)?", "", tensor.name)
        match = re.fullmatch(r"(.+)\.(?:lora_(A|B)(?:\.\w+)?\.weight|(alpha))", name)
        rule, target = kernel_of(layout, match[1]) if match else (None, None)
        place = layout.place(target) if target else None
        if not (match and rule and place):
            faults.append(tensor.name)
        elif match[3]:
            alphas[match[1]] = float(tensor.read())
        else:
            parts[(match[1], place)][match[2]] = tensor.read().astype(np.float32).T
    halves = [module for (module, _), pair in parts.items() if set(pair) != {"A", "B"}]
    if faults or halves or not parts:
        named = ", ".join((faults + halves)[:5]) or "nothing"
        raise UserError(
            f"{path} holds what are no low-rank parts of a Stable Diffusion 3.5 transformer: {named}; nothing was written."
        )
    result = {}
    for (module, place), pair in parts.items():
        rank = pair["A"].shape[-1]
        factor = alphas[module] / rank if module in alphas else scale(module, rank)
        result[place] = {A: pair["A"], B: pair["B"] * np.float32(factor)}
    return result


def scales(told: dict):
    """The factor of a module's low-rank part, from PEFT's config."""
    unknown = [key for key in ("use_dora", "lora_bias") if told.get(key)]
    if unknown or told.get("peft_type", "LORA") != "LORA":
        raise UserError(
            f"{PEFT_CONFIG} asks for {', '.join(unknown) or told.get('peft_type')}, which is not read here; use plain LoRA."
        )
    patterns = told.get("alpha_pattern") or {}

    def factor(module: str, rank: int) -> float:
        alpha = next((a for pattern, a in patterns.items() if re.search(rf"(^|\.){pattern}$", module)), told["lora_alpha"])
        return alpha / (rank**0.5 if told.get("use_rslora") else rank)

    return factor


def kernel_of(layout: Layout, module: str):
    """The rule and the target of a module's weight, where low-rank parts can stand beside it."""
    rule = next((r for r in layout.rules if r.pattern == KERNEL and re.fullmatch(r.source, f"{module}.weight")), None)
    return rule, rule and target_of(layout, f"{module}.weight")


def stacked(parts: dict, shapes: dict) -> dict[str, np.ndarray]:
    """Arrays by dotted path, one rank for all layers of a stack: zeros beyond their own change nothing."""
    ranks = defaultdict(int)
    for place, pair in parts.items():
        ranks[place.path] = max(ranks[place.path], pair[A].shape[-1])
    arrays = {}
    for path, rank in ranks.items():
        *stack, i, o = shapes[path].shape
        layer = path.removesuffix("kernel")
        a, b = np.zeros((*stack, i, rank), np.float32), np.zeros((*stack, rank, o), np.float32)
        for place, pair in parts.items():
            if place.path == path:
                here = () if place.layer is None else place.layer
                if (pair[A].shape[0], pair[B].shape[1]) != (i, o):
                    raise UserError(
                        f"the low-rank parts of {place} are for {pair[A].shape[0]}x{pair[B].shape[1]}, not {i}x{o}."
                    )
                a[here][:, : pair[A].shape[1]], b[here][: pair[B].shape[0]] = pair[A], pair[B]
        arrays[f"{layer}{A}"], arrays[f"{layer}{B}"] = a, b
    return arrays


# --- and out


def write(src: Path, out: Path) -> str:
    """Writes the low-rank parts of an adapter's folder under the names of PEFT and diffusers."""
    folder = checkpoint.model_folder(src)
    if not adapter.of(folder):
        raise UserError(f"{folder} is no adapter, and has no low-rank parts.")
    about, arrays = checkpoint.about(folder), checkpoint.load_arrays(folder)
    at = adapter.IMAGE * (about["network"] == "svdp")
    config = about["config"]["backbone"] if at else about["config"]
    table = layout(build(configs.Backbone, config, f"{folder}/config.json"), at)
    modules = {}
    for name in sorted(arrays):
        if name.endswith(f".{A}"):
            layer = name.removesuffix(A)
            for place, target in table.targets(f"{layer}kernel"):
                module = source_of(table, target)[1].removesuffix(".weight")
                here = () if place.layer is None else place.layer
                modules[module] = (arrays[name][here], arrays[f"{layer}{B}"][here])
    if not modules:
        raise UserError(
            f"{folder} has no low-rank parts, only what learned in full; PEFT and diffusers have no names for that."
        )
    out.mkdir(parents=True)
    for file, prefix in PREFIXES.items():
        outputs = []
        for module, pair in modules.items():
            for letter, array in zip("AB", pair):
                array = np.ascontiguousarray(np.asarray(array, np.float32).T)
                outputs.append(
                    Output(f"{prefix}{module}.lora_{letter}.weight", array.dtype, array.shape, partial(np.asarray, array))
                )
        tensors.write(out / file, outputs)
    ranks = {module: pair[0].shape[-1] for module, pair in modules.items()}
    (out / PEFT_CONFIG).write_text(json.dumps(peft_config(ranks), indent=2))
    left = sum(not name.endswith(learned.PARTS) for name in arrays)
    return f"{len(modules)} low-rank parts are in {out}." + f" {left} weights that learned in full have no names there." * bool(
        left
    )


def peft_config(ranks: dict[str, int]) -> dict:
    """What PEFT is told: alpha is the rank, so that the factor is 1."""
    usual = max(ranks.values())
    others = {module: rank for module, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA", "r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others,
        "target_modules": sorted(ranks), "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
    }  # fmt: skip
