"""python tests/reference/live.py [CHECKPOINT] [--seconds 60] [--fps 25] [--video FILE] [--segment F]

Streaming as a camera has it: frames that come at a rate whatever is done with them. Frames a second that come out, the
delay from a frame's coming to its result, frames left out, and the memory of the process on the way.
Drawn frames first, cropped and masked already; with --video then also its pictures, whose face is followed as they come
(which takes the face networks, docs/faces.md).
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from svdp_jax.animator import Animator, Live
from svdp_jax.evaluation import toy_score
from svdp_jax.faces.driving import DrivingFrame
from svdp_jax.media import video


def camera(frames: list, fps: float, seconds: float):
    """These frames to and fro, each at its time."""
    begun = time.monotonic()
    there_and_back = itertools.cycle(frames + frames[-2:0:-1])
    for number, frame in enumerate(itertools.islice(there_and_back, round(seconds * fps))):
        time.sleep(max(0.0, begun + number / fps - time.monotonic()))
        yield frame


def resident() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--fps", type=float, default=25)
    parser.add_argument("--video")
    parser.add_argument("--segment", type=int)
    args = parser.parse_args()
    animator = Animator.load(args.checkpoint)
    clips = toy_score.unseen_clips(animator.engine.data, 1, 50)
    drivers: dict[str, list] = {"cropped already": [DrivingFrame(crop, crop, Fraction(0)) for crop in clips.driving[0]]}
    if args.video:
        drivers["followed"] = [frame.image for frame in itertools.islice(video.read_frames(args.video), 100)]
    options = {"segment": args.segment} if args.segment else {}
    for name, frames in drivers.items():
        play = lambda seconds, frames=frames: animator.stream(
            clips.source[0], camera(frames, args.fps, seconds), source_crop="none", **options
        )
        for _ in play(1):  # compiles
            pass
        print(json.dumps({"frames": name} | watched(play(args.seconds), args.fps)), flush=True)


def watched(stream: Iterator[Live], fps: float) -> dict:
    """What is to be told of a stream, with MiB of the process every ten seconds and at the end."""
    begun, delays, memory, last = time.monotonic(), [], [], None
    for last in stream:
        delays.append(last.delay)
        if time.monotonic() - begun > 10 * (len(memory) + 1):
            memory.append(round(resident()))
    took = time.monotonic() - begun
    quantile = lambda q: round(1000 * float(np.quantile(delays, q)))
    return {
        "fps": round(len(delays) / took, 2),
        "dropped": last and last.dropped,
        "delay, ms": {"median": quantile(0.5), "95 %": quantile(0.95), "most": quantile(1)},
        "MiB": [*memory, round(resident())],
        "load": round(os.getloadavg()[0], 1),  # of the machine: what others had of it
    }


if __name__ == "__main__":
    main()
