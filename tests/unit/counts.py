"""Mini-batches of counts for tests."""

import torch

from clue.likelihood import SparseCounts


def sparse_counts(dense: torch.Tensor) -> SparseCounts:
    """Return a dense (cells × features) matrix as sparse counts."""
    cell, feature = dense.nonzero(as_tuple=True)
    log_factorial = torch.lgamma(dense + 1).sum(1)
    return SparseCounts(cell, feature, dense[cell, feature], dense.sum(1), log_factorial, dense.shape[1])
