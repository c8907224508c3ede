"""The measurements of `accelerator.py`, one a process: PART RESULT [...] [--tiny].

Each yields rows; RESULT, a JSON file, is written after every one of them. Importing this begins nothing on the device.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

# The CPU is what the device is compared with.
if os.environ.get("JAX_PLATFORMS") not in (None, "", "cpu"):
    os.environ["JAX_PLATFORMS"] += ",cpu"

import bench
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.engines.liveportrait import SIDE, LivePortraitEngine
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.models import attention
from svdp_jax.models.liveportrait import LivePortrait, LivePortraitConfig
from svdp_jax.models.svdp import SVDP
from svdp_jax.models.vae import Autoencoder, AutoencoderConfig
from svdp_jax.planning import aot
from svdp_jax.weights import shipped

ROOT = Path(__file__).parents[1]
PRECISIONS = (("float32", "default"), ("float32", "highest"), ("bfloat16", "default"))
SLOW = 60.0  # seconds of a training that an export takes


class Sizes(NamedTuple):
    """What a measurement is made of."""

    model: configs.Model
    data: configs.Data
    parity: configs.Data  # of the comparison with the CPU, which must be done in seconds there
    vae: AutoencoderConfig
    picture: int  # pixels, for the autoencoder
    liveportrait: LivePortraitConfig
    face: int  # pixels, for LivePortrait
    clip: int  # frames that it makes
    at_once: tuple[int, ...]  # so many in a step
    adapter: configs.Config
    student: configs.Config
    tokens: int  # that attend at once in the video
    heads: tuple[tuple[int, int], ...]  # heads and their size
    toy: tuple[str, ...]  # flags of its training
    enough: float  # words of its steps after which a rehearsal ends it, as elsewhere its time does


def sizes(tiny: bool) -> Sizes:
    full = Sizes(
        model=configs.sd35m(),
        data=configs.Data(size=512, frames=16, past=4, batch=1),
        parity=configs.Data(size=512, frames=1, past=1, batch=1),
        vae=AutoencoderConfig(),
        picture=512,
        liveportrait=LivePortraitConfig(),
        face=256,
        clip=64,
        at_once=(4, 16),
        adapter=on_one(named("gpu_one")),
        student=on_one(named("fast")),
        tokens=20 * 1024,
        heads=((24, 64), (12, 128)),
        toy=(),
        enough=float("inf"),
    )
    if not tiny:
        return full
    backbone = dataclasses.replace(configs.toy().backbone, width=64, heads=2, dual=0, blocks=1)
    model = dataclasses.replace(configs.toy(), backbone=backbone, video=configs.Video(heads=2))
    data = configs.Data(source="records", size=16, frames=2, past=1, batch=1)
    optimizer = dataclasses.replace(full.adapter.optimizer, accumulate=1)
    cached = dataclasses.replace(model, told=True, video=dataclasses.replace(model.video, references="cached"))
    return Sizes(
        model=model,
        data=data,
        adapter=dataclasses.replace(full.adapter, model=model, data=data, optimizer=optimizer),
        student=dataclasses.replace(full.student, model=cached, data=data),
        parity=configs.Data(size=16, frames=1, past=1, batch=1),
        vae=AutoencoderConfig(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=2),
        picture=16,
        liveportrait=LivePortraitConfig(
            channels=2, depth=2, appearance=(4, 4, 4), resblocks=1, motion=(4, 4, 4, 8), motion_blocks=(1, 1, 1, 1), compress=2,
            hourglass=(2, 4, 4), warped=4, generator=(8, 4, 4), middle=1, spade=4, shoulder=(8,), mouth=(8,), eye=(8,),
        ),
        face=64,
        clip=2,
        at_once=(1,),
        tokens=160,
        heads=((2, 8), (1, 16)),
        toy=("--config.data.size=16", "--config.data.batch=4", "--config.data.frames=2", "--config.data.past=1",
             "--config.model.backbone.blocks=1", "--config.model.backbone.dual=0", "--config.model.backbone.width=48",
             "--config.save_every=100000", "--config.log_every=2", "--config.evaluate=0", "--config.watch_every=0"),
        enough=3,
    )  # fmt: skip


def named(name: str) -> configs.Config:
    """That of the file in configs/."""
    return configs.from_flags(importlib.import_module(f"configs.{name}").get_config())


def on_one(config: configs.Config) -> configs.Config:
    """The config on the devices that there are, which it need not have been made for."""
    return dataclasses.replace(config, mesh=configs.Mesh(), topology="")


def config_of(s: Sizes, frames: int | None = None, past: int | None = None) -> configs.Config:
    """The config of a train step on one device, as wide as `s` says."""
    data = s.data if frames is None else dataclasses.replace(s.data, frames=frames, past=past)
    optimizer = configs.Optimizer(moment="bfloat16")
    return configs.Config("accelerator", s.model, data, optimizer, remat="full", dtype="bfloat16")


# Parity


def randomized(make: Callable[[], nnx.Module]) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph and state of what is made, with noise on every parameter, so that no zero gate hides a mistake."""
    graph, params, rest = nnx.split(nnx.jit(make)(), nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    spread = lambda x: x + rng.standard_normal(x.shape, np.float32) * (0.02 if x.ndim > 1 else 0.2)
    return graph, nnx.merge_state(jax.tree.unflatten(tree, [spread(np.asarray(x)) for x in leaves]), rest)


def network_cases(s: Sizes) -> Iterator[tuple[str, Callable, tuple]]:
    """Name, function of arrays and states, and what it is given; made on the CPU."""
    rng = np.random.default_rng(1)
    normal = lambda *shape: rng.standard_normal(shape, np.float32)
    model = dataclasses.replace(s.model, backbone=dataclasses.replace(s.model.backbone, blocks=2, dual=1))
    graph, state = randomized(lambda: SVDP(model, nnx.Rngs(0)))
    config = dataclasses.replace(config_of(s), model=model, data=s.parity)
    latents = {name: normal(*x.shape) for name, x in aot.abstract_latents(config, 1).items()}
    noise = latents.pop("noise")
    b = model.backbone
    text, pooled = normal(1, 333 if s.model.backbone.width > 1000 else 5, b.text_width), normal(1, b.pooled_width)
    merge = nnx.merge
    yield "video model, 2 blocks", lambda w, x, c, t, p: merge(graph, w)(x, jnp.full(1, 0.5), t, p, **c), (
        state, noise, latents, text, pooled,
    )  # fmt: skip
    coder, weights = randomized(lambda: Autoencoder(s.vae, nnx.Rngs(0)))
    pictures = np.clip(normal(1, s.picture, s.picture, 3) / 2, -1, 1)
    codes = normal(1, s.picture // 8 or 2, s.picture // 8 or 2, s.vae.latent_channels)
    yield "autoencoder, encode", lambda w, x: merge(coder, w).encode(x), (weights, pictures)
    yield "autoencoder, decode", lambda w, z: merge(coder, w).decode(z), (weights, codes)
    portrait, parts = randomized(lambda: LivePortrait(s.liveportrait, nnx.Rngs(0)))
    faces = rng.random((1, s.face, s.face, 3), np.float32)
    points = rng.random((2, 1, 21, 3), np.float32) - 0.5

    def reenacted(w, x, points):
        network = merge(portrait, w)
        return network.render(network.appearance(x), points[0], points[1])[0]

    yield "LivePortrait", reenacted, (parts, faces, points)


def kernel_cases(s: Sizes) -> Iterator[tuple[str, Callable, tuple]]:
    """Every kernel of this platform, at a length that needs padding."""
    rng = np.random.default_rng(2)
    length = s.tokens // 6 // 128 * 128 - 51 if s.tokens > 1000 else 77
    for heads, size in s.heads:
        qkv = tuple(rng.standard_normal((1, length, heads, size), np.float32) for _ in range(3))
        for kernel in kernels():
            yield f"{kernel}, {length} tokens, {heads} heads of {size}", attention.KERNELS[kernel], qkv


def kernels() -> tuple[str, ...]:
    return {"tpu": ("splash", "xla"), "gpu": ("cudnn", "xla")}.get(jax.default_backend(), ("xla",))


def parity(s: Sizes, *_) -> Iterator[dict]:
    for name, function, given in network_cases(s):
        yield from against_cpu(name, function, function, given)
    for name, function, given in kernel_cases(s):
        yield from against_cpu(name, function, attention.KERNELS["xla"], given)


def against_cpu(name: str, function: Callable, reference: Callable, given: tuple) -> Iterator[dict]:
    """Differences of the outcome and of all gradients from those of a CPU in float32, in root mean squares."""
    expected = jax.device_get(with_gradient(reference, given, jax.devices("cpu")[0], "float32", "highest"))
    # On a CPU there is but one precision of float32, that of the reference.
    for dtype, precision in PRECISIONS[jax.default_backend() == "cpu" :]:
        row = {"what": name, "dtype": dtype, "precision": precision}
        try:
            found = jax.device_get(with_gradient(function, given, jax.devices()[0], dtype, precision))
        except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:  # cuDNN takes no float32
            yield row | {"note": " ".join(str(error).split())[:120]}
            continue
        parts = zip(("output", "gradients"), found, expected)
        yield row | {f"difference of {part}": relative(a, b) for part, a, b in parts}


def with_gradient(function: Callable, given: tuple, device, dtype: str, precision: str) -> tuple:
    """The output, and the gradient of a fixed weighted sum of it for all that is given."""
    cast = lambda x: jax.device_put(x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, device)
    with jax.default_matmul_precision(precision), jax.default_device(device), jax.numpy_dtype_promotion("standard"):
        gradients, out = gradient(function)(jax.tree.map(cast, given))
    return out, [g for g in jax.tree.leaves(gradients) if jnp.issubdtype(g.dtype, jnp.floating)]


@lru_cache(maxsize=2)  # the reference's, and that of a kernel beside it
def gradient(function: Callable) -> Callable:
    def weighted(given):
        out = function(*given).astype(jnp.float32)
        return (out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)).sum(), out

    return jax.jit(jax.grad(weighted, has_aux=True, allow_int=True))


def relative(found, expected) -> float:
    """Root mean square of the difference over that of what is expected, of a tree of arrays."""
    pairs = [(np.float64(a), np.float64(b)) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)]
    squares = lambda arrays: sum(float((x**2).sum()) for x in arrays)
    return (squares(a - b for a, b in pairs) / max(squares(b for _, b in pairs), 1e-30)) ** 0.5


