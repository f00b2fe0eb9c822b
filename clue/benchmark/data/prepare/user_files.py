"""A user's own data: one ``.h5mu`` file, or one ``.h5ad`` file per modality, with raw counts.

Cells are paired by name. Cells that lack a modality are dropped, or kept for training: scoring needs pairs.
"""

import itertools
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from clue.benchmark.data.prepare import raw_files
from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec

ONE_BATCH = "all"


def prepare_own(spec: Spec, folder: Path) -> Modalities:
    """Return a user's modalities with the columns that the YAML names; without a batch all cells are of one."""
    settings = spec["prepare"]
    layers = settings.get("layer")
    layers = layers if isinstance(layers, dict) else dict.fromkeys(spec["modalities"], layers)
    if "file" in settings:
        path = folder / settings["file"]
        read = _read_h5mu(path, spec["modalities"], layers)
        paths = dict.fromkeys(read, path)
    else:
        paths = {modality: folder / file for modality, file in settings["files"].items()}
        read = {modality: raw_files.read_h5ad(path, layers.get(modality)) for modality, path in paths.items()}
    if settings.get("keep_unpaired"):
        read, lost = raw_files.with_unpaired(read, paths), ""
    else:
        read, lost = raw_files.same_cells(read, paths, "n_cells" in spec.get("expect", {}))
    columns = {column: settings[column] for column in ("batch", "cell_type", "donor") if column in settings}
    obs = pd.DataFrame(index=pd.Index(np.concatenate([adata.obs_names for adata in read.values()])).unique())
    obs["batch"] = ONE_BATCH
    for ours, theirs in columns.items():
        obs[ours] = _column(read, theirs, f"prepare.{ours}", paths).reindex(obs.index).to_numpy()
    modalities = {}
    for modality, adata in read.items():
        counts = raw_files.counts_of(adata.X, f"{paths[modality]} [{modality}]")
        var = adata.var[[column for column in ("feature_types", "gene_ids") if column in adata.var]]
        modalities[modality] = ad.AnnData(counts, obs=obs.loc[adata.obs_names], var=var, uns={"dropped": lost})
    return modalities


def _read_h5mu(path: Path, wanted: list[str], layers: dict[str, str | None]) -> Modalities:
    """Return the wanted modalities; columns of the MuData's own ``obs`` are added to theirs."""
    with raw_files.opened(path) as file:
        if "mod" not in file:
            raise PrepareError(f"{path}: has no modalities; is it an .h5mu file? prepare.files takes .h5ad files")
        if absent := [name for name in wanted if name not in file["mod"]]:
            known = ", ".join(file["mod"])
            raise PrepareError(
                f"{path}: has no modality {', '.join(absent)} (it has {known}); rename or correct the YAML"
            )
        modalities = {name: raw_files.elements(file["mod"][name], path, layers.get(name)) for name in wanted}
        shared = raw_files.read_table(file, "obs")
    raw_files.check_unique(shared.index, "cell name", path)
    for adata in modalities.values():
        for column in shared.columns.difference(adata.obs.columns):
            adata.obs[column] = shared[column].reindex(adata.obs_names).to_numpy()
    return modalities


def _column(read: Modalities, column: str, key: str, paths: dict[str, Path]) -> pd.Series:
    """Return a column of the cells of all modalities that have it; these must agree."""
    found = {modality: adata.obs[column] for modality, adata in read.items() if column in adata.obs}
    if not found:
        modality, adata = next(iter(read.items()))
        return raw_files.column_of(adata.obs, column, f"obs ({key})", paths[modality])
    for (first, values), (modality, other) in itertools.combinations(found.items(), 2):
        shared = values.index.intersection(other.index, sort=False)
        differ = _as_text(values[shared]) != _as_text(other[shared])
        if differ.any():
            cell = shared[differ][0]
            raise PrepareError(
                f"{paths[modality]}: {key}: obs[{column!r}] of cell {cell!r} is {other[cell]!r} in {modality}, but"
                f" {values[cell]!r} in {first}; make them equal, or give them different names"
            )
    values, *others = found.values()
    for other in others:
        if len(more := other.index.difference(values.index, sort=False)):
            values = pd.concat([values, other[more]])
    return values


def _as_text(values: pd.Series) -> np.ndarray:
    """Return values as text; one table may hold as 1.0 what another holds as 1, or as NA what another holds as NaN."""
    text = values.astype(object).where(values.notna(), np.nan)
    return text.map(lambda value: str(value).removesuffix(".0")).to_numpy()
