"""Metrics: answers computed by hand, a naive reference, properties, bounded memory."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import one_line_error, two_views
from scipy.spatial import distance_matrix

from clue.matching import l2_normalise
from clue.metrics import (
    cell_type_match,
    count_closer,
    foscttm,
    foscttm_within_batch,
    label_transfer_accuracy,
    match_score,
)

value_error = partial(one_line_error, error=ValueError)


def naive_foscttm(x, y, tie_weight):
    distance = distance_matrix(np.asarray(x, float), np.asarray(y, float))
    true = np.diag(distance)
    n = len(distance)
    closer_x, closer_y = distance < true[:, None], distance < true[None, :]
    tied_x, tied_y = (distance == true[:, None]).sum(axis=1) - 1, (distance == true[None, :]).sum(axis=0) - 1
    return (closer_x.sum(axis=1) + tie_weight * tied_x) / n, (closer_y.sum(axis=0) + tie_weight * tied_y) / n


# ---- match score, cell types ---------------------------------------------------------------------


def test_match_score_by_hand():
    matches = sp.csr_matrix([[0.5, 0.5, 0], [0, 0, 2], [1, 3, -4]])
    # Row 0: 1/2 on its partner; row 1: all of it; row 2: partner has -4, which counts as 0.
    assert match_score(matches, [1, 2, 2]) == pytest.approx((0.5 + 1 + 0) / 3)
    # Row 2 with the negative entry left out: 1 of 4.
    assert match_score(matches, [0, 2, 0]) == pytest.approx((0.5 + 1 + 0.25) / 3)
    assert matches.min() == -4, "the input is not changed"


def test_match_score_wrong_input():
    assert "1 of 2 rows" in value_error(match_score, sp.csr_matrix([[1.0, 0], [0, 0]]), [0, 1])
    assert "truth" in value_error(match_score, sp.eye(2), [0, 2])
    assert "truth" in value_error(match_score, sp.eye(2), [0])
    for truth in ([0.5, 1], [0, np.nan], [False, True]):
        assert "whole number" in value_error(match_score, sp.eye(2), truth)
    assert match_score(sp.eye(2), [0.0, 1.0]) == 1
    assert "has no rows" in value_error(match_score, np.zeros((0, 3)), [])
    assert "1 weights of the match matrix are not finite" in value_error(match_score, [[np.nan, 1], [0, 1]], [0, 1])


def test_cell_type_match_by_hand():
    matches = sp.csr_matrix([[0.25, 0.75], [1, 0]])
    assert cell_type_match(matches, ["B", "T"], ["B", "T"]) == pytest.approx(0.25 / 2)
    assert cell_type_match(matches, ["B", "B"], ["B", "T"]) == pytest.approx(1.25 / 2)
    assert "2 and 3 cell types" in value_error(cell_type_match, matches, ["B", "T"], ["B", "T", "T"])
    assert "empty" in value_error(cell_type_match, matches * 0, ["B", "T"], ["B", "T"])
    assert "1 of 2 cell types are missing" in value_error(cell_type_match, matches, ["B", None], ["B", "T"])


# ---- FOSCTTM -------------------------------------------------------------------------------------


def test_foscttm_of_four_cells_by_hand():
    x = np.array([[0.0], [1], [5], [10]])
    y = np.array([[2.0], [0], [5], [11]])
    # x0 (0): true 2; distances 2, 0, 5, 11: one closer.      y0 (2): true 2; 2, 1, 3, 8: one closer.
    # x1 (1): true 1; distances 1, 1, 4, 10: one tied.        y1 (0): true 1; 0, 1, 5, 10: one closer.
    # x2, x3 and y2, y3 are nearest to their true match.
    fractions_x, fractions_y = foscttm(x, y, "euclidean", "half")
    assert fractions_x.tolist() == [0.25, 0.125, 0, 0]
    assert fractions_y.tolist() == [0.25, 0.25, 0, 0]
    fractions_x, fractions_y = foscttm(x, y, "euclidean", "strict")
    assert fractions_x.tolist() == [0.25, 0, 0, 0]
    assert fractions_y.tolist() == [0.25, 0.25, 0, 0]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("ties", ["half", "strict"])
@pytest.mark.parametrize("block", [1, 7, 256, 5000])
def test_foscttm_agrees_with_the_naive_formula(metric, ties, block):
    x, y = two_views(1100)  # more than a tile
    reference = (l2_normalise(x), l2_normalise(y)) if metric == "cosine" else (x, y)
    expected = naive_foscttm(*reference, 0.5 if ties == "half" else 0)
    got = foscttm(x[:1100], y[:1100], metric, ties, block)
    np.testing.assert_array_equal(got, expected)


def test_foscttm_counts_ties_of_a_grid():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, (2, 300, 2)).astype(np.float32)
    x += 1000  # a common offset must not cost precision
    y += 1000
    for ties, weight in (("half", 0.5), ("strict", 0)):
        np.testing.assert_array_equal(foscttm(x, y, "euclidean", ties), naive_foscttm(x, y, weight))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-20, 12345.678])
def test_collapsed_embedding_is_not_perfect(metric, value):
    n = 1500
    x = np.full((n, 33), value, np.float32) * np.arange(1, 34, dtype=np.float32)
    for fractions in foscttm(x, x, metric, "half", block=100):
        assert (fractions == (n - 1) / (2 * n)).all()
    for fractions in foscttm(x, x, metric, "strict", block=100):
        assert (fractions == 0).all()


def test_foscttm_of_one_pair():
    assert np.mean(foscttm([[1.0, 2.0]], [[0.0, 3.0]])) == 0


def test_cosine_distinguishes_cells_of_nearly_equal_direction():
    x, y = two_views(200)
    offset = np.full(6, 1e4)
    assert np.mean(foscttm(offset + x, offset + y)) < 0.3


def test_within_batch():
    x, y = two_views(90)
    batch = np.array(["a", "b", "c"])[np.arange(90) % 3]
    fractions_x, fractions_y = foscttm_within_batch(x, y, batch)
    expected_x, expected_y = naive_foscttm(l2_normalise(x[1::3]), l2_normalise(y[1::3]), 0.5)
    np.testing.assert_array_equal(fractions_x[1::3], expected_x)
    np.testing.assert_array_equal(fractions_y[1::3], expected_y)
    np.testing.assert_array_equal(foscttm_within_batch(x, y, ["one"] * 90), foscttm(x, y))


def test_foscttm_wrong_input():
    x, y = two_views(10)
    assert "same cells" in value_error(foscttm, x, y[:9])
    assert "metric is 'manhattan'" in value_error(foscttm, x, y, metric="manhattan")
    assert "ties is 'none'" in value_error(foscttm, x, y, ties="none")
    assert "block is 0" in value_error(foscttm, x, y, block=0)
    assert "1 batches" in value_error(foscttm_within_batch, x, y, ["a"])
    assert "1 of 10 batches are missing" in value_error(foscttm_within_batch, x, y, [np.nan, *range(9)])
    x[3, 2] = np.nan
    assert "1 of 10 rows are not finite" in value_error(foscttm, x, y)


def test_foscttm_memory_does_not_grow_with_the_square():
    x = np.random.default_rng(0).standard_normal((6000, 10)).astype(np.float32)
    # Not the peak of a child process: on Linux that starts from the size of its parent, which runs all the tests.
    tracemalloc.start()
    try:
        closer = count_closer(x, x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert closer.closer_x.sum() == 0
    assert x.nbytes < peak < 30e6  # a single 6,000 x 6,000 float32 matrix takes 144e6


def test_top1_of_four_cells_by_hand():
    """Distances as in `test_foscttm_of_four_cells_by_hand`: x1 has one tie; x0, y0 and y1 have a closer cell."""
    closer = count_closer([[0.0], [1], [5], [10]], [[2.0], [0], [5], [11]], "euclidean")
    of_x, of_y = closer.top1()
    assert of_x.tolist() == [0, 0.5, 1, 1] and of_y.tolist() == [0, 0, 1, 1]


# ---- label transfer ------------------------------------------------------------------------------


def test_labels_transfer_between_separate_types():
    rng = np.random.default_rng(0)
    centres = np.eye(3)
    types_x, types_y = np.arange(150) % 3, np.arange(120) % 3
    x, y = (centres[types] + 0.05 * rng.standard_normal((len(types), 3)) for types in (types_x, types_y))
    names = np.array(["B", "NK", "T"])
    assert label_transfer_accuracy(x, y, names[types_x], names[types_y]) == 1
    wrong = names[(types_y + 1) % 3]
    assert label_transfer_accuracy(x, y, names[types_x], wrong) == 0


def test_labels_transfer_by_hand():
    # One neighbour each: y0 is mutual with x0 (type B); y1 is next to x1 (type T) and is called NK.
    x, y = np.array([[1.0, 0], [0, 1]]), np.array([[1, 0.1], [0.1, 1]])
    assert label_transfer_accuracy(x, y, ["B", "T"], ["B", "NK"], k=1) == 0.5
    # By Euclidean distance y1 is nearest to x0, by direction to x1.
    x, y = np.array([[2.0, 0], [0, 9]]), np.array([[2.0, 0.1], [0.1, 1]])
    assert label_transfer_accuracy(x, y, ["B", "T"], ["B", "T"], k=1) == 1
    assert label_transfer_accuracy(x, y, ["B", "T"], ["B", "B"], k=1, metric="euclidean") == 1
    assert "1 and 2 labels" in value_error(label_transfer_accuracy, x, y, ["B"], ["B", "NK"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "k is 0"),
        ({"y": np.ones((10, 5))}, "same width"),
        ({"y": np.ones((0, 6)), "labels_y": []}, "each needs cells"),
        ({"labels_x": [None, *"babababab"]}, "1 of 10 labels are missing"),
        ({"x": np.where(np.eye(10, 6), np.nan, 1)}, "6 of 10 rows are not finite"),
    ],
)
def test_label_transfer_wrong_input(wrong, message):
    x, y = two_views(10)
    given = {"x": x, "y": y, "labels_x": list("ababababab"), "labels_y": list("ababababab")} | wrong
    assert message in value_error(label_transfer_accuracy, **given)
