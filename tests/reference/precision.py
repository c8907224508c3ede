"""What bfloat16 does to training noise, and to the pictures of the model that comes with the package.

    PYTHONPATH=.:tests python tests/reference/precision.py    # two minutes

tests/test_precision.py takes the same measures of fewer numbers.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from conftest import tiny_model

from svdp_jax import config as configs
from svdp_jax.diffusion import flow
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.evaluation import toy_score
from svdp_jax.training import step
from svdp_jax.weights import checkpoint, shipped


def as_trained(count: int) -> tuple[np.ndarray, float]:
    """So many numbers of noise, as they enter the loss of a bfloat16 config, and that loss with a network that says 0."""
    config = configs.Config("noise", dataclasses.replace(tiny_model(), predict="velocity"))
    drawn, noised = [], flow.noised
    frames = -(-count // (2 * 64 * 64 * 16))
    latents = {name: jnp.zeros((2, frames, 64, 64, 16)) for name in ("target", "driving", "past")}
    text = {"text": jnp.zeros((2, 1, 8), jnp.bfloat16), "pooled": jnp.zeros((2, 8), jnp.bfloat16)}
    batch = latents | text | {"source": latents["target"][:, 0], "seen": jnp.ones((2, frames, 64, 64, 1))}

    def spy(x0, noise, s):
        drawn.append(noise)
        return noised(x0, noise, s)

    flow.noised = spy
    try:
        value = step.flow_loss(lambda x, *_, policy, **conditions: 0 * x, None, batch, jax.random.key(0), config, 0)
    finally:
        flow.noised = noised
    return np.asarray(drawn[0], np.float64).ravel(), float(value)


def moments(x: np.ndarray) -> dict[str, float]:
    """How many standard errors each is away from that of the normal distribution."""
    n = len(x)
    beyond = lambda z, share: ((np.abs(x) > z).mean() - share) / (share / n) ** 0.5
    return {
        "mean": x.mean() * n**0.5,
        "variance": ((x**2).mean() - 1) * (n / 2) ** 0.5,
        "third moment": (x**3).mean() * (n / 15) ** 0.5,
        "fourth moment": ((x**4).mean() - 3) * (n / 96) ** 0.5,
        "beyond 3": beyond(3, 2.69980e-3),
        "beyond 4": beyond(4, 6.33425e-5),
    }


def pictures(clips: int, **changes) -> np.ndarray:
    """What the shipped model makes of unseen clips, with a config changed so: b f y x c."""
    config, model = checkpoint.load_model(shipped.find())
    config = dataclasses.replace(config, **changes)
    engine = SVDPEngine(config, model, checkpoint.load_codec(config.model.codec))
    return toy_score.generate(engine, toy_score.unseen_clips(config.data, clips)).astype(np.float64)


def main() -> None:
    noise, _ = as_trained(10**7)
    print(f"{len(noise)} numbers, {len(np.unique(noise))} of them different, the largest {np.abs(noise).max():.2f}")
    for name, away in moments(noise).items():
        print(f"{name}: {away:+.2f} standard errors from the normal")
    exact, half = (pictures(32, dtype=dtype) for dtype in ("float32", "bfloat16"))
    print(f"mean of 32 clips: {exact.mean():.3f} in float32, {half.mean() / exact.mean() - 1:+.4%} in bfloat16")
    print(f"mean difference of a pixel: {np.abs(half - exact).mean():.2f} of 255")


if __name__ == "__main__":
    main()
