"""python tests/reference/student_speed.py

Seconds a frame of teacher and student at full size, by arithmetic alone: our own count of their work over the rates that
planning/chips.py states, as `svdp_jax.plan` has it, without what chips send to each other and without compiling. H100: matmuls
at half its peak, attention at cuDNN's rates of the tokamax project.
"""

import dataclasses

from configs import fast, tpu_v4
from svdp_jax import config as configs
from svdp_jax.planning.chips import CHIPS, Chip, seconds
from svdp_jax.planning.flops import segment_flops

KINDS = CHIPS | {"H100": Chip(989, 80, 3350, 450, 0.5, {64: 563, 128: 697})}
SLICES = (("v5e", 1), ("v6e", 1), ("v6e", 8), ("v5p", 4), ("H100", 1))


def main() -> None:
    models = {"28 x 4 calls": tpu_v4.get_config(), "4 calls, cached": fast.get_config()}
    print("| | TFLOP a segment |", " | ".join(f"{count} x {kind}" for kind, count in SLICES), "|")
    for name, flags in models.items():
        config = configs.from_flags(flags)
        for frames in (16, 8, 4):
            of = dataclasses.replace(config, data=dataclasses.replace(config.data, frames=frames))
            flops = segment_flops(of)
            times = [sum(seconds(of, KINDS[kind], flops, 1, count, 0).values()) for kind, count in SLICES]
            cells = " | ".join(f"{time / frames:.3f} s a frame, {time:.2f} s a segment" for time in times)
            print(f"| {name}, {frames} frames | {sum(flops.values()) / 1e12:.0f} | {cells} |")


if __name__ == "__main__":
    main()
