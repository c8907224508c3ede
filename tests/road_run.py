"""The full-size training with everything of its kind and small numbers, for tests/test_road.py.

python -m svdp_jax.train --config tests/road_run.py    # in a folder with weights/, prompts/ and data/
"""

import dataclasses

from svdp_jax import config as configs
from svdp_jax.models.vae import AutoencoderConfig

BACKBONE = configs.Backbone(
    width=32, heads=2, blocks=3, dual=1, text_width=32, pooled_width=24, channels=16, patch=2, table=12, base=4
)
CODER = AutoencoderConfig((8, 8, 16, 16), 1, 16, 4)
SIZE = 64


def config() -> configs.Config:
    full = configs.full_size("road", "", batch=4, mesh=configs.Mesh(), accumulate=2, remat="attention")
    first, second = full.stages
    return dataclasses.replace(
        full,
        model=dataclasses.replace(full.model, backbone=BACKBONE, video=dataclasses.replace(full.model.video, heads=2)),
        data=dataclasses.replace(full.data, source="records", path="data", size=SIZE, frames=4, past=2, threads=1),
        stages=(dataclasses.replace(first, steps=4, rate=1e-3), dataclasses.replace(second, steps=3, rate=1e-3)),
        optimizer=dataclasses.replace(full.optimizer, warmup=2),
        sampling=dataclasses.replace(full.sampling, steps=2),
        log_every=1,
        watch_every=3,
        sample_every=3,
        save_every=1,
    )


def get_config():
    return configs.as_flags(config())
