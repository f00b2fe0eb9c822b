"""The contents of each file of the benchmark, checked on every write and every read.

========================  ==========================================================================
``<dataset>.h5mu``        all cells of a data set: raw counts per modality, labels, batches
``train.h5mu``            training cells: paired, or seen in some modalities only; no cell types. ``var`` says which
                          features are predicted (`clue.benchmark.targets`)
``test_<modality>.h5ad``  test cells of one modality, shuffled and renamed; ``obs`` is ``batch`` alone
``solution.h5ad``         one row per test cell: its name in each modality's file, batch, labels; ``obsm`` has the
                          values to predict of each modality
``embedding.h5ad``        one row per cell of each test file, in file order; ``uns["metric"]`` says how to compare
                          them, ``"cosine"`` (also where it is absent) or ``"euclidean"``. Of a method that ran by
                          pairs of modalities it has such rows for each pair, which ``obs["pair"]`` names
``predictions.npz``       of a method that predicts: an array ``rna2adt`` for each direction, float32, finite, a row per
                          cell of the source's test file, in file order, a column per feature that is predicted
========================  ==========================================================================

Cells with the same name in two modalities of a MuData are the same cell. Annotations are in each modality's
``obs``; the MuData's own ``obs`` stays empty.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.config import MODALITIES
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.files import atomic
from clue.matching import METRICS, Metric

VAR_COLUMNS = ("feature_types", "gene_ids")
"""Annotations of features that files keep."""
SEALED_COLUMNS = ("cell_type", "label")
"""Columns of ``obs`` that no method may see."""
FIX = "if a run wrote it, delete it and run again"
"""End of the message about a file that cannot be read. It may also be a user's own file, named by mistake."""

md.set_options(pull_on_update=False)


class ContractError(BenchmarkError):
    """A file breaks its contract."""


# ---- one modality --------------------------------------------------------------------------------


def _check_counts(adata: ad.AnnData, where: str, matrix: str) -> None:
    counts = adata.X
    if not sp.issparse(counts) or counts.format != "csr" or counts.dtype != np.float32:
        raise ContractError(f"{where}: {matrix} must be a float32 CSR matrix of raw counts")
    if bad := int((~np.isfinite(counts.data)).sum()):
        raise ContractError(f"{where}: {matrix} holds {bad} counts that are NaN or infinite; give raw counts")
    if bad := int((counts.data < 0).sum()):
        raise ContractError(f"{where}: {matrix} holds {bad} negative counts; give raw counts")
    if (counts.data != np.round(counts.data)).any():
        raise ContractError(f"{where}: {matrix} holds counts that are not whole numbers; give raw counts")


def _check_names(adata: ad.AnnData, where: str) -> None:
    for axis, names in (("cell", adata.obs_names), ("feature", adata.var_names)):
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            function = f"{'obs' if axis == 'cell' else 'var'}_names_make_unique()"
            raise ContractError(
                f"{where}: {axis} name {twice!r} occurs more than once; make names unique, for instance with {function}"
            )
        if (cut := names[names.astype(str).str.contains("\0", regex=False)]).size:
            raise ContractError(f"{where}: {axis} name {cut[0]!r} has a zero byte, where HDF5 cuts it off; rename it")


def _check_obs(adata: ad.AnnData, columns: Sequence[str], where: str) -> None:
    if missing := [column for column in columns if column not in adata.obs]:
        raise ContractError(f"{where}: obs lacks {missing}; add the column")
    for column in columns:
        if adata.obs[column].isna().any():
            raise ContractError(f"{where}: obs[{column!r}] has missing values; fill them")


def check_modality(adata: ad.AnnData, where: str, columns: Sequence[str] = ("batch",), matrix: str = "X") -> None:
    """Check raw counts, unique names and the `columns` of ``obs`` of one modality; messages call X `matrix`."""
    if adata.n_obs == 0 or adata.n_vars == 0:
        raise ContractError(f"{where}: holds {adata.n_obs} cells and {adata.n_vars} features")
    _check_names(adata, where)
    _check_obs(adata, columns, where)
    _check_counts(adata, where, matrix)


