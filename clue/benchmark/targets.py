"""The targets of prediction: which features of a modality are predicted, and on which scale.

The scales are those of openproblems' task "predict modality":

* RNA and ATAC: log(1 + 10⁴ x / n) for a count x in a cell of n counts;
* proteins: log(1 + x / g), where log g is the protein's mean of log(1 + x) over training cells. This is muon's centred
  log-ratio across cells.

When a data set is split, features are chosen and g is computed on the training cells; ``train.h5mu`` holds both.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.errors import BenchmarkError
from clue.sparse import column_sums, per_value, row_sums, with_values

MOST = 1000
"""Limit on predicted features per modality; those of largest variance on their scale, in training cells, are chosen."""
PER_CELL = 1e4
"""Counts per cell to which RNA and ATAC are scaled."""
TARGET, LEVEL = "target", "level"
"""Columns of ``var`` in ``train.h5mu``: whether a feature is predicted, and g (proteins only)."""


@dataclass(frozen=True)
class Targets:
    """The features of a modality that are predicted.

    Parameters
    ----------
    names
        Their names, in the order of a prediction's columns.
    level
        g of each protein; None for other modalities.
    """

    names: pd.Index
    level: np.ndarray | None

    def values(self, cells: ad.AnnData) -> sp.csr_matrix:
        """Return the measured values on the scale of predictions, shape (cells, targets); `cells` holds raw counts."""
        totals = np.maximum(row_sums(cells.X), 1)

        def scaled(block: sp.csr_matrix, rows: slice) -> np.ndarray:
            if self.level is not None:
                return np.log1p(block.data / self.level[block.indices])
            return np.log1p(block.data * per_value(block, PER_CELL / totals[rows]))

        return with_values(cells[:, self.names].X.tocsr(), scaled)

    def of_expected(self, counts: np.ndarray, totals: float | np.ndarray) -> np.ndarray:
        """Bring expected counts of the targets to the scale of predictions.

        Parameters
        ----------
        counts
            Shape (cells, targets).
        totals
            Expected counts summed over all features of the modality: one number per cell, or one for all cells.
        """
        if self.level is not None:
            return np.log1p(counts / self.level)
        return np.log1p(PER_CELL * counts / np.broadcast_to(totals, len(counts))[:, None])


def choose(cells: ad.AnnData, modality: str) -> None:
    """Choose the targets of a modality on its training cells and write them to ``var``."""
    level = None
    if modality == "adt":
        level = np.exp(column_sums(cells.X, np.log1p) / cells.n_obs)
        cells.var[LEVEL] = level
    values = Targets(cells.var_names, level).values(cells)
    variance = column_sums(values, np.square) / cells.n_obs - (column_sums(values) / cells.n_obs) ** 2
    cells.var[TARGET] = False
    chosen = np.argsort(-variance, kind="stable")[: min(MOST, int((variance > 0).sum()))]
    cells.var.iloc[chosen, cells.var.columns.get_loc(TARGET)] = True


def targets_of(train: Mapping[str, ad.AnnData]) -> dict[str, Targets]:
    """Return the targets of each modality of the training cells.

    Raises
    ------
    BenchmarkError
        If ``var`` does not say which features are predicted.
    """
    found = {}
    for modality, cells in train.items():
        if TARGET not in cells.var:
            raise BenchmarkError(f"train.h5mu[{modality}]: var lacks {TARGET!r}; delete the file and run again")
        var = cells.var[cells.var[TARGET].to_numpy(dtype=bool)]
        found[modality] = Targets(var.index, var[LEVEL].to_numpy() if LEVEL in var else None)
    return found
