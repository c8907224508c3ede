"""What a training will need and cost, before a TPU is rented.

python -m svdp_jax.plan --config configs/tpu_v4.py [--topology v4:2x2x4] [--config.a.b=value ...]

Compiles the real train step and the real sampler at full size for a TPU slice,
on any machine: it takes the TPU compiler (`pip install svdp_jax[tpu]`), some
minutes, and no TPU. Prints the memory of a chip by kind, FLOPs by our own
count, collectives with their bytes, and the step time and MFU that the stated
rates lead to. --price gives the cost; --search tries settings.
"""

import dataclasses
import json
import os
import re
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from svdp_jax import config as configs, parallel, train
from svdp_jax.checkpoint import CODECS
from svdp_jax.diffusion import sampler
from svdp_jax.errors import UserError, say_errors
from svdp_jax.prompts import LENGTH

GIB = 1 << 30


class Chip(NamedTuple):
    """One chip: peak bf16 TFLOP/s, HBM in GiB, network GB/s each way (the maker's pages), the
    share of the peak that matmuls reach (MaxText's published MFU), and attention TFLOP/s at head
    sizes 64 and 128 (tokamax, forward, 16384 tokens; v4 and v5e scaled from v5p by their peaks)."""

    peak: float
    memory: float
    network: float
    matmul: float
    attention: dict[int, float]


CHIPS = {
    "v4": Chip(275, 32, 300, 0.589, {64: 126, 128: 246}),
    "v5e": Chip(197, 16, 200, 0.669, {64: 91, 128: 176}),
    "v5p": Chip(459, 95, 600, 0.715, {64: 211, 128: 410}),
    "v6e": Chip(918, 32, 448, 0.503, {64: 174, 128: 330}),
}
# The compiler's names of generations, and what else it must be told.
GENERATIONS = {
    "v4": ("v4", {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}),
    "v5p": ("v5", {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}),
    "v5e": ("v5e", {}),
    "v6e": ("v6e", {}),
}


# --- FLOPs, by our own count: 2 per multiplication and addition in a matrix product


def forward_flops(config: configs.Config) -> dict[str, float]:
    """Of one clip, by part, with tokens for every condition."""
    model, data = config.model, config.data
    b, t = model.backbone, prompt_shapes(config)[0].shape[0]
    temporal, f, n = model.video.temporal, data.frames, tokens_per_frame(config)
    p = data.past if temporal != "none" else 0
    streams = ((f, 3 * n), (p, n))  # frames, and image tokens in each
    frames, video = f + p, (f + p) * n
    seen = {"full": video**2, "factorized": frames**2 * n, "none": 0}[temporal]
    return block_flops(b, streams, t) | {
        "video projections": 2 * 4 * b.width**2 * video * b.blocks * (temporal != "none"),
        "video attention": 4 * b.width * seen * b.blocks,
        "embeddings": embedding_flops(config, sum(count * length for count, length in streams), f * n, t),
    }


def tokens_per_frame(config: configs.Config) -> int:
    return (config.data.size // config.model.codec.factor // config.model.backbone.patch) ** 2


def block_flops(b: configs.Backbone, streams: tuple, t: int) -> dict[str, float]:
    """Of the backbone's blocks, on streams of so many frames with so many image tokens each."""
    d, frames = b.width, sum(count for count, _ in streams)
    tokens = sum(count * length for count, length in streams)
    scores = lambda extra: sum(count * (length + extra) ** 2 for count, length in streams)
    return {
        "image stream": 2 * 12 * d**2 * tokens * b.blocks,
        "text stream": 2 * d**2 * t * frames * (12 * (b.blocks - 1) + 3),
        "joint attention": 4 * d * scores(t) * b.blocks,
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


def prompt_shapes(config: configs.Config) -> tuple:
    """Text (t, w) and pooled (w,), as shapes: the prompt's file need not be there yet."""
    b, t = config.model.backbone, LENGTH if config.prompt else 1
    sizes = (t, b.text_width), (b.pooled_width,)
    return tuple(jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes)


# --- compiling for a slice that is not there


def slice_devices(topology: str) -> list:
    """The chips of a slice such as v4:2x2x4, for the compiler only. UserError where it cannot be."""
    generation, _, shape = topology.partition(":")
    if generation not in GENERATIONS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        known = ", ".join(GENERATIONS)
        raise UserError(f"{topology!r} is no TPU slice; write one such as v4:2x2x4, of {known}.")
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{generation}-8")
    from jax.experimental import topologies

    name, more = GENERATIONS[generation]
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{name}:{shape}", num_slices=1, **more
        )
    except Exception as error:  # whatever the plugin raises
        if "libtpu" in str(error).lower() or "plugin" in str(error).lower():
            raise UserError("the TPU compiler is missing; `pip install svdp_jax[tpu]`.") from None
        raise UserError(f"the compiler knows no slice {topology}: {str(error).splitlines()[0]}") from None
    return found.devices


def abstract(tree, mesh: jax.sharding.Mesh, *dimensions: str):
    """Shapes in place of arrays, with their layout."""
    layout = parallel.sharding(mesh, *dimensions)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), tree)


