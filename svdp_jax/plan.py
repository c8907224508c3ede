"""What a training will need and cost, before a TPU is rented.

python -m svdp_jax.plan --config configs/tpu_v4.py [--topology v4:2x2x4] [--config.a.b=value ...]

Compiles the real train step and the real sampler at full size for a TPU slice,
on any machine: it takes the TPU compiler (`pip install svdp_jax[tpu]`), some
minutes, and no TPU. Prints the memory of a chip by kind, FLOPs by our own
count, collectives with their bytes, and the step time and MFU that the stated
rates lead to.

--price P       what it costs, at P for one chip for one hour, in any currency
--search        tries settings for training, fastest first, and recommends the first that fits; on one chip those of
                the longest clip first, with as much past
--json          the same as JSON
--topology T    another slice than the config's
--what sample   the sampler alone, or train
"""

from svdp_jax import errors

if __name__ == "__main__":
    errors.end_quietly()  # imports take seconds

import dataclasses
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from svdp_jax import config as configs, parallel
from svdp_jax.diffusion import guidance
from svdp_jax.errors import UserError, say_errors
from svdp_jax.models.splash import LANES
from svdp_jax.planning import aot
from svdp_jax.planning.chips import CHIPS, PASSES, Chip, seconds, step_work
from svdp_jax.planning.flops import (
    encoding_flops,
    forward_flops,
    segment_flops,
    shapes_of,
    spared_flops,
    target_flops,
    text_tokens,
    tokens_per_frame,
    train_flops,
)  # fmt: skip
from svdp_jax.planning.hlo import collectives
from svdp_jax.training.step import abstract_state


def plan(config: configs.Config, topology: str, price: float = 0.0, what: Iterable[str] = ("train", "sample")) -> dict:
    """The plan of `what`, as JSON. Out of memory is a finding: `fits` is false and `advice` says more.

    price: of one chip for one hour, 0 for unknown.
    """
    chip, devices = slice_of(topology)
    mesh = parallel.make_mesh(config.mesh, devices)
    largest, last = next(iter(by_shape(config).values())), configs.by_stage(config)[-1]
    flops = forward_flops(largest)
    found: dict[str, Any] = {
        "config": config.name, "topology": topology, "chips": len(devices), "mesh": dict(mesh.shape),
        "hbm": chip.memory, "tflop_forward": {part: value / 1e12 for part, value in flops.items()},
    }  # fmt: skip
    for name in what:
        say(f"Compiling the {name} step for {len(devices)} chips, some minutes ...")
        # What comes out of a training has the shapes of its last stage.
        found[name] = plan_stages(config, chip, mesh) if name == "train" else attempt(plan_sample, last, chip, mesh)
        say(f"... took {found[name]['compile_seconds']:.0f} s.")
        if price and found[name]["fits"]:
            found[name]["cost"] = cost(found[name], len(devices) * price / 3600, price / 3600)
    if not found.get("train", {"fits": True})["fits"]:
        found["train"]["advice"] = advice(largest, mesh, found["train"]["used"])
    return found


def by_shape(config: configs.Config) -> dict[str, configs.Config]:
    """The config as its stages have it, one of all whose steps have the same shapes, by which stages these are; that with
    most tokens in a step first."""
    alike: dict[configs.Data, list[int]] = {}
    every = configs.by_stage(config)
    for number, staged in enumerate(every):
        alike.setdefault(shapes_of(staged.data), []).append(number)
    tokens = lambda numbers: step_work(every[numbers[0]], []).tokens
    numbered = lambda numbers: " and ".join(f"stages[{number}]" for number in numbers)
    return {numbered(numbers): every[numbers[0]] for numbers in sorted(alike.values(), key=tokens, reverse=True)}


