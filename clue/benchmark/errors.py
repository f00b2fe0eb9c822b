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
    """The user's input is wrong; the message names the file, the key and the fix."""


def without_control_codes(text: str) -> str:
    """Return text without the codes that colour output or control a terminal."""
    text = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|.)", "", text)
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", " ", text)


def one_line(text: str) -> str:
    """Return text as one line without control codes."""
    return " ".join(without_control_codes(text).split())


def exit_on_error(function: Callable[[], Result]) -> Result:
    """Return the result of a function. A `BenchmarkError` becomes one line on stderr and exit status 1.

    If the reader of standard output stops early (``make status | head``), the process ends silently, as is usual.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # the locale may lack letters that names use
    try:
        result = function()
        sys.stdout.flush()
        return result
    except BenchmarkError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        # otherwise Python would try to write the rest at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
