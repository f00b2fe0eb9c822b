"""Score with scib-metrics how embeddings keep cell types together and mix modalities; one table per split.

Neighbours are computed once per embedding and serve every metric that needs them.
"""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from clue.benchmark.contracts import metric_of, read_solution
from clue.benchmark.program import run_program
from clue.benchmark.report import tables, umap
from clue.matching import as_points

NEIGHBOURS = 90
"""The default for LISI in scib-metrics."""
GRAPH_NEIGHBOURS = 15
COLUMNS = ["dataset", "split", "method", "variant", "seed", "group", "metric", "value", "n_points", "labels"]


def scores(vectors: np.ndarray, types: np.ndarray, modalities: np.ndarray, seed: int) -> dict[tuple[str, str], float]:
    """Return the metrics by group (``bio`` or ``mixing``) and name; 1 is best, 0 or slightly less is chance or worst.

    Parameters
    ----------
    vectors
        Points of all modalities, shape (points, dimensions); their Euclidean distances are used (`as_points`).
    types, modalities
        Cell type and modality of each point; modalities take the place of batches.
    seed
        Seed of k-means.
    """
    import scib_metrics as sm  # imports JAX, which takes seconds
    from scib_metrics.nearest_neighbors import NeighborsResults

    vectors = vectors.astype(np.float32)
    k = min(NEIGHBOURS, len(vectors) - 1)
    distances, indices = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors).kneighbors(vectors)
    near = NeighborsResults(indices=indices, distances=distances)
    graph = near.subset_neighbors(n=min(GRAPH_NEIGHBOURS, k))
    types, modalities = pd.factorize(types)[0], pd.factorize(modalities)[0]
    # scib-metrics computes silhouettes for types with more points than modalities, and fails if there is no such type.
    has_silhouettes = np.bincount(types).max() > len(np.unique(modalities))
    clusters = sm.nmi_ari_cluster_labels_kmeans(vectors, types)
    return {
        ("bio", "nmi"): clusters["nmi"],
        ("bio", "ari"): clusters["ari"],
        ("bio", "silhouette_label"): sm.silhouette_label(vectors, types, rescale=True),
        ("bio", "clisi"): sm.clisi_knn(near, types),
        ("mixing", "silhouette_modality"): (
            sm.silhouette_batch(vectors, types, modalities) if has_silhouettes else np.nan
        ),
        ("mixing", "ilisi"): sm.ilisi_knn(near, modalities),
        ("mixing", "graph_connectivity"): sm.graph_connectivity(graph, types),
    }


def main(solution: Path, embeddings: list[Path], points: int, seed: int, table: Path) -> None:
    """Run the program.

    Parameters
    ----------
    embeddings
        embedding.h5ad of each method.
    points
        Draw a sample if there are more points.
    seed
        Seed of the sample and of k-means.
    """
    sealed = read_solution(solution)
    rows = []
    for embedding in umap.sampled(embeddings, sealed, points, seed):
        job = [str(sealed.uns["dataset"]), str(sealed.uns["split"])]
        job += [str(embedding.uns[key]) for key in ("method", "variant", "seed")]
        types, modalities = (embedding.obs[key].astype(str).to_numpy() for key in ("cell_type", "modality"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            (vectors,) = as_points(embedding.X, metric=metric_of(embedding))
            found = scores(vectors, types, modalities, seed)
        for (group, metric), value in found.items():
            rows.append([*job, group, metric, float(value), embedding.n_obs, str(sealed.uns["labels"])])
    tables.write_table(pd.DataFrame(rows, columns=COLUMNS), table, digits=6)


if __name__ == "__main__":
    run_program(main)
