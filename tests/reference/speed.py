"""Four blocks of full width, 512 x 512, float32, two threads: ours against diffusers', in turns.

python tests/reference/speed.py     # wants a machine with nothing else to do; limit 1.25
"""

import argparse
import time

import jax
import numpy as np
import torch
from diffusers import SD3Transformer2DModel
from flax import nnx

from convert.sd35 import write_config
from svdp_jax.config import Backbone
from svdp_jax.models.mmdit import MMDiT

CONFIG = Backbone(blocks=4, dual=2)


def timed(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)
    latents, text, pooled = (
        rng.normal(size=shape).astype(np.float32) for shape in ((1, 64, 64, 16), (1, 333, 4096), (1, 2048))
    )
    fields = write_config(CONFIG)
    del fields["_class_name"]
    reference = SD3Transformer2DModel(**fields).eval().requires_grad_(False)
    theirs = [torch.tensor(x) for x in (latents.transpose(0, 3, 1, 2), text, pooled, [500.0])]
    model = nnx.jit(lambda: MMDiT(CONFIG, nnx.Rngs(0)))()
    call = nnx.jit(lambda model, *inputs: model(*inputs))
    ours = (latents, np.array([0.5], np.float32), text, pooled)
    runs = {"diffusers": lambda: reference(*theirs), "ours": lambda: jax.block_until_ready(call(model, *ours))}
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(timed(run))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    print(medians, f"ratio {medians['ours'] / medians['diffusers']:.2f}")


if __name__ == "__main__":
    main()
