"""What happens behind the page: looking at what was given, and animating it."""

import contextlib
import inspect
import itertools
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from svdp_jax.animator import Animator
from svdp_jax.engines.engine import Step
from svdp_jax.errors import UserError
from svdp_jax.faces import face as faces, scene as scenes
from svdp_jax.media import video
from svdp_jax.media.images import enlarged
from svdp_jax.page import knobs, live
from svdp_jax.page.shown import Progress, alert, framed, picture, sentence
from svdp_jax.page.visits import USUAL, Given, Visit, Visits, settled
from svdp_jax.toy import example

PACE = 0.1  # seconds between two updates of the page
PREVIEWED = 4  # driving frames that are shown before computing
BROKEN = "the server has failed; whoever runs it finds the reason in its output."
NOTHING = ("", "", None, None)  # in place of a newest frame, of how far it is, of a result and its comparison


class Stopped(Exception):
    """A visitor has pressed Cancel, has given another file, or has gone."""


class Studio:
    """Visitors are told apart by Gradio's session hash. `Given` comes as the values of the page's form, in its order."""

    def __init__(self, animator: Animator, folder: Path, longest: float, examples: list[example.Example]):
        """folder: where Gradio keeps uploads. longest: seconds of driving video that are taken."""
        self.animator, self.longest = animator, longest
        names = [*Given._fields, "paste_back", *(knob.name for knob in knobs.of(animator.engine.flags)), "seed"]
        self.animate = named(self._animate, names)
        self.examples = [Given(**files._asdict()) for files in examples]
        self.visits = Visits(folder)
        # The preview's work is not done again by the animation that follows it.
        self.prepared = lru_cache(maxsize=4)(self.prepare)

    # What a visitor does changes the state of their session; it gives the form, and what is shown of results.

    def change(self, request: gr.Request, event: gr.EventData, *form) -> tuple:
        """Of the form only what the visitor has changed is believed, the part whose event this is: the rest may still
        show what went with an earlier file, as the answer that takes it away is on its way. A visit that is new, or
        forgotten since, is told all of it."""
        visit, now = self.visits.of(request.session_hash), Given(*form)
        if visit.given is not USUAL:
            part = event.target.elem_id
            now = visit.given._replace(**{part: getattr(now, part)})
        return settle(visit, settled(visit.given, now), form)

    def choose(self, number: int, request: gr.Request) -> tuple:
        """One of the examples, as a whole."""
        return settle(self.visits.of(request.session_hash), self.examples[number])

    def stop(self, request: gr.Request) -> None:
        self.visits.of(request.session_hash).stop()

    def close(self, request: gr.Request) -> None:
        self.visits.close(request.session_hash)

    # What is made of it

    def prepare(self, given: Given) -> scenes.Scene:
        if not self.enough(given):
            raise UserError("give a picture and a driving video, or choose an example.")
        for file in given.paths:
            if not os.path.exists(file):
                raise UserError(f"{file} is no longer on the server, as this page was away for long; give it again.")
        options: dict[str, Any] = given._asdict()
        if not given.driving:  # the picture drives itself: nothing moves but what is told to
            itself = scenes.source_picture(given.source)[None]
            options |= {"driving": itself, "driving_face": given.face, "driving_crop": given.source_crop, "landmarks": None}
        elif (seconds := float(video.probe(given.driving).duration)) > self.longest:
            raise UserError(f"the video has {seconds:.0f} seconds, but {self.longest:g} are allowed; cut it first.")
        return scenes.prepare(framing=self.animator.engine.framing, **options)

    def enough(self, given: Given) -> bool:
        return all(given.files) or bool(given.source and self.animator.engine.still)

    def look(self, request: gr.Request):
        """What will be animated, as HTML: the face found, crops, and what is seen of the driver; or what is wrong."""
        visit = self.visits.of(request.session_hash)
        given, shown = visit.given, ""
        if self.enough(given):
            try:
                with told():
                    shown = preview(self.prepared(given))
            except gr.Error as error:
                shown = alert(error.message)
        return shown if visit.given is given else gr.skip()  # another look is on its way

    def _animate(self, *values) -> Iterator[tuple]:
        """Yields what the page shows: newest frame, how far it is, and at the end result and comparison.

        values: of the form, of paste_back, of the engine's knobs, the seed; last the request.
        """
        *values, request = values
        given, (paste_back, *turned, seed) = Given(*values[: len(USUAL)]), values[len(USUAL) :]
        visit = self.visits.of(request.session_hash)
        visit.use(given)
        stop = visit.running = threading.Event()
        engine = self.animator.engine
        paths = visit.new_paths()
        try:
            if visit.given.files not in (USUAL.files, given.files):  # another file was given while this was waiting
                raise Stopped
            yield "", "Looking at picture and video ...", None, None
            with told():
                scene, last = self.prepared(given), ""
                making = engine.chosen(**knobs.values(engine.flags, turned)) | {"seed": seed}
                for last, text in self.film(scene, paths, stop, paste_back, making):
                    yield last, text, None, None
            yield last, "Finished.", *paths
        except Stopped:
            yield "", "Stopped.", None, None
        except gr.Error as error:
            yield "", alert(error.message), None, None
            raise
        finally:
            visit.running = None

    def live(self, image: np.ndarray | None, source: str | None, request: gr.Request) -> tuple[str, str]:
        """The newest frame made of a visitor's camera, and how fast and how late they come; `image` is its newest."""
        if image is None:
            return gr.skip(), gr.skip()
        visit = self.visits.of(request.session_hash)
        try:
            with told():
                # A picture of the examples is a portrait already.
                visit.show = show = live.started(visit.show, self.animator, source, source_crop=visit.given.source_crop)
                show.give(image)
                words, newest = show.told(), show.newest
        except gr.Error as error:
            return "", alert(error.message)
        shown = picture(enlarged(newest.picture), "The newest frame of the result") if newest else ""
        return f"<div class=made>{shown}</div>", words

    def film(self, scene, paths, stop, paste_back, making) -> Iterator[tuple[str, str]]:
        """Writes result and comparison; yields the newest frame and how far it is, no faster than PACE."""
        progress = Progress(scene.driver.info.frames, *self.animator.engine.pace(**making))
        image, shown_at = "", 0.0
        with contextlib.ExitStack() as stack:
            result, comparison = (stack.enter_context(self.animator.writer(path, scene.driver.driving.path)) for path in paths)
            for event in self.animator.play(scene, watch=True, **making):
                if stop.is_set():
                    raise Stopped
                if isinstance(event, Step):
                    progress.step(event)
                else:
                    frame = scene.shown(event, paste_back=paste_back)
                    result.write(frame, event.time)
                    comparison.write(scene.shown(event, True, paste_back), event.time)
                    progress.done += 1
                    image = f"<div class=made>{picture(frame, f'Frame {progress.done} of the result')}</div>"
                if time.monotonic() - shown_at > PACE:
                    yield image, str(progress)
                    shown_at = time.monotonic()
        yield image, str(progress)


