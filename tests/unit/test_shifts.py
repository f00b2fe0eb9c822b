"""Shifts between modalities are removed where they are certain, also if the modalities hold different cell types."""

import numpy as np
import pytest

from clue.matching import l2_normalise
from clue.metrics import foscttm
from clue.shifts import remove_shifts

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


@pytest.mark.parametrize(
    ("spaces", "batches", "message"),
    [
        ([np.ones((3, 2)), np.ones((3, 4))], None, r"shapes \(3, 2\), \(3, 4\) must be .* of the same width"),
        ([np.ones((3, 2)), np.full((3, 2), np.nan)], None, "3 of 3 rows are not finite"),
        ([np.ones((2, 2)), np.ones((2, 2))], [["a", np.nan], ["a", "a"]], "1 of 2 batches are missing"),
        ([np.ones((3, 2)), np.ones((4, 2))], [list("aaa"), list("bbb")], r"\[3, 3\] batches for \[3, 4\] cells"),
    ],
)
def test_wrong_shapes(spaces, batches, message):
    with pytest.raises(ValueError, match=message):
        remove_shifts(spaces, batches)
