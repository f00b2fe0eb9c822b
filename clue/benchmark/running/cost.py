"""Estimate the cost of a run from its configuration and measured times alone, before anything is downloaded.

Costs are proportional to measured ones. A method that trains in steps takes a time per step, which grows with the
features that it decodes. Everything else takes a time per cell and feature. Early stopping is ignored: the steps are
those asked for.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil, log
from pathlib import Path
from typing import Any

import pandas as pd

from clue.benchmark.config import ORACLE, Benchmark
from clue.benchmark.data.sources import sources
from clue.benchmark.report import tables
from clue.benchmark.running.status import Step

TIMES = Path("docs", "results", "times.tsv")
NUMBERS = ["cells", "features", "steps", "seconds", "setup_seconds", "memory_mb", "disk_mb"]
COLUMNS = ["run", "what", "dataset", "modalities", *NUMBERS, "device", "machine", "command", "commit", "date"]
COSTS = ["jobs", "unknown", "hours", "reserved_hours", "gpu_hours", "reserved_gpu_hours", "disk_gb"]
SCORING = ("score", ORACLE)
"""What reads embeddings, whose size does not depend on the number of features."""
OTHER = "other"
"""Downloads, the tables and the figures, which are not estimated."""
TEST_FRACTION = 0.25
"""Assumed for a split whose YAML gives neither numbers nor a fraction of cells, such as a split by batches."""


# ---- how much there is to do ---------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """How many cells a split has, and how many features of each modality."""

    n_train: int
    n_test: int
    n_features: Mapping[str, int]


def size_of(spec: Mapping[str, Any], split: str | None, max_cells: int | None) -> Size | None:
    """Return the size of a split according to the data set's YAML; None if it does not say enough.

    Parameters
    ----------
    spec
        The checked ``config/datasets/<name>.yaml``, as `clue.benchmark.config.load` returns it.
    split
        The name of the split; None for the data set before it is split.
    max_cells
        As in the run's configuration.
    """
    places = [spec["size"], spec.get("expect", {}), spec.get("prepare", {}).get("arguments", {})]
    keys = ("n_cells", "n_features")
    n_cells, n_features = (next((place[key] for place in places if key in place), None) for key in keys)
    if not n_cells or not n_features:
        return None
    if split is None:
        return Size(n_cells, 0, n_features)
    n_train, n_test = _parts(spec["splits"][split], n_cells)
    numbers = spec.get("expect", {}).get("splits", {}).get(split, {})
    n_train, n_test = numbers.get("n_train", n_train), numbers.get("n_test", n_test)
    share = min(1, max_cells / (n_train + n_test)) if max_cells else 1
    return Size(round(share * n_train), round(share * n_test), n_features)


def _parts(split: Mapping[str, Any], n_cells: int) -> tuple[int, int]:
    for outer in split.get("within", []):
        n_cells = _parts(outer, n_cells)[0]
    n_test = split.get("n_test") or round(split.get("fraction", TEST_FRACTION) * n_cells)
    return split.get("n_train") or n_cells - n_test, n_test


def work_of(size: Size, params: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the cells, features and steps (`Planned`) that determine the time of a job with these hyper-parameters."""
    selected = params.get("n_features") or {}
    features = sum(min(n, selected.get(modality) or n) for modality, n in size.n_features.items())
    return size.n_train + size.n_test, features, _steps(params, size)


def _steps(params: Mapping[str, Any], size: Size) -> int:
    """Return the steps that ``training`` and ``fine_tuning`` ask for.

    The last stage of a transductive method also sees the unpaired test cells.
    """
    transductive = params.get("transductive", False)
    stages = [name for name in ("training", "fine_tuning")[: 1 + transductive] if name in params]
    total = 0
    for stage in stages:
        lengths, cells = params[stage], size.n_train
        if transductive and stage == stages[-1]:
            cells += len(size.n_features) * size.n_test
        per_pass = ceil(cells / lengths.get("batch_size", params["training"].get("batch_size", 128)))
        passes = [lengths[key] for key in ("max_epochs", "n_epochs", "max_passes") if lengths.get(key)]
        limits = [lengths["max_steps"]] if "max_steps" in lengths else []
        total += min(limits + [n * per_pass for n in passes], default=0)
    return max(total, params.get("min_steps", 0)) if stages else 0


# ---- the jobs ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """A job of a run, and how much work it is."""

    step: Step
    what: str
    """Its method, the first word of its rule, or `OTHER`."""
    dataset: str = ""
    modalities: str = ""
    cells: int = 0
    """Training and test cells; 0 for `OTHER`, and if the data set's YAML does not give its size."""
    features: int = 0
    """Summed over modalities; for a method only those that it selects."""
    steps: int = 0
    """Largest number of optimiser steps; 0 if the job does not train in steps."""


