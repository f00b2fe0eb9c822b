"""Read the tidy tables of a run; write the tables that stand beside its figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from clue.benchmark.config import MODALITIES
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.files import atomic
from clue.benchmark.scores import JOB as JOB
from clue.benchmark.scores import METRICS_COLUMNS, RESOURCES_COLUMNS

MAIN_METRICS = ("match_score", "foscttm")
QUANTITIES = {"seconds": "Run time (s)", "peak_memory_mb": "Peak memory (MB)", "gpu_memory_mb": "Peak GPU memory (MB)"}


# ---- reading and writing -------------------------------------------------------------------------


def read_table(path: str | Path, columns: Sequence[str], numeric: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of tab-separated text; empty fields stay empty text, or NaN in `numeric` columns."""
    path = Path(path)
    if not path.exists():
        raise BenchmarkError(f"{path}: no such file; collect the run first")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError) as error:
        raise BenchmarkError(f"{path}: cannot be read ({error}); delete it and run again") from error
    if missing := [column for column in columns if column not in table]:
        raise BenchmarkError(f"{path}: lacks the column {', '.join(missing)}; delete it and run again")
    for column in numeric:
        try:
            table[column] = pd.to_numeric(table[column].where(table[column] != ""))
        except ValueError as error:
            raise BenchmarkError(f"{path}: column {column}: {error}") from error
    return table


def read_metrics(path: str | Path) -> pd.DataFrame:
    """Read ``metrics.tsv``, which has at least one row for every planned job."""
    table = read_table(path, METRICS_COLUMNS, numeric=["value"])
    if table.empty:
        raise BenchmarkError(f"{path}: has no rows; collect the run again")
    return table


def read_resources(path: str | Path) -> pd.DataFrame:
    """Read ``resources.tsv``."""
    return read_table(path, RESOURCES_COLUMNS, numeric=["seconds", "peak_memory_mb", "gpu_memory_mb"])


def read_cells(folder: str | Path, *job: str) -> pd.DataFrame | None:
    """Read a job's scores per pair, averaged over both directions; None if there is no file.

    Parameters
    ----------
    folder
        ``results/<run>``.
    job
        Data set, split, method, variant and seed.
    """
    *names, seed = job
    path = Path(folder, *names, f"seed-{seed}", "cells.tsv.gz")
    if not path.exists():
        return None
    columns = ["pair", *MAIN_METRICS]
    return read_table(path, columns, numeric=columns).groupby("pair")[list(MAIN_METRICS)].mean()


def read_facts(path: str | Path) -> dict:
    """Return ``uns`` of a file, its number of cells and the shapes of its modalities, without reading counts."""
    from anndata.io import read_elem  # here, since most programs that read tables need no anndata

    try:
        with h5py.File(path) as file:
            modalities = [name for name in MODALITIES if name in file.get("mod", ())]
            shapes = {name: file["mod"][name]["X"].attrs["shape"] for name in modalities}
            return read_elem(file["uns"]) | {"n_cells": len(read_elem(file["obs"])), "shapes": shapes}
    except (OSError, KeyError) as error:
        raise BenchmarkError(f"{path}: cannot be read ({error}); delete it and run again") from error


def write_table(table: pd.DataFrame, path: str | Path, digits: int | None = None) -> None:
    """Write tab-separated text. Missing values are empty, and `digits` is the number of significant digits.

    A path that ends in ``.gz`` is compressed; the same table gives the same bytes.
    """
    compression = {"method": "gzip", "mtime": 1} if Path(path).suffix == ".gz" else None
    with atomic(path) as temporary:
        float_format = f"%.{digits}g" if digits else None
        table.to_csv(temporary, sep="\t", index=False, float_format=float_format, compression=compression)


# ---- looking up ----------------------------------------------------------------------------------


