"""Errors that a user can fix: each is one line that names the file, the key and the fix."""

import sys
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class BenchmarkError(Exception):
    """What a user gave is wrong; the message names the file, the key and the fix."""


def run_program(main: Callable[[], Result]) -> Result:
    """Return what a command-line program does; a `BenchmarkError` becomes one line on stderr and exit status 1."""
    try:
        return main()
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
