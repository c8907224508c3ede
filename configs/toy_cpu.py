"""python -m svdp_jax.train --config configs/toy_cpu.py

The miniature on two CPU cores. Its results are short of what it is meant to show:
12 minutes (two cores of an AMD EPYC, 2026-11-23) reach 19.1 dB where repeating the
source has 16.8, control of yaw 0.71 and pitch 0.38, of the mouth none yet.

What was learned on the way here:
- Routing is what takes long: until a token finds its place in the source and in the
  driver, it can only guess. Positions that are nearly orthogonal (`base=480`, where 24
  gave nothing in 1400 steps) and a small patch projection helped most.
- Times near noise (`flow.mean=1.5`): elsewhere the noisy picture itself shows the pose,
  and nothing is learned from the driver.
- Many small steps: 8 pictures a step learn more per picture than 32 do.
- No difference: learning rates from 1.5e-3 to 4e-3, Muon, gates that start open.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_cpu",
            model=configs.toy(),
            data=configs.Data(size=32, frames=2, past=1, batch=8),
            stages=(
                configs.Stage(steps=400, self_driven=True, rate=1.5e-3, final_rate=1.4e-3),
                configs.Stage(steps=3300, rate=1.5e-3, final_rate=3e-4),
                configs.Stage(steps=500, past=True, rate=3e-4, final_rate=2e-5),
            ),
            optimizer=configs.Optimizer(average=0.995, warmup=50),
            flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=5, source=1.0, driving=1.4, past=1.4),
            dtype="float32",
            save_every=1000,
            evaluate=24,
        )
    )
