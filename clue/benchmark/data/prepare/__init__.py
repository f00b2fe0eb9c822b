"""Make one ``<dataset>.h5mu`` of raw counts from the raw files of a data set.

Each layout of raw files is a function ``(spec, folder) -> {modality: AnnData}``, listed in `PREPARERS` under the name
that the YAML gives as ``prepare.kind``. `prepare` does the steps that all data sets share (zero features, expected
numbers, provenance).
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd

from clue.benchmark.contracts import VAR_COLUMNS, check_modality
from clue.benchmark.data.prepare.arrays import prepare_npy, prepare_npz
from clue.benchmark.data.prepare.competition import prepare_competition
from clue.benchmark.data.prepare.h5ad import prepare_h5ad
from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec
from clue.benchmark.data.prepare.share_seq import prepare_glue, prepare_share_seq
from clue.benchmark.data.prepare.tenx import prepare_tenx
from clue.benchmark.data.prepare.user_files import prepare_own
from clue.benchmark.data.sources import as_downloaded, describe_source
from clue.benchmark.data.task import all_cells, split_cells
from clue.simulate import simulate

__all__ = ["PREPARERS", "PrepareError", "prepare"]

OBS_COLUMNS = ["batch", "cell_type", "donor", "condition", "is_train"]


def prepare_simulated(spec: Spec, folder: Path) -> Modalities:
    """Return simulated cells, drawn by `clue.simulate`; there are no raw files."""
    try:
        return dict(simulate(**spec["prepare"]["arguments"]).mod)
    except ValueError as error:
        raise PrepareError(f"prepare.arguments: {error}") from error


PREPARERS: dict[str, Callable[[Spec, Path], Modalities]] = {
    "competition": prepare_competition,
    "glue": prepare_glue,
    "h5ad": prepare_h5ad,
    "npy": prepare_npy,
    "npz": prepare_npz,
    "own": prepare_own,
    "share_seq": prepare_share_seq,
    "simulated": prepare_simulated,
    "tenx": prepare_tenx,
}


def prepare(name: str, spec: Spec, folder: str | Path) -> md.MuData:
    """Return the prepared data set: raw counts, with the cells of every modality in the same order.

    Parameters
    ----------
    name
        The name of the data set.
    spec
        Its checked ``config/datasets/<name>.yaml``.
    folder
        The folder of its raw files, with the manifest of the download.

    Returns
    -------
    MuData
        ``uns`` holds ``dataset``, ``source`` and ``sha256`` (of the raw files).

    Raises
    ------
    PrepareError, ContractError, DownloadError
        If a raw file cannot be read or does not match the YAML.
    """
    folder = Path(folder)
    spec = as_downloaded(spec, folder)
    settings = spec["prepare"]
    columns = [*OBS_COLUMNS, *settings.get("columns", ())]
    modalities = PREPARERS[spec["prepare"]["kind"]](spec, folder)
    if sorted(modalities) != sorted(spec["modalities"]):
        raise PrepareError(
            f"{name}: modalities: the files hold {sorted(modalities)}, but the YAML says {spec['modalities']}"
        )
    modalities = _without_clashes({modality: modalities[modality] for modality in spec["modalities"]})
    for modality, adata in modalities.items():
        where = f"{_file_of(spec, folder, modality)} [{modality}]"
        layer = settings.get("layer")
        layer = layer.get(modality) if isinstance(layer, dict) else layer
        matrix = f"layer {layer!r}" if layer else "X"
        check_modality(adata, where, list(adata.obs.filter(dict.fromkeys(columns))), matrix)
        if "donor_in_batch" in spec:
            adata.obs["donor"] = _donors(name, adata.obs["batch"].astype(str), spec["donor_in_batch"])
        if not adata.X.nnz:
            raise PrepareError(f"{where}: all counts are zero")
    modalities = _drop_zero_features(modalities)
    check_expected(name, spec, modalities)
    with md.set_options(pull_on_update=False):
        mdata = md.MuData({modality: _plain(adata, columns) for modality, adata in modalities.items()})
    dropped = next(iter(modalities.values())).uns.get("dropped", "")
    mdata.uns = {"dataset": name, "source": describe_source(spec), "sha256": _digest(spec), "dropped": dropped}
    return mdata


# ---- steps that all data sets share --------------------------------------------------------------


def _file_of(spec: Spec, folder: Path, modality: str) -> Path:
    """Return the raw file that holds a modality, or the folder if several files hold it."""
    settings = spec["prepare"]
    file = settings.get("file") or settings.get("files", {}).get(modality)
    if len(spec["files"]) == 1:
        [file] = spec["files"]
    return folder / file if file else folder


def _without_clashes(modalities: Modalities) -> Modalities:
    """Prefix feature names that an earlier modality also has, since MuData needs names unique over all modalities."""
    known = pd.Index([])
    renamed = {}
    for modality, adata in modalities.items():
        clashing = adata.var_names.isin(known)
        if clashing.any():
            print(f"{modality}: {clashing.sum()} features share a name with another modality; prefixed by {modality}:")
            adata = adata.copy()
            adata.var_names = np.where(clashing, f"{modality}:" + adata.var_names, adata.var_names)
        renamed[modality] = adata
        known = known.union(adata.var_names)
    return renamed


def _donors(name: str, batch: pd.Series, pattern: str) -> pd.Series:
    """Return the part of each cell's batch name that `pattern` matches."""
    donors = batch.str.extract(f"({pattern})")[0]
    if donors.isna().any():
        without = batch[donors.isna()].iloc[0]
        raise PrepareError(f"{name}: donor_in_batch: {pattern!r} matches nothing in the batch {without!r}")
    return donors


