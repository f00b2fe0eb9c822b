"""Tools that predicting methods share: training cells to learn from, and a line from expected to measured values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from clue.benchmark.methods.task import Task

MAX_CELLS = 2000
"""Largest number of training cells used to bring a prediction to scale."""


def paired_names(task: Task, source: str, target: str, seed: int, at_most: int = MAX_CELLS) -> pd.Index:
    """Return the names of training cells seen in both modalities: at most `at_most`, drawn at random."""
    first, second = (task.train.mod[name].obs_names for name in (source, target))
    names = first.intersection(second).sort_values()
    return names[np.sort(np.random.default_rng(seed).permutation(len(names))[:at_most])]


def training_mean(task: Task, target: str) -> np.ndarray:
    """Return the mean of each target feature over the training cells, shape (targets,)."""
    values = task.targets[target].values(task.train.mod[target])
    return np.asarray(values.mean(axis=0)).ravel()


class Scale:
    """A straight line for each feature, from a model's expected value to the measured value.

    Parameters
    ----------
    expected, measured
        Values of some training cells, shape (cells, targets): expected by the model, and measured on the scale of
        predictions. The mean of logarithms is not the logarithm of the mean, and a model's spread is not the data's.
        The least-squares line corrects both; it never falls. If `measured` is of other cells, only the means are
        matched.
    paired
        Whether the rows of both belong to the same cells.
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
        """Bring the expected values of other cells to the scale of measured values."""
        return self.intercept + self.slope * expected


def fit_scale(
    task: Task, source: str, target: str, chosen: np.ndarray, expected: Callable[[pd.Index], np.ndarray], seed: int
) -> Scale:
    """Fit the scale of a prediction on training cells seen in both modalities or, if there are none, in either.

    Parameters
    ----------
    chosen
        A mask of the targets that the model predicts.
    expected
        Returns the model's expected values of these targets for training cells of `source`, given their names.
    seed
        Seed for drawing cells.
    """
    names = paired_names(task, source, target, seed)
    if len(names):
        return Scale(expected(names), measured(task, target, names)[:, chosen])
    of_source, of_target = (paired_names(task, modality, modality, seed) for modality in (source, target))
    return Scale(expected(of_source), measured(task, target, of_target)[:, chosen], paired=False)


def measured(task: Task, target: str, names: pd.Index) -> np.ndarray:
    """Return the values of the targets in some training cells, shape (cells, targets)."""
    return task.targets[target].values(task.train.mod[target][names]).toarray()
