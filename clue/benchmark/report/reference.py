"""Published numbers: ``config/reference/*.tsv``, one number a row, each with its source and its evidence.

The split ``site4`` is the private test set of phase 2 of the competition; ``scmmib_*`` are the protocols of SCMMIB. We
have none of ACE's own data sets. Metrics have the same names as in ``metrics.tsv``. Evidence is one of

* ``source``: read in the source code or a data file of the authors or organisers;
* ``reconstructed``: read off a plot, in the way that the note describes;
* ``second-hand``: from somebody else's account of the source;
* ``inferred``: derived from other numbers.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.report.tables import read_table, rows_of

EVIDENCE = ("source", "reconstructed", "second-hand", "inferred")
KEY = ["method", "dataset", "split", "direction", "metric"]
SCORES = ["method", "label", "dataset", "split", "direction", "metric", "value", "source", "evidence", "note"]
DROPS = ["method", "metric", "variant", "drop_percent", "source", "evidence", "note"]

SPLIT = "site4"
"""The private test set of phase 2: all cells of site 4."""
SUBTASKS = {
    "adt2rna": ("bmmc_cite", "ADT → RNA"),
    "rna2adt": ("bmmc_cite", "RNA → ADT"),
    "atac2rna": ("bmmc_multiome", "ATAC → RNA"),
    "rna2atac": ("bmmc_multiome", "RNA → ATAC"),
}
"""By direction of a sub-task: its data set and its name."""
OVERALL = "overall"
"""The direction that stands for the mean of the four sub-tasks."""


def read_published(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Return the published scores of several files, with a column ``file`` that says where each row is from.

    Raises
    ------
    BenchmarkError
        If a column is missing or unknown, a value is not a number, or a row lacks its source or evidence.
    """
    found = [_read(path, SCORES, "value", KEY).assign(file=path.name) for path in map(Path, paths)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*SCORES, "file"])


def read_drops(path: str | Path) -> pd.DataFrame:
    """Return the published ablation: by how many percent a score drops without a part of the method."""
    return _read(Path(path), DROPS, "drop_percent", ["method", "metric", "variant"])


def _read(path: Path, columns: list[str], number: str, key: list[str]) -> pd.DataFrame:
    table = read_table(path, columns, numeric=[number])
    if unknown := [column for column in table if column not in columns]:
        raise BenchmarkError(f"{path}: unknown column {unknown[0]!r}; known: {', '.join(columns)}")
    for column in columns:
        if column not in (number, "note"):
            _check(table[column] != "", f"{column} is empty", path)
    _check(np.isfinite(table[number]), f"{number} is not a number", path)
    _check(table["evidence"].isin(EVIDENCE), f"evidence is not one of {', '.join(EVIDENCE)}", path)
    _check(~table.duplicated(key), f"{', '.join(key)} are the same as on an earlier line", path)
    return table


def _check(good: pd.Series, fault: str, path: Path) -> None:
    bad = np.flatnonzero(~good.to_numpy())
    if len(bad):
        raise BenchmarkError(f"{path}: line {bad[0] + 2}: {fault}")  # line 1 is the header


def competition_scores(metrics: pd.DataFrame, metric: str = "match_score") -> pd.DataFrame:
    """Return a row per method's default variant and seed of this run, indexed by ``method`` and ``seed``.

    There is a column per sub-task, NaN if it has no score, and `OVERALL`, which needs all four sub-tasks.
    """
    found = rows_of(metrics, split=SPLIT, metric=metric, status="ok", variant="default")
    found = found[found["dataset"] == found["direction"].map({key: dataset for key, (dataset, _) in SUBTASKS.items()})]
    scores = found.pivot(index=["method", "seed"], columns="direction", values="value").reindex(columns=list(SUBTASKS))
    return scores.assign(**{OVERALL: scores.mean(axis=1, skipna=False)})