def _drop_zero_features(modalities: Modalities) -> Modalities:
    kept = {}
    for modality, adata in modalities.items():
        seen = adata.X.getnnz(axis=0) > 0
        if not seen.all():
            print(f"{modality}: {(~seen).sum()} of {adata.n_vars} features are zero in all cells and dropped")
        kept[modality] = adata[:, seen]
    return kept


def check_expected(name: str, spec: Spec, modalities: Modalities) -> None:
    """Refuse a data set whose numbers differ from those that its YAML expects.

    Parameters
    ----------
    name
        The name of the data set.
    spec
        The data set as it was downloaded. Its ``expect`` may give the numbers of cells and features and, for each
        split, of training cells, test cells and test cells of each cell type.
    modalities
        All its cells, before subsampling.

    Raises
    ------
    PrepareError
        At the first number that differs; the message has both numbers.
    """
    expect = spec.get("expect", {})
    wanted: dict[str, int] = next(iter(pd.json_normalize(expect).to_dict("records")), {})
    obs, places = all_cells(modalities)
    found = {"n_cells": len(obs)} | {f"n_features.{modality}": adata.n_vars for modality, adata in modalities.items()}
    for split, numbers in expect.get("splits", {}).items():
        if split not in spec["splits"]:
            raise PrepareError(f"{name}: expect.splits: no split {split!r}; splits: {', '.join(spec['splits'])}")
        where, is_complete = f"{name}: splits.{split}", (places >= 0).all(axis=1)
        train, test = split_cells(obs, spec["splits"][split], where, is_complete=is_complete)
        found |= {f"splits.{split}.n_train": len(train), f"splits.{split}.n_test": len(test)}
        types = f"splits.{split}.test_cell_types"
        if "cell_type" not in obs:
            if "test_cell_types" in numbers:
                print(f"expect.{types} is not checked: the files hold no cell types")
            wanted = {key: number for key, number in wanted.items() if not key.startswith(types)}
        elif "test_cell_types" in numbers:
            n_of_type = obs["cell_type"].astype(str).iloc[test].value_counts().add_prefix(f"{types}.").to_dict()
            found |= n_of_type
            wanted = dict.fromkeys([*wanted, *n_of_type], 0) | wanted  # a type that is not listed has no cells
    for key, number in wanted.items():
        if found.get(key, 0) != number:
            raise PrepareError(
                f"{name}: expect.{key}: found {found.get(key, 0)}, expected {number}; are the data a different version?"
                " If not, correct the YAML"
            )
        print(f"{key}: {number}, as expected")


def _plain(adata: ad.AnnData, columns: list[str]) -> ad.AnnData:
    """Return only the counts and the annotations that the benchmark knows or a split needs."""
    obs = adata.obs.filter(dict.fromkeys(columns)).astype(str).astype("category")
    return ad.AnnData(adata.X.copy(), obs=obs, var=adata.var.filter(VAR_COLUMNS).astype(str))


def _digest(spec: Spec) -> str:
    if not spec["files"]:
        return hashlib.sha256(json.dumps(spec["prepare"], sort_keys=True).encode()).hexdigest()
    return "; ".join(f"{file} {sha256}" for file, sha256 in spec["files"].items())
