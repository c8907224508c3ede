"""A model as a library: one picture and one video in, frames out as they are made.

from svdp_jax.animator import Animator

animator = Animator.load("runs/toy_cpu")  # or weights/liveportrait
for frame in animator.animate("me.jpg", "driver.mp4"):
    ...  # (h, w, 3) uint8

What makes the frames is an engine (`svdp_jax.engines`), which the weights folder tells.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import svdp_jax
from svdp_jax.engines import engine as engines
from svdp_jax.engines.arriving import Arriving
from svdp_jax.engines.engine import Engine, Step
from svdp_jax.engines.liveportrait import LivePortraitEngine
from svdp_jax.engines.svdp import SVDPEngine
from svdp_jax.errors import UserError
from svdp_jax.faces import arguments, live, scene as scenes
from svdp_jax.faces.scene import Driver, Recorded, Scene, quietly
from svdp_jax.files import apart
from svdp_jax.media import video
from svdp_jax.media.writer import VideoWriter, leave
from svdp_jax.weights import adapter, checkpoint, shipped

# Engines by the network that a weights folder names.
ENGINES: dict[str, Callable[..., Engine]] = {"svdp": SVDPEngine.load, "liveportrait": LivePortraitEngine.load}


class Live(NamedTuple):
    """A frame of `Animator.stream`."""

    picture: np.ndarray  # (h, w, 3) uint8
    delay: float  # seconds since the driver's came
    dropped: int  # frames left out so far


class Animator:
    """Makes videos of any length with an engine.

    `size` is the side of its pictures in pixels; `provenance` is what its files say of themselves.
    """

    def __init__(self, engine: Engine):
        self.engine, self.size = engine, engine.framing.size
        self.provenance = provenance(engine.fingerprint)

    @classmethod
    def load(cls, folder=None, network: str | None = None, base=None) -> "Animator":
        """From a work folder of `svdp_jax.train`, its `model`, or an exported one, or from converted
        weights of LivePortrait; without a name, the model that comes with the package. network: what it
        must be, by the names in ENGINES. base: of an adapter, the folder of what it was trained on, where
        that has moved. UserError where it is not there."""
        arguments.check(folder=folder, network=network, base=base)
        found = shipped.find(folder)
        held = checkpoint.about(found)["network"]
        if held not in ENGINES or network not in (None, held):
            wanted = f"not {network}" if network else "which animates nobody"
            raise UserError(f"{found} holds {held!r}, {wanted}; give {shipped.ANY}.")
        if base and not adapter.of(found):
            raise UserError(f"{found} is no adapter, so that it needs no base; leave {base} away.")
        return cls(ENGINES[held](found, Path(base)) if base else ENGINES[held](found))

    def animate(self, source, driving, *, paste_back: bool = False, compare: bool = False, **options) -> Iterator[np.ndarray]:
        """Yields a picture (h, w, 3) uint8 for each driving frame, as soon as the engine has made some.

        source: a picture, as a path or (h, w, 3) uint8. driving: a video, as a path or pictures
        (f, h, w, 3) uint8. paste_back: the whole source picture with the new portrait in it, at
        its own size. compare: source, crop, masked driver and result side by side. options: of
        `faces.scene.prepare` (which face, cropping, landmarks, frame rate), and `engine.options` (seed
        and sampling; transfer). UserError for what cannot be used.
        """
        finding, making = self.sorted(paste_back=paste_back, compare=compare, **options)
        scene = scenes.prepare(source, self.engine.recorded(driving), self.engine.framing, **finding)
        for take in self.play(scene, **making):
            yield scene.shown(take, compare, paste_back)

    def save(
        self,
        output,
        source,
        driving,
        *,
        paste_back: bool = False,
        compare: bool = False,
        show: Callable = quietly,
        finish: Callable[[Path], None] = leave,
        **options,
    ) -> Scene:
        """Writes to `output` what `animate` yields: .mp4 with the driver's sound, .gif, or .png.

        The file is there when it is complete, or not at all. show: wraps streams of frames, as
        tqdm does. finish: called with the file before it appears, as to sign it (`credentials`).
        Returns what was found in the inputs.
        """
        arguments.check(output=output, show=show, finish=finish)
        finding, making = self.sorted(paste_back=paste_back, compare=compare, **options)
        apart(output, source, driving, finding.get("landmarks"))
        clip = scenes.as_clip(self.engine.recorded(driving), finding.get("fps", scenes.FPS))
        with self.writer(output, clip, finish) as writer:
            scene = scenes.prepare(source, clip, self.engine.framing, show=show, **finding)
            takes = self.play(scene, **making)
            for take in show(takes, total=scene.driver.info.frames, desc="Animating", unit="frame"):
                writer.write(scene.shown(take, compare, paste_back), take.time)
        return scene

    def stream(
        self,
        source,
        driving: Iterable,
        *,
        drop: bool = True,
        paste_back: bool = False,
        face: int = 0,
        driving_face: int = 0,
        source_crop: str = "auto",
        driving_crop: str = "auto",
        **options,
    ) -> Iterator[Live]:
        """Yields a Live for each driving frame as it comes: of a camera or a pipe, whose end is not known.

        driving: pictures (h, w, 3) uint8, read beside the work on those before, and followed by what was seen so far; or
        each a `DrivingFrame`, cropped and masked already. Whoever comes waits for a segment to be full, and for it to be
        made. drop: where frames come faster than they are made, those that waited longest are left out; else the source
        waits. The rest is as in `animate`. UserError, also while it runs, for what cannot be used.
        """
        arguments.check(source=source, drop=drop, face=face, source_crop=source_crop, driving_crop=driving_crop)
        _, making = self.sorted(paste_back=paste_back, compare=False, **options)
        framing, size = self.engine.framing, self.engine.pace(**making)[0]
        picture, place, portrait = scenes.portrait(source, framing, face, source_crop)
        frames = live.driver(driving, framing, driving_face, driving_crop == "none")
        with contextlib.closing(Arriving(frames, size, drop)) as arriving:
            for made in self.engine.play(portrait, arriving, **making):
                shown = framing.paste(picture, place, made) if paste_back else made
                yield Live(shown, float(live.now() - arriving.taken.popleft().time), arriving.dropped)

    def record(self, output, driving, *, show: Callable = quietly, driving_face: int = 0, driving_crop: str = "auto",
               landmarks=None, fps: Fraction = scenes.FPS) -> Driver | Recorded:  # fmt: skip
        """Writes to `output`, a .safetensors, what LivePortrait needs of a driver: given as `driving`, it stands for
        the video, which then need not be there. Returns what was found in it."""
        arguments.check(output=output, show=show, driving_face=driving_face, driving_crop=driving_crop, landmarks=landmarks)
        apart(output, driving, landmarks)
        keep = self.engine.recorder(Path(output))
        driver = scenes.watched(driving, self.engine.framing, driving_face, driving_crop, landmarks, fps, show)
        keep(driver)
        return driver

    def sorted(self, *, paste_back: bool, compare: bool, **options) -> tuple[dict, dict]:
        """What of the options is for finding faces, and what for the engine; all of them checked."""
        finding = {name: value for name, value in options.items() if name in scenes.OPTIONS}
        making = {name: value for name, value in options.items() if name not in scenes.OPTIONS}
        engines.check(self.engine, making)
        arguments.check(paste_back=paste_back, compare=compare, **making)
        return finding, making

    def writer(self, output, clip, finish: Callable[[Path], None] = leave) -> VideoWriter:
        """A writer of a video with the frame rate and sound of `clip`, marked as generated."""
        if isinstance(clip, Recorded):
            return VideoWriter(output, clip.info.fps, None, self.provenance, finish)
        sound = None if isinstance(clip, video.Clip) else clip
        return VideoWriter(output, video.probe(clip).fps, sound, self.provenance, finish)

    def play(self, scene: Scene, **options) -> Iterator[Any]:
        """The scene's finished frames, as a Take each, among the engine's Steps; `options` are the engine's."""
        taken = deque()  # driving frames whose results are still to come: as many as are made at once
        driver = (taken.append(frame) or frame for frame in scene.driver.frames())
        for made in self.engine.play(scene.source, driver, scene.driver.frames, **options):
            yield made if isinstance(made, Step) else scenes.taken(made, taken.popleft())


def provenance(fingerprint: str) -> dict[str, str]:
    """Tags for every file a model writes: that it is generated, by which program and weights."""
    program = f"svdp_jax {svdp_jax.__version__}"
    return {
        "comment": f"AI-generated by {program}, checkpoint {fingerprint}; not a recording of a real event",
        "software": program,
        "digital_source_type": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    }
