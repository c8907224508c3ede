"""python -m svdp_jax.train --config configs/toy_gpu.py

The toy world at 64x64 with 8x8-pixel patches, for one GPU.
The recipe is that of configs/toy_cpu.py, larger and for longer.
Expected time and result: not measured yet; it was written without a GPU at hand.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_gpu",
            model=configs.Model(
                backbone=configs.Backbone(
                    width=384,
                    heads=6,
                    blocks=8,
                    dual=4,
                    text_width=32,
                    pooled_width=32,
                    channels=48,
                    patch=2,
                    table=24,
                    base=480,
                ),
                video=configs.Video(heads=6),
                codec=configs.Codec(kind="pixels", factor=4),
                predict="clean",
            ),
            data=configs.Data(size=64, frames=8, past=2, batch=32, threads=8),
            optimizer=configs.Optimizer(average=0.999, warmup=300),
            stages=(
                configs.Stage(steps=500, self_driven=True, rate=1e-3, final_rate=1e-3),
                configs.Stage(steps=8500, rate=1e-3, final_rate=2e-4),
                configs.Stage(steps=3000, past=True, rate=2e-4, final_rate=1e-5),
            ),
            flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=12, source=1.0, driving=1.5, past=1.0),
            save_every=1000,
            log_every=50,
            evaluate=16,
        )
    )
