from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_cpu",
            model=configs.toy(),
            data=configs.Data(size=32, frames=4, past=1, batch=8),
            stages=(
                configs.Stage(steps=1150, past=False, rate=2e-3, final_rate=3e-4),
                configs.Stage(steps=250, past=True, rate=3e-4, final_rate=2e-5),
            ),
            optimizer=configs.Optimizer(average=0.99, warmup=50),
            flow=configs.Flow(dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=8, source=1.0, driving=1.0, past=1.0),
            dtype="float32",
            evaluate=12,
        )
    )
