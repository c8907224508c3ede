"""python -m svdp_jax.train --config configs/toy_adapter.py

The miniature that comes with the package, fine-tuned on one's own clips, as the notebook does where nobody
has named weights. First, `python -m svdp_jax.prepare videos records --size 32 --codec pixels:4 --pairs self`.
What learns are 0.56 of 2.4 million parameters, a model/ of 2.3 MB.
"""

from svdp_jax import config as configs
from svdp_jax.weights.shipped import FOLDER


def get_config():
    return configs.as_flags(
        configs.Config(
            name="toy_adapter",
            model=configs.toy(),
            data=configs.Data(source="records", path="records", size=32, frames=2, past=1, batch=8),
            stages=(configs.Stage(steps=300, past=True, rate=3e-4, final_rate=2e-5),),
            optimizer=configs.Optimizer(average=0.99, warmup=50),
            flow=configs.Flow(mean=1.5, focus=4.0, dropout=(0.03, 0.03, 0.14, 0.8)),
            sampling=configs.Sampling(steps=2, source=1.0, driving=1.4, past=1.4),
            dtype="float32",
            learn="adapter",
            start=str(FOLDER),
            save_every=100,
            watch_every=0,
            evaluate=0,
        )
    )