def plan_stages(config: configs.Config, chip: Chip, mesh) -> dict:
    """The train step that needs most memory; where stages have shapes of their own, also a few words on each, in `stages`."""
    found = {name: attempt(plan_train, staged, chip, mesh) for name, staged in by_shape(config).items()}
    largest = max(found.values(), key=lambda step: (not step["fits"], step["used"] or 0))
    if len(found) == 1:
        return largest
    kept = ("fits", "used", "step_seconds", "mfu")
    stages = {name: {key: step[key] for key in kept if key in step} for name, step in found.items()}
    return largest | {"stages": stages, "compile_seconds": sum(step["compile_seconds"] for step in found.values())}


def slice_of(topology: str) -> tuple[Chip, list]:
    """Its kind of chip, and the chips, for the compiler only. UserError for what is no slice."""
    devices = aot.slice_devices(topology)
    return CHIPS[topology.partition(":")[0]], devices


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def attempt(run: Callable, config: configs.Config, chip: Chip, mesh) -> dict:
    """What `run` finds, with `fits` and `used` (GiB of a chip), where the compiler ran out of memory too."""
    begun = time.monotonic()
    try:
        found = run(config, chip, mesh)
        used = found["memory"]["peak"]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        found, used = {}, used_memory(str(error))
    fits = bool(found) and used is not None and used <= chip.memory
    return found | {"fits": fits, "used": used, "compile_seconds": time.monotonic() - begun}


def used_memory(words: str) -> float | None:
    """GiB, from the compiler's message: "Used 40.11G of 30.75G hbm"; None where it names none."""
    used = re.search(r"Used ([\d.]+)([GM]) of", words)
    return float(used[1]) / {"G": 1, "M": 1024}[used[2]] if used else None


def plan_train(config: configs.Config, chip: Chip, mesh) -> dict:
    compiled, state = aot.compile_train(config, mesh)
    talk = collectives(compiled.as_text())
    times = train_seconds(config, chip, mesh, sum(x["bytes"] for x in talk.values()))
    step = sum(times.values())
    useful = train_flops(config) * config.data.batch / mesh.size / 1e12
    return {
        "memory": aot.memory(compiled, state), "collectives": talk, "seconds": times,
        "step_seconds": step, "mfu": useful / step / chip.peak,
    }  # fmt: skip


def train_seconds(config: configs.Config, chip: Chip, mesh, bytes_sent: float) -> dict[str, float]:
    clips, passes = config.data.batch, PASSES[config.remat]
    times = seconds(config, chip, forward_flops(config), clips, mesh.size, bytes_sent, passes, spared_flops(config))
    if config.teacher:
        times["targets"] = sum(seconds(config, chip, target_flops(config), clips, mesh.size, 0).values())
    if encoding := encoding_flops(config):
        times["encoding"] = encoding * clips / mesh.size / 1e12 / (chip.peak * chip.matmul)
    return times


def plan_sample(config: configs.Config, chip: Chip, mesh) -> dict:
    compiled = aot.compile_sample(config, mesh)
    clips, steps, frames = aot.sampled_clips(config, mesh), config.sampling.steps, config.data.frames
    flops, talk = segment_flops(config), collectives(compiled.as_text())
    sent = sum(x["bytes"] for x in talk.values())
    times = seconds(config, chip, flops, clips, mesh.size, sent)
    segment = sum(times.values())
    useful = sum(flops.values()) * clips / mesh.size / 1e12
    return {
        "clips": clips, "memory": aot.memory(compiled), "collectives": talk,
        "seconds": {part: value / steps for part, value in times.items()},
        "step_seconds": segment / steps, "mfu": useful / segment / chip.peak,
        "chip_seconds_per_frame": segment * mesh.size / clips / frames,
        "frames_per_second": clips * frames / segment,
        "reading_seconds": reading(config, chip, mesh, steps),
        "delays": {f: delay(config, chip, mesh, f, sent) for f in LENGTHS if f >= config.data.past},
    }  # fmt: skip


LENGTHS = 4, 8, 16  # frames of a segment whose delay is told
RATE = 25  # frames a second of a driver


