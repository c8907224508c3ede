"""TPU chips, and the step time that their published rates lead to."""

from typing import NamedTuple

import numpy as np

from svdp_jax import config as configs
from svdp_jax.planning.flops import target_flops, tokens_per_frame, train_flops
from svdp_jax.training.journal import Work


class Chip(NamedTuple):
    """One chip: peak bf16 TFLOP/s, HBM in GiB and its GB/s, network GB/s each way (the maker's pages), the
    share of the peak that matmuls reach (MaxText's published MFU), and attention TFLOP/s at head
    sizes 64 and 128 (tokamax, forward, 16384 tokens; v4 and v5e scaled from v5p by their peaks)."""

    peak: float
    memory: float
    bandwidth: float
    network: float
    matmul: float
    attention: dict[int, float]


CHIPS = {
    "v4": Chip(275, 32, 1200, 300, 0.589, {64: 126, 128: 246}),
    "v5e": Chip(197, 16, 819, 200, 0.669, {64: 91, 128: 176}),
    "v5p": Chip(459, 95, 2765, 600, 0.715, {64: 211, 128: 410}),
    "v6e": Chip(918, 32, 1638, 448, 0.503, {64: 174, 128: 330}),
}
# Peak bf16 TFLOP/s of one device, by what JAX calls it.
TPUS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
PEAKS = {kind: CHIPS[name].peak for kind, name in TPUS.items()} | {"NVIDIA H100 80GB HBM3": 989, "NVIDIA H200": 989}


def step_work(config: configs.Config, devices: list) -> Work:
    """What a train step is worth on these devices; what is computed anew counts once."""
    d = config.data
    tokens = d.batch * (d.frames + d.past) * tokens_per_frame(config)
    tflop = d.batch * (train_flops(config) + sum(target_flops(config).values())) / 1e12
    return Work(tokens, tflop, sum(PEAKS.get(device.device_kind, 0) for device in devices))


# How much work a train step is, in forward passes of matmuls and of attention, by what is kept. Backward
# is twice a forward pass of matmuls, and 2.5 times of attention: five products of scores' size, not two.
PASSES = {"none": (3, 3.5), "full": (4, 4.5), "attention": (4, 3.5), "offload": (4, 3.5)}


def seconds(
    config: configs.Config,
    chip: Chip,
    flops: dict,
    clips: float,
    chips: int,
    bytes_sent: float,
    passes: tuple[float, float] = (1, 1),
    spared: float = 0.0,
) -> dict[str, float]:
    """Expected time of a step by what takes it; matmuls and attention are run `passes` times, but for
    `spared` FLOPs of matmuls.

    Attention runs at its kernel's rate for the head size, all else at the matmul rate, and
    collectives take their bytes over the network's speed, hidden by nothing.
    """
    b = config.model.backbone
    sizes = {"joint attention": b.width // b.heads, "attn2 attention": b.width // b.heads,
             "video attention": b.width // config.model.video.heads}  # fmt: skip
    rate = lambda size: np.interp(size, sorted(chip.attention), [chip.attention[k] for k in sorted(chip.attention)])
    matmul = sum(x for part, x in flops.items() if part not in sizes)
    attention = sum(flops[part] / rate(size) for part, size in sizes.items())
    each = clips / chips / 1e12
    return {
        "matmuls": (passes[0] * matmul - spared) * each / (chip.peak * chip.matmul),
        "attention": passes[1] * attention * each,
        "network": bytes_sent / (chip.network * 1e9),
    }
