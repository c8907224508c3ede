"""Typed configs and their named variants.

A config is a frozen dataclass, complete by itself: nothing changes it at run
time. `as_flags` turns one into the `ml_collections.ConfigDict` that a file in
`configs/` returns, so that any field can be set from the command line as
`--config.a.b=value`; `from_flags` turns the result back and checks it.

The dimension alphabet, used in einops patterns and shape columns everywhere:

    b batch · f frames generated per segment · p past frames · n image tokens per frame
    t text tokens · d width · h heads · k head size · c latent channels

Pictures and latents add y, x for rows and columns where h is taken by heads.
"""

import dataclasses
import itertools
import typing
from dataclasses import dataclass, field

from absl import flags
from ml_collections import ConfigDict, config_flags

from svdp_jax.errors import UserError


@dataclass(frozen=True)
class Backbone:
    """The image model, SD3.5-M by default. Widths in channels, `table` and `base` in patches."""

    width: int = 1536
    heads: int = 24
    blocks: int = 24  # the last one keeps no text output
    dual: int = 13  # the first blocks, with a second image-only attention
    text_width: int = 4096
    pooled_width: int = 2048
    channels: int = 16
    patch: int = 2
    table: int = 384  # side of the position table
    base: int = 64  # table rows that one unit-scale picture spans
    kernel: str = "auto"  # of attention, by device: auto | splash (TPU) | cudnn (NVIDIA) | xla


@dataclass(frozen=True)
class Video:
    """What the video model adds to the backbone."""

    temporal: str = "full"  # full | factorized | none
    heads: int = 12
    null: str = "zeros"  # absent conditions: zeros | drop
    text: str = "all"  # tokens of the prompt: all (CLIP's 77 and T5's 256) | clip
    scheme: str = "auto"  # attention over frames on several devices: auto | heads | ring


@dataclass(frozen=True)
class Codec:
    """Pictures to latents. `pixels` is exact (space to depth), `sd3` is the SD3 autoencoder."""

    kind: str = "sd3"
    factor: int = 8  # pixels per latent row
    weights: str = ""  # folder of the converted autoencoder


@dataclass(frozen=True)
class Model:
    backbone: Backbone = field(default_factory=Backbone)
    video: Video = field(default_factory=Video)
    codec: Codec = field(default_factory=Codec)
    predict: str = "velocity"  # velocity | clean


def sd35m() -> Model:
    """The paper's model: Stable Diffusion 3.5 Medium and full-video attention."""
    return Model()


def toy() -> Model:
    """The same model small enough for two CPU cores, on 8x8-pixel patches.

    It predicts the clean picture: a patch of noise has too many numbers to pass
    through this width, a patch of a picture does not.
    """
    return Model(
        backbone=Backbone(
            width=128, heads=4, blocks=3, dual=1, text_width=32, pooled_width=32, channels=48, patch=2, table=24, base=480
        ),
        video=Video(heads=4),
        codec=Codec(kind="pixels", factor=4),
        predict="clean",
    )


@dataclass(frozen=True)
class Data:
    source: str = "toy"  # toy | videos | records
    path: str = ""  # folder of videos, or of what svdp_jax.prepare made
    size: int = 32  # pixels
    frames: int = 4
    past: int = 1
    batch: int = 16  # examples per step, over all devices
    masked: bool = True  # whether of the driver only eyes, nose and mouth are seen; False for toy drivers only
    threads: int = 2  # that prepare examples


@dataclass(frozen=True)
class Optimizer:
    """AdamW. Rates per step; `average` is the decay of the exponential moving average."""

    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: int = 100
    average: float = 0.995
    accumulate: int = 1  # gradient accumulation, micro-batches per step
    moment: str = "float32"  # of AdamW's first moment: float32 | bfloat16


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum.

    `past` tells whether past frames are real or zeros; `self_driven`, whether the driver is the
    target person, whose kept regions can be copied, so that a toy model soon finds the driver.
    """

    steps: int = 1000
    past: bool = False
    self_driven: bool = False
    rate: float = 1e-3  # peak learning rate
    final_rate: float = 1e-4  # reached by a cosine at the end of the stage


@dataclass(frozen=True)
class Flow:
    """Training times: s is logit-normal, then shifted towards noise."""

    focus: float = 0.0  # added weight of the loss where the driver is seen: eyes, nose, mouth
    mean: float = 0.0
    std: float = 1.0
    shift: float = 3.0
    dropout: tuple[float, ...] = (0.05, 0.05, 0.1, 0.8)  # nothing, source, source + driving, all


@dataclass(frozen=True)
class Sampling:
    steps: int = 28
    shift: float = 3.0
    source: float = 2.0  # guidance weights: towards the source,
    driving: float = 2.5  # the driving video,
    past: float = 1.0  # and the past frames


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis of the mesh; -1 takes what is left."""

    data: int = -1
    fsdp: int = 1
    context: int = 1


