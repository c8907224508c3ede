"""What files hold, as digests: a film is the same where its content is, whatever its name, place and time.

To read a film only to see that it is the same takes as long as to copy it. So a digest is kept with size
and times of the files, and trusted while these stay; like git, not where a file had changed moments before
it was read, since times come in steps and a change within one shows nowhere.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from svdp_jax.preparation import encode

STEP = 2.0  # seconds; the coarsest steps of a file system's times, those of FAT
WORTH_A_BAR = 1 << 30  # bytes


class Contents:
    """Digests of files, kept in a JSON file between runs."""

    def __init__(self, cache: Path):
        self.cache = cache
        self.kept = encode.read_json(cache) or {}
        self.known: dict[str, str] = {}  # in this run nothing is looked at twice

    def of(self, files: Sequence[Path]) -> str:
        """Of the content of the files in this order; "" where there are none, or none that can be read."""
        if not files:
            return ""
        key = _key(files)
        if key not in self.known:
            try:
                self.known[key] = self._of(key, files)
            except OSError:
                self.known[key] = ""
        return self.known[key]

    def _of(self, key: str, files: Sequence[Path]) -> str:
        began, stamp, (kept, digest) = time.time(), _stamp(files), self.kept.pop(key, ("", ""))
        if kept != stamp:
            digest = _read(files)
            if any(max(s.st_mtime, s.st_ctime) > began - STEP for s in map(os.stat, files)):
                return digest
        self.kept[key] = stamp, digest
        return digest

    def read(self, groups: list[Sequence[Path]]) -> None:
        """Looks at many groups of files at once; what was seen is kept even where this is stopped."""
        sizes = [sum(path.stat().st_size for path in files if path.exists()) for files in groups]
        new = sum(size for size, files in zip(sizes, groups) if files and _key(files) not in self.kept)
        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        try:
            with tqdm(total=sum(sizes), desc="Reading films", unit="B", unit_scale=True, disable=new < WORTH_A_BAR) as bar:
                for size, _ in zip(sizes, pool.map(self.of, groups)):
                    bar.update(size)
        finally:
            pool.shutdown(cancel_futures=True)
            self.keep()

    def keep(self) -> None:
        """Writes down what was seen."""
        encode.write_json(self.cache, self.kept)


def _key(files: Sequence[Path]) -> str:
    """Where they are: that of the file, or of the folder of many."""
    return os.path.abspath(files[0] if len(files) == 1 else files[0].parent)


def _stamp(files: Sequence[Path]) -> str:
    """What changes when a file does, unless the change is too quick."""
    return digest([(path.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path in files for s in [path.stat()]])


def _read(files: Sequence[Path]) -> str:
    hashes = [encode.file_hash(path) for path in files]
    return hashes[0] if len(hashes) == 1 else digest(hashes)


def digest(value) -> str:
    """Of anything that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
