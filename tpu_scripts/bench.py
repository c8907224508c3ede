"""Times the model on whatever devices there are, as JSON lines.

python tpu_scripts/bench.py --config configs/tpu_v4.py [--what forward,train,sample,image]
    [--reference diffusers] [--rounds 5] [--tune] [--config.a.b=value ...]

forward: the video model with all conditions. train: the whole train step. sample: one
segment, all steps. image: the image model alone, and with --reference diffusers beside it, in
turns, its own on the same device (PyTorch, compiled where that is a GPU).
A line tells seconds (median), TFLOP by our own count, MFU where the chip's peak is
known, and the devices' peak memory so far. Weights are random.

--tune first times attention at the config's lengths with tiles of many sizes, on a TPU, and
writes the fastest into svdp_jax/models/tiles.py, from where on everybody uses them.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.errors import UserError, say_errors
from svdp_jax.files import write_whole
from svdp_jax.models import attention, tiles
from svdp_jax.models.mmdit import MMDiT
from svdp_jax.planning import aot
from svdp_jax.planning.chips import PEAKS, step_work
from svdp_jax.planning.flops import block_flops, forward_flops, segment_flops, tokens_per_frame
from svdp_jax.training import step as training


def medians(runs: dict, rounds: int) -> dict[str, float]:
    """Seconds of each, taken in turns, after a first run of each that compiles."""
    for run in runs.values():
        run()
    times = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - begun)
    return {name: float(np.median(values)) for name, values in times.items()}


def line(what: str, config, seconds: float, flops: float) -> dict:
    device, count = jax.devices()[0], jax.device_count()
    stats = device.memory_stats() or {}
    peak = PEAKS.get(device.device_kind)
    return {
        "what": what,
        "config": config.name,
        "device": device.device_kind,
        "devices": count,
        "seconds": round(seconds, 4),
        "tflop": round(flops / 1e12, 3),
        "mfu": round(flops / 1e12 / seconds / count / peak, 3) if peak else None,
        "peak_gib": round(stats["peak_bytes_in_use"] / aot.GIB, 2) if stats else None,
    }


def random(shapes, seed: int = 0):
    """Arrays for a tree of shapes: normal numbers, or bytes."""
    rng = np.random.default_rng(seed)

    def draw(x):
        if x.dtype == jnp.uint8:
            return jax.device_put(rng.integers(0, 256, x.shape, np.uint8), x.sharding)
        return jax.device_put(rng.standard_normal(x.shape, np.float32).astype(x.dtype), x.sharding)

    return jax.tree.map(draw, shapes)


def train_step(config, mesh) -> tuple[Callable[[], None], float]:
    """What runs the train step once, on random data, and the GiB of a device that the compiler plans for it."""
    compiled, state = aot.compile_train(config, mesh)
    frozen, batch = random(aot.abstract_frozen(config, mesh)), random(aot.abstract_batch(config, mesh))
    _, make = training.state_maker(config, mesh)
    held = [make(jax.random.key(0))]  # donated, so replaced

    def run():
        held[0], metrics = compiled(held[0], frozen, batch)
        jax.block_until_ready(metrics)

    return run, aot.memory(compiled, state)["peak"]


def bench_train(config, mesh, rounds: int) -> dict:
    run, planned = train_step(config, mesh)
    seconds = medians({"train": run}, rounds)["train"]
    work = step_work(config, jax.devices())
    row = line("train", config, seconds, work.tflop * 1e12) | {"planned_gib": round(planned, 2)}
    return row | {"tokens_per_second": round(work.tokens / seconds)}


def bench_video(config, mesh, rounds: int, what: str) -> dict:
    dtype, clips = jnp.dtype(config.dtype), aot.sampled_clips(config, mesh)
    graph, make = training.state_maker(config, mesh)
    state = make(jax.random.key(0))
    weights = jax.tree.map(lambda w: w.astype(dtype), (state.weights, state.constants))
    del state
    latents = random(aot.abstract_latents(config, clips, parallel.sharding(mesh)))
    prompt = random(aot.abstract(aot.prompt_shapes(config), mesh))
    text, pooled = (jnp.repeat(x[None], clips, 0).astype(dtype) for x in prompt)

    def forward(weights, latents, text, pooled):
        model = nnx.merge(graph, parallel.gathered(weights[0]), weights[1])
        conditions = {name: x for name, x in latents.items() if name != "noise"}
        return model(latents["noise"], jnp.full(clips, 0.5), text, pooled, **conditions)

    call = jax.jit(forward if what == "forward" else aot.segment_sampler(config, graph))
    run = lambda: jax.block_until_ready(call(weights, latents, text, pooled))
    seconds = medians({what: run}, rounds)[what]
    flops = forward_flops(config) if what == "forward" else segment_flops(config)
    return line(what, config, seconds, clips * sum(flops.values()))


def bench_image(config, rounds: int, reference: str | None) -> list[dict]:
    """The image model on one picture of the config's size, ours and diffusers' in turns."""
    b, dtype = config.model.backbone, jnp.dtype(config.dtype)
    side = config.data.size // config.model.codec.factor
    text_shape, pooled_shape = (x.shape for x in aot.prompt_shapes(config))
    shapes = (1, side, side, b.channels), (1, *text_shape), (1, *pooled_shape)
    rng = np.random.default_rng(0)
    latents, text, pooled = (rng.standard_normal(shape, np.float32) for shape in shapes)
    graph, state = nnx.split(nnx.jit(lambda: MMDiT(b, nnx.Rngs(0)))())
    state = jax.tree.map(lambda w: w.astype(dtype), state)
    inputs = [jnp.asarray(x, dtype) for x in (latents, [0.5], text, pooled)]
    call = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    runs = {"image": lambda: jax.block_until_ready(call(state, *inputs))}
    if reference:
        runs["image, diffusers"] = diffusers_image(b, dtype, latents, text, pooled)
    n = tokens_per_frame(config)
    flops = sum(block_flops(b, ((1, n, 0),), text_shape[0], (1, n, n, n)).values())
    return [line(name, config, seconds, flops) for name, seconds in medians(runs, rounds).items()]


def diffusers_image(backbone, dtype, latents, text, pooled):
    import torch
    from diffusers import SD3Transformer2DModel

    from convert.sd35 import write_config

    fields = write_config(backbone)
    del fields["_class_name"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, dtype.name)
    model = SD3Transformer2DModel(**fields).eval().requires_grad_(False).to(device, kind)
    model = torch.compile(model) if device == "cuda" else model
    arrays = (latents.transpose(0, 3, 1, 2), text, pooled, np.array([500.0], np.float32))
    inputs = [torch.tensor(x).to(device, kind) for x in arrays]

    def run():
        model(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


# Limits that are tried of queries and keys in a tile, and of keys whose scores are computed at once, each way.
TRIED = ((256, 512, 1024, 1152), (512, 1024, 2048), (256, 512), (256, 512))


def tune(config, rounds: int, tried=TRIED) -> dict[tuple[str, int], tiles.Tiles]:
    """The fastest tiles for the config's attention through time, forward and backward, in a row of `tiles.TILES`."""
    b, d = config.model.backbone, config.data
    heads, size = config.model.video.heads, b.width // config.model.video.heads
    length, kind = (d.frames + d.past) * tokens_per_frame(config), jax.devices()[0].device_kind
    qkv = [jnp.ones((1, length, heads, size), jnp.bfloat16)] * 3
    runs, before = {}, dict(tiles.TILES)
    for each in map(tiles.Tiles._make, itertools.product(*tried)):
        tiles.TILES[kind, size] = each  # what is compiled next takes it from there
        attend = jax.jit(jax.grad(lambda *qkv: attention.splash_attention(*qkv).astype(jnp.float32).sum(), (0, 1, 2)))
        try:
            compiled = attend.lower(*qkv).compile()
        except jax.errors.JaxRuntimeError as error:  # does not fit the fast memory
            print(f"{each}: {' '.join(str(error).split())[:100]}", file=sys.stderr)
            continue
        runs[each] = lambda compiled=compiled: jax.block_until_ready(compiled(*qkv))
    tiles.TILES.clear()
    tiles.TILES.update(before)
    if not runs:
        raise UserError(
            f"no tile that is tried fits {kind} at {length} tokens, heads of {size}; the compiler's words are above."
        )
    seconds = medians(runs, rounds)
    for each in sorted(seconds, key=seconds.get):
        print(json.dumps({"what": "tiles", "device": kind, "head": size, **each._asdict(), "seconds": round(seconds[each], 5)}))
    return before | {(kind, size): min(seconds, key=seconds.get)}