def _check_modality_names(mdata: md.MuData, where: str) -> None:
    names = list(mdata.mod)
    if len(names) < 2:
        raise ContractError(f"{where}: holds {names}; at least two modalities are needed")
    if names != [name for name in MODALITIES if name in names]:
        raise ContractError(f"{where}: modalities {names} must be among {list(MODALITIES)}, in that order")


# ---- the files -----------------------------------------------------------------------------------


def check_dataset(mdata: md.MuData, where: str) -> None:
    """Check a prepared data set. In each modality the cells that all modalities share come first, in the same order."""
    _check_modality_names(mdata, where)
    shared = set.intersection(*(set(adata.obs_names) for adata in mdata.mod.values()))
    if not shared:
        raise ContractError(f"{where}: no cell is seen in every modality")
    first = next(iter(mdata.mod.values())).obs_names[: len(shared)]
    for name, adata in mdata.mod.items():
        check_modality(adata, f"{where}[{name}]")
        if not adata.obs_names[: len(shared)].equals(first):
            raise ContractError(f"{where}[{name}]: cells differ from those of the first modality")
    for key in ("dataset", "source", "sha256"):
        if key not in mdata.uns:
            raise ContractError(f"{where}: uns lacks {key!r}")


def check_train(mdata: md.MuData, where: str) -> None:
    """Check training cells: some must be seen in two modalities, and none may carry a label."""
    _check_modality_names(mdata, where)
    for name, adata in mdata.mod.items():
        check_modality(adata, f"{where}[{name}]")
        if sealed := [column for column in adata.obs if column in SEALED_COLUMNS]:
            raise ContractError(f"{where}[{name}]: obs holds {sealed}, which no method may see")
    if not pd.Index(np.concatenate([adata.obs_names for adata in mdata.mod.values()])).has_duplicates:
        raise ContractError(f"{where}: no cell is seen in two modalities; training needs paired cells")


def check_test(adata: ad.AnnData, where: str) -> None:
    """Check the censored test cells of one modality: ``obs`` holds only ``batch``."""
    check_modality(adata, where)
    modality = adata.uns.get("modality")
    if modality not in MODALITIES:
        raise ContractError(f"{where}: uns['modality'] is {modality!r}, not one of {list(MODALITIES)}")
    if list(adata.obs.columns) != ["batch"]:
        raise ContractError(f"{where}: obs holds {list(adata.obs.columns)}; only 'batch' may be seen")
    expected = names_of_test_cells(modality, adata.n_obs)
    if list(adata.obs_names) != expected:
        raise ContractError(f"{where}: cells must be named {expected[0]} to {expected[-1]}")


def check_solution(adata: ad.AnnData, where: str) -> None:
    """Check the sealed solution: ``obs`` has the labels and, per modality, the cells' names in its test file."""
    _check_names(adata, where)
    modalities = list(adata.uns.get("modalities", []))
    if len(modalities) < 2:
        raise ContractError(f"{where}: uns['modalities'] is {modalities}; at least two are needed")
    _check_obs(adata, ["batch", "cell_type", *modalities], where)
    for modality in modalities:
        expected = names_of_test_cells(modality, adata.n_obs)
        if sorted(adata.obs[modality].astype(str)) != expected:
            raise ContractError(f"{where}: obs[{modality!r}] is not a permutation of the test cells")


