"""SIGTERM and SIGINT: a run that is told to stop saves and ends with 0, whatever it is doing.

Python runs signal handlers between instructions of its own, and compiling is one that
takes minutes. So a thread listens. Where nothing would be lost it ends the process at
once; else the training loop asks `asked()` after every step. A second SIGINT ends it in
any case. Only the standard library is imported, so that listening can start first of all.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAVED = "Stopped. All that was done is saved; the same command goes on from there."
QUIT = 128 + signal.SIGINT  # what a shell reports of a program ended by SIGINT

_asked = threading.Event()
_unsaved = threading.Event()
_pipe: tuple[int, int] | None = None


def listen() -> None:
    """To be called by the main thread; again where a library has put its own handlers in place."""
    global _pipe
    if _pipe is None:
        _pipe = os.pipe()
        os.set_blocking(_pipe[1], False)
        threading.Thread(target=_watch, daemon=True).start()
    signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # the byte in the pipe is what counts


def asked() -> bool:
    """Whether the run has been told to stop."""
    return _asked.is_set()


@contextmanager
def work_to_save() -> Iterator[None]:
    """Within, the process is not ended from outside; the code there must look at `asked`, and save."""
    _unsaved.set()
    try:
        yield
    finally:
        _unsaved.clear()
    if asked():
        _end(0, SAVED)


def _watch() -> None:
    interrupts = 0
    while True:
        number = os.read(_pipe[0], 1)[0]
        if number not in SIGNALS:
            continue
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            _end(QUIT, "Ended at once; the steps saved before are whole.")
        _asked.set()
        if not _unsaved.is_set():
            _end(0, SAVED)
        print("Stopping after this step; once more Ctrl-C ends at once.", file=sys.stderr, flush=True)


def _end(status: int, words: str) -> None:
    print(f"\n{words}", file=sys.stderr, flush=True)
    os._exit(status)  # the main thread may be deep in a compiler and cannot be asked
