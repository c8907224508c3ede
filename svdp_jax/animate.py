"""python -m svdp_jax.animate --source pic.jpg --driving clip.mp4 --output out.mp4 --checkpoint DIR

Makes the person in the source picture perform what the driver does. The face
is found and cropped in both; the driver is seen only through windows on eyes,
nose and mouth. The result has the driver's frames, frame rate and sound, and
says in its metadata that it is generated, by which version and checkpoint;
with --sign it also carries Content Credentials (C2PA) that tell when it was changed.

`python -m svdp_jax.animate --demo` needs no files: it animates a drawn portrait
with the model that comes with the package.
"""

from svdp_jax import errors

if __name__ == "__main__":
    errors.end_quietly()  # imports take seconds

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import get_args

from tqdm import tqdm

from svdp_jax.animator import Animator
from svdp_jax.config import ALIKE, AS_DRIVEN, MotionKind, Region, Transfer
from svdp_jax.engines import engine as engines
from svdp_jax.errors import UserError, say_errors
from svdp_jax.faces import face as faces
from svdp_jax.faces.scene import CROPS
from svdp_jax.files import apart
from svdp_jax.media import credentials
from svdp_jax.media.writer import leave
from svdp_jax.toy import example

MOST_GUIDANCE = 100
# Options that `faces.scene.prepare` takes under the same names.
FINDING = ("face", "driving_face", "source_crop", "driving_crop", "landmarks")
# Options that engines take, each its own; None where not given.
MAKING = ("steps", "guidance", *(field.name for field in dataclasses.fields(Transfer)))
# Where weights usually are, by --method.
METHODS = {"svdp": None, "liveportrait": Path("weights/liveportrait")}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.animate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--source", metavar="PICTURE", help="a portrait: photograph, painting, drawing")
    add("--driving", metavar="VIDEO", help="a video of a face, or LivePortrait's motion.safetensors of one")
    add("--output", metavar="FILE", help="out.mp4, out.gif, or out.png for a folder of pictures; motion.safetensors keeps "
        "what LivePortrait needs of the driver, without its pictures, for --driving")  # fmt: skip
    add("--checkpoint", "--weights", type=Path, metavar="DIR",
        help="a work folder of svdp_jax.train, or converted weights of LivePortrait (default: the model that "
        "comes with the package)")  # fmt: skip
    add("--method", choices=METHODS,
        help="what the checkpoint must be; liveportrait is looked for in weights/liveportrait, where none is named")  # fmt: skip
    add("--base", type=Path, metavar="DIR",
        help="of a checkpoint that is an adapter, the weights it was trained on (default: where they were then)")  # fmt: skip
    add("--demo", action="store_true", help="animate the built-in picture with the built-in driver, to demo.mp4")
    add("--compare", action="store_true", help="show source, crop, masked driver and result side by side")
    add("--paste-back", action="store_true",
        help="put the result back into the whole picture, with a soft rim; the output has the picture's size")  # fmt: skip
    add(
        "--face",
        type=count,
        default=0,
        metavar="K",
        help="which face of picture and video, where they show several: 0 is the largest (default 0)",
    )
    add(
        "--driving-face",
        type=count,
        metavar="K",
        help="which face of the video, in its first frame that shows one (default: as --face)",
    )
    add("--source-crop", choices=CROPS, default="auto",
        help="auto crops around the face; none takes the largest centred square (default auto)")  # fmt: skip
    add("--driving-crop", choices=CROPS, default="auto", help="the same for the video, as of one already cropped")
    add("--landmarks", type=Path, metavar="FILE",
        help="the driver's landmarks in every frame instead of our own finder: .npy or .json of pixels "
        "(frames, points, 2), 68 (iBUG, dlib) or 468 or 478 (MediaPipe) points")  # fmt: skip
    add("--steps", type=positive, metavar="N", help="sampling steps (default: the checkpoint's)")
    add("--guidance", type=strength, nargs=3, metavar=("S", "D", "P"),
        help="how strongly to follow source, driver and past frames (default: the checkpoint's)")  # fmt: skip
    add("--motion", choices=get_args(MotionKind),
        help="LivePortrait, as all that follow: move as the driver has moved since its first frame, or take on its pose "
        "(default relative)")  # fmt: skip
    add("--first-frame", type=frame, metavar="N",
        help="of relative motion, from 0; alike for that which is most like the picture (default 0)")  # fmt: skip
    add("--driving-multiplier", type=float, metavar="M", help="of all motion (default 1)")
    add("--animation-region", choices=get_args(Region), help="what moves (default all)")
    for part in ("eye", "lip"):
        add(f"--{part}-retargeting", type=float, nargs="?", const=AS_DRIVEN, metavar="RATIO",
            help=f"open the {part}s so far, height over width, or as far as the driver's; with relative motion "
            "nothing else moves")  # fmt: skip
    add("--stitching", action=argparse.BooleanOptionalAction, help="keep the shoulders where they are (default yes)")
    add("--seed", type=seed, default=0)
    add("--sign", type=Path, nargs=2, metavar=("CHAIN", "KEY"),
        help="sign the result: certificates of the signer up to a root, and their private key, both PEM "
        "(pip install 'svdp_jax[sign]')")  # fmt: skip
    options = parser.parse_args()
    say_errors("animate", lambda: run(options))


