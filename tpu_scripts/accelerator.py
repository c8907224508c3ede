"""All that a few minutes on an accelerator can tell, most valuable first, into one JSON and one page.

python tpu_scripts/accelerator.py --output DIR [--parts parity,train,...] [--minutes 9] [--tiny]

Every part is a process of its own with a time limit, so that one that fails or hangs costs its own
result alone; after each of them `accelerator.json` and `accelerator.md` hold what is known so far.
Parts that are alternatives (the train step at falling sizes) end with the first that fits.

    parity      the device against the CPU: video model, autoencoder, LivePortrait, attention kernels;
                forward and gradient, float32 and bfloat16
    train       seconds, MFU and memory of the full SD3.5-M train step, planned and used
    adapter     the same of configs/gpu_one.py: the base frozen, low-rank parts beside it
    sampler     seconds a frame of the teacher and of its four-step student (configs/fast.py), of the
                autoencoder and LivePortrait; diffusers beside them
    attention   kernels side by side at the video's length, forward and backward
    profile     a trace of two train steps, and what takes longest in them
    toy         configs/toy_gpu.py for the time that is left, exported; some is kept for it

--tiny takes toy sizes: a rehearsal of every part on any machine.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed
# Processes that begin with all modules imported, which takes seconds, and nothing begun on the device.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["accelerator_parts"])
SPARE = 5.0  # seconds kept back to write the page
KEPT = 200.0  # seconds that the other parts leave to the toy: what it exports can be shipped


# In a rehearsal it is compiling that takes long, not computing; and a TPU's profiler crashes where there is no TPU.
FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
# The older emitters compile in two fifths of the time. Who does not know a flag ends at it, and the next may drop this one.
FLAGS += ["--xla_cpu_use_fusion_emitters=false"] if version("jaxlib").startswith("0.10.") else []
REHEARSAL = {"XLA_FLAGS": " ".join(FLAGS), "JAX_PLATFORMS": "cpu"}
CACHE = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}

PATIENCE = 5  # with a rehearsal, on a machine that may do much else


class Part(NamedTuple):
    """A process: its limit in seconds, and the arguments that its measurement takes."""

    name: str
    limit: float
    arguments: tuple[str, ...] = ()


# Alternatives of a part have its name, and stand in the order in which they are tried.
PARTS = (
    Part("parity", 150),
    Part("train", 110, ("16", "4")),
    Part("train", 80, ("8", "2")),
    Part("train", 60, ("4", "1")),
    Part("adapter", 110),
    Part("sampler", 150),
    Part("attention", 70),
    Part("profile", 60),
    Part("toy", 600),
)
WORDS = {
    "parity": "The device against the CPU",
    "train": "Train step of full SD3.5-M",
    "adapter": "Train step of an adapter, configs/gpu_one.py",
    "sampler": "Teacher and student, autoencoder, LivePortrait",
    "attention": "Attention kernels",
    "profile": "What takes longest in a train step",
    "toy": "The toy world, trained",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--parts", default=",".join(WORDS), help="which, in the order above (default: all)")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of them (default 9)")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to rehearse")
    options = parser.parse_args()
    wanted = options.parts.split(",")
    if unknown := set(wanted) - set(WORDS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(WORDS)}")
    options.output.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | (REHEARSAL if options.tiny else {})
    if options.tiny:  # several parts compile the same
        os.environ |= CACHE | {"JAX_COMPILATION_CACHE_DIR": str(options.output.resolve() / "compiled")} | os.environ
    found = {"date": datetime.date.today().isoformat(), "tiny": options.tiny, "parts": {}}
    end = time.monotonic() + 60 * options.minutes - SPARE
    for part in chosen(wanted, found["parts"]):
        left = end - time.monotonic() - KEPT * ("toy" in wanted and part.name != "toy")
        limit = min(part.limit * (PATIENCE if options.tiny else 1), left)
        result = measured(part, limit, options) if left > 0 else {"failed": "no time was left"}
        found["parts"][part.name] = result
        found |= {name: result.pop(name) for name in ("device", "versions") if name in result}
        write(options.output, found)
        print(f"{part.name}: {result.get('failed', 'done')}", flush=True)
    failed = [name for name, result in found["parts"].items() if "failed" in result]
    print(f"See {options.output / 'accelerator.md'}.")
    sys.exit(1 if failed else 0)


def chosen(wanted: list[str], results: dict) -> Iterator[Part]:
    """The parts in order, without those of which another form has had a result."""
    for part in PARTS:
        if part.name in wanted and "failed" in results.get(part.name, {"failed": ""}):
            yield part


def measured(part: Part, limit: float, options) -> dict:
    """What the process of a part tells, or how it failed."""
    result, log = (options.output.resolve() / f"{part.name}.{kind}" for kind in ("json", "log"))
    result.unlink(missing_ok=True)
    arguments = [part.name, str(result), *part.arguments, f"--limit={limit:.0f}", *["--tiny"] * options.tiny]
    begun, why = time.monotonic(), "no result"
    process = PROCESSES.Process(target=run_part, args=(arguments, log))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        why = f"stopped after {limit:.0f} s"
    elif process.exitcode:
        why = f"ended with {process.exitcode}: {last_line(log)}"
    # What was measured before the end counts: the file is written after every line.
    told = json.loads(result.read_text()) if result.exists() else {}
    complete = told.pop("complete", False)
    return told | {"seconds": round(time.monotonic() - begun, 1)} | ({} if complete else {"failed": why})


def run_part(arguments: list[str], log: Path) -> None:
    """A part's measurements, in this process, which has come about for them; what is printed goes into the log."""
    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    import accelerator_parts

    accelerator_parts.main(arguments)


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no word"


def write(folder: Path, found: dict) -> None:
    """Both files, whole; the page has a table for every part."""
    for name, text in (("accelerator.json", json.dumps(found, indent=2)), ("accelerator.md", page(found))):
        partial = folder / f".{name}"
        partial.write_text(text + "\n")
        partial.replace(folder / name)


def page(found: dict) -> str:
    device = found.get("device", "an unknown device")
    lines = [
        f"# On {device}, {found['date']}",
        "",
        f"`python tpu_scripts/accelerator.py{' --tiny' * found['tiny']} --output DIR`",
    ]
    lines += [", ".join(f"{name} {version}" for name, version in found.get("versions", {}).items())]
    for name, result in found["parts"].items():
        lines += ["", f"## {WORDS[name]}", ""]
        lines += [f"Not whole: {result['failed']}.", ""] if "failed" in result else []
        lines += table(result.get("rows", []))
    return "\n".join(lines)


def table(rows: list[dict]) -> list[str]:
    """Markdown of rows that may have different columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return []
    line = lambda cells: f"| {' | '.join(cells)} |"
    return [line(columns), line(["---"] * len(columns))] + [line([said(row.get(c)) for c in columns]) for row in rows]


def said(value) -> str:
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
