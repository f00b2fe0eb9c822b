"""Two-dimensional pictures of the embedded test cells."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from tqdm import tqdm

from clue.benchmark.contracts import read_embedding
from clue.matching import Metric, as_points

NEIGHBORS = 15
MIN_DIST = 0.3
EPOCHS = 200
"""UMAP's default for more than 10,000 points. For fewer its default is 500, which takes more than twice as long."""


def sample_cells(solution: ad.AnnData, n_points: int, seed: int) -> pd.DataFrame:
    """Return ``obs`` of a solution, or of a seeded sample of it whose cells make at most `n_points` points.

    A cell is one point per modality. All its points are drawn, so that a picture shows whether they meet.
    """
    n_cells = max(1, n_points // len(solution.uns["modalities"]))
    if solution.n_obs <= n_cells:
        return solution.obs.copy()
    rows = np.random.default_rng(seed).choice(solution.n_obs, n_cells, replace=False)
    return solution.obs.iloc[np.sort(rows)].copy()


def points(embedding: ad.AnnData, cells: pd.DataFrame, modalities: list[str]) -> ad.AnnData:
    """Return the rows of an embedding that belong to `cells`, modality after modality, with their cell type."""
    found = embedding[np.concatenate([cells[modality].astype(str) for modality in modalities])].copy()
    found.obs["cell_type"] = np.tile(cells["cell_type"].astype(str).to_numpy(), len(modalities))
    return found


def sampled(paths: Sequence[Path], solution: ad.AnnData, n_points: int, seed: int) -> Iterator[ad.AnnData]:
    """Yield the same sample of test cells from each embedding, in the form of `points`."""
    cells = sample_cells(solution, n_points, seed)
    for path in tqdm(paths, unit="embedding", mininterval=1):
        yield points(read_embedding(path), cells, list(solution.uns["modalities"]))


def coordinates(vectors: np.ndarray, seed: int, metric: Metric = "cosine") -> np.ndarray:
    """Return UMAP coordinates, shape (cells, 2), of the rows of `vectors`, compared by `metric`.

    All modalities share one UMAP. The same seed gives the same picture.
    """
    import scanpy as sc  # imports numba, which takes seconds

    (vectors,) = as_points(vectors, metric=metric)
    adata = ad.AnnData(np.asarray(vectors, dtype=np.float32))
    if adata.n_obs < 5:  # too few for neighbourhoods
        return np.pad(adata.X, ((0, 0), (0, max(0, 2 - adata.n_vars))))[:, :2]
    sc.pp.neighbors(adata, n_neighbors=min(NEIGHBORS, adata.n_obs - 1), use_rep="X", random_state=seed)
    # Start from principal axes, which keep the global structure; a collapsed embedding has none.
    spread = adata.X.std(axis=0).any() and adata.n_vars > 1
    start = sc.pp.pca(adata.X, n_comps=2, random_state=seed) if spread else "random"
    if spread:
        start = 10 * start / np.abs(start).max()
    sc.tl.umap(adata, min_dist=MIN_DIST, maxiter=EPOCHS, init_pos=start, random_state=seed)
    return adata.obsm["X_umap"]
