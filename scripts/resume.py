"""Make a folder ready for `snakemake --profile slurm` after Snakemake was killed (`make resume`).

The jobs that are left in Slurm's queue or at work on this machine are ended, since they would write the same files as
the jobs of a new run. Then the lock is cleared. Finished work and checkpoints are kept.
"""

from pathlib import Path

from clue.benchmark.program import run_program
from clue.benchmark.running.recovery import clear_killed_run


def main() -> None:
    """Run the program."""
    lines = clear_killed_run(Path.cwd())
    print("\n".join(lines or ["No killed run here."]))
    print("Start the same command again; it goes on where the run was cut short.")


if __name__ == "__main__":
    run_program(main)
