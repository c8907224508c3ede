"""The video model of `svdp_jax.train`: frames are sampled, segment by segment, each seeing the end of the one before."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import pack, unpack
from flax import nnx

from svdp_jax import config as configs, parallel
from svdp_jax.diffusion import flow, guidance, sampler
from svdp_jax.engines.arriving import Arriving, overlapped
from svdp_jax.engines.engine import Step
from svdp_jax.errors import UserError
from svdp_jax.faces import arguments
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.faces.framing import Framing, Portrait
from svdp_jax.models import learned
from svdp_jax.models.vae import decode_frames, encode_frames
from svdp_jax.weights import adapter, checkpoint, shipped
from svdp_jax.weights.prompts import prompt_of


class SVDPEngine:
    """A trained model, ready to make videos of any length."""

    options: tuple[str, ...] = ("seed", "sampling", "watch", "segment")
    flags: tuple[str, ...] = ("steps", "guidance")
    still = False

    def __init__(self, config: configs.Config, model: nnx.Module, codec, fingerprint: str = "unsaved", mesh=None):
        """mesh: devices to work on, by default all of this process that a segment divides over."""
        self.config, self.name, self.data = config, config.name, config.data
        self.framing: Framing = Portrait(config.data.size)
        self.fingerprint = fingerprint
        self.mesh = mesh or sampling_mesh(config, jax.local_devices())
        (graph, state), (codec_graph, codec_weights) = nnx.split(model), nnx.split(codec)
        self.state, self.codec = jax.tree.map(self.placed, (state, codec_weights))
        prompt = tuple(np.asarray(x, config.dtype) for x in prompt_of(config))

        def on_frames(function):
            """`function(codec, frames)` of any number of frames (... y x c), divided over the devices."""
            local = lambda weights, frames: function(nnx.merge(codec_graph, weights), frames)

            @jax.jit
            def run(weights, frames):
                flat, leading = pack([frames], "* y x c")
                return unpack(parallel.each_spread(local, weights, flat), leading, "* y x c")[0]

            return partial(self.on_mesh, run, self.codec)

        self.encode, self.decode = on_frames(encode_frames), on_frames(decode_frames)

        @jax.jit
        def advance(state, x, times, weights, conditions):
            text, pooled = (jnp.broadcast_to(part, (len(x), *part.shape)) for part in prompt)
            network = nnx.merge(graph, parallel.gathered(state))
            return sampler.advance(network, x, times, text, pooled, conditions, config.model, weights)

        self.advance = advance

    @classmethod
    def load(cls, folder=None, base: Path | None = None) -> "SVDPEngine":
        """Of what `shipped.find` names, an adapter's with its base; UserError where that is no trained model."""
        folder = shipped.find(folder)
        config, model = adapter.load(folder, base)
        codec = checkpoint.load_codec(config.model.codec, config.dtype)
        return cls(config, model, codec, shipped.fingerprint(folder))

    def use(self, *states: nnx.State) -> None:
        """Takes other weights for the same network."""
        self.state = jax.tree.map(self.placed, nnx.merge_state(*states))

    def placed(self, weight: jax.Array) -> jax.Array:
        """In the config's dtype, and whole on every device unless it lies on the mesh already."""
        there = weight.sharding.device_set == set(self.mesh.devices.flat)
        return learned.cast(weight if there else jax.device_put(weight, parallel.sharding(self.mesh)), self.config.dtype)

    def on_mesh(self, function: Callable, *arguments):
        with jax.set_mesh(self.mesh):
            return function(*arguments)

    def play(self, source: DrivingFrame, driving: Iterable[DrivingFrame], again=None, **options) -> Iterator[Any]:
        """As `engine.Engine.play`, but once is enough; `options` are those of `generate`."""
        ready = driving.ready if isinstance(driving, Arriving) else None
        for made in self.generate(source.crop[None], (frame.masked[None] for frame in driving), ready=ready, **options):
            yield made if isinstance(made, Step) else made[0]

    def chosen(self, steps: int | None = None, guidance: tuple[float, float, float] | None = None) -> dict[str, Any]:
        usual = self.config.sampling
        strengths = dict(zip(("source", "driving", "past"), guidance or ()))
        return {"sampling": dataclasses.replace(usual, steps=steps or usual.steps, **strengths)}

    def pace(self, sampling: configs.Sampling | None = None, segment: int | None = None, **options) -> tuple[int, int]:
        return segment or self.config.data.frames, (sampling or self.config.sampling).steps

    def recorded(self, driving):
        return driving

    def recorder(self, output):
        raise UserError(f"{output}: {self.name} needs a driver's pictures; motion alone is kept for LivePortrait.")

    def compile(self) -> None:
        """A segment and the next, step by step, and with all steps at once."""
        still = np.zeros((1, self.framing.size, self.framing.size, 3), np.uint8)
        once = dataclasses.replace(self.config.sampling, steps=1)
        for sampling in (once, self.config.sampling):
            for _ in self.generate(still, [still] * (self.config.data.frames + 1), sampling=sampling):
                pass

    def generate(
        self,
        source: np.ndarray,
        driving: Iterable[np.ndarray],
        seed: int = 0,
        sampling: configs.Sampling | None = None,
        watch: bool = False,
        past: np.ndarray | None = None,
        segment: int | None = None,
        ready: Callable[[int], bool] | None = None,
    ) -> Iterator[Any]:
        """Crops of many people at once: yields one picture for each driving one.

        source: (b y x 3) uint8 crops. driving: masked crops (b y x 3) uint8, as many as there
        are; no more than a segment of them is held. past: (b p y x 3) uint8 crops of just before,
        where there are any. segment: frames made at once, as in training by default, no fewer than past ones.
        ready: whether so many driving frames are there already; then the next segment is begun before this one is
        taken from the device, so that neither waits for the other. Yields (b y x 3) uint8, and with `watch` also
        a Step after each sampling step.
        """
        arguments.check(crops=source, drivers=driving, seed=seed, sampling=sampling, watch=watch, segment=segment)
        f, p, frames = segment or self.config.data.frames, self.config.data.past, iter(driving)
        if f < p or f % self.mesh.shape["context"]:
            raise UserError(f"segment must be {p} frames, as many as are looked back at, or more, and divide over the devices.")
        chunks = iter(lambda: list(itertools.islice(frames, f)), [])
        sampling = sampling or self.config.sampling
        segments = self.segments(source, chunks, f, seed, sampling, watch, None if past is None else self.encode(past))
        for made in overlapped(segments, lambda: ready is not None and ready(f)):
            yield from (made,) if isinstance(made, Step) else taken(*made)

    def segments(self, source, chunks: Iterable[list], f: int, seed: int, sampling, watch: bool, past) -> Iterator[Any]:
        """Pictures (b f y x 3) on the device, perhaps not yet computed, and how many of them are asked for, by segment;
        and Steps. chunks: lists of up to f driving crops (b y x 3)."""
        p, null = self.config.data.past, self.config.model.video.null
        times = np.asarray(flow.schedule(sampling.steps, sampling.shift))
        weights = guidance.weights(sampling, self.config.model.told)
        at_start, source = guidance.at_start(weights, null), self.encode(source)
        # All steps in one call, or one by one for somebody who watches.
        stretches = [times[i : i + 2] for i in range(sampling.steps)] if watch else [times]
        for segment, chunk in enumerate(chunks):
            padded = np.stack(chunk + [chunk[-1]] * (f - len(chunk)), axis=1)  # b f y x c
            driver = self.encode(padded)
            key = jax.random.fold_in(jax.random.key(seed), segment)
            x, nothing = self.on_mesh(start, np.asarray(jax.random.key_data(key)), driver, p)
            conditions = {"source": source, "driving": driver, "past": nothing if past is None else past}
            now = at_start if past is None else weights
            for step, times in enumerate(stretches):
                x = self.on_mesh(self.advance, self.state, x, times, now, conditions)
                if watch:
                    jax.block_until_ready(x)
                    yield Step(segment, step)
            past = self.on_mesh(last, x, p)
            yield self.decode(x), len(chunk)


