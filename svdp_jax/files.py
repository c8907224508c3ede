"""Files that appear whole or not at all, and folders that know what they hold.

A folder's `manifest.json` has size and checksum of each file in it, since neither
Orbax nor safetensors notices a flipped bit.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import zlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from svdp_jax.errors import UserError

MANIFEST = "manifest.json"


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file so that its name holds the old content or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """The object of a JSON file; {} where there is no such file, or half of one."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def scheme(path) -> str:
    """What an address begins with, such as the gs: of gs://bucket/run; "" of a path on this machine."""
    first = next(iter(Path(path).parts), "")
    return first if first.endswith(":") and len(first) > 2 else ""


def on_disk(path) -> Path:
    """A path to write to. UserError for an address such as gs://bucket/file, which would become a folder named gs: here."""
    if scheme(path):
        raise UserError(f"{path}: what this makes is written to a disk; name a path there, and copy it to the bucket after.")
    return Path(path)


def apart(output, *inputs) -> None:
    """UserError where writing `output` would replace an input: the same file, by whatever name, or one in that folder.

    Inputs that are no names of files, such as arrays, are passed over.
    """
    output = on_disk(output)
    for given in (Path(path) for path in inputs if isinstance(path, (str, os.PathLike))):
        same = given.exists() and output.exists() and given.samefile(output)
        if same or given.resolve().is_relative_to(output.resolve()):
            raise UserError(f"{output}: would replace the input {given}; give the output another name.")


def remove(path: Path) -> None:
    """Removes a file or folder, if it is there; its name is gone at once, so that nobody finds half of it."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    leaving = path.with_name(f".{path.name}.{os.getpid()}.removed")
    path.rename(leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def locked(path: Path) -> tuple[int | None, bool]:
    """A descriptor that holds the file's lock, or None where another process does; and whether locks are certain."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except PermissionError:
            raise UserError(f"{path.parent} cannot be written; name another.") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None, True
        except OSError:  # a file system without locks
            return descriptor, False
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, True
        os.close(descriptor)  # its owner took it away just now


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Generator[None]:
    """Within, no other process that asks for this folder gets in: it is told that `what` is at work there."""
    descriptor, _ = locked(folder / ".lock")
    if descriptor is None:
        raise UserError(f"{what} is at work in {folder}; wait until it ends, stop it, or name another folder.")
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)
        os.close(descriptor)


def checksums(folder: Path) -> dict[str, dict]:
    """Size and CRC-32 of every file below the folder, by relative path."""

    def entry(path):
        crc = 0
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                crc = zlib.crc32(block, crc)
        return {"bytes": path.stat().st_size, "crc32": crc}

    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    with ThreadPoolExecutor() as pool:
        entries = pool.map(entry, paths)
        return {path.relative_to(folder).as_posix(): found for path, found in zip(paths, entries)}


def own_checksum(entries: dict) -> dict:
    return {"crc32": zlib.crc32(json.dumps(entries, sort_keys=True).encode())}


def write_manifest(folder: Path) -> None:
    """To be called last: with its manifest a folder is complete."""
    entries = checksums(folder)
    write_whole(folder / MANIFEST, json.dumps(entries | {MANIFEST: own_checksum(entries)}, indent=1))


def hash_of(path: Path) -> str:
    """The SHA-256 of a file. Of a folder's manifest, it names all that the folder holds."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def read_manifest(folder: Path) -> dict[str, dict]:
    """What the folder must hold. Raises UserError where that cannot be told."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{path} is missing, so {folder} was not saved whole; make or fetch it again.")
    try:
        entries = json.loads(path.read_text())
        own = entries.pop(MANIFEST, None)
        sound = own in (None, own_checksum(entries))
    except (OSError, ValueError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path} is damaged; make or fetch {folder} again.")
    return entries


def verify(folder: Path) -> None:
    """Raises UserError, naming the file, where a folder is not what its manifest says."""
    expected, there = read_manifest(folder), checksums(folder)
    for name in sorted(expected):
        if there.get(name) != expected[name]:
            state = "is missing" if name not in there else "is damaged"
            raise UserError(f"{folder / name} {state}; make or fetch {folder} again.")


def machine() -> str:
    """This machine from its start to its end: what shares a kernel shares its locks."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


MOUNTS = Path("/proc/mounts")


def mounted_bucket(path: Path) -> bool:
    """Whether a path lies in a bucket mounted with gcsfuse."""
    lines = MOUNTS.read_text().splitlines() if MOUNTS.exists() else ()
    mounts = {Path(place.replace(r"\040", " ")): kind for _, place, kind, *_ in map(str.split, lines)}
    path = path.absolute()
    return next((mounts[x] for x in (path, *path.parents) if x in mounts), "") == "fuse.gcsfuse"
