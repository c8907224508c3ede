"""Which values of a config cannot stand together, a row for each way."""

import dataclasses
import re
from typing import Any

from svdp_jax.errors import UserError
from svdp_jax.values import learn
from svdp_jax.values.declared import shown

SLICE = r"(v\d\w*:\d+(x\d+){1,2})?"  # of TPUs


def check(config: Any, path: str) -> None:
    """UserError, which begins with `path`, for the first row that does not hold of a `svdp_jax.config.Config`."""
    b, v, d, k, chances = config.model.backbone, config.model.video, config.data, config.model.codec, config.flow.dropout
    t = config.teaching
    latent, full, c = k.kind != "pixels", v.temporal != "factorized", max(config.mesh.context, 1)
    accumulate, stride = config.optimizer.accumulate, k.factor * b.patch
    span = re.fullmatch(r"(\d{1,9}):(\d{1,9})", config.profile or "1:1")
    side, draws = d.size // stride, sum(stage.steps * (stage.data.batch or d.batch) for stage in config.stages)
    for okay, sentence in (
        (b.width % b.heads == 0, f"backbone.heads={b.heads} must divide backbone.width={b.width}"),
        (
            config.trains == "video" or (k.kind == "small" and d.source != "records"),
            f"trains={config.trains} is for codec.kind=small and pictures, not {k.kind} and {d.source}",
        ),
        (
            config.trains == "video" or config.watch_every == config.sample_every == 0,
            "trains=codec leaves nothing to watch or sample; set watch_every=0 and sample_every=0",
        ),
        (b.width % v.heads == 0, f"video.heads={v.heads} must divide backbone.width={b.width}"),
        ((b.width // v.heads) % 2 == 0, f"video.heads={v.heads} leaves heads of {b.width // v.heads}, which must be even"),
        (0 <= b.dual < b.blocks, f"backbone.dual={b.dual} must be below backbone.blocks={b.blocks}"),
        (d.size % stride == 0, f"data.size={d.size} must be a multiple of {stride} (codec x patch)"),
        (3 * side <= b.table, f"three pictures of data.size={d.size} do not fit side by side in backbone.table={b.table}"),
        (d.masked or d.source == "toy", f"data.masked=False is for data.source=toy, not {d.source}"),
        (re.fullmatch(r"(?!\.\.?$)[^/]{1,200}", config.name), f"name={shown(config.name)} must name a folder"),
        (re.fullmatch(SLICE, config.topology), f"topology={shown(config.topology)} must be empty or a slice such as v4:2x2x4"),
        (0 not in dataclasses.astuple(config.mesh), "mesh must have -1 or at least 1 device along each axis, not 0"),
        (draws + d.batch < 1 << 31, f"stages of {draws} examples are more than the {1 << 31} there are; lower data.batch"),
        (0 <= d.past <= d.frames, f"data.past={d.past} must lie between 0 and data.frames={d.frames}"),
        (d.batch % accumulate == 0, f"optimizer.accumulate={accumulate} must divide data.batch={d.batch}"),
        (d.frames % c == d.past % c == 0, f"mesh.context={c} must divide data.frames={d.frames} and data.past={d.past}"),
        (full or side**2 % c == 0, f"mesh.context={c} must divide the {side**2} tokens of a frame, or video.temporal be full"),
        (
            v.scheme != "heads" or v.heads % c == 0,
            f"mesh.context={c} must divide video.heads={v.heads}, or video.scheme be ring",
        ),
        (span and 1 <= int(span[1]) <= int(span[2]), f"profile={config.profile} must be START:STOP, steps from 1 on, as 10:12"),
        (v.scheme != "ring" or full, "video.scheme=ring is for video.temporal=full"),
        (
            not (config.backbone and (config.start or config.teacher)),
            f"start={config.start or config.teacher} brings a backbone; leave {config.backbone} away",
        ),
        (
            bool(config.teacher) == any(stage.kind == "path" for stage in config.stages) <= config.model.told,
            "teacher must be named where stages are of the kind path, and model.told be True, and nowhere else",
        ),
        (
            all(stage.path % calls == 0 for stage in config.stages for calls in stage.calls if stage.kind == "path"),
            "stages: each of `calls` must divide `path`",
        ),
        (
            all(len(pair) == 2 and pair[0] <= pair[1] for pair in (t.source, t.driving, t.past)),
            "teaching must have a least and a most guidance weight for source, driving and past",
        ),
        (
            not config.model.told or config.sampling.shift == config.flow.shift,
            f"sampling.shift must be {config.flow.shift}, flow.shift, by which a told network learned its steps",
        ),
        (
            all(stage.past and not config.teacher and d.past for stage in config.stages if stage.own_past),
            "stages: own_past is for stages with past=True, data.past of 1 or more, and no teacher",
        ),
        (
            config.start or config.backbone or config.teacher or not learn.adapts(config.learn),
            f"learn={shown(config.learn)} freezes weights, which must be those of something: name config.start, backbone or teacher",
        ),
        (len(config.stages) > 0, "stages must name at least one stage"),
        (len(chances) == 4 and abs(sum(chances) - 1) < 1e-6, "flow.dropout must be four probabilities that sum to 1"),
        (latent or b.channels == 3 * k.factor**2, f"backbone.channels={b.channels} must be 3 x codec.factor² for pixels"),
    ):
        if not okay:
            raise UserError(f"{path}{sentence}.")
