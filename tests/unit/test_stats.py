"""Statistics over seeds and over cells have known answers."""

import numpy as np
import pandas as pd
import pytest
from tidy import NAN

from clue.benchmark.scores.stats import bootstrap_mean, paired_tests, summarise


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


def test_tests_of_one_call_are_corrected_together():
    """Holm: 3 times the smallest p, twice the second, none below the one before. Untested ones do not count."""
    noise = np.random.default_rng(1).normal(size=(3, 8))
    scores = {name: pd.Series(row + i) for i, (name, row) in enumerate(zip("abc", noise, strict=True))}
    table = paired_tests(scores | {"few": scores["a"][:3]})
    tested = table.dropna(subset="p").sort_values("p")
    expected = np.maximum.accumulate(np.minimum(tested["p"] * [3, 2, 1], 1))
    assert len(tested) == 3 and len(table) == 6 and tested["p_holm"].tolist() == pytest.approx(expected.tolist())


def test_paired_tests_need_six_seeds():
    """Differences 1..6: mean 3.5, sd 1.8708, t = 4.5826 with 5 degrees of freedom, p = 0.00593."""
    base = pd.Series(np.arange(7.0) ** 2, index=map(str, range(7)))
    other = (base.iloc[:6] - np.arange(1, 7)).iloc[::-1]
    table = paired_tests({"a": base, "b": other})
    assert (table["n"][0], table["difference"][0]) == (6, 3.5)
    assert table["p"][0] == pytest.approx(0.005934, abs=1e-5) == table["p_holm"][0]
    few = paired_tests({"a": base, "b": other.iloc[:5]}).iloc[0]
    assert np.isnan(few["p"]) and few["note"] == "no test: 5 common seeds, 6 are needed"
    assert "same difference" in paired_tests({"a": base, "b": base})["note"][0]
    assert paired_tests({"a": base}).empty
