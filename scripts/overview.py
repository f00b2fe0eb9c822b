"""Print a run as one table: method × data set × (match score, FOSCTTM, seconds, peak memory), mean ± sd over seeds."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clue.benchmark import style, tables
from clue.benchmark.errors import run_program
from clue.benchmark.stats import summarise

DISPLAY = Path(__file__).parents[1] / "config" / "display.yaml"
METRICS = {"match_score": "match score ↑", "foscttm": "FOSCTTM ↓"}
MEASURED = {"seconds": "seconds", "peak_memory_mb": "peak memory (MB)"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="the folder of a run, for instance results/full")
    parser.add_argument("--display", type=Path, default=DISPLAY, help="labels and order")
    arguments = parser.parse_args(argv)
    metrics = tables.read_metrics(arguments.results / "metrics.tsv")
    resources = tables.read_resources(arguments.results / "resources.tsv")
    print(markdown(overview(metrics, resources, style.Display(arguments.display))))


def overview(metrics: pd.DataFrame, resources: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return a row per data set, split and method variant; a cell without values says why."""
    records = []
    for dataset, split in tables.panels(metrics):
        here = tables.rows_of(metrics, dataset=dataset, split=split)
        for method in display.order("methods", here["method"]):
            jobs = tables.rows_of(here, method=method)
            for variant in display.order("variants", jobs["variant"]):
                job = {"dataset": dataset, "split": split, "method": method, "variant": variant}
                scored, used = tables.rows_of(jobs, variant=variant), tables.rows_of(resources, **job)
                record = {"data set": f"{dataset}/{split}", "method": display.name(method, variant)}
                record |= {label: score(scored, metric) for metric, label in METRICS.items()}
                records.append(record | {label: number(used[column]) for column, label in MEASURED.items()})
    return pd.DataFrame(records)


def score(jobs: pd.DataFrame, metric: str) -> str:
    """Return a metric over seeds, or the status and its reason."""
    found = tables.scores(jobs, metric)
    lost = f" ({len(found.values)} of {found.planned} seeds)" if 0 < len(found.values) < found.planned else ""
    return number(found.values) + lost if len(found.values) else f"{found.status}: {found.reason}"


def number(values: pd.Series) -> str:
    """Return ``mean ± sd``."""
    summary = summarise(values)
    return str(summary) if summary.n else "–"


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    rows = [list(table), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in row) + " |" for row in rows)


if __name__ == "__main__":
    run_program(main)