def check_embedding(adata: ad.AnnData, where: str) -> None:
    """Check an embedding without its task: float32, finite, with the cell and the modality of each row."""
    _check_obs(adata, ["cell", "modality", "batch"], where)
    if not isinstance(adata.X, np.ndarray) or adata.X.dtype != np.float32:
        raise ContractError(f"{where}: X must be a dense float32 array")
    if bad := int((~np.isfinite(adata.X)).any(axis=1).sum()):
        run = " ".join(f"{key} {adata.uns[key]}" for key in ("method", "variant", "seed") if key in adata.uns)
        raise ContractError(f"{where}: {bad} of {adata.n_obs} rows are not finite ({run})")
    if missing := [key for key in ("method", "variant", "seed") if key not in adata.uns]:
        raise ContractError(f"{where}: uns lacks {missing}; add them")
    for key in ("metric", "width") if is_by_pairs(adata) else ():
        if set(adata.uns.get(key, ())) != set(adata.obs["pair"]):
            raise ContractError(f"{where}: uns[{key!r}] must have an entry for each pair of obs['pair']")
    for metric in metric_of(adata).values() if is_by_pairs(adata) else [metric_of(adata)]:
        if metric not in METRICS:
            raise ContractError(f"{where}: uns['metric'] is {metric!r}; it must be one of {list(METRICS)}")


def metric_of(embedding: ad.AnnData) -> Metric:
    """Return the metric for comparing the cells of an embedding; cosine if it names none."""
    return embedding.uns.get("metric", "cosine")


def is_by_pairs(embedding: ad.AnnData) -> bool:
    """Return whether a method ran by pairs of modalities. If so, each pair has its own rows and its own metric."""
    return "pair" in embedding.obs


def join_pairs(parts: Mapping[str, ad.AnnData]) -> ad.AnnData:
    """Join the embeddings of pairs of modalities into one. Narrower ones are padded with zeros.

    Parameters
    ----------
    parts
        The embedding of each pair, with ``uns["metric"]``, keyed by the pair's name (``rna+atac``).
    """
    width = max(part.n_vars for part in parts.values())
    x = np.concatenate([np.pad(part.X, ((0, 0), (0, width - part.n_vars))) for part in parts.values()])
    obs = pd.concat([part.obs.assign(pair=pair).rename(f"{pair}/{{}}".format) for pair, part in parts.items()])
    uns = {
        "metric": {pair: metric_of(part) for pair, part in parts.items()},
        "width": {pair: part.n_vars for pair, part in parts.items()},
    }
    return ad.AnnData(x, obs=obs, uns=uns)


def of_pair(embedding: ad.AnnData, first: str, second: str) -> ad.AnnData:
    """Return the rows of two modalities as their own embedding; it is empty if the method did not run on the pair."""
    if not is_by_pairs(embedding):
        return embedding[embedding.obs["modality"].isin([first, second]).to_numpy()]
    pair = f"{first}+{second}"
    found = embedding[(embedding.obs["pair"] == pair).to_numpy(), : int(embedding.uns["width"].get(pair, 0))].copy()
    found.obs_names = found.obs["cell"].astype(str)
    del found.obs["pair"]
    found.uns["metric"] = metric_of(embedding).get(pair)
    return found


def check_embedding_fits(adata: ad.AnnData, tests: Mapping[str, pd.Index], where: str) -> None:
    """Check that an embedding, or each pair in it, has one row per test cell, in file order, modality by modality."""
    if is_by_pairs(adata):
        for pair in adata.obs["pair"].unique():
            names = str(pair).split("+")
            if len(names) != 2 or names != [name for name in tests if name in names]:
                raise ContractError(f"{where}: obs['pair'] is {pair!r}, not a pair of {', '.join(tests)}")
            check_embedding_fits(of_pair(adata, *names), {name: tests[name] for name in names}, where)
        return
    of_row, cells = (adata.obs[key].astype(str).to_numpy() for key in ("modality", "cell"))
    if len(extra := np.flatnonzero(~np.isin(of_row, list(tests)))):
        i = extra[0]
        raise ContractError(f"{where}: obs['modality'] of row {i + 1} is {of_row[i]!r}, expected {' or '.join(tests)}")
    for modality, names in tests.items():
        rows = np.flatnonzero(of_row == modality)
        if len(rows) != len(names):
            raise ContractError(f"{where}: {len(rows)} rows of {modality} for {len(names)} test cells")
        if len(wrong := np.flatnonzero(cells[rows] != names)):
            i, expected = rows[wrong[0]], names[wrong[0]]
            raise ContractError(
                f"{where}: obs['cell'] of {modality} is not the test cells in file order: row {i + 1} is {cells[i]!r},"
                f" expected {expected!r}"
            )


