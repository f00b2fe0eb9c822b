"""Summaries and tests over seeds, intervals over cells."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import bootstrap, ttest_1samp
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests

MIN_SEEDS = 6
"""Fewest seeds for a test."""
MIN_FOR_INTERVAL = 3
"""Fewest values for an interval: that of two is 13 standard errors wide to each side and says nothing."""


@dataclass(frozen=True)
class Summary:
    """Mean of `n` values, their standard deviation, and an interval for the mean."""

    n: int
    mean: float
    sd: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return ``mean ± sd`` to three and two digits."""
        return f"{self.mean:.3g}" + (f" ± {self.sd:.2g}" if self.n > 1 else "")


def summarise(values: ArrayLike, level: float = 0.95) -> Summary:
    """Return mean, sample standard deviation and Student's t interval of the mean.

    Parameters
    ----------
    values
        One value per seed; values that are not finite are left out.
    level
        Coverage of the interval.

    Returns
    -------
    Summary
        With one value `sd` is NaN, since one seed says nothing about spread; with fewer than three `low` and `high`
        are NaN; without any `mean` is NaN too. A spread of the size of rounding errors is 0.
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    if n < 2:
        return Summary(n, mean, np.nan, np.nan, np.nan)
    sd = float(values.std(ddof=1))
    sd = sd if sd > 1e-6 * abs(mean) else 0.0
    if n < MIN_FOR_INTERVAL:
        return Summary(n, mean, sd, np.nan, np.nan)
    half = float(student.ppf((1 + level) / 2, n - 1)) * sd / np.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def summaries(table: pd.DataFrame, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """Return a row per group of a table with the columns of `Summary`; groups keep the order of the table."""
    groups = table.groupby(list(by), sort=False)[value]
    columns = [*by, *(field.name for field in fields(Summary))]
    return pd.DataFrame([[*key, *vars(summarise(values)).values()] for key, values in groups], columns=columns)


def relative_changes(full: pd.Series, part: pd.Series) -> pd.Series:
    """Return ``100 (part - full) / full`` per seed that both have and where `full` is not 0."""
    return (100 * (part - full) / full[full != 0]).dropna()


def bootstrap_mean(values: ArrayLike, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean, values drawn as if independent of each other.

    NaN, NaN with fewer than two values. Efron & Tibshirani, *An Introduction to the Bootstrap*, chapter 13.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    found = bootstrap(
        (values,), np.mean, confidence_level=level, n_resamples=resamples, batch=50, method="percentile", rng=rng
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def paired_tests(scores: dict[str, pd.Series], minimum: int = MIN_SEEDS) -> pd.DataFrame:
    """Test each pair of methods for a difference of their means over common seeds.

    Parameters
    ----------
    scores
        Per method its values, indexed by seed.
    minimum
        Fewest common seeds for a test.

    Returns
    -------
    DataFrame
        ``first``, ``second``, ``n`` common seeds, mean ``difference``, ``p`` of the paired t test, ``p_holm`` after
        Holm's correction for all tests of this call, and a ``note`` where there is no test.

    Notes
    -----
    Seeds redraw what is random in a method, not the cells: a difference holds for these cells and this split.
    """
    rows = []
    for first, second in combinations(scores, 2):
        difference = (scores[first] - scores[second]).dropna()
        row = {"first": first, "second": second, "n": len(difference), "difference": difference.mean()}
        if len(difference) < minimum:
            row |= {"p": np.nan, "note": f"no test: {len(difference)} common seeds, {minimum} are needed"}
        elif difference.nunique() == 1:  # the t statistic is undefined
            row |= {"p": np.nan, "note": "no test: the same difference for every seed"}
        else:
            row |= {"p": float(ttest_1samp(difference, 0).pvalue), "note": ""}
        rows.append(row)
    table = pd.DataFrame(rows, columns=["first", "second", "n", "difference", "p", "note"])
    table.insert(5, "p_holm", holm(table["p"]))
    return table


def holm(p: ArrayLike) -> np.ndarray:
    """Return p values after Holm's step-down correction; NaN are no tests and stay (Holm, Scand J Stat 6, 1979)."""
    p = np.asarray(p, dtype=float)
    tested = np.isfinite(p)
    corrected = np.full(len(p), np.nan)
    if tested.any():
        corrected[tested] = multipletests(p[tested], method="holm")[1]
    return corrected
