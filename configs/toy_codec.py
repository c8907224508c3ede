"""python -m svdp_jax.train --config configs/toy_codec.py

The small autoencoder that the miniature of configs/toy_demo.py works with.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_codec",
            model=configs.miniature(),
            trains="codec",
            data=configs.Data(size=128, frames=1, past=0, batch=2, threads=1),
            stages=(
                configs.Stage(steps=1000, rate=2e-3, final_rate=1.5e-3),
                configs.Stage(steps=1500, rate=1.5e-3, final_rate=2e-5),
            ),
            optimizer=configs.Optimizer(average=0.998, warmup=100, weight_decay=0.0),
            dtype="float32",
            watch_every=0,
            save_every=250,
            evaluate=0,
        )
    )
