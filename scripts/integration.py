"""Score how an embedding keeps cell types together and mixes modalities, with scib-metrics; one table per split.

Neighbours are computed once per embedding and serve every metric that needs them.
"""

import argparse
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from clue.benchmark.contracts import metric_of, read_embedding, read_solution
from clue.benchmark.errors import run_program
from clue.benchmark.report import tables
from clue.benchmark.report.umap import points, sample_cells
from clue.matching import as_points

NEIGHBOURS = 90
"""What LISI of scib-metrics takes by default."""
GRAPH_NEIGHBOURS = 15
COLUMNS = ["dataset", "split", "method", "variant", "seed", "group", "metric", "value", "n_points", "labels"]


def scores(vectors: np.ndarray, types: np.ndarray, modalities: np.ndarray, seed: int) -> dict[tuple[str, str], float]:
    """Return the metrics by group (``bio`` or ``mixing``) and name; 1 is best, 0 or a little less is chance or worst.

    Parameters
    ----------
    vectors
        Points of all modalities, shape (points, dimensions), whose Euclidean distances count (`as_points`).
    types, modalities
        Cell type and modality of each point; modalities take the place of batches.
    seed
        Of k-means.
    """
    import scib_metrics as sm  # brings JAX: seconds
    from scib_metrics.nearest_neighbors import NeighborsResults

    vectors = vectors.astype(np.float32)
    k = min(NEIGHBOURS, len(vectors) - 1)
    distances, indices = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(vectors).kneighbors(vectors)
    near = NeighborsResults(indices=indices, distances=distances)
    graph = near.subset_neighbors(n=min(GRAPH_NEIGHBOURS, k))
    types, modalities = pd.factorize(types)[0], pd.factorize(modalities)[0]
    clusters = sm.nmi_ari_cluster_labels_kmeans(vectors, types)
    return {
        ("bio", "nmi"): clusters["nmi"],
        ("bio", "ari"): clusters["ari"],
        ("bio", "silhouette_label"): sm.silhouette_label(vectors, types, rescale=True),
        ("bio", "clisi"): sm.clisi_knn(near, types),
        ("mixing", "silhouette_modality"): sm.silhouette_batch(vectors, types, modalities),
        ("mixing", "ilisi"): sm.ilisi_knn(near, modalities),
        ("mixing", "graph_connectivity"): sm.graph_connectivity(graph, types),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--solution", required=True, help="solution.h5ad of a split")
    parser.add_argument("--embeddings", nargs="+", required=True, help="embedding.h5ad of each method")
    parser.add_argument("--points", type=int, required=True, help="take a sample where there are more points")
    parser.add_argument("--seed", type=int, required=True, help="of the sample and of k-means")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    solution = read_solution(args.solution)
    cells = sample_cells(solution, args.points, args.seed)
    rows = []
    for path in tqdm(args.embeddings, desc="integration", unit="embedding", mininterval=1):
        embedding = points(read_embedding(path), cells, list(solution.uns["modalities"]), path)
        job = [str(solution.uns["dataset"]), str(solution.uns["split"])]
        job += [str(embedding.uns[key]) for key in ("method", "variant", "seed")]
        types, modalities = (embedding.obs[key].astype(str).to_numpy() for key in ("cell_type", "modality"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            (vectors,) = as_points(embedding.X, metric=metric_of(embedding))
            found = scores(vectors, types, modalities, args.seed)
        for (group, metric), value in found.items():
            rows.append([*job, group, metric, float(value), embedding.n_obs, str(solution.uns["labels"])])
    tables.write_table(pd.DataFrame(rows, columns=COLUMNS), args.table, digits=6)


if __name__ == "__main__":
    run_program(main)
