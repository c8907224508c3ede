"""What a run tells: metrics and events as JSON lines, TensorBoard, and a few words for people.

metrics.jsonl   one line per `log_every` steps, means over them
events.jsonl    one line for all that is out of the ordinary, with the time and the step
"""

import datetime
import json
import logging
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tensorboardX import SummaryWriter

from svdp_jax.files import write_whole

logger = logging.getLogger(__name__)


class Work(NamedTuple):
    """What a step is worth: video tokens, TFLOP of a forward and a backward pass, and the TFLOP/s of all devices
    at their peak; 0 where that is not known."""

    tokens: int
    tflop: float
    peak: float


class Journal:
    """The records of one run from step `step` on; lines of steps that are done again are dropped.

    One process writes; on the others there is nothing to be seen.
    """

    def __init__(self, folder: Path, step: int, total: int, work: Work | None = None):
        first = jax.process_index() == 0
        if first:
            drop_later(folder / "metrics.jsonl", step)
        paths = (folder / name if first else os.devnull for name in ("metrics.jsonl", "events.jsonl"))
        self.lines, self.events = (open(path, "a", buffering=1) for path in paths)
        self.board = SummaryWriter(str(folder / "tensorboard"), write_to_disk=first, purge_step=step + 1)
        self.step, self.total, self.written = step, total, 0
        self.pending, self.start = [], time.monotonic()
        self.begin(work)

    def begin(self, work: Work | None) -> None:
        """From here on every step is worth this."""
        self.work, self.begun, self.done, self.fastest = work, self.start, 0, float("inf")

    def tell(self, event: str, facts: dict, words: str = "") -> None:
        """Writes down an event, and says it where there are words for it."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.events.write(json.dumps({"time": now, "event": event, "step": self.step} | facts) + "\n")
        if words:
            logger.warning("%s", words)

    def add(self, step: int, metrics: dict) -> None:
        self.step = step
        self.pending.append(metrics)

    def write(self) -> dict:
        """A line with the means since the last one; skipped steps, which have none, are counted."""
        pending = jax.device_get(self.pending)
        means = {name: finite_mean([m[name] for m in pending]) for name in pending[0]}
        means["skipped"] = int(sum(m["skipped"] for m in pending))
        seconds = (time.monotonic() - self.start) / len(pending)
        means |= {"seconds_per_step": seconds} | self.worth(seconds, len(pending))
        self.lines.write(json.dumps({"step": self.step} | means) + "\n")
        for name, value in means.items():
            if value is not None:
                self.board.add_scalar(name, value, self.step)
        self.pending, self.start = [], time.monotonic()
        self.written += 1
        if self.written == 2:  # the first line's time goes to compiling
            self.say_pace(seconds)
        return means

    def worth(self, seconds: float, steps: int) -> dict[str, float]:
        """Tokens a second, MFU where the peak is known, and goodput: the share of all time since the start that
        the steps would have taken at the pace of the fastest line."""
        if self.work is None:
            return {}
        self.done, self.fastest = self.done + steps, min(self.fastest, seconds)
        found = {"tokens_per_second": self.work.tokens / seconds}
        found |= {"mfu": self.work.tflop / seconds / self.work.peak} if self.work.peak else {}
        return found | {"goodput": self.done * self.fastest / (time.monotonic() - self.begun)}

    def measure(self, values: dict[str, float]) -> None:
        """A line of metrics that are taken only now and then."""
        self.lines.write(json.dumps({"step": self.step} | values) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, self.step)

    def say_pace(self, seconds: float) -> None:
        """Says what a step costs and when the run will end."""
        memory = jax.local_devices()[0].memory_stats() or {}
        steps = self.total - self.step
        left = datetime.timedelta(seconds=round(seconds * steps))
        end = (datetime.datetime.now() + left).strftime("%a %H:%M")
        peak = memory.get("peak_bytes_in_use", 0)
        self.tell("pace", {"seconds_per_step": seconds, "seconds_left": left.total_seconds(), "peak_bytes": peak})
        held = f" and {peak / 2**30:.1f} GiB a device" if peak else ""
        logger.info("%.3g s a step%s; the %d left take %s, until %s", seconds, held, steps, left, end)

    def close(self) -> None:
        for file in (self.lines, self.events, self.board):
            file.close()


def finite_mean(values: list) -> float | None:
    finite = [float(value) for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else None


def last_step(folder: Path) -> int:
    """The last step that a folder's metrics tell of; 0 where there are none."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return max((step for line in lines if (step := step_of(line)) is not None), default=0)


def step_of(line: str) -> int | None:
    """The step of a JSON line; None where a kill left it half-written."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def drop_later(path: Path, step: int) -> None:
    """Takes the lines after `step` out of a file of JSON lines, and what was left half-written; says so where that told
    of steps that are not done again."""
    if not path.exists():
        return
    lines = path.read_text(errors="replace").splitlines()
    steps = [step_of(line) for line in lines]
    write_whole(path, "".join(f"{line}\n" for at, line in zip(steps, lines) if at is not None and at <= step))
    told = max((at for at in steps if at is not None), default=0)
    if None in steps and told < step:
        logger.warning("%s is cut off: what it told of steps %d to %d is lost.", path, told + 1, step)
