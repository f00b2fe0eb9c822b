"""One ``.h5ad`` file with all features; its ``var`` says which modality each feature belongs to.

GEO's files of the competition (GSE194122, ``.h5ad.gz``) have this layout: raw counts in a layer, and features ``GEX``
and ``ADT`` or ``ATAC``. They also hold cells that the competition held out; these are dropped.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from clue.benchmark.data.prepare import raw_files
from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec


def prepare_h5ad(spec: Spec, folder: Path) -> Modalities:
    """Return the modalities of one ``.h5ad`` file."""
    settings = spec["prepare"]
    path = folder / settings["file"]
    adata = raw_files.read_h5ad(path, settings.get("layer"))
    rows = _kept_cells(adata.obs, settings.get("drop_cells"), path)
    obs = raw_files.obs_of(adata.obs, settings["obs"], path).iloc[rows]
    types = raw_files.column_of(adata.var, "feature_types", "var", path).astype(str)
    names = adata.var_names
    wanted = _wanted_features(names, settings.get("drop_features", []), path)
    # At full size each copy of the counts takes gigabytes, so rows are selected once and the original is released.
    matrix = adata.X if len(rows) == adata.n_obs else adata.X[rows]
    del adata
    modalities = {}
    for modality, feature_type in settings["feature_types"].items():
        columns = np.flatnonzero(types.eq(feature_type) & wanted)
        if not len(columns):
            raise PrepareError(f"{path}: no feature whose var['feature_types'] is {feature_type!r} ({modality})")
        modalities[modality] = raw_files.modality_of(matrix[:, columns], obs, names[columns], f"{path} [{modality}]")
    return modalities


def _kept_cells(obs: pd.DataFrame, drop: Spec | None, path: Path) -> np.ndarray:
    if drop is None:
        return np.arange(len(obs))
    column = raw_files.column_of(obs, drop["column"], "obs", path).astype(str)
    dropped = column.isin([str(value) for value in drop["values"]]).to_numpy()
    if not dropped.any():
        found = ", ".join(sorted(set(column)))
        raise PrepareError(f"{path}: prepare.drop_cells: no cell to drop; obs[{drop['column']!r}] holds {found}")
    print(f"{dropped.sum()} of {len(obs)} cells have {drop['column']} in {drop['values']} and are dropped")
    return np.flatnonzero(~dropped)


def _wanted_features(names: pd.Index, unwanted: list[str], path: Path) -> np.ndarray:
    if absent := sorted(set(unwanted) - set(names)):
        raise PrepareError(f"{path}: prepare.drop_features: no feature {', '.join(absent)}")
    return ~names.isin(unwanted)
