"""The one exception whose message is written for the person at the command line."""

import io
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Wrong input, said in one sentence that names the fix; commands print it and exit non-zero."""


def say_errors(command: str, main: Callable[[], None]) -> None:
    """Runs a command's main; a UserError becomes its sentence on stderr and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # what cannot be shown must not end the work of hours
    try:
        check_names()
        main()
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(2)


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
