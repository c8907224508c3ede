"""Sessions of the page: what each visitor has given, and which files on the server are theirs.

Gradio keeps an upload in a folder of its own, named by a digest of it, so that two visitors may share one.
"""

import itertools
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from svdp_jax.page.live import Show

RESULTS, EXAMPLES = "results", "examples"  # folders beside those of the uploads
KEPT = 3  # results of one visitor; older ones are deleted
FORGOTTEN = 3600  # seconds until what belongs to nobody, or to a page that was closed, is deleted
MANY = 1000  # visitors; callers who never say that they leave are forgotten beyond that


class Given(NamedTuple):
    """What is to be animated: files by path, and what was chosen for each of them."""

    source: str | None = None
    driving: str | None = None
    face: int = 0
    driving_face: int = 0
    source_crop: str = "auto"
    driving_crop: str = "auto"
    landmarks: str | None = None

    @property
    def files(self) -> tuple[str | None, str | None]:
        return self.source, self.driving

    @property
    def paths(self) -> list[str]:
        return [path for path in (*self.files, self.landmarks) if path]


CHOSEN_FOR = {"source": ("face", "source_crop"), "driving": ("driving_face", "driving_crop", "landmarks")}
USUAL = Given()


def settled(before: Given, now: Given) -> Given:
    """`now`, without what was chosen for a file that is no longer the one `before`."""
    replaced = [file for file in CHOSEN_FOR if getattr(before, file) not in (None, getattr(now, file))]
    stale = [name for file in replaced for name in CHOSEN_FOR[file] if getattr(now, name) == getattr(before, name)]
    return now._replace(**{name: getattr(USUAL, name) for name in stale})


class Visit:
    """The state of one session."""

    def __init__(self, folder: Path):
        """folder: for its results, with a name that no other visitor can guess."""
        self.folder = folder
        self.given = USUAL
        self.files: set[Path] = set()  # all that were ever given in it
        self.running: threading.Event | None = None  # the animation under way; set when it is to stop
        self.show: Show | None = None  # what is made of the camera
        self.seen, self.closed = time.time(), False
        self._numbers = itertools.count(1)

    def use(self, given: Given) -> None:
        self.files |= {Path(path) for path in given.paths}

    def stop(self) -> None:
        """Ends the animation under way, if there is one, at its next sampling step."""
        if self.running:
            self.running.set()
        if self.show:
            self.show.close()
            self.show = None

    def new_paths(self) -> tuple[str, str]:
        """Where a result and its comparison go; makes room for them."""
        made = sorted(self.folder.glob("*.mp4"), key=lambda path: path.stat().st_mtime)
        for path in made[: len(made) - 2 * (KEPT - 1)]:
            path.unlink()
        name = self.folder / f"animation_{next(self._numbers)}"
        return f"{name}.mp4", f"{name}_side_by_side.mp4"


class Visits:
    """All sessions, by Gradio's hash of them; and the folder where their files are, so that these live as long."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / RESULTS).mkdir()
        self._lock = threading.Lock()
        self._all: dict[str, Visit] = {}  # the one seen last is the last

    def of(self, session: str) -> Visit:
        """The visit, which was seen just now."""
        with self._lock:
            visit = self._all.pop(session, None) or Visit(Path(tempfile.mkdtemp(dir=self.folder / RESULTS)))
            self._all[session] = visit
            visit.seen, visit.closed = time.time(), False
            self._forget()
            return visit

    def close(self, session: str) -> None:
        """The page was closed, or its connection is lost: what runs is stopped, files stay for FORGOTTEN seconds."""
        with self._lock:
            if visit := self._all.get(session):
                visit.stop()
                visit.seen, visit.closed = time.time(), True

    def _forget(self) -> None:
        """Deletes what belongs to nobody any more."""
        old = lambda seconds: time.time() - seconds > FORGOTTEN
        silent = list(self._all)[:-MANY]
        for session in [s for s, visit in self._all.items() if old(visit.seen) and (visit.closed or s in silent)]:
            shutil.rmtree(self._all.pop(session).folder, ignore_errors=True)
        held = {RESULTS, EXAMPLES}
        for file in itertools.chain.from_iterable(visit.files for visit in self._all.values()):
            held |= {file.relative_to(self.folder).parts[0]} if file.is_relative_to(self.folder) else set()
        for path in self.folder.iterdir():
            if path.name not in held and old(path.stat().st_mtime):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
