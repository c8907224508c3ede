"""The networks that can be converted, and the two directions."""

import json
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convert import rules, sources, tensors
from convert.liveportrait import LIVEPORTRAIT
from convert.metric_nets import ARCFACE, I3D_NETWORK, LPIPS_ALEX, LPIPS_VGG, SYNCNET
from convert.rules import Checksum, Network
from convert.sd35 import SD35, VIDEO_MODEL
from convert.text import CLIP_G, CLIP_L, T5
from convert.vae import VAE
from svdp_jax.errors import UserError
from svdp_jax.values.declared import build
from svdp_jax.weights.checkpoint import NETWORKS as KINDS, about, load_arrays, save_weights

TEXT = {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, "text_encoder_3": T5}
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")

# What each name on the command line converts: the networks by their folder in the output.
NETWORKS: dict[str, dict[str, Network]] = {
    "sd35": {"": SD35},
    "svdp": {"": VIDEO_MODEL},
    "vae": {"": VAE},
    "text": TEXT,
    "clip_l": {"": CLIP_L},
    "clip_g": {"": CLIP_G},
    "t5": {"": T5},
    "liveportrait": {"": LIVEPORTRAIT},
    "lpips_alex": {"": LPIPS_ALEX},
    "lpips_vgg": {"": LPIPS_VGG},
    "i3d": {"": I3D_NETWORK},
    "arcface": {"": ARCFACE},
    "syncnet": {"": SYNCNET},
    "all": {"backbone": SD35, "vae": VAE} | TEXT,
}
# Files and folders without weights that go along as they are.
COPIED = {"text": TOKENIZERS, "all": (*TOKENIZERS, "scheduler", "model_index.json")}


class Row(NamedTuple):
    """One line of the summary."""

    network: str
    tensors: int
    parameters: int
    bytes: int
    dtype: str
    checksum: str


def forward(src: Path, out: Path, network: Network, dtype: str | None, nonfinite: bool) -> Row:
    """A checkpoint at `src` to a weights folder `out`."""
    source = sources.find(src, network)
    print(*(f"{network.folder}: {line}" for line in source.left), sep="\n", end="\n" * bool(source.left))
    config, params = gather(source, network, dtype, nonfinite)
    row = summary(network, params.arrays, params.checksum)
    room(out, row.bytes)
    facts = {"checksum": row.checksum} | source.facts
    save_weights(out, network.name, config, params.arrays, facts)
    return row


def read(src: Path, network: Network, dtype: str | None, nonfinite: bool):
    """Config and parameters of a checkpoint."""
    return gather(sources.find(src, network), network, dtype, nonfinite)


def gather(source: sources.Source, network: Network, dtype: str | None, nonfinite: bool):
    config = network.read_config({t.name: t for t in source.tensors}, source.config)
    structs = rules.shapes(network, config)
    return config, rules.gather(network.layout(config), structs, source.tensors, dtype, nonfinite)


def reverse(src: Path, out: Path, network: Network, dtype: str | None, nonfinite: bool) -> Row:
    """A weights folder `src` to the network's folder in the diffusers folder `out`."""
    if not network.write_config:
        raise UserError(f"{network.name} cannot go back to the files it came from; keep those.")
    facts = about(src)
    if facts["network"] != network.name:
        raise UserError(f"{src} holds {facts['network']!r}, not {network.name!r}.")
    config = build(KINDS[network.name][0], facts["config"], f"{src}/config.json")
    arrays, checksum = load_arrays(src), Checksum()
    outputs = rules.scatter(network.layout(config), arrays, dtype, nonfinite, checksum)
    room(out, sum(math.prod(o.shape) * o.dtype.itemsize for o in outputs))
    written = network.write_config(config)
    (out / network.folder).mkdir(parents=True)
    if network.extra:
        prefix = f"{network.extra}."
        added = [o for o in outputs if o.name.startswith(prefix)]
        outputs = [o for o in outputs if not o.name.startswith(prefix)]
        about_added = {"config": written.pop(network.extra), "facts": others(facts)}
        write_json(out / f"{network.extra}.json", about_added)
        tensors.write(out / f"{network.extra}.safetensors", [o._replace(name=o.name.removeprefix(prefix)) for o in added])
    write_json(out / network.folder / "config.json", written)
    tensors.write(out / network.folder / network.file, outputs)
    return summary(network, arrays, checksum, dtype)


def room(out: Path, size: int) -> None:
    """Raises UserError where the disk of `out` cannot take that many bytes."""
    parent = next(p for p in out.absolute().parents if p.exists())
    free = shutil.disk_usage(parent).free
    if free < 1.02 * size:
        raise UserError(f"{parent} needs room for {size:,} bytes; {free:,} bytes are free.")


def others(facts: dict) -> dict:
    """What a weights folder tells beside network, config and checksum."""
    return {k: v for k, v in facts.items() if k not in ("network", "config", "checksum")}


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2))


def summary(network: Network, arrays: dict, checksum: Checksum, dtype: str | None = None) -> Row:
    kinds = {np.dtype(dtype or array.dtype) for array in arrays.values()}
    return Row(
        network=network.folder,
        tensors=len(checksum.lines),
        parameters=sum(array.size for array in arrays.values()),
        bytes=sum(a.size * np.dtype(dtype or a.dtype).itemsize for a in arrays.values()),
        dtype="+".join(sorted(kind.name for kind in kinds)),
        checksum=checksum.hex(),
    )
