"""python -m svdp_jax.train --config configs/toy_gpu.py

The drawn world at 128x128 for one GPU, in latents of the small codec that comes with the package: the recipe of
configs/toy_cpu.py with more tokens a frame, as wide and deep as may still be shipped (`weights.shipped`).
Clips are drawn while it trains, on the threads of the host; past frames are real as soon as the driver is found, so that a
run that is cut short has a model that can be used. Expected time and result: not measured yet, as no GPU was at hand.
"""

import dataclasses

from svdp_jax import config as configs


def get_config():
    backbone = dataclasses.replace(configs.miniature().backbone, width=192, heads=6, blocks=5, dual=2, patch=2)
    return configs.as_flags(
        configs.Config(
            name="toy_gpu",
            model=dataclasses.replace(configs.miniature(), backbone=backbone, video=configs.Video(heads=6)),
            data=configs.Data(size=128, frames=2, past=1, batch=16, threads=16),
            optimizer=configs.Optimizer(average=0.998, warmup=100),
            stages=(
                configs.Stage(steps=400, self_driven=True, rate=1e-3, final_rate=1e-3),
                configs.Stage(steps=6000, past=True, rate=1e-3, final_rate=2e-4),
                configs.Stage(steps=1000, past=True, rate=2e-4, final_rate=1e-5),
            ),
            flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=4, source=1.0, driving=1.4, past=1.4),
            watch_every=0,
            save_every=500,
            log_every=50,
            evaluate=16,
        )
    )
