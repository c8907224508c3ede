"""Typed configs and their named variants.

A config is a frozen dataclass, complete by itself: nothing changes it at run
time. `as_flags` turns one into the `ml_collections.ConfigDict` that a file in
`configs/` returns, so that any field can be set from the command line as
`--config.a.b=value`; `from_flags` turns the result back and checks it.

Every field is declared with what it may be: a range, a choice, or, for a string, what can be
printed. Those marked FREE have no part in what is learned, so a run may go on with others.

The dimension alphabet, used in einops patterns and shape columns everywhere:

    b batch · f frames generated per segment · p past frames · n image tokens per frame
    t text tokens · d width · h heads · k head size · c latent channels

Pictures and latents add y, x for rows and columns where h is taken by heads.
"""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Annotated, Literal

from absl import flags
from ml_collections import ConfigDict, config_flags

from svdp_jax.errors import UserError
from svdp_jax.values import consistent
from svdp_jax.values.declared import (
    FREE,
    Amount,
    Axis,
    Count,
    Decay,
    Few,
    Guidance,
    Positive,
    Range,
    Rate,
    Seed,
    Share,
    Side,
    Steps,
    Whole,
    build,
    find,
)  # fmt: skip


@dataclass(frozen=True)
class Backbone:
    """The image model, SD3.5-M by default. Widths in channels, `table` and `base` in patches."""

    width: Count = 1536
    heads: Few = 24
    blocks: Few = 24  # the last one keeps no text output
    dual: Whole = 13  # the first blocks, with a second image-only attention
    text_width: Count = 4096
    pooled_width: Count = 2048
    channels: Count = 16
    patch: Few = 2
    table: Side = 384  # side of the position table
    base: Side = 64  # table rows that one unit-scale picture spans
    # Of attention, by device: auto, or that for TPU, for NVIDIA, for any.
    kernel: Annotated[Literal["auto", "splash", "cudnn", "xla"], FREE] = "auto"


@dataclass(frozen=True)
class Video:
    """What the video model adds to the backbone."""

    temporal: Literal["full", "factorized", "none"] = "full"
    heads: Few = 12
    null: Literal["zeros", "drop"] = "zeros"  # absent conditions
    # Whether conditions see what is made and change with it, as in the paper, or are computed once (models/cached.py).
    references: Literal["joint", "cached"] = "joint"
    text: Literal["all", "clip"] = "all"  # tokens of the prompt: CLIP's 77 and T5's 256, or CLIP's alone
    scheme: Annotated[Literal["auto", "heads", "ring"], FREE] = "auto"  # attention over frames on several devices


@dataclass(frozen=True)
class Codec:
    """Pictures to latents. `pixels` is exact (space to depth), `sd3` the SD3 autoencoder, `small` one of a million
    parameters that comes with the package."""

    kind: Literal["pixels", "sd3", "small"] = "sd3"
    factor: Few = 8  # pixels per latent row
    weights: str = ""  # folder of the autoencoder; of `small`, empty means the one that comes with the package


@dataclass(frozen=True)
class Model:
    backbone: Backbone = field(default_factory=Backbone)
    video: Video = field(default_factory=Video)
    codec: Codec = field(default_factory=Codec)
    predict: Literal["velocity", "clean"] = "velocity"
    # Whether the network is told guidance weights and where its step ends, so that one call can do what several guided
    # steps of a teacher do (training/distill.py).
    told: bool = False


def sd35m() -> Model:
    """The paper's model: Stable Diffusion 3.5 Medium and full-video attention."""
    return Model()


