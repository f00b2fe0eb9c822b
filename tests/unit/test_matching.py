"""Match matrices: answers computed by hand, properties, batches, errors."""

from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import one_line_error, two_views

from clue import matching
from clue.matching import match_gaussian, match_ot, match_snn

MATCHINGS = [match_snn, match_gaussian, match_ot]


def on_circle(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.column_stack([np.cos(angle), np.sin(angle)])


# ---- by hand -------------------------------------------------------------------------------------


def test_snn_by_hand():
    # x: 0, 10, 50 degrees; y: 2, 29, 48, 90 degrees.
    # x -> y: 0 -> 2, 10 -> 2, 50 -> 48.  y -> x: 2 -> 0, 29 -> 10, 48 -> 50, 90 -> 50.
    x, y = on_circle(0, 10, 50), on_circle(2, 29, 48, 90)
    expected = [
        [1, 0, 0, 0],  # mutual with y0
        [1 / 2, 1 / 2, 0, 0],  # one-sided with y0 and with y1: 1/3 each
        [0, 0, 3 / 4, 1 / 4],  # mutual with y2 (1), one-sided with y3 (1/3)
    ]
    np.testing.assert_allclose(match_snn(x, y).toarray(), expected, atol=1e-6)


def test_snn_is_the_jaccard_index_of_neighbour_sets():
    k = 4
    x, y = two_views(40, noise=1)
    x, y = matching.l2_normalise(x), matching.l2_normalise(y)
    both = np.vstack([x, y])
    distance = np.linalg.norm(both[:, None] - both[None], axis=2)
    np.fill_diagonal(distance, -1)  # a cell is its own first neighbour
    in_x = [set(np.argsort(row[:40])[:k]) for row in distance]
    in_y = [set(np.argsort(row[40:])[:k] + 1000) for row in distance]
    sets = [a | b for a, b in zip(in_x, in_y, strict=True)]
    expected = np.array([[len(a & b) / len(a | b) for b in sets[40:]] for a in sets[:40]])
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(match_snn(x, y, k=k).toarray(), expected, atol=1e-6)


def test_gaussian_by_hand():
    # Squared distances 1 and 2 in two dimensions: a variance of 1/2, so the second weight is exp(-1) of the first.
    expected = np.array([[1, np.exp(-1)]]) / (1 + np.exp(-1))
    np.testing.assert_allclose(match_gaussian(on_circle(0), on_circle(60, 90)).toarray(), expected, atol=1e-6)


def test_transport_by_hand():
    # By symmetry the plan is the kernel exp(-cost / epsilon) with rows scaled to 1; cost 0 or 1.
    x = y = on_circle(0, 90)
    other = np.exp(-1 / 0.5)
    expected = np.array([[1, other], [other, 1]]) / (1 + other)
    np.testing.assert_allclose(match_ot(x, y, epsilon=0.5).toarray(), expected, atol=1e-5)


def test_transport_agrees_with_plain_sinkhorn_in_float64():
    x, y = two_views(30, noise=0.5)
    cost = 1 - matching.l2_normalise(x) @ matching.l2_normalise(y)[:20].T
    kernel = np.exp(-cost / 0.05)
    u = np.ones(30)
    for _ in range(5000):
        v = 1.5 / (u @ kernel)
        u = 1 / (kernel @ v)
    got = match_ot(x, y[:20], epsilon=0.05, max_iterations=5000, tolerance=1e-6).toarray()
    np.testing.assert_allclose(got, u[:, None] * kernel * v, atol=1e-4)
    np.testing.assert_allclose(got.sum(axis=0), 1.5, atol=1e-3)


# ---- metrics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", matching.METRICS)
def test_points_have_the_distances_of_the_metric(metric):
    x, y = (5 + view for view in two_views(30))
    points = np.vstack(matching.as_points(x, y[:20], metric=metric))
    rows = np.vstack([x, y[:20]]).astype(float)
    unit = matching.l2_normalise(rows) if metric == "cosine" else rows / np.sqrt((rows - rows.mean(0)).var(0).sum())
    np.testing.assert_allclose(points, unit - unit.mean(axis=0), atol=1e-12)
    if metric == "euclidean":
        assert (points**2).sum(axis=1).mean() == pytest.approx(1)


@pytest.mark.parametrize("match", MATCHINGS)
def test_euclidean_matches_depend_on_length_but_not_on_shift_or_scale(match):
    # All in one direction: by cosine all cells are alike, by length each has its partner.
    x = np.outer(np.arange(1, 21), [1.0, 2.0])
    y = 1.01 * x
    assert match(x, y, metric="euclidean").diagonal().min() > 0.6
    assert match(x, y).diagonal().mean() < 0.3
    x, y = two_views(40, noise=0.5)
    moved = match(100 * x + 7, 100 * y + 7, metric="euclidean").toarray()
    np.testing.assert_allclose(moved, match(x, y, metric="euclidean").toarray(), atol=1e-3)


# ---- properties ----------------------------------------------------------------------------------


@pytest.mark.parametrize("match", MATCHINGS)
def test_rows_sum_to_one_with_unequal_sizes(match):
    x, y = two_views(50)
    matched = match(x, y[:37])
    assert sp.issparse(matched) and matched.format == "csr" and matched.dtype == np.float32
    assert matched.shape == (50, 37)
    assert (matched.data >= 0).all()
    np.testing.assert_allclose(np.asarray(matched.sum(axis=1)).ravel(), 1, atol=1e-5)


@pytest.mark.parametrize("match", MATCHINGS)
def test_equal_embeddings_match_perfectly(match):
    x, _ = two_views(50, width=32)
    np.testing.assert_allclose(match(x, x).diagonal(), 1, atol=1e-3)


@pytest.mark.parametrize("match", MATCHINGS)
@pytest.mark.parametrize("point", [np.zeros(3), np.array([0.3, -2.0, 7.1])])
def test_collapsed_embeddings_give_finite_rows(match, point):
    matched = match(np.tile(point, (20, 1)), np.tile(point, (15, 1)))
    assert np.isfinite(matched.data).all()
    np.testing.assert_allclose(np.asarray(matched.sum(axis=1)).ravel(), 1, atol=1e-5)


def test_coinciding_cells_are_still_their_own_neighbours():
    x = np.repeat(on_circle(0, 90), 5, axis=0)
    graph = matching._own_neighbour_graph(x, 3)
    assert (graph.diagonal() == 1).all()
    assert (np.diff(graph.indptr) == 3).all() and graph.sum() == 30


def test_transport_keeps_the_largest_entries():
    x, y = two_views(60, noise=1)
    full, few = match_ot(x, y, epsilon=0.5).toarray(), match_ot(x, y, epsilon=0.5, max_matches=7)
    assert (np.diff(few.indptr) == 7).all()
    for row in range(60):
        assert set(few[row].indices) == set(np.argsort(full[row])[-7:])


def test_transport_survives_a_small_epsilon():
    x, y = two_views(50, noise=1)
    matched = match_ot(x, y, epsilon=1e-3)  # exp(-cost / epsilon) would underflow
    assert np.isfinite(matched.data).all()
    np.testing.assert_allclose(np.asarray(matched.sum(axis=1)).ravel(), 1, atol=1e-5)


# ---- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", MATCHINGS)
def test_matching_stays_within_batch(match):
    x, y = two_views(60)
    batch_x = np.array(["a", "b", "c"])[np.arange(60) % 3]
    batch_y = batch_x[:50]
    matched = match(x, y[:50], batch_x=batch_x, batch_y=batch_y).tocoo()
    assert (batch_x[matched.row] == batch_y[matched.col]).all()
    alone = match(x[::3], y[:50][::3]).toarray()
    np.testing.assert_allclose(matched.toarray()[::3, ::3], alone, atol=1e-4)


@pytest.mark.parametrize("match", MATCHINGS)
def test_batch_of_one_cell(match):
    x, y = two_views(11)
    batch = np.array(["many"] * 10 + ["one"])
    assert match(x, y, batch_x=batch, batch_y=batch)[10, 10] == 1


def test_wrong_input_is_an_error(monkeypatch):
    x, y = two_views(4)
    error = partial(one_line_error, match_snn, error=ValueError)
    assert "same width" in error(x, y[:, :3])
    assert "each needs cells" in error(x, y[:0])
    assert "both x and y" in error(x, y, batch_x=["a"] * 4)
    assert "3 and 4 batches" in error(x, y, batch_x=["a"] * 3, batch_y=["a"] * 4)
    missing = np.array(["a", "a", None, "a"], dtype=object)
    assert "1 of 4 batches are missing" in error(x, y, batch_x=["a"] * 4, batch_y=missing)
    batches = {"batch_x": ["s1", "s1", "s4d9", "s4d9"], "batch_y": ["s1"] * 4}
    assert "batch 's4d9' has 2 cells in x and none in y" in error(x, y, **batches)
    assert "k is 0" in error(x, y, k=0)
    monkeypatch.setattr(matching, "MAX_TRANSPORT_ENTRIES", 15)
    with pytest.raises(matching.BatchTooLarge, match="4 and 4 cells"):
        match_ot(x, y)


@pytest.mark.parametrize("match", MATCHINGS)
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_an_error(match, metric, value):
    x, y = two_views(6)
    y[2, 1] = y[4, 0] = value
    with pytest.raises(ValueError, match="2 of 6 rows are not finite"):
        match(x, y, metric=metric)
