"""The work of the network, by our own count: 2 per multiplication and addition in a matrix product.

The compiler's count knows nothing of what attention kernels do.
"""

import dataclasses
import re
from collections import Counter, defaultdict
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svdp_jax import config as configs
from svdp_jax.diffusion import guidance
from svdp_jax.models import learned
from svdp_jax.values import learn
from svdp_jax.weights import adapter
from svdp_jax.weights.checkpoint import CODECS, named
from svdp_jax.weights.prompts import TEXTS

ALL = 3  # of the levels of `diffusion.guidance`: with every condition
# The matrix products of each part, by the names of their kernels; the first pattern counts.
KERNELS = {
    "image stream": r"image\.\w+\.(attn\.to_(q|k|v|out)|ff\.\w+)\.kernel",
    "text stream": r"image\.\w+\.(attn\.(add_\w+|to_add_out)|ff_context\.\w+)\.kernel",
    "attn2 projections": r"image\.\w+\.attn2\.\w+\.kernel",
    "video projections": r"video_\w+\.to_\w+\.kernel",
    "embeddings": r".*kernel",
}
LOW_RANK = "low-rank parts"


def forward_flops(config: configs.Config, level: int = ALL) -> dict[str, float]:
    """Of one clip, by part, with tokens for the conditions of a level of guidance."""
    flops, sizes = plain_flops(config, level), kernel_sizes(config)
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
    _, weights, constants = adapter.abstract(config)
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


def plain_flops(config: configs.Config, level: int = ALL) -> dict[str, float]:
    """As `forward_flops`, without low-rank parts."""
    once, step = once_flops(config, level), step_flops(config, level)
    return {part: once.get(part, 0) + value for part, value in step.items()}


def segment_flops(config: configs.Config) -> dict[str, float]:
    """Of all that the network does for one segment of sampling, of which what is cached is done once."""
    sampling, v = config.sampling, config.model.video
    total = Counter()
    for level in guidance.weights(sampling, config.model.told):
        level = level if v.null == "drop" else ALL
        for times, flops in ((1, once_flops(config, level)), (sampling.steps, step_flops(config, level))):
            total.update({part: times * value for part, value in flops.items()})
    return dict(total)


@lru_cache(maxsize=8)
def encoder_flops(codec: configs.Codec, size: int) -> float:
    """Of encoding a picture, as the compiler counts them: convolutions are nearly all."""
    graph, state = nnx.split(nnx.eval_shape(lambda: CODECS[codec.kind](codec)))
    picture = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    encode = jax.jit(lambda state, x: nnx.merge(graph, state).encode(x))
    costs = encode.lower(state, picture).cost_analysis()
    assert costs
    return costs["flops"]


def encoding_flops(config: configs.Config) -> float:
    """Of one clip of a training that encodes what it reads: source, past, target and driver. Records hold latents."""
    d, codec = config.data, config.model.codec
    if d.source == "records" or codec.kind == "pixels":
        return 0.0
    return (1 + d.past + 2 * d.frames) * encoder_flops(codec, d.size)


def shapes_of(data: configs.Data) -> configs.Data:
    """What of it a step is compiled for."""
    return dataclasses.replace(data, path="")


def target_flops(config: configs.Config) -> dict[str, float]:
    """Of a training step's work on one clip before its forward and backward pass, in the mean over the steps of stages that
    have the config's data: a student's own calls to where it begins, and its teacher's steps from there."""
    pairs = zip(config.stages, configs.by_stage(config))
    stages = [stage for stage, staged in pairs if shapes_of(staged.data) == shapes_of(config.data)]
    total, steps = Counter(), sum(stage.steps for stage in stages)
    video = dataclasses.replace(config.model.video, references="joint")
    teacher = dataclasses.replace(config, model=dataclasses.replace(config.model, video=video, told=False))
    branches = len(guidance.drawn(jax.random.key(0), config.teaching, 1)[1])
    for stage in stages:
        for calls in stage.calls if stage.kind == "path" else ():
            for times, one in ((stage.path / calls * branches, teacher), (calls - 1, config)):
                share = times * stage.steps / steps / len(stage.calls)
                total.update({part: share * value for part, value in forward_flops(one).items()})
    return dict(total)


def step_flops(config: configs.Config, level: int = ALL) -> dict[str, float]:
    """Of what changes with z: with cached references z alone, else everything."""
    model, f, n, t = config.model, config.data.frames, tokens_per_frame(config), text_tokens(config)
    b, p, beside = model.backbone, past_frames(config, level), min(level, 2) * n  # tokens beside a frame of z
    if model.video.references == "cached":
        streams, last = ((f, n, beside),), (f, n, n + beside, n)
        tokens, video = f * n, through_time(config, f, f + p, f)
    else:
        streams, last = ((f, n + beside, 0), (p, n, 0)), (f, n + beside, n + beside, n)
        tokens, video = f * (n + beside) + p * n, through_time(config, f + p, f + p, f)
    return block_flops(b, streams, t, last) | video | {"embeddings": embedding_flops(config, tokens, f * n, t)}


def once_flops(config: configs.Config, level: int = ALL) -> dict[str, float]:
    """Of what is the same at all times: with cached references the source, the driving frames and the past."""
    if config.model.video.references == "joint" or not level:
        return {}
    f, n, t, p = config.data.frames, tokens_per_frame(config), text_tokens(config), past_frames(config, level)
    frames = (1 if level == 1 else 1 + f) + p
    # Of the last block keys and values alone, within frames or through time.
    within = block_flops(config.model.backbone, ((frames, n, 0),), t, (frames - p, n, 0, 0))
    embedded = embedding_flops(config, frames * n, 0, t)
    return within | through_time(config, p, p, 0) | {"embeddings": embedded}


def past_frames(config: configs.Config, level: int) -> int:
    return config.data.past if level == ALL and config.model.video.temporal != "none" else 0


def through_time(config: configs.Config, frames: int, seen: int, last: int) -> dict[str, float]:
    """Of attention through time, of so many frames that look at so many; `last` of them do in the last block."""
    b, v, n = config.model.backbone, config.model.video, tokens_per_frame(config)
    looked = {"full": seen * n, "factorized": seen, "none": 0}[v.temporal]  # tokens
    queries = n * (frames * (b.blocks - 1) + last)
    projections = 2 * 2 * b.width**2 * (frames * n * b.blocks + queries)
    return {"video projections": projections * (v.temporal != "none"), "video attention": 4 * b.width * looked * queries}


def tokens_per_frame(config: configs.Config) -> int:
    return (config.data.size // config.model.codec.factor // config.model.backbone.patch) ** 2


def block_flops(b: configs.Backbone, streams: tuple, t: int, last: tuple[int, int, int, int]) -> dict[str, float]:
    """Of the backbone's blocks, on streams of so many frames, with so many image tokens each, which look at so many more.

    last: frames of the last block, image tokens in each, how many they look at, and how many are read: for the others it
    makes keys and values alone; of text too, where any are read.
    """
    d, frames = b.width, sum(count for count, *_ in streams)
    tokens = sum(count * length for count, length, _ in streams)
    scores = lambda extra: sum(count * (length + extra) * (length + beside + extra) for count, length, beside in streams)
    f, made, seen, read = last
    return {
        "image stream": 2 * d**2 * (12 * tokens * (b.blocks - 1) + f * (2 * made + 10 * read)),
        "text stream": 2 * d**2 * t * (12 * frames * (b.blocks - 1) + 3 * f * (read > 0)),
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
