"""A folder in a bucket that a command works in: its copy on this machine, sent again and again while it does.

    .owner.json   in the bucket alone: who is at work there, renewed every BEAT seconds

A machine that is lost costs what it had not sent, some seconds; what was not sent because the network was lost is
sent when the same command is started again there. One machine at a time works in a folder. A run that was out of
sight for so long that another took its folder finds an owner that is not itself, stops, and sends nothing more.
"""

import contextlib
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from svdp_jax.buckets import storage
from svdp_jax.errors import UserError
from svdp_jax.files import machine

BEAT = 10.0  # seconds between looks
GONE = 60.0  # seconds without a sign of life after which a command on another machine is taken to be gone
OWNER = ".owner.json"
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def mirrored(path) -> Generator[Path]:
    """The folder on this machine to work in: itself, or, of one in a bucket, a copy that is sent there, at last when this ends."""
    place = storage.address(path)
    if not place:
        yield Path(path)
        return
    with contextlib.closing(Mirror(place)) as mirror:
        yield mirror.copy.path


class Mirror:
    """Holds a folder in a bucket and keeps it the same as its copy. UserError where another command is at work there."""

    def __init__(self, place: storage.Address):
        self.copy = storage.Copy(place, "work")
        self.generation, self.mark = 0, secrets.token_hex(6)
        self.begin()
        self.claim()
        self.ended, self.beating = threading.Event(), threading.Thread(target=self.beat, daemon=True)
        self.beating.start()

    def begin(self) -> None:
        """Brings what the bucket holds; first sends what could not be sent when this machine last worked there."""
        copy = self.copy
        with copy.alone():
            objects, (unsent, _) = copy.objects(), copy.unsent()
            changed = [name for name, file in unsent.items() if not copy.same(name, objects.get(name), file)]
            generation = lambda name: copy.known[name].generation if name in copy.known else 0
            others = [name for name, blob in objects.items() if generation(name) != blob.generation]
            if changed and others:
                raise UserError(
                    f"{copy} has been worked in elsewhere, and its copy {copy.path} holds what was never sent there, such as "
                    f"{changed[0]}; move the copy away to go on with what the bucket holds."
                )
            if changed:
                logger.warning("%s was not all sent when this machine last worked there; that comes first.", copy)
                copy.push(shows=True)
            copy.fetch()
            copy.path.mkdir(parents=True, exist_ok=True)

    def claim(self) -> None:
        blob, before = self.owner()
        if before and not left_by_this_machine(before):
            logger.warning("%s may be at work in %s: looking for %.0f s whether it is.", named(before), self.copy, GONE)
            deadline = time.monotonic() + GONE
            while time.monotonic() < deadline:
                time.sleep(min(1, GONE / 10))
                blob, now = self.owner()
                if now and now != before:
                    raise UserError(
                        f"{named(now)} is at work in {self.copy}; wait until it ends, stop it, or name another folder."
                    )
        self.sign(blob.generation if before else 0, 0)

    def owner(self) -> tuple[Any, dict]:
        """The object that tells whose the folder is, and what it tells; {} where there is none."""
        blob = self.copy.object(OWNER)
        with self.copy.said("read"):
            return blob, json.loads(blob.download_as_text()) if blob.exists() else {}

    def sign(self, generation: int, count: int) -> None:
        """Says that it is at work, where nobody has said anything since."""
        about = {"mark": self.mark, "host": socket.gethostname(), "process": os.getpid(), "machine": machine(), "beat": count}
        blob = self.copy.object(OWNER)
        with self.copy.said("written"):
            blob.upload_from_string(json.dumps(about), if_generation_match=generation)
        self.generation = blob.generation

    def beat(self) -> None:
        """Sends what is new, until the end or until another has taken the folder."""
        count, said = 0, False
        while not self.ended.wait(BEAT):
            count += 1
            try:
                if self.lost():
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self.sign(self.generation, count)
                self.copy.push()
                said = False
            except UserError as error:  # a network that is lost for a while, or a disk that is full
                if not said:
                    logger.warning("%s It is tried again.", error)
                said = True

    def lost(self) -> bool:
        """Whether the folder is another's by now."""
        _, now = self.owner()
        if not now or now["mark"] == self.mark:
            return False
        logger.error(
            "%s has taken %s, as this run gave no sign of life for %.0f s; nothing more is sent there, and what is done is in %s.",
            named(now), self.copy, GONE, self.copy.path,
        )  # fmt: skip
        return True

    def close(self) -> None:
        """Sends the rest, and leaves the folder to others. UserError where that cannot be."""
        self.ended.set()
        self.beating.join()
        if self.lost():
            return
        self.copy.push(shows=True)
        with self.copy.said("written"):
            self.copy.object(OWNER).delete()


def left_by_this_machine(owner: dict) -> bool:
    """Whether an owner was a process here, which is there no more."""
    return owner.get("machine") == machine() and not Path(f"/proc/{owner.get('process')}").exists()


def named(owner: dict) -> str:
    return f"Process {owner.get('process')} on {owner.get('host')}"
