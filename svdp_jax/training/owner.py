"""Who is at work in a work folder: one run at a time, of all processes and hosts that see it.

    .lock        locked by the run's first process as long as it lives
    owner.json   who that is, for the words of others, and a count that goes up while it lives

The kernel's lock ends with its process, however that ends. Hosts that share a folder over a network
or a bucket need not see each other's locks: there the count tells, which is renewed every BEAT seconds,
and no clock is compared. A run that was out of sight for so long that another took its folder finds a
mark in owner.json that is not its own, and ends before it has saved anything more.
"""

import contextlib
import datetime
import json
import logging
import os
import secrets
import socket
import threading
import time
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from svdp_jax.errors import UserError
from svdp_jax.files import locked, machine, read_json, write_whole
from svdp_jax.training import stop

BEAT = 10.0  # seconds between signs of life
# Seconds without one after which a run on another machine is taken to be gone. What is mounted
# from a bucket or a network may show what was there a minute ago.
GONE = 120.0
TRIES = 100  # to make a folder that other runs make and take away
logger = logging.getLogger(__name__)


class Owner:
    """A run's hold on its folder, which it makes. `mark` tells it from other runs; all its hosts know it.

    UserError where another run is at work there, or where there can be no such folder.
    """

    def __init__(self, folder: Path):
        self.folder, self.lock, self.made = folder, None, []
        self.ended, self.beating = threading.Event(), threading.Thread(target=self.beat, daemon=True)
        self.mark = secrets.token_hex(3)
        if jax.process_index() == 0:
            self.claim()
        if jax.process_count() > 1:
            number = multihost_utils.broadcast_one_to_all(np.int32(int(self.mark, 16)))
            self.mark = f"{int(number):06x}"

    def claim(self) -> None:
        certain = self.take()
        before = read_json(self.folder / "owner.json")
        if self.lock is None:
            raise UserError(in_use(self.folder, before))
        try:
            if before and (not certain or before.get("machine") != machine()):
                self.see_whether_gone(before)
            self.sign(0)
        except (OSError, UserError) as error:
            os.close(self.lock)
            words = f"{self.folder} cannot be written ({error}); make room or name another --workdir."
            raise error if isinstance(error, UserError) else UserError(words) from None
        if before:
            logger.warning("%s left %s without a word; this one goes on in its place.", named(before), self.folder)
        self.beating.start()
        stop.at_end(self.close)

    def take(self) -> bool:
        """Makes and locks the folder, if no other has; whether locks are certain there."""
        for _ in range(TRIES):
            with contextlib.suppress(FileNotFoundError):  # another run that found no use for the folder took it away
                self.made = make(self.folder)
                self.lock, certain = locked(self.folder / ".lock")
                return certain
        raise UserError(f"{self.folder} cannot be made; name another --workdir.")

    def see_whether_gone(self, before: dict) -> None:
        """Waits for a sign of life of a run on another machine. UserError where there is one."""
        logger.warning("%s may be at work in %s: looking for %.0f s whether it is.", named(before), self.folder, GONE)
        deadline = time.monotonic() + GONE
        while time.monotonic() < deadline:
            time.sleep(min(1, GONE / 10))
            now = read_json(self.folder / "owner.json")
            if not now:
                return
            if now != before:
                raise UserError(in_use(self.folder, now))

    def beat(self) -> None:
        count = 0
        while not self.ended.wait(BEAT):
            count += 1
            with contextlib.suppress(OSError, UserError):  # a disk that is full for a while; `check` says the other
                self.check()
                self.sign(count)

    def sign(self, count: int) -> None:
        now = datetime.datetime.now().isoformat(" ", "seconds")
        about = {"mark": self.mark, "host": socket.gethostname(), "process": os.getpid(), "machine": machine()}
        write_whole(self.folder / "owner.json", json.dumps(about | {"beat": count, "time": now}, indent=1))

    def check(self) -> None:
        """UserError where the folder is another run's by now. Only the first process looks."""
        now = read_json(self.folder / "owner.json") if jax.process_index() == 0 else {}
        if now and now.get("mark") != self.mark:
            raise UserError(
                f"{named(now)} has taken {self.folder}, as this run gave no sign of life for {GONE:.0f} s; "
                "nothing more is saved here."
            )

    def close(self) -> None:
        """Leaves the folder to others; takes it away again where nothing was put into it."""
        if self.lock is None:
            return
        self.ended.set()
        self.beating.join(1)
        with contextlib.suppress(OSError, UserError):
            self.check()
            (self.folder / "owner.json").unlink(missing_ok=True)
            (self.folder / ".lock").unlink(missing_ok=True)
        os.close(self.lock)
        self.lock = None
        with contextlib.suppress(OSError):
            for path in self.made:
                path.rmdir()


def make(folder: Path) -> list[Path]:
    """Makes a folder and those above it; which they were, the deepest first."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    if os.path.islink(folder) and not os.path.exists(folder):
        target = os.readlink(folder)
        raise UserError(f"{folder} is a link to {target}, which is not there; make that folder or name another --workdir.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}); name another --workdir.") from None
    return missing


def named(owner: dict) -> str:
    if not owner:
        return "A run that is just starting"
    return f"The run of process {owner.get('process')} on {owner.get('host')}, last seen {owner.get('time')},"


def in_use(folder: Path, owner: dict) -> str:
    return f"{named(owner)} is at work in {folder}; wait until it ends, stop it, or name another --workdir."
