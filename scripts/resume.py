"""Make a folder ready for `snakemake --profile slurm` again after Snakemake was killed: what `make resume` does.

The jobs that it left in Slurm's queue or at work on this machine are ended, since they would write the same
files as those that a new run submits; then its lock is cleared. Finished work and checkpoints are kept.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clue.benchmark.errors import run_program
from clue.benchmark.running.recovery import clear_killed_run


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    argparse.ArgumentParser(description="End the jobs of a killed run in this folder and clear its lock.").parse_args(
        argv
    )
    lines = clear_killed_run(Path.cwd())
    print("\n".join(lines or ["No killed run here."]))
    print("Start the same command again; it goes on where the run was cut short.")


if __name__ == "__main__":
    run_program(main)
