"""python -m svdp_jax.ablate configs/ablation/toy.py

What the paper claims, as variants of one small training in the toy world, all of one budget.
Any of them alone: python -m svdp_jax.train --config configs/ablation/toy.py:factorized

Its tables are in configs/ablation/results (two cores of an Intel Xeon, 2026-11-25), and what they
say in the README. 3 200 steps of four people are few: head pose and looks are learned (yaw 0.87), blink
and mouth only begun. Two trainings at once, a core each, take 0.07 s a step together, one on both
cores 0.095 s.
"""

import dataclasses

from svdp_jax import config as configs

SELF, CROSS, LAST = 400, 2000, 800  # steps


def stages(first: bool = True, cross: bool = True, early: bool = False, late: bool = True) -> tuple:
    """Three stages; `first` is always self-driven, as configs/toy_cpu.py is. early, late: real past."""
    return (
        configs.Stage(steps=SELF, self_driven=first, past=early, rate=1.5e-3, final_rate=1.4e-3),
        configs.Stage(steps=CROSS, self_driven=not cross, past=early, rate=1.5e-3, final_rate=3e-4),
        configs.Stage(steps=LAST, self_driven=not cross, past=late, rate=3e-4, final_rate=2e-5),
    )


BASE = configs.Config(
    name="base",
    model=configs.toy(),
    data=configs.Data(size=32, frames=4, past=2, batch=4),
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


def data(**changes) -> dict:
    return {"data": dataclasses.replace(BASE.data, **changes)}


VARIANTS = {
    "base": {},
    "factorized": video(temporal="factorized"),
    "frames alone": video(temporal="none"),
    "real past at once": {"stages": stages(early=True)},
    "past never real": {"stages": stages(late=False)},
    "no past": data(past=0),
    "masked self": {"stages": stages(cross=False)},
    "unmasked cross": data(masked=False),
    "unmasked self": {"stages": stages(cross=False)} | data(masked=False),
    "dropped tokens": video(null="drop"),
}

# Questions, each to the base and the variants it is told from.
QUESTIONS = {
    "Full-video attention against factorized and none": ("factorized", "frames alone"),
    "Zeros first, then real past": ("real past at once", "past never real", "no past"),
    "Masked drivers of another identity": ("masked self", "unmasked cross", "unmasked self"),
    "Absent conditions: zeros or no tokens": ("dropped tokens",),
}


WEIGHTS = {"source": (0.5, 1.0, 2.0), "driving": (1.0, 1.4, 2.5), "past": (0.5, 1.4, 2.5)}  # of guidance


def get_config(variant: str = "base"):
    return configs.as_flags(dataclasses.replace(BASE, name=variant.replace(" ", "_"), **VARIANTS[variant]))
