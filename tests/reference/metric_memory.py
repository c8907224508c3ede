"""python tests/reference/metric_memory.py VIDEO

Peak memory of `evaluate --results` on 3 and on 30 copies of VIDEO, a face with sound, cut to 16 frames at
160x160, with small random networks for every metric; each in a process of its own. The second may have 1.05
times the first's. Gaze and eye MAE read landmarks that were made up.
One core of an Intel Xeon, 2026-11-25, on d18.mp4: 500 MB for 3 clips, 459 MB for 30, in some 5 minutes.
"""

import shutil
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))
from test_evaluate import landmarks, save_networks, write

from svdp_jax.media import video
from svdp_jax.media.images import resize

COUNTED = """
import sys
from svdp_jax import evaluate
from svdp_jax.media.images import resize
sys.argv = sys.argv[1:]
evaluate.main()
print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
"""
COUNTS = 3, 3, 30  # clips; the first compiles, which takes more memory than all that follows
FRAMES, SIZE = 16, 160


def copies(source: Path, count: int, folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        for suffix in (".mp4", ".npy"):
            shutil.copy(source.with_suffix(suffix), folder / f"{number:02}{suffix}")


def peak(folder: Path, results: Path, reference: Path) -> float:
    """In MB."""
    line = [sys.executable, "-c", COUNTED, "evaluate", "--results", results, "--reference", reference,
            "--weights", folder / "weights", "--output", folder / "report"]  # fmt: skip
    said = subprocess.run(list(map(str, line)), stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(said.splitlines()[-1]) / 1024


def main(folder: Path, path: str) -> None:
    save_networks(folder / "weights")
    frames = [resize(f.image, (SIZE, SIZE)) for f in video.read_frames(path, stop=FRAMES)]
    blurred = [resize(resize(x, (80, 80)), (SIZE, SIZE)) for x in frames]
    for name, images in (("truth", frames), ("out", blurred)):
        write(folder / f"{name}.mp4", images, Fraction(30), path)
        np.save(folder / f"{name}.npy", landmarks(len(frames)))
    peaks = []
    for run, count in enumerate(COUNTS):
        folders = [folder / str(run) / name for name in ("out", "truth")]
        for to in folders:
            copies(folder / f"{to.name}.mp4", count, to)
        peaks.append(peak(folder, *folders))
        print(f"{count} clips: {peaks[-1]:.0f} MB", flush=True)
    print(f"{peaks[2] / peaks[1]:.3f} times")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder), sys.argv[1])
