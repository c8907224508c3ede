"""The faults of tests/test_faults.py many times over, at random moments.

    python tests/reference/soak.py WORK            # all of it, about 20 minutes on one core
    python tests/reference/soak.py WORK kill       # a part: kill term split mesh hosts files mutate
    python tests/reference/soak.py WORK kill 5     # so many times

Prints a table: what was done, how often, and what was lost. WORK keeps the runs that have
been made, so a part that is interrupted goes on where it was. Ends with 1 where anything was lost.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["JAX_PLATFORMS"] = "cpu"
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile
os.environ["XLA_FLAGS"] = QUICK
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import fuzz  # noqa: E402
import numpy as np  # noqa: E402
from harness import STEPS, Run, differing, left, metrics, pair, state  # noqa: E402
from tqdm import tqdm  # noqa: E402

from svdp_jax import files  # noqa: E402
from svdp_jax.errors import UserError  # noqa: E402
from svdp_jax.weights import checkpoint  # noqa: E402

LONGEST, STEPPING = 6.0, 2.5  # seconds that a whole run takes here, about, and its steps without the start


def whole(work: Path) -> Path:
    """The work folder of an undisturbed run."""
    if not (work / "whole/model").exists():
        shutil.rmtree(work / "whole", ignore_errors=True)
        assert (run := Run(work / "whole")).end(300) == 0, run.said()
    return work / "whole"


def finish(run_work: Path, reference: Path) -> str:
    """Lets a run go on to its end; what is not as in the undisturbed one."""
    run = Run(run_work)
    if run.end(300):
        return f"did not resume: {run.said()[-300:]}"
    wrong = differing(state(reference), state(run_work))
    steps = [line["step"] for line in metrics(run_work)]
    return f"{len(wrong)} arrays differ" if wrong else "" if steps == list(range(1, STEPS + 1)) else f"steps {steps}"


def noted(work: Path, part: str, count: int, once) -> list[dict]:
    """The results of `once(number)`, each written down, so that an interrupted soak goes on."""
    path = work / f"{part}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with open(path, "a", buffering=1) as file:
        for number in tqdm(range(len(done), count), part, count, initial=len(done), file=sys.stderr):
            done.append(once(number))
            file.write(json.dumps(done[-1]) + "\n")
    return done[:count]


def kill(work: Path, count: int):
    """SIGKILL within a save, at any moment, within a save, at any moment after the first step, and so on."""
    reference = whole(work)

    def once(number: int) -> dict:
        run_work, draw = work / "killed", random.Random(number)
        shutil.rmtree(run_work, ignore_errors=True)
        run = Run(run_work)
        if number % 2:
            run.until(saves(run_work, draw.randrange(1, STEPS // 2 + 1)))
        elif number % 4:
            run.until_step(1)
            time.sleep(draw.uniform(0, STEPPING))
        else:
            time.sleep(draw.uniform(0, LONGEST))
        killed = run.signal(signal.SIGKILL).end() == -signal.SIGKILL
        saving = any(run_work.glob("checkpoints/.*"))
        saved = list(checkpoint.run_checkpoints(run_work))
        for _, folder in saved:
            files.verify(folder)  # whatever has its name is whole
        orphans = left(str(run_work))
        step = saved[0][0] if saved else 0
        lost = f"left behind: {orphans}" if orphans else finish(run_work, reference)
        return {"killed": killed, "in_save": saving, "step": step, "lost": lost}

    results = noted(work, "kill", count, once)
    killed, saving, resumed = (sum(map(bool, (r[x] for r in results))) for x in ("killed", "in_save", "step"))
    words = f"SIGKILL at random moments: {killed} before the end, {saving} within a save; {resumed} went on from a saved step"
    return f"{words}; each of them then ran to its end, bit-equal to the undisturbed run", results


def saves(run_work: Path, count: int):
    """A condition: the process has begun so many saves, and is within the last."""
    seen = set()

    def begun() -> bool:
        seen.update(path.name.split(".")[1] for path in run_work.glob("checkpoints/.*"))
        return len(seen) >= count

    return begun


def term(work: Path, count: int):
    """SIGTERM or SIGINT at a random moment, the compilation of the step among them."""
    reference = whole(work)

    def once(number: int) -> dict:
        draw, run_work = random.Random(number), work / "stopped"
        shutil.rmtree(run_work, ignore_errors=True)
        compiling = number % 2 == 0
        run = Run(run_work, **({"JAX_ENABLE_COMPILATION_CACHE": "false"} if compiling else {}))
        if compiling:
            run.until_said("step 0 of")
            time.sleep(draw.uniform(0, 4))
        else:
            run.until(lambda: b"train" in Path(f"/proc/{run.process.pid}/cmdline").read_bytes())
            time.sleep(draw.uniform(0.3, LONGEST))
        began, step = time.monotonic(), len(metrics(run_work))
        code = run.signal(draw.choice([signal.SIGTERM, signal.SIGINT])).end()
        seconds = time.monotonic() - began
        saved = next((s for s, _ in checkpoint.run_checkpoints(run_work)), 0)
        lost = "" if code == 0 and seconds < 10 else f"return code {code} after {seconds:.1f} s"
        lost = lost or ("" if saved >= step else f"step {step} was done and {saved} is saved")
        return {
            "compiling": compiling,
            "step": step,
            "saved": saved,
            "seconds": seconds,
            "lost": lost or finish(run_work, reference),
        }

    results = noted(work, "term", count, once)
    slowest = max(r["seconds"] for r in results)
    return f"SIGTERM or SIGINT at random moments, half before the first step (slowest end {slowest:.1f} s)", results


def split(work: Path, count: int):
    """Ten steps against five and five, on one mesh."""
    reference = whole(work)

    def once(number: int) -> dict:
        run_work = work / "split"
        shutil.rmtree(run_work, ignore_errors=True)
        run = Run(run_work).until_step(5 + number).signal(signal.SIGTERM)
        code = run.end()
        return {"lost": f"return code {code}" if code else finish(run_work, reference)}

    return "stopped after some steps and gone on, on the same mesh: state bit for bit", noted(work, "split", count, once)


def mesh(work: Path, count: int):
    """Eight simulated devices, then four, then one: arrays, and the losses of the steps after."""

    def losses(folder: Path, first: int) -> np.ndarray:
        return np.array([line["loss"] for line in metrics(folder) if line["step"] >= first])

    def go(folder: Path, devices: int, until: int) -> None:
        flag = f"{QUICK} --xla_force_host_platform_device_count={devices}"
        fsdp = 2 if devices > 1 else 1
        mesh = [f"--config.mesh.fsdp={fsdp}", f"--config.mesh.context={2 if devices == 8 else 1}"]
        run = Run(folder, *mesh, XLA_FLAGS=flag)
        run.until_step(until).signal(signal.SIGTERM)
        assert run.end(300) == 0, run.said()

    def once(number: int) -> dict:
        one, many = work / "one", work / "many"
        for folder in (one, many):
            shutil.rmtree(folder, ignore_errors=True)
        go(one, 8, 4)
        shutil.copytree(one, many)
        shutil.copy(one.with_name("one.log"), many.with_name("many.log"))
        step = next(s for s, _ in checkpoint.run_checkpoints(one))
        go(one, 8, step + 4)
        go(many, 4, step + 2)
        go(many, 1, step + 4)
        found = [losses(folder, step + 1)[:4] for folder in (one, many)]
        error = float(np.abs(found[0] / found[1] - 1).max())
        return {"step": step, "error": error, "lost": "" if error < 1e-6 else f"losses differ by {error:.1e}"}

    results = noted(work, "mesh", count, once)
    error = max(r["error"] for r in results)
    return f"8, then 4, then 1 simulated devices: the next losses differ by at most {error:.1e}", results


# What happens to two hosts that compile: a signal to each, or data that the second cannot read; how they end.
HOSTS = {
    "the first is told": ((signal.SIGTERM, None), {}, 0, "as host 0 was told to"),
    "the second is told": ((None, signal.SIGTERM), {}, 0, "as host 1 was told to"),
    "both are told": ((signal.SIGTERM, signal.SIGTERM), {}, 0, "Stopped"),
    "the second fails": ((None, None), {"die": 0}, 2, "as host 1 failed"),
    "neither": ((None, None), {}, 0, "The model is in"),
}


def hosts(work: Path, count: int):
    """Two hosts of which one is told to stop, or fails, before the first step: both end, and say why."""

    def once(number: int) -> dict:
        name = list(HOSTS)[number % len(HOSTS)]
        signals, faults, wanted, words = HOSTS[name]
        run_work, draw = work / "hosts", random.Random(number)
        shutil.rmtree(run_work, ignore_errors=True)
        runs = pair(run_work, ({}, faults), JAX_ENABLE_COMPILATION_CACHE="false")
        if any(signals):
            runs[0].until(lambda: runs[0].said().count("step 0 of") == 2)
            time.sleep(draw.uniform(0, 3))
        began = time.monotonic()
        for run, number in zip(runs, signals):
            if number:
                run.signal(number)
        codes = [run.end() for run in runs]
        seconds = time.monotonic() - began if any(signals) else 0
        fine = codes == [wanted] * 2 and seconds < 10 and words in runs[0].said()
        return {"case": name, "seconds": seconds, "lost": "" if fine else f"{name}: {codes} after {seconds:.1f} s"}

    results = noted(work, "hosts", count, once)
    slowest = max(r["seconds"] for r in results)
    return f"two hosts before their first step: {', '.join(HOSTS)}; both end (slowest {slowest:.1f} s)", results


FAULTS = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "deleted": lambda path: path.unlink(),
}


def flipped(content: bytes) -> bytes:
    place = random.Random(len(content)).randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def damage(work: Path, count: int):
    """Every file of a checkpoint, damaged in three ways."""
    folder, copy, results = whole(work) / f"checkpoints/{STEPS}", work / "damaged", []
    names = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size]
    for name in names:
        for kind, fault in FAULTS.items():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder, copy)
            fault(copy / name)
            try:
                files.verify(copy)
                results.append({"lost": f"{name} {kind} was not noticed"})
            except UserError as error:
                results.append({"lost": "" if str(copy / name) in str(error) else f"{name} {kind}: {error}"})
    return (f"each of the {len(names)} files of a checkpoint truncated, one bit flipped, deleted: noticed and named", results)


def mutate(work: Path, count: int):
    result = fuzz.fuzz(count)
    lost = [{"lost": json.dumps(x)} for x in result["wrong"]]
    words = (
        f"mutated videos and pictures: {result['read']} read, {result['refused']} refused in one sentence, "
        f"slowest {result['slowest']:.2f} s, memory {result['peak'] / 2**20:.0f} MiB"
    )
    return words, lost + [{"lost": ""}] * (result["files"] - len(lost))


PARTS = {
    "kill": (kill, 50), "term": (term, 20), "split": (split, 2), "mesh": (mesh, 1), "hosts": (hosts, 10), "files": (damage, 1), "mutate": (mutate, 1000)
}  # fmt: skip


def main(arguments: list[str]) -> int:
    work = Path(arguments[0]).absolute()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(work / "compiled"))
    chosen = [arguments[1]] if len(arguments) > 1 else list(PARTS)
    rows, lost = [], []
    for name in chosen:
        part, count = PARTS[name]
        words, results = part(work, int(arguments[2]) if len(arguments) > 2 else count)
        wrong = [r["lost"] for r in results if r["lost"]]
        lost += wrong
        rows.append(f"| {words} | {len(results)} | {'; '.join(wrong) or 'nothing'} |")
    print("\n".join(["| fault | times | lost |", "|---|---|---|", *rows]))
    return bool(lost)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1:]))
