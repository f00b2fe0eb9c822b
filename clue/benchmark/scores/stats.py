"""Summaries over seeds, intervals over cells."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import bootstrap
from scipy.stats import t as student

LEVEL = 0.95
"""Coverage of intervals."""
MIN_FOR_INTERVAL = 3
"""Fewest values for an interval. With two it would be 13 standard errors wide to each side and say nothing."""


class Summary(NamedTuple):
    """Mean of `n` values, their standard deviation, and an interval for the mean."""

    n: int
    mean: float
    sd: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return ``mean ± sd`` to three and two digits."""
        return f"{self.mean:.3g}" + (f" ± {self.sd:.2g}" if self.n > 1 else "")


def summarise(values: ArrayLike) -> Summary:
    """Return mean, sample standard deviation and Student's 95 % interval of the mean.

    Parameters
    ----------
    values
        One value per seed; values that are not finite are left out.

    Returns
    -------
    Summary
        `sd` is NaN for fewer than two values, since one seed says nothing about spread. `low` and `high` are NaN for
        fewer than three, and `mean` is NaN for none. A spread of the size of rounding errors is 0.
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    n, mean, sd, half = len(values), np.nan, np.nan, np.nan
    if n > 0:
        mean = float(values.mean())
    if n > 1:
        sd = float(values.std(ddof=1))
        sd = sd if sd > 1e-6 * abs(mean) else 0.0
    if n >= MIN_FOR_INTERVAL:
        half = float(student.ppf((1 + LEVEL) / 2, n - 1)) * sd / np.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def summaries(table: pd.DataFrame, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """Return a row per group of a table with the columns of `Summary`; groups keep the order of the table."""
    groups = table.groupby(list(by), sort=False)[value]
    return pd.DataFrame([[*key, *summarise(values)] for key, values in groups], columns=[*by, *Summary._fields])


def bootstrap_mean(values: ArrayLike) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean, with values drawn as if they were independent.

    It is NaN, NaN for fewer than two values. Efron & Tibshirani, *An Introduction to the Bootstrap*, chapter 13.
    """
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return np.nan, np.nan
    settings = {"confidence_level": LEVEL, "n_resamples": 1000, "batch": 50, "method": "percentile"}
    low, high = bootstrap((values,), np.mean, **settings, rng=np.random.default_rng(0)).confidence_interval
    return float(low), float(high)
