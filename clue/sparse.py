"""Sparse counts in one form, read a few rows at a time, in memory or mapped from a file."""

from collections.abc import Callable, Iterator

import anndata as ad
import numpy as np
import scipy.sparse as sp

from clue.disk import as_type, fill, filled, is_mapped, mapped

BLOCK = 1024
"""Cells that are read, or made dense, at a time. Dense blocks take memory in addition to the counts."""


def row_blocks(matrix) -> Iterator[sp.csr_matrix]:
    """Yield all rows in blocks; `matrix` may be sparse, dense, or in a file (`X` of a backed AnnData)."""
    if sp.issparse(matrix):
        matrix = matrix.tocsr()  # taking rows from a matrix stored by columns is an order of magnitude slower
    for start in range(0, matrix.shape[0], BLOCK):
        yield _as_csr(matrix[start : start + BLOCK])


def _as_csr(matrix) -> sp.csr_matrix:
    """Return a sparse or dense matrix as CSR; float16 becomes float32, since scipy's matrices have no float16."""
    return sp.csr_matrix(matrix.astype(np.float32) if matrix.dtype == np.float16 else matrix)


def as_counts(matrix) -> sp.csr_matrix:
    """Return a matrix, which may be in a file, as CSR in float32 that stores each entry once.

    It shares the memory of `matrix` if that has this form already.
    """
    counts = _as_csr(matrix if sp.issparse(matrix) or isinstance(matrix, np.ndarray) else matrix[:])
    canonical = counts.has_canonical_format
    # before duplicates are summed, since 8 bits hold at most 255
    if counts.dtype != np.float32:
        parts = as_type(counts.data, np.float32), counts.indices, counts.indptr
        counts = sp.csr_matrix(parts, shape=counts.shape)
    if not canonical:
        counts = counts.copy()
        counts.sum_duplicates()
    return counts


def are_counts(values: np.ndarray) -> np.ndarray:
    """Return, for each value, whether it is a whole number from 0 up."""
    return np.isfinite(values) & (values >= 0) & (values == np.round(values))


def count_blocks(matrix, modality: str, adata: ad.AnnData) -> Iterator[sp.csr_matrix]:
    """Yield all rows in blocks, in the form of `as_counts`.

    Raises
    ------
    ValueError
        If `matrix`, X of `adata`, does not hold counts; the message names the modality, and any layer that holds some.
    """
    if matrix is None:
        raise ValueError(f"{modality}: there is no X, which must hold raw counts{_counts_elsewhere(adata)}")
    if matrix.dtype.kind not in "buif":
        found = f"{modality}: X must hold raw counts, whole numbers from 0 up, not values of type {matrix.dtype}"
        raise ValueError(found + _counts_elsewhere(adata))
    for block in row_blocks(matrix):
        values = block.data
        wrong = ~are_counts(values)
        if wrong.any():
            found = f"{modality}: X must hold raw counts, whole numbers from 0 up, not {values[wrong][0]}"
            raise ValueError(found + _counts_elsewhere(adata))
        yield as_counts(block)


def _counts_elsewhere(adata: ad.AnnData) -> str:
    """Say where else counts seem to be, judging by some cells; empty if nowhere."""
    places = {f"layers[{name!r}]: give layer={name!r}": matrix for name, matrix in adata.layers.items()}
    if adata.raw is not None:
        places["raw: give adata.raw.to_adata()"] = adata.raw.X
    for place, matrix in places.items():
        if matrix.dtype.kind in "buif" and are_counts(_as_csr(matrix[:100]).data).all():
            return f"; there are counts in {place}"
    return ""


def row_sums(matrix: sp.csr_matrix, function: Callable[[np.ndarray], np.ndarray] = np.positive) -> np.ndarray:
    """Return the sum of each row, or of a function of its non-zeros, summed in float64."""
    parts = (
        np.bincount(per_value(block, np.arange(block.shape[0])), function(block.data.astype(float)), block.shape[0])
        for block in row_blocks(matrix)
    )
    return np.concatenate([np.zeros(0), *parts])


def column_sums(matrix: sp.csr_matrix, function: Callable[[np.ndarray], np.ndarray] = np.positive) -> np.ndarray:
    """Return the sum of each column, or of a function of its non-zeros, summed in float64.

    scipy's ``sum`` adds float32 in float32, whatever `dtype` it is given, and so loses values that are small compared
    with the sum.
    """
    sums = np.zeros(matrix.shape[1])
    for block in row_blocks(matrix):
        sums += np.bincount(block.indices, function(block.data.astype(float)), matrix.shape[1])
    return sums


def columns(matrix: sp.csr_matrix, chosen: np.ndarray) -> sp.csr_matrix:
    """Return the columns `chosen`, mapped if `matrix` is; if these are all columns in order, `matrix` itself."""
    if np.array_equal(chosen, np.arange(matrix.shape[1])):
        return matrix
    if is_mapped(matrix.data):
        return mapped((_some(block, chosen) for block in row_blocks(matrix)), len(chosen))
    return _some(matrix, chosen)


def _some(matrix: sp.csr_matrix, chosen: np.ndarray) -> sp.csr_matrix:
    matrix = matrix[:, chosen]
    # otherwise the order of features would change the order of sums
    matrix.sort_indices()
    return matrix


def per_value(block: sp.csr_matrix, of_row: np.ndarray) -> np.ndarray:
    """Return, for each non-zero, the number that `of_row` holds for its row."""
    return np.repeat(of_row, np.diff(block.indptr))


def with_values(
    matrix: sp.csr_matrix, values: Callable[[sp.csr_matrix, slice], np.ndarray], overwrite: bool = False
) -> sp.csr_matrix:
    """Return a float32 matrix with new values and the same pattern, whose memory is shared.

    `values` gets some rows and their slice, and returns their new values. `overwrite` says that the old values are no
    longer needed: the new ones replace them if they are of the same type.
    """
    slices = (slice(start, start + BLOCK) for start in range(0, matrix.shape[0], BLOCK))
    parts = (values(matrix[rows], rows) for rows in slices)
    if overwrite and matrix.data.dtype == np.float32:
        fill(matrix.data, parts)
        return matrix
    data = filled(parts, matrix.nnz, np.float32, is_mapped(matrix.data))
    return sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)
