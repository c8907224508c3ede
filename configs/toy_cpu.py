from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_cpu",
            model=configs.toy(),
            data=configs.Data(size=32, frames=4, past=1, batch=4),
            stages=(
                configs.Stage(steps=2300, past=False, rate=1.5e-3, final_rate=3e-4),
                configs.Stage(steps=400, past=True, rate=3e-4, final_rate=2e-5),
            ),
            optimizer=configs.Optimizer(average=0.995, warmup=50),
            flow=configs.Flow(mean=1.5, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=8, source=1.0, driving=1.0, past=1.0),
            dtype="float32",
            evaluate=12,
        )
    )