@dataclass(frozen=True)
class Config:
    name: str
    model: Model
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    stages: tuple[Stage, ...] = (Stage(),)
    flow: Flow = field(default_factory=Flow)
    sampling: Sampling = field(default_factory=Sampling)
    mesh: Mesh = field(default_factory=Mesh)
    topology: str = ""  # TPU slice that this is for, such as v4:2x2x4; empty means any devices
    dtype: str = "bfloat16"  # of activations; parameters are float32
    remat: str = "none"  # what the backward pass finds kept: none (all) | full (nothing) |
    # attention (its outputs) | offload (the same, in host memory)
    backbone: str = ""  # folder of converted SD3.5 weights to start from; empty means random
    start: str = ""  # work folder of a finished run whose model a new one starts from
    prompt: str = ""  # file of an encoded prompt; empty means zeros
    seed: int = 0
    log_every: int = 10
    watch_every: int = 100  # steps between checks for copying the driver; 0 for none
    save_every: int = 250
    keep: int = 3  # checkpoints of the run, the newest
    evaluate: int = 8  # clips scored at the end of training


def full_size(
    name: str, topology: str, batch: int, mesh: Mesh, accumulate: int = 1, video_heads: int = 12, **changes
) -> Config:
    """The paper's training at 512x512: 16 frames after 4 past ones, real past in the last 10 000 steps.

    `weights` and `prompts` are folders that `python -m convert all SRC weights` and
    `python -m convert prompt weights prompts` make, `records` one of `python -m svdp_jax.prepare`, with
    pairs of different people. The prompt is one for all clips, so CLIP's tokens of it will do (ours: T5's
    256 more would be 5 % of the work). `changes` are fields of Config.
    """
    return Config(
        name=name,
        topology=topology,
        model=dataclasses.replace(sd35m(), video=Video(heads=video_heads, text="clip"), codec=Codec(weights="weights/vae")),
        data=Data(source="records", path="records", size=512, frames=16, past=4, batch=batch, threads=16),
        mesh=mesh,
        stages=(Stage(steps=40_000, rate=5e-5, final_rate=2e-5), Stage(steps=10_000, past=True, rate=2e-5, final_rate=1e-6)),
        optimizer=Optimizer(warmup=1000, average=0.9999, accumulate=accumulate),
        backbone="weights/backbone",
        prompt="prompts/prompt.safetensors",
        save_every=1000,
        evaluate=0,
        **changes,
    )


def stage_ends(config: Config) -> tuple[int, ...]:
    """The step at which each stage ends."""
    return tuple(itertools.accumulate(stage.steps for stage in config.stages))


CHOICES = {
    "model.backbone.kernel": ("auto", "splash", "cudnn", "xla"),
    "model.video.temporal": ("full", "factorized", "none"),
    "model.video.scheme": ("auto", "heads", "ring"),
    "model.video.null": ("zeros", "drop"),
    "model.video.text": ("all", "clip"),
    "model.codec.kind": ("pixels", "sd3"),
    "model.predict": ("velocity", "clean"),
    "data.source": ("toy", "videos", "records"),
    "optimizer.moment": ("float32", "bfloat16"),
    "remat": ("none", "full", "attention", "offload"),
    "dtype": ("float32", "bfloat16"),
}


def as_flags(config: Config) -> ConfigDict:
    return ConfigDict(dataclasses.asdict(config))


def from_flags(values: ConfigDict | dict) -> Config:
    """Returns the typed, checked config. Raises UserError for what no field can hold."""
    values = values.to_dict() if isinstance(values, ConfigDict) else values
    config = build(Config, values, "config")
    check(config)
    return config