def count(text: str) -> int:
    """An argument that is 0, 1, 2, ..."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not 0, 1, 2, ...")
    return int(text)


def frame(text: str) -> int:
    return ALIKE if text == "alike" else count(text)


def positive(text: str) -> int:
    if not count(text):
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(text)


def strength(text: str) -> float:
    """A guidance scale; far outside these numbers a picture is black."""
    if not abs(float(text)) <= MOST_GUIDANCE:
        raise argparse.ArgumentTypeError(f"{text} is not between -{MOST_GUIDANCE} and {MOST_GUIDANCE}")
    return float(text)


def seed(text: str) -> int:
    if not -(2**31) <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not between -2147483648 and 2147483647")
    return int(text)


def run(options: argparse.Namespace) -> None:
    if options.demo:
        with tempfile.TemporaryDirectory() as folder:
            animate(options, **example.draw(Path(folder))._asdict())
        return
    given = {name: getattr(options, name) for name in ("source", "driving", "output")}
    recording = Path(options.output or "").suffix == ".safetensors"
    missing = [f"--{name}" for name, value in given.items() if value is None and not (recording and name == "source")]
    if missing:
        raise UserError(f"{', '.join(missing)} must be given; or try --demo, which needs no files.")
    finding = {name: getattr(options, name) for name in FINDING}
    if recording:
        record(options, given["driving"], **finding)
    else:
        animate(options, given["source"], given["driving"], **finding)


def animate(options: argparse.Namespace, source, driving, **finding) -> None:
    output = options.output or "demo.mp4"
    apart(output, source, driving, options.landmarks, *(options.sign or ()))
    animator = loaded(options)
    making = engines.chosen(animator.engine, {name: getattr(options, name) for name in MAKING})
    finish = credentials.signing(*options.sign, animator.provenance) if options.sign else leave
    scene = animator.save(
        output, source, driving, paste_back=options.paste_back, compare=options.compare,
        seed=options.seed, show=tqdm, finish=finish, **finding, **making,
    )  # fmt: skip
    tell(output, driving, scene.driver)


def record(options: argparse.Namespace, driving, face, driving_face, driving_crop, landmarks, **source) -> None:
    """Of the driver alone."""
    finding = {"driving_face": face if driving_face is None else driving_face, "driving_crop": driving_crop}
    tell(options.output, driving, loaded(options).record(options.output, driving, landmarks=landmarks, show=tqdm, **finding))


def loaded(options: argparse.Namespace) -> Animator:
    return Animator.load(options.checkpoint or METHODS[options.method or "svdp"], options.method, options.base)


def tell(output, driving, driver) -> None:
    for first, last in faces.missing(driver.track):
        print(f"No face in frames {first} to {last} of {driving}: bridged.", file=sys.stderr)
    print(f"{output}: {driver.info.frames} frames at {float(driver.info.fps):.5g} per second.")


if __name__ == "__main__":
    main()
