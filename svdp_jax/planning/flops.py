"""The work of the network, by our own count: 2 per multiplication and addition in a matrix product.

The compiler's count knows nothing of what attention kernels do.
"""

import re
from collections import defaultdict

import numpy as np

from svdp_jax import config as configs
from svdp_jax.models import learned
from svdp_jax.values import learn
from svdp_jax.weights.checkpoint import named
from svdp_jax.weights.prompts import TEXTS

# The matrix products of each part, by the names of their kernels; the first pattern counts.
KERNELS = {
    "image stream": r"image\.\w+\.(attn\.to_(q|k|v|out)|ff\.\w+)\.kernel",
    "text stream": r"image\.\w+\.(attn\.(add_\w+|to_add_out)|ff_context\.\w+)\.kernel",
    "attn2 projections": r"image\.\w+\.attn2\.\w+\.kernel",
    "video projections": r"video_\w+\.to_\w+\.kernel",
    "embeddings": r".*kernel",
}
LOW_RANK = "low-rank parts"


def forward_flops(config: configs.Config) -> dict[str, float]:
    """Of one clip, by part, with tokens for every condition."""
    flops = plain_flops(config)
    sizes = kernel_sizes(config)
    beside = sum(flops[part] * sizes[part][LOW_RANK] / sizes[part]["all"] for part in KERNELS if sizes[part]["all"])
    return flops | ({LOW_RANK: beside} if beside else {})


def train_flops(config: configs.Config) -> float:
    """Of a train step of one clip, what is computed anew not counted: backward is twice a forward pass, but for the
    gradients of frozen kernels, which nobody wants."""
    return 3 * sum(forward_flops(config).values()) - spared_flops(config)


def spared_flops(config: configs.Config) -> float:
    """Of the products that would give frozen kernels their gradients."""
    flops, sizes = plain_flops(config), kernel_sizes(config)
    return sum(flops[part] * sizes[part]["frozen"] / sizes[part]["all"] for part in KERNELS if sizes[part]["all"])


def kernel_sizes(config: configs.Config) -> dict[str, defaultdict[str, int]]:
    """Numbers in the kernels of each part: all of them, the frozen ones, and the low-rank parts beside them."""
    _, weights, constants = learned.abstract(config)
    rows = learn.rows(config.learn)
    sizes = {part: defaultdict(int) for part in KERNELS}
    for name, leaf in (named(weights) | named(constants)).items():
        layer, _, end = name.rpartition(".")
        part = next(part for part, pattern in KERNELS.items() if re.fullmatch(pattern, f"{layer}.kernel"))
        if end in learned.PARTS:
            sizes[part][LOW_RANK] += int(np.prod(leaf.shape))
        elif end == "kernel":
            sizes[part]["all"] += int(np.prod(leaf.shape))
            sizes[part]["frozen"] += int(np.prod(leaf.shape)) * (learn.how(rows, name).how != "full")
    return sizes


def plain_flops(config: configs.Config) -> dict[str, float]:
    """As `forward_flops`, without low-rank parts."""
    model, data = config.model, config.data
    b, t = model.backbone, text_tokens(config)
    temporal, f, n = model.video.temporal, data.frames, tokens_per_frame(config)
    p = data.past if temporal != "none" else 0
    streams = ((f, 3 * n), (p, n))  # frames, and image tokens in each
    frames, video = f + p, (f + p) * n
    seen = {"full": video, "factorized": frames, "none": 0}[temporal]  # tokens that each looks at
    queries = video * (b.blocks - 1) + f * n  # of the last block, the current frames alone
    return block_flops(b, streams, t, (f, 3 * n, n)) | {
        "video projections": 2 * 2 * b.width**2 * (video * b.blocks + queries) * (temporal != "none"),
        "video attention": 4 * b.width * seen * queries,
        "embeddings": embedding_flops(config, sum(count * length for count, length in streams), f * n, t),
    }


def tokens_per_frame(config: configs.Config) -> int:
    return (config.data.size // config.model.codec.factor // config.model.backbone.patch) ** 2


def block_flops(b: configs.Backbone, streams: tuple, t: int, last: tuple[int, int, int]) -> dict[str, float]:
    """Of the backbone's blocks, on streams of so many frames with so many image tokens each.

    last: frames of the last block, image tokens in each, and how many of these are read: for the
    others it makes keys and values alone, and of text too.
    """
    d, frames = b.width, sum(count for count, _ in streams)
    tokens = sum(count * length for count, length in streams)
    scores = lambda extra: sum(count * (length + extra) ** 2 for count, length in streams)
    f, seen, read = last
    return {
        "image stream": 2 * d**2 * (12 * tokens * (b.blocks - 1) + f * (2 * seen + 10 * read)),
        "text stream": 2 * d**2 * t * (12 * frames * (b.blocks - 1) + 3 * f),
        "joint attention": 4 * d * (scores(t) * (b.blocks - 1) + f * read * (seen + t)),
        "attn2 projections": 2 * 4 * d**2 * tokens * b.dual,
        "attn2 attention": 4 * d * scores(0) * b.dual,
    }


def embedding_flops(config: configs.Config, tokens: int, outputs: int, text: int) -> float:
    """Of patches in and out, text, time, and the modulation (AdaLN) of every block."""
    b = config.model.backbone
    d, patch = b.width, b.patch**2 * b.channels
    chunks = 12 * b.blocks + 3 * b.dual - 4 + 3 * b.blocks * (config.model.video.temporal != "none") + 2
    once = d * (256 + d + b.pooled_width + d) + chunks * d**2
    return 2 * (patch * d * (tokens + outputs) + text * b.text_width * d + once)


def text_tokens(config: configs.Config) -> int:
    return TEXTS[config.model.video.text] if config.prompt else 1
