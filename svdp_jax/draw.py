"""Draws one picture from a prompt with the image model alone: does the conversion hold?"""

from svdp_jax import errors

if __name__ == "__main__":
    errors.end_quietly()  # imports take seconds

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from svdp_jax.diffusion import flow
from svdp_jax.diffusion.sampler import euler
from svdp_jax.errors import UserError
from svdp_jax.files import on_disk
from svdp_jax.media.images import write_image
from svdp_jax.models.mmdit import MMDiT
from svdp_jax.models.vae import Autoencoder, decode_frames
from svdp_jax.weights import prompts
from svdp_jax.weights.checkpoint import abstract_network, load_network

SHIFT = 3.0

EXAMPLES = """\
examples:
  python -m convert all stabilityai/stable-diffusion-3.5-medium sd35m
  python -m svdp_jax.draw --checkpoint sd35m --prompt "a portrait of an old sailor"

with a prompt that was encoded before, so that no text encoder is loaded:
  python -m convert prompt sd35m prompts --prompt "a portrait of an old sailor"
  python -m svdp_jax.draw --checkpoint sd35m --prompt-file prompts/prompt.safetensors
"""


def schedule(steps: int, shift: float = SHIFT) -> np.ndarray:
    """The times at which SD3 is sampled, from 1 to 0: steps + 1.

    They go down evenly to the last training time, not to 0, and are shifted
    after that time was, as in diffusers' FlowMatchEulerDiscreteScheduler.
    """
    last = flow.shifted(1 / 1000, shift)
    times = flow.shifted(np.linspace(1, last, steps), shift)
    return np.append(times, 0).astype(np.float32)


def latents(
    model: MMDiT,
    noise: jax.Array,
    prompt: tuple[jax.Array, jax.Array],
    empty: tuple[jax.Array, jax.Array],
    steps: int,
    guidance: float,
    on_step: Callable[[], None] = lambda: None,
) -> jax.Array:
    """Clean latents b y x c from noise of that shape.

    prompt, empty: text (t w) and pooled (w), the latter of the empty prompt.
    guidance: how far to go from the empty prompt's velocity past the prompt's, 1 for no further.
    """
    dtype = model.proj_out.kernel.dtype
    b = noise.shape[0]
    text, pooled = (
        jnp.concatenate([jnp.repeat(jnp.asarray(x, dtype)[None], b, 0) for x in pair]) for pair in zip(empty, prompt)
    )

    def velocity(x, s, _):
        jax.debug.callback(on_step)
        both = jnp.concatenate([x, x]).astype(dtype)
        away, towards = jnp.split(model(both, jnp.full(2 * b, s), text, pooled).astype(x.dtype), 2)
        return away + guidance * (towards - away)

    return euler(velocity, noise, schedule(steps))


def picture(codec: Autoencoder, z: jax.Array) -> jax.Array:
    """Latents b y x c to pictures b y x 3 of whole numbers, 0 to 255."""
    return decode_frames(codec, z)


def read_prompts(options: argparse.Namespace) -> tuple:
    """Text and pooled, of the prompt and of the empty one."""
    if options.prompt_file:
        empty = options.prompt_file.with_name("empty.safetensors")
        return prompts.load_prompt(options.prompt_file), prompts.load_prompt(empty)
    load = lambda folder: load_network(options.checkpoint / folder)
    text, pooled = prompts.encode(options.checkpoint, load, [options.prompt, prompts.EMPTY])
    return (text[0], pooled[0]), (text[1], pooled[1])


def check(options: argparse.Namespace) -> None:
    """Raises UserError for a size or file that cannot be drawn, before anything is loaded."""
    model, codec = (abstract_network(options.checkpoint / name) for name in ("backbone", "vae"))
    stride = codec.factor * model.patch
    side = len(model.pos_embed.line) * stride
    if options.size % stride or not 0 < options.size <= side:
        raise UserError(f"--size must be a multiple of {stride} up to {side}, not {options.size}.")
    if options.steps < 1:
        raise UserError(f"--steps must be at least 1, not {options.steps}.")
    if options.output.suffix != ".png":
        raise UserError(f"--output must end in .png, unlike {options.output}.")
    there = next(path for path in options.output.absolute().parents if path.exists())
    if options.output.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--output {options.output} cannot be written; name another file.")


def run(options: argparse.Namespace) -> None:
    on_disk(options.output)
    check(options)
    prompt, empty = read_prompts(options)
    model = load_network(options.checkpoint / "backbone")
    codec = load_network(options.checkpoint / "vae")
    pooled = model.time_text_embed.text_embedder.linear_1.in_features
    widths = (model.context_embedder.in_features, pooled)
    if prompt[0].shape != empty[0].shape or tuple(x.shape[-1] for x in prompt) != widths:
        raise UserError("the encoded prompt is not one for this backbone; encode it again.")
    rows = options.size // codec.factor
    noise = jax.random.normal(jax.random.key(options.seed), (1, rows, rows, codec.channels))
    with tqdm(total=options.steps, desc="drawing", unit="step") as bar:
        draw = nnx.jit(lambda model, noise: latents(model, noise, prompt, empty, options.steps, options.guidance, bar.update))
        z = jax.block_until_ready(draw(model, noise))
    image = np.asarray(nnx.jit(picture)(codec, z)[0])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_image(options.output, image)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.draw",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a folder that `convert all` made")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--prompt", help="encoded with the checkpoint's own text encoders")
    words.add_argument("--prompt-file", type=Path, help="a file that `convert prompt` made")
    parser.add_argument("--output", type=Path, default=Path("drawing.png"))
    parser.add_argument("--size", type=int, default=1024, help="pixels, default %(default)s")
    parser.add_argument("--steps", type=int, default=28, help="default %(default)s")
    parser.add_argument("--guidance", type=float, default=4.5, help="1 for none, default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except UserError as error:
        print(f"draw: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
