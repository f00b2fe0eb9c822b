"""The six files of one direction of the competition's matching task: training and test cells with their solutions.

Cells of the second modality are shuffled and renamed; the solution, a permutation matrix, says which is which. The
files hold no cell types. ``prepare.labels`` names a file to take them from, by the cell names of the first modality;
without it, cell types are derived.
"""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.contracts import MODALITIES
from clue.benchmark.data.prepare import raw_files
from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec

TYPES = {"GEX": "rna", "ATAC": "atac", "ADT": "adt"}


def prepare_competition(spec: Spec, folder: Path) -> Modalities:
    """Return training and test cells, paired by the solution, with ``is_train`` and, if given, cell types."""
    parts = [_join_pair(spec, folder, part) for part in ("train", "test")]
    modalities = {}
    for modality in parts[0]:
        if modality not in parts[1] or not parts[0][modality].var_names.equals(parts[1][modality].var_names):
            first = _find(spec, folder, "train_mod1.h5ad")
            raise PrepareError(f"{first}: features of {modality} differ between training and test files")
        modalities[modality] = raw_files.stacked([part[modality] for part in parts])
    if "labels" in spec["prepare"]:
        _add_cell_types(modalities, folder / spec["prepare"]["labels"])
    return {modality: modalities[modality] for modality in MODALITIES if modality in modalities}


def _join_pair(spec: Spec, folder: Path, part: str) -> Modalities:
    """Return both modalities of the training or test files, with cells in the order of the first modality."""
    paths = {role: _find(spec, folder, f"{part}_{role}.h5ad") for role in ("mod1", "mod2", "sol")}
    first, second = (raw_files.read_h5ad(paths[role], "counts") for role in ("mod1", "mod2"))
    order = _second_of_first(raw_files.read_h5ad(paths["sol"]), first.n_obs, second.n_obs, paths["sol"])
    second = second[order].copy()
    second.obs_names = first.obs_names
    joined, batches = {}, []
    for adata, path in ((first, paths["mod1"]), (second, paths["mod2"])):
        batches.append(raw_files.column_of(adata.obs, "batch", "obs", path).astype(str))
        types = raw_files.column_of(adata.var, "feature_types", "var", path).astype(str).unique()
        if len(types) != 1 or types[0] not in TYPES:
            raise PrepareError(f"{path}: var['feature_types'] must be one of {list(TYPES)}, not {list(types)}")
        obs = pd.DataFrame({"batch": batches[-1], "is_train": part == "train"})
        counts = raw_files.counts_of(adata.X, f"{path}: layers['counts']")
        joined[TYPES[types[0]]] = ad.AnnData(counts, obs=obs, var=adata.var)
    if not batches[0].equals(batches[1]):
        raise PrepareError(f"{paths['sol']}: pairs cells of different batches; is it the solution of these files?")
    return joined


def _find(spec: Spec, folder: Path, ending: str) -> Path:
    found = [file for file in spec["files"] if file.endswith(ending)]
    if len(found) != 1:
        raise PrepareError(f"{folder}: source.files names {len(found)} files that end in {ending!r}; name one")
    return folder / found[0]


def _second_of_first(solution: ad.AnnData, n_first: int, n_second: int, path: Path) -> np.ndarray:
    """Return the row in the second file of each cell of the first file; the solution is a permutation matrix."""
    pairs = sp.csr_matrix(solution.X)
    pairs.eliminate_zeros()
    if pairs.shape != (n_first, n_second) or n_first != n_second:
        raise PrepareError(f"{path}: X is {pairs.shape[0]} × {pairs.shape[1]} for {n_first} and {n_second} cells")
    if (np.diff(pairs.indptr) != 1).any() or not np.array_equal(np.sort(pairs.indices), np.arange(n_second)):
        raise PrepareError(f"{path}: X is not a permutation matrix; each cell must have exactly one partner")
    return pairs.indices


def _add_cell_types(modalities: Modalities, path: Path) -> None:
    with raw_files.opened(path) as file:
        obs = raw_files.read_table(file, "obs")
    raw_files.check_unique(obs.index, "cell name", path)
    cell_types = raw_files.column_of(obs, "cell_type", "obs", path).astype(str)
    for adata in modalities.values():
        absent = adata.obs_names[~adata.obs_names.isin(obs.index)]
        if len(absent):
            raise PrepareError(
                f"{path}: has no cell {absent[0]!r} ({len(absent)} of {adata.n_obs} cells are missing); does"
                " it belong to these data? Without prepare.labels, cell types are derived"
            )
        adata.obs["cell_type"] = cell_types.loc[adata.obs_names].to_numpy()
