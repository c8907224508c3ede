"""python -m svdp_jax.train --config configs/colab_v5e1.py

An adapter on SD3.5-M on one chip of a v5e (Colab's v5e-1): one clip of 4 frames after 1 past one at 512x512 a
step; the frozen weights in int8.
First, `python -m convert all SD3.5-M weights`, `python -m convert prompt weights prompts`,
`python -m convert liveportrait PORTRAIT liveportrait`, and records of pairs of different people by
`python -m svdp_jax.prepare videos records --size 512 --codec weights/vae --pair-weights liveportrait`:
the autoencoder encodes before, since it does not fit beside the training.
By the TPU compiler, 2026-11-28 (`python -m svdp_jax.plan --config configs/colab_v5e1.py --what train`), not run on a
chip: 13.9 of its 16 GiB. From our count of FLOPs and the stated rates: 1.11 s a step, MFU 41 % of useful FLOPs (frozen
weights need no gradients); the 40 000 steps 12.3 h. The longest clip that fits, by
`--search` on the same day, is of 8 frames after 2 (`--config.data.frames=8 --config.data.past=2`): 15.2 GiB, which
leaves little, 2.41 s a step, MFU 42 %; of 12 after 3 it would be 17.8. Eight clips a step, whose gradients must be summed,
did not fit before norms took less: 16.5 GiB over bfloat16 in clips of 4 after 1.
So short clips teach little of time: 16 frames in a pass are more than this chip holds.
`--config configs/colab_v5e1.py:personal --config.start=runs/colab_v5e1 --config.data.path=RECORDS` goes on from it, on
one person's records: 3 200 steps, an hour.
"""

from svdp_jax import config as configs


def get_config(variant: str = ""):
    config = configs.one_chip("colab_v5e1", "v5e:1x1", frames=4, past=1, clips=1, frozen="int8")
    return configs.as_flags(configs.personal(config, "runs/colab_v5e1", steps=3_200) if variant == "personal" else config)
