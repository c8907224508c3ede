"""python -m svdp_jax.train --config configs/toy_cpu_long.py
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_cpu_long",
            model=configs.Model(
                backbone=configs.Backbone(
                    width=256, heads=4, blocks=4, dual=1, text_width=32, pooled_width=32,
                    channels=192, patch=2, table=24, base=24,
                ),
                video=configs.Video(heads=4),
                codec=configs.Codec(kind="pixels", factor=8),
                predict="clean",
            ),
            data=configs.Data(size=64, frames=4, past=1, batch=8),
            optimizer=configs.Optimizer(average=0.998, warmup=100),
            stages=(
                configs.Stage(steps=5200, past=False, rate=2e-3, final_rate=3e-4),
                configs.Stage(steps=800, past=True, rate=3e-4, final_rate=1e-5),
            ),
            flow=configs.Flow(dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=10, source=1.0, driving=1.0, past=1.0),
            dtype="float32",
            save_every=500,
            evaluate=16,
        )
    )
