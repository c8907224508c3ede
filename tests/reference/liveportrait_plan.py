"""What one TPU chip would need for LivePortrait at full size, by the TPU's compiler, without a TPU.

    python tests/reference/liveportrait_plan.py v5e v6e [--at-once 4]      # pip install 'svdp_jax[tpu]'; minutes each

Compiles what `engines/liveportrait.py` runs for a batch of driving frames: the motion in them, the keypoints, warping
and generator in bfloat16. Prints memory of the chip, FLOPs and bytes of memory traffic as the compiler counts them, and
frames a second, expected from the chip's published peaks: FLOPs at the share of the peak that matmuls reach
(`planning/chips.py`), bytes at the HBM's speed, whichever takes longer, and both one after the other.
"""

import argparse
import json
import time

import jax
import jax.numpy as jnp
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.engines import liveportrait
from svdp_jax.models.keypoints import Motion
from svdp_jax.models.liveportrait import LivePortrait, LivePortraitConfig
from svdp_jax.planning import aot
from svdp_jax.planning.chips import CHIPS

HBM = {"v4": 1200, "v5e": 819, "v5p": 2765, "v6e": 1638}  # GB/s, the maker's pages


def programs(layout, count: int) -> dict:
    """What is run for a batch, and what it is given, as shapes."""
    graph, state = nnx.split(nnx.eval_shape(lambda: LivePortrait(LivePortraitConfig(), nnx.Rngs(0))))
    state = liveportrait_state(state)
    shape = lambda *size, dtype=jnp.float32: jax.ShapeDtypeStruct(size, dtype, sharding=layout)
    frames = shape(count, liveportrait.SIDE, liveportrait.SIDE, 3, dtype=jnp.uint8)
    motion = lambda b: Motion(shape(b, 21, 3), shape(b, 21, 3), shape(b, 3), shape(b, 1), shape(b), shape(b), shape(b))
    known = liveportrait.Known(shape(1, 16, 64, 64, 32), motion(1), shape(1, 21, 3))
    kind, points = ("relative", "all", True), shape(count, 21, 3)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), state)
    return {
        "read": (liveportrait.read, (graph, placed, frames)),
        "steer": (liveportrait.steer, (graph, placed, known, motion(1), motion(count), {}, shape(), kind)),
        "draw": (liveportrait.draw, (graph, placed, known, points, points)),
    }


def liveportrait_state(state):
    cast = lambda x, dtype: jax.ShapeDtypeStruct(x.shape, dtype)
    return nnx.State(
        {
            k: jax.tree.map(lambda x, k=k: cast(x, jnp.bfloat16 if k in liveportrait.FAST else x.dtype), v)
            for k, v in state.items()
        }
    )


def plan(name: str, count: int) -> dict:
    chip, device = CHIPS[name], aot.slice_devices(f"{name}:2x2" + ("x1" if name in ("v4", "v5p") else ""))[0]
    mesh = parallel.make_mesh(configs.Mesh(data=1), [device])
    found, totals = {}, {"flops": 0.0, "bytes accessed": 0.0}
    for part, (function, arguments) in programs(parallel.sharding(mesh), count).items():
        begun = time.monotonic()
        compiled = function.lower(*arguments).compile()
        cost = compiled.cost_analysis()
        found[part] = {
            "peak_gib": round(aot.memory(compiled)["peak"], 3), "gflop_a_frame": round(cost["flops"] / count / 1e9, 1),
            "mb_a_frame": round(cost["bytes accessed"] / count / 1e6, 1), "compile_seconds": round(time.monotonic() - begun),
        }  # fmt: skip
        totals = {key: value + cost[key] for key, value in totals.items()}
    work = totals["flops"] / (chip.peak * 1e12 * chip.matmul) / count
    traffic = totals["bytes accessed"] / (HBM[name] * 1e9) / count
    return {
        "chip": name, "frames_at_once": count, "fits": max(x["peak_gib"] for x in found.values()) < chip.memory, **found,
        "frames_a_second": {"slower of both": round(1 / max(work, traffic), 1), "one after the other": round(1 / (work + traffic), 1)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chips", nargs="+", choices=CHIPS)
    parser.add_argument("--at-once", type=int, default=liveportrait.AT_ONCE)
    options = parser.parse_args()
    for chip in options.chips:
        print(json.dumps(plan(chip, options.at_once)), flush=True)


if __name__ == "__main__":
    main()
