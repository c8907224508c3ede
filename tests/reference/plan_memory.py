"""The plan's memory against what a run takes, on eight simulated devices of a CPU.

    PYTHONPATH=. python tests/reference/plan_memory.py

The toy model on a mesh of 2 x 2 x 2. Planned: eight times the peak of one device, from the
compiler. Measured: the largest resident memory of the process in a train step, above what it
was with the step compiled and nothing placed (the CPU's runtime itself counts nothing).
"""

import ctypes
import dataclasses
import os
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.planning import aot
from svdp_jax.training import step as training
from svdp_jax.weights.checkpoint import CODECS


def resident(peak: bool = False) -> int:
    """Bytes of this process in memory, now or at most since `forget`."""
    name = "VmHWM:" if peak else "VmRSS:"
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def forget() -> None:
    """Gives what is free back to the system, and starts the peak anew."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def config() -> configs.Config:
    data = configs.Data(size=32, frames=4, past=2, batch=256)
    model = configs.toy()
    model = dataclasses.replace(model, backbone=dataclasses.replace(model.backbone, kernel="xla"))
    return configs.Config("memory", model, data=data, mesh=configs.Mesh(2, 2, 2), dtype="float32")


def main() -> None:
    wanted = config()
    mesh = parallel.make_mesh(wanted.mesh)
    compiled, shapes = aot.compile_train(wanted, mesh)
    planned = 8 * aot.memory(compiled)["peak"] * aot.GIB
    forget()
    before = resident()
    fill = lambda x: jax.make_array_from_callback(x.shape, x.sharding, lambda at: part(x, at))
    state = jax.tree.map(fill, shapes)
    codec = nnx.state(CODECS[wanted.model.codec.kind](wanted.model.codec))
    frozen = training.Frozen(codec, jax.tree.map(fill, aot.abstract(aot.prompt_shapes(wanted), mesh)))
    batch = jax.tree.map(fill, aot.abstract_batch(wanted, mesh))
    jax.block_until_ready(compiled(state, frozen, batch))
    measured = resident(peak=True) - before
    print(f"planned {planned / 2**20:.0f} MiB, measured {measured / 2**20:.0f}: {planned / measured:.3f}")


def part(x: jax.ShapeDtypeStruct, at: tuple) -> np.ndarray:
    return np.ones([len(range(size)[rows]) for size, rows in zip(x.shape, at)], x.dtype)


if __name__ == "__main__":
    main()
