"""python -m svdp_jax.ablate configs/ablation/cached.py --workdir runs/cached

What it costs that conditions are computed once: the paper's model against the one whose conditions never look at what is
made (models/cached.py), of one small budget in the toy world.
"""

import dataclasses

from svdp_jax import config as configs

BASE = configs.Config(
    name="joint",
    model=configs.toy(),
    data=configs.Data(size=32, frames=2, past=1, batch=8),
    stages=(
        configs.Stage(steps=400, self_driven=True, rate=1.5e-3, final_rate=1.4e-3),
        configs.Stage(steps=900, rate=1.5e-3, final_rate=3e-4),
        configs.Stage(steps=200, past=True, rate=3e-4, final_rate=2e-5),
    ),
    optimizer=configs.Optimizer(average=0.99, warmup=50),
    flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
    sampling=configs.Sampling(steps=2, source=1.0, driving=1.4, past=1.4),
    dtype="float32",
    save_every=500,
    watch_every=0,
    evaluate=0,
)
VARIANTS = {"joint": {}, "cached": {"references": "cached"}}
QUESTIONS = {"Conditions that see what is made, against those computed once": ("cached",)}


def get_config(variant: str = "joint"):
    video = dataclasses.replace(BASE.model.video, **VARIANTS[variant])
    model = dataclasses.replace(BASE.model, video=video)
    return configs.as_flags(dataclasses.replace(BASE, name=variant, model=model))
