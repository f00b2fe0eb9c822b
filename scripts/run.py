"""Run the benchmark and make its report: what `make run` does.

Snakemake does the work, on this machine or, with a profile, on a cluster. Around it: a lock that a killed run
has left is cleared, with the jobs that it left at work or in the queue; when jobs fail, what exists is still
collected, drawn and reported. The exit status is not 0 if any job failed.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from clue.benchmark.cluster import slurm_site
from clue.benchmark.config import Benchmark, read_yaml
from clue.benchmark.errors import run_program
from clue.benchmark.machine import require_gpu, require_slurm, writable_caches
from clue.benchmark.recovery import clear_killed_run, end, processes_at_work

PROJECT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description="Run the benchmark and make its report.")
    parser.add_argument("--config", type=Path, required=True, help="for instance config/quick.yaml")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cores", type=int, help="on this machine: how many jobs of one thread run at a time")
    where.add_argument("--profile", help="on a cluster: a Snakemake profile, for instance slurm")
    parser.add_argument("--download", action="store_true", help="only fetch the raw files")
    arguments = parser.parse_args(argv)
    benchmark = Benchmark(read_yaml(arguments.config), PROJECT, str(arguments.config))
    benchmark.check_pairs()
    run = benchmark.config["run"]
    if not arguments.download:
        check_machine(benchmark, arguments.profile)
    snakemake = Snakemake(arguments.config, arguments.cores, arguments.profile)
    for line in clear_killed_run(Path.cwd()):
        print(line, flush=True)
    if arguments.download:
        if not snakemake("download", "--keep-going", "--rerun-incomplete"):
            sys.exit("error: some files could not be downloaded; see logs/download, and run again")
        return
    failed = not snakemake("all", "--keep-going", "--rerun-incomplete")
    if failed:
        print("\nSome jobs failed: collecting and drawing what exists.\n", flush=True)
        if not snakemake(
            "all", "--keep-going", "--rerun-incomplete", "--forcerun", "collect", "--config", "partial=True"
        ):
            sys.exit(f"error: nothing could be collected; see logs/{run} and .snakemake/log")
    print(f"\nReport: {Path('results', run, 'report.html').resolve()}", flush=True)
    if failed:
        sys.exit(f"error: some jobs failed; see results/{run}/failures.tsv")


def check_machine(benchmark: Benchmark, profile: str | None) -> None:
    """Refuse a run whose jobs would all fail, before each is tried and what exists is collected."""
    if profile and Path(profile).name == "slurm":
        require_slurm()
        slurm_site()
    elif not profile:
        missing = [
            job for job in benchmark.plan() if not job.reason and not Path(job.folder, "embedding.h5ad").exists()
        ]
        if any(benchmark.gpus(job.method) for job in missing):
            require_gpu()


class Snakemake:
    """Snakemake on one configuration, as a command that tells whether it succeeded."""

    def __init__(self, config: Path, cores: int | None, profile: str | None):
        self.command = [sys.executable, "-m", "snakemake", "--snakefile", str(PROJECT / "Snakefile")]
        self.command += ["--configfile", str(config)]
        # A user who sets it for other workflows has not asked for it here.
        self.environment = {key: value for key, value in os.environ.items() if key != "SNAKEMAKE_PROFILE"}
        self.environment |= writable_caches()
        if profile:
            self.command += ["--profile", profile]
        else:
            # The greedy scheduler needs no solver, and one GPU runs one job at a time.
            self.command += ["--cores", str(cores), "--scheduler", "greedy", "--resources", "gpu=1"]
            self.command += ["--show-failed-logs"]

    def __call__(self, target: str, *options: str) -> bool:
        """Run towards a target; an interrupt or a termination is handed on to Snakemake and its jobs."""
        command = [*self.command, *options, "--", target]
        process = subprocess.Popen(command, preexec_fn=_listen_to_interrupts, env=self.environment)
        previous = signal.signal(signal.SIGTERM, _exit_terminated)
        try:
            return process.wait() == 0
        except (KeyboardInterrupt, SystemExit) as interrupt:
            if isinstance(interrupt, SystemExit):
                # A terminal interrupts Snakemake too; a termination reaches this process only.
                process.send_signal(signal.SIGINT)
            end(list(processes_at_work(Path.cwd())))
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


if __name__ == "__main__":
    run_program(main)