# Speed


def train(s: Sizes, frames: str, past: str, *_) -> Iterator[dict]:
    yield trained(config_of(s) if s.tokens < 1000 else config_of(s, int(frames), int(past)), 3)


def adapter(s: Sizes, *_) -> Iterator[dict]:
    yield trained(s.adapter, 2)


def trained(config: configs.Config, rounds: int) -> dict:
    d, mesh = config.data, parallel.make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        row = bench.bench_train(config, mesh, rounds)
    return {"clips": f"{d.batch} of {d.frames} + {d.past} at {d.size}", "learns": config.learn} | row


def sampler(s: Sizes, *_) -> Iterator[dict]:
    """The teacher by one of its steps, of which it takes `steps`; the student by all of its own."""
    config = dataclasses.replace(config_of(s), sampling=configs.Sampling(steps=1))
    mesh, steps, calls = parallel.make_mesh(config.mesh), configs.Sampling().steps, s.student.sampling.steps
    runs = {f"teacher, {steps} steps of 4 branches": (config, steps), f"student, {calls} calls": (s.student, 1)}
    with jax.set_mesh(mesh):
        for name, (one, times) in runs.items():
            row = bench.bench_video(one, mesh, 3, "sample")
            yield row | {"what": name, "seconds_a_frame": round(times * row["seconds"] / one.data.frames, 4)}
    yield from codec_speed(s)
    yield from portrait_speed(s)
    beside = all(map(importlib.util.find_spec, ("diffusers", "torch")))
    yield from bench.bench_image(config, 3, "diffusers" if beside else None)


