"""python -m svdp_jax.train --config configs/toy_cpu_long.py

The recipe of configs/toy_cpu.py at 64x64, with a wider network for what is finer: blinks and gaze.
One of two cores of an Intel Xeon, shared with other work, 2026-11-24: 82 minutes. On 24 clips of
people and motions never seen 19.22 dB, 3.8 dB above repeating the source; control of yaw 0.91,
pitch 0.87, blink 0.78, shift_x 0.72, roll 0.64, mouth opening 0.58, gaze 0.43 sideways and 0.32 up
and down. The pictures are grainy: 9000 steps are few for 16x16-pixel patches. Alone on two
cores a step of the same network at width 256 takes 0.26 s.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_cpu_long",
            model=configs.Model(
                backbone=configs.Backbone(
                    width=224,
                    heads=4,
                    blocks=4,
                    dual=1,
                    text_width=32,
                    pooled_width=32,
                    channels=192,
                    patch=2,
                    table=24,
                    base=480,
                ),
                video=configs.Video(heads=4),
                codec=configs.Codec(kind="pixels", factor=8),
                predict="clean",
            ),
            data=configs.Data(size=64, frames=2, past=1, batch=8),
            stages=(
                configs.Stage(steps=600, self_driven=True, rate=1.2e-3, final_rate=1.2e-3),
                configs.Stage(steps=7600, rate=1.2e-3, final_rate=2e-4),
                configs.Stage(steps=800, past=True, rate=2e-4, final_rate=1e-5),
            ),
            optimizer=configs.Optimizer(beta2=0.999, average=0.998, warmup=100),
            flow=configs.Flow(mean=1.5, focus=8.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=5, source=1.0, driving=1.4, past=1.4),
            dtype="float32",
            save_every=1000,
            evaluate=24,
        )
    )