def planned(benchmark: Benchmark, steps: Iterable[Step]) -> Iterator[Planned]:
    """Yield how much work each step of a run is."""
    features = benchmark.all_features()
    for step in steps:
        what = step.rule if step.rule in (*benchmark.methods, ORACLE) else step.rule.partition("_")[0]
        if what not in ("prepare", "task", "features", "score", ORACLE, *benchmark.methods):
            yield Planned(step, OTHER)
            continue
        dataset, *rest = step.wildcards
        spec, params = benchmark.datasets[dataset], {}
        if what == "features":
            params = features[step.wildcards[-1]]
        elif what in benchmark.methods:
            params = benchmark.params(what, rest[1], spec["modalities"])
        size = size_of(spec, rest[0] if rest else None, benchmark.config["max_cells"])
        work = work_of(size, params) if size else (0, 0, 0)
        yield Planned(step, what, dataset, "+".join(spec["modalities"]), *work)


# ---- time and disk of the jobs -------------------------------------------------------------------


def costs(jobs: Iterable[Planned], times: pd.DataFrame) -> tuple[pd.DataFrame, dict[Any, list[str]]]:
    """Return the cost of every rule of a run, and the rows of `times` it is based on, with the data sets of their jobs.

    Parameters
    ----------
    jobs
        The jobs of the run, as `planned` yields them.
    times
        The measured times, as `read_times` returns them.

    Returns
    -------
    tuple
        A table by rule: ``jobs``; ``unknown``, the jobs of unknown size or that were never measured, which count as
        reserved only; ``hours`` of one CPU core, or of one GPU if that was measured; ``gpu_hours``, the part of them in
        jobs that hold a GPU; ``reserved_hours`` and ``reserved_gpu_hours``, cores or GPUs times the time that jobs ask
        for; ``disk_gb``.
    """
    rows: list[dict] = []
    used: dict[Any, list[str]] = {}
    for job in jobs:
        step, row = job.step, nearest(times, job) if job.cells else None
        hours = disk = 0.0
        if row is not None:
            hours, disk = seconds(row, job) / 3600, disk_mb(row, job) / 1000
            if job.dataset not in used.setdefault(row, []):
                used[row].append(job.dataset)
        unknown = row is None and job.what != OTHER
        reserved, on_gpu = step.minutes / 60, hours if step.gpus else 0
        costs = [1, unknown, hours, step.cores * reserved, on_gpu, step.gpus * reserved, disk]
        rows.append({"what": job.what} | dict(zip(COSTS, costs, strict=True)))
    return pd.DataFrame(rows, columns=["what", *COSTS]).groupby("what", sort=False).sum(), used


def read_times(root: Path) -> pd.DataFrame:
    """Read ``docs/results/times.tsv``. Empty fields, for instance the steps of a job without training, read as 0."""
    return tables.read_table(root / TIMES, COLUMNS, numeric=NUMBERS).fillna(0)


def nearest(times: pd.DataFrame, job: Planned) -> Any:
    """Return the measured row that is most like a job, as a named tuple; None if its rule was never measured."""

    def likeness(row: Any) -> tuple:
        device = "cuda" if job.step.gpus else "cpu"
        known = (row.device == device, row.dataset == job.dataset, row.modalities == job.modalities)
        return *known, -abs(log(job.features / row.features)), -abs(log(job.cells / row.cells))

    return max(times[times["what"] == job.what].itertuples(), key=likeness, default=None)


def seconds(row: Any, job: Planned) -> float:
    """Return the time of a job, in proportion to a measured row."""
    cells = job.cells / row.cells
    share = job.steps / row.steps if row.steps else cells
    features = 1 if row.what in SCORING else job.features / row.features
    return features * (cells * row.setup_seconds + share * (row.seconds - row.setup_seconds))


def disk_mb(row: Any, job: Planned) -> float:
    """Return the size of a job's output, in proportion to a measured row."""
    cells, features = job.cells / row.cells, job.features / row.features
    if row.what in ("prepare", "task"):  # counts
        return row.disk_mb * cells * features
    if row.what == "features" or row.steps:  # mostly axes, or the weights of a network
        return row.disk_mb * features
    return row.disk_mb * cells  # an embedding


def raw_gb(spec: Mapping[str, Any]) -> float | None:
    """Return the size of the raw files of a data set's first source; None if it is unknown."""
    source = sources(spec)[0]
    if source["kind"] in ("files", "simulated"):
        return 0.0  # linked, or drawn
    sizes = [file.get("size") for file in source["files"].values()] if source["kind"] == "http" else [None]
    return sum(sizes) / 1e9 if all(sizes) else spec["size"].get("download_gb")
