"""python -m svdp_jax.train --config configs/gpu_24gb.py

An adapter on SD3.5-M on one GPU of 24 GB (`pip install -e '.[cuda]'`): clips of 4 frames after 1 past one at
512x512, one at a time, 8 a step; the frozen weights in int8.
First, `python -m convert all SD3.5-M weights`, `python -m convert prompt weights prompts`,
`python -m convert liveportrait PORTRAIT liveportrait`, and records of pairs of different people by
`python -m svdp_jax.prepare videos records --size 512 --codec weights/vae --pair-weights liveportrait`:
the autoencoder encodes before, since it does not fit beside the training.
Neither run nor compiled: GPUs cannot be compiled for without one. By our count 89 useful TFLOP a clip, 714 a step.
`--config configs/gpu_24gb.py:personal --config.start=runs/gpu_24gb --config.data.path=RECORDS` goes on from it, on
one person's records: 300 steps.
"""

from svdp_jax import config as configs


def get_config(variant: str = ""):
    config = configs.one_chip("gpu_24gb", "", frames=4, past=1, clips=8, frozen="int8")
    return configs.as_flags(configs.personal(config, "runs/gpu_24gb", steps=300) if variant == "personal" else config)