def reading(config: configs.Config, chip: Chip, mesh, steps: int) -> float:
    """Seconds that a segment takes at least to read the weights from memory at each of its calls."""
    _, state = abstract_state(config, mesh)
    size = sum(x.size for x in jax.tree.leaves(state.weights)) * jnp.dtype(config.dtype).itemsize
    calls = steps * (len(guidance.weights(config.sampling, config.model.told)) if config.model.video.null == "drop" else 1)
    return calls * size / (chip.bandwidth * 1e9)  # whole on every chip while it computes


def delay(config: configs.Config, chip: Chip, mesh, frames: int, sent: float) -> dict[str, float]:
    """Seconds until a segment of so many frames of one driver has come, and until it is made."""
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, frames=frames))
    share = (frames + config.data.past) / (config.data.frames + config.data.past)  # of what is sent
    clips = aot.sampled_clips(config, mesh)
    made = sum(seconds(other, chip, segment_flops(other), clips, mesh.size, share * sent).values())
    return {"coming": frames / RATE, "making": made}


def cost(step: dict, slice_second: float, chip_second: float) -> dict[str, float]:
    """What a step found by plan_train or plan_sample costs, at the price of a second."""
    if "chip_seconds_per_frame" in step:
        return {"a minute of video (25 fps)": 60 * 25 * step["chip_seconds_per_frame"] * chip_second}
    return {"1 000 steps": 1000 * step["step_seconds"] * slice_second}


def advice(config: configs.Config, mesh, used: float | None) -> list[str]:
    """What could make the train step fit, with what it saves on a chip, largest first.

    used: GiB that the step takes as it is. What is not state is activations, in proportion to
    the clips of a pass; of a block they are many, of the others what `remat` keeps.
    """
    o = config.optimizer
    _, state = abstract_state(config, mesh)
    held, weights = (aot.bytes_of(x) / aot.GIB for x in (state, state.weights))
    activations = max((used or 0) - held, 0)
    clips = config.data.batch // o.accumulate // (mesh.shape["data"] * mesh.shape["fsdp"])
    kept = kept_outputs(config, mesh) if config.remat == "attention" else 0
    half = activations / 2 if clips % 2 == 0 else 0
    savings = [
        (half, f"--config.optimizer.accumulate={2 * o.accumulate}"),
        (half, f"--config.data.batch={config.data.batch // 2}"),
        (kept, "--config.remat=full"),
        (weights / 2 if o.moment == "float32" else 0, "--config.optimizer.moment=bfloat16"),
    ]
    lines = [f"{setting} saves about {size:.1f} GiB" for size, setting in sorted(savings)[::-1] if size]
    if config.remat == "none":
        lines.insert(0, "--config.remat=attention or full saves most of the activations")
    return lines or ["take a larger slice, or a smaller config.data.frames or config.data.size"]


