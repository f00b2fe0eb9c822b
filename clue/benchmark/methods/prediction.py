"""What predicting methods share: training cells to learn from, and a line from expected to measured values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from clue.benchmark.methods.task import Task

MAX_CELLS = 2000
"""Most training cells by which a prediction is brought to scale."""


def paired_names(task: Task, source: str, target: str, seed: int, at_most: int = MAX_CELLS) -> pd.Index:
    """Return the names of training cells seen in both modalities, drawn at random where there are more."""
    first, second = (task.train.mod[name].obs_names for name in (source, target))
    names = first.intersection(second).sort_values()
    return names[np.sort(np.random.default_rng(seed).permutation(len(names))[:at_most])]


def training_mean(task: Task, target: str) -> np.ndarray:
    """Return the mean of each target feature over the training cells, shape (targets,)."""
    values = task.targets[target].values(task.train.mod[target])
    return np.asarray(values.mean(axis=0)).ravel()


class Scale:
    """A straight line for each feature, from a model's expectation to the value that is measured.

    Parameters
    ----------
    expected, measured
        Of some training cells, shape (cells, targets): what the model expects, and what was measured, on the scale of
        predictions. The mean of logarithms is not the logarithm of the mean, and a model's spread is not the data's:
        the line, by least squares, corrects both. It never falls. Where `measured` is of other cells, only the means
        are brought together.
    paired
        Whether rows are of one cell each.
    """

    def __init__(self, expected: np.ndarray, measured: np.ndarray, paired: bool = True):
        mean_x, mean_y = expected.mean(axis=0, dtype=float), measured.mean(axis=0, dtype=float)
        self.slope = np.ones_like(mean_x)
        if paired:
            x, y = expected - mean_x, measured - mean_y
            squares, products = (x**2).sum(axis=0), (x * y).sum(axis=0)
            self.slope = np.divide(products, squares, out=np.zeros_like(mean_x), where=squares > 1e-12).clip(0)
        self.intercept = mean_y - self.slope * mean_x

    def __call__(self, expected: np.ndarray) -> np.ndarray:
        """Return expectations of other cells on the scale of what is measured."""
        return self.intercept + self.slope * expected


def fit_scale(
    task: Task, source: str, target: str, chosen: np.ndarray, expected: Callable[[pd.Index], np.ndarray], seed: int
) -> Scale:
    """Return the scale of a prediction by training cells seen in both modalities; where there are none, in either.

    Parameters
    ----------
    chosen
        Which of the targets the model predicts, a mask.
    expected
        Returns what the model expects of these for training cells of `source`, by their names.
    seed
        Of the cells that are drawn.
    """
    names = paired_names(task, source, target, seed)
    if len(names):
        return Scale(expected(names), measured(task, target, names)[:, chosen])
    of_source, of_target = (paired_names(task, modality, modality, seed) for modality in (source, target))
    return Scale(expected(of_source), measured(task, target, of_target)[:, chosen], paired=False)


def measured(task: Task, target: str, names: pd.Index) -> np.ndarray:
    """Return the values of the targets in some training cells, shape (cells, targets)."""
    return task.targets[target].values(task.train.mod[target][names]).toarray()
