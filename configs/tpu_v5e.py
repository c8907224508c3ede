"""python -m svdp_jax.train --config configs/tpu_v5e.py

Full size on 64 chips (v5e-64), one clip a chip.
First, `python -m convert all SD3.5-M weights`, `python -m convert prompt weights prompts`,
`python -m convert liveportrait PORTRAIT liveportrait`, and records of pairs of different people by
`python -m svdp_jax.prepare videos records --size 512 --codec weights/vae --pair-weights liveportrait`.
From the TPU compiler's buffer assignment, 2026-11-24, not run: 8.4 of 16 GiB a chip,
expected 6.9 s a step, MFU 45 %.
The 50 000 steps: 96 h, 6 150 chip hours: 7 380 at 1.20 a chip hour (an example; ask for today's price).
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.full_size(
            "tpu_v5e", "v5e:8x8", batch=64, mesh=configs.Mesh(data=1, fsdp=16, context=4), remat="attention", accumulate=4
        )
    )
