"""What lies in a bucket, and its copy on this machine.

    $SVDP_CACHE/read/bucket/run     what is only read, such as weights and records; ~/.cache/svdp_jax is the usual cache
    $SVDP_CACHE/work/bucket/run     what a command works in (`mirror`)

All else reads and writes ordinary files. Beside each copy, a hidden file tells which generation of each object it has,
so that what is the same is not moved again; Google's own library moves it, and compares checksums as it does.
"""

import base64
import contextlib
import fcntl
import json
import os
from collections.abc import Generator, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from svdp_jax.errors import UserError
from svdp_jax.files import MANIFEST, read_json, scheme, write_whole

SCHEME = "gs:"


class Address(NamedTuple):
    """A bucket and the name of an object in it, or of a folder: what comes before the / of others."""

    bucket: str
    name: str


class Stamp(NamedTuple):
    """A file of a copy as it was when it was last the same as the object: when it was written, its bytes, and which object."""

    written: int
    bytes: int
    generation: int = 0


def address(path) -> Address | None:
    """The place in a bucket that a path names; None where it names one on this machine. UserError for another scheme.

    pathlib makes one slash of two, so gs:/bucket/run is meant as well.
    """
    if not scheme(path):
        return None
    parts = Path(path).parts
    if scheme(path) != SCHEME or len(parts) < 2 or not shown("/".join(parts[1:])):
        raise UserError(f"{path} is in no bucket that is known here; name one as gs://BUCKET/FOLDER, or a folder on a disk.")
    return Address(parts[1], "/".join(parts[2:]))


def here(path) -> Path:
    """Where a file or folder lies on this machine: of one in a bucket the copy, brought or brought up to date first."""
    return brought(address(path)) if address(path) else Path(path)


@cache
def holds(path: Path) -> bool:
    """Whether a path names a file or folder that its bucket holds; one on this machine is in none."""
    found = address(path)
    return bool(found and Copy(found, "read").objects())


@cache
def brought(place: Address) -> Path:
    copy = Copy(place, "read")
    with copy.alone():
        copy.fetch()
    if not copy.path.exists():
        raise UserError(f"{copy} holds nothing; name a file or folder that is there.")
    return copy.path


def name_of(path: Path) -> str:
    """What others know a path by: of a copy that is only read the place in its bucket, else the path itself."""
    path = path.absolute()
    return f"gs://{path.relative_to(root('read'))}" if path.is_relative_to(root("read")) else str(path.resolve())


def root(kind: str) -> Path:
    return Path(os.environ.get("SVDP_CACHE") or "~/.cache/svdp_jax").expanduser().absolute() / kind


