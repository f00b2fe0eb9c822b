"""Make one ``dataset.h5mu`` of raw counts from the raw files of a data set.

Each kind of preparation is a function ``(spec, folder) -> {modality: AnnData}`` in `PREPARERS`; all that
data sets have in common (zero features, expected counts, subsample, provenance) is done once, in `prepare`.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.contracts import MODALITIES, check_modality
from clue.benchmark.download import describe_source, taken
from clue.benchmark.errors import BenchmarkError
from clue.simulate import simulate

SUBSAMPLE_SEED = 0
OBS_COLUMNS = ("batch", "cell_type", "donor", "condition", "is_train")
VAR_COLUMNS = ("feature_types", "gene_ids")
COMPETITION_TYPES = {"GEX": "rna", "ATAC": "atac", "ADT": "adt"}

Spec = Mapping[str, Any]
Modalities = dict[str, ad.AnnData]


class PrepareError(BenchmarkError):
    """Raw files are not what the data set's YAML says."""


def prepare(name: str, spec: Spec, folder: str | Path, max_cells: int | None = None) -> md.MuData:
    """Return the prepared data set: raw counts, every cell in every modality, in the same order.

    Parameters
    ----------
    name
        The name of the data set.
    spec
        Its checked ``config/datasets/<name>.yaml``.
    folder
        The folder of its raw files, with the manifest of the download.
    max_cells
        Keep a seeded uniform subsample of so many cells; all where the data set has no more.

    Returns
    -------
    MuData
        ``uns`` holds ``dataset``, ``source``, ``sha256`` (of the raw files) and ``n_cells_available``.

    Raises
    ------
    PrepareError, ContractError, DownloadError
        If a raw file cannot be read or does not hold what the YAML says.
    """
    folder = Path(folder)
    spec = taken(spec, folder)
    modalities = PREPARERS[spec["prepare"]["kind"]](spec, folder)
    if sorted(modalities) != sorted(spec["modalities"]):
        raise PrepareError(
            f"{name}: modalities: the files hold {sorted(modalities)}, the YAML says {spec['modalities']}"
        )
    modalities = _without_clashes({modality: modalities[modality] for modality in spec["modalities"]})
    for modality, adata in modalities.items():
        check_modality(adata, f"{folder} [{modality}]", _known(adata.obs, OBS_COLUMNS))
    modalities = _drop_zero_features(modalities)
    _check_expected(name, spec.get("expect", {}), modalities)
    n_available = modalities[spec["modalities"][0]].n_obs
    if max_cells is not None and max_cells < n_available:
        modalities = _drop_zero_features(_subsample(modalities, max_cells))
    with md.set_options(pull_on_update=False):
        mdata = md.MuData({modality: _plain(adata) for modality, adata in modalities.items()})
    mdata.uns = {
        "dataset": name,
        "source": describe_source(spec),
        "sha256": _digest(spec),
        "n_cells_available": n_available,
    }
    return mdata


# ---- what data sets have in common ---------------------------------------------------------------


def _without_clashes(modalities: Modalities) -> Modalities:
    """Prefix names of a gene and a protein alike, since MuData wants names unique over all modalities."""
    known = pd.Index([])
    renamed = {}
    for modality, adata in modalities.items():
        clashing = adata.var_names.isin(known)
        if clashing.any():
            print(f"{modality}: {clashing.sum()} features have the name of another modality's; prefix {modality}:")
            adata = adata.copy()
            adata.var_names = np.where(clashing, f"{modality}:" + adata.var_names, adata.var_names)
        renamed[modality] = adata
        known = known.union(adata.var_names)
    return renamed


def _drop_zero_features(modalities: Modalities) -> Modalities:
    kept = {}
    for modality, adata in modalities.items():
        seen = adata.X.getnnz(axis=0) > 0
        if not seen.all():
            print(f"{modality}: {(~seen).sum()} of {adata.n_vars} features are zero in all cells and dropped")
        kept[modality] = adata[:, seen]
    return kept


def _check_expected(name: str, expect: Mapping[str, Any], modalities: Modalities) -> None:
    found = {"n_cells": next(iter(modalities.values())).n_obs}
    found |= {f"n_features.{modality}": adata.n_vars for modality, adata in modalities.items()}
    wanted = {"n_cells": expect["n_cells"]} if "n_cells" in expect else {}
    wanted |= {f"n_features.{modality}": number for modality, number in expect.get("n_features", {}).items()}
    for key, number in wanted.items():
        if found.get(key) != number:
            raise PrepareError(f"{name}: expect.{key}: found {found.get(key)}, expected {number}; correct the YAML")


def _subsample(modalities: Modalities, n_cells: int) -> Modalities:
    available = next(iter(modalities.values())).n_obs
    rng = np.random.default_rng(SUBSAMPLE_SEED)
    rows = np.sort(rng.choice(available, n_cells, replace=False))
    print(f"keep {n_cells} of {available} cells")
    return {modality: adata[rows] for modality, adata in modalities.items()}


