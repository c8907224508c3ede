"""python tests/reference/memory.py animate|page VIDEO PICTURE
python tests/reference/memory.py prepare

Peak memory of what must not grow. `animate`: the command, on 200 and on 2 000 frames made by
repeating VIDEO, each in a process of its own; the second may have 1.15 times the first's. `page`: a
hundred animations of the first built-in example by one visitor after the other; memory of the
server's process, and its files, after every tenth. The model is untrained and tiny. `prepare`: all stages, self-driven,
on noise with 68 landmarks a frame, of two lengths; what two hours at 25 frames a second would take more.
One core of an Intel Xeon, 2026-11-24, on d18.mp4 and s9.jpg: 469 MB for 200 frames and for 2 000 in some 3 minutes;
1129 MB after 30 animations and 1135 MB after 100, and never more than 54 files, in some 3 minutes (2026-11-25).
`prepare`, 2026-11-25: 349 MB for 2 000 frames and 362 MB for 20 000, so 707 bytes a frame and 475 MB after two hours.
"""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from flax import nnx

from svdp_jax.media import video
from svdp_jax.weights import checkpoint

sys.path.append(str(Path(__file__).parents[1]))
from conftest import tiny_model

from svdp_jax import config as configs
from svdp_jax.media.writer import VideoWriter
from svdp_jax.models.svdp import SVDP

COUNTED = """
import sys
from svdp_jax import animate
sys.argv = sys.argv[1:]
animate.main()
print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
"""
PREPARED = """
import sys
from svdp_jax import prepare
prepare.main(sys.argv[1:])
print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])
"""
LENGTHS, TWO_HOURS = (2_000, 20_000), 180_000  # frames
COUNTS = 200, 200, 2000  # the first compiles, which takes more memory than all that follows


def save_model(folder: Path) -> None:
    config = configs.Config(
        "tiny", tiny_model(), configs.Data(size=16, frames=4, past=2), dtype="float32", sampling=configs.Sampling(steps=2)
    )
    _, weights, constants = nnx.split(SVDP(config.model, nnx.Rngs(0)), nnx.Param, ...)
    checkpoint.save_model(folder / "model", config, weights, constants)


def repeat(path: str, count: int, target: Path) -> None:
    with VideoWriter(target, video.probe(path).fps) as writer:
        frames = itertools.chain.from_iterable(video.read_frames(path) for _ in itertools.count())
        for frame in itertools.islice(frames, count):
            writer.write(frame.image)


def animate(folder: Path, clip: str, picture: str) -> None:
    peaks = []
    for count in COUNTS:
        repeat(clip, count, folder / f"{count}.mp4")
        line = [
            sys.executable,
            "-c",
            COUNTED,
            "animate",
            "--source",
            picture,
            "--driving",
            folder / f"{count}.mp4",
            "--checkpoint",
            folder,
            "--output",
            folder / f"out_{count}.mp4",
        ]
        result = subprocess.run(list(map(str, line)), stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(int(result.stdout.splitlines()[-1]))
        print(f"{count} frames: {peaks[-1] / 1024:.0f} MB", flush=True)
    print(f"{peaks[2] / peaks[1]:.3f} times")


def prepare(folder: Path, *_) -> None:
    from test_prepare import plain_film

    peaks = []
    for count in LENGTHS:
        (folder / str(count)).mkdir()
        plain_film(folder / str(count) / "a.mp4", count, points=68)
        line = [sys.executable, "-c", PREPARED, folder / str(count), folder / f"out_{count}", "--size", "64", "--pairs", "self",
                "--codec", "pixels:4", "--landmarks", f"files:{folder / str(count)}", "--limit", "face=10", "--limit", "sharpness=0",
                "--", "--runner=none"]  # fmt: skip
        result = subprocess.run(list(map(str, line)), stdout=subprocess.PIPE, text=True, check=True)
        assert f"seconds of them: {count // 25}" in result.stdout
        peaks.append(1024 * int(result.stdout.splitlines()[-1]))
        print(f"{count} frames: {peaks[-1] / 1e6:.0f} MB", flush=True)
    growth = (peaks[1] - peaks[0]) / (LENGTHS[1] - LENGTHS[0])
    print(f"{growth:.0f} bytes a frame; two hours: {(peaks[1] + growth * (TWO_HOURS - LENGTHS[1])) / 1e6:.0f} MB")


def page(folder: Path, *_) -> None:
    from gradio_client import Client, handle_file

    from svdp_jax.toy import example

    drawn = example.draw(folder)
    (folder / "tmp").mkdir()
    line = [sys.executable, "-m", "svdp_jax.demo", "--checkpoint", folder]
    server = subprocess.Popen(
        list(map(str, line)), stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": f"{folder}/tmp"}
    )
    try:
        url = next(word for line in server.stdout for word in line.split() if word.startswith("http"))
        for number in range(1, 101):
            client = Client(url, verbose=False, download_files=str(folder / "fetched"))
            files = {name: handle_file(getattr(drawn, name)) for name in ("source", "driving", "landmarks")}
            client.predict(**files, source_crop="none", driving_crop="none", api_name="/animate")
            client.close()
            if number % 10 == 0:
                held = Path(f"/proc/{server.pid}/status").read_text().split("VmRSS:")[1].split()[0]
                kept = [path for path in (folder / "tmp").rglob("*") if path.is_file()]
                print(f"{number} animations: {int(held) / 1024:.0f} MB, {len(kept)} files", flush=True)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    print(f"after the end: {len(list((folder / 'tmp').iterdir()))} files and folders")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder))
        {"animate": animate, "page": page, "prepare": prepare}[sys.argv[1]](Path(folder), *sys.argv[2:])
