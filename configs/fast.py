"""python -m svdp_jax.train --config configs/fast.py --config.teacher=runs/tpu_v4

Full size: the student of a finished training, in four calls a segment and with conditions computed once.
Its prompt, codec and records are those of configs/tpu_v4.py.
"""

import dataclasses

from svdp_jax import config as configs


def get_config():
    full = configs.full_size(
        "fast", "v4:2x2x4", batch=16, mesh=configs.Mesh(data=1, fsdp=4, context=4), remat="attention", accumulate=4
    )
    video = dataclasses.replace(full.model.video, references="cached")
    stage = lambda **fields: configs.Stage(kind="path", path=28, past=True, **fields)
    return configs.as_flags(
        dataclasses.replace(
            full,
            model=dataclasses.replace(full.model, video=video, told=True),
            teacher="runs/tpu_v4",
            backbone="",
            stages=(
                stage(steps=4000, calls=(28,), rate=2e-5, final_rate=2e-5),
                stage(steps=4000, calls=(4,), rate=2e-5, final_rate=2e-5),
                stage(steps=4000, calls=(4, 2, 1), rate=2e-5, final_rate=1e-6),
            ),
            sampling=configs.Sampling(steps=4),
            watch_every=0,
        )
    )
