"""A config for tests of faults: the smallest model on clips of noise, which start within seconds.

    python -m svdp_jax.train --config tests/little_run.py

FAULTS in the environment, a JSON object, makes its data fail: `bad` lists examples that
cannot be read, `hang` is one whose reader never returns, `quit` one whose reader ends its
thread, `die` one from which on nothing can be read, `gate` one from which on all wait until a
file is there and its path, `slow` seconds that every example takes, `patience` seconds between two words about data that does not come.
"""

import json
import math
import os
import threading
import time

import jax
import numpy as np

from svdp_jax import config as configs
from svdp_jax.training import feed, own_past, records

FAULTS = json.loads(os.environ.get("FAULTS", "{}"))


def noise(config: configs.Config, cache):
    d = config.data
    first, gate = FAULTS.get("gate", (math.inf, ""))

    def example(index: int) -> dict:
        time.sleep(FAULTS.get("slow", 0))
        while index >= first and not os.path.exists(gate):
            time.sleep(0.01)
        if index in FAULTS.get("bad", []):
            raise OSError(f"clip {index} is broken")
        if index == FAULTS.get("hang"):
            threading.Event().wait()
        if index == FAULTS.get("quit"):
            raise SystemExit("this reader is gone")
        if "die" in FAULTS and index >= FAULTS["die"]:
            raise OSError("the disk is gone")
        random = np.random.default_rng((config.seed, index))
        draw = lambda *lead: random.integers(0, 256, (*lead, d.size, d.size, 3), np.uint8)
        example = {"source": draw(), "past": draw(d.past), "target": draw(d.frames), "driving": draw(d.frames)}
        return example | ({"past_driving": draw(d.past)} if own_past.needed(config) else {})

    return example


def config(**changes) -> configs.Config:
    model = configs.Model(
        backbone=configs.Backbone(
            width=32, heads=2, blocks=1, dual=0, text_width=8, pooled_width=8, channels=48, table=16, base=16
        ),
        video=configs.Video(heads=2),
        codec=configs.Codec(kind="pixels", factor=4),
        predict="clean",
    )
    return configs.Config(
        **{
            "name": "little",
            "model": model,
            "data": configs.Data(size=16, frames=2, past=2, batch=8, threads=1),
            "optimizer": configs.Optimizer(warmup=2),
            "stages": (configs.Stage(steps=10, rate=2e-3), configs.Stage(steps=6, past=True, rate=1e-3)),
            "dtype": "float32",
            "log_every": 1,
            "save_every": 2,
            "evaluate": 0,
        }
        | changes
    )


def get_config():
    jax.config.update("jax_numpy_dtype_promotion", "standard")  # optax mixes integers and floats
    records.SOURCES["toy"] = noise
    feed.PATIENCE = FAULTS.get("patience", feed.PATIENCE)
    return configs.as_flags(config())
