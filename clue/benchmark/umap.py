"""Two-dimensional pictures of the embedded test cells."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd

from clue.benchmark.contracts import ContractError
from clue.matching import Metric, as_points

NEIGHBORS = 15
MIN_DIST = 0.3
EPOCHS = 200
"""UMAP's own number for more than 10,000 points; for fewer it takes 500, at more than twice the time."""


def sample_cells(solution: ad.AnnData, n_points: int, seed: int) -> pd.DataFrame:
    """Return ``obs`` of a solution, or of a seeded sample of it whose cells make at most `n_points` points.

    A cell is one point per modality: both of them are drawn, so that a picture shows whether they meet.
    """
    n_cells = max(1, n_points // len(solution.uns["modalities"]))
    if solution.n_obs <= n_cells:
        return solution.obs.copy()
    rows = np.random.default_rng(seed).choice(solution.n_obs, n_cells, replace=False)
    return solution.obs.iloc[np.sort(rows)].copy()


def points(embedding: ad.AnnData, cells: pd.DataFrame, modalities: list[str], where: str) -> ad.AnnData:
    """Return the rows of an embedding that belong to `cells`, modality after modality, with their cell type."""
    names = pd.Index(np.concatenate([cells[modality].astype(str) for modality in modalities]))
    missing = names.difference(embedding.obs_names)
    if len(missing):
        raise ContractError(f"{where}: lacks {len(missing)} of {len(names)} test cells, such as {missing[0]!r}")
    found = embedding[names].copy()
    found.obs["cell_type"] = np.tile(cells["cell_type"].astype(str).to_numpy(), len(modalities))
    return found


def coordinates(vectors: np.ndarray, seed: int, metric: Metric = "cosine") -> np.ndarray:
    """Return UMAP coordinates, shape (cells, 2), of the rows of `vectors`, compared by `metric`.

    All modalities go in together. One thread and a fixed seed: the same picture every time.
    """
    (vectors,) = as_points(vectors, metric=metric)
    vectors = vectors.astype(np.float32)
    n_cells, width = vectors.shape
    if n_cells < 5:  # no neighbourhoods to speak of
        return np.pad(vectors, ((0, 0), (0, max(0, 2 - width))))[:, :2]

    from sklearn.neighbors import NearestNeighbors
    from umap import UMAP

    # Exact neighbours from scikit-learn: for thousands of points UMAP's own search takes ten times as long.
    n_neighbors = min(NEIGHBORS, n_cells - 1)
    distances, indices = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(vectors).kneighbors(vectors)
    # A collapsed embedding has no principal axes to start from.
    init = "pca" if width > 1 and np.ptp(vectors, axis=0).any() else "random"
    reducer = UMAP(
        n_neighbors=n_neighbors,
        min_dist=MIN_DIST,
        n_epochs=EPOCHS,
        init=init,
        random_state=seed,
        n_jobs=1,
        precomputed_knn=(indices, distances.astype(np.float32)),
        force_approximation_algorithm=True,  # else it ignores them below 4,096 points
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(precomputed_knn|search index|transform).*")
        return reducer.fit_transform(vectors)
