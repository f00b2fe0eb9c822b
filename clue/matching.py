"""Match two embeddings: entry (i, j) of the sparse match matrix is the weight that cell i of x is cell j of y.

All matchings compare cells by the embedding's metric (see `as_points`; cosine compares only directions). If batches are
given, cells match only within a batch. Every row sums to 1.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.checks import checked

Metric = Literal["cosine", "euclidean"]
METRICS: tuple[Metric, ...] = ("cosine", "euclidean")

MAX_TRANSPORT_ENTRIES = 200_000_000
"""Most entries of the dense plan that `match_ot` makes for one batch (about 3 GB at its peak)."""

MAX_MATCHES_PER_CELL = 1000
"""The competition allows this many entries per row on average."""


_REBUILD_EVERY = 10  # iterations of Sinkhorn's algorithm
_SMALLEST = np.float32(1e-30)


class BatchTooLarge(ValueError):
    """A batch has too many cells for a matching that needs a dense matrix."""


# ---- the matchings -------------------------------------------------------------------------------


@checked
def match_snn(x, y, k: int = 1, batch_x=None, batch_y=None, metric: Metric = "cosine") -> sp.csr_matrix:
    """Match by shared nearest neighbours.

    The weight of two cells is the Jaccard index of their `k` nearest neighbours in x and in y together. With
    ``k=1``, mutual nearest neighbours get 1 and one-sided ones 1/3 before rows are normalised. A cell is
    always the first of its own neighbours, even if another cell coincides with it.

    Parameters
    ----------
    x, y
        Embeddings, cells x dimensions; the numbers of cells may differ.
    k
        Number of neighbours; capped at the number of cells on the smaller side of a batch.
    batch_x, batch_y
        Batch of each cell. Without batches, any cell may match any other.
    metric
        How cells are compared: ``"cosine"`` or ``"euclidean"``, see `as_points`.

    Returns
    -------
    Float32 CSR matrix, cells of x by cells of y; no row is empty and each sums to 1.

    Raises
    ------
    ValueError
        If the shapes do not match, rows are not finite, batches are missing, a batch of x has no cell in y, or the
        metric is unknown.

    Notes
    -----
    The winner of the NeurIPS 2021 multimodal competition (modality matching) used this matching, with
    ``k=1`` within each batch.
    """
    check_positive(k=k)
    return _match_by_batch(x, y, batch_x, batch_y, metric, lambda a, b: shared_neighbours(a, b, k))


@checked
def match_gaussian(x, y, k: int = 20, batch_x=None, batch_y=None, metric: Metric = "cosine") -> sp.csr_matrix:
    """Match each cell of x to its `k` nearest cells of y by a Gaussian kernel.

    The weight is ``exp(-(d**2 - d_1**2) / (2 h**2))``, where d is the distance in `metric` and d_1 the distance to
    the nearest cell. This is the likelihood of normal noise with standard deviation h in each dimension.
    Per batch, ``h**2`` is the median of ``d_1**2`` over the cells of x, divided by the number of dimensions.

    Takes the same parameters as `match_snn` and returns a matrix of the same form; `k` is capped at the number of
    cells of y in a batch.
    """
    check_positive(k=k)
    return _match_by_batch(x, y, batch_x, batch_y, metric, lambda a, b: _gaussian(a, b, k))


@checked
def match_ot(
    x,
    y,
    epsilon: float = 0.01,
    batch_x=None,
    batch_y=None,
    max_iterations: int = 100,
    tolerance: float = 1e-3,
    max_matches: int = MAX_MATCHES_PER_CELL,
    metric: Metric = "cosine",
) -> sp.csr_matrix:
    """Match by entropic optimal transport between all cells of a batch, each of equal mass.

    This is Sinkhorn's algorithm in the log domain. The cost is half the squared distance between points
    (`as_points`), which is the cosine distance if `metric` is ``"cosine"``. The algorithm stops when no
    potential moves by more than `tolerance` (in units of `epsilon`), or after `max_iterations`. Rows then sum
    to 1, and columns nearly to (cells of x) / (cells of y). The `max_matches` largest entries of each row are kept.

    Parameters
    ----------
    x, y, batch_x, batch_y, metric
        As for `match_snn`.
    epsilon
        Strength of the entropy; a smaller value is sharper and slower.
    max_iterations, tolerance
        When to stop.
    max_matches
        Entries to keep per row.

    Returns
    -------
    Float32 CSR matrix, cells of x by cells of y; no row is empty and each sums to 1.

    Raises
    ------
    BatchTooLarge
        If the plan of a batch would have more than `MAX_TRANSPORT_ENTRIES` entries.
    ValueError
        As for `match_snn`.

    References
    ----------
    Cuturi, Sinkhorn distances, NeurIPS 2013.
    """

    check_positive(epsilon=epsilon, max_iterations=max_iterations, max_matches=max_matches)

    def transport(a: np.ndarray, b: np.ndarray) -> sp.csr_matrix:
        if len(a) * len(b) > MAX_TRANSPORT_ENTRIES:
            raise BatchTooLarge(f"optimal transport between {len(a)} and {len(b)} cells of one batch is too large")
        plan = _sinkhorn(_squared_distances(a, b) / 2, epsilon, max_iterations, tolerance)
        return _largest_per_row(plan, max_matches)

    return _match_by_batch(x, y, batch_x, batch_y, metric, transport)


# ---- parts ---------------------------------------------------------------------------------------


def l2_normalise(embedding) -> np.ndarray:
    """Scale each row to unit length, in float64; a row of zeros stays zero."""
    embedding = np.asarray(embedding, dtype=np.float64)
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    return embedding / np.where(length > 0, length, 1)


def as_points(*embeddings, metric: Metric = "cosine") -> list[np.ndarray]:
    """Return embeddings as points whose Euclidean distances are the distances of the metric.

    Parameters
    ----------
    embeddings
        Embeddings in one space, each cells x dimensions.
    metric
        ``"cosine"``: rows of unit length. ``"euclidean"``: rows as they are, in units of their root-mean-square
        distance from the common mean. Distances then have the same scale as between unit vectors, so that settings
        such as the entropy of `match_ot` have the same meaning.

    Returns
    -------
    Arrays of the same shapes in float64, with their common mean at the origin. Distances do not change, and lose fewer
    digits where all points are far from the origin and near to each other.

    Raises
    ------
    ValueError
        If the metric is unknown, there are no cells, the shapes do not fit, or rows are not finite.
    """
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; it must be 'cosine' or 'euclidean'")
    points = [np.asarray(x, dtype=np.float64) for x in embeddings]
    check_points(points)
    points = [l2_normalise(x) for x in points] if metric == "cosine" else points
    n_cells = sum(len(x) for x in points)
    centre = sum(x.sum(axis=0) for x in points) / n_cells
    points = [x - centre for x in points]
    if metric == "euclidean":
        scale = np.sqrt(sum((x**2).sum() for x in points) / n_cells)
        points = [x / (scale if scale > 0 else 1) for x in points]
    return points


def nearest(queries: np.ndarray, base: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return squared Euclidean distances and indices of the exact `k` nearest rows of `base`."""
    import faiss  # late: the import starts threads and takes time, and most of the library does not need it

    index = faiss.IndexFlatL2(base.shape[1])
    index.add(np.ascontiguousarray(base, dtype=np.float32))
    return index.search(np.ascontiguousarray(queries, dtype=np.float32), k)


