"""Published numbers: ``config/reference/*.tsv``, one number a row, each with its source and its evidence.

The split ``site4`` is the private test set of phase 2 of the competition; ``scmmib_*`` are the protocols of SCMMIB. We
have none of ACE's own data sets. Metrics have the same names as in ``metrics.tsv``. A test checks that each row has a
source. Evidence is one of

* ``source``: read in the source code or a data file of the authors or organisers;
* ``reconstructed``: read off a plot, in the way that the note describes;
* ``second-hand``: from somebody else's account of the source;
* ``inferred``: derived from other numbers.
"""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from clue.benchmark.report.tables import read_table, rows_of

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
    """Return the published scores of several files, with a column ``file`` that says where each row is from."""
    found = [read_table(path, SCORES, numeric=["value"]).assign(file=path.name) for path in map(Path, paths)]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=[*SCORES, "file"])


def read_drops(path: str | Path) -> pd.DataFrame:
    """Return the published ablation: by how many percent a score drops without a part of the method."""
    return read_table(path, DROPS, numeric=["drop_percent"])


def competition_scores(metrics: pd.DataFrame, metric: str = "match_score") -> pd.DataFrame:
    """Return a row per method's default variant and seed of this run, indexed by ``method`` and ``seed``.

    There is a column per sub-task, NaN if it has no score, and `OVERALL`, which needs all four sub-tasks.
    """
    found = rows_of(metrics, split=SPLIT, metric=metric, status="ok", variant="default")
    found = found[found["dataset"] == found["direction"].map({key: dataset for key, (dataset, _) in SUBTASKS.items()})]
    scores = found.pivot(index=["method", "seed"], columns="direction", values="value").reindex(columns=list(SUBTASKS))
    return scores.assign(**{OVERALL: scores.mean(axis=1, skipna=False)})
