"""Bare matrices of counts, one file per modality.

There are two layouts. Arrays of numpy (``.npy``) are cells × features, without names or annotations. Sparse matrices of
scipy (``.npz``) are features × cells; each has a text file of feature names, and one table describes the cells.
"""

import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.data.prepare import raw_files
from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec

FEATURES = {"rna": "gene", "atac": "peak", "adt": "protein"}


def prepare_npy(spec: Spec, folder: Path) -> Modalities:
    """Return the arrays with names for cells and features. Cells that repeat one in all arrays are dropped."""
    paths = {modality: folder / file for modality, file in spec["prepare"]["files"].items()}
    counts = {modality: _load_array(path) for modality, path in paths.items()}
    sizes = {str(path): counts[modality].shape[0] for modality, path in paths.items()}
    n_cells = next(iter(sizes.values()))
    if set(sizes.values()) != {n_cells}:
        raise PrepareError(f"arrays have unequal numbers of cells: {sizes}")
    first = _first_of_duplicates(list(counts.values()))
    if len(first) < n_cells:
        print(f"{n_cells - len(first)} of {n_cells} cells repeat an earlier cell in all modalities and are dropped")
    obs = pd.DataFrame({"batch": "all"}, index=[f"cell_{i + 1:04d}" for i in first])
    modalities = {}
    for modality, matrix in counts.items():
        names = [f"{FEATURES[modality]}_{j:05d}" for j in range(1, matrix.shape[1] + 1)]
        modalities[modality] = raw_files.modality_of(matrix[first], obs, names, str(paths[modality]))
    return modalities


def _load_array(path: Path) -> sp.csr_matrix:
    with raw_files.reading(path):
        array = np.load(path, allow_pickle=False)
    if array.ndim != 2:
        raise PrepareError(f"{path}: has {array.ndim} dimensions; an array of cells × features is needed")
    return raw_files.counts_of(array, str(path))


def _first_of_duplicates(matrices: list[sp.csr_matrix]) -> np.ndarray:
    """Return the rows, in order, that do not repeat an earlier row in all matrices at once."""
    joint = sp.hstack(matrices, format="csr")
    joint.sort_indices()
    rows = pd.Series([(joint.indices[a:b].tobytes(), joint.data[a:b].tobytes()) for a, b in pairwise(joint.indptr)])
    return np.flatnonzero(~rows.duplicated())


def prepare_npz(spec: Spec, folder: Path) -> Modalities:
    """Return the modalities; the table of cells is in the order of the matrices' columns."""
    settings = spec["prepare"]
    path = folder / settings["cells"]
    cells = raw_files.read_text(path, index_col=0)
    cells.index = cells.index.astype(str)
    obs = raw_files.obs_of(cells, settings["obs"], path)
    modalities = {}
    for modality, file in settings["files"].items():
        features = folder / settings["features"][modality]
        with raw_files.reading(features):
            names = features.read_text(encoding="utf-8").split()
        with raw_files.reading(folder / file):
            if not zipfile.is_zipfile(folder / file):
                # numpy would report it as a pickle
                raise zipfile.BadZipFile("not an npz file")
            matrix = sp.load_npz(folder / file)
        if matrix.shape != (len(names), len(obs)):
            raise PrepareError(
                f"{folder / file}: is {matrix.shape[0]} × {matrix.shape[1]}, but {features.name} names"
                f" {len(names)} features and {path.name} {len(obs)} cells"
            )
        modalities[modality] = raw_files.modality_of(matrix.T, obs, names, str(folder / file))
    return modalities
