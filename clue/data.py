"""Read the user's data: check the counts, batches and names of each modality, and convert them to one form."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.checks import kind_of, shown
from clue.disk import fill, is_mapped, mapped
from clue.preprocess import check_unique
from clue.sparse import as_counts, count_blocks, row_blocks

Data: TypeAlias = md.MuData | Mapping[str, ad.AnnData]
"""Cells of several modalities; cells with the same name are one cell."""

Layer: TypeAlias = str | dict | None
"""Layer that holds the counts: of all modalities, or of those that are named; None is X."""

KINDS = {"rna": "rna", "atac": "atac", "adt": "adt", "prot": "adt"}
"""How counts are prepared, by the name of the modality; ``prot`` is muon's name for surface proteins."""

BATCH = "batch"
"""Column of ``obs`` that holds the batch in the data that `read` returns."""


def modalities_of(data: Data, also: str = "") -> dict[str, ad.AnnData]:
    """Return the modalities by name; `also` names, for the error message, what else the caller accepts.

    Raises
    ------
    ValueError
        If `data` is neither a MuData nor a dict of AnnData.
    """
    if isinstance(data, md.MuData):
        return dict(data.mod)
    if isinstance(data, Mapping) and all(isinstance(adata, ad.AnnData) for adata in data.values()):
        return dict(data)
    raise ValueError(f"{also}a MuData or a dict of AnnData by modality is needed, not {kind_of(data)}")


def by_modality(name: str, given: Mapping | None, example, modalities: Sequence[str]) -> dict:
    """Return an argument that gives values for some modalities as a dict.

    Raises
    ------
    ValueError
        If it is not a dict, or names others.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{name} is {shown(given)}; it must name modalities: {name}={{'rna': {example!r}}}")
    if unknown := sorted(map(str, set(given or {}) - set(modalities))):
        raise ValueError(f"{name} names {unknown}, which the data do not hold: {list(modalities)}")
    return dict(given or {})


def kinds_of(names: Sequence[str], given: Mapping[str, str] | None) -> dict[str, str]:
    """Return how the counts of each modality are prepared: as ``rna``, ``atac`` or ``adt``.

    Raises
    ------
    ValueError
        If a modality's kind is neither given nor known from its name.
    """
    given = by_modality("kinds", given, "rna", names)
    found = {name: given.get(name, KINDS.get(name, "")) for name in names}
    for name, kind in found.items():
        if kind not in KINDS.values():
            said = f"kind {kind!r} of modality {name!r}" if kind else f"modality {name!r}"
            raise ValueError(f"{said} is unknown; say what it is: kinds={{{name!r}: 'rna'}} (or 'atac', 'adt')")
    return found


def read(data: Data, layer: Layer, batch_key: str | Sequence[str] | None) -> dict[str, ad.AnnData]:
    """Return each modality's counts, in the form of `as_counts` or mapped, with only `BATCH` in ``obs``.

    Raises
    ------
    ValueError
        If counts, names or batches do not meet the requirements of `clue.CLUE`.
    """
    shared = data.obs if isinstance(data, md.MuData) else pd.DataFrame()
    found = {}
    for name, adata in modalities_of(data).items():
        check_unique(name, "cells", adata.obs_names)
        check_unique(name, "features", adata.var_names)
        batch = batch_of(name, adata, batch_key, shared)
        found[name] = ad.AnnData(_counts(name, of_layer(adata, layer, name)), obs=batch, var=adata.var[[]])
    _check_batches(found, batch_key)
    return found


def of_layer(adata: ad.AnnData, layer: Layer, name: str) -> ad.AnnData:
    """Return `adata`, cells of the modality `name`, with the layer as its X.

    Raises
    ------
    ValueError
        If there is no such layer.
    """
    if isinstance(layer, dict):
        layer = layer.get(name)
    if layer is None:
        return adata
    if layer not in adata.layers:
        raise ValueError(f"{name}: there is no layer {layer!r}; the layers are {list(adata.layers)}")
    return ad.AnnData(adata.layers[layer], obs=adata.obs[[]], var=adata.var[[]])


def _counts(name: str, adata: ad.AnnData) -> sp.csr_matrix:
    matrix = adata.X
    if sp.issparse(matrix):
        matrix = matrix.tocsr()  # once: taking rows from a matrix stored by columns is slow
    blocks = count_blocks(matrix, name, adata)
    if matrix is None or sp.issparse(matrix) or isinstance(matrix, np.ndarray):
        for _ in blocks:
            pass
        return as_counts(matrix)
    if getattr(matrix, "format", "csr") != "csr":
        raise ValueError(f"{name}: X is {matrix.format} in its file, which cannot be read by cells; write it as csr")
    return mapped(blocks, adata.n_vars)


def batch_of(
    name: str, adata: ad.AnnData | md.MuData, batch_key: str | Sequence[str] | None, shared: pd.DataFrame
) -> pd.DataFrame:
    """Return the batch of each cell: the value of the column, or the combined values of several columns.

    Raises
    ------
    ValueError
        If a column is neither in ``obs`` nor in `shared`, or a cell has no value.
    """
    keys = [batch_key] if np.isscalar(batch_key) else list(batch_key or [])
    values = []
    for key in keys:
        if key not in adata.obs and key not in shared:
            raise ValueError(f"{name}: obs lacks the batch column {key!r}; it has {list(adata.obs)}")
        value = adata.obs[key] if key in adata.obs else shared[key].reindex(adata.obs_names)
        if value.isna().any():
            raise ValueError(f"{name}: obs[{key!r}] of cell {value.index[value.isna()][0]!r} is missing")
        values.append(value.astype(str))
    label = pd.Series("all", index=adata.obs_names) if not values else values[0].str.cat(values[1:], sep=" | ")
    return pd.DataFrame({BATCH: label.astype(object)}, index=adata.obs_names)


def batch_of_one(name: str, data: ad.AnnData | Data, modality: str | None, batch_key: str | Sequence[str]) -> pd.Series:
    """Return the batch of each cell of an AnnData, of a whole MuData, or of one modality of several."""
    shared = data.obs if isinstance(data, md.MuData) else pd.DataFrame()
    if modality is not None and not isinstance(data, ad.AnnData):
        data = modalities_of(data, "an AnnData, ").get(modality, data)
    if not isinstance(data, ad.AnnData | md.MuData):
        raise ValueError(f"{name}: within needs the obs of an AnnData or MuData, not {kind_of(data)}")
    return batch_of(name, data, batch_key, shared)[BATCH]


def _check_batches(adatas: Mapping[str, ad.AnnData], batch_key) -> None:
    """Raise an error if a cell's batch differs between its modalities."""
    labels: dict[str, pd.Series] = {}
    for name, adata in adatas.items():
        label = adata.obs[BATCH]
        for other, known in labels.items():
            both = label.index.intersection(known.index)
            wrong = both[label[both].to_numpy() != known[both].to_numpy()]
            if len(wrong):
                found = f"is {label[wrong[0]]!r}, but {known[wrong[0]]!r} in {other}"
                fix = "cells with equal names are one cell; if they are two, rename those of one sample"
                raise ValueError(f"{name}: obs[{batch_key!r}] of cell {wrong[0]!r} {found}; {fix}")
        labels[name] = label


