"""A profiler's trace of some steps of a run, for XProf or Perfetto: `config.profile=START:STOP`."""

import logging
from pathlib import Path

import jax

logger = logging.getLogger(__name__)


class Trace:
    """Records the steps START to STOP, both of them, into the folder `profile` of a run. asked: empty for none."""

    def __init__(self, asked: str, workdir: Path):
        self.first, self.last = map(int, asked.split(":")) if asked else (0, 0)
        self.folder, self.running = workdir / "profile", False

    def before(self, step: int) -> None:
        if self.last and self.first <= step <= self.last and not self.running:
            jax.profiler.start_trace(str(self.folder))
            self.running = True

    def after(self, step: int, metrics) -> None:
        if self.running and step >= self.last:
            jax.block_until_ready(metrics)  # the device may still be at it
            self.close()
            logger.info("Steps %d to %d are traced in %s; look with `xprof %s`.", self.first, step, self.folder, self.folder)

    def close(self) -> None:
        """Ends a trace that is running, as at the end of a run."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