def taken(made: jax.Array, count: int) -> Iterator[np.ndarray]:
    """The first pictures (b y x 3) of a segment b f y x 3."""
    yield from np.moveaxis(np.asarray(made), 1, 0)[:count]


@partial(jax.jit, static_argnums=2)
def start(key: jax.Array, like: jax.Array, past: int) -> tuple[jax.Array, jax.Array]:
    """Noise for a segment, like these latents b f y x c, and as many past frames of nothing, b p y x c."""
    return flow.noise(jax.random.wrap_key_data(key), like.shape), jnp.zeros_like(like[:, :1]).repeat(past, 1)


@partial(jax.jit, static_argnums=1)
def last(x: jax.Array, past: int) -> jax.Array:
    """The last frames of a segment, b f y x c."""
    return x[:, x.shape[1] - past :]


def sampling_mesh(config: configs.Config, devices: list) -> jax.sharding.Mesh:
    """As many of these devices as a segment divides over: its branches of guidance first, which need not
    talk to each other, then its frames."""
    branches = len(guidance.weights(config.sampling, config.model.told)) if config.model.video.null == "zeros" else 1
    shapes = (
        configs.Mesh(data=data, context=count // data)
        for count in range(len(devices), 0, -1)
        for data in range(min(branches, count), 0, -1)
        if count % data == 0
    )
    shape = next(shape for shape in shapes if shape.context == 1 or divides(config, shape))
    return parallel.make_mesh(shape, devices[: shape.data * shape.context])


def divides(config: configs.Config, shape: configs.Mesh) -> bool:
    """Whether frames, and what attention divides, divide over a mesh."""
    try:
        configs.check(dataclasses.replace(config, mesh=shape))
        return True
    except UserError:
        return False
