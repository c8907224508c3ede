"""python -m svdp_jax.train --config configs/toy_video.py

Goes on from the model of configs/toy_demo.py, with segments of four frames after two past ones in
place of two after one. Pictures are learned faster from two frames of eight people a step; videos
hold together better where a segment is longer.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_video",
            start="runs/toy_demo",
            model=configs.toy(),
            data=configs.Data(size=32, frames=4, past=2, batch=4),
            stages=(
                configs.Stage(steps=6000, rate=8e-4, final_rate=2e-4),
                configs.Stage(steps=4000, past=True, rate=2e-4, final_rate=1e-5),
            ),
            optimizer=configs.Optimizer(average=0.998, warmup=50),
            flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=5, source=1.0, driving=1.4, past=1.4),
            dtype="float32",
            save_every=1000,
            evaluate=24,
        )
    )
