"""Principal axes of a sparse matrix: the leading right singular vectors of the matrix, centred or as it is.

A matrix with few rows, or few columns with a value, is decomposed exactly, through the dense matrix of their products.
The axes of a large matrix are found in a block Krylov space (Musco & Musco, NeurIPS 2015). For the same accuracy, this
needs only a fraction of the products with the matrix that a randomised decomposition needs
(`benchmarks/preprocess_scale.py` compares them).
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.linalg
import scipy.sparse as sp

from clue.products import times
from clue.sparse import column_sums, row_blocks

SMALL = 2000
"""Up to this many rows, or columns with a value, all their products are held in a dense matrix."""

GAIN = 0.01
"""The Krylov space grows until `STEPS` further blocks add less than this share to the variance of the axes. Where the
spectrum is flat, as for sparse peaks of few cells, it takes twice as many blocks as where cell types stand out."""

STEPS, MOST_STEPS = 4, 60
"""Number of blocks between two checks of the gain, and the largest number of blocks. A block has a fifth as many
columns as there are axes."""

_ROWS = 8192
"""Rows that a thread multiplies at a time; fixed, so that results do not depend on the number of threads."""

MOST_THREADS = 16
"""Each thread holds a product of the size of a block, so more would take much memory."""


def principal_axes(matrix: sp.csr_matrix, n_axes: int, centred: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the centre, which is subtracted from each row, and the leading axes.

    Parameters
    ----------
    matrix
        Cells x features, float32. Its indices are sorted in place if they are not sorted.
    n_axes
        Number of axes; less if there are fewer rows, or fewer columns with a value.
    centred
        Whether the columns' means are subtracted; the matrix stays sparse.
    seed
        Seed of the first block of a Krylov space; small matrices need none.

    Returns
    -------
    centre
        Means of the columns, or zeros, shape (n_features,), float64.
    axes
        Orthonormal columns in descending order of variance, shape (n_features, n_axes), float32. The entry of each
        axis with the largest absolute value is positive.
    """
    matrix.sort_indices()  # now, since otherwise several threads would sort at the same time
    n_rows, n_columns = matrix.shape
    used = column_sums(matrix, np.abs) > 0  # columns of zeros contribute to no axis
    used[0] |= not used.any()  # if all are zeros, the first one is the axis
    n_axes = max(1, min(n_axes, n_rows - 1, int(used.sum()) - 1))
    centre = column_sums(matrix) / n_rows if centred else np.zeros(n_columns)
    if used.sum() <= SMALL:
        axes = _through_columns(matrix, centre, used, n_axes)
    elif n_rows <= SMALL:
        axes = _through_rows(matrix, centre, n_axes)
    else:
        axes = _krylov(matrix, centre, used, n_axes, seed)
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(n_axes)]
    return centre, np.ascontiguousarray(axes * np.sign(largest), dtype=np.float32)


def _through_columns(matrix: sp.csr_matrix, centre: np.ndarray, used: np.ndarray, n_axes: int) -> np.ndarray:
    products = np.zeros((used.sum(), used.sum()))
    for block in row_blocks(matrix):
        dense = block[:, used].toarray() - centre[used]
        products += dense.T @ dense
    axes = np.zeros((len(used), n_axes))
    axes[used] = np.linalg.eigh(products)[1][:, : -n_axes - 1 : -1]
    return axes


def _through_rows(matrix: sp.csr_matrix, centre: np.ndarray, n_axes: int) -> np.ndarray:
    exact = matrix.astype(np.float64)
    products = (exact @ exact.T).toarray()
    shift = exact @ centre
    products += centre @ centre - shift[:, None] - shift
    sides = np.linalg.eigh(products)[1][:, : -n_axes - 1 : -1]
    return np.linalg.qr(exact.T @ sides - np.outer(centre, sides.sum(axis=0)))[0]


def _krylov(matrix: sp.csr_matrix, centre: np.ndarray, used: np.ndarray, n_axes: int, seed: int) -> np.ndarray:
    """Search the space of X, CX, C²X … for the eigenvectors of C = AᵀA, where X is random and A is centred."""
    width = max(10, -(-n_axes // 5))
    most = min(MOST_STEPS, min(matrix.shape[0], int(used.sum())) // width)
    block = np.random.default_rng(seed).standard_normal((matrix.shape[1], width), dtype=np.float32)
    block[~used] = 0
    # A column takes memory only once it is written, so allocating the largest number costs nothing.
    basis = np.empty((matrix.shape[1], most * width), dtype=np.float32, order="F")
    projected = np.empty((0, 0))
    variance = 0.0
    for step in range(1, most + 1):
        n = step * width
        block = _orthonormal(block, basis[:, : n - width])
        basis[:, n - width : n] = block
        block = _covariance_times(matrix, centre, block)
        # the new columns of C in the basis; eigh reads only the upper triangle
        projected = np.pad(projected, (0, width))
        projected[:, -width:] = basis[:, :n].T @ block
        if step == most or (step % STEPS == 0 and n >= 2 * n_axes):
            values, vectors = scipy.linalg.eigh(projected, lower=False, subset_by_index=[n - n_axes, n - 1])
            before, variance = variance, values.sum()
            if variance <= (1 + GAIN) * before:
                break
    return basis[:, :n] @ vectors[:, ::-1].astype(np.float32)


def _orthonormal(block: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return orthonormal columns, also to those of `basis`, that span the same new directions as `block`."""
    # The first pass leaves rounding errors along the basis, and the second removes them. If the basis nearly spans the
    # block, little but errors is left after the first. Then the second pass shrinks a column, and another is needed.
    for attempt in range(5):
        block, sizes = np.linalg.qr(block - basis @ (basis.T @ block))
        if attempt and np.abs(np.diag(sizes)).min() > 0.5:
            break
    return block


def _covariance_times(matrix: sp.csr_matrix, centre: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Return AᵀA · block, where A is the centred matrix."""
    total = np.zeros(block.shape, dtype=np.float64)

    def part(start: int) -> np.ndarray:
        rows = slice(start, start + _ROWS)
        return times(matrix, times(matrix, block, rows), rows, transposed=True)

    with ThreadPoolExecutor(n_threads()) as threads:
        for product in threads.map(part, range(0, matrix.shape[0], _ROWS)):
            total += product
    total -= np.outer(centre, matrix.shape[0] * (centre @ block))
    return total.astype(np.float32)


def n_threads() -> int:
    """Return the first number in OMP_NUM_THREADS or, without it, the number of cores that this process may use."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if given.isdecimal() and int(given):
        return min(int(given), MOST_THREADS)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, MOST_THREADS)
