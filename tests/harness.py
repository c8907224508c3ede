"""Training runs as processes that are watched and disturbed; for tests/test_faults.py and the soak."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from svdp_jax.weights import checkpoint

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "tests" / "little_run.py"
STEPS = 16  # of that config
MARK = "SVDP_JAX_RUN"  # in the environment of a process and of all that it starts

# Nothing but tests needs PyTorch. TensorBoard's writer imports it where it is there, which takes a second.
WITHOUT_TORCH = tempfile.TemporaryDirectory()
Path(WITHOUT_TORCH.name, "torch.py").write_text("raise ImportError")


class Run:
    """A process that trains in a work folder; what it says is in `log`."""

    def __init__(
        self, work: Path, *arguments: str, config: Path = CONFIG, cwd: Path = ROOT, faults: dict | None = None, **env: str
    ):
        self.work, self.log = work, work.with_name(f"{work.name}.log")
        self.before = len(self.log.read_text()) if self.log.exists() else 0
        command = [sys.executable, "-m", "svdp_jax.train", "--config", config, "--workdir", work, *arguments]
        paths = os.pathsep.join((str(ROOT), WITHOUT_TORCH.name))
        env = os.environ | {"PYTHONPATH": paths, "FAULTS": json.dumps(faults or {}), MARK: str(work)} | env
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=log)
        atexit.register(self.process.kill)  # where a test fails before its end

    def said(self) -> str:
        return self.log.read_text()[self.before :]

    def until(self, condition: Callable[[], bool], seconds: float = 300) -> "Run":
        """Waits for the condition, or the end of the process."""
        deadline = time.monotonic() + seconds
        while not condition() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.005)
        return self

    def until_said(self, words: str) -> "Run":
        return self.until(lambda: words in self.said())

    def until_step(self, step: int) -> "Run":
        return self.until(lambda: len(metrics(self.work)) >= step)

    def signal(self, number: signal.Signals) -> "Run":
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self

    def end(self, seconds: float = 300) -> int:
        """Waits for the process; its return code."""
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()


def pair(
    work: Path, each: tuple[dict, dict] = ({}, {}), *, arguments=(), config: Path = CONFIG, cwd: Path = ROOT, **env: str
) -> list[Run]:
    """Two processes that train together, each with its faults; what they say is in one log."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        env |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{probe.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    common = {"config": config, "cwd": cwd} | env
    return [Run(work, *arguments, faults=faults, **common, JAX_PROCESS_ID=str(host)) for host, faults in enumerate(each)]


def marked(value: str) -> list[str]:
    """The command lines of all processes alive that were started with this MARK, whoever their parent is now."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={value}\0".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            pass  # it has ended meanwhile, or is another user's
    return found


def left(value: str, seconds: float = 60) -> list[str]:
    """What of them is still alive after so many seconds."""
    deadline = time.monotonic() + seconds
    while marked(value) and time.monotonic() < deadline:
        time.sleep(0.1)
    return marked(value)


def metrics(work: Path) -> list[dict]:
    path = work / "metrics.jsonl"
    whole = [line for line in path.read_text().splitlines(True) if line.endswith("\n")] if path.exists() else []
    return [json.loads(line) for line in whole]


def events(work: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (work / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def state(work: Path, step: int = STEPS) -> dict[str, np.ndarray]:
    """All arrays of a checkpoint."""
    folder = work / "checkpoints" / str(step)
    return {
        f"{part}/{name}": array for part in ("params", "rest") for name, array in checkpoint.host_arrays(folder / part).items()
    }


def differing(a: dict, b: dict) -> list[str]:
    """Names of arrays that are not the same bits."""
    assert set(a) == set(b)
    return [name for name in a if a[name].tobytes() != b[name].tobytes()]
