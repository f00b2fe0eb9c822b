"""Join the planned grid with the existing results: every planned job has its rows, whether it succeeded or not."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from clue.benchmark.config import Job
from clue.benchmark.running.status import recorded_error, slurm_reason
from clue.benchmark.scores import FAILURES_COLUMNS, IDENTITY_COLUMNS, MEASURED, METRICS_COLUMNS, RESOURCES_COLUMNS


class Tables(NamedTuple):
    """The contents of ``metrics.tsv``, ``resources.tsv`` and ``failures.tsv`` of a run."""

    metrics: pd.DataFrame
    resources: pd.DataFrame
    failures: pd.DataFrame


class NoResult(Exception):
    """A job has no scores to collect; the message is the reason."""


def collect(jobs: list[Job], root: str | Path) -> Tables:
    """Return the tables of a run.

    Parameters
    ----------
    jobs
        The planned grid, as `Benchmark.plan` gives it.
    root
        The folder that holds ``results`` and ``logs``.

    Returns
    -------
    Tables
        ``metrics`` has the scores of each job, or one row with its status and reason; ``resources`` a
        row per job that left a ``run.json``; ``failures`` one per job without scores.
    """
    root = Path(root)
    scores, resources, failures = [], [], []
    for job in jobs:
        try:
            scores += _scores(job, root)
        except NoResult as error:
            status = job.status or "failed"
            scores.append({**_identity(job), "transductive": job.transductive, "status": status, "reason": str(error)})
            log = "" if job.reason else log_path(job, root)
            failures.append({**_identity(job), "status": status, "reason": str(error), "log": log})
        if not job.reason:
            resources += _resources(job, root)
    return Tables(
        pd.DataFrame(scores, columns=METRICS_COLUMNS),
        pd.DataFrame(resources, columns=RESOURCES_COLUMNS).convert_dtypes(),  # keeps epochs whole if some are missing
        pd.DataFrame(failures, columns=FAILURES_COLUMNS),
    )


def log_path(job: Job, root: Path) -> str:
    """Return the log to read, relative to the project: that of scoring if the method succeeded."""
    scoring = f"{job.log}.score.log"
    if (root / job.folder / "embedding.h5ad").exists() and (root / scoring).exists():
        return scoring
    return f"{job.log}.log"


# ---- one job -------------------------------------------------------------------------------------


def _identity(job: Job) -> dict[str, Any]:
    return {column: getattr(job, column) for column in IDENTITY_COLUMNS}


def _scores(job: Job, root: Path) -> list[dict[str, Any]]:
    """Return the rows of a job's ``metrics.tsv``, if they belong to the embedding that is there."""
    if job.reason:
        raise NoResult(job.reason)
    if job.is_scored(root):
        scores = _read_scores(root / job.folder / "metrics.tsv")
        return scores.assign(**_identity(job), transductive=job.transductive).to_dict("records")
    embedding = root / job.folder / "embedding.h5ad"
    if embedding.with_name("metrics.tsv").exists() and embedding.exists():
        raise NoResult("not scored again, since an earlier step failed or the run was ended")
    if embedding.exists():
        raise NoResult(f"not scored; see {log_path(job, root)}")
    if reason := recorded_error(embedding):
        raise NoResult(reason)
    reason = slurm_reason(job.method, (job.dataset, job.split, job.variant, str(job.seed)), root)
    if not (root / f"{job.log}.log").exists():
        raise NoResult(reason or "not run, since an earlier step failed or the run was ended")
    raise NoResult(f"{reason or 'no result'}; see {job.log}.log")


def _read_scores(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, sep="\t", keep_default_na=False, na_values={"value": [""]})
    except (OSError, ValueError) as error:
        raise NoResult(f"metrics.tsv cannot be read ({' '.join(str(error).split())})") from error
    if list(table.columns) != METRICS_COLUMNS or table.empty:
        raise NoResult("metrics.tsv does not have the expected columns, or has no rows; delete it and run again")
    return table


def _resources(job: Job, root: Path) -> list[dict[str, Any]]:
    """Return the contents of a job's ``run.json``. An unreadable file gives empty fields and hides no other results."""
    path = root / job.folder / "run.json"
    if not path.exists():
        return []
    try:
        report = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        report = {}
    found = {key: report.get(key) for key in (*MEASURED, "commit", "date")}
    return [_identity(job) | found | {"epochs": (report.get("info") or {}).get("epochs")}]
