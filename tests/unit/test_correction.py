"""Shifts and hubs are removed, also if the modalities hold different cell types."""

from itertools import combinations

import numpy as np
import pytest
from scipy.special import logsumexp

from clue.correction import DAMPING, GAP, TEMPERATURE, remove_hubs, remove_shifts
from clue.matching import l2_normalise, match_snn
from clue.metrics import foscttm, match_score

N_CELLS, WIDTH = 300, 12


@pytest.fixture
def cells():
    """Two modalities of the same cells, and a direction orthogonal to all of them."""
    rng = np.random.default_rng(0)
    types = 3 * rng.normal(size=(6, WIDTH))[rng.integers(6, size=N_CELLS)]
    whole = types + rng.normal(size=(N_CELLS, WIDTH))
    return [whole + 0.3 * rng.normal(size=whole.shape) for _ in range(2)], types[:, 0], 4 * rng.normal(size=WIDTH)


def distance(x, y):
    return np.linalg.norm(l2_normalise(x) - l2_normalise(y), axis=1).mean()


def test_shift_of_a_batch_is_removed(cells):
    (x, y), _, shift = cells
    batch = np.repeat(["one", "two"], N_CELLS // 2)
    shifted = y + np.where(batch[:, None] == "two", shift, 0)
    moved = remove_shifts([x, shifted], [batch, batch])
    assert np.mean(foscttm(*moved)) < 0.7 * np.mean(foscttm(x, shifted))
    assert all(np.allclose(np.linalg.norm(part, axis=1), 1) for part in moved)


def test_cell_types_of_one_modality_do_not_count(cells):
    """Means would differ by more than before if one modality lacks half of the types."""
    (x, y), kind, _ = cells
    some = kind > np.median(kind)
    before = distance(x[some], y[some])
    moved = remove_shifts([x, y[some]])
    assert distance(moved[0][some], moved[1]) < 1.02 * before
    x, y = l2_normalise(x), l2_normalise(y[some])
    means = x.mean(axis=0) - y.mean(axis=0)
    assert distance(x[some] - means / 2, y + means / 2) > 1.2 * before


def test_chance_moves_little(cells):
    (x, y), _, shift = cells
    rng = np.random.default_rng(1)
    moved = remove_shifts([x, x + 0.3 * rng.normal(size=x.shape)])
    assert distance(moved[0], x) < 0.1 * distance(remove_shifts([x, y + shift])[0], x)


def test_three_modalities_and_batches_seen_in_one(cells):
    (x, y), _, shift = cells
    labels = [np.repeat(["a", "b"], N_CELLS // 2), np.repeat("a", N_CELLS), np.repeat("a", N_CELLS)]
    moved = remove_shifts([x, y + shift, y - shift], labels)
    np.testing.assert_allclose(moved[0][labels[0] == "b"], l2_normalise(x)[labels[0] == "b"])
    assert distance(moved[1], moved[2]) < 0.5 * distance(y + shift, y - shift)


def test_few_cells_do_not_move(cells):
    (x, y), _, shift = cells
    moved = remove_shifts([x[:9], y[:9] + shift])
    np.testing.assert_allclose(moved[0], l2_normalise(x[:9]))


# ---- hubs ----------------------------------------------------------------------------------------


@pytest.fixture
def with_hubs(cells):
    """Two modalities; in the second, a tenth of the cells lie nearer to all others."""
    (x, y), kind, _ = cells
    y = l2_normalise(y + np.random.default_rng(1).normal(size=y.shape))
    y[::10] += 0.5 * l2_normalise(l2_normalise(x).mean(axis=0, keepdims=True))
    return [l2_normalise(x), y], kind


def test_hubs_are_matched_less(with_hubs):
    (x, y), kind = with_hubs
    some = kind > np.median(kind)
    truth = np.arange(N_CELLS)
    corrected = remove_hubs([x, y])
    assert np.mean(foscttm(*corrected)) < 0.9 * np.mean(foscttm(x, y))
    assert match_score(match_snn(*corrected), truth) > 1.02 * match_score(match_snn(x, y), truth)
    # also if the second modality lacks half of the types
    x_all, y_some = remove_hubs([x, y[some]])
    assert np.mean(foscttm(x_all[some], y_some)) < 0.95 * np.mean(foscttm(x[some], y[some]))


def relaxed_transport(cosine):
    """Return the potentials of both sides, in the log domain and with many iterations, less their means."""
    g = np.zeros(cosine.shape[1])
    for _ in range(100):
        f = -DAMPING * TEMPERATURE * (logsumexp((cosine + g) / TEMPERATURE, axis=1) - np.log(cosine.shape[1]))
        scores = (cosine + f[:, None]) / TEMPERATURE
        g = -DAMPING * TEMPERATURE * (logsumexp(scores, axis=0) - np.log(len(cosine)))
    return f - f.mean(), g - g.mean()


def test_hubs_are_removed_by_the_formula(with_hubs):
    """In each batch, and with three modalities for each pair of them."""
    (x, y), _ = with_hubs
    spaces = [l2_normalise(points) for points in (x, y, y[::-1] + 0.1)]
    batch = np.repeat(["a", "b"], [40, N_CELLS - 40])
    placed = remove_hubs(spaces, [batch, batch, batch])
    assert [part.shape for part in placed] == [(N_CELLS, WIDTH + 6)] * 3
    for label in ("a", "b"):
        here = batch == label
        for i, j in combinations(range(3), 2):
            cosine = spaces[i][here] @ spaces[j][here].T
            f, g = relaxed_transport(cosine)
            a, b = (placed[k][here] / np.linalg.norm(placed[k][here, :WIDTH], axis=1, keepdims=True) for k in (i, j))
            np.testing.assert_allclose(a @ b.T, cosine + f[:, None] + g, atol=1e-3)


def test_potentials_of_many_cells_follow_from_a_sample(with_hubs, monkeypatch):
    (x, y), _ = with_hubs
    whole = remove_hubs([x, y])
    monkeypatch.setattr("clue.correction.MAX_BALANCED", 100)
    sampled = remove_hubs([x, y])
    for a, b in zip(whole, sampled, strict=True):
        assert 0 < np.abs(a - b).mean() < 0.01
    assert np.mean(foscttm(*sampled)) < 0.9 * np.mean(foscttm(x, y))


def test_batch_seen_in_one_modality_has_no_hubs(cells):
    (x, y), _, _ = cells
    batch = np.repeat(["a", "b"], [1, N_CELLS - 1])
    placed = remove_hubs([x, y[:1]], [batch, batch[:1]])
    np.testing.assert_allclose(placed[0][:, :WIDTH] * np.sqrt(1 + GAP), l2_normalise(x))
    np.testing.assert_allclose(placed[1][:, :WIDTH] * np.sqrt(1 + GAP), l2_normalise(y[:1]))


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize("correct", [remove_shifts, remove_hubs])
@pytest.mark.parametrize(
    ("spaces", "batches", "message"),
    [
        ([np.ones((3, 2)), np.ones((3, 4))], None, r"shapes \(3, 2\), \(3, 4\) must be .* of the same width"),
        ([np.ones((3, 2)), np.full((3, 2), np.nan)], None, "3 of 3 rows are not finite"),
        ([np.ones((2, 2)), np.ones((2, 2))], [["a", np.nan], ["a", "a"]], "1 of 2 batches are missing"),
        ([np.ones((3, 2)), np.ones((4, 2))], [list("aaa"), list("bbb")], r"\[3, 3\] batches for \[3, 4\] cells"),
    ],
)
def test_wrong_shapes(spaces, batches, message, correct):
    with pytest.raises(ValueError, match=message):
        correct(spaces, batches)