def toy() -> Model:
    """The same model for two CPU cores. All that a toy run has otherwise than the full size, and why:

    model.backbone (width heads blocks dual text_width pooled_width), model.video (heads): few of each, for steps of 0.1 s
    model.codec (kind factor weights), model.backbone (channels table base): 8x8-pixel patches, as latents of so small
        pictures would be too few
    model (predict): the clean picture, since a patch of noise has too many numbers to pass through this width
    model.video (text), config (backbone prompt): nothing is pretrained, and the prompt is zeros
    config (dtype): float32, as CPUs have nothing faster
    data (source path size frames past batch threads): short drawn clips, whose truth is known
    config (stages optimizer flow sampling): found by trial, for minutes in place of days; at first the target drives itself
    config (evaluate sample_every): scored at the end, by the truth
    """
    return Model(
        backbone=Backbone(
            width=128, heads=4, blocks=3, dual=1, text_width=32, pooled_width=32, channels=48, patch=2, table=24, base=480
        ),
        video=Video(heads=4),
        codec=Codec(kind="pixels", factor=4),
        predict="clean",
    )


def miniature() -> Model:
    """The toy at 128x128: latents of a codec that learned the drawn world in place of pixels, as many tokens a frame."""
    model = toy()
    backbone = dataclasses.replace(model.backbone, channels=16, patch=4)
    return dataclasses.replace(model, backbone=backbone, codec=Codec(kind="small"))


@dataclass(frozen=True)
class Data:
    source: Literal["toy", "videos", "records"] = "toy"
    path: Annotated[str, FREE] = ""  # folder of videos, or of what svdp_jax.prepare made; what is in it is not free
    size: Side = 32  # pixels
    frames: Few = 4
    past: Whole = 1
    batch: Count = 16  # examples per step, over all devices
    difficulty: Share = 0.0  # of the toy world: what a driver's frame does not tell, and poor pictures (toy/hard.py)
    masked: bool = True  # whether of the driver only eyes, nose and mouth are seen; False for toy drivers only
    threads: Annotated[Few, FREE] = 2  # that prepare examples


@dataclass(frozen=True)
class Optimizer:
    """AdamW. Rates per step; `average` is the decay of the exponential moving average."""

    beta1: Decay = 0.9
    beta2: Decay = 0.99
    weight_decay: Share = 0.01
    clip: Positive = 1.0
    warmup: Steps = 100  # 1 for none
    average: Decay = 0.995
    accumulate: Count = 1  # gradient accumulation, micro-batches per step
    moment: Literal["float32", "bfloat16"] = "float32"  # of AdamW's first moment


@dataclass(frozen=True)
class Changes:
    """What a stage has in place of config.data's; what is empty, 0, or -1 of past frames, is as there."""

    source: Literal["", "toy", "videos", "records"] = ""
    path: Annotated[str, FREE] = ""
    size: Annotated[int, Range(0, 1 << 13)] = 0
    frames: Annotated[int, Range(0, 1 << 10)] = 0
    past: Axis = -1
    batch: Whole = 0


@dataclass(frozen=True)
class Stage:
    """One stage of the curriculum.

    `kind` is what is learned: the flow, from examples, or the `path` of config.teacher, in schedules of so many `calls`,
    all as likely, of which each takes its part of the `path` that the teacher goes in so many steps.
    `past` tells whether past frames are real or zeros; `self_driven`, whether the driver is the
    target person, whose kept regions can be copied, so that a toy model soon finds the driver.
    """

    steps: Steps = 1000
    kind: Literal["flow", "path"] = "flow"
    calls: tuple[Few, ...] = (4,)
    path: Few = 28
    past: bool = False
    own_past: Share = 0.0  # of the examples with past: the model's own frames in place of real ones (training/own_past.py)
    self_driven: bool = False
    rate: Rate = 1e-3  # peak learning rate
    final_rate: Annotated[float, Range(0, 10)] = 1e-4  # reached by a cosine at the end of the stage
    data: Changes = field(default_factory=Changes)


@dataclass(frozen=True)
class Flow:
    """Training times: s is logit-normal, then shifted towards noise."""

    focus: Amount = 0.0  # added weight of the loss where the driver is seen: eyes, nose, mouth
    mean: Annotated[float, Range(-10, 10)] = 0.0
    std: Annotated[float, Range(1e-3, 10)] = 1.0
    shift: Annotated[float, Range(1e-3, 1e3)] = 3.0
    dropout: tuple[Share, ...] = (0.05, 0.05, 0.1, 0.8)  # nothing, source, source + driving, all


