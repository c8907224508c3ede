"""python -m svdp_jax.train --config configs/gpu_one.py

An adapter on SD3.5-M on one GPU of 80 GB (`pip install -e '.[cuda]'`): clips of 16 frames after 4 past ones at
512x512, one at a time, 8 a step; the frozen weights in bfloat16.
First, `python -m convert all SD3.5-M weights`, `python -m convert prompt weights prompts`,
`python -m convert liveportrait PORTRAIT liveportrait`, and records of pairs of different people by
`python -m svdp_jax.prepare videos records --size 512 --codec weights/vae --pair-weights liveportrait`:
the autoencoder encodes before, since it does not fit beside the training.
Neither run nor compiled: GPUs cannot be compiled for without one. By our count 495 useful TFLOP a clip, 3 960 a step.
`--config configs/gpu_one.py:personal --config.start=runs/gpu_one --config.data.path=RECORDS` goes on from it, on
one person's records: 300 steps.
"""

from svdp_jax import config as configs


def get_config(variant: str = ""):
    config = configs.one_chip("gpu_one", "", frames=16, past=4, clips=8, frozen="bfloat16")
    return configs.as_flags(configs.personal(config, "runs/gpu_one", steps=300) if variant == "personal" else config)