def panels(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the pairs of data set and split, in the order of the table."""
    return list(dict.fromkeys(zip(table["dataset"], table["split"], strict=True)))


def rows_of(table: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    """Return the rows whose columns hold the values given, as in ``rows_of(table, method="cca")``."""
    keep = np.ones(len(table), dtype=bool)
    for column, value in wanted.items():
        keep &= (table[column] == value).to_numpy()
    return table[keep]


def keyed(table: pd.DataFrame) -> pd.DataFrame:
    """Return a copy with the columns that figures group by: ``row`` (method/variant) and ``panel`` (data set/split)."""
    return table.assign(row=table["method"] + "/" + table["variant"], panel=table["dataset"] + "/" + table["split"])


def with_pairs(metrics: pd.DataFrame) -> pd.DataFrame:
    """Make each pair of more than two modalities a split of its own, after its split.

    A pair's split is called ``<split> rna+atac``, and its direction ``both`` is the mean of its two directions. The
    original split keeps only its own ``both``, the mean over pairs. A job without scores has a row in each.
    """
    if not metrics["direction"].str.contains("+", regex=False).any():
        return metrics
    parts = []
    for (_, split), rows in metrics.groupby(["dataset", "split"], sort=False):
        pairs = [direction for direction in rows["direction"].unique() if "+" in direction]
        whole = rows["direction"].isin(["both", ""])
        parts.append(rows[whole] if pairs else rows)
        for pair in pairs:
            first, second = pair.split("+")
            here = rows[rows["direction"].isin(["", f"{first}2{second}", f"{second}2{first}", pair])]
            parts.append(here.assign(split=f"{split} {pair}", direction=here["direction"].replace(pair, "both")))
    return pd.concat(parts, ignore_index=True)


def values_of(metrics: pd.DataFrame, wanted: Sequence[str]) -> pd.DataFrame:
    """Return the finite values of some metrics, averaged over both directions, with the columns that `keyed` adds."""
    found = rows_of(metrics, direction="both", status="ok")
    return keyed(found[found["metric"].isin(wanted) & np.isfinite(found["value"])])


@dataclass(frozen=True)
class Scores:
    """One metric of a method's variant on one split, over seeds."""

    values: pd.Series
    """Finite values, indexed by seed."""
    planned: int
    """How many seeds were planned."""
    status: str
    """``ok`` if every planned seed has a value; else ``failed``, ``unsupported``, ``unavailable`` or ``n/a``."""
    reason: str
    """Why a seed has no value; if all have one, ``by pairs`` or empty."""


def scores(jobs: pd.DataFrame, metric: str, direction: str = "both") -> Scores:
    """Look up a metric in the rows of one method variant on one split.

    If a seed has no finite value, the status is that of the first row of such seeds that is not ``ok``, or ``n/a``.
    """
    found = rows_of(jobs, metric=metric, direction=direction, status="ok")
    found = found[np.isfinite(found["value"])].drop_duplicates("seed").set_index("seed")
    lost = jobs[~jobs["seed"].isin(found.index)]
    failed = lost[lost["status"] != "ok"]
    if jobs.empty:
        status, reason = "n/a", "not part of this run"
    elif lost.empty:
        status, reason = "ok", found["reason"].iloc[0]
    elif failed.empty:
        status, reason = "n/a", f"{metric} has no finite value"
    else:
        status, reason = failed["status"].iloc[0], failed["reason"].iloc[0] or "no reason given"
    return Scores(found["value"], jobs["seed"].nunique(), status, reason)


def changes(split: pd.DataFrame, method: str, variant: str, metric: str) -> tuple[pd.Series, str]:
    """Return by how many percent a variant changes a score, or why that is unknown.

    Parameters
    ----------
    split
        The rows of one data set and split.
    method, variant, metric
        The variant is compared with the default variant of its method.

    Returns
    -------
    tuple
        The changes, indexed by the seeds that both have, and the reason if there are none.
    """
    full, part = (scores(rows_of(split, method=method, variant=name), metric) for name in ("default", variant))
    values = (100 * (part.values - full.values) / full.values[full.values != 0]).dropna()
    if len(values):
        return values, ""
    reasons = [f"{name}: {found.reason}" for name, found in (("default", full), (variant, part)) if found.reason]
    return values, [*reasons, "no seed in common, or the full method is at 0"][0]
