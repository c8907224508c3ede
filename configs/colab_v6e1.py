"""python -m svdp_jax.train --config configs/colab_v6e1.py

An adapter on SD3.5-M on one chip of a v6e (Colab's v6e-1): one clip of 16 frames after 4 past ones at 512x512 a
step; the frozen weights in int8.
First, `python -m convert all SD3.5-M weights`, `python -m convert prompt weights prompts`,
`python -m convert liveportrait PORTRAIT liveportrait`, and records of pairs of different people by
`python -m svdp_jax.prepare videos records --size 512 --codec weights/vae --pair-weights liveportrait`:
the autoencoder encodes before, since it does not fit beside the training.
By the TPU compiler, 2026-11-28 (`python -m svdp_jax.plan --config configs/colab_v6e1.py --what train`), not run on a
chip: 22.7 of its 32 GiB. From our count of FLOPs and the stated rates: 2.41 s a step, MFU 22 % of useful FLOPs (frozen
weights need no gradients; its attention kernels are far from its peak); the 40 000 steps 26.8 h.
`--config configs/colab_v6e1.py:personal --config.start=runs/colab_v6e1 --config.data.path=RECORDS` goes on from it, on
one person's records: 1 440 steps, an hour.
"""

from svdp_jax import config as configs


def get_config(variant: str = ""):
    config = configs.one_chip("colab_v6e1", "v6e:1x1", frames=16, past=4, clips=1, frozen="int8")
    return configs.as_flags(configs.personal(config, "runs/colab_v6e1", steps=1_440) if variant == "personal" else config)
