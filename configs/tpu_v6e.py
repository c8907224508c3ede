"""python -m svdp_jax.train --config configs/tpu_v6e.py

Full size on 16 chips (v6e-16), one clip a chip.
First, `python -m convert all SD3.5-M weights`, `python -m convert prompt weights prompts`,
`python -m convert liveportrait PORTRAIT liveportrait`, and records of pairs of different people by
`python -m svdp_jax.prepare videos records --size 512 --codec weights/vae --pair-weights liveportrait`.
From the TPU compiler's buffer assignment, 2026-11-24, not run: 12.3 of 32 GiB a chip,
expected 2.6 s a step, MFU 26 % (its attention kernels are far from its peak).
The 50 000 steps: 36 h, 573 chip hours: 1 550 at 2.70 a chip hour (an example; ask for today's price).
accumulate=2 takes 20.9 GiB.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.full_size(
            "tpu_v6e", "v6e:4x4", batch=16, mesh=configs.Mesh(data=1, fsdp=4, context=4), remat="attention", accumulate=4
        )
    )
