"""What the programs of this folder share: functions in processes of their own, their memory, and rows to print."""

import os
import resource
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # clue may not be installed
SPAWN = get_context("spawn")


def row(*values) -> None:
    """Print a row of a table; numbers that are not whole have three digits."""
    print(*(f"{value:.3g}" if isinstance(value, float) else value for value in values), sep="\t", flush=True)


def in_process(function: Callable, *arguments) -> Any:
    """Call a function in a new process and return its result, so that its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(function, *arguments).result()


def peak_gb() -> float:
    """Return the peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory_gb(pid: int | None = None) -> dict[str, float]:
    """Return the current memory of a process, or of this one: all of it, and the part that only swapping can free."""
    now = psutil.Process(pid).memory_info()
    return {"rss": now.rss / 2**30, "anonymous": (now.rss - now.shared) / 2**30}


def silence(*streams: int) -> None:
    """Drop what this process prints from now on to the streams of these numbers, such as progress of libraries."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


class Child:
    """A function that runs in a process of its own, which answers through a pipe, and whose memory is watched."""

    def __init__(self, function: Callable, *arguments, interval: float = 0.02):
        """Start `function` with its end of the pipe and the arguments; look at its memory every `interval` seconds."""
        self.pipe, end = SPAWN.Pipe()
        self.process = SPAWN.Process(target=function, args=(end, *arguments), daemon=True)
        self.process.start()
        end.close()  # or the end of the process would not be noticed
        self.peaks = {"rss": 0.0, "anonymous": 0.0}
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(interval,), daemon=True)
        self._watcher.start()

    def answer(self) -> Any:
        """Wait for the next answer."""
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit("a process ended without an answer; its error is above") from None

    def stop_watching(self) -> dict[str, float]:
        """Return the most memory so far, in GB, and leave it at that."""
        self._stopped.set()
        self._watcher.join()
        return self.peaks

    def _watch(self, interval: float) -> None:
        while not self._stopped.wait(interval):
            try:
                now = memory_gb(self.process.pid)
            except psutil.Error:  # it has ended
                return
            self.peaks = {name: max(most, now[name]) for name, most in self.peaks.items()}
