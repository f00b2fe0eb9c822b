"""Run the benchmark on this machine and make its report: what `make run` does.

Snakemake does the work. Around it: a lock that a killed run has left is cleared, with the jobs that it left
at work; when jobs fail, what exists is still collected, drawn and reported; the report is made when it is
older than what it shows. The exit status is not 0 if any job failed.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from clue.benchmark.config import Benchmark, read_yaml
from clue.benchmark.errors import BenchmarkError, run_program

MARK = "CLUE_BENCH_FOLDER"
"""An environment variable that rules/common.smk sets: the jobs of a run in this folder are known by it."""
GRACE_SECONDS = 30


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description="Run the benchmark on this machine and make its report.")
    parser.add_argument("--config", type=Path, required=True, help="for instance config/quick.yaml")
    parser.add_argument("--cores", type=int, required=True, help="how many jobs of one thread run at a time")
    parser.add_argument("--download", action="store_true", help="only fetch the raw files")
    arguments = parser.parse_args(argv)
    run = Benchmark(read_yaml(arguments.config), where=str(arguments.config)).config["run"]
    snakemake = Snakemake(arguments.config, arguments.cores)
    if is_lock_stale(Path.cwd()):
        end(list(jobs_at_work(Path.cwd())))
        print("Clearing the lock of a killed run.", flush=True)
        snakemake("all", "--unlock")
    if arguments.download:
        if not snakemake("download", "--keep-going", "--rerun-incomplete"):
            sys.exit("error: some files could not be downloaded; see logs/download, and run again")
        return
    failed = not snakemake("all", "--keep-going", "--rerun-incomplete")
    partial = ["--config", "partial=True"] if failed else []
    if failed:
        print("\nSome jobs failed: collecting and drawing what exists.\n", flush=True)
        if not snakemake("all", "--keep-going", "--rerun-incomplete", "--forcerun", "collect", *partial):
            sys.exit(f"error: nothing could be collected; see logs/{run} and .snakemake/log")
    make_report(snakemake, Path("results", run), partial)
    if failed:
        sys.exit(f"error: some jobs failed; see results/{run}/failures.tsv")


class Snakemake:
    """Snakemake on one configuration, as a command that tells whether it succeeded."""

    def __init__(self, config: Path, cores: int):
        self.command = [sys.executable, "-m", "snakemake", "--configfile", str(config), "--cores", str(cores)]
        # The greedy scheduler needs no solver, and one GPU runs one job at a time.
        self.command += ["--scheduler", "greedy", "--resources", "gpu=1", "--show-failed-logs"]

    def __call__(self, target: str, *options: str) -> bool:
        """Run towards a target; an interrupt or a termination is handed on to Snakemake and its jobs."""
        process = subprocess.Popen([*self.command, *options, "--", target])
        previous = signal.signal(signal.SIGTERM, _exit_terminated)
        try:
            return process.wait() == 0
        except (KeyboardInterrupt, SystemExit) as interrupt:
            if isinstance(interrupt, SystemExit):
                # A terminal interrupts Snakemake too; a termination reaches this process only.
                process.send_signal(signal.SIGINT)
            end(list(jobs_at_work(Path.cwd())))
            process.wait()
            sys.exit(128 + (signal.SIGTERM if isinstance(interrupt, SystemExit) else signal.SIGINT))
        finally:
            signal.signal(signal.SIGTERM, previous)


def _listen_to_interrupts() -> None:
    # A shell starts background commands (`make run &`) with interrupts ignored, and children inherit that:
    # Snakemake would then go on with the next job instead of ending.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _exit_terminated(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


# ---- after a kill --------------------------------------------------------------------------------


def is_lock_stale(folder: Path) -> bool:
    """Tell whether Snakemake's lock is there although no Snakemake is.

    Raises
    ------
    BenchmarkError
        If there is a lock and its owner is alive.
    """
    if not any(folder.glob(".snakemake/locks/*.lock")):
        return False
    for process in snakemakes(folder):
        raise BenchmarkError(
            f"{folder}: another run is at work here (process {process.pid}); wait for its end or interrupt it"
        )
    return True


def jobs_at_work(folder: Path) -> Iterator[psutil.Process]:
    """Yield the processes of jobs of a run in this folder; what was started otherwise is not among them."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder):
                yield process
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
            # Another user's process, or one that has just ended: not a job of ours.
            continue


def snakemakes(folder: Path) -> Iterator[psutil.Process]:
    """Yield every Snakemake at work in this folder, however it was started."""
    for process in psutil.process_iter():
        try:
            # `snakemake ...` or `python -m snakemake ...`
            if process.cwd() == str(folder) and "snakemake" in [Path(word).name for word in process.cmdline()[:3]]:
                yield process
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess, OSError):
            continue


def end(processes: list[psutil.Process]) -> None:
    """Terminate processes, and kill those that do not end in time."""
    for process in processes:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    _, alive = psutil.wait_procs(processes, timeout=GRACE_SECONDS)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=GRACE_SECONDS)


# ---- the report ----------------------------------------------------------------------------------


def make_report(snakemake: Snakemake, results: Path, partial: list[str]) -> None:
    """Make the HTML report if it is older than a figure or a table; say where it is."""
    report = results / "report.html"
    shown = [*results.glob("*.tsv"), *results.glob("figures/*"), *results.glob("tables/*")]
    newest = max((path.stat().st_mtime for path in shown), default=0.0)
    if not report.exists() or report.stat().st_mtime < newest:
        temporary = results / ".report.tmp.html"
        try:
            if not snakemake("all", "--report", str(temporary), *partial):
                raise BenchmarkError(f"{report}: the report could not be made; see the messages above")
            os.replace(temporary, report)
        finally:
            temporary.unlink(missing_ok=True)
    print(f"\nReport: {report.resolve()}", flush=True)


if __name__ == "__main__":
    run_program(main)
