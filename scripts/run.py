"""Run the benchmark and make its report (`make run`).

Snakemake does the work, on this machine or, with a profile, on a cluster. Before that, the lock of a killed run is
cleared, and the jobs that it left at work or in the queue are ended. During the run, Snakemake's log goes to
``logs/<run>/snakemake.log``, and the terminal shows a bar and the jobs in words.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

import pandas as pd

from clue.benchmark.config import Benchmark, read_yaml
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.program import run_program
from clue.benchmark.running.machine import writable_caches
from clue.benchmark.running.progress import Progress
from clue.benchmark.running.recovery import clear_killed_run, end_processes, lock_folder, processes_at_work

PROJECT = Path(__file__).resolve().parents[1]
HERE = ["--scheduler", "greedy", "--resources", "gpu=1", "--show-failed-logs"]
"""Options on this machine. The greedy scheduler needs no solver, and one GPU runs one job at a time."""


def main(config: Path, cores: int | None = None, profile: str = "", download: bool = False) -> None:
    """Run the program.

    Parameters
    ----------
    cores
        On this machine: how many single-thread jobs run at a time.
    profile
        On a cluster: a Snakemake profile, for instance slurm.
    download
        Only download the raw files.
    """
    if (cores is None) == (not profile):
        raise BenchmarkError("give --cores, to run on this machine, or --profile, to run on a cluster")
    if cores is not None and cores < 1:
        raise BenchmarkError(f"--cores: with {cores}, nothing can run; give at least 1 (make run CORES=2)")
    benchmark = Benchmark(read_yaml(config), PROJECT, str(config))
    held = lock_folder(Path.cwd())
    for line in clear_killed_run(Path.cwd()):
        print(line, flush=True)
    progress, name = Progress(benchmark, sys.stderr.isatty()), benchmark.config["run"]
    log = Path("logs", name, "snakemake.log")
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile")]
    command += ["--configfile", str(config)]
    command += ["--profile", profile] if profile else [*HERE, "--cores", str(cores)]
    command += ["--keep-going", "--rerun-incomplete", "--", "downloaded" if download else "all"]
    status = run(command, log, progress, held)
    jobs = "some files could not be downloaded; see logs/download, and run again"
    if not download:
        if not status or progress.n_failed:  # otherwise nothing was started, and the results are of another run
            print_results(Path("results", name))
        jobs = f"some jobs failed; see results/{name}/failures.tsv and {log}"
    for line in progress.last:
        print(line, flush=True)
    if status:
        sys.exit(f"error: {reason(status, progress, log, jobs)}")


def run(command: list[str], log: Path, progress: Progress, held: TextIO) -> int:
    """Run Snakemake to its end, with its output in a log. Interrupts and terminations are passed on to it and its jobs.

    If this process is killed, Snakemake keeps the folder locked through `held`.
    """
    # A user may have set SNAKEMAKE_PROFILE for other workflows, but not for this one.
    environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
    environment |= writable_caches() | {"PYTHONUTF8": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    # Not a pipe: Snakemake would stop with this process, and jobs left by a killed Snakemake would keep it open.
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_listen_to_interrupts,
            env=environment,
            pass_fds=[held.fileno()],
        )
    previous = signal.signal(signal.SIGTERM, _exit_terminated)
    try:
        follow(process, log, progress)
    except (KeyboardInterrupt, SystemExit) as interrupt:
        if isinstance(interrupt, SystemExit):
            # An interrupt from the terminal reaches Snakemake too; a termination reaches only this process.
            process.send_signal(signal.SIGINT)
        end_processes(list(processes_at_work(Path.cwd())))
        process.wait()
        sys.exit(128 + (signal.SIGTERM if isinstance(interrupt, SystemExit) else signal.SIGINT))
    finally:
        progress.close()
        signal.signal(signal.SIGTERM, previous)
    return process.returncode


def follow(process: subprocess.Popen, log: Path, progress: Progress) -> None:
    """Show the lines of a log until its process has ended."""
    with open(log, encoding="utf-8", errors="replace") as lines:
        rest, ended = "", False
        while not ended:
            time.sleep(0.2)
            ended = process.poll() is not None
            *complete, rest = (rest + lines.read()).split("\n")
            for line in complete:
                progress.read(line)


def reason(status: int, progress: Progress, log: Path, jobs: str) -> str:
    """Return why Snakemake failed: a signal, its failed `jobs`, or its own message without the lines about files."""
    if status < 0:
        return f"Snakemake was ended by {signal.Signals(-status).name}; start the same command again"
    if progress.n_failed:
        return jobs
    lines = [line for line in progress.wrong if line and not line.endswith(":") and line[0] != " "]
    return "\n".join(line.removeprefix("error: ") for line in lines) or f"Snakemake has failed; see {log}"


def print_results(folder: Path) -> None:
    """Print the table of scores and the address of the report, if they exist."""
    table, report = folder / "tables" / "summary.tsv", folder / "report.html"
    if table.exists():
        shown = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
        print("\n" + shown.drop(columns=["Note", "Settings"], errors="ignore").to_string(index=False))
    if report.exists():
        print(f"\nReport: {report.resolve()}", flush=True)


def _listen_to_interrupts() -> None:
    # A shell starts background commands (`make run &`) with interrupts ignored, and children inherit that. Snakemake
    # would then go on with the next job instead of ending.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _exit_terminated(*_: object) -> None:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    run_program(main)
