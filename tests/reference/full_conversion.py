"""Converts a checkpoint of SD3.5-M's size there and back: memory, time, exactness, sharding.

    python tests/reference/full_conversion.py WORK      # needs 14 GB of disk

The checkpoint is random, bfloat16, 2.24 billion parameters. Limits: peak
resident memory 1.3 times the file, 3 minutes on two cores, the same bytes after
the way back, and on a mesh of 8 devices no device over an eighth plus 10 %.
"""

import argparse
import filecmp
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np

ROOT = Path(__file__).parents[2]


def make(folder: Path) -> Path:
    """Writes the checkpoint."""
    from convert import rules, tensors
    from convert.sd35 import SD35
    from svdp_jax.config import Backbone

    folder = folder / SD35.folder
    folder.mkdir(parents=True, exist_ok=True)
    file, kind = folder / SD35.file, np.dtype(ml_dtypes.bfloat16)
    if not file.exists():
        (folder / "config.json").write_text(json.dumps(SD35.write_config(Backbone())))
        rng = np.random.default_rng(0)
        draw = lambda shape: lambda: rng.standard_normal(shape, np.float32).astype(kind)
        wants = rules.wanted(SD35.layout(Backbone()), rules.shapes(SD35, Backbone())).values()
        tensors.write(file, [rules.Output(w.name, kind, w.shape, draw(w.shape)) for w in wants])
    return file


def convert(*arguments) -> None:
    """Runs the command and prints its time and its peak memory."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "convert", *map(str, arguments)], check=True, cwd=ROOT)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{time.perf_counter() - start:.0f} s, peak of all so far {peak / 1e9:.2f} GB")


def restore(folder: Path) -> None:
    """Loads onto a mesh of 8 devices and prints the largest share of one."""
    import jax
    from flax import nnx

    from svdp_jax import config, parallel
    from svdp_jax.weights.checkpoint import abstract_network, load_weights

    state = nnx.state(abstract_network(folder))
    mesh = parallel.make_mesh(config.Mesh(data=1, fsdp=8))
    shardings = parallel.parameter_shardings(state, mesh)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, ml_dtypes.bfloat16, sharding=sharding)
    start = time.perf_counter()
    leaves = jax.tree.leaves(load_weights(folder, jax.tree.map(place, state, shardings)))
    jax.block_until_ready(leaves)
    held = dict.fromkeys(jax.devices(), 0)
    for shard in (shard for leaf in leaves for shard in leaf.addressable_shards):
        held[shard.device] += shard.data.nbytes
    share = max(held.values()) / sum(leaf.nbytes for leaf in leaves)
    seconds = time.perf_counter() - start
    print(f"restored in {seconds:.0f} s, largest share {share:.4f}, limit 0.1375")


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("work", type=Path)
    parser.add_argument("--restore", action="store_true", help="the last part only")
    options = parser.parse_args()
    work = options.work.absolute()
    if options.restore:
        return restore(work / "flax")
    file = make(work / "source")
    size = file.stat().st_size / 1e9
    print(f"checkpoint: {size:.2f} GB, limit of memory: {1.3 * size:.2f} GB")
    convert("sd35", work / "source", work / "flax")
    convert("sd35", work / "flax", work / "back", "--reverse")
    same = filecmp.cmp(file, work / "back" / file.relative_to(work / "source"), shallow=False)
    print("the way back gives", "the same bytes" if same else "OTHER BYTES")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, __file__, str(work), "--restore"]
    subprocess.run(command, check=True, env=os.environ | flags)


if __name__ == "__main__":
    main()
