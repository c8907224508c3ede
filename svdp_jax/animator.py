"""A trained model as a library: one picture and one video in, frames out as they are made.

from svdp_jax.animator import Animator

animator = Animator.load("runs/toy_cpu")
for frame in animator.animate("me.jpg", "driver.mp4"):
    ...  # (h, w, 3) uint8
"""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import pack, unpack
from flax import nnx

import svdp_jax
from svdp_jax import config as configs, parallel
from svdp_jax.diffusion import flow, guidance, sampler
from svdp_jax.errors import UserError
from svdp_jax.faces import arguments, scene as scenes
from svdp_jax.faces.scene import Scene, Take, quietly
from svdp_jax.media import video
from svdp_jax.media.writer import VideoWriter, leave
from svdp_jax.models.vae import decode_frames, encode_frames
from svdp_jax.weights import checkpoint, shipped
from svdp_jax.weights.prompts import prompt_of


class Step(NamedTuple):
    """A sampling step that is done, both counted from 0."""

    segment: int
    step: int


class Animator:
    """A trained model, ready to make videos of any length, segment by segment.

    `size` is the side of its pictures in pixels; `provenance` is what its files say of themselves.
    """

    def __init__(self, config: configs.Config, model: nnx.Module, codec, fingerprint: str = "unsaved", mesh=None):
        """mesh: devices to work on, by default all of this process that a segment divides over."""
        self.config, self.size = config, config.data.size
        self.provenance = provenance(fingerprint)
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

    def use(self, *states: nnx.State) -> None:
        """Takes other weights for the same network."""
        self.state = jax.tree.map(self.placed, nnx.merge_state(*states))

    def placed(self, weight: jax.Array) -> jax.Array:
        """In the config's dtype, and whole on every device unless it lies on the mesh already."""
        there = weight.sharding.device_set == set(self.mesh.devices.flat)
        return (weight if there else jax.device_put(weight, parallel.sharding(self.mesh))).astype(self.config.dtype)

    def on_mesh(self, function: Callable, *arguments):
        with jax.set_mesh(self.mesh):
            return function(*arguments)

    @classmethod
    def load(cls, folder=None) -> "Animator":
        """From a work folder of `svdp_jax.train`, its `model`, or an exported one; without a name,
        the model that comes with the package. UserError where there is none."""
        arguments.check(folder=folder)
        folder = shipped.find(folder)
        config, model = shipped.load(folder)
        codec = checkpoint.load_codec(config.model.codec, config.dtype)
        return cls(config, model, codec, shipped.fingerprint(folder))

    def animate(
        self,
        source,
        driving,
        *,
        paste_back: bool = False,
        compare: bool = False,
        seed: int = 0,
        sampling: configs.Sampling | None = None,
        **finding,
    ) -> Iterator[np.ndarray]:
        """Yields a picture (h, w, 3) uint8 for each driving frame, as segments of them are finished.

        source: a picture, as a path or (h, w, 3) uint8. driving: a video, as a path or pictures
        (f, h, w, 3) uint8. paste_back: the whole source picture with the new portrait in it, at
        its own size. compare: source, crop, masked driver and result side by side. sampling:
        steps and guidance, the config's by default. finding: options of `faces.scene.prepare`
        (which face, cropping, landmarks, frame rate). UserError for what cannot be used.
        """
        arguments.check(paste_back=paste_back, compare=compare, seed=seed, sampling=sampling)
        scene = scenes.prepare(source, driving, self.size, **finding)
        for take in self.play(scene, seed=seed, sampling=sampling):
            yield scene.shown(take, compare, paste_back)

    def save(
        self,
        output,
        source,
        driving,
        *,
        paste_back: bool = False,
        compare: bool = False,
        seed: int = 0,
        sampling: configs.Sampling | None = None,
        show: Callable = quietly,
        finish: Callable[[Path], None] = leave,
        **finding,
    ) -> Scene:
        """Writes to `output` what `animate` yields: .mp4 with the driver's sound, .gif, or .png.

        The file is there when it is complete, or not at all. show: wraps streams of frames, as
        tqdm does. finish: called with the file before it appears, as to sign it (`credentials`).
        Returns what was found in the inputs.
        """
        arguments.check(
            output=output, paste_back=paste_back, compare=compare, seed=seed, sampling=sampling, show=show, finish=finish
        )
        clip = scenes.as_clip(driving, finding.get("fps", scenes.FPS))
        with self.writer(output, clip, finish) as writer:
            scene = scenes.prepare(source, clip, self.size, show=show, **finding)
            takes = self.play(scene, seed=seed, sampling=sampling)
            for take in show(takes, total=scene.info.frames, desc="Animating", unit="frame"):
                writer.write(scene.shown(take, compare, paste_back), take.time)
        return scene

    def writer(self, output, clip, finish: Callable[[Path], None] = leave) -> VideoWriter:
        """A writer of a video with the frame rate and sound of `clip`, marked as generated."""
        sound = None if isinstance(clip, video.Clip) else clip
        return VideoWriter(output, video.probe(clip).fps, sound, self.provenance, finish)

    def play(self, scene: Scene, **options) -> Iterator[Any]:
        """The scene's finished frames; `options` are those of `generate`."""
        taken = deque()  # driving frames whose results are still to come: a segment at most
        masked = (taken.append(frame) or frame.masked[None] for frame in scene.driver())
        for result in self.generate(scene.source[None], masked, **options):
            yield result if isinstance(result, Step) else Take(result[0], *taken.popleft())

    def generate(
        self,
        source: np.ndarray,
        driving: Iterable[np.ndarray],
        seed: int = 0,
        sampling: configs.Sampling | None = None,
        watch: bool = False,
        past: np.ndarray | None = None,
    ) -> Iterator[Any]:
        """Crops of many people at once: yields one picture for each driving one.

        source: (b y x 3) uint8 crops. driving: masked crops (b y x 3) uint8, as many as there
        are; no more than a segment of them is held. past: (b p y x 3) uint8 crops of just before,
        where there are any. Yields (b y x 3) uint8, and with `watch` also
        a Step after each sampling step.
        """
        arguments.check(crops=source, drivers=driving, seed=seed, sampling=sampling, watch=watch)
        f, p = self.config.data.frames, self.config.data.past
        sampling = sampling or self.config.sampling
        times = np.asarray(flow.schedule(sampling.steps, sampling.shift))
        weights = guidance.weights(sampling, self.config.model.told)
        at_start = guidance.at_start(weights, self.config.model.video.null)
        # All steps in one call, or one by one for somebody who watches.
        stretches = [times[i : i + 2] for i in range(sampling.steps)] if watch else [times]
        source, frames, past = self.encode(source), iter(driving), None if past is None else self.encode(past)
        for segment in itertools.count():
            chunk = list(itertools.islice(frames, f))
            if not chunk:
                return
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
            yield from np.moveaxis(np.asarray(self.decode(x)), 1, 0)[: len(chunk)]


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


def provenance(fingerprint: str) -> dict[str, str]:
    """Tags for every file a model writes: that it is generated, by which program and weights."""
    program = f"svdp_jax {svdp_jax.__version__}"
    return {
        "comment": f"AI-generated by {program}, checkpoint {fingerprint}; not a recording of a real event",
        "software": program,
        "digital_source_type": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    }
