"""python tests/reference/again.py [FILMS]

How long an unchanged preparation takes to say that it is: FILMS (1000) films of four frames, each another
person, every stage, drivers made without a network. The whole command, and without starting Python and libraries.
Two cores of an AMD EPYC, 2026-11-28: 49 s at first, 1.1 s again, 2.4 s the command.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
from test_prepare_again import GATES, film, maker

from svdp_jax import prepare
from svdp_jax.preparation import work

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
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "svdp_jax.prepare", *words], check=True)
        print(f"the command: {time.perf_counter() - start:.2f} s")
