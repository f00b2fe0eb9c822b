"""Collect the results of a run: one row per planned job at least, failures included."""

import json
from pathlib import Path
from typing import Any

from clue.benchmark.config import Benchmark, ConfigError, read_yaml
from clue.benchmark.program import run_program
from clue.benchmark.report.tables import write_table
from clue.benchmark.scores.collect import collect, summary


def main(
    config: str,
    root: Path,
    metrics: Path,
    resources: Path,
    failures: Path,
    project: Path = Path(),
    unavailable: str = "{}",
) -> None:
    """Run the program.

    Parameters
    ----------
    config
        The run's configuration: a file, or JSON as it is.
    root
        The folder that holds results/ and logs/.
    metrics, resources, failures
        Table to write: of scores, of times and memory, of jobs without scores.
    unavailable
        Methods that cannot run, with reasons: JSON.
    """
    benchmark = Benchmark(_read_config(config), project)
    benchmark.unavailable = json.loads(unavailable)
    jobs = benchmark.plan()
    tables = collect(jobs, root)
    write_table(tables.resources, resources)
    write_table(tables.failures, failures)
    write_table(tables.metrics, metrics)
    print("\n".join(summary(tables, len(jobs))))


def _read_config(config: str) -> dict[str, Any]:
    if not config.lstrip().startswith("{"):
        return read_yaml(Path(config))
    try:
        return json.loads(config)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--config: not valid JSON: {error}") from error


if __name__ == "__main__":
    run_program(main)
