"""python tests/reference/metric_speed.py VIDEO

Times every metric, at full size with random weights, on 16 frames of a video of a face at 512x512,
and says how many minutes 100 clips of 64 frames would take. Run it under `taskset -c 0` for the
time of one core; about three minutes. VIDEO needs sound.
"""

import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

from flax import nnx

from svdp_jax.evaluation import measure, metrics
from svdp_jax.evaluation.clips import Folders, match
from svdp_jax.media import video
from svdp_jax.media.images import resize
from svdp_jax.media.writer import VideoWriter
from svdp_jax.models.liveportrait import LivePortraitConfig, MotionExtractor
from svdp_jax.weights.checkpoint import NETWORKS

FRAMES, WHOLE = 16, 100 * 64
SHORT = 2  # frames that the slowest metric is timed on


def network(name: str):
    if name == "liveportrait":
        return MotionOnly()
    kind, module = NETWORKS[name]
    config = kind("vgg") if name == "lpips_vgg" else kind()
    return module(config, nnx.Rngs(0))


class MotionOnly(nnx.Module):
    def __init__(self):
        self.motion = MotionExtractor(LivePortraitConfig(), nnx.Rngs(0))


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


with tempfile.TemporaryDirectory() as folder:
    for role in ("result", "reference"):
        path = Path(folder, role)
        path.mkdir()
        with VideoWriter(path / "a.mp4", Fraction(25), sys.argv[1]) as writer:
            for frame in video.read_frames(sys.argv[1], stop=FRAMES):
                writer.write(resize(frame.image, (512, 512)))
    (clip,), _ = match(Folders(Path(folder, "result"), Path(folder, "reference")))
    clip = clip._replace(paths=clip.paths | {"driver": clip.paths["reference"]})
    networks = {call.network: network(call.network) for call in measure.CALLS.values()}
    calls = {name: measure.compiled(networks[call.network], call.function, call.rows) for name, call in measure.CALLS.items()}
    print("| metric | seconds for 16 frames, one core | minutes for 100 clips of 64 frames, two cores |\n|---|---|---|")
    for name, metric in metrics.METRICS.items():
        if name in ("gaze MAE", "eye MAE"):  # need landmarks, and next to no time
            continue
        reader = measure.Reader(clip, calls)
        short = name == "LPIPS (VGG)"
        if short:
            reader.clip = clip._replace(frames=SHORT, places={k: v[:SHORT] for k, v in clip.places.items()})
        features = lambda: [reader.feature(need) for need in metric.needs]
        features()  # compiles
        reader.known = {}
        spent = seconds(features) * (FRAMES / SHORT if short else 1)
        print(f"| {name} | {spent:.2f} | {spent * WHOLE / FRAMES / 60 / 2:.0f} |", flush=True)