def shared_neighbours(x: np.ndarray, y: np.ndarray, k: int) -> sp.csr_matrix:
    """Return the Jaccard index of the `k` nearest neighbours of cells of x and cells of y.

    `x` and `y` are points as returned by `as_points`, compared by their Euclidean distances.
    """
    k = min(k, len(x), len(y))
    x2y, y2x = neighbour_graph(x, y, k), neighbour_graph(y, x, k)
    x2x, y2y = _own_neighbour_graph(x, k), _own_neighbour_graph(y, k)
    shared = (sp.hstack([x2y, x2x], format="csr") @ sp.hstack([y2y, y2x], format="csr").T).tocsr()
    shared.data = shared.data / (4 * k - shared.data)
    return shared


def neighbour_graph(queries: np.ndarray, base: np.ndarray, k: int) -> sp.csr_matrix:
    """Return a matrix of queries x rows of `base` with a 1 for each of the `k` nearest rows of a query."""
    return _graph(nearest(queries, base, k)[1], len(base))


def _own_neighbour_graph(points: np.ndarray, k: int) -> sp.csr_matrix:
    own = np.arange(len(points))[:, None]
    if k == 1:
        return _graph(own, len(points))
    found = nearest(points, points, k)[1]
    others = found != own
    # A cell that coincides with many others may be missing from its own list: then drop the last one found.
    others[others.all(axis=1), -1] = False
    return _graph(np.hstack([own, found[others].reshape(len(points), k - 1)]), len(points))


def _graph(neighbours: np.ndarray, n_columns: int) -> sp.csr_matrix:
    n_rows, k = neighbours.shape
    starts = np.arange(0, n_rows * k + 1, k)
    return sp.csr_matrix((np.ones(n_rows * k, np.float32), neighbours.ravel(), starts), shape=(n_rows, n_columns))


def _gaussian(x: np.ndarray, y: np.ndarray, k: int) -> sp.csr_matrix:
    squared, neighbours = nearest(x, y, min(k, len(y)))
    variance = np.median(squared[:, 0]) / x.shape[1]
    graph = _graph(neighbours, len(y))
    # A variance of zero (cells that coincide) gives weight only to the nearest cells.
    exponent = (squared - squared[:, :1]) / max(2 * variance, np.finfo(np.float32).tiny)
    graph.data = np.exp(-exponent).ravel()
    return graph


def _squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x.astype(np.float32), y.astype(np.float32)
    squared = x @ y.T
    squared *= -2
    squared += (x**2).sum(axis=1)[:, None]
    squared += (y**2).sum(axis=1)[None, :]
    return np.maximum(squared, 0, out=squared)


