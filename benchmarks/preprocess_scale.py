"""Feature preparation at the competition's full size, ours compared with the winning entry's.

    OMP_NUM_THREADS=1 python benchmarks/preprocess_scale.py [--cells 5000 20000 69249] [--genes 13431] [--peaks 116490]
        [--components 100] [--modalities rna atac] [--limit-gb 12] [--folder FOLDER] [--sides ours peer]

The cells are simulated, of ten types, each with about 4,500 non-zeros among the peaks and 1,500 among the genes. The
peer takes the winning entry's steps with scanpy and scikit-learn, from the same raw counts. For RNA: variable genes by
batch, dense standardised expression, randomised SVD. For ATAC: TF-IDF through sparse products, randomised SVD. Each row
is a separate process, which gets no memory above the limit; if it needs more, its row says so. Peak memory includes the
Python libraries and what they compile (0.3 to 0.4 GB). times_csr does not: it is the memory of the counts plus the
memory added to them, divided by the memory of the counts.
"""

import resource
import tempfile
import time
from enum import StrEnum
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from measure import in_process, memory_gb, peak_gb, row
from tqdm import tqdm

from clue.benchmark.program import run_program

N_TYPES, N_BATCHES = 10, 13
NONZERO = {"rna": 1_500, "atac": 4_500}
SELECTED = {"rna": 10_000, "atac": 30_000}
Modality = StrEnum("Modality", list(NONZERO))
Side = StrEnum("Side", ["ours", "peer"])


def main(
    cells: tuple[int, ...] = (5_000, 20_000, 69_249),
    genes: int = 13_431,
    peaks: int = 116_490,
    components: int = 100,
    modalities: tuple[Modality, ...] = tuple(Modality),
    limit_gb: float = 12.0,
    folder: Path | None = None,
    sides: tuple[Side, ...] = tuple(Side),
) -> None:
    """Print a row per size, modality and side.

    Parameters
    ----------
    cells, genes, peaks
        Sizes of the data.
    components
        How many components to compute.
    modalities
        Any of rna and atac.
    limit_gb
        Memory that a side may use.
    folder
        Where the counts (4 GB at full size) are written and removed.
    sides
        Any of ours and peer.
    """
    row("cells", "modality", "components", "side", "seconds", "peak_GB", "csr_GB", "times_csr", "peer_over_ours")
    for n_cells in cells:
        for modality, n_features in (("rna", genes), ("atac", peaks)):
            if modality in modalities:
                with tempfile.TemporaryDirectory(dir=folder) as written:
                    path = Path(written, "counts.npz")
                    sp.save_npz(path, simulated(n_cells, n_features, NONZERO[modality]), compressed=False)
                    compare([n_cells, modality, components], sides, path, limit_gb)


def compare(task: list, sides: tuple[Side, ...], path: Path, limit_gb: float) -> None:
    """Run each side on one file and print their rows, which begin with `task`: cells, modality and components."""
    ours = None
    for side in sides:
        try:
            seconds, peak, before, counts = in_process(measure, side, *task[1:], path, limit_gb)
        except MemoryError:
            row(*task, side, "out of memory", f">{limit_gb:g}", "-", "-", "-")
            continue
        ours = seconds if side == "ours" else ours
        added = counts + peak - before
        row(*task, side, seconds, peak, counts, added / counts, seconds / ours if ours else "-")


