"""Ridge-regularised canonical correlation analysis on principal components.

Fitted on paired training cells. Its settings are chosen on training donors (or cells) held out from
them, with the benchmark's own metrics, and the model is then fitted on all paired cells.
"""

from itertools import product

import numpy as np

from clue.benchmark.methods import Task, run_method
from clue.benchmark.validation import criterion, inner_split, paired_cells, quality
from clue.preprocess import Preprocessor


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Choose settings, fit, and project each modality's test cells on the canonical directions."""
    paired = paired_cells(task.train)
    settings, table = choose(paired, params, seed)
    task.info.update(chosen=settings, inner_validation=table)
    prepared, inputs = prepare(paired, params, seed)
    projections = fit(*inputs.values(), **settings)
    return {
        modality: project(prepared[modality].transform(cells), projections[i])
        for i, (modality, cells) in enumerate(task.test.items())
    }


def prepare(paired, params, seed):
    """Fit preprocessing on paired cells; return it and its output per modality."""
    prepared = {
        k: Preprocessor(k, params["n_pca"], params["n_features"].get(k), seed=seed).fit(a) for k, a in paired.items()
    }
    return prepared, {k: prepared[k].transform(a) for k, a in paired.items()}


def choose(paired, params, seed) -> tuple[dict, list[dict]]:
    """Return the settings that do best on held-out training cells, and the table of all."""
    grid = [
        dict(zip(("n_input", "ridge", "n_components", "power"), values, strict=True))
        for values in product(params["n_input"], params["ridge"], params["n_components"], params["power"])
    ]
    scores = np.zeros((len(grid), 2))
    for fold in range(params["n_folds"]):
        fit_on, held_out = inner_split(paired, seed + fold, at_most=params["max_held_out"])
        prepared, inputs = prepare(fit_on, params, seed)
        tests = [prepared[k].transform(a) for k, a in held_out.items()]
        batch = next(iter(held_out.values())).obs["batch"].astype(str).to_numpy()
        for row, settings in enumerate(grid):
            projections = fit(*inputs.values(), **settings)
            embedded = [project(x, p) for x, p in zip(tests, projections, strict=True)]
            scores[row] += quality(*embedded, batch)
    scores /= params["n_folds"]
    best = max(range(len(grid)), key=lambda row: criterion(*scores[row]))
    table = [s | {"match_score": m, "foscttm": f} for s, (m, f) in zip(grid, scores.tolist(), strict=True)]
    return grid[best], table


def fit(x: np.ndarray, y: np.ndarray, n_input: int, ridge: float, n_components: int, power: float):
    """Canonical directions of paired rows.

    Parameters
    ----------
    n_input
        Leading principal components to use of each modality.
    ridge
        Added to each covariance, as a share of its mean variance.
    n_components
        Canonical components to keep.
    power
        Components are weighted by their canonical correlation to this power.

    Returns
    -------
    (mean, directions) of x and of y.
    """
    x, y = x[:, :n_input].astype(np.float64), y[:, :n_input].astype(np.float64)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x, y = x - mean_x, y - mean_y
    white_x, white_y = whitening(x, ridge), whitening(y, ridge)
    u, correlation, vt = np.linalg.svd(white_x.T @ (x.T @ y / len(x)) @ white_y, full_matrices=False)
    weight = correlation[:n_components] ** power
    return (mean_x, white_x @ u[:, :n_components] * weight), (mean_y, white_y @ vt[:n_components].T * weight)


def whitening(x: np.ndarray, ridge: float) -> np.ndarray:
    """Inverse square root of the ridged covariance of centred rows."""
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