def kept_outputs(config: configs.Config, mesh) -> float:
    """GiB on a chip of the attention outputs that remat=attention keeps, in bfloat16.

    The chip stores heads in whole lanes: those of 64 take the room of 128.
    """
    d, b = config.data, config.model.backbone
    n, t = tokens_per_frame(config), text_tokens(config)
    clips = d.batch / config.optimizer.accumulate / (mesh.shape["data"] * mesh.shape["fsdp"])
    image, frames = (3 * d.frames + d.past) * n, d.frames + d.past
    room = lambda heads: heads * max(b.width // heads, LANES)
    values = (b.blocks * (image + frames * t) + b.dual * image) * room(b.heads)
    values += b.blocks * frames * n * room(config.model.video.heads)
    return 2 * clips * values / mesh.shape["context"] / aot.GIB


# --- words


def table(found: dict) -> str:
    """The plan in Markdown."""
    chips, total = found["chips"], sum(found["tflop_forward"].values())
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    lines = [f"# {found['config']} on {found['topology']}: {chips} chips, {mesh}", ""]
    lines += ["| one clip forward | TFLOP |", "|---|---|"]
    lines += [f"| {part} | {value:.1f} |" for part, value in found["tflop_forward"].items()]
    lines += [f"| all | {total:.1f} |"]
    for name in (part for part in ("train", "sample") if part in found):
        lines += ["", f"| {name} step, one chip of {found['hbm']:g} GiB | |", "|---|---|"]
        lines += step_rows(found[name])
    return "\n".join(lines)


def step_rows(step: dict) -> list[str]:
    tips = [f"| does not fit; try | {line} |" for line in step.get("advice", ())]
    if "memory" not in step:
        used = f"{step['used']:.1f} GiB" if step["used"] else "more than there is"
        return [f"| out of memory | uses {used} |", *tips]
    rows = [f"| {kind} | {size:.2f} GiB |" for kind, size in step["memory"].items()]
    rows += [f"| {kind} | {x['calls']:.0f} calls, {x['bytes'] / 1e9:.2f} GB |" for kind, x in step["collectives"].items()]
    rows += [f"| expected {what} | {value:.3f} s |" for what, value in step["seconds"].items()]
    slowest = step["step_seconds"]
    fastest = slowest - step["seconds"].get("network", 0)
    mfu = f"MFU {100 * step['mfu']:.0f} to {100 * step['mfu'] * slowest / max(fastest, 1e-9):.0f} %"
    rows.append(f"| expected step | {fastest:.3f} s with the network hidden to {slowest:.3f} s with none of it, {mfu} |")
    rows.append(
        "| it rests on | published rates (planning/chips.py): matmuls at whole models' MFU, attention at its kernel's |"
    )
    rows += [f"| {name} | {stage_words(stage)} |" for name, stage in step.get("stages", {}).items()]
    rows.append(f"| compiled in | {step['compile_seconds']:.0f} s |")
    if "frames_per_second" in step:
        bound = "reading the weights" if step["reading_seconds"] > sum(step["seconds"].values()) else "computing"
        rows += [
            f"| chip seconds a frame | {step['chip_seconds_per_frame']:.3f} |",
            f"| frames a second, of {step['clips']} at once | {step['frames_per_second']:.1f}, bound by {bound} |",
        ]
        rows += [
            f"| a segment of {f} frames | comes in {x['coming']:.2f} s, is made in {x['making']:.2f} s |"
            for f, x in step["delays"].items()
        ]
    rows += [f"| {what}: cost | {value:.2f} |" for what, value in step.get("cost", {}).items()]
    return rows + tips


def stage_words(step: dict) -> str:
    used = f"{step['used']:.1f} GiB" if step["used"] else "more than there is"
    return f"{used}{'' if step['fits'] else ', does not fit'}" + (
        f", {step['step_seconds']:.3f} s a step, MFU {100 * step['mfu']:.0f} %" if "mfu" in step else ""
    )


CLIPS = (16, 4), (12, 3), (8, 2), (4, 1)  # frames and past ones that are tried on one chip


def of_lengths(config: configs.Config) -> list[configs.Config]:
    """The config with clips from the longest on."""
    data = (dataclasses.replace(config.data, frames=frames, past=past) for frames, past in CLIPS)
    return [dataclasses.replace(config, data=each) for each in data]


def candidates(config: configs.Config, chip: Chip, devices: list) -> list[tuple]:
    """(expected seconds, config, mesh) of settings worth trying at the config's batch, fastest first.

    What is kept, micro-batches, and how many devices share a clip's frames. Expected from work, and
    from the weights' way to every chip and the gradients' back, for each micro-batch.
    """
    found, shared = [], lambda context: dataclasses.replace(config.mesh, data=1, fsdp=-1, context=context)
    _, state = abstract_state(config, parallel.make_mesh(shared(1), devices))
    whole = sum(x.size for x in jax.tree.leaves(state.weights)) * 2
    for context, accumulate, remat in itertools.product((1, 2, 4, 8), (1, 2, 4), ("none", "attention", "full")):
        optimizer = dataclasses.replace(config.optimizer, accumulate=accumulate)
        tried = dataclasses.replace(config, mesh=shared(context), optimizer=optimizer, remat=remat)
        if len(devices) % context or config.data.batch % (len(devices) // context * accumulate):
            continue
        try:
            configs.check(tried)
        except UserError:
            continue
        mesh = parallel.make_mesh(tried.mesh, devices)
        d, b = config.data, config.model.backbone
        exchanged = 2 * config.data.batch / mesh.size * (d.frames + d.past) * tokens_per_frame(config) * b.width
        sent = 3 * accumulate * whole + (context > 1) * 12 * b.blocks * exchanged
        found.append((sum(train_seconds(tried, chip, mesh, sent).values()), tried, mesh))
    return sorted(found, key=lambda x: x[0])


def search(config: configs.Config, topology: str) -> list[dict]:
    """Compiles the train step of every candidate, of the stage with most tokens, until one fits: that is the best. The
    fastest come first; on one chip those of the longest clip."""
    chip, devices = slice_of(topology)
    largest = next(iter(by_shape(config).values()))
    lengths = of_lengths(largest) if len(devices) == 1 else [largest]
    tried, found = [each for length in lengths for each in candidates(length, chip, devices)], []
    for index, (expected, candidate, mesh) in enumerate(tried, 1):
        clip = [f"--config.data.{name}={getattr(candidate.data, name)}" for name in ("frames", "past")]
        words = " ".join(
            (
                *clip * (len(lengths) > 1),
                *(f"--config.mesh.{axis}={size}" for axis, size in mesh.shape.items()),
                f"--config.optimizer.accumulate={candidate.optimizer.accumulate}",
                f"--config.remat={candidate.remat}",
            )
        )
        say(f"{index} of at most {len(tried)}, expected {expected:.1f} s a step: {words} ...")
        step = attempt(plan_train, candidate, chip, mesh) | {"flags": words}
        found.append(step)
        if step["fits"]:
            break
    return found


def search_table(found: list[dict], chip: Chip) -> str:
    lines = [f"| setting | memory of {chip.memory:g} GiB | step | MFU |", "|---|---|---|---|"]
    for step in found:
        used = f"{step['used']:.1f} GiB" if step["used"] else "out of memory"
        time_, mfu = (f"{step['step_seconds']:.2f} s", f"{100 * step['mfu']:.0f} %") if step["fits"] else ("", "")
        lines.append(f"| {step['flags']} | {used} | {time_} | {mfu} |")
    best = found[-1]["flags"] if found and found[-1]["fits"] else "nothing fits; take a larger slice"
    return "\n".join([*lines, "", f"best: {best}"])


def main(arguments: list[str]) -> None:
    if "--help" in arguments:
        print(__doc__)
        return
    values = flags.FlagValues()
    define: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("topology", "", "TPU slice; the config's by default.", **define)
    flags.DEFINE_boolean("json", False, "Print JSON.", **define)
    flags.DEFINE_boolean("search", False, "Try settings and recommend one.", **define)
    flags.DEFINE_list("what", ["train", "sample"], "What is planned.", **define)
    flags.DEFINE_float("price", 0.0, "Of one chip for one hour, in any currency.", **define)
    config = configs.parse(arguments, values)
    topology = values.topology or config.topology
    if not topology:
        raise UserError("this config names no TPU slice; add one, such as --topology v4:2x2x4.")
    found: Any = search(config, topology) if values.search else plan(config, topology, values.price, values.what)
    if values.json:
        print(json.dumps(found, indent=1))
    elif values.search:
        print(search_table(found, CHIPS[topology.partition(":")[0]]))
    else:
        print(table(found))


if __name__ == "__main__":
    say_errors("plan", lambda: main(sys.argv))
