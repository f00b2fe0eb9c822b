"""Collect the results of a run: one row per planned job at least, failures included."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clue.benchmark.config import Benchmark, ConfigError, read_yaml
from clue.benchmark.errors import run_program
from clue.benchmark.report.tables import write_table
from clue.benchmark.scores.collect import collect, summary


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="the run's configuration: a file, or JSON as it is")
    parser.add_argument("--project", type=Path, default=".", help="the project folder, which holds config/")
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds results/ and logs/")
    parser.add_argument(
        "--unavailable", type=json.loads, default={}, help="methods that cannot run, with reasons: JSON"
    )
    parser.add_argument("--metrics", type=Path, required=True, help="table of scores to write")
    parser.add_argument("--resources", type=Path, required=True, help="table of times and memory to write")
    parser.add_argument("--failures", type=Path, required=True, help="table of jobs without scores to write")
    arguments = parser.parse_args(argv)

    benchmark = Benchmark(_read_config(arguments.config), arguments.project)
    benchmark.unavailable = arguments.unavailable
    jobs = benchmark.plan()
    tables = collect(jobs, arguments.root)
    write_table(tables.resources, arguments.resources)
    write_table(tables.failures, arguments.failures)
    write_table(tables.metrics, arguments.metrics)
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
