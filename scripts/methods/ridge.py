"""Ridge regression between the principal components of two modalities, in both directions.

Cells of both modalities get coordinates for the components of each: their own where measured, predicted ones where not.
It is fitted on paired training cells; settings are chosen as for CCA, on held-out training donors (or cells). Features
are predicted by regression on all components, with the same penalty.
"""

import numpy as np

from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.prediction import measured as values_of
from clue.benchmark.methods.validation import choose, combinations, paired_cells, prepare

SETTINGS = ("penalty", "n_predicted", "power")
"""The settings that inner validation chooses; see `fit`."""


def embed(task: Task, params: dict, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Choose settings, fit, place each modality's test cells in the common space, and predict the other modality."""
    paired = paired_cells(task.train)
    grid = combinations({name: params[name] for name in SETTINGS})

    def candidates(fit_on, held_out, fold):
        inputs, tests = prepare(task, fold, fit_on, held_out, params)
        for settings in grid:
            yield place(*tests.values(), fit(*inputs.values(), **settings))

    settings, table = choose(paired, grid, candidates, params, seed)
    task.info.update(chosen=settings, inner_validation=table)
    inputs, tests = prepare(task, "paired", paired, task.test, params)
    predictions = {}
    for source, target in task.directions:
        line = regress(inputs[source], values_of(task, target, paired[target].obs_names), settings["penalty"])
        predictions[f"{source}2{target}"] = line["mean"] + (tests[source] - line["centre"]) @ line["coefficients"]
    return dict(zip(task.test, place(*tests.values(), fit(*inputs.values(), **settings)), strict=True)), predictions


def fit(x: np.ndarray, y: np.ndarray, penalty: float, n_predicted: int, power: float):
    """Return the regressions of paired rows, in both directions.

    Parameters
    ----------
    penalty
        Added to the predictors' covariance, as a share of its mean variance.
    n_predicted
        Number of leading components of each modality that are predicted and are coordinates of the common space.
    power
        A coordinate is weighted by the correlation of measured with predicted values in left-out cells, to this power.
        A component that cannot be predicted is noise in matching.

    Returns
    -------
    The regression of `x` on `y`, and that of `y` on `x`.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    return [regress_to_scale(a, b[:, :n_predicted], penalty, power) for a, b in ((y, x), (x, y))]


def regress(predictors: np.ndarray, targets: np.ndarray, penalty: float) -> dict[str, np.ndarray]:
    """Return a ridge regression: means of both, the predictors' penalised covariance, and coefficients."""
    centre, mean = predictors.mean(axis=0), targets.mean(axis=0)
    a, b = predictors - centre, targets - mean
    covariance = a.T @ a / len(a)
    covariance[np.diag_indices_from(covariance)] += penalty * np.trace(covariance) / len(covariance)
    coefficients = np.linalg.solve(covariance, a.T @ b / len(a))
    return {"centre": centre, "mean": mean, "covariance": covariance, "coefficients": coefficients}


def regress_to_scale(
    predictors: np.ndarray, targets: np.ndarray, penalty: float, power: float
) -> dict[str, np.ndarray]:
    """Return a ridge regression, and the factors that bring measured and predicted targets to the same scale.

    Predictions are shrunk, the more so the less a target depends on the predictors. Distances between measured and
    predicted values are only meaningful once both have unit variance.
    """
    line = regress(predictors, targets, penalty)
    a, b = predictors - line["centre"], targets - line["mean"]
    predicted = a @ line["coefficients"]
    # Each row's prediction if it had been left out; ridge regression gives it without a second fit.
    leverage = (1 + np.einsum("ij,ij->i", a, np.linalg.solve(line["covariance"], a.T).T)[:, None]) / len(a)
    left_out = (predicted - leverage * b) / (1 - leverage)
    # a component that is the same in all cells says nothing: its values are 0 and stay 0
    varies = (b.std(axis=0) > 0) & (predicted.std(axis=0) > 0)
    weight = np.zeros(len(varies))
    for i in np.flatnonzero(varies):
        weight[i] = np.clip(np.corrcoef(b[:, i], left_out[:, i])[0, 1], 0, 1) ** power
    return {
        "centre": line["centre"],
        "coefficients": line["coefficients"] * weight / np.where(varies, predicted.std(axis=0), 1),
        "mean": line["mean"],
        "scale": weight / np.where(varies, b.std(axis=0), 1),
    }


def place(x: np.ndarray, y: np.ndarray, regressions) -> tuple[np.ndarray, np.ndarray]:
    """Return the coordinates of cells measured as `x` and of cells measured as `y`: x's components, then y's."""
    to_x, to_y = regressions
    return (
        np.hstack([measured(x, to_x), predicted(x, to_y)]),
        np.hstack([predicted(y, to_x), measured(y, to_y)]),
    )


def measured(values: np.ndarray, regression: dict[str, np.ndarray]) -> np.ndarray:
    """Scale components that were measured."""
    return (values[:, : len(regression["mean"])] - regression["mean"]) * regression["scale"]


def predicted(values: np.ndarray, regression: dict[str, np.ndarray]) -> np.ndarray:
    """Predict components, and scale them."""
    return (values - regression["centre"]) @ regression["coefficients"]


if __name__ == "__main__":
    run_method(embed)
