"""Where a frame of LivePortrait's time goes on a CPU: its networks at full width, ours beside PyTorch's, random weights.

    PYTHONPATH=. taskset -c 0 python tests/reference/liveportrait_speed.py [--rounds 3] [PART ...]   # 3 GB of memory

Prints seconds of the processor (not of the clock, so that other programs disturb little) for each part, one frame and
one thread each, in turns, and in the end those of a frame: motion, warping and generator. Limit 1.0 of PyTorch's.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import liveportrait_reference as reference
import numpy as np
import torch
from flax import nnx

from svdp_jax.models import volume
from svdp_jax.models.liveportrait import LivePortrait, LivePortraitConfig, grid

torch.set_num_threads(1)
torch.set_grad_enabled(False)
FRAME = ("motion", "warping", "generator")


def first(x) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def parts() -> dict:
    """By name: our function of a module and arrays, the module, these arrays, and PyTorch's call or None."""
    ours = LivePortrait(LivePortraitConfig(), nnx.Rngs(0))
    theirs = reference.LivePortrait(LivePortraitConfig()).eval().requires_grad_(False)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    picture, features, wide = abs(draw(1, 256, 256, 3)), draw(1, 64, 64, 256), draw(1, 16, 64, 64, 32)
    source, small = 0.3 * draw(1, 21, 3), draw(1, 16, 64, 64, 4)
    driven, cells = source + 0.05 * draw(1, 21, 3), grid((16, 64, 64), jnp.float32)
    shifts, places = 0.05 * draw(1, 22, 3), cells + 0.05 * draw(1, 16, 64, 64, 3)
    points = [torch.from_numpy(np.array(x)) for x in (source, driven)]
    flows = torch.from_numpy(np.array(cells[None] + shifts[0][:, None, None, None]))
    sampled = lambda x, at: torch.nn.functional.grid_sample(x, at, align_corners=False)
    many, one = first(small).expand(22, -1, -1, -1, -1), torch.from_numpy(np.array(places))
    return {
        "motion": (lambda m, x: m(x), ours.motion, (picture,), lambda: theirs.motion(first(picture))),
        "generator": (lambda m, x: m(x), ours.generator, (features,), lambda: theirs.generator(first(features))),
        "warping": (
            lambda m, *x: m(*x).features, ours.warping, (wide, source, driven), lambda: theirs.warping(first(wide), *points)
        ),
        "22 shifted samples": (
            lambda m, x, by: volume.sample_shifted(x, cells, by), ours.stitching, (small, shifts), lambda: sampled(many, flows)
        ),
        "samples": (lambda m, x, at: volume.sample(x, at), ours.stitching, (wide, places), lambda: sampled(first(wide), one)),
    }  # fmt: skip


def timed(function, module, arrays, theirs, rounds: int) -> tuple[float, float]:
    graph, state = nnx.split(module)
    run = jax.jit(lambda state, *arrays: function(nnx.merge(graph, state), *arrays))
    calls = (lambda: jax.block_until_ready(run(state, *arrays))), theirs
    times = [[], []]
    for round_ in range(rounds + 1):
        for call, found in zip(calls, times):
            begun = time.process_time()
            call()
            if round_:  # the first one compiles
                found.append(time.process_time() - begun)
    ours, their = (float(np.median(found)) for found in times)
    return ours, their


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = {}
    for name, about in parts().items():
        if name in (options.parts or (name,)):
            found[name] = ours, theirs = timed(*about, options.rounds)
            print(f"{name:20} {ours:7.3f} s, PyTorch {theirs:7.3f} s, ratio {ours / theirs:.2f}", flush=True)
    if all(name in found for name in FRAME):
        ours, theirs = (sum(found[name][i] for name in FRAME) for i in (0, 1))
        print(f"{'a frame':20} {ours:7.3f} s, PyTorch {theirs:7.3f} s, ratio {ours / theirs:.2f}, limit 1.0")


if __name__ == "__main__":
    main()