def codec_speed(s: Sizes) -> Iterator[dict]:
    graph, state = nnx.split(nnx.jit(lambda: Autoencoder(s.vae, nnx.Rngs(0)))())
    state = jax.tree.map(lambda w: w.astype(jnp.bfloat16), state)
    small = max(2, s.picture // 8)
    shapes = {"encode": (1, s.picture, s.picture, 3), "decode": (1, small, small, s.vae.latent_channels)}
    for name, shape in shapes.items():
        run = jax.jit(lambda state, x, name=name: getattr(nnx.merge(graph, state), name)(x))
        x = jnp.ones(shape, jnp.bfloat16)
        seconds = bench.medians({name: lambda run=run, x=x: jax.block_until_ready(run(state, x))}, 5)[name]
        yield {"what": f"autoencoder, {name}", "seconds": seconds, "frames_per_second": round(1 / seconds, 1)}


def portrait_speed(s: Sizes) -> Iterator[dict]:
    """The engine as a user has it: from a driver's crops to pictures on the host."""
    network = nnx.jit(lambda: LivePortrait(s.liveportrait, nnx.Rngs(0)))()
    crop = np.random.default_rng(3).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    face = DrivingFrame(crop, crop)
    for count in s.at_once:
        engine, what = LivePortraitEngine(network, at_once=count), f"LivePortrait, {count} at once"
        seconds = bench.medians({what: lambda engine=engine: list(engine.play(face, [face] * s.clip))}, 3)[what] / s.clip
        dtype = jax.tree.leaves(engine.state["generator"])[0].dtype.name
        yield {"what": what, "dtype": dtype, "seconds": seconds, "frames_per_second": round(1 / seconds, 1)}


def attention_speed(s: Sizes, *_) -> Iterator[dict]:
    """Kernels at the video's length; multiplications and additions count 4 per score and channel forward, 10 backward."""
    device = jax.devices()[0]
    peak = bench.PEAKS.get(device.device_kind)
    for heads, size in s.heads:
        q = jnp.ones((1, s.tokens, heads, size), jnp.bfloat16)
        for kernel in kernels():
            out = jax.jit(attention.KERNELS[kernel])
            back = jax.jit(
                jax.grad(lambda q, k, v, kernel=kernel: attention.KERNELS[kernel](q, k, v).astype(jnp.float32).sum(), (0, 1, 2))
            )
            for what, run, products in (("forward", out, 4), ("forward and backward", back, 14)):
                row = {"kernel": kernel, "heads": f"{heads} x {size}", "tokens": s.tokens, "what": what}
                try:
                    seconds = bench.medians({what: lambda run=run, q=q: jax.block_until_ready(run(q, q, q))}, 3)[what]
                except jax.errors.JaxRuntimeError as error:
                    yield row | {"note": " ".join(str(error).split())[:120]}
                    continue
                tflops = products * s.tokens**2 * heads * size / seconds / 1e12
                yield row | {"seconds": seconds, "tflop_per_second": tflops, "share_of_peak": tflops / peak if peak else None}


# Profile


def profile(s: Sizes, *_) -> Iterator[dict]:
    config = config_of(s) if s.tokens < 1000 else config_of(s, 4, 1)
    mesh, folder = parallel.make_mesh(config.mesh), Path(RESULT).with_name("trace")
    with jax.set_mesh(mesh):
        run, _ = bench.train_step(config, mesh)
        run()
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # the device's operations are what is asked for
        with jax.profiler.trace(str(folder), profiler_options=options):
            run()
            run()
    times = operations(folder)
    total = sum(times.values())
    for name, nanoseconds in times.most_common(5):
        yield {"operation": name, "ms a step": nanoseconds / 2e6, "share": nanoseconds / total}


def operations(folder: Path) -> Counter:
    """Nanoseconds by operation, of the device's own lines; of the host's threads where it has none."""
    [file] = folder.rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    times = Counter()
    for plane in devices:
        lines = list(plane.lines)
        kept = [line for line in lines if line.name == "XLA Ops"] or lines
        for line in kept:
            for event in line.events:
                times[event.name.split("(")[0].rstrip("0123456789.")] += event.duration_ns
    return times


# The toy world


def toy(s: Sizes, *rest: str) -> Iterator[dict]:
    """Trains as long as there is time, then exports what has been saved."""
    work, log = Path(RESULT).with_name("toy"), Path(RESULT).with_name("toy_train.log")
    command = [
        sys.executable,
        "-m",
        "svdp_jax.train",
        f"--config={ROOT / 'configs' / 'toy_gpu.py'}",
        f"--workdir={work}",
        *s.toy,
    ]
    begun, seconds = time.monotonic(), max(20.0, LIMIT - (SLOW if s.tokens > 1000 else 10.0))
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file)
        while process.poll() is None and time.monotonic() - begun < seconds and len(steps_of(work)) < s.enough:
            time.sleep(0.2)
        process.terminate()
        process.wait()
    if not (steps := steps_of(work)):
        raise SystemExit(f"no step in {seconds:.0f} s; see {log}")
    told = {name: steps[-1][name] for name in ("step", "loss", "seconds_per_step")}
    yield told | {"trained_for": round(time.monotonic() - begun)}
    shipped.export(work, Path(RESULT).with_name("toy_model"))


