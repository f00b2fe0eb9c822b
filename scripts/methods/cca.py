"""Ridge-regularised canonical correlation analysis on principal components.

It is fitted on paired training cells. First the benchmark's own metrics choose its settings on held-out training donors
(or cells); then the model is fitted on all paired cells.
"""

from functools import cache

import numpy as np

from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.validation import choose, combinations, paired_cells, prepare
from clue.correction import remove_hubs, remove_shifts

SETTINGS = ("n_input", "ridge", "n_canonical", "power")
"""The settings that inner validation chooses; see `factorise` and `directions`."""


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Choose settings, fit, and project each modality's test cells on the canonical directions."""
    paired = paired_cells(task.train)
    grid = combinations({name: params[name] for name in SETTINGS})

    def candidates(fit_on, held_out, fold):
        inputs, tests = prepare(task, fold, fit_on, held_out, params)
        factorised = cache(lambda n_input, ridge: factorise(*inputs.values(), n_input, ridge))
        for s in grid:
            projections = directions(factorised(s["n_input"], s["ridge"]), s["n_canonical"], s["power"])
            yield [project(x, p) for x, p in zip(tests.values(), projections, strict=True)]

    settings, table = choose(paired, grid, candidates, params, seed)
    task.info.update(chosen=settings, inner_validation=table)
    inputs, tests = prepare(task, "paired", paired, task.test, params)
    projections = fit(*inputs.values(), **settings)
    placed = [project(x, p) for x, p in zip(tests.values(), projections, strict=True)]
    if params["corrected"]:
        batches = [cells.obs["batch"] for cells in task.test.values()]
        placed = remove_hubs(remove_shifts(placed, batches), batches)
    return dict(zip(tests, placed, strict=True))


def fit(x: np.ndarray, y: np.ndarray, n_input: int, ridge: float, n_canonical: int, power: float):
    """Return the canonical directions of paired rows; the parameters are those of `factorise` and `directions`.

    Returns
    -------
    (mean, directions) of x and of y.
    """
    return directions(factorise(x, y, n_input, ridge), n_canonical, power)


def factorise(x: np.ndarray, y: np.ndarray, n_input: int, ridge: float):
    """Return the mean and all canonical directions of x, the same of y, and the canonical correlations.

    Parameters
    ----------
    n_input
        Number of leading principal components of each modality to use.
    ridge
        Added to each covariance, as a share of its mean variance.
    """
    x, y = x[:, :n_input].astype(np.float64), y[:, :n_input].astype(np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    white_x, white_y = whitening(x, ridge), whitening(y, ridge)
    u, correlation, vt = np.linalg.svd(white_x.T @ (x.T @ y / len(x)) @ white_y, full_matrices=False)
    return (mean_x, white_x @ u), (mean_y, white_y @ vt.T), correlation


def directions(factors, n_canonical: int, power: float):
    """Return (mean, directions) of x and of y.

    Parameters
    ----------
    factors
        The result of `factorise`.
    n_canonical
        Number of canonical components to keep.
    power
        Components are weighted by their canonical correlation to this power.
    """
    (mean_x, of_x), (mean_y, of_y), correlation = factors
    weight = correlation[:n_canonical] ** power
    return (mean_x, of_x[:, :n_canonical] * weight), (mean_y, of_y[:, :n_canonical] * weight)


def whitening(x: np.ndarray, ridge: float) -> np.ndarray:
    """Return the inverse square root of the ridged covariance of centred rows."""
    covariance = x.T @ x / len(x)
    covariance[np.diag_indices_from(covariance)] += ridge * np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh(covariance)
    return vectors / np.sqrt(values) @ vectors.T


def project(x: np.ndarray, projection: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Project rows on canonical directions."""
    mean, directions = projection
    return (x[:, : len(mean)] - mean) @ directions


if __name__ == "__main__":
    run_method(embed)
