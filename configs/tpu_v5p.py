"""python -m svdp_jax.train --config configs/tpu_v5p.py

Full size on 8 chips (v5p-16), one clip a chip.
First, `python -m convert all SD3.5-M weights`, `python -m convert prompt weights prompts`,
`python -m convert liveportrait PORTRAIT liveportrait`, and records of pairs of different people by
`python -m svdp_jax.prepare videos records --size 512 --codec weights/vae --pair-weights liveportrait`.
From the TPU compiler's buffer assignment, 2026-11-24, not run: 39.1 of 95 GiB a chip, attention outputs kept,
expected 2.5 s a step, MFU 53 %.
The 50 000 steps: 35 h, 280 chip hours: 1 180 at 4.20 a chip hour (an example; ask for today's price).
Longer segments: frames=32 takes 67.9 GiB; frames=64 with optimizer.accumulate=4, 38.6.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.full_size("tpu_v5p", "v5p:2x2x2", batch=8, mesh=configs.Mesh(data=1, fsdp=2, context=4), remat="attention")
    )
