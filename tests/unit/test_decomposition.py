"""Principal axes of sparse matrices against LAPACK, by each of the three routes."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from clue import decomposition, products, sparse
from clue.decomposition import principal_axes
from clue.products import times

ROUTES = {"columns": (700, 200), "rows": (200, 700), "krylov": (700, 600)}


@pytest.fixture(params=ROUTES)
def matrix(request, monkeypatch):
    """A sparse matrix of 10 groups of rows plus noise; its shape determines the route."""
    monkeypatch.setattr(decomposition, "SMALL", 300)
    monkeypatch.setattr(decomposition, "_ROWS", 64)
    shape = ROUTES[request.param]
    rng = np.random.default_rng(0)
    rate = rng.gamma(0.3, 1, (10, shape[1]))[rng.integers(10, size=shape[0])]
    return sp.csr_matrix(rng.poisson(rate).astype(np.float32))


@pytest.mark.parametrize("block", [16, 10_000])
@pytest.mark.parametrize("centred", [True, False])
def test_axes_are_those_of_the_dense_matrix(matrix, monkeypatch, block, centred):
    monkeypatch.setattr(sparse, "BLOCK", block)
    before = matrix.copy()
    centre, axes = principal_axes(matrix, 30, centred)
    assert (matrix != before).nnz == 0 and axes.shape == (matrix.shape[1], 30) and axes.dtype == np.float32
    dense = matrix.toarray().astype(np.float64)
    np.testing.assert_allclose(centre, dense.mean(axis=0) if centred else 0, rtol=1e-6)
    dense -= centre
    expected = np.linalg.svd(dense, full_matrices=False)[2].T
    np.testing.assert_allclose(axes.T @ axes, np.eye(30), atol=1e-4)
    # the 10 groups; the axes of noise are of nearly equal size
    real = slice(0, 9 if centred else 10)
    np.testing.assert_allclose(np.abs((axes * expected[:, :30]).sum(axis=0)[real]), 1, atol=1e-4)
    kept, most = (np.square(dense @ found).sum() for found in (axes, expected[:, :30]))
    assert kept > 0.995 * most
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(30)] > 0).all()


def test_columns_of_zeros_have_no_effect(matrix):
    """As for genes that are not selected."""
    wide = sp.hstack([matrix, sp.csr_matrix((matrix.shape[0], 100), dtype=np.float32)], format="csr")
    order = np.random.default_rng(1).permutation(wide.shape[1])
    _, axes = principal_axes(wide[:, order], 5, centred=True)
    np.testing.assert_allclose(axes[order >= matrix.shape[1]], 0, atol=1e-12)
    expected = principal_axes(matrix, 5, centred=True)[1]
    cosines = (axes[np.argsort(order)[: matrix.shape[1]]] * expected).sum(axis=0)
    np.testing.assert_allclose(cosines, 1, atol=1e-4)


def test_only_a_few_of_many_columns_have_a_value():
    """Fewer than a block of the Krylov space has columns."""
    counts = sp.random(2500, 4, 0.5, format="csr", dtype=np.float32, random_state=0)
    wide = sp.hstack([counts, sp.csr_matrix((2500, 2400), dtype=np.float32)], format="csr")
    _, axes = principal_axes(wide, 10, centred=True)
    expected = PCA(3, svd_solver="full").fit(counts.toarray()).components_
    assert axes.shape == (2404, 3) and not axes[4:].any()
    np.testing.assert_allclose(np.abs((axes[:4].T * expected).sum(axis=1)), 1, atol=1e-5)


def test_matrix_of_zeros_has_an_axis():
    centre, axes = principal_axes(sp.csr_matrix((30, 7), dtype=np.float32), 3, centred=True)
    assert not centre.any() and axes.shape == (7, 1) and np.linalg.norm(axes) == 1


def test_threads_change_nothing(matrix, monkeypatch):
    found = []
    for n in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", n)
        found.append(principal_axes(matrix, 20, centred=True, seed=4)[1])
    assert np.array_equal(*found)


@pytest.mark.parametrize(("given", "n"), [("3", 3), ("2,1", 2), ("500", 16), ("", 5), ("none", 5), (None, 5)])
def test_number_of_threads(given, n, monkeypatch):
    monkeypatch.setattr(decomposition.os, "sched_getaffinity", lambda process: set(range(5)), raising=False)
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert decomposition.n_threads() == n


def test_more_axes_than_the_matrix_has():
    """Repeated rows: the rank is lower than the number of axes requested."""
    rng = np.random.default_rng(0)
    few = rng.poisson(1.0, (6, 400)).astype(np.float32)
    repeated = sp.csr_matrix(np.tile(few, (100, 1)))
    for small in (2000, 0):
        decomposition_small, decomposition.SMALL = decomposition.SMALL, small
        try:
            _, axes = principal_axes(repeated, 20, centred=False)
        finally:
            decomposition.SMALL = decomposition_small
        np.testing.assert_allclose(axes.T @ axes, np.eye(20), atol=1e-4)
        np.testing.assert_allclose(few @ axes @ axes.T, few, atol=1e-3)


def test_axes_of_many_cells_far_from_zero():
    rng = np.random.default_rng(0)
    values = (10 + rng.standard_normal((200_000, 6)) * np.linspace(0.5, 1.5, 6)).astype(np.float32)
    centre, axes = principal_axes(sp.csr_matrix(values), 3, centred=True)
    np.testing.assert_allclose(centre, values.mean(axis=0, dtype=np.float64), rtol=1e-7)
    expected = np.linalg.eigh(np.cov(values.T.astype(np.float64)))[1][:, ::-1].T
    np.testing.assert_allclose(np.abs((axes.T * expected[:3]).sum(axis=1)), 1, atol=1e-6)


def shuffled(matrix):
    """Return the same matrix with the indices of each row in a random order."""
    rng = np.random.default_rng(0)
    bounds = zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
    order = np.concatenate([start + rng.permutation(end - start) for start, end in bounds])
    found = sp.csr_matrix((matrix.data[order], matrix.indices[order], matrix.indptr.copy()), shape=matrix.shape)
    assert not found.has_sorted_indices
    return found


def test_order_of_indices_changes_nothing(matrix, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    expected = principal_axes(matrix.copy(), 20, centred=True)[1]
    assert np.array_equal(principal_axes(shuffled(matrix), 20, centred=True)[1], expected)


@pytest.mark.parametrize("tile", [35, products.TILE])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_products_a_tile_of_features_at_a_time(monkeypatch, index, tile):
    """Several tiles, rows without a value, indices in any order, and columns of a wider dense matrix."""
    if tile != products.TILE:  # a constant in the compiled code
        monkeypatch.setattr(products, "TILE", tile)
        monkeypatch.setattr(products, "_add_product", products._add_product.py_func)
    dense = sp.random(40, 5000, 0.1, dtype=np.float32, random_state=0).toarray()
    dense[10:12] = 0
    matrix = shuffled(sp.csr_matrix(dense))
    matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(index)
    wide = np.random.default_rng(0).standard_normal((5000, 30)).astype(np.float32)
    rows = slice(8, 38)
    np.testing.assert_allclose(times(matrix, wide[:, :20], rows), dense[rows] @ wide[:, :20], atol=1e-4)
    product = times(matrix, wide[rows, :20], rows, transposed=True)
    np.testing.assert_allclose(product, dense[rows].T @ wide[rows, :20], atol=1e-4)
