"""The one exception whose message is written for the person at the command line."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Wrong input, said in one sentence that names the fix; commands print it and exit non-zero."""


def say_errors(command: str, main: Callable[[], None]) -> None:
    """Runs a command's main; a UserError becomes its sentence on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(2)
