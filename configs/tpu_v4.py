"""python -m svdp_jax.train --config configs/tpu_v4.py

Full size on 16 chips (v4-32), one clip a chip.
First, `python -m convert all SD3.5-M weights`, `python -m convert prompt weights prompts`,
`python -m convert liveportrait PORTRAIT liveportrait`, and records of pairs of different people by
`python -m svdp_jax.prepare videos records --size 512 --codec weights/vae --pair-weights liveportrait`.
From the TPU compiler's buffer assignment, 2026-11-28, not run: 15.7 of 32 GiB a chip,
expected 4.5 s a step, MFU 46 %.
The 50 000 steps: 63 h, 1 003 chip hours: 3 230 at 3.22 a chip hour (an example; ask for today's price).
Of before, when it took 11.1: accumulate=2 is 3 % faster and took 20.3 GiB, with remat=full 14.5.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.full_size(
            "tpu_v4", "v4:2x2x4", batch=16, mesh=configs.Mesh(data=1, fsdp=4, context=4), remat="attention", accumulate=4
        )
    )
