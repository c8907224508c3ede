"""python -m svdp_jax.demo [--checkpoint DIR]

A page to try a model on: a picture and a video in, the animation out, frame by
frame as they are made. Needs `pip install 'svdp_jax[demo]'`. It is seen from this
machine alone unless --host says otherwise, and serves nothing but what visitors
gave it and what it made for them, which is deleted when the page ends.
"""

import argparse
import base64
import contextlib
import dataclasses
import html
import itertools
import math
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from svdp_jax.animator import Animator, Step
from svdp_jax.config import Sampling
from svdp_jax.errors import UserError, say_errors
from svdp_jax.faces import face as faces, scene as scenes
from svdp_jax.media import video
from svdp_jax.media.images import resize
from svdp_jax.toy import example

try:
    import gradio as gr
except ImportError:
    gr: Any = None

RESULTS, EXAMPLES = "results", "examples"  # folders beside those of the uploads
KEPT = 20  # results on disk; older ones are deleted
FORGOTTEN = 3600  # seconds until an upload is deleted
PACE = 0.1  # seconds between two updates of the page
PREVIEWED = 4  # driving frames that are shown before computing
MOST_STEPS, STRONGEST = 100, 5.0  # ends of the sliders
CSS = """
.pictures {display: flex; gap: 4px; flex-wrap: wrap} .pictures img {height: 104px; width: auto}
.made img {max-height: 320px; width: auto} progress {width: 100%}
"""


class Stopped(Exception):
    """A visitor has pressed Cancel."""


