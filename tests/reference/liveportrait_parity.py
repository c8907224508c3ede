"""LivePortrait at full width with random weights: ours against PyTorch's, and time per frame.

    taskset -c 0 python tests/reference/liveportrait_parity.py WORK     # 2 GB of memory, 2 GB of disk

Writes the five files as they are published, converts them with the command, and compares
every network and the whole path from a source and a driving picture to the result, in float32;
limit 1e-4 of the result's standard deviation. Then it times one frame, the driver's motion included,
batch 1, one thread each, in turns; limit 1.0 of PyTorch's time.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(Path(__file__).parents[1]))

import cv2
import jax
import liveportrait_reference as reference
import numpy as np
import torch
from einops import rearrange

import convert.__main__ as command
from svdp_jax.models import keypoints
from svdp_jax.models.liveportrait import LivePortraitConfig
from svdp_jax.weights.checkpoint import load_network

torch.set_num_threads(1)
torch.set_grad_enabled(False)


def first(x) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)))


def picture(seed: int) -> np.ndarray:
    """Colours that change smoothly, as in a photograph: in noise the flow's rounding would be the result's."""
    coarse = np.random.default_rng(seed).uniform(size=(24, 24, 3)).astype(np.float32)
    return cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_LINEAR)


def compare(name: str, ours, theirs: torch.Tensor) -> None:
    theirs = theirs.movedim(1, -1) if theirs.ndim > 3 else theirs
    error = float(np.abs(np.asarray(ours) - theirs.numpy()).max() / theirs.std())
    print(f"{name:28} {error:.1e} of the standard deviation", flush=True)
    assert error <= 1e-4


def prepare(model, source):
    """What is done once for a source."""
    motion = model.motion(source)
    return model.appearance(source), motion, keypoints.points(motion)


def frame(model, known, start, driving):
    volume, source, x_s = known
    moved = keypoints.relative(source, start, model.motion(driving))
    return model.render(volume, x_s, model.stitch(x_s, moved))[0]


def parity(ours, theirs, source, driving) -> None:
    s, d = first(source), first(driving)
    compare("F, appearance", jax.jit(ours.appearance)(source), theirs.appearance(s))
    found, expected = jax.jit(ours.motion)(driving), theirs.motion(d)
    for field, name in zip(found._fields, ("kp", "exp", "t", "scale", "pitch", "yaw", "roll")):
        compare(f"M, {field}", getattr(found, field), expected[name])
    known = jax.jit(lambda x: prepare(ours, x))(source)
    volume, _, x_s = known
    x_d = x_s + 0.1 * np.random.default_rng(2).normal(size=x_s.shape).astype(np.float32)
    warped = jax.jit(ours.warping)(volume, x_s, x_d)
    features, seen = theirs.warping(first(volume), *(torch.tensor(np.asarray(x)) for x in (x_s, x_d)))
    compare("W, features", warped.features, features)
    compare("W, occlusion", warped.seen, seen)
    compare("G", jax.jit(ours.generator)(warped.features), theirs.generator(features))
    both = rearrange([x_s, x_d], "s b k i -> b (s k i)")
    compare("S", ours.stitching.shoulder(both), theirs.shoulder(torch.tensor(np.asarray(both))))
    for relative in (True, False):
        motion = jax.jit(ours.motion)(driving)
        start = jax.tree.map(lambda x: x[:1], motion)
        moved = keypoints.relative(known[1], start, motion) if relative else keypoints.absolute(known[1], motion)
        out = jax.jit(ours.render)(volume, x_s, ours.stitch(x_s, moved))[0]
        compare(f"whole path, {'relative' if relative else 'absolute'}", out, theirs(s, d, relative))


def speed(ours, theirs, source, driving, rounds: int) -> None:
    s, d = first(source), first(driving)
    motion = theirs.motion(s)
    volume, x_s, start = theirs.appearance(s), reference.points(motion), theirs.motion(d[:1])

    def one_of_theirs():
        now = theirs.motion(d[1:])
        joined = {name: torch.cat([start[name], now[name]]) for name in now}
        x_d = reference.driven(motion, joined, True)[1:]
        change = theirs.shoulder(torch.cat([x_s.flatten(1), x_d.flatten(1)], 1))
        x_d = x_d + change[:, :63].view(-1, 21, 3)
        return theirs.generator(theirs.warping(volume, x_s, x_d)[0])

    known = jax.jit(lambda x: prepare(ours, x))(source)
    start_ours = jax.jit(ours.motion)(driving[:1])
    run = jax.jit(lambda model, *rest: frame(model, *rest))
    one_of_ours = lambda: jax.block_until_ready(run(ours, known, start_ours, driving[1:]))
    runs, times = {"PyTorch": one_of_theirs, "ours": one_of_ours}, {"PyTorch": [], "ours": []}
    for round_ in range(rounds + 1):
        for name, call in runs.items():
            begin = time.perf_counter()
            call()
            if round_:  # the first one compiles
                times[name].append(time.perf_counter() - begin)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratio = medians["ours"] / medians["PyTorch"]
    print(f"seconds a frame: {medians}, ratio {ratio:.2f}, limit 1.0")


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("work", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    theirs = reference.randomized(LivePortraitConfig())
    weights = options.work / "weights"
    if not weights.exists():
        reference.write(theirs, LivePortraitConfig(), options.work / "published")
        assert command.main(["liveportrait", str(options.work / "published"), str(weights)]) == 0
    ours = load_network(weights)
    source, driving = picture(0)[None], np.stack([picture(1), picture(2)])
    parity(ours, theirs, source, driving)
    speed(ours, theirs, source, driving, options.rounds)


if __name__ == "__main__":
    main()