def named(function: Callable[..., Iterator[tuple]], names: list[str]) -> Callable[..., Iterator[tuple]]:
    """The function with these parameters, by which Gradio names those of its API, and the request."""

    def called(*values):
        yield from function(*values)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in (*names, "request")]
    result: Any = called
    result.__signature__, result.__annotations__ = inspect.Signature(parameters), {"request": gr.Request}
    return result


def settle(visit: Visit, given: Given, form: tuple = (object(),) * len(USUAL)) -> tuple:
    """The visit's new state; with other files, what was made of the old ones is gone.

    What the form shows already is not sent: it may have changed again in the meantime.
    """
    replaced = given.files != visit.given.files
    visit.given = given
    visit.use(given)
    if replaced:
        visit.stop()
    changed = [gr.skip() if new == old else new for new, old in zip(given, form, strict=True)]
    return *changed, *(NOTHING if replaced else [gr.skip()] * len(NOTHING))


@contextlib.contextmanager
def told():
    """What went wrong becomes a message on the page: a UserError its sentence, all else that there was something."""
    try:
        yield
    except (gr.Error, Stopped, GeneratorExit):
        raise
    except UserError as error:
        raise gr.Error(sentence(error), print_exception=False) from None
    except Exception:
        traceback.print_exc()
        raise gr.Error(BROKEN, print_exception=False) from None


def preview(scene: scenes.Scene) -> str:
    apart = max(1, scene.driver.info.frames // PREVIEWED)
    frames = itertools.islice(scene.driver.frames(), 0, PREVIEWED * apart, apart)
    views = [framed(scene.picture, scene.framing.corners(scene.place)), scene.source.crop]
    names = ["The picture, its crop framed", "The crop of the picture"]
    for number, frame in enumerate(frames):
        seen = scene.views(frame)
        views += seen
        names += [f"Frame {number * apart + 1} of the driver", "What is seen of it: eyes, nose and mouth"][: len(seen)]
    shown = "".join(map(picture, views, names))
    bridged = "".join(f" No face in frames {a} to {b}: bridged." for a, b in faces.missing(scene.driver.track))
    about = f"{scene.driver.info.frames} frames, {float(scene.driver.info.fps):.5g} per second.{bridged}"
    return f"What will be used: picture, its crop, driver and what is seen of it.<div class=pictures>{shown}</div>{about}"