class Copy:
    """A file or folder in a bucket, and the same on this machine."""

    def __init__(self, place: Address, kind: str):
        self.place, self.client = place, client()
        self.path = root(kind) / place.bucket / place.name
        self.record = self.path.with_name(f".{self.path.name}.json")
        self.known = self.recorded()

    def __str__(self) -> str:
        return f"gs://{self.place.bucket}/{self.place.name}".rstrip("/")

    @contextlib.contextmanager
    def alone(self) -> Generator[None]:
        """Within, other processes that bring the same wait."""
        with self.said("read"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path.with_name(f".{self.path.name}.lock"), "w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self.known = self.recorded()
                yield

    def recorded(self) -> dict[str, Stamp]:
        return {name: Stamp(*entry) for name, entry in read_json(self.record).items()}

    def bucket(self) -> Any:
        return self.client.bucket(self.place.bucket)

    def object(self, name: str) -> Any:
        """The object that is `name` below the folder; "" is the file itself."""
        return self.bucket().blob("/".join(filter(None, (self.place.name, name))))

    def objects(self) -> dict[str, Any]:
        """All that is not hidden, by name below the folder; "" alone where the address is that of a file."""
        start = self.place.name
        with self.said("read"):
            found = {blob.name: blob for blob in self.client.list_blobs(self.place.bucket, prefix=start)}
        if start in found:
            return {"": found[start]}
        below = f"{start}/" if start else ""
        names = {name.removeprefix(below): blob for name, blob in found.items() if name.startswith(below)}
        return {name: blob for name, blob in names.items() if name and shown(name) and not name.endswith("/")}

    def files(self) -> dict[str, Stamp]:
        """What of the copy is not hidden and not half written, by the same names."""
        paths = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        found = {}
        for path in paths:
            name = "" if path == self.path else path.relative_to(self.path).as_posix()
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that leaves while it is looked at
                status = path.stat()
                if shown(name):
                    found[name] = Stamp(status.st_mtime_ns, status.st_size)
        return found

    def at(self, name: str) -> Path:
        return self.path / name if name else self.path

    def fetch(self) -> None:
        """Makes the copy what the bucket holds."""
        objects, files = self.objects(), self.files()
        wanted = {name: blob for name, blob in objects.items() if not self.same(name, blob, files.get(name))}
        with self.said("read"), self.noted(), bar(f"Fetching {self}", [blob.size for blob in wanted.values()]) as moved:
            for name in in_order(wanted):
                self.bring(name, wanted[name])
                moved(wanted[name].size)
            for name in files.keys() - objects.keys():
                self.at(name).unlink(missing_ok=True)
                self.known.pop(name, None)

    def bring(self, name: str, blob) -> None:
        path = self.at(name)
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            blob.download_to_filename(str(partial))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        status = path.stat()
        self.known[name] = Stamp(status.st_mtime_ns, status.st_size, blob.generation)

    def same(self, name: str, blob, file: Stamp | None) -> bool:
        """Whether a file is what the object is; where a kill kept that from being noted, by its checksum."""
        if blob is None or file is None or file.bytes != blob.size:
            return False
        if self.known.get(name) == file._replace(generation=blob.generation):
            return True
        if checksum(self.at(name)) != blob.crc32c:
            return False
        self.known[name] = file._replace(generation=blob.generation)
        return True

    def unsent(self) -> tuple[dict[str, Stamp], list[str]]:
        """What of the copy was written since it was the same as the bucket, and what was taken away."""
        files = self.files()
        changed = [name for name, file in files.items() if name not in self.known or self.known[name][:2] != file[:2]]
        return {name: files[name] for name in in_order(changed)}, sorted(self.known.keys() - files.keys())

    def push(self, shows: bool = False) -> None:
        """Makes the bucket hold what the copy is; where it was the same before, only what changed. shows: a bar."""
        with self.said("written"), self.noted():
            changed, gone = self.unsent()
            self.send(changed, shows)
            self.bucket().delete_blobs([self.object(name) for name in gone], on_error=lambda _: None)
            for name in gone:
                del self.known[name]

    def send(self, changed: dict[str, Stamp], shows: bool) -> None:
        with bar(f"Sending to {self}", [file.bytes for file in changed.values()] if shows else []) as moved:
            for name, file in changed.items():
                with contextlib.suppress(FileNotFoundError):  # it has left since
                    blob = self.object(name)
                    blob.upload_from_filename(str(self.at(name)))
                    # What was written to while it was sent differs from this stamp, and is sent again.
                    self.known[name] = file._replace(generation=blob.generation)
                    moved(file.bytes)

    @contextlib.contextmanager
    def noted(self) -> Generator[None]:
        """Writes down what is the same, whatever ends this."""
        try:
            yield
        finally:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.record, json.dumps(self.known))

    @contextlib.contextmanager
    def said(self, what: str) -> Generator[None]:
        """What the bucket has against it, or the disk of the copy, as a sentence."""
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from requests.exceptions import RequestException

        try:
            yield
        except (GoogleAPIError, GoogleAuthError, RequestException, ConnectionError, TimeoutError) as error:
            reason = " ".join(str(error).split())[:200]
            advice = "see that the bucket is there and that you may use it (`gcloud auth application-default login`)"
            raise UserError(f"{self} cannot be {what} ({type(error).__name__}: {reason}); {advice}.") from None
        except OSError as error:
            raise UserError(f"{self.path} cannot be kept the same as {self} ({error}); make room, or set SVDP_CACHE.") from None


def shown(name: str) -> bool:
    """Whether a name below a folder is of something in it that is not hidden: not one that leads out of it, as /etc would."""
    return not name or all(part and not part.startswith(".") for part in name.split("/"))


def in_order(names: Iterable[str]) -> list[str]:
    """A folder's manifest last: with it the folder is complete."""
    return sorted(names, key=lambda name: (name.endswith(MANIFEST), name))


def checksum(path: Path) -> str:
    """As the storage tells it of its objects."""
    import google_crc32c

    found = google_crc32c.Checksum()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
    return base64.b64encode(found.digest()).decode()


@contextlib.contextmanager
def bar(words: str, sizes: list[int]) -> Generator:
    """Progress in bytes, where there is something to move; yields what to tell of each file."""
    with tqdm(total=sum(sizes), desc=words, unit="B", unit_scale=True, disable=not sizes) as shown:
        yield shown.update


@cache
def client() -> Any:
    """Of the storage, as whoever is logged in, or whoever a program that stands in for it takes for granted."""
    try:
        from google.cloud import storage
    except ImportError:
        raise UserError("names that begin with gs:// need Google's library: pip install 'svdp_jax[gcs]'.") from None
    from google.auth.exceptions import GoogleAuthError

    try:
        return storage.Client()
    except (GoogleAuthError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"nobody is logged in to Google Cloud ({reason}); `gcloud auth application-default login`.") from None
