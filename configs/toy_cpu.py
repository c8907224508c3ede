"""python -m svdp_jax.train --config configs/toy_cpu.py

The miniature on two CPU cores.
Two cores of an Intel Xeon, 2026-11-25, 8 min 48 s in a fresh environment: 19.97 dB, 3.45 dB above
repeating the source; control of yaw 0.85, pitch 0.85, blink 0.70, mouth opening 0.56, gaze_x
0.37, on 24 clips of people and motions never seen. With 800 steps fewer in the second stage the
mouth had 0.40 to 0.43 and blink 0.60; then 3 sampling steps and guidance 1.5 gave the mouth
0.38, and 6 steps 0.44 at 0.2 dB less.

What was learned on the way here, by the error near noise with the true driver against a
shuffled one (the gap opens when the model has found the driver):
- A self-driven first stage opens the gap within 400 steps: what is kept of the driver can be
  copied, so a token soon finds its place in it. Without it, 900 to 1400 steps showed no gap.
- The loss focused on eyes, nose and mouth (`flow.focus=4`): pitch control from 0.68 to 0.87,
  blink from 0.18 to 0.61 on the same clips after as many steps.
- Positions that are nearly orthogonal (`base=480`) and a small patch projection.
- Times near noise (`flow.mean=1.5`): elsewhere the noisy picture itself shows the pose.
- Two frames a segment and eight people a step rather than four and four; width 128 and 3
  blocks, which learn as much a step as 192 and 4 in half the time.
- Guidance above 1 towards the driver (1.4 to 2) gains control and loses PSNR; fewer sampling
  steps gain PSNR and lose the mouth.
- Little to gain on this CPU: products of bfloat16 summed in float32 run at 800 GFLOP/s (AMX) where
  float32 has 140, but they are a fifth of a step, which became 5 % faster. The rest is some 2500
  small operations; two runs at once, a core each, take three quarters of one on both.
- No difference: learning rates from 1.5e-3 to 4e-3, Muon, gates that start open, queries tied
  to keys at the start, sharper attention at the start. Worse: 8 heads, learning rate 6e-4.
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
                configs.Stage(steps=4100, rate=1.5e-3, final_rate=3e-4),
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
