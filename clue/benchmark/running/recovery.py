"""Clean up after a killed run: end its jobs on this machine and in Slurm's queue, and clear its lock."""

import fcntl
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import psutil

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.files import write_text
from clue.benchmark.running.cluster import cancel, slurm_jobs

MARK = "CLUE_BENCH_FOLDER"
"""An environment variable that rules/common.smk sets. It identifies the jobs of a run in this folder."""
GRACE_SECONDS = 30


def register_run(folder: Path) -> None:
    """Begin a run: check that no job of an earlier one is in the queue, and note which machine runs Snakemake.

    Raises
    ------
    BenchmarkError
        If jobs are left that would write the same files.
    """
    if left := [job.number for job in slurm_jobs(folder) if job.state != "COMPLETING"]:
        raise BenchmarkError(
            f"{folder}: a killed run has left jobs in Slurm's queue ({' '.join(left)}); run `make resume`"
        )
    write_text(_host_file(folder), socket.gethostname())


def lock_folder(folder: Path) -> TextIO:
    """Return an open file that locks a folder for this `make run`, until all processes that hold it have ended.

    Snakemake's own lock is not enough: it is set only after planning, and a run that ends removes those of others.

    Raises
    ------
    BenchmarkError
        If another run holds the lock.
    """
    path = folder / ".snakemake" / "clue-bench-run.lock"
    path.parent.mkdir(exist_ok=True)
    file = open(path, "a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _refuse_if_alive(folder)
        raise BenchmarkError(f"{folder}: another run is at work here; wait for it to end or interrupt it") from None
    except OSError:
        pass  # a file system without such locks: Snakemake's own lock remains
    return file


def clear_killed_run(folder: Path) -> list[str]:
    """End the jobs that a killed run has left and clear its lock. Return lines to print about what was done.

    Raises
    ------
    BenchmarkError
        If the run is still alive, or may be alive on another machine.
    """
    if not _locks(folder) and not slurm_jobs(folder):
        return []
    _refuse_if_alive(folder)
    lines = []
    # The queue first, since the processes of cancelled jobs end with them.
    if n_jobs := cancel(folder):
        lines.append(f"Cancelled {n_jobs} job(s) that a killed run has left in Slurm's queue.")
    end_processes(list(processes_at_work(folder)))
    if locks := _locks(folder):
        for lock in locks:
            lock.unlink(missing_ok=True)
        lines.append("Cleared the lock of a killed run.")
    return lines


def _refuse_if_alive(folder: Path) -> None:
    for process in snakemakes(folder):
        raise BenchmarkError(
            f"{folder}: another run is at work here (process {process.pid}); wait for it to end or interrupt it"
        )
    if owner := other_host(folder):
        raise BenchmarkError(
            f"{folder}: a run was started here on {owner}; run this command there or, if that run has ended or {owner} "
            f"is gone, delete {_host_file(folder)} first"
        )


def _locks(folder: Path) -> list[Path]:
    return list(folder.glob(".snakemake/locks/*.lock"))


def _host_file(folder: Path) -> Path:
    return folder / ".snakemake" / "clue-bench-host"


def other_host(folder: Path) -> str:
    """Return the machine that started the last run in this folder; an empty text if it is this one or unknown."""
    file = _host_file(folder)
    owner = file.read_text().strip() if file.exists() else ""
    return "" if owner == socket.gethostname() else owner


# ---- processes of this machine -------------------------------------------------------------------


def processes_at_work(folder: Path) -> Iterator[psutil.Process]:
    """Yield the processes of the jobs of a run in this folder, and no others."""
    return _processes(lambda process: process.environ().get(MARK) == str(folder))


def snakemakes(folder: Path) -> Iterator[psutil.Process]:
    """Yield every Snakemake that a user has started in this folder, but not those inside its jobs."""

    def is_started_here(process: psutil.Process) -> bool:
        words = [Path(word).name for word in process.cmdline()]  # `snakemake ...` or `python -m snakemake ...`
        return process.cwd() == str(folder) and "snakemake" in words[:3] and MARK not in process.environ()

    return _processes(is_started_here)


def _processes(is_wanted: Callable[[psutil.Process], bool]) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        # Skip processes of other users, and those that have just ended.
        with suppress(psutil.AccessDenied, psutil.NoSuchProcess, OSError):
            if is_wanted(process):
                yield process


def end_processes(processes: list[psutil.Process]) -> None:
    """Terminate processes, and kill those that do not end in time."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=GRACE_SECONDS)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)
