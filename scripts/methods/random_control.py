"""The control `random`, the floor of every metric: random unit vectors, and training means as predictions."""

import numpy as np

from clue.benchmark.contracts import MODALITIES
from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.prediction import training_mean


def embed(task: Task, params: dict, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return vectors drawn uniformly from the unit sphere, with one random stream per modality, and training means."""
    streams = {modality: np.random.default_rng([seed, MODALITIES.index(modality)]) for modality in task.test}
    vectors = {name: unit_vectors(cells.n_obs, params["n_latent"], streams[name]) for name, cells in task.test.items()}
    means = {f"{a}2{b}": np.tile(training_mean(task, b), (task.test[a].n_obs, 1)) for a, b in task.directions}
    return vectors, means


def unit_vectors(n_cells: int, n_latent: int, rng: np.random.Generator) -> np.ndarray:
    """Return an array (n_cells, n_latent) of unit vectors, uniform on the sphere."""
    vectors = rng.standard_normal((n_cells, n_latent))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    run_method(embed)
