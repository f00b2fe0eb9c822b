"""Cobolt, by our own implementation, `clue.benchmark.cobolt`; the authors' package is the method ``cobolt``."""

from collections.abc import Mapping

import numpy as np

from clue.benchmark import cobolt
from clue.benchmark.methods import Task, run_method


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train and return posterior means, mapped to what they are for paired cells."""
    return cobolt.run(train, task, params, seed)


def train(
    task: Task, modalities: Mapping[str, cobolt.Modality], settings: dict
) -> tuple[cobolt.Posteriors, dict[str, np.ndarray]]:
    """Train our model; return posterior means and the embeddings of the test cells."""
    found = cobolt.posteriors(cobolt.fit(modalities, **settings), modalities)
    return found, {name: cobolt.place(found, name, cells.obs_names, task.threads) for name, cells in task.test.items()}


if __name__ == "__main__":
    run_method(embed)
