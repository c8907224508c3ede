"""python -m svdp_jax.animate --source pic.jpg --driving clip.mp4 --output out.mp4 --checkpoint DIR

Makes the person in the source picture perform what the driver does. The face
is found and cropped in both; the driver is seen only through windows on eyes,
nose and mouth. The result has the driver's frames, frame rate and sound.
"""

import argparse
import itertools
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from svdp_jax import checkpoint, config as configs
from svdp_jax.data import face, video
from svdp_jax.diffusion import sampler
from svdp_jax.errors import say_errors
from svdp_jax.models.vae import from_uint8, to_uint8
from svdp_jax.prompts import load_prompt

SMALLEST_SHOWN = 256  # pixels


def prompt_of(config: configs.Config) -> tuple[np.ndarray, np.ndarray]:
    """Text (t, w) and pooled (w,) of the config's prompt; zeros where it has none."""
    backbone = config.model.backbone
    if not config.prompt:
        return np.zeros((1, backbone.text_width), np.float32), np.zeros(backbone.pooled_width, np.float32)
    return load_prompt(Path(config.prompt))


class Animator:
    """A trained model, ready to make videos of any length, segment by segment."""

    def __init__(self, config: configs.Config, model: nnx.Module, codec):
        self.config = config
        graph, state = nnx.split(model)
        self.state = jax.tree.map(lambda w: w.astype(config.dtype), state)
        text, pooled = (jnp.asarray(x, config.dtype) for x in prompt_of(config))
        self.encode = jax.jit(lambda pixels: codec.encode(from_uint8(pixels, config.dtype)))

        @jax.jit
        def segment(state, noise, source, driving, past):
            b = len(source)
            repeated = (jnp.broadcast_to(x, (b, *x.shape)) for x in (text, pooled))
            conditions = {"source": source, "driving": driving, "past": past}
            latents = sampler.sample(
                nnx.merge(graph, state), noise, *repeated, conditions, config.model, config.sampling
            )
            return latents, to_uint8(codec.decode(latents))

        self.segment = segment

    @classmethod
    def load(cls, folder: Path) -> "Animator":
        """From a work folder of `svdp_jax.train`, or its `model`."""
        config, model = checkpoint.load_model(folder)
        return cls(config, model, checkpoint.load_codec(config.model.codec))

    def animate(self, source: np.ndarray, driving: Iterable[np.ndarray], seed: int = 0) -> Iterator[np.ndarray]:
        """Yields one picture for each driving one, as segments are finished.

        source: (b y x 3) uint8 crops. driving: masked crops (b y x 3) uint8, as many as there
        are; no more than a segment of them is held. Yields (b y x 3) uint8.
        """
        f, p = self.config.data.frames, self.config.data.past
        source = self.encode(source)
        past = jnp.zeros((len(source), p, *source.shape[1:]), source.dtype)
        frames = iter(driving)
        for index in itertools.count():
            chunk = list(itertools.islice(frames, f))
            if not chunk:
                return
            padded = np.stack(chunk + [chunk[-1]] * (f - len(chunk)), axis=1)  # b f y x c
            key = jax.random.fold_in(jax.random.key(seed), index)
            driven = self.encode(padded)
            noise = jax.random.normal(key, driven.shape, driven.dtype)
            latents, pixels = self.segment(self.state, noise, source, driven, past)
            past = latents[:, f - p :]
            yield from np.moveaxis(np.asarray(pixels), 1, 0)[: len(chunk)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.animate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--source", required=True, metavar="PICTURE", help="a portrait: photograph, painting, drawing")
    add("--driving", required=True, metavar="VIDEO", help="a video of a face")
    add("--output", required=True, metavar="FILE", help="out.mp4, out.gif, or out.png for a folder of pictures")
    add("--checkpoint", required=True, type=Path, metavar="DIR", help="a work folder of svdp_jax.train")
    add("--compare", action="store_true", help="show source, crop, masked driver and result side by side")
    add("--face", type=int, default=0, metavar="K", help="which face, 0 being the largest (default 0)")
    add("--seed", type=int, default=0)
    options = parser.parse_args()
    say_errors("animate", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    info = video.probe(options.driving)
    animator = Animator.load(options.checkpoint)
    size = animator.config.data.size
    source = face.prepare_source(video.read_image(options.source), size, options.face, options.source)
    with video.VideoWriter(options.output, info.fps, audio_from=options.driving) as writer:
        frames = face.driving_frames(find_driver(options, info.frames, size))
        taken = deque()  # driving frames whose results are still to come: a segment at most
        masked = (taken.append(frame) or frame.masked[None] for frame in frames)
        results = animator.animate(source[None], masked, options.seed)
        for result in tqdm(results, total=info.frames, desc="Animating", unit="frame"):
            frame = taken.popleft()
            shown = (source, frame.crop, frame.masked, result[0]) if options.compare else result
            writer.write(video.side_by_side([enlarged(picture) for picture in shown]), frame.time)


def find_driver(options: argparse.Namespace, frames: int, size: int) -> face.Driving:
    """First pass over the driving video, with a word on frames that show no face."""
    progress = partial(tqdm, total=frames, desc="Following the face", unit="frame")
    driving = face.prepare_driving(options.driving, size, options.face, progress)
    for first, last in face.missing(driving.track):
        print(f"No face in frames {first} to {last} of {options.driving}: bridged.", file=sys.stderr)
    return driving


def enlarged(picture: np.ndarray) -> np.ndarray:
    """Small models' pictures in whole multiples, large enough to watch."""
    times = -(-SMALLEST_SHOWN // picture.shape[0])
    return video.resize(picture, (times * picture.shape[1], times * picture.shape[0]))


if __name__ == "__main__":
    main()
