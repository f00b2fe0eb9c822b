"""Errors that a user can fix: each is one line that names the file, the key and the fix."""

import io
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class BenchmarkError(Exception):
    """What a user gave is wrong; the message names the file, the key and the fix."""


def without_control_codes(text: str) -> str:
    """Return text without the codes by which programs colour what they print, or steer a terminal."""
    text = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)", "", text)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text)


def one_line(text: str) -> str:
    """Return plain text on one line."""
    return " ".join(without_control_codes(text).split())


def exit_on_error(function: Callable[[], Result]) -> Result:
    """Return what a function does; a `BenchmarkError` becomes one line on stderr and exit status 1.

    Where standard output ends early (``make estimate | head``) the process ends without a word, as others do there.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale may lack letters of names
    try:
        result = function()
        sys.stdout.flush()
        return result
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        # else Python would try to write the rest at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