def _known(frame: pd.DataFrame, columns: tuple[str, ...]) -> list[str]:
    return [column for column in columns if column in frame]


def _plain(adata: ad.AnnData) -> ad.AnnData:
    """Return counts and the annotations that the benchmark knows, and nothing else."""
    obs = adata.obs[_known(adata.obs, OBS_COLUMNS)].astype(str).astype("category")
    var = adata.var[_known(adata.var, VAR_COLUMNS)].astype(str)
    return ad.AnnData(adata.X.copy(), obs=obs, var=var)


def _digest(spec: Spec) -> str:
    if not spec["files"]:
        return hashlib.sha256(json.dumps(spec["prepare"], sort_keys=True).encode()).hexdigest()
    return "; ".join(f"{file} {sha256}" for file, sha256 in spec["files"].items())


def _counts(matrix: np.ndarray | sp.spmatrix, where: str) -> sp.csr_matrix:
    """Return counts as float32 CSR with sorted indices and without stored zeros."""
    if not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)) or matrix.dtype.kind not in "fiub":
        raise PrepareError(f"{where}: holds no matrix of numbers; give raw counts")
    counts = sp.csr_matrix(matrix, dtype=np.float32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _read(path: Path) -> ad.AnnData:
    if not path.exists():
        raise PrepareError(f"{path}: no such file; download the data set again")
    try:
        with warnings.catch_warnings():
            # A name may be a gene and a protein in one file; what we make of it is checked.
            warnings.filterwarnings("ignore", message="Variable names are not unique")
            return ad.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError, ad._io.utils.AnnDataReadError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PrepareError(f"{path}: cannot be read ({reason}); delete it and run again") from error


def _column(frame: pd.DataFrame, column: str, what: str, where: Path) -> pd.Series:
    if column not in frame:
        raise PrepareError(f"{where}: {what} has no column {column!r} (it has {', '.join(map(str, frame))})")
    return frame[column]


# ---- one file whose features say what they are ---------------------------------------------------


def _prepare_h5ad(spec: Spec, folder: Path) -> Modalities:
    settings = spec["prepare"]
    path = folder / settings["file"]
    adata = _read(path)
    types = _column(adata.var, "feature_types", "var", path).astype(str)
    obs = pd.DataFrame(
        {ours: _column(adata.obs, theirs, "obs", path).to_numpy() for ours, theirs in settings["obs"].items()},
        index=adata.obs_names,
    )
    unwanted = settings.get("drop_features", [])
    absent = sorted(set(unwanted) - set(adata.var_names))
    if absent:
        raise PrepareError(f"{path}: prepare.drop_features: no feature {', '.join(absent)}")
    modalities = {}
    for modality, feature_type in settings["feature_types"].items():
        columns = np.flatnonzero(types.eq(feature_type) & ~adata.var_names.isin(unwanted))
        if not len(columns):
            raise PrepareError(f"{path}: no feature whose var['feature_types'] is {feature_type!r} ({modality})")
        var = pd.DataFrame({"feature_types": feature_type}, index=adata.var_names[columns])
        counts = _counts(adata.X[:, columns], f"{path} [{modality}]")
        modalities[modality] = ad.AnnData(counts, obs=obs.copy(), var=var)
    return modalities


# ---- bare arrays ---------------------------------------------------------------------------------

ARRAY_NAMES = {"rna": "gene", "atac": "peak", "adt": "protein"}


def _prepare_npy(spec: Spec, folder: Path) -> Modalities:
    counts = {modality: _load_array(folder / file) for modality, file in spec["prepare"]["files"].items()}
    sizes = {modality: matrix.shape[0] for modality, matrix in counts.items()}
    if len(set(sizes.values())) != 1:
        raise PrepareError(f"{folder}: arrays have unequal numbers of cells: {sizes}")
    n_cells = next(iter(sizes.values()))
    first = _first_of_duplicates(list(counts.values()))
    if len(first) < n_cells:
        print(f"{n_cells - len(first)} of {n_cells} cells repeat an earlier cell in all modalities and are dropped")
    cells = pd.Index([f"cell_{i:04d}" for i in range(1, n_cells + 1)])[first]
    modalities = {}
    for modality, matrix in counts.items():
        features = [f"{ARRAY_NAMES[modality]}_{j:05d}" for j in range(1, matrix.shape[1] + 1)]
        obs = pd.DataFrame({"batch": "all"}, index=cells)
        modalities[modality] = ad.AnnData(matrix[first], obs=obs, var=pd.DataFrame(index=features))
    return modalities


def _load_array(path: Path) -> sp.csr_matrix:
    if not path.exists():
        raise PrepareError(f"{path}: no such file; download the data set again")
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise PrepareError(f"{path}: cannot be read ({error}); delete it and run again") from error
    if array.ndim != 2:
        raise PrepareError(f"{path}: has {array.ndim} dimensions; an array of cells × features is needed")
    return _counts(array, str(path))


def _first_of_duplicates(matrices: list[sp.csr_matrix]) -> np.ndarray:
    """Return the rows, in order, that repeat no earlier row in all matrices at once."""
    joint = sp.hstack(matrices, format="csr")
    joint.sort_indices()
    first: dict[tuple[bytes, bytes], int] = {}
    for row in range(joint.shape[0]):
        entries = slice(joint.indptr[row], joint.indptr[row + 1])
        first.setdefault((joint.indices[entries].tobytes(), joint.data[entries].tobytes()), row)
    return np.array(list(first.values()))


# ---- the competition's matching task -------------------------------------------------------------


def _prepare_competition(spec: Spec, folder: Path) -> Modalities:
    parts = [_join_pair(spec, folder, part) for part in ("train", "test")]
    modalities = {}
    for modality in parts[0]:
        if modality not in parts[1] or not parts[0][modality].var_names.equals(parts[1][modality].var_names):
            raise PrepareError(f"{folder}: features of {modality} differ between training and test files")
        modalities[modality] = ad.concat([part[modality] for part in parts], merge="first")
    return {modality: modalities[modality] for modality in MODALITIES if modality in modalities}


def _join_pair(spec: Spec, folder: Path, part: str) -> Modalities:
    """Return both modalities of the training or of the test files, cells in the order of the first."""
    paths = {role: _find(spec, folder, f"{part}_{role}.h5ad") for role in ("mod1", "mod2", "sol")}
    first, second, solution = (_read(path) for path in paths.values())
    order = _second_of_first(solution, first.n_obs, second.n_obs, paths["sol"])
    second = second[order].copy()
    second.obs_names = first.obs_names
    batches = [_column(adata.obs, "batch", "obs", paths[role]) for role, adata in (("mod1", first), ("mod2", second))]
    if not (batches[0].astype(str).to_numpy() == batches[1].astype(str).to_numpy()).all():
        raise PrepareError(f"{paths['sol']}: pairs cells of different batches; is it the solution of these files?")
    joined = {}
    for adata, path in ((first, paths["mod1"]), (second, paths["mod2"])):
        types = _column(adata.var, "feature_types", "var", path).astype(str).unique()
        if len(types) != 1 or types[0] not in COMPETITION_TYPES:
            raise PrepareError(
                f"{path}: var['feature_types'] must be one of {list(COMPETITION_TYPES)}, not {list(types)}"
            )
        if "counts" not in adata.layers:
            raise PrepareError(f"{path}: layers lacks 'counts'; the raw counts are needed")
        obs = pd.DataFrame(
            {"batch": adata.obs["batch"].astype(str), "is_train": part == "train"}, index=adata.obs_names
        )
        counts = _counts(adata.layers["counts"], f"{path}: layers['counts']")
        joined[COMPETITION_TYPES[types[0]]] = ad.AnnData(counts, obs=obs, var=adata.var)
    return joined


def _find(spec: Spec, folder: Path, ending: str) -> Path:
    found = [file for file in spec["files"] if file.endswith(ending)]
    if len(found) != 1:
        raise PrepareError(f"{folder}: source.files names {len(found)} files that end in {ending!r}; name one")
    return folder / found[0]


def _second_of_first(solution: ad.AnnData, n_first: int, n_second: int, path: Path) -> np.ndarray:
    """Return for each cell of the first file its row in the second; the solution is a permutation matrix."""
    pairs = sp.csr_matrix(solution.X)
    pairs.eliminate_zeros()
    if pairs.shape != (n_first, n_second) or n_first != n_second:
        raise PrepareError(f"{path}: X is {pairs.shape[0]} × {pairs.shape[1]} for {n_first} and {n_second} cells")
    one_each = (np.diff(pairs.indptr) == 1).all() and np.array_equal(np.sort(pairs.indices), np.arange(n_second))
    if not one_each:
        raise PrepareError(f"{path}: X is no permutation matrix; each cell must have one partner")
    return pairs.indices


# ---- simulated -----------------------------------------------------------------------------------


def _prepare_simulated(spec: Spec, folder: Path) -> Modalities:
    arguments = spec["prepare"]["arguments"]
    try:
        return dict(simulate(**arguments).mod)
    except ValueError as error:
        raise PrepareError(f"prepare.arguments: {error}") from error


PREPARERS: dict[str, Callable[[Spec, Path], Modalities]] = {
    "h5ad": _prepare_h5ad,
    "npy": _prepare_npy,
    "competition": _prepare_competition,
    "simulated": _prepare_simulated,
}
