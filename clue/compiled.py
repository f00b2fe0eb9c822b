"""Functions that are compiled for the processor at their first call.

The compiler may reorder sums, but it may not assume that numbers are finite: a training that diverges must show it.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

EXACT = ("contract",)
SUMS = ("contract", "reassoc", "nsz")
"""LLVM's fast-math flags where the order of operations matters, and for sums."""


def compiled(*flags: str, cache: bool = False) -> Callable[[Callable], Callable]:
    """Return a decorator that compiles a function at its first call; with `cache` the result is kept on disk."""
    # What is called is inlined. Otherwise a process that compiles calls one copy of it, and a process that loads the
    # result another, whose sums have another order.
    options: dict[str, Any] = {"fastmath": set(flags), "error_model": "numpy", "nogil": True, "forceinline": not cache}

    def decorate(function: Callable) -> Callable:
        try:
            return njit(cache=cache, **options)(function)
        except RuntimeError:
            # Neither the package's folder nor the user's can be written to: every process compiles, for seconds.
            return njit(**options)(function)

    return decorate
