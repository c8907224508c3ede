"""The one exception whose message is written for the person at the command line; and how a command ends."""

import gc
import io
import itertools
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
IMPORTING, USUAL = 200_000, gc.get_threshold()  # objects more, after which garbage is looked for
PATIENCE = 1.0  # seconds in which the main thread must have heard a signal
TIDYING = 10.0  # seconds in which what was begun must be tidied up; libraries may wait for others that never answer

without_tidying = threading.Event()  # set: see `at_once`
unfinished: set[Path] = set()  # folders of half a result: gone, too, where a process cannot unwind


# A child is told by its parent when to end, which is no word to the parent.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class UserError(Exception):
    """Wrong input, said in one sentence that names the fix; commands print it and exit non-zero."""


class Interrupted(KeyboardInterrupt):
    """One of SIGNALS, raised in the main thread."""

    def __init__(self, number: int):
        self.number = number


def end_quietly() -> None:
    """A command's first act: until `say_errors` there is nothing to tidy up, so that Ctrl-C ends it without a traceback,
    and no garbage among the hundreds of thousands of objects that imports make, so that none is looked for."""
    gc.set_threshold(IMPORTING, *gc.get_threshold()[1:])
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def say_errors(command: str, main: Callable[[], None], then: str = "nothing half-made is left") -> None:
    """Runs a command's main; a UserError becomes its sentence on stderr and exit code 2.

    So do Ctrl-C and SIGTERM, with what is `then`, and the exit code that a shell knows them by; a command that
    hears signals itself is left alone.
    """
    if gc.get_threshold()[0] == IMPORTING:
        gc.freeze()  # what is imported stays
        gc.set_threshold(*USUAL)
    words = lambda number: f"{command}: stopped by {SIGNALS[number]}; {then}."
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what cannot be shown must not end the work of hours
    try:
        with heard(words):
            check_names()
            main()
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(2)
    except Interrupted as error:
        print(words(error.number), file=sys.stderr)
        # All is tidied up. What threads of libraries were at is not waited for: Python's own way out takes their
        # memory away while they work, which ended one in twelve with a segmentation fault in place of the code.
        sys.stdout.flush()
        os._exit(128 + error.number)


@contextmanager
def heard(words: Callable[[int], str]) -> Generator[None]:
    """Within, a signal is raised as Interrupted, so that what was begun is tidied up.

    Python hears signals between instructions of its own, and compiling is one that takes minutes: then a
    thread ends the process. So it does where tidying up does not end.
    """
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    free = threading.current_thread() is threading.main_thread()
    if not free or not set(usual.values()) <= {signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN}:
        yield
        return
    usual = {number: handler for number, handler in usual.items() if handler != signal.SIG_IGN}  # as a shell's `&` has Ctrl-C
    unwinding = threading.Event()

    def interrupt(number, frame):
        if not (unwinding.is_set() or without_tidying.is_set()):
            unwinding.set()
            raise Interrupted(number)

    def watch():
        for count in itertools.count():
            number = 0
            while number not in SIGNALS:
                if not (byte := os.read(reading, 1)):
                    return os.close(reading)
                number = byte[0]
            if count or without_tidying.is_set() or not unwinding.wait(PATIENCE):  # twice means at once
                end(number)
            timer = threading.Timer(TIDYING, end, (number,))
            timer.daemon = True
            timer.start()

    def end(number):
        for path in unfinished:
            shutil.rmtree(path, ignore_errors=True)
        print(f"\n{words(number)}", file=sys.stderr, flush=True)
        if without_tidying.is_set():
            kill_children()
        os._exit(128 + number)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=watch, daemon=True).start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in usual:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(writing)


@contextmanager
def at_once() -> Generator[None]:
    """Within, a signal ends the process where it is.

    For libraries whose own way to stop is long, and may have no end: all that is under way must be whole or not
    there at any moment. Children end with it; one that finds its parent gone would say more than is wanted.
    """
    without_tidying.set()
    try:
        yield
    finally:
        without_tidying.clear()


def kill_children() -> None:
    """Of this process, where Linux tells which they are; all together, before anybody can tell of the first."""
    children = []
    for path in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # of a thread that has just ended
            children += path.read_text().split()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)


def check_names() -> None:
    """UserError for names that are no text in this locale: what stores arrays and reads videos cannot take them."""
    try:
        names = (*sys.argv, os.getcwd())
    except FileNotFoundError:
        raise UserError("the current folder is no longer there; cd to one that is.") from None
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            fix = "rename it" if sys.getfilesystemencoding() == "utf-8" else "set PYTHONUTF8=1 in the environment"
            raise UserError(f"{ascii(name)} is no text in {sys.getfilesystemencoding()}; {fix}.") from None
