"""Two runs that contend for one work folder, and what else may befall it, at random moments.

    python tests/reference/contend.py WORK            # 200 faults
    python tests/reference/contend.py WORK 10 [SEED]     # told again, it goes on where it was

Each time two processes start the same training, something is done to them or to the folder, and the
command is given again until the run is at its end, with --restart only where it is refused for want of
a sound checkpoint. All of `svdp_jax.train` is at work but the network: a step adds up its data, so that
a step done twice, left out, or mixed with another's shows in every number after it. Processes are forked
from one that has imported everything, and so start within a second.

Prints a table of what was done, how often, what was said, and what was lost; ends with 1 where anything was.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import harness
import jax
import little_run
import numpy as np

from svdp_jax import files, train
from svdp_jax.errors import UserError, say_errors
from svdp_jax.training import records, stop
from svdp_jax.weights import checkpoint

SLOW = 0.004  # seconds that an example takes, of which a step has eight
LONGEST = 2.5  # seconds within which something happens
STARTS = 6  # that a run may need to come to its end


def make_update(*_) -> Callable:
    """A step that adds up what it is given, in place of that of the network."""

    @jax.jit
    def update(state, batch):
        mark = batch["target"].astype(np.float32).mean()
        step = jax.tree.map(lambda w: (0.5 * w + mark).astype(w.dtype), (state.weights, state.average))
        metrics = {"loss": mark, "skipped": np.bool_(False)}
        return state._replace(step=state.step + 1, weights=step[0], average=step[1]), metrics

    return lambda state, frozen, batch: update(state, batch)


class Process:
    """A training forked from this process; what it says is in a file of its own."""

    def __init__(self, work: Path, log: Path, *arguments: str):
        self.log, self.code = log, None
        self.pid = os.fork()
        if self.pid == 0:
            self.train(["train", "--config", str(harness.CONFIG), "--workdir", str(work), *arguments])

    def train(self, arguments: list[str]) -> None:
        file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        train.speak()
        stop.listen()
        train.make_update, train.make_watch = make_update, lambda *_: None
        little_run.FAULTS["slow"] = SLOW
        code: int | str | None = 1
        try:
            with stop.ends_the_process():
                say_errors("train", lambda: train.main(arguments))
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 0)

    def signal(self, number: int) -> None:
        if self.alive():
            os.kill(self.pid, number)

    def alive(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is None

    def end(self, seconds: float = 120) -> int | None:
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.01)
        return self.code

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


# --- what is done: to the processes, and to the folder when they have ended


def kill(_: Path, processes: list[Process], draw: random.Random) -> None:
    draw.choice(processes).signal(signal.SIGKILL)


def kill_both(_: Path, processes: list[Process], draw: random.Random) -> None:
    for process in processes:
        process.signal(signal.SIGKILL)


def kill_in_save(work: Path, processes: list[Process], draw: random.Random) -> None:
    deadline = time.monotonic() + 5
    while not any(work.glob("checkpoints/.*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    kill_both(work, processes, draw)


def tell(_: Path, processes: list[Process], draw: random.Random) -> None:
    draw.choice(processes).signal(draw.choice((signal.SIGTERM, signal.SIGINT)))


def halt(_: Path, processes: list[Process], draw: random.Random) -> None:
    """Stopped for a while, as a machine that sleeps, and let go on."""
    process = draw.choice(processes)
    process.signal(signal.SIGSTOP)
    time.sleep(draw.uniform(0.1, 1))
    process.signal(signal.SIGCONT)


def unlock(work: Path, processes: list[Process], draw: random.Random) -> None:
    """The lock is taken away by hand, and a third run started."""
    (work / ".lock").unlink(missing_ok=True)
    if draw.random() < 0.5:
        (work / "owner.json").unlink(missing_ok=True)
    processes.append(Process(work, work.with_name("third.log")))


def nothing(*_) -> None:
    """Only two at once."""


def files_of(checkpoint_folder: Path) -> list[Path]:
    return [path for path in sorted(checkpoint_folder.rglob("*")) if path.is_file() and path.stat().st_size]


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def damage(work: Path, draw: random.Random) -> None:
    """One file of the newest checkpoint: a bit, the half, or all of it."""
    for _, folder in list(checkpoint.run_checkpoints(work))[:1]:
        path = draw.choice(files_of(folder))
        how = draw.choice((flip, lambda p, _: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), lambda p, _: p.unlink()))
        how(path, draw)


def damage_all(work: Path, draw: random.Random) -> None:
    for _, folder in checkpoint.run_checkpoints(work):
        flip(draw.choice(files_of(folder)), draw)


def lose(work: Path, draw: random.Random) -> None:
    shutil.rmtree(work / "checkpoints", ignore_errors=True)


def half_a_line(work: Path, draw: random.Random) -> None:
    for path in (work / "metrics.jsonl", work / "config.json", work / "owner.json"):
        if path.exists() and draw.random() < 0.6:
            path.write_bytes(path.read_bytes()[: -draw.randrange(1, 20)])


FAULTS = {
    "only two at once": (nothing, None),
    "one is killed": (kill, None),
    "both are killed": (kill_both, None),
    "both are killed within a save": (kill_in_save, None),
    "one is told to stop": (tell, None),
    "one is halted for a while": (halt, None),
    "the lock is removed, and a third started": (unlock, None),
    "one file of the newest checkpoint damaged": (kill_both, damage),
    "every checkpoint damaged": (kill_both, damage_all),
    "all checkpoints removed": (kill_both, lose),
    "config.json, owner.json, metrics.jsonl cut off": (kill_both, half_a_line),
}
SAID = (
    "at work in", "without a word", "is not used", "is whole", "holds no checkpoint", "holds another run", "begins at step 0",
    "nothing more is saved", "is cut off",
)  # fmt: skip
LOST = "begin anew with --restart, which keeps what is there"  # of the refusals, that for want of a sound checkpoint


def states(work: Path) -> dict[str, str]:
    """Hashes of all arrays of every sound checkpoint, by step."""
    found = {}
    for step, folder in checkpoint.run_checkpoints(work):
        with contextlib.suppress(UserError):  # damaged, and so no one's
            files.verify(folder)
            arrays = sorted(harness.state(work, step).items())
            found[str(step)] = hashlib.sha256(b"".join(name.encode() + x.tobytes() for name, x in arrays)).hexdigest()
    return found


def within_a_child(look: Callable[[], dict]) -> dict:
    """What is found, in a process of its own: this one may start none of JAX's threads before it forks."""
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            os.write(write, json.dumps(look()).encode())
        except BaseException as error:
            os.write(write, json.dumps({"error": f"{type(error).__name__}: {error}"[:1000]}).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as file:
        content = file.read()
    os.wait()
    return json.loads(content)


def once(base: Path, whole: dict[str, str], number: int, seed: int) -> dict:
    """One fault, and the run to its end after it. whole: states of the undisturbed run."""
    draw = random.Random(f"{seed} {number}")
    name = list(FAULTS)[number % len(FAULTS)]
    act, harm = FAULTS[name]
    work, logs = base / "work", []
    for path in base.glob("work*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    def start(*arguments: str) -> Process:
        logs.append(base / f"work.{len(logs)}.log")
        return Process(work, logs[-1], *arguments)

    processes = [start()]
    time.sleep(draw.uniform(0, 0.3))
    processes.append(start(*(["--config.seed=1"] if draw.random() < 0.3 else [])))
    early = draw.random() < 0.3 and harm is None  # or after so many saves, of eight
    saves, deadline = 0 if early else draw.randrange(1, 7), time.monotonic() + 60
    while len(list(checkpoint.run_checkpoints(work))) < saves and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, LONGEST if early else 0.2))
    act(work, processes, draw)
    codes = [process.end() for process in processes]
    lost: list[str] = []
    # A contender of another seed may have been first; then this is its folder.
    config = json.loads((work / "config.json").read_text()) if (work / "config.json").exists() else {"seed": 0}
    if config["seed"]:
        return {"name": name, "codes": codes, "lost": [], "said": said(logs), "starts": len(logs), "other": True}
    if harm:
        harm(work, draw)
    saved = any(True for _ in checkpoint.run_checkpoints(work)) if work.exists() else False
    again: list[str] = []
    for _ in range(STARTS):
        run = start(*again)
        code = run.end()
        words = run.said()
        begins = "step 0 of" in words
        if begins and saved and "--restart" not in again:
            lost.append("a silent step 0")
        if code == 0 and "The model is in" in words:
            break
        again = []
        if code == 2 and "holds another run" in words and harm is half_a_line:
            again = ["--force-resume"]
        elif code == 2 and LOST in words:
            twice = start()
            if twice.end() != 2 or LOST not in twice.said():
                lost.append("refused once, and not again")
            again = ["--restart"]
        elif code:
            lost.append(f"ended with {code}: {words[-300:]}")
            break
    else:
        lost.append(f"not at its end after {STARTS} starts: {words[-300:]}")
    found = within_a_child(lambda: states(work))
    lost += [f"step {step} is another's" for step in found if found[step] != whole.get(step)]
    steps, gone = [line["step"] for line in harness.metrics(work)], cut_off(logs) if harm is half_a_line else set()
    if steps != [step for step in range(1, harness.STEPS + 1) if step not in gone]:
        lost.append(f"metrics of steps {steps}")
    left = [path.name for path in (*work.glob(".*"), *work.glob("owner.json"), *work.glob("checkpoints/.*"))]
    lost += [f"left behind: {left}"] * bool(left)
    lost += [f"a traceback in {log.name}: {log.read_text()[-500:]}" for log in logs if "Traceback" in log.read_text()]
    return {"name": name, "codes": codes, "lost": lost, "said": said(logs), "starts": len(logs), "other": False}


