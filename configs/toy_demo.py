"""python -m svdp_jax.train --config configs/toy_demo.py

The recipe of configs/toy_cpu.py at 48x48, a little larger and for longer: the model that comes with the package.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_demo",
            model=configs.Model(
                backbone=configs.Backbone(
                    width=160, heads=4, blocks=4, dual=1, text_width=32, pooled_width=32,
                    channels=108, patch=2, table=24, base=480,
                ),
                video=configs.Video(heads=4),
                codec=configs.Codec(kind="pixels", factor=6),
                predict="clean",
            ),
            data=configs.Data(size=48, frames=2, past=1, batch=8),
            stages=(
                configs.Stage(steps=600, self_driven=True, rate=1.5e-3, final_rate=1.4e-3),
                configs.Stage(steps=21400, rate=1.5e-3, final_rate=2e-4),
                configs.Stage(steps=2000, past=True, rate=2e-4, final_rate=1e-5),
            ),
            optimizer=configs.Optimizer(beta2=0.999, average=0.999, warmup=100),
            flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=5, source=1.0, driving=1.4, past=1.4),
            dtype="float32",
            save_every=1000,
            evaluate=24,
        )
    )
