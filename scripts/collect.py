"""Collect the results of a run: at least one row per planned job, including failures."""

from pathlib import Path
from typing import Any

from clue.benchmark.config import Benchmark
from clue.benchmark.program import run_program
from clue.benchmark.report.tables import write_table
from clue.benchmark.scores.collect import collect


def main(
    config: dict[str, Any],
    unavailable: dict[str, str],
    root: Path,
    metrics: Path,
    resources: Path,
    failures: Path,
    project: Path = Path(),
) -> None:
    """Run the program.

    Parameters
    ----------
    config
        The run's configuration (JSON).
    unavailable
        Methods that cannot run, with reasons (JSON).
    root
        The folder that holds results/ and logs/.
    metrics, resources, failures
        Table to write: of scores, of times and memory, or of jobs without scores.
    """
    benchmark = Benchmark(config, project)
    benchmark.unavailable = unavailable
    jobs = benchmark.plan()
    tables = collect(jobs, root)
    write_table(tables.resources, resources)
    write_table(tables.failures, failures)
    write_table(tables.metrics, metrics)
    print(f"collected {len(jobs) - len(tables.failures)} of {len(jobs)} jobs; the others are in {failures}")


if __name__ == "__main__":
    run_program(main)