def written(path: Path, rows: dict[tuple[str, int], tiles.Tiles]) -> None:
    """Puts the rows in place of those of the module."""
    text = path.read_text()
    begin = text.index("TILES: ")
    table = "".join(f"    {key}: {value},\n" for key, value in sorted(rows.items()))
    rest = text[text.index("}\n", begin) + 2 :]
    write_whole(path, f"{text[:begin]}TILES: dict[tuple[str, int], Tiles] = {{\n{table}}}\n{rest}")


def main(arguments: list[str]) -> None:
    if "--help" in arguments:
        print(__doc__)
        return
    values = flags.FlagValues()
    define = {"flag_values": values}
    flags.DEFINE_list("what", ["forward", "train", "sample"], "What to time.", **define)
    flags.DEFINE_enum("reference", None, ["diffusers"], "Time its image model too.", **define)
    flags.DEFINE_integer("rounds", 5, "Timed runs of each.", **define)
    flags.DEFINE_bool("tune", False, "First find the fastest tiles of attention here.", **define)
    config = configs.parse(arguments, values)
    parallel.start()
    if values.tune:
        if jax.default_backend() != "tpu":
            raise UserError("--tune times a kernel of TPUs, and there is none here.")
        tiles.TILES.update(tune(config, values.rounds))
        written(Path(tiles.__file__), tiles.TILES)
    mesh = parallel.make_mesh(config.mesh)
    for what in values.what:
        if what == "image":
            lines = bench_image(config, values.rounds, values.reference)
        else:
            with jax.set_mesh(mesh):
                run = bench_train if what == "train" else bench_video
                lines = [run(config, mesh, values.rounds, *([] if what == "train" else [what]))]
        for found in lines:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    say_errors("bench", lambda: main(sys.argv))