def batches_of(adatas: Mapping[str, ad.AnnData]) -> list[str]:
    """Return the batches of all cells, sorted."""
    return sorted(set().union(*(adata.obs[BATCH].unique() for adata in adatas.values())))


def joined(first: ad.AnnData, second: ad.AnnData) -> ad.AnnData:
    """Return the cells of both, which have the same features; the counts are mapped if either's are."""
    if is_mapped(first.X.data) or is_mapped(second.X.data):
        counts = mapped(chain(row_blocks(first.X), row_blocks(second.X)), first.n_vars)
    else:
        counts = sp.vstack([first.X, second.X], format="csr")
    return ad.AnnData(counts, obs=pd.concat([first.obs, second.obs]), var=first.var)


def write_rows(path: Path, blocks: Iterable[np.ndarray], obs: pd.DataFrame, var: pd.DataFrame) -> ad.AnnData:
    """Atomically write an ``.h5ad`` file whose X comes in blocks of rows; return it backed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        ad.AnnData(obs=obs, var=var).write_h5ad(temporary)
        with h5py.File(temporary, "a") as file:
            file.pop("X", None)
            matrix = file.create_dataset("X", (len(obs), len(var)), np.float32)
            # how anndata marks a dense matrix
            matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            fill(matrix, blocks)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return ad.read_h5ad(path, backed="r")


def paired_names(cells: Mapping[str, ad.AnnData]) -> pd.Index:
    """Return the names of the cells that are seen in several modalities, in order."""
    names = pd.Index(np.concatenate([adata.obs_names for adata in cells.values()]))
    return names[names.duplicated()].unique().sort_values()


def check_paired(cells: Mapping[str, ad.AnnData]) -> None:
    """Raise an error if no cell is seen in two modalities; it shows names, which may differ by a suffix."""
    names = pd.Index(np.concatenate([adata.obs_names for adata in cells.values()]))
    if names.is_unique and all(adata.n_obs for adata in cells.values()):
        found = "no cell is seen in two modalities; CLUE learns from paired cells, whose names must be equal in both"
        examples = ", ".join(f"{adata.obs_names[0]!r} in {k}" for k, adata in cells.items())
        raise ValueError(f"{found}, including suffixes such as '-1'; the first names are {examples}")


def rows_of(
    cells: Mapping[str, ad.AnnData], names: pd.Index, features: Callable[[str, ad.AnnData], np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Compute features of the cells with these names, from data that `read` returned.

    Parameters
    ----------
    features
        Function of a modality and some of its cells that returns a row per cell.

    Returns
    -------
    features
        For each modality in which some of the cells are seen, a row per name; NaN if the cell is not seen in it.
    batch
        Batch of each cell.
    """
    rows, batch = {}, np.full(len(names), "", dtype=object)
    for k, adata in cells.items():
        row = adata.obs_names.get_indexer(names)
        seen = np.flatnonzero(row >= 0)
        if not len(seen):
            continue
        found = features(k, ad.AnnData(adata.X[row[seen]], var=adata.var))
        rows[k] = np.full((len(names), found.shape[1]), np.nan)
        rows[k][seen] = found
        batch[seen] = adata.obs[BATCH].to_numpy()[row[seen]]
    return rows, batch.astype(str)
