"""Bare arrays of counts, cells × features, one ``.npy`` file per modality: no names, no annotations."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec, counts_of, reading

FEATURES = {"rna": "gene", "atac": "peak", "adt": "protein"}


def prepare_npy(spec: Spec, folder: Path) -> Modalities:
    """Return the arrays with names of cells and features; cells that repeat in all of them are dropped."""
    counts = {modality: _load_array(folder / file) for modality, file in spec["prepare"]["files"].items()}
    sizes = {str(folder / file): counts[modality].shape[0] for modality, file in spec["prepare"]["files"].items()}
    if len(set(sizes.values())) != 1:
        raise PrepareError(f"arrays have unequal numbers of cells: {sizes}")
    n_cells = next(iter(sizes.values()))
    first = _first_of_duplicates(list(counts.values()))
    if len(first) < n_cells:
        print(f"{n_cells - len(first)} of {n_cells} cells repeat an earlier cell in all modalities and are dropped")
    cells = pd.Index([f"cell_{i:04d}" for i in range(1, n_cells + 1)])[first]
    modalities = {}
    for modality, matrix in counts.items():
        features = [f"{FEATURES[modality]}_{j:05d}" for j in range(1, matrix.shape[1] + 1)]
        obs = pd.DataFrame({"batch": "all"}, index=cells)
        modalities[modality] = ad.AnnData(matrix[first], obs=obs, var=pd.DataFrame(index=features))
    return modalities


def _load_array(path: Path) -> sp.csr_matrix:
    with reading(path):
        array = np.load(path, allow_pickle=False)
    if array.ndim != 2:
        raise PrepareError(f"{path}: has {array.ndim} dimensions; an array of cells × features is needed")
    return counts_of(array, str(path))


def _first_of_duplicates(matrices: list[sp.csr_matrix]) -> np.ndarray:
    """Return the rows, in order, that repeat no earlier row in all matrices at once."""
    joint = sp.hstack(matrices, format="csr")
    joint.sort_indices()
    first: dict[tuple[bytes, bytes], int] = {}
    for row in range(joint.shape[0]):
        entries = slice(joint.indptr[row], joint.indptr[row + 1])
        first.setdefault((joint.indices[entries].tobytes(), joint.data[entries].tobytes()), row)
    return np.array(list(first.values()))