def simulated(n_cells: int, n_features: int, n_nonzero: int, block: int = 2_000) -> sp.csr_matrix:
    """Return counts of cells whose type decides how likely each feature is."""
    rng = np.random.default_rng(0)
    likely = rng.lognormal(0, 1, n_features) * rng.lognormal(0, 0.7, (N_TYPES, n_features))
    cumulative = np.cumsum(likely / likely.sum(axis=1, keepdims=True), axis=1)
    n_nonzero = min(n_nonzero, n_features // 3)
    blocks = []
    for start in tqdm(range(0, n_cells, block), desc=f"simulating {n_cells} cells", unit="block", mininterval=5):
        n = min(block, n_cells - start)
        # several draws may hit one feature, which gives counts above 1
        depth = rng.poisson(n_nonzero * rng.lognormal(0, 0.3, n))
        cell = np.repeat(np.arange(n), depth)
        kind = np.repeat(rng.integers(0, N_TYPES, n), depth)
        feature = np.empty(len(cell), dtype=np.int64)
        for k in range(N_TYPES):
            of_kind = np.flatnonzero(kind == k)
            feature[of_kind] = np.searchsorted(cumulative[k], rng.random(len(of_kind)))
        ones = np.ones(len(cell), dtype=np.float32)
        blocks.append(sp.csr_matrix((ones, (cell, np.minimum(feature, n_features - 1))), shape=(n, n_features)))
    return sp.vstack(blocks, format="csr")


# ---- in a child process --------------------------------------------------------------------------


def measure(side: str, modality: str, n_components: int, path: Path, limit_gb: float) -> tuple[float, ...]:
    """Fit and transform; return seconds, peak memory, memory before, and the memory of the counts."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gb * 2**30),) * 2)
    # A few cells first, since what libraries load and compile on first use is not to be measured.
    SIDES[side](in_batches(simulated(2_100, 2_500, 800)), modality, 10)
    counts = sp.load_npz(path)
    size = (counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes) / 2**30
    adata = in_batches(counts)
    before, start = memory_gb()["rss"], time.monotonic()
    result = SIDES[side](adata, modality, n_components)
    seconds = time.monotonic() - start
    assert len(result) == adata.n_obs and np.isfinite(result).all()
    return seconds, peak_gb(), before, size


def in_batches(counts: sp.csr_matrix) -> ad.AnnData:
    """Return cells that take turns in `N_BATCHES` batches."""
    adata = ad.AnnData(counts)
    adata.obs["batch"] = (np.arange(adata.n_obs) % N_BATCHES).astype(str)
    return adata


def n_selected(adata: ad.AnnData, modality: str) -> int:
    """Return how many features to select; never all of them, so that selection is measured too."""
    return min(SELECTED[modality], adata.n_vars * 9 // 10)


def ours(adata: ad.AnnData, modality: str, n_components: int) -> np.ndarray:
    """Our encoder input."""
    from clue.preprocess import preprocessor

    return preprocessor(modality, n_components, n_selected(adata, modality)).fit(adata).transform(adata)


def peer(adata: ad.AnnData, modality: str, n_components: int) -> np.ndarray:
    """The winning entry's encoder input."""
    return (_peer_rna if modality == "rna" else _peer_atac)(adata, n_components)


def _peer_rna(adata: ad.AnnData, n_components: int) -> np.ndarray:
    import scanpy as sc
    from sklearn.utils.extmath import randomized_svd

    n_top = n_selected(adata, "rna")
    table = sc.pp.highly_variable_genes(adata, n_top_genes=n_top, flavor="seurat_v3", batch_key="batch", inplace=False)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    values = adata[:, table["highly_variable"].to_numpy()].X.toarray()
    values -= values.mean(axis=0)
    values /= np.maximum(values.std(axis=0), 1e-12)
    values = np.clip(values, -10, 10)
    u, s, _ = randomized_svd(values, min(n_components, min(values.shape) - 1), n_iter=15, random_state=0)
    return u * s


def _peer_atac(adata: ad.AnnData, n_components: int) -> np.ndarray:
    from sklearn.preprocessing import normalize
    from sklearn.utils.extmath import randomized_svd

    counts = adata.X
    frequency = counts.multiply(1 / np.maximum(counts.sum(axis=1), 1))
    idf = counts.shape[0] / np.maximum(np.asarray(counts.sum(axis=0)), 1)
    values = normalize(sp.csr_matrix(frequency.multiply(idf)), norm="l1") * 1e4
    values = np.log1p(values)
    u, s, _ = randomized_svd(values, min(n_components, min(values.shape) - 1), n_iter=15, random_state=0)
    scores = u * s
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0, ddof=1)
    scores -= scores.mean(axis=1, keepdims=True)
    return scores / scores.std(axis=1, ddof=1, keepdims=True)


SIDES = {"ours": ours, "peer": peer}


if __name__ == "__main__":
    run_program(main)
