from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_cpu",
            model=configs.toy(),
            data=configs.Data(size=32, frames=4, past=1, batch=8),
            stages=(
                configs.Stage(steps=20, past=False, rate=2e-3, final_rate=2e-4),
                configs.Stage(steps=10, past=True, rate=2e-4, final_rate=2e-5),
            ),
            sampling=configs.Sampling(steps=8, source=1.0, driving=1.0, past=1.0),
            dtype="float32",
        )
    )
