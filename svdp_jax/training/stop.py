"""SIGTERM and SIGINT: a run that is told to stop saves and ends with 0, whatever it is doing.

Python runs signal handlers between instructions of its own, and compiling is one that
takes minutes. So a thread listens. Where nothing would be lost it ends the process at
once; else the training loop asks `asked()` after every step. A second SIGINT ends it in
any case. Only the standard library is imported, so that listening can start first of all.

Of several hosts none ends alone, as the others would wait for it in their next step: the one
that ends leaves a word with the coordinator of the run, where a thread of each of them looks.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAVED = "Stopped. All that was done is saved; the same command goes on from there."
FOLLOWED = "Stopped, as host {host} was told to. The same command goes on from the last step saved."
FAILED = "Ended, as host {host} failed: {reason}"
QUIT = 128 + signal.SIGINT  # what a shell reports of a program ended by SIGINT

KEY = "svdp_jax/end"  # of the word left with the coordinator
LOOK = 0.5  # seconds between looks
GATHER = 5.0  # seconds that the hosts have to meet before they end; a host that is lost never comes
LAST = 1.0  # seconds by which the coordinator outlives the others, whom its end would abort

_at_end: list[Callable[[], None]] = []
_asked = threading.Event()
_unsaved = threading.Event()
_pipe: tuple[int, int] | None = None
_leaving = threading.Lock()
_hosts = None  # the coordinator's client, and which host this is


def listen() -> None:
    """To be called by the main thread; again where a library has put its own handlers in place."""
    global _pipe
    if _pipe is None:
        _pipe = os.pipe()
        os.set_blocking(_pipe[1], False)
        threading.Thread(target=_watch, args=_pipe[:1], daemon=True).start()
    signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # the byte in the pipe is what counts


def together(client, host: int) -> None:
    """From here on this host ends with the others. client: of JAX's coordination service."""
    global _hosts
    _hosts = client, host
    threading.Thread(target=_hear, args=(client,), daemon=True).start()


def at_end(action: Callable[[], None]) -> None:
    """To be done also where the process ends without unwinding: something short, that never raises."""
    _at_end.append(action)


def asked() -> bool:
    """Whether the run has been told to stop."""
    return _asked.is_set()


@contextmanager
def work_to_save() -> Generator[None]:
    """Within, the process is not ended from outside; the code there must look at `asked`, and save."""
    _unsaved.set()
    try:
        yield
    finally:
        _unsaved.clear()
    if asked():
        _leave(0, SAVED, FOLLOWED)


@contextmanager
def ends_the_process() -> Generator[None]:
    """Where the code within fails, the process ends: it waits for no thread that hangs, and takes the other hosts along."""
    try:
        yield
    except SystemExit as end:
        if end.code:
            status, words = (end.code, "") if isinstance(end.code, int) else (1, end.code)  # as Python would
            _leave(status, words, FAILED, str(end.__context__ or words))
        raise
    except Exception as error:
        traceback.print_exc()
        _leave(1, "", FAILED, f"{type(error).__name__}: {error}")


def _watch(heard: int) -> None:
    interrupts = 0
    while True:
        number = os.read(heard, 1)[0]
        if number not in SIGNALS:
            continue
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            _end(QUIT, "Ended at once; the steps saved before are whole.")
        _asked.set()
        if not _unsaved.is_set():
            threading.Thread(target=_leave, args=(0, SAVED, FOLLOWED), daemon=True).start()
        else:
            print("Stopping after this step; once more Ctrl-C ends at once.", file=sys.stderr, flush=True)


def _hear(client) -> None:
    while True:
        time.sleep(LOOK)
        try:
            status, words = json.loads(client.key_value_try_get(KEY))
        except Exception:  # nobody has left a word; where the coordinator is gone, JAX ends the process
            continue
        _leave(status, words)


def _leave(status: int, words: str, others: str = "", reason: str = "") -> None:
    """Ends the process, together with the other hosts. others: what those say."""
    _leaving.acquire()  # for good: this thread or another is ending the process
    if _hosts:
        client, host = _hosts
        try:
            if others:
                client.key_value_set(KEY, json.dumps([status, others.format(host=host, reason=reason)]))
        except Exception:
            pass  # another host was first
        try:
            client.wait_at_barrier(KEY, int(1000 * GATHER))
        except Exception:
            pass
        time.sleep(LAST if host == 0 else 0)
    _end(status, words)


def _end(status: int, words: str) -> None:
    for action in _at_end:
        action()
    print(f"\n{words}" if words else "", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)  # the main thread may be deep in a compiler and cannot be asked
