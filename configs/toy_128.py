"""python -m svdp_jax.train --config configs/toy_128.py

The miniature at 128x128, in latents of the small codec that comes with the package: a try, which is not yet better
than the model in the box (configs/toy_demo.py). What it trains on is drawn and encoded first, once:

    python -c "from svdp_jax.preparation import drawn; drawn.write('records/toy_self', clips=90, self_driven=True)"
    python -c "from svdp_jax.preparation import drawn; drawn.write('records/toy', clips=341)"

One core of an AMD EPYC that other work shared, 2026-11-28, at best 0.2 s a step: after 4500 steps in 34 minutes, and
without past, 17.92 dB on 24 unseen clips, 3.28 above repeating the source, with 0.07 of the truth's fine detail and a
distance of 0.79 in the codec's features, 0.57 for the model in the box at its own size; after 3000 steps, in four
sampling steps, it had 17.72 dB and 0.80. Control, of two frames a clip averaged to 32 pixels: yaw 0.75, pitch 0.86, roll
0.40, blink 0.66, mouth opening 0.38, gaze 0.34 sideways and 0.37 up and down. All 5350 steps, with past: 17.89 dB, 0.08
and 0.79. Looked at: whose face and colours it is, where it looks and its mouth, in a blur
with the borders of 32x32-pixel tokens. The loss falls to the end (means of 250 steps: 2.02 at step 350, 1.81 at 1000,
1.62 at 2000, 1.53 at 3000, 1.44 at 4000, 1.37 at 4950). What holds it back is not told apart: steps, 341 people, or
256 numbers a token through a width of 128. With `model.backbone.patch=2` there are 64 tokens a frame, for which a step took
0.6 s of a core.
"""

from svdp_jax import config as configs


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_128",
            model=configs.miniature(),
            data=configs.Data(source="records", path="records/toy", size=128, frames=2, past=1, batch=8, threads=1),
            stages=(
                configs.Stage(steps=350, rate=1.5e-3, final_rate=1.4e-3, data=configs.Changes(path="records/toy_self")),
                configs.Stage(steps=4600, rate=1.5e-3, final_rate=3e-4),
                configs.Stage(steps=400, past=True, rate=3e-4, final_rate=2e-5),
            ),
            optimizer=configs.Optimizer(average=0.998, warmup=50),
            flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=3, source=1.0, driving=1.4, past=1.4),
            dtype="float32",
            save_every=250,
            watch_every=0,
            evaluate=24,
        )
    )