def steps_of(work: Path) -> list[dict]:
    """What a training has told of its steps so far."""
    file = work / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [told for line in lines if line.endswith("\n") and "loss" in (told := json.loads(line))]


MEASUREMENTS = {
    "parity": parity, "train": train, "adapter": adapter, "sampler": sampler, "attention": attention_speed, "profile": profile, "toy": toy,
}  # fmt: skip
LIMIT, RESULT = 0.0, ""


def main(arguments: list[str]) -> None:
    global LIMIT, RESULT
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=MEASUREMENTS)
    parser.add_argument("result", type=Path)
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--limit", type=float, default=600.0)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args(arguments)
    LIMIT, RESULT = options.limit, options.result
    device = jax.devices()[0]
    versions = {"jax": jax.__version__, "numpy": np.__version__}
    told = {"device": f"{jax.device_count()} x {device.device_kind}", "versions": versions, "rows": [], "complete": False}
    begun = time.monotonic()
    for row in MEASUREMENTS[options.part](sizes(options.tiny), *options.rest):
        told["rows"].append(row)
        print(f"{time.monotonic() - begun:6.1f} s  {json.dumps(row)}", flush=True)
        save(told)
    save(told | {"complete": True})


def save(told: dict) -> None:
    partial = RESULT.with_name(f".{RESULT.name}")
    partial.write_text(json.dumps(told))
    partial.replace(RESULT)
