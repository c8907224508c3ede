"""python -m svdp_jax.train --config configs/tpu_v6e.py

Full size on 16 chips (v6e-16), one clip a chip. First, `python -m convert all SD3.5-M weights`
and `python -m convert prompt weights prompts`; training videos lie in `videos/`.
Memory, time and cost: not known yet, the plan has not been compiled to its end.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.full_size(
            "tpu_v6e", "v6e:4x4", batch=16, mesh=configs.Mesh(data=1, fsdp=4, context=4), remat="attention", accumulate=4
        )
    )
