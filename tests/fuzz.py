"""Mutated videos and pictures through the reading code.

    python tests/fuzz.py 1000

Bytes are flipped, cut off, spliced between files, and files named as what they are not.
Each must give pictures or one sentence; no crash, no other error, no file over ten
seconds, no memory over a gigabyte.
"""

import io
import json
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from svdp_jax.errors import UserError  # noqa: E402
from svdp_jax.media import video  # noqa: E402
from svdp_jax.media.images import read_image

VIDEOS = {
    "mp4": "libx264", "mov": "mpeg4", "mkv": "libx264", "webm": "libvpx", "avi": "mjpeg", "gif": "gif", "ts": "mpeg2video"
}  # fmt: skip
PICTURES = ("png", "jpg", "webp", "bmp", "tiff")
SECONDS, BYTES = 10, 1 << 30


def originals() -> dict[str, bytes]:
    """A small sound file of each kind, by suffix."""
    shades = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    made = {suffix: cv2.imencode(f".{suffix}", shades)[1].tobytes() for suffix in PICTURES}
    for suffix, codec in VIDEOS.items():
        buffer = io.BytesIO()
        kind = {"mkv": "matroska", "ts": "mpegts"}.get(suffix, suffix)
        with av.open(buffer, "w", format=kind) as container:
            stream = container.add_stream(codec, rate=Fraction(25))
            stream.width, stream.height = 64, 48
            stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            for shift in range(12):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(shades, 4 * shift, 1), format="rgb24")))
            container.mux(stream.encode())
        made[suffix] = buffer.getvalue()
    return made


def flip(draw, content, _):
    content = bytearray(content)
    for _ in range(draw.choice([1, 4, 32, len(content) // 20])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def flip_head(draw, content, _):
    """Where sizes and counts are."""
    head = min(len(content), draw.choice([32, 128, 512]))
    return flip(draw, content[:head], _) + content[head:]


def cut(draw, content, _):
    return content[: draw.randrange(len(content))]


def splice(draw, content, other):
    return content[: draw.randrange(len(content))] + other[draw.randrange(len(other)) :]


def repeat(draw, content, _):
    start = draw.randrange(len(content))
    return content[:start] + content[start : start + draw.randrange(1, 5000)] * draw.choice([2, 50]) + content[start:]


MUTATIONS = (flip, flip_head, cut, splice, repeat)


def mutated(seed: int, sound: dict[str, bytes]) -> tuple[str, bytes]:
    """Suffix and content of one file; a function of the seed."""
    draw = random.Random(seed)
    suffix, other = draw.choice(list(sound)), draw.choice(list(sound))
    content = draw.choice(MUTATIONS)(draw, sound[suffix], sound[other])
    return (other if draw.random() < 0.2 else suffix), content


def read(path: Path) -> str:
    """How the file is answered: `read`, `refused`, or what went wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix[1:] in PICTURES:
                read_image(path)
            else:
                video.probe(path)
                for _ in video.read_frames(path):
                    pass
        return "read"
    except UserError as error:
        return "refused" if "\n" not in str(error) and str(path) in str(error) else f"unclear: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def child(folder: Path, first: int, count: int) -> None:
    """Reads the mutated files, a line of JSON for each one."""
    sound = originals()
    for seed in range(first, count):
        suffix, content = mutated(seed, sound)
        path = folder / f"{seed}.{suffix}"
        path.write_bytes(content)
        start = time.monotonic()
        answer = read(path)
        path.unlink()
        seconds = time.monotonic() - start
        print(json.dumps({"seed": seed, "answer": answer, "seconds": seconds, "peak": peak()}), flush=True)


def peak() -> int:
    """The most bytes this process has held; what getrusage tells includes the process that started it."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def lines_of(process) -> queue.Queue:
    lines = queue.Queue()

    def pump():
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    return lines


def fuzz(count: int) -> dict:
    """Totals, and the seeds of all files that were not answered as they should be."""
    done, wrong = [], []
    with tempfile.TemporaryDirectory() as folder:
        while len(done) < count:
            command = [sys.executable, __file__, "child", folder, str(len(done)), str(count)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            lines = lines_of(process)
            while len(done) < count:
                try:
                    line = lines.get(timeout=SECONDS + 20)
                except queue.Empty:
                    line = None
                if line is None:
                    break
                done.append(json.loads(line))
            process.kill()
            if len(done) < count:
                why = f"crash or hang, return code {process.wait()}"
                done.append({"seed": len(done), "answer": why, "seconds": 0, "peak": 0})
    fine = lambda x: x["answer"] in ("read", "refused") and x["seconds"] < SECONDS and x["peak"] < BYTES
    wrong = [x for x in done if not fine(x)]
    return {
        "files": len(done),
        "read": sum(x["answer"] == "read" for x in done),
        "refused": sum(x["answer"] == "refused" for x in done),
        "slowest": max(x["seconds"] for x in done),
        "peak": max(x["peak"] for x in done),
        "wrong": wrong,
    }


if __name__ == "__main__":
    if sys.argv[1] == "child":
        child(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        print(json.dumps(fuzz(int(sys.argv[1])), indent=1))
