"""Record a finished run in docs/results, the source of the documents' tables and pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clue.benchmark.config import ORACLE, Benchmark, Job, read_yaml
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.program import run_program
from clue.benchmark.report import tables
from clue.benchmark.scores.stats import summarise

RESULTS = Path("docs", "results")
METRICS = tables.MAIN_METRICS
PROBED = ["dataset", "method", "variant", "input_modality", "factor_kind"]
BY_DIRECTION = {
    "pairs": (r"\w+\+\w+", METRICS),
    "predictions": (
        r"\w+2\w+",
        [f"{kind}_{score}" for kind in ("predict", "neighbours") for score in ("pearson_cell", "rmse")],
    ),
}
"""Further files of a run, each with the directions and metrics that it holds: pairs of three modalities, averaged over
both directions, and predictions."""


def main(config: Path) -> None:
    """Run the program in the project folder."""
    for path in record(config):
        print(f"recorded {path}")


def record(config: Path) -> list[Path]:
    """Write the results of a run and return the files written. Rows of jobs that it did not run stay as they are."""
    benchmark = Benchmark(read_yaml(config), where=str(config))
    folder, command = Path("results", benchmark.config["run"]), f"make run CONFIG={config}"
    metrics, resources = tables.read_metrics(folder / "metrics.tsv"), tables.read_resources(folder / "resources.tsv")
    begun = {tuple(vars(job)[key] for key in tables.JOB) for job in benchmark.plan() if is_begun(job)}
    rows = []
    for key, jobs in metrics.groupby(tables.JOB, sort=False):
        job = dict(zip(tables.JOB, key, strict=True))
        row = job | scored(jobs, tables.rows_of(resources, **job), command)
        if job["method"] != ORACLE and (row["n"] or key in begun):  # the oracle is perfect by construction
            rows.append(row)
    if not rows:
        raise BenchmarkError(f"{folder}: holds no result; `{command}` first")
    files = [update(RESULTS / f"{folder.name}.tsv", rows, tables.JOB)]
    probes = folder / "tables" / "factors.tsv"
    if probes.exists():
        found = tables.read_table(probes, [*PROBED, "n", "mean", "sd"], numeric=["mean", "sd"])
        # If only some data sets are simulated, the run is not about what embeddings keep of known factors.
        if set(found["dataset"]) == set(metrics["dataset"]):
            # Nothing can be known about factors that the modality does not show.
            found = found[(found["method"] != ORACLE) & (found["factor_kind"] != "other")]
            rows = [probed(row, resources, command) for row in found.to_dict("records")]
            files.append(update(RESULTS / f"{folder.name}_probes.tsv", rows, PROBED))
    for name, (directions, wanted) in BY_DIRECTION.items():
        if rows := by_direction(metrics[metrics["direction"].str.fullmatch(directions)], wanted, resources, command):
            files.append(update(RESULTS / f"{folder.name}_{name}.tsv", rows, [*tables.JOB, "direction"]))
    return files


def is_begun(job: Job) -> bool:
    """Return whether a job was started or cannot be; for any other job there is nothing to record."""
    return bool(job.reason) or Path(f"{job.log}.log").exists()


def scored(jobs: pd.DataFrame, used: pd.DataFrame, command: str) -> dict:
    """Return a method variant's scores on a split over seeds, their time and memory, and why seeds are missing."""
    found = {metric: tables.scores(jobs, metric) for metric in METRICS}
    main = found[METRICS[0]]
    row = {"n": len(main.values)}
    for metric in METRICS:
        summary = summarise(found[metric].values)
        row |= {metric: summary.mean, f"{metric}_sd": summary.sd}
    row |= used[["seconds", "peak_memory_mb"]].mean().to_dict()
    return row | {"status": main.status, "reason": main.reason} | origin(used, command)


def probed(row: dict, resources: pd.DataFrame, command: str) -> dict:
    """Return R² of one kind of factors over seeds."""
    used = tables.rows_of(resources, **{key: row[key] for key in ("dataset", "method", "variant")})
    values = {"n": row["n"], "r2": row["mean"], "r2_sd": row["sd"]}
    return {key: row[key] for key in PROBED} | values | origin(used, command)


def by_direction(metrics: pd.DataFrame, wanted: Sequence[str], resources: pd.DataFrame, command: str) -> list[dict]:
    """Return scores of single directions over seeds, for jobs that have one of the wanted metrics."""
    found = metrics[metrics["metric"].isin(wanted) & (metrics["method"] != ORACLE) & metrics["value"].notna()]
    rows = []
    for key, jobs in found.groupby([*tables.JOB, "direction"], sort=False):
        row = dict(zip([*tables.JOB, "direction"], key, strict=True)) | {"n": jobs["seed"].nunique()}
        for metric in wanted:
            summary = summarise(tables.rows_of(jobs, metric=metric)["value"])
            row |= {metric: summary.mean, f"{metric}_sd": summary.sd}
        rows.append(row | origin(tables.rows_of(resources, **{name: row[name] for name in tables.JOB}), command))
    return rows


def origin(used: pd.DataFrame, command: str) -> dict[str, str]:
    """Return how some jobs were made: the command, the commits that they ran at, and the last day."""
    commits = dict.fromkeys(used["commit"][used["commit"] != ""])
    return {"command": command, "commit": " ".join(commits), "date": max(used["date"], default="")}


def update(path: Path, rows: list[dict], key: list[str]) -> Path:
    """Replace the rows of a file that have the same key, in their places, and append the others; four digits."""
    new = [{name: as_text(value) for name, value in row.items()} for row in rows]
    old = tables.read_table(path, key).to_dict("records") if path.exists() else []
    merged = {tuple(row[name] for name in key): row for row in [*old, *new]}
    tables.write_table(pd.DataFrame(merged.values()), path)
    return path


def as_text(value: object) -> str:
    """Return a value as text: four significant digits of a float, or nothing if it is NaN."""
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    run_program(main)
