"""Summaries over seeds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student


@dataclass(frozen=True)
class Summary:
    """Mean of `n` values, their standard deviation, and an interval for the mean."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


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
        With one value `sd`, `low` and `high` are NaN: one seed says nothing about spread.
        With none `mean` is NaN too.
    """
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    mean = float(values.mean()) if n else np.nan
    if n < 2:
        return Summary(n, mean, np.nan, np.nan, np.nan)
    sd = float(values.std(ddof=1))
    half = float(student.ppf((1 + level) / 2, n - 1)) * sd / np.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)
