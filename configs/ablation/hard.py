"""python -m svdp_jax.ablate configs/ablation/hard.py --workdir runs/hard --at-once 2

The questions that the plain world cannot decide (configs/ablation/toy.py), in the hard one (svdp_jax/toy/hard.py):
drivers are hidden for up to six frames, hair swings after the head, backgrounds drift and light changes, so that other
frames carry what the driver's own does not tell. Columns that begin with `hidden` are of the frames in which a part of
the driver is hidden. Segments are twice as long as in the plain study, and clips come at their own pace, since what is
hidden for half a second can be told from frames half a second away, and not from those of five seconds.

Not yet run: 3600 steps of some 0.2 s for each variant and seed, three hours of one core in all.
"""

import dataclasses

from svdp_jax import config as configs

SELF, CROSS, LAST = 400, 2400, 800  # steps


def stages(late: bool = True, own: float = 0.0, early: bool = False) -> tuple:
    """As in configs/ablation/toy.py; own: share of past frames that are the model's own in the last stage."""
    return (
        configs.Stage(steps=SELF, self_driven=True, past=early, rate=1.5e-3, final_rate=1.4e-3),
        configs.Stage(steps=CROSS, past=early, rate=1.5e-3, final_rate=3e-4),
        configs.Stage(steps=LAST, past=late, own_past=own, rate=3e-4, final_rate=2e-5),
    )


BASE = configs.Config(
    name="base",
    model=configs.toy(),
    data=configs.Data(size=32, frames=8, past=2, batch=2, difficulty=1.0),
    stages=stages(),
    optimizer=configs.Optimizer(average=0.995, warmup=50),
    flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
    sampling=configs.Sampling(steps=5, source=1.0, driving=1.4, past=1.4),
    dtype="float32",
    save_every=1000,
    watch_every=0,
    evaluate=0,
)


def video(**changes) -> dict:
    return {"model": dataclasses.replace(BASE.model, video=dataclasses.replace(BASE.model.video, **changes))}


VARIANTS = {
    "base": {},
    "factorized": video(temporal="factorized"),
    "frames alone": video(temporal="none"),
    "real past at once": {"stages": stages(early=True)},
    "past never real": {"stages": stages(late=False)},
    "own past": {"stages": stages(own=0.5)},
    "no past": {"data": dataclasses.replace(BASE.data, past=0)},
}

QUESTIONS = {
    "Full-video attention against factorized and none": ("factorized", "frames alone"),
    "Zeros first, then real past, or one's own": ("real past at once", "past never real", "own past", "no past"),
}


def get_config(variant: str = "base"):
    return configs.as_flags(dataclasses.replace(BASE, name=variant.replace(" ", "_"), **VARIANTS[variant]))
