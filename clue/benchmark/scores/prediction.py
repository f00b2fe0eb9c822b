"""Score predicted values of a modality against measured ones, as openproblems scores "predict modality"."""

import numpy as np
from scipy.stats import rankdata

METRICS = ("pearson_cell", "spearman_cell", "pearson", "spearman", "rmse", "mae")


def prediction_scores(predicted: np.ndarray, measured: np.ndarray) -> dict[str, float]:
    """Return the six `METRICS` of a prediction.

    Parameters
    ----------
    predicted, measured
        Shape (cells, features), with the same cells in the same rows.

    Returns
    -------
    dict
        ``pearson_cell`` and ``spearman_cell``: correlation over the features of a cell, averaged over cells;
        ``pearson`` and ``spearman``: correlation over all values at once; ``rmse`` and ``mae``: root mean squared and
        mean absolute difference. The correlation with values that are all equal is 0. Equal values get their mean rank.
    """
    ranks = [rankdata(values, axis=1) for values in (predicted, measured)]
    overall = [rankdata(values)[None] for values in (predicted, measured)]
    difference = predicted.astype(np.float64) - measured
    return {
        "pearson_cell": float(_correlations(predicted, measured).mean()),
        "spearman_cell": float(_correlations(*ranks).mean()),
        "pearson": float(_correlations(predicted.reshape(1, -1), measured.reshape(1, -1))[0]),
        "spearman": float(_correlations(*overall)[0]),
        "rmse": float(np.sqrt((difference**2).mean())),
        "mae": float(np.abs(difference).mean()),
    }


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation of each row of x with the same row of y; 0 if a row is constant."""
    x, y = (values - values.mean(axis=1, keepdims=True, dtype=np.float64) for values in (x, y))
    norms = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    products = (x * y).sum(axis=1)
    # Because of rounding, the norm of a constant row is not quite 0.
    varies = (np.ptp(x, axis=1) > 1e-12) & (np.ptp(y, axis=1) > 1e-12)
    return np.divide(products, norms, out=np.zeros_like(products), where=varies & (norms > 0))
