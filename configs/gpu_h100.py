"""python -m svdp_jax.train --config configs/gpu_h100.py

First, `python -m convert all SD3.5-M weights`, `python -m convert prompt weights prompts`,
`python -m convert liveportrait PORTRAIT liveportrait`, and records of pairs of different people by
`python -m svdp_jax.prepare videos records --size 512 --codec weights/vae --pair-weights liveportrait`.
`pip install -e '.[cuda]'` gives the JAX that sees the GPUs. Full size on one host of 8 NVIDIA H100 or H200, four devices to a clip's frames. Not
measured: no such machine was at hand, and GPUs cannot be compiled for without one.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.full_size("gpu_h100", "", batch=8, mesh=configs.Mesh(data=1, fsdp=2, context=4), remat="full")
    )