def abstract_batch(config: configs.Config, mesh) -> dict:
    d = config.data
    leading = {"source": (), "past": (d.past,), "target": (d.frames,), "driving": (d.frames,)}
    return {
        name: jax.ShapeDtypeStruct(
            (d.batch, *frames, d.size, d.size, 3), jnp.uint8,
            sharding=parallel.sharding(mesh, *parallel.batch_dimensions(name)),
        )
        for name, frames in leading.items()
    }


def abstract_state(config: configs.Config, mesh):
    """The network's graph, and the training state as shapes with their layout."""
    graph, make = train.state_maker(config, mesh)
    shapes = jax.eval_shape(make, jax.random.key(0))
    layouts = parallel.parameter_shardings(shapes, mesh)
    place = lambda x, layout: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout)
    return graph, jax.tree.map(place, shapes, layouts)


def compile_train(config: configs.Config, mesh):
    """The compiled train step, and its abstract state."""
    graph, state = abstract_state(config, mesh)
    codec = nnx.eval_shape(lambda: CODECS[config.model.codec.kind](config.model.codec))
    codec_graph, codec = nnx.split(codec)
    frozen = abstract(train.Frozen(codec, prompt_shapes(config)), mesh)
    update = train.make_update(config, graph, codec_graph)
    with jax.set_mesh(mesh):
        return update.lower(state, frozen, abstract_batch(config, mesh)).compile(), state


def sampled_clips(mesh) -> int:
    """How many clips the sampler makes at once, so that its four branches fill the mesh."""
    return max(1, mesh.shape["data"] * mesh.shape["fsdp"] // 4)


def abstract_latents(config: configs.Config, clips: int, layout=None) -> dict:
    """Noise and conditions of one segment of so many clips, as shapes."""
    d, c = config.data, config.model.codec.factor
    latent = (d.size // c, d.size // c, config.model.backbone.channels)
    leading = {"noise": (d.frames,), "source": (), "driving": (d.frames,), "past": (d.past,)}
    return {
        name: jax.ShapeDtypeStruct((clips, *frames, *latent), jnp.dtype(config.dtype), sharding=layout)
        for name, frames in leading.items()
    }


def segment_sampler(config: configs.Config, graph: nnx.GraphDef):
    """One segment: ((weights, constants), latents as above, text b t w, pooled b w) to latents."""

    def segment(weights, latents, text, pooled):
        network = nnx.merge(graph, parallel.gathered(weights[0]), weights[1])
        conditions = {name: x for name, x in latents.items() if name != "noise"}
        return sampler.sample(
            network, latents["noise"], text, pooled, conditions, config.model, config.sampling
        )

    return segment


def compile_sample(config: configs.Config, mesh):
    """The compiled sampler of one segment, all steps, weights in the config's dtype."""
    clips, dtype = sampled_clips(mesh), jnp.dtype(config.dtype)
    graph, state = abstract_state(config, mesh)
    weights = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding),
        (state.weights, state.constants),
    )
    text, pooled = (jax.ShapeDtypeStruct((clips, *x.shape), dtype) for x in prompt_shapes(config))
    segment = jax.jit(segment_sampler(config, graph))
    with jax.set_mesh(mesh):
        return segment.lower(weights, abstract_latents(config, clips), text, pooled).compile()


# --- reading what was compiled

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}