class Studio:
    """What happens behind the page. Visitors are told apart by Gradio's session hash."""

    def __init__(self, animator: Animator, folder: Path, longest: float):
        """folder: where Gradio keeps uploads. longest: seconds of driving video that are taken."""
        self.animator, self.folder, self.longest = animator, folder, longest
        self.running: dict[str, threading.Event] = {}  # by visitor; set when they want to stop
        self.numbers = itertools.count()
        (folder / RESULTS).mkdir()
        # The preview's work is not done again by the animation that follows it.
        self.prepared = lru_cache(maxsize=4)(self.prepare)

    def prepare(self, source, driving, face, driving_face, source_crop, driving_crop, landmarks) -> scenes.Scene:
        if not source or not driving:
            raise UserError("give a picture and a driving video, or choose an example.")
        seconds = float(video.probe(driving).duration)
        if seconds > self.longest:
            raise UserError(f"the video has {seconds:.0f} seconds, but {self.longest:g} are allowed; cut it first.")
        return scenes.prepare(
            source, driving, self.animator.size, face=int(face), driving_face=int(driving_face),
            source_crop=source_crop, driving_crop=driving_crop, landmarks=landmarks,
        )  # fmt: skip

    def look(self, source, driving, *choices) -> str:
        """What will be animated, as HTML: the face found, crops, and what is seen of the driver."""
        if not source or not driving:
            return ""
        with told():
            scene = self.prepared(source, driving, *choices)
            apart = max(1, scene.info.frames // PREVIEWED)
            frames = itertools.islice(scene.driver(), 0, PREVIEWED * apart, apart)
            views = [view for frame in frames for view in (frame.crop, frame.masked)]
        shown = "".join(map(picture, (framed(scene.picture, scene.box), scene.source, *views)))
        bridged = "".join(f" No face in frames {a} to {b}: bridged." for a, b in faces.missing(scene.driving.track))
        about = f"{scene.info.frames} frames, {float(scene.info.fps):.5g} per second.{bridged}"
        return f"What will be used: picture, its crop, driver and what is seen of it.<div class=pictures>{shown}</div>{about}"

    def animate(
        self,
        source,
        driving,
        face,
        driving_face,
        source_crop,
        driving_crop,
        landmarks,
        paste_back,
        steps,
        guide_source,
        guide_driving,
        guide_past,
        seed,
        request: "gr.Request",
    ) -> Iterator[tuple]:
        """Yields what the page shows: newest frame, how far it is, and at the end result and comparison."""
        stop = self.running[request.session_hash] = threading.Event()
        shift = self.animator.config.sampling.shift
        sampling = Sampling(int(steps), shift, guide_source, guide_driving, guide_past)
        paths = self.new_paths()
        try:
            yield "", "Looking at picture and video ...", None, None
            with told():
                scene = self.prepared(source, driving, face, driving_face, source_crop, driving_crop, landmarks)
                last = ""
                for last, text in self.film(scene, paths, stop, paste_back, sampling, int(seed)):
                    yield last, text, None, None
            yield last, "Finished.", *paths
        except Stopped:
            yield "", "Stopped.", None, None
        finally:
            self.running.pop(request.session_hash, None)

    def film(self, scene, paths, stop, paste_back, sampling, seed) -> Iterator[tuple[str, str]]:
        """Writes result and comparison; yields the newest frame and how far it is, no faster than PACE."""
        progress = Progress(scene.info.frames, self.animator.config.data.frames, sampling.steps)
        image, shown_at = "", 0.0
        with contextlib.ExitStack() as stack:
            result, comparison = (stack.enter_context(self.animator.writer(path, scene.driving.path)) for path in paths)
            for event in self.animator.play(scene, seed=seed, sampling=sampling, watch=True):
                if stop.is_set():
                    raise Stopped
                if isinstance(event, Step):
                    progress.step(event)
                else:
                    frame = scene.shown(event, paste_back=paste_back)
                    result.write(frame, event.time)
                    comparison.write(scene.shown(event, True, paste_back), event.time)
                    progress.done += 1
                    image = f"<div class=made>{picture(frame)}</div>"
                if time.monotonic() - shown_at > PACE:
                    yield image, str(progress)
                    shown_at = time.monotonic()
        yield image, str(progress)

    def stop(self, request: "gr.Request") -> None:
        """Ends the visitor's animation at the next sampling step."""
        if running := self.running.get(request.session_hash):
            running.set()

    def new_paths(self) -> tuple[str, str]:
        """Where a result and its comparison go; makes room for them."""
        made = sorted((self.folder / RESULTS).glob("*.mp4"), key=lambda path: path.stat().st_mtime)
        for path in made[: -2 * KEPT]:
            path.unlink()
        for path in self.folder.iterdir():
            if path.name not in (RESULTS, EXAMPLES) and time.time() - path.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(path, ignore_errors=True)
        name = self.folder / RESULTS / f"animation_{next(self.numbers)}"
        return f"{name}.mp4", f"{name}_side_by_side.mp4"


class Progress:
    """How far an animation is, as HTML: a bar, and a line that tells segment, step, frames and time left."""

    def __init__(self, frames: int, segment: int, steps: int):
        self.frames, self.steps, self.segments = frames, steps, math.ceil(frames / segment)
        self.done, self.last, self.start = 0, Step(0, -1), time.monotonic()

    def step(self, step: Step) -> None:
        self.last = step

    def __str__(self):
        segment, step = self.last
        taken, total = segment * self.steps + step + 1, self.segments * self.steps
        left = (time.monotonic() - self.start) / max(1, taken) * (total - taken)
        return (
            f"<progress max={total} value={taken}></progress><br>Segment {segment + 1} of {self.segments}, "
            f"step {step + 1} of {self.steps}; {self.done} of {self.frames} frames done, about {left:.0f} s left"
        )


@contextlib.contextmanager
def told():
    """A UserError becomes a message on the page."""
    try:
        yield
    except UserError as error:
        # Names of uploads are long paths on the server; visitors know the last part.
        sentence = " ".join(word.rsplit("/", 1)[-1] for word in str(error).split(" "))
        raise gr.Error(html.escape(sentence), duration=None, print_exception=False) from None


def picture(image: np.ndarray) -> str:
    """HTML of an (h, w, 3) uint8 picture, carried in the page itself, so that no file is left."""
    data = cv2.imencode(".jpg", image[..., ::-1])[1].tobytes()
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def framed(image: np.ndarray, box: faces.Box) -> np.ndarray:
    """The picture with its crop drawn in, small enough for a page."""
    scale = min(1.0, 480 / max(image.shape[:2]))
    corners = [
        (round(x * scale), round(y * scale)) for x, y in ((box.left, box.top), (box.left + box.side, box.top + box.side))
    ]
    small = resize(image, (round(image.shape[1] * scale), round(image.shape[0] * scale))).copy()
    return cv2.rectangle(small, *corners, (0, 200, 0), 3)


# --- the page


def page(studio: Studio, examples: list[example.Example]) -> "gr.Blocks":
    with gr.Blocks(title="svdp_jax", analytics_enabled=False) as blocks:
        gr.Markdown(
            "# Animate a portrait\nA picture, and a video of somebody else: the pictured person does what the other does."
        )
        with gr.Row():
            with gr.Column():
                given, guidance, buttons = inputs(studio, examples)
            with gr.Column():
                preview = gr.HTML(elem_id="preview")
                newest, progress = gr.HTML(elem_id="newest"), gr.HTML(elem_id="progress")
                result = gr.Video(label="Result", interactive=False, height=320, elem_id="result")
                comparison = gr.Video(label="Side by side", interactive=False, height=200, elem_id="comparison")
        start, cancel = buttons
        for component in given:
            component.change(studio.look, given, preview, concurrency_limit=2, api_name="look")
        run = start.click(
            studio.animate, given + guidance, [newest, progress, result, comparison],
            show_progress_on=[progress], api_name="animate",
        )  # fmt: skip
        # Gradio takes a waiting animation out of the queue; it cannot interrupt one that runs.
        stopped = cancel.click(studio.stop, cancels=[run], queue=False, api_visibility="private")
        stopped.then(lambda: "Stopped.", None, progress, queue=False, api_visibility="private")
        blocks.unload(studio.stop)
    return blocks.queue(max_size=20)


def inputs(studio: Studio, examples: list[example.Example]) -> tuple[list, list, tuple]:
    """Components: what is given to `Studio.look`, what `Studio.animate` takes more, and the two buttons."""
    usual = studio.animator.config.sampling
    source = gr.Image(label="Picture", type="filepath", sources=["upload", "webcam"], height=260, elem_id="source")
    driving = gr.Video(label="Driving video", sources=["upload", "webcam"], height=260, elem_id="driving")
    with gr.Row():
        start, cancel = gr.Button("Animate", variant="primary"), gr.Button("Cancel")
    with gr.Accordion("Faces and cropping", open=False):
        face = gr.Number(0, label="Which face of the picture, 0 being the largest", precision=0, minimum=0)
        driving_face = gr.Number(0, label="Which face of the video", precision=0, minimum=0)
        source_crop = gr.Radio(scenes.CROPS, value="auto", label="Crop the picture: around the face, or not at all")
        driving_crop = gr.Radio(scenes.CROPS, value="auto", label="Crop the video")
        landmarks = gr.File(label="Landmarks of the driver (.npy or .json), instead of finding the face", type="filepath")
        paste_back = gr.Checkbox(label="Paste back into the whole picture")
    with gr.Accordion("Sampling", open=False):
        steps = gr.Slider(1, MOST_STEPS, usual.steps, step=1, label="Steps", elem_id="steps")
        strength = partial(gr.Slider, 0, STRONGEST, step=0.1)
        weights = [
            strength(usual.source, label="λs: follow the picture"),
            strength(usual.driving, label="λd: follow the driver"),
            strength(usual.past, label="λp: follow the frames before"),
        ]
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
    # Gradio would open the picture with Pillow and fail in its own words, and copy the file with every call.
    source.preprocess = landmarks.preprocess = lambda payload: payload and payload.path
    given = [source, driving, face, driving_face, source_crop, driving_crop, landmarks]
    rows = [[e.source, e.driving, e.source_crop, e.driving_crop, e.landmarks] for e in examples]
    gr.Examples(
        rows,
        [source, driving, source_crop, driving_crop, landmarks],
        cache_examples=False,
        example_labels=[f"Example {number}" for number in range(1, 1 + len(rows))],
    )
    return given, [paste_back, steps, *weights, seed], (start, cancel)


def compile_model(animator: Animator) -> None:
    """Makes a segment and the next step by step, so that no visitor waits for the compiler."""
    still = np.zeros((1, animator.size, animator.size, 3), np.uint8)
    once = dataclasses.replace(animator.config.sampling, steps=1)
    for _ in animator.generate(still, [still] * (animator.config.data.frames + 1), sampling=once, watch=True):
        pass


@contextlib.contextmanager
def serving(animator: Animator, longest: float, largest: str, **address) -> Generator[str]:
    """A running page; gives its address. Its files are gone afterwards."""
    compile_model(animator)
    with tempfile.TemporaryDirectory(prefix="svdp_jax_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # the one way to tell Gradio
        folder = Path(folder)
        drawn = []
        for number, seeds in enumerate(example.PLAYS):
            (folder / EXAMPLES / f"{number}").mkdir(parents=True)
            drawn.append(example.draw(folder / EXAMPLES / f"{number}", seeds))
        blocks = page(Studio(animator, folder, longest), drawn)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # none from elsewhere
        _, url, _ = blocks.launch(
            prevent_thread_lock=True, quiet=True, share=False, ssr_mode=False, max_file_size=largest,
            theme=gr.themes.Default(**fonts), css=CSS, footer_links=["api"], **address,
        )  # fmt: skip
        try:
            yield url
        finally:
            blocks.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m svdp_jax.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="DIR",
        help="a work folder of svdp_jax.train (default: the model that comes with the package)")  # fmt: skip
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in (default 127.0.0.1)")
    add("--port", type=int, help="default: the first free one from 7860")
    add("--longest", type=float, default=60, metavar="SECONDS", help="of driving video (default 60)")
    add("--largest", default="50mb", metavar="SIZE", help="of an uploaded file (default 50mb)")
    options = parser.parse_args()
    say_errors("demo", lambda: run(options))


def run(options: argparse.Namespace) -> None:
    if gr is None:
        raise UserError("the page needs Gradio; pip install 'svdp_jax[demo]'.")
    print("Loading and compiling the model ...", flush=True)
    animator = Animator.load(options.checkpoint)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are deleted then too
    address = {"server_name": options.host, "server_port": options.port}
    with serving(animator, options.longest, options.largest, **address) as url, contextlib.suppress(KeyboardInterrupt):
        print(f"Open {url} in a browser; Ctrl-C ends it.", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