def parse(arguments: list[str], values: flags.FlagValues) -> Config:
    """The config, beside the flags already defined. Raises UserError for what is neither."""
    config_flags.DEFINE_config_file("config", sys_argv=arguments, flag_values=values)
    try:
        values(arguments)
        if values.config is None:
            raise UserError("name a config, such as --config configs/toy_cpu.py.")
        return from_flags(values.config)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error.args[-1]).split())
        raise UserError(f"cannot use these flags: {reason}") from None


def build(kind, values, path):
    """`values` (of JSON, say) as a dataclass or field of type `kind`; `path` names it in errors."""
    if not dataclasses.is_dataclass(kind):
        return _leaf(kind, values, path)
    hints = typing.get_type_hints(kind)
    unknown = set(values) - set(hints)
    if unknown:
        raise UserError(f"{path} has no field {sorted(unknown)[0]!r}; its fields are {', '.join(hints)}.")
    return kind(**{k: build(hints[k], v, f"{path}.{k}") for k, v in values.items()})


def _leaf(kind, value, path):
    origin = typing.get_origin(kind)
    if origin is tuple:
        item = typing.get_args(kind)[0]
        return tuple(build(item, v, f"{path}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{path} must be {kind.__name__}, not {value!r}.")
    return value


def check(config: Config) -> None:
    """Raises UserError, naming field and fix, for shapes and choices that cannot work."""
    for path, allowed in CHOICES.items():
        value = config
        for name in path.split("."):
            value = getattr(value, name)
        if value not in allowed:
            raise UserError(f"config.{path} must be one of {', '.join(allowed)}, not {value!r}.")
    b, v, d = config.model.backbone, config.model.video, config.data
    stride = config.model.codec.factor * b.patch
    for okay, sentence in (
        (b.width % b.heads == 0, f"backbone.heads={b.heads} must divide backbone.width={b.width}"),
        (b.width % v.heads == 0, f"video.heads={v.heads} must divide backbone.width={b.width}"),
        ((b.width // v.heads) % 2 == 0, f"video.heads={v.heads} leaves heads of {b.width // v.heads}, which must be even"),
        (0 <= b.dual < b.blocks, f"backbone.dual={b.dual} must be below backbone.blocks={b.blocks}"),
        (d.size % stride == 0, f"data.size={d.size} must be a multiple of {stride} (codec x patch)"),
        (
            3 * (d.size // stride) <= b.table,
            f"three pictures of data.size={d.size} do not fit side by side in backbone.table={b.table}",
        ),
        (d.masked or d.source == "toy", f"data.masked=False is for data.source=toy, not {d.source}"),
        (d.batch >= 1, f"data.batch={d.batch} must be at least 1"),
        (d.frames >= 1, f"data.frames={d.frames} must be at least 1"),
        (0 <= d.past <= d.frames, f"data.past={d.past} must lie between 0 and data.frames={d.frames}"),
        (
            d.batch % config.optimizer.accumulate == 0,
            f"optimizer.accumulate={config.optimizer.accumulate} must divide data.batch={d.batch}",
        ),
        (
            config.mesh.context < 1 or d.frames % config.mesh.context == d.past % config.mesh.context == 0,
            f"mesh.context={config.mesh.context} must divide data.frames={d.frames} and data.past={d.past}",
        ),
        (
            v.temporal != "factorized" or (d.size // stride) ** 2 % max(config.mesh.context, 1) == 0,
            f"mesh.context={config.mesh.context} must divide the {(d.size // stride) ** 2} tokens of a "
            "frame, or video.temporal be full",
        ),
        (
            v.scheme != "heads" or v.heads % max(config.mesh.context, 1) == 0,
            f"mesh.context={config.mesh.context} must divide video.heads={v.heads}, or video.scheme be ring",
        ),
        (v.scheme != "ring" or v.temporal != "factorized", "video.scheme=ring is for video.temporal=full"),
        (
            not (config.start and config.backbone),
            f"start={config.start} brings a backbone; leave backbone={config.backbone} away",
        ),
        (len(config.stages) > 0, "stages must name at least one stage"),
        (
            len(config.flow.dropout) == 4 and abs(sum(config.flow.dropout) - 1) < 1e-6,
            "flow.dropout must be four probabilities that sum to 1",
        ),
        (
            config.model.codec.kind != "pixels" or b.channels == 3 * config.model.codec.factor**2,
            f"backbone.channels={b.channels} must be 3 x codec.factor² for the pixel codec",
        ),
    ):
        if not okay:
            raise UserError(f"config.{sentence}.")
