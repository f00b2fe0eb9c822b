"""Compile functions for the processor on their first call.

The compiler may reorder sums, but it must not assume that numbers are finite: diverging training must show it.
"""

from collections.abc import Callable
from typing import Any

from numba import njit

EXACT = ("contract",)
SUMS = ("contract", "reassoc", "nsz")
"""LLVM's fast-math flags for code in which the order of operations matters, and for sums."""


def compiled(*flags: str, cache: bool = False) -> Callable[[Callable], Callable]:
    """Return a decorator that compiles a function on its first call; with `cache` the result is kept on disk."""
    # Callees are inlined. Otherwise a process that compiles and one that loads the cached result would call different
    # copies of a callee, whose sums have different orders.
    options: dict[str, Any] = {"fastmath": set(flags), "error_model": "numpy", "nogil": True, "forceinline": not cache}

    def decorate(function: Callable) -> Callable:
        try:
            return njit(cache=cache, **options)(function)
        except RuntimeError:
            # Neither the package's folder nor the user's is writable: every process compiles, which takes seconds.
            return njit(**options)(function)

    return decorate
