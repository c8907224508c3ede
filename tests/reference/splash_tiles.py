"""What tiles of the splash kernel cost, by the TPU compiler's own schedule: no TPU is needed.

    PYTHONPATH=. python tests/reference/splash_tiles.py v6e:2x2 64,3072,1024,1536,256 ...

A tile is head size, tokens, block_q, block_kv, block_kv_compute. Of each kernel (forward, and the fused
backward one) the instruction bundles of its innermost run, one a cycle, and the kFLOP that one does. At
1.75 GHz a v6e at its peak does 525 in a bundle.
"""

import glob
import json
import os
import re
import shutil
import sys
import tempfile

DUMP = tempfile.mkdtemp()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true"

import jax
import jax.numpy as jnp

from svdp_jax.models.splash import splash_kernel, splash_mask
from svdp_jax.planning import aot

PRODUCTS = {"fwd": 2, "dkv": 5}  # of the size of the scores


def longest_run(path: str) -> int:
    """Bundles between two branches, at most: the body of the kernel's loop."""
    runs = [0]
    for line in open(path):
        if re.match(r"\s*0x", line):
            runs[-1] += 1
            if "sbr.rel" in line:
                runs.append(0)
    return max(runs)


def measure(device, size: int, length: int, q: int, kv: int, compute: int) -> dict:
    shutil.rmtree(DUMP, ignore_errors=True)
    blocks = splash_kernel.BlockSizes(
        block_q=q, block_kv=kv, block_kv_compute=compute,
        block_q_dkv=q, block_kv_dkv=kv, block_kv_dkv_compute=compute, use_fused_bwd_kernel=True,
    )  # fmt: skip
    mask = splash_mask.MultiHeadMask([splash_mask.FullMask((length, length))] * 2)
    kernel = splash_kernel.make_splash_mha_single_device(mask, block_sizes=blocks)
    x = jax.ShapeDtypeStruct((2, length, size), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
    jax.jit(jax.grad(lambda *qkv: kernel(*qkv).astype(jnp.float32).sum(), (0, 1, 2))).lower(x, x, x).compile()
    found = {"tile": [size, length, q, kv, compute]}
    for path in glob.glob(f"{DUMP}/*splash*-final_bundles.txt"):
        name = re.search(r"splash_mha_([a-z]+)", path)[1]
        if "schedule-analysis" not in path and name in PRODUCTS:
            bundles = longest_run(path)
            found[name] = {"bundles": bundles, "kflop": round(2 * PRODUCTS[name] * q * kv * size / bundles / 1e3, 1)}
    return found


if __name__ == "__main__":
    device = aot.slice_devices(sys.argv[1])[0]
    for tile in sys.argv[2:]:
        print(json.dumps(measure(device, *map(int, tile.split(",")))), flush=True)
