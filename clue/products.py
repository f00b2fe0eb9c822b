"""Products of sparse and dense matrices, a tile of features at a time."""

import numpy as np
import scipy.sparse as sp

from clue.compiled import SUMS, compiled

TILE = 2**16
"""Numbers (256 kB) that fit in a core's cache. All cells use one tile, the dense matrix's rows for some features,
before the next one. Otherwise each non-zero would wait for a row from memory."""


def times(matrix: sp.csr_matrix, block: np.ndarray, rows: slice = slice(None), transposed: bool = False) -> np.ndarray:
    """Return the product of some rows of a sparse matrix, or of their transpose, and a dense matrix.

    Parameters
    ----------
    matrix
        Cells x features, float32. Its indices are sorted in place if they are not sorted.
    block
        Dense factor, shape (n_features, width), or (n_rows, width) for the transpose.
    rows
        Which rows of `matrix`, without a step.
    transposed
        Whether the rows are transposed.

    Returns
    -------
    The product, float32, shape (n_rows, width), or (n_features, width) for the transpose.
    """
    matrix.sort_indices()
    first, last, _ = rows.indices(matrix.shape[0])
    start = matrix.indptr[first : last + 1]
    product = np.zeros((matrix.shape[1] if transposed else len(start) - 1, block.shape[1]), dtype=np.float32)
    block = np.ascontiguousarray(block, dtype=np.float32)
    _add_product(start, matrix.indices, matrix.data, matrix.shape[1], block, transposed, product)
    return product


@compiled(*SUMS, cache=True)
def _add_product(start, feature, value, n_features, block, transposed, product):
    """Add the product to `product`; features must ascend within each row."""
    tile = max(1, TILE // block.shape[1])
    here = start[:-1].copy()
    for first in range(0, n_features, tile):
        for cell in range(len(here)):
            i = here[cell]
            while i < start[cell + 1] and feature[i] < first + tile:
                x = value[i]
                to, of = (feature[i], cell) if transposed else (cell, feature[i])
                for k in range(block.shape[1]):
                    product[to, k] += x * block[of, k]
                i += 1
            here[cell] = i
