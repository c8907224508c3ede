"""Runs one stage over its elements, each of which leaves files of its own: with Apache Beam, or in a plain loop.

Beam's options choose where: its local runner by default, and any that it knows. The workers must see
the same folders. Progress is counted from the files that are there, so it is shown for every runner.
"""

import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from tqdm import tqdm

from svdp_jax.errors import UserError, at_once

POLL = 1.0  # seconds
NO_BEAM = "none"


class Stage(NamedTuple):
    """`work` and the jobs must be importable and picklable, as they travel to other processes."""

    title: str
    work: Callable  # (job, advance): advance(frames) may be called as it goes on
    done: Callable[[Any], bool]
    weight: Callable[[Any], int]  # frames of a job


def run(stage: Stage, jobs: list, beam: list[str], workers: int = 1) -> None:
    """Does the jobs that are not done. `beam`: Beam's own options, or --runner=none for a plain loop; without any, so many
    processes here do them."""
    todo = [job for job in jobs if not stage.done(job)]
    total = sum(map(stage.weight, todo))
    if todo:
        with tqdm(total=total, desc=stage.title, unit="frame", smoothing=0) as bar:
            runner = _loop if beam == [f"--runner={NO_BEAM}"] else _beam
            runner(stage, todo, bar, beam, workers)


def _loop(stage: Stage, todo: list, bar: tqdm, *_) -> None:
    reached = 0
    for job in todo:
        stage.work(job, bar.update)
        reached += stage.weight(job)
        bar.update(reached - bar.n)


def _beam(stage: Stage, todo: list, bar: tqdm, options: list[str], workers: int) -> None:
    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    unheard = logging.NullHandler()  # Beam looks which services there are, and warns of those that are not
    logging.getLogger().addHandler(unheard)
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
        from apache_beam.runners.portability.fn_api_runner import FnApiRunner
        from apache_beam.transforms.environments import SubprocessSDKEnvironment
    except ImportError:
        raise UserError(
            "Apache Beam is not installed: `pip install 'svdp_jax[data]'`, or add `-- --runner=none` for a plain loop."
        ) from None
    finally:
        logging.getLogger().removeHandler(unheard)
    runner = None  # that of the options
    if not options and workers > 1:
        runner = FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(_worker()))
        options = [f"--direct_num_workers={workers}"]
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(stage, todo, bar, finished))
    watcher.start()
    try:
        with at_once(), beam.Pipeline(runner, PipelineOptions(options)) as pipeline:
            _ = pipeline | beam.Create(todo) | beam.Reshuffle() | beam.Map(stage.work, _ignore)
    finally:
        finished.set()
        watcher.join()


def _worker() -> str:
    """A shell's line that starts a worker of this process. Signals that a terminal sends to both are this one's to hear."""
    return f"trap '' INT TERM; exec {shlex.quote(sys.executable)} -m svdp_jax.preparation.worker {os.getpid()}"


def _watch(stage: Stage, todo: list, bar: tqdm, finished: threading.Event) -> None:
    waiting = list(todo)
    while True:
        last = finished.wait(POLL)
        waiting = [job for job in waiting if not stage.done(job)]
        bar.update((bar.total or 0) - sum(map(stage.weight, waiting)) - bar.n)
        if last:
            return


def _ignore(frames: int) -> None:
    """Where nobody counts frames as they go."""