@dataclass(frozen=True)
class Teaching:
    """How a student learns its teacher's path, in stages of that kind. Guidance weights are drawn evenly between two."""

    source: tuple[Guidance, ...] = (1.0, 3.0)
    driving: tuple[Guidance, ...] = (1.0, 4.0)
    past: tuple[Guidance, ...] = (1.0, 2.0)
    own: Share = 0.5  # of examples that begin where the student's own calls have led; the others, on the way to the truth


@dataclass(frozen=True)
class Sampling:
    steps: Annotated[int, Range(1, 1000)] = 28
    shift: Annotated[float, Range(1e-3, 1e3)] = 3.0
    source: Guidance = 2.0  # guidance weights: towards the source,
    driving: Guidance = 2.5  # the driving video,
    past: Guidance = 1.0  # and the past frames


MotionKind = Literal["relative", "absolute"]
Region = Literal["all", "exp", "pose", "lip", "eyes"]


@dataclass(frozen=True)
class Transfer:
    """How LivePortrait takes motion over. Openings are heights over widths: 0 is shut, eyes wide open have about 0.4."""

    # The source moves as the driver has moved since its first frame, or it takes on the driver's pose and expression.
    motion: MotionKind = "relative"
    first_frame: Annotated[int, Range(-1, 1 << 30)] = 0  # of relative motion; ALIKE: that which is most like the source
    driving_multiplier: Annotated[float, Range(0, 10)] = 1.0  # of all motion
    animation_region: Region = "all"  # what moves
    # Opens eyes or lips so far, or, with AS_DRIVEN, as far as the driver's are. Relative motion then moves nothing else.
    eye_retargeting: Annotated[float, Range(-1, 1)] | None = None
    lip_retargeting: Annotated[float, Range(-1, 1)] | None = None
    stitching: bool = True  # whether shoulders are kept where they are


