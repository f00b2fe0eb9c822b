"""Products of sparse and dense matrices, a tile of features at a time."""

import numpy as np
import scipy.sparse as sp

from clue.compiled import SUMS, compiled

TILE = 2**16
"""Numbers of a dense factor, 256 kB, that fit in a core's cache. A product of many cells reads such a tile until all
cells are done with it; where each non-zero fetches its row from memory instead, it takes several times as long."""


@compiled(*SUMS, cache=True)
def _rows_by_block(start, feature, value, block, product):
    """Add the product of a compressed sparse row matrix and `block`, (n_features, width), to `product`.

    Features must ascend within each row.
    """
    tile = max(1, TILE // block.shape[1])
    here = start[:-1].copy()
    for first in range(0, len(block), tile):
        for cell in range(len(product)):
            i = here[cell]
            while i < start[cell + 1] and feature[i] < first + tile:
                x, j = value[i], feature[i]
                for k in range(block.shape[1]):
                    product[cell, k] += x * block[j, k]
                i += 1
            here[cell] = i


@compiled(*SUMS, cache=True)
def _columns_by_block(start, feature, value, block, product):
    """Add the product of the transpose of a compressed sparse row matrix and `block`, (n_cells, width), to `product`.

    Features must ascend within each row.
    """
    tile = max(1, TILE // block.shape[1])
    here = start[:-1].copy()
    for first in range(0, len(product), tile):
        for cell in range(len(block)):
            i = here[cell]
            while i < start[cell + 1] and feature[i] < first + tile:
                x, j = value[i], feature[i]
                for k in range(block.shape[1]):
                    product[j, k] += x * block[cell, k]
                i += 1
            here[cell] = i


def times(matrix: sp.csr_matrix, block: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
    """Return the product of some rows of a float32 matrix and a dense block, float32."""
    start = _starts(matrix, rows)
    product = np.zeros((len(start) - 1, block.shape[1]), dtype=np.float32)
    _rows_by_block(start, matrix.indices, matrix.data, block, product)
    return product


def times_transposed(matrix: sp.csr_matrix, block: np.ndarray, rows: slice = slice(None)) -> np.ndarray:
    """Return the product of the transpose of some rows of a float32 matrix and a dense block, float32."""
    product = np.zeros((matrix.shape[1], block.shape[1]), dtype=np.float32)
    _columns_by_block(_starts(matrix, rows), matrix.indices, matrix.data, block, product)
    return product


def _starts(matrix: sp.csr_matrix, rows: slice) -> np.ndarray:
    """Return where some rows start; what is compiled reads features in ascending order."""
    matrix.sort_indices()
    start, stop, _ = rows.indices(matrix.shape[0])
    return matrix.indptr[start : stop + 1]
