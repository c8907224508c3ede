"""python tests/reference/again.py [FILMS]

How long an unchanged preparation takes to say that it is: FILMS (1000) films of four frames, each another
person, every stage, drivers made without a network. The whole command as it is when installed, its modules
compiled once and for all, COMMANDS times; and its work alone, without starting Python and libraries.
Before all else (`chrt -r 1`) on two cores of an AMD EPYC that other work shared, 2026-11-28: 94 s at first, 0.9 s again,
1.9 s the command.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from test_prepare_again import GATES, film, maker

from svdp_jax import prepare
from svdp_jax.preparation import work

COMMANDS = 9


def processor() -> float:
    """Seconds of a processor that commands have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    work.MAKERS["toy"] = lambda _: maker(lambda _: 1)
    with tempfile.TemporaryDirectory() as folder:
        films, out = Path(folder) / "films", Path(folder) / "out"
        for number in range(count):
            film(films / f"{number:04}/1.mp4", number)
        words = [str(films), str(out), "--size", "32", "--codec", "pixels:4", "--pairs", "toy", "--landmarks", f"files:{films}"]
        words += [word for gate in GATES for word in ("--limit", gate)]
        for what in ("first", "again", "again"):
            start = time.perf_counter()
            prepare.main([*words, "--", "--runner=none"])
            print(f"{what}: {time.perf_counter() - start:.2f} s", flush=True)
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        env |= {"PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        times = []
        for _ in range(1 + COMMANDS):
            start, before = time.perf_counter(), processor()
            subprocess.run([sys.executable, "-m", "svdp_jax.prepare", *words], check=True, env=env, stdout=subprocess.DEVNULL)
            times.append((time.perf_counter() - start, processor() - before))
        wall, busy = zip(*times[1:])
        print(f"the command: {statistics.median(wall):.2f} s, {min(wall):.2f} to {max(wall):.2f}; of a processor "
              f"{statistics.median(busy):.2f} s; load {os.getloadavg()[0]:.1f}")  # fmt: skip