def names_of_test_cells(modality: str, n_cells: int) -> list[str]:
    """Return the names of the censored test cells; equal names in two files would be read as pairs."""
    return [f"{modality}_{i:06d}" for i in range(1, n_cells + 1)]


def cells_of_test_file(solution: ad.AnnData, modality: str) -> pd.DataFrame:
    """Return what a solution says about the cells of a test file, one row per cell in the file's order.

    The columns are ``cell``, the name in the file; ``pair``, the row of the solution; ``batch`` and ``cell_type``.
    """
    names = names_of_test_cells(modality, solution.n_obs)
    pair = pd.Index(solution.obs[modality].astype(str)).get_indexer(names)
    known = solution.obs[["batch", "cell_type"]].astype(str).iloc[pair]
    return known.assign(cell=names, pair=pair)


def check_prediction(values: np.ndarray, shape: tuple[int, int], where: str) -> None:
    """Check one direction of ``predictions.npz``: a finite number for each cell and each predicted feature."""
    if values.shape != shape:
        raise ContractError(f"{where}: has shape {values.shape}, not {shape}: test cells by predicted features")
    if values.dtype.kind not in "fiu":
        raise ContractError(f"{where}: holds values of type {values.dtype}; give numbers")
    if bad := int((~np.isfinite(values)).any(axis=1).sum()):
        raise ContractError(f"{where}: {bad} of {len(values)} rows are not finite")


# ---- reading and writing -------------------------------------------------------------------------


def _read(path: str | Path, reader: Callable, check: Callable[..., None]):
    path = Path(path)
    if not path.exists():
        raise ContractError(f"{path}: no such file")
    try:
        data = reader(path)
    except (OSError, KeyError, ValueError, TypeError, AttributeError, ad._io.utils.AnnDataReadError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ContractError(f"{path}: cannot be read ({reason}); {FIX}") from error
    check(data, str(path))
    return data


def _write(data: ad.AnnData | md.MuData, path: str | Path, check: Callable[..., None]) -> None:
    check(data, str(path))
    with atomic(path) as temporary:
        data.write(temporary)


def _file(reader: Callable, check: Callable[..., None]) -> tuple[Callable, Callable]:
    """Return two functions for one kind of file. One reads a path, the other writes data to a path; both check it."""
    return partial(_read, reader=reader, check=check), partial(_write, check=check)


read_dataset, write_dataset = _file(md.read_h5mu, check_dataset)
read_train, write_train = _file(md.read_h5mu, check_train)
read_test, write_test = _file(ad.read_h5ad, check_test)
read_solution, write_solution = _file(ad.read_h5ad, check_solution)
_read_embedding, write_embedding = _file(ad.read_h5ad, check_embedding)


def read_embedding(path: str | Path) -> ad.AnnData:
    """Read ``embedding.h5ad``. Its rows are named by ``obs["cell"]``, whatever an outside program called them."""
    embedding = _read_embedding(path)
    if not is_by_pairs(embedding):
        embedding.obs_names = embedding.obs["cell"].astype(str).to_numpy()
    return embedding


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Read an ``.npz`` file, such as ``predictions.npz``, whose arrays are checked where their shapes are known."""
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ContractError(f"{path}: cannot be read ({error}); {FIX}") from error


def write_predictions(predictions: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Write ``predictions.npz``."""
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **predictions)
