"""python -m svdp_jax.train --config configs/toy_128.py

The miniature at 128x128, in latents of the small codec that comes with the package. What it trains on is drawn and
encoded first, once, in some ten minutes of one core:

    python -c "from svdp_jax.preparation import drawn; drawn.write('records/toy_self', clips=100, self_driven=True)"
    python -c "from svdp_jax.preparation import drawn; drawn.write('records/toy', clips=600)"
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_128",
            model=configs.miniature(),
            data=configs.Data(source="records", path="records/toy", size=128, frames=2, past=1, batch=8, threads=1),
            stages=(
                configs.Stage(steps=400, rate=1.5e-3, final_rate=1.4e-3, data=configs.Changes(path="records/toy_self")),
                configs.Stage(steps=4000, rate=1.5e-3, final_rate=3e-4),
                configs.Stage(steps=600, past=True, rate=3e-4, final_rate=2e-5),
            ),
            optimizer=configs.Optimizer(average=0.998, warmup=50),
            flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=4, source=1.0, driving=1.4, past=1.4),
            dtype="float32",
            save_every=500,
            watch_every=0,
            evaluate=24,
        )
    )
