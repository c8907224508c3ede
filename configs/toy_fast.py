"""python -m svdp_jax.train --config configs/toy_fast.py

A student of the model that comes with the package: four calls a segment, or two, or one, of one branch.
"""

import dataclasses

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_fast",
            model=dataclasses.replace(configs.toy(), told=True),
            teacher="shipped",
            data=configs.Data(size=32, frames=2, past=1, batch=8),
            stages=(
                configs.Stage(steps=400, kind="path", calls=(4,), path=4, past=True, rate=1e-3, final_rate=1e-3),
                configs.Stage(steps=700, kind="path", calls=(4, 2, 1), path=4, past=True, rate=1e-3, final_rate=1e-5),
            ),
            optimizer=configs.Optimizer(average=0.995, warmup=50),
            flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            teaching=configs.Teaching(source=(1.0, 1.0), driving=(1.0, 2.0), past=(1.0, 2.0)),
            sampling=configs.Sampling(steps=4, source=1.0, driving=1.4, past=1.4),
            dtype="float32",
            watch_every=0,  # for copying: the teacher has learned what there was to copy
            save_every=100,
            evaluate=24,
        )
    )