def cut_off(logs: list[Path]) -> set[int]:
    """The steps of which it was said that their lines were taken."""
    spans = [span for log in logs for span in re.findall(r"of steps (\d+) to (\d+) is lost", log.read_text(errors="replace"))]
    return {step for first, last in spans for step in range(int(first), int(last) + 1)}


def said(logs: list[Path]) -> list[str]:
    text = "".join(log.read_text(errors="replace") for log in logs)
    return [words for words in SAID if words in text]


def main(base: Path, count: int, seed: int) -> int:
    base.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(base / "compiled"))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    little_run.config = keeping_all(little_run.config)
    records.SOURCES["toy"] = little_run.noise
    shutil.rmtree(base / "whole", ignore_errors=True)
    run = Process(base / "whole", base / "whole.log")
    assert run.end() == 0, run.said()
    whole, noted = within_a_child(lambda: states(base / "whole")), base / f"results{seed}.jsonl"
    results = [json.loads(line) for line in noted.read_text().splitlines()][:count] if noted.exists() else []
    with open(noted, "a", buffering=1) as file:
        for number in range(len(results), count):
            results.append(once(base, whole, number, seed))
            file.write(json.dumps(results[-1]) + "\n")
    print("| done to the run | times | starts | said, so often | lost |\n|---|---|---|---|---|")
    for name in FAULTS:
        mine = [result for result in results if result["name"] == name]
        words = Counter(words for result in mine for words in result["said"])
        wrong = [words for result in mine for words in result["lost"]]
        told = "; ".join(f"“{words}” {times}" for words, times in words.items())
        print(f"| {name} | {len(mine)} | {sum(r['starts'] for r in mine)} | {told} | {'; '.join(wrong) or 'nothing'} |")
    return any(result["lost"] for result in results)


def keeping_all(make: Callable) -> Callable:
    """Every checkpoint is compared with the undisturbed run, so none of that is removed."""
    return lambda **changes: make(**{"keep": harness.STEPS} | changes)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    numbers = [int(x) for x in sys.argv[2:]] + [200, 0][len(sys.argv) - 2 :]
    sys.exit(main(Path(sys.argv[1]).absolute(), *numbers))
