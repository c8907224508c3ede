"""python -m svdp_jax.train --config configs/ablation/adapters.py:image --workdir runs/adapters/image
python -m svdp_jax.ablate configs/ablation/adapters.py --workdir runs/adapters --clips 8

What learning a part of the weights costs, in the toy world: everything, attention through time alone, or that and
low-rank parts of the image model, each from the same image model. That is trained by the first command, on
single frames of people whose source picture it sees and whose driver it does not. docs/study.md has the result.
"""

import dataclasses

from svdp_jax import config as configs

SELF, CROSS, LAST = 200, 600, 200  # steps
BASE = configs.Config(
    name="base",
    model=configs.toy(),
    data=configs.Data(size=32, frames=4, past=2, batch=4),
    optimizer=configs.Optimizer(average=0.995, warmup=50),
    flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
    sampling=configs.Sampling(steps=5, source=1.0, driving=1.4, past=1.4),
    dtype="float32",
    save_every=1000,
    watch_every=0,
    evaluate=0,
)
IMAGE = dataclasses.replace(
    BASE,
    name="image",
    model=dataclasses.replace(BASE.model, video=dataclasses.replace(BASE.model.video, temporal="none")),
    data=dataclasses.replace(BASE.data, frames=1, past=0, batch=16),
    stages=(configs.Stage(steps=1500, rate=1.5e-3, final_rate=1e-4),),
    flow=dataclasses.replace(BASE.flow, dropout=(0.1, 0.9, 0.0, 0.0)),
)
STAGES = (
    configs.Stage(steps=SELF, self_driven=True, rate=1.5e-3, final_rate=1.4e-3),
    configs.Stage(steps=CROSS, rate=1.5e-3, final_rate=3e-4),
    configs.Stage(steps=LAST, past=True, rate=3e-4, final_rate=2e-5),
)
VARIANTS = {
    "all": {},
    "video": {"learn": "video"},
    "adapter": {"learn": "adapter"},
    "adapter over int8": {"learn": "adapter", "frozen": "int8"},
}
QUESTIONS = {"What learns": ("video", "adapter", "adapter over int8")}


def get_config(variant: str = "all"):
    started = dataclasses.replace(BASE, name=variant.replace(" ", "_"), stages=STAGES, start="runs/adapters/image")
    return configs.as_flags(IMAGE if variant == "image" else dataclasses.replace(started, **VARIANTS[variant]))