def collectives(text: str) -> dict[str, dict[str, float]]:
    """Calls and bytes a chip sends, by kind, of one run of a compiled program's HLO text.

    What is inside a loop counts as often as the loop runs.
    """
    bodies, entry = {}, None
    for line in text.splitlines():
        start = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if start:
            bodies[start[2]] = here = []
            entry = start[2] if start[1] else entry
        elif line.startswith("  "):
            here.append(line)
    found = {kind: {"calls": 0, "bytes": 0.0} for kind in COLLECTIVES}

    def walk(name: str, times: int):
        for line in bodies.get(name, ()):
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            inner = times * int(trips[1]) if trips else times
            for called in re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", line):
                walk(called, inner)
            branches = re.search(r"branch_computations=\{([^}]*)\}", line)
            for called in re.findall(r"[\w.\-]+", branches[1]) if branches else ():
                walk(called, times)
            call = re.match(rf"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
            if call:
                found[call[2]]["calls"] += times
                found[call[2]]["bytes"] += times * sent(call[2], call[1], line, bool(call[3]))

    walk(entry, 1)
    return {kind: totals for kind, totals in found.items() if totals["calls"]}


def sent(kind: str, shapes: str, line: str, started: bool) -> float:
    """Bytes that one chip sends in a collective, from its result's shapes and its groups."""
    sizes = [
        int(np.prod([int(x) for x in dims.split(",") if x], initial=1)) * WIDTHS.get(dtype, 0)
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    ]
    size = sum(sizes) / 2 if started and kind == "all-reduce" and len(sizes) > 1 else (
        max(sizes) if started else sum(sizes)
    )
    groups = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]", line)
    g = len(groups[1].split(",")) if groups else int(tiled[2]) if tiled else 2
    share = {
        "all-gather": (g - 1) / g, "all-reduce": 2 * (g - 1) / g, "all-to-all": (g - 1) / g,
        "reduce-scatter": (g - 1) if not started else (g - 1) / g, "collective-permute": 1,
    }
    return size * share[kind]


