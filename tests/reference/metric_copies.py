"""Clips and damaged copies of them, to see what metrics make of it: python tests/reference/metric_copies.py CLIPS OUT

Folders in OUT: truth (the first 32 frames at 256x256), blurred, delayed (by three frames), recoded (H.264 at crf 38).
"""

import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2

from svdp_jax.media import video
from svdp_jax.media.images import resize
from svdp_jax.media.writer import VideoWriter

FRAMES, SIZE, SIGMA, LATE, CRF = 32, 256, 2.0, 3, "38"


def write(path: Path, images: list, fps: Fraction) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps) as writer:
        for image in images:
            writer.write(image)


def code(path: Path, images: list, fps: Fraction) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": CRF})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def main(clips: Path, out: Path) -> None:
    for path in sorted(clips.glob("*.mp4")):
        fps = video.probe(path).fps
        frames = [resize(frame.image, (SIZE, SIZE)) for frame in video.read_frames(path, stop=FRAMES)]
        write(out / "truth" / path.name, frames, fps)
        write(out / "blurred" / path.name, [cv2.GaussianBlur(x, (0, 0), SIGMA) for x in frames], fps)
        write(out / "delayed" / path.name, [frames[0]] * LATE + frames[:-LATE], fps)
        code(out / "recoded" / path.name, frames, fps)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