def _sinkhorn(cost: np.ndarray, epsilon: float, max_iterations: int, tolerance: float) -> np.ndarray:
    """Return the entropic plan between uniform masses, scaled so that rows sum to 1.

    The kernel is rebuilt from log potentials every few iterations. Where exp(-cost / epsilon) would underflow,
    this is as safe as the log domain, and in between it is as fast as plain scaling. `cost` is overwritten.
    """
    log_kernel = cost
    log_kernel *= -1 / epsilon
    n_x, n_y = cost.shape
    # Make 1 the largest entry of each row and column: nothing overflows, and no row or column vanishes.
    log_u = -log_kernel.max(axis=1, keepdims=True)
    log_v = -(log_kernel + log_u).max(axis=0, keepdims=True)
    kernel = np.empty_like(log_kernel)
    for _ in range(0, max_iterations, _REBUILD_EVERY):
        _exponentiate(log_kernel, log_u, log_v, kernel)
        u = np.ones(n_x, np.float32)
        for _ in range(_REBUILD_EVERY):
            previous = u
            v = (n_x / n_y) / np.maximum(u @ kernel, _SMALLEST)
            u = 1 / np.maximum(kernel @ v, _SMALLEST)
        log_u += np.log(u)[:, None]
        log_v += np.log(v)[None, :]
        if np.abs(np.log(u / previous)).max() < tolerance:
            break
    return _exponentiate(log_kernel, log_u, log_v, kernel)


def _exponentiate(log_kernel: np.ndarray, log_u: np.ndarray, log_v: np.ndarray, out: np.ndarray) -> np.ndarray:
    np.add(log_kernel, log_u, out=out)
    out += log_v
    return np.exp(out, out=out)


def _largest_per_row(dense: np.ndarray, n: int) -> sp.csr_matrix:
    if dense.shape[1] <= n:
        return sp.csr_matrix(dense)
    columns = np.vstack([np.argpartition(row, -n)[-n:] for row in dense])
    kept = _graph(columns, dense.shape[1])
    kept.data = np.take_along_axis(dense, columns, axis=1).ravel()
    return kept


# ---- batches -------------------------------------------------------------------------------------


def check_positive(**numbers: float) -> None:
    """Raise an error for a number that is not greater than 0."""
    for name, number in numbers.items():
        if number <= 0:
            raise ValueError(f"{name} is {number}; it must be greater than 0")


def check_points(points: list[np.ndarray]) -> None:
    """Raise an error unless all are cells x dimensions of the same width, and finite."""
    shapes = ", ".join(str(x.shape) for x in points)
    if any(x.ndim != 2 or x.shape[1] != points[0].shape[-1] for x in points):
        raise ValueError(f"embeddings of shapes {shapes} must be cells x dimensions of the same width")
    if any(x.size == 0 for x in points):
        raise ValueError(f"embeddings of shapes {shapes}: each needs cells and dimensions")
    for x in points:
        if wrong := np.count_nonzero(~np.isfinite(x).all(axis=1)):
            raise ValueError(f"{wrong} of {len(x)} rows are not finite")


def check_labels(what: str, labels) -> np.ndarray:
    """Return labels of cells, such as batches, as an array; raise an error if some are missing."""
    # before the conversion, which turns a missing value among strings into "nan"
    if wrong := np.count_nonzero(pd.isna(labels)):
        raise ValueError(f"{wrong} of {len(labels)} {what} are missing")
    return np.asarray(labels)


def _batches(x, y, batch_x, batch_y) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of x and the rows of y that belong to each batch."""
    if (batch_x is None) != (batch_y is None):
        raise ValueError("give the batches of both x and y, or of neither")
    if batch_x is None:
        return [(np.arange(len(x)), np.arange(len(y)))]
    batch_x, batch_y = check_labels("batches", batch_x), check_labels("batches", batch_y)
    if len(batch_x) != len(x) or len(batch_y) != len(y):
        raise ValueError(f"{len(batch_x)} and {len(batch_y)} batches for {len(x)} cells of x and {len(y)} of y")
    pairs = []
    for batch in np.unique(batch_x):
        rows, columns = np.flatnonzero(batch_x == batch), np.flatnonzero(batch_y == batch)
        if columns.size == 0:
            raise ValueError(f"batch {str(batch)!r} has {rows.size} cells in x and none in y")
        pairs.append((rows, columns))
    return pairs


def _match_by_batch(x, y, batch_x, batch_y, metric: Metric, match: Callable) -> sp.csr_matrix:
    x, y = as_points(x, y, metric=metric)
    batches = _batches(x, y, batch_x, batch_y)
    rows, columns, weights = [], [], []
    for in_x, in_y in batches:
        part = match(x[in_x], y[in_y]).tocoo()
        rows.append(in_x[part.row])
        columns.append(in_y[part.col])
        weights.append(part.data)
    shape = (len(x), len(y))
    matched = sp.csr_matrix(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=shape, dtype=np.float64
    )
    matched.eliminate_zeros()
    return _normalise_rows(matched)


def _normalise_rows(matrix: sp.csr_matrix) -> sp.csr_matrix:
    total = np.asarray(matrix.sum(axis=1)).ravel()
    return (sp.diags(1 / total) @ matrix).tocsr().astype(np.float32)