def bytes_of(tree) -> int:
    """Bytes on one chip of abstract arrays with layouts."""
    return sum(
        int(np.prod(x.sharding.shard_shape(x.shape), initial=1)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


def memory(compiled, state: train.State | None = None) -> dict[str, float]:
    """GiB on a chip by kind. `peak` is the compiler's figure for all at once."""
    stats = compiled.memory_analysis()
    kinds = {}
    if state is not None:
        kinds = {
            "parameters": bytes_of((state.weights, state.constants)),
            "optimizer": bytes_of(state.optimizer),
            "moving average": bytes_of(state.average),
        }
    kinds["other inputs"] = stats.argument_size_in_bytes - sum(kinds.values())
    total = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    kinds["outputs"] = total - stats.argument_size_in_bytes
    kinds["activations and scratch"] = stats.temp_size_in_bytes
    kinds["peak"] = total + stats.temp_size_in_bytes
    return {kind: size / GIB for kind, size in kinds.items()}


# --- time


def seconds(
    config: configs.Config, chip: Chip, flops: dict, clips: float, chips: int, bytes_sent: float,
    passes: tuple[float, float] = (1, 1),
) -> dict[str, float]:
    """Expected time of a step by what takes it; matmuls and attention are run `passes` times.

    Attention runs at its kernel's rate for the head size, all else at the matmul rate, and
    collectives take their bytes over the network's speed, hidden by nothing.
    """
    b = config.model.backbone
    sizes = {"joint attention": b.width // b.heads, "attn2 attention": b.width // b.heads,
             "video attention": b.width // config.model.video.heads}
    rate = lambda size: np.interp(size, *zip(*sorted(chip.attention.items())))
    matmul = sum(x for part, x in flops.items() if part not in sizes)
    attention = sum(flops[part] / rate(size) for part, size in sizes.items())
    each = clips / chips / 1e12
    return {
        "matmuls": passes[0] * matmul * each / (chip.peak * chip.matmul),
        "attention": passes[1] * attention * each,
        "network": bytes_sent / (chip.network * 1e9),
    }


# Passes of matmuls and attention in a train step: forward, backward twice, and what is recomputed.
PASSES = {"none": (3, 3), "full": (4, 4), "attention": (4, 3), "offload": (4, 3)}


def plan(config: configs.Config, topology: str) -> dict:
    """The whole plan, as JSON. Out of memory is a finding: `fits` is false and `advice` says more."""
    chip, devices = CHIPS[topology.partition(":")[0]], slice_devices(topology)
    mesh, chips = parallel.make_mesh(config.mesh, devices), len(devices)
    flops = forward_flops(config)
    found = {"config": config.name, "topology": topology, "chips": chips, "mesh": dict(mesh.shape)}
    found["hbm"] = chip.memory
    found["tflop_forward"] = {part: value / 1e12 for part, value in flops.items()}
    for name, run in (("train", plan_train), ("sample", plan_sample)):
        begun = time.monotonic()
        try:
            result = run(config, chip, flops, mesh)
            result["fits"] = result["memory"]["peak"] <= chip.memory
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            used = re.search(r"Used ([\d.]+[GMK]?) of", str(error))
            result = {"fits": False, "used": used[1] if used else "more than there is"}
        if not result["fits"]:
            result["advice"] = advice(config, mesh)
        found[name] = result | {"compile_seconds": time.monotonic() - begun}
    return found


def plan_train(config, chip, flops, mesh) -> dict:
    compiled, state = compile_train(config, mesh)
    talk = collectives(compiled.as_text())
    clips, chips = config.data.batch, mesh.size
    times = seconds(
        config, chip, flops, clips, chips, sum(x["bytes"] for x in talk.values()), PASSES[config.remat]
    )
    step = sum(times.values())
    useful = 3 * sum(flops.values()) * clips / chips / 1e12
    return {
        "memory": memory(compiled, state), "collectives": talk, "seconds": times,
        "step_seconds": step, "mfu": useful / step / chip.peak,
    }


def plan_sample(config, chip, flops, mesh) -> dict:
    compiled = compile_sample(config, mesh)
    talk, clips = collectives(compiled.as_text()), sampled_clips(mesh)
    steps = config.sampling.steps
    sent = sum(x["bytes"] for x in talk.values()) / steps
    times = seconds(config, chip, flops, 4 * clips, mesh.size, sent)
    step = sum(times.values())
    useful = 4 * sum(flops.values()) * clips / mesh.size / 1e12
    frames = clips * config.data.frames
    return {
        "clips": clips, "memory": memory(compiled), "collectives": talk, "seconds": times,
        "step_seconds": step, "mfu": useful / step / chip.peak,
        "chip_seconds_per_frame": steps * step * mesh.size / frames,
    }


def advice(config: configs.Config, mesh) -> list[str]:
    """What else could make it fit, with what it saves on a chip, largest first."""
    d, b = config.data, config.model.backbone
    n = tokens_per_frame(config)
    clips = d.batch / config.optimizer.accumulate / (mesh.shape["data"] * mesh.shape["fsdp"])
    frames = (3 * d.frames + d.past) / mesh.shape["context"]
    kept = 2 * clips * frames * n * b.width * b.blocks / GIB  # one bf16 activation of every block
    _, state = abstract_state(config, mesh)
    weights = bytes_of(state.weights) / GIB
    savings = [
        (kept * {"none": 20, "attention": 1.5}.get(config.remat, 0), "config.remat=full"),
        (kept / 2, f"config.mesh.context={2 * mesh.shape['context']} (half the frames on a chip)"),
        (kept / 2 if clips >= 2 else 0, f"config.optimizer.accumulate={2 * config.optimizer.accumulate}"),
        (weights / 2 if config.optimizer.moment == "float32" else 0, "config.optimizer.moment=bfloat16"),
        (2 * weights if mesh.shape["data"] > 1 else 0, "config.mesh.fsdp up, config.mesh.data down"),
    ]
    lines = [f"{setting} saves about {size:.1f} GiB" for size, setting in sorted(savings)[::-1] if size]
    return lines or ["take a larger slice, or fewer frames or a smaller config.data.size"]


# --- words


def table(found: dict, price: float) -> str:
    """The plan in Markdown. price: of one chip for one hour, 0 for unknown."""
    chips, total = found["chips"], sum(found["tflop_forward"].values())
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    lines = [f"# {found['config']} on {found['topology']}: {chips} chips, {mesh}", ""]
    lines += ["| one clip forward | TFLOP |", "|---|---|"]
    lines += [f"| {part} | {value:.1f} |" for part, value in found["tflop_forward"].items()]
    lines += [f"| all | {total:.1f} |"]
    for name in ("train", "sample"):
        lines += ["", f"| {name} step, one chip of {found['hbm']:g} GiB | |", "|---|---|"]
        lines += step_rows(found[name])
        if price and found[name].get("step_seconds"):
            lines.append(cost_row(name, found[name], chips, price))
    return "\n".join(lines)


def step_rows(step: dict) -> list[str]:
    if "memory" not in step:
        return [f"| out of memory | uses {step['used']} |"] + [f"| try | {line} |" for line in step["advice"]]
    rows = [f"| {kind} | {size:.2f} GiB |" for kind, size in step["memory"].items()]
    rows += [
        f"| {kind} | {x['calls']:.0f} calls, {x['bytes'] / 1e9:.2f} GB |"
        for kind, x in step["collectives"].items()
    ]
    rows += [f"| expected {what} | {value:.3f} s |" for what, value in step["seconds"].items()]
    rows.append(f"| expected step | {step['step_seconds']:.3f} s, MFU {100 * step['mfu']:.0f} % |")
    rows.append(f"| compiled in | {step['compile_seconds']:.0f} s |")
    return rows + [f"| does not fit; try | {line} |" for line in step.get("advice", ())]


def cost_row(name: str, step: dict, chips: int, price: float) -> str:
    if name == "train":
        return f"| 1 000 steps cost | {1000 * step['step_seconds'] * chips * price / 3600:.2f} |"
    minute = 60 * 25 * step["chip_seconds_per_frame"]
    return f"| a minute of video (25 fps) costs | {minute * price / 3600:.2f} |"


def candidates(config: configs.Config, chips: int) -> list[configs.Config]:
    """Settings worth trying: clips, what is kept, and devices that share a clip's frames."""
    found = []
    for context in (1, 2, 4, 8):
        for clips in (1, 2):
            for remat in ("attention", "full"):
                mesh = dataclasses.replace(config.mesh, data=1, fsdp=-1, context=context)
                data = dataclasses.replace(config.data, batch=clips * chips // context)
                tried = dataclasses.replace(config, mesh=mesh, data=data, remat=remat)
                try:
                    configs.check(tried)
                except UserError:
                    continue
                if chips % context == 0:
                    found.append(tried)
    return found


def search(config: configs.Config, topology: str) -> None:
    """Plans every candidate's train step and says which makes the most clips a second."""
    chip, devices = CHIPS[topology.partition(":")[0]], slice_devices(topology)
    best = (0.0, "nothing fits")
    for tried in candidates(config, len(devices)):
        mesh = parallel.make_mesh(tried.mesh, devices)
        words = (
            f"--config.mesh.fsdp={mesh.shape['fsdp']} --config.mesh.context={mesh.shape['context']} "
            f"--config.data.batch={tried.data.batch} --config.remat={tried.remat}"
        )
        try:
            step = plan_train(tried, chip, forward_flops(tried), mesh)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{words}: out of memory", flush=True)
            continue
        rate = tried.data.batch / step["step_seconds"]
        peak = step["memory"]["peak"]
        print(f"{words}: {rate:.2f} clips/s, {peak:.1f} GiB, MFU {100 * step['mfu']:.0f} %", flush=True)
        if peak <= chip.memory:
            best = max(best, (rate, words))
    print(f"best: {best[1]}")


def main(arguments: list[str]) -> None:
    if "--help" in arguments:
        print(__doc__)
        return
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_string("topology", "", "TPU slice; the config's by default.", **define)
    flags.DEFINE_boolean("json", False, "Print JSON.", **define)
    flags.DEFINE_boolean("search", False, "Try settings and recommend one.", **define)
    flags.DEFINE_float("price", 0.0, "Of one chip for one hour, in any currency.", **define)
    config = train.parse(arguments, values)
    topology = values.topology or config.topology
    if not topology:
        raise UserError("this config names no TPU slice; add one, such as --topology v4:2x2x4.")
    if values.search:
        return search(config, topology)
    found = plan(config, topology)
    print(json.dumps(found, indent=1) if values.json else table(found, values.price))


if __name__ == "__main__":
    say_errors("plan", lambda: main(sys.argv))
