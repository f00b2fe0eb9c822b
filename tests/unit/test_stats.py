"""Statistics over seeds and over cells have known answers."""

import numpy as np
import pytest
from tidy import NAN

from clue.benchmark.scores.stats import bootstrap_mean, summarise


@pytest.mark.parametrize(
    ("values", "n", "mean", "sd", "half", "text"),
    [
        ([1, 2, 3], 3, 2, 1, 2.484138, "2 ± 1"),  # t(0.975, 2) = 4.30265, divided by sqrt(3)
        ([0, 2], 2, 1, 2**0.5, NAN, "1 ± 1.4"),  # an interval would be 2 × 12.7 standard errors wide
        ([0.04993, 0.04993 + 1e-12], 2, 0.04993, 0, NAN, "0.0499 ± 0"),
        ([5.0, NAN, np.inf], 1, 5, NAN, NAN, "5"),
        ([], 0, NAN, NAN, NAN, "nan"),
    ],
)
def test_summaries_have_the_textbook_answers(values, n, mean, sd, half, text):
    found = summarise(values)
    numbers = [found.n, found.mean, found.sd, found.high - found.mean, found.mean - found.low]
    assert numbers == pytest.approx([n, mean, sd, half, half], abs=1e-5, nan_ok=True)
    assert str(found) == text


def test_bootstrap_interval_of_many_cells_is_the_normal_one():
    """1,000 values with sd 1: mean ± 1.96 / sqrt(1000), up to the noise of 1,000 resamples."""
    values = np.random.default_rng(0).normal(size=1000)
    values = (values - values.mean()) / values.std()
    low, high = bootstrap_mean(values)
    assert (low, high) == pytest.approx((-1.96 / 1000**0.5, 1.96 / 1000**0.5), abs=0.008)
    assert bootstrap_mean(values) == (low, high), "seeded"
    assert np.isnan(bootstrap_mean([1.0])).all() and bootstrap_mean([2.0, 2.0]) == (2.0, 2.0)
