"""The control `random`: random unit vectors, independent of the data; the floor of every metric."""

import numpy as np

from clue.benchmark.contracts import MODALITIES
from clue.benchmark.methods import Task, run_method


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Return vectors drawn uniformly from the unit sphere, with a random stream per modality."""
    streams = {modality: np.random.default_rng([seed, MODALITIES.index(modality)]) for modality in task.test}
    return {name: unit_vectors(cells.n_obs, params["n_latent"], streams[name]) for name, cells in task.test.items()}


def unit_vectors(n_cells: int, n_latent: int, rng: np.random.Generator) -> np.ndarray:
    """Return an array (n_cells, n_latent) of unit vectors, uniform on the sphere."""
    vectors = rng.standard_normal((n_cells, n_latent))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    run_method(embed)