AS_DRIVEN = ALIKE = -1


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis of the mesh; -1 takes what is left."""

    data: Axis = -1
    fsdp: Axis = 1
    context: Axis = 1


@dataclass(frozen=True)
class Config:
    name: Annotated[str, FREE]
    model: Model
    data: Data = field(default_factory=Data)
    optimizer: Optimizer = field(default_factory=Optimizer)
    stages: tuple[Stage, ...] = (Stage(),)
    flow: Flow = field(default_factory=Flow)
    teaching: Teaching = field(default_factory=Teaching)
    sampling: Annotated[Sampling, FREE] = field(default_factory=Sampling)
    mesh: Annotated[Mesh, FREE] = field(default_factory=Mesh)
    topology: Annotated[str, FREE] = ""  # TPU slice that this is for, such as v4:2x2x4; empty means any devices
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of activations; parameters are float32
    # Kept for the backward pass: all (none), nothing (full), attention's outputs, or these in host memory (offload).
    remat: Annotated[Literal["none", "full", "attention", "offload"], FREE] = "none"
    # What of the weights learns: all, video (attention through time), adapter (that, and low-rank parts of the image
    # model), or rows PATTERN=full, frozen or lora:RANK; and how that lies which does not.
    learn: str = "all"
    frozen: Literal["bfloat16", "int8"] = "bfloat16"
    backbone: str = ""  # folder of converted SD3.5 weights to start from; empty means random
    start: str = ""  # work folder of a finished run whose model a new one starts from
    teacher: str = ""  # work folder of a finished run whose path is learned, and with whose weights one begins; or `shipped`
    prompt: str = ""  # file of an encoded prompt; empty means zeros
    trains: Literal["video", "codec"] = "video"  # the network that learns: the video model, or its `small` codec
    seed: Seed = 0
    log_every: Annotated[Steps, FREE] = 10
    watch_every: Annotated[int, Range(0, 1 << 30), FREE] = 100  # steps between checks for copying the driver; 0 for none
    sample_every: Annotated[int, Range(0, 1 << 30), FREE] = 0  # steps between sample videos and held-out losses; 0 for none
    save_every: Annotated[Steps, FREE] = 250
    profile: Annotated[str, FREE] = ""  # START:STOP, steps whose trace is recorded
    keep: Annotated[Count, FREE] = 3  # checkpoints of the run, the newest
    evaluate: Annotated[Whole, FREE] = 8  # clips scored at the end of training


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
        sample_every=1000,
        evaluate=0,
        **changes,
    )


def one_chip(name: str, topology: str, frames: int, past: int, clips: int, frozen: str) -> Config:
    """The paper's method on one chip: an adapter on SD3.5-M at 512x512, `clips` a step, one after the other.

    Folders as for `full_size`. What `frames`, `past` and `clips` a chip has room for, the compiler tells: of more
    clips than one, the sum of the gradients takes room of its own. Fewer clips a step are more and smaller steps.
    """
    rate = 1e-4 if clips > 1 else 5e-5
    config = full_size(name, topology, clips, Mesh(), accumulate=clips, remat="full", learn="adapter", frozen=frozen)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, frames=frames, past=past, threads=2),
        stages=(
            Stage(steps=32_000 // clips, rate=rate, final_rate=rate / 5),
            Stage(steps=8_000 // clips, past=True, rate=rate / 5, final_rate=1e-6),
        ),
        optimizer=dataclasses.replace(config.optimizer, warmup=1_600 // clips, average=1 - clips / 8_000, moment="bfloat16"),
        save_every=800 // clips,
        sample_every=0,
        watch_every=0,
        keep=1,
    )


def personal(config: Config, start: str, steps: int) -> Config:
    """A trained model goes on learning, on records of one person: fewer steps, at lower rates, past frames real."""
    clips = config.optimizer.accumulate
    stages = (Stage(steps=steps, past=True, rate=config.stages[-1].rate, final_rate=1e-6),)
    optimizer = dataclasses.replace(config.optimizer, warmup=160 // clips, average=1 - clips / 800)
    return dataclasses.replace(config, start=start, backbone="", stages=stages, optimizer=optimizer)


def stage_ends(config: Config) -> tuple[int, ...]:
    """The step at which each stage ends."""
    return tuple(itertools.accumulate(stage.steps for stage in config.stages))


def by_stage(config: Config) -> tuple[Config, ...]:
    """The config as each stage has it: `data` is that of the stage, and `stages` name all of theirs."""
    named = [{k: v for k, v in vars(stage.data).items() if v != getattr(Changes, k)} for stage in config.stages]
    every = [dataclasses.replace(config.data, **changes) for changes in named]
    whole = [Changes(*(getattr(data, name) for name in vars(Changes()))) for data in every]
    stages = tuple(dataclasses.replace(stage, data=data) for stage, data in zip(config.stages, whole))
    return tuple(dataclasses.replace(config, data=data, stages=stages) for data in every)


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
    for argument in arguments:
        if argument.startswith("--config."):
            find(Config, argument.partition("=")[0].removeprefix("--config."), "config")
    config_flags.DEFINE_config_file("config", sys_argv=arguments, flag_values=values)
    try:
        _, *rest = values(arguments)
        if rest:
            raise UserError(f"{rest[0]} is no flag: these begin with --, such as --config.seed=1.")
        if values.config is None:
            raise UserError("name a config, such as --config configs/toy_cpu.py.")
        return from_flags(values.config.to_dict())  # which says why, where the file could not be read
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error.args[-1]).split())[:300]
        raise UserError(f"cannot use these flags: {reason}") from None


def check(config: Config) -> None:
    """Raises UserError, naming field and fix, for fields that cannot work together, in any stage."""
    consistent.check(config, "config.")
    for number, staged in enumerate(by_stage(config)):
        consistent.check(staged, f"config.stages[{number}].data: ")
