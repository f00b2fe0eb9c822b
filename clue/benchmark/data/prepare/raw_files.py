"""Tools for reading raw files that all layouts use. Every fault of a file becomes one line that names it."""

import gzip
import io
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.data.sources import MANIFEST
from clue.benchmark.errors import BenchmarkError
from clue.sparse import are_counts

Spec = Mapping[str, Any]
Modalities = dict[str, ad.AnnData]

CHUNK = 1 << 22
UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, LookupError, ValueError, TypeError, AttributeError)
UNREADABLE += (RuntimeError, ad._io.utils.AnnDataReadError, ad._io.specs.registry.IORegistryError)
"""Exceptions that readers raise for a truncated or foreign file."""


class PrepareError(BenchmarkError):
    """Raw files do not match the data set's YAML."""


# ---- files that cannot be read -------------------------------------------------------------------


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the exceptions for a missing, truncated or foreign file into one line that names it."""
    if not path.exists():
        raise PrepareError(f"{path}: no such file; download the data set again")
    try:
        yield
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # A link leads to the user's own file or to one of a mirror; deleting the link would only bring it back.
        fix = "replace the file" if path.is_symlink() else f"delete it and {path.with_name(MANIFEST)}, and run again"
        raise PrepareError(
            f"{path.resolve() if path.is_symlink() else path}: cannot be read ({reason}); {fix}"
        ) from error


def read_text(path: Path, **options) -> pd.DataFrame:
    """Read a text table, gzipped or not; the options are those of `pandas.read_csv`."""
    with reading(path):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
        if b"\0" in content:
            raise ValueError("it holds zero bytes, as damaged files do")  # pandas would cut names at them
        return pd.read_csv(io.BytesIO(content), **options)


# ---- h5ad ----------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, gzipped (``.gz``) or not.

    HDF5 readers jump about in a file, which gzip does not allow. A gzipped file is unpacked into a file without a name,
    which vanishes with the process. It is on the disk of the raw file, since /tmp may be small where data are large.
    """
    with reading(path):
        if path.suffix not in (".h5ad", ".h5mu", ".h5", ".gz") and not h5py.is_hdf5(path):
            raise PrepareError(f"{path}: is in the format of another program; write it as .h5ad")
        if path.suffix != ".gz":
            with h5py.File(path) as file:
                yield file
            return
        with tempfile.TemporaryFile(dir=path.parent) as plain, gzip.open(path) as packed:
            shutil.copyfileobj(packed, plain, CHUNK)
            with h5py.File(plain, "r") as file:
                yield file


def read_h5ad(path: Path, layer: str | None = None) -> ad.AnnData:
    """Return ``obs``, ``var`` and one matrix of an ``.h5ad`` or ``.h5ad.gz`` file; nothing else is read.

    Parameters
    ----------
    path
        The file.
    layer
        The layer that holds raw counts; ``"raw"`` if scanpy's ``adata.raw`` holds them; `None` or ``"X"`` if X does.
        It becomes X.

    Raises
    ------
    PrepareError
        If the file cannot be read, has no such matrix, or has counts elsewhere.
    """
    with opened(path) as file:
        return elements(file, path, layer)


def elements(group: h5py.Group, path: Path, layer: str | None) -> ad.AnnData:
    """Return ``obs``, ``var`` and one matrix of an open group: a whole ``.h5ad`` file or a modality of an ``.h5mu``."""
    if not {"obs", "var"} <= set(group):
        holds = ", ".join(group) or "nothing"
        raise PrepareError(f"{path}: is not in anndata's format (it holds {holds}); write it as .h5ad")
    matrices = _matrices(group)
    wanted = layer or "X"
    if wanted in matrices:
        found = f"{group.name}/{matrices[wanted][0]} holds no raw counts".lstrip("/")
    else:
        known = ", ".join(name for name in matrices if name != "X") or "none"
        found = f"has no {f'layers/{layer}' if layer else 'X'} (layers: {known})"
    if wanted not in matrices or not _are_counts(group[matrices[wanted][0]]):
        if others := [name for name, (place, _) in matrices.items() if _are_counts(group[place])]:
            raise PrepareError(f"{path}: {found}, but there are counts: set prepare.layer: {others[0]}")
        if wanted not in matrices:
            raise PrepareError(f"{path}: {found}; raw counts are needed")
    key, features = matrices[wanted]
    counts = ad.io.read_elem(group[key])
    with warnings.catch_warnings():
        # One name may be a gene and a protein in the same file. The prepared data are checked for unique names.
        warnings.filterwarnings("ignore", message=".*names are not unique")
        return ad.AnnData(counts, obs=read_table(group, "obs"), var=read_table(group, features))


def _matrices(group: h5py.Group) -> dict[str, tuple[str, str]]:
    """Return the place of each matrix and of the table of its features, by the name that ``prepare.layer`` uses.

    ``raw`` keeps features that X has lost; before version 0.7, anndata called it ``raw.X``.
    """
    places = {"X": ("X", "var"), "raw": ("raw/X", "raw/var")}
    if "raw.X" in group:
        places["raw"] = ("raw.X", "raw.var")
    places |= {name: (f"layers/{name}", "var") for name in group.get("layers", {}) if name != "X"}
    return {name: place for name, place in places.items() if place[0] in group}


def _are_counts(element: h5py.Group | h5py.Dataset) -> bool:
    """Return whether a matrix in a file seems to hold counts, judging by some of its values."""
    values = element["data"][:100_000] if isinstance(element, h5py.Group) else element[:100]
    return values.dtype.kind in "uibf" and bool(are_counts(values).all())


def read_table(group: h5py.Group, key: str) -> pd.DataFrame:
    """Return ``obs`` or ``var`` of an open group. Before anndata 0.7 it was one dataset, with categories in ``uns``."""
    table = ad.io.read_elem(group[key])
    if isinstance(table, pd.DataFrame):
        return table
    if isinstance(table, dict):  # SeuratDisk does not mark raw/var as a table
        columns = {name: values for name, values in table.items() if isinstance(values, np.ndarray)}
        return pd.DataFrame(columns).set_index(group[key].attrs["_index"])
    table = pd.DataFrame.from_records(table, index=table.dtype.names[0])
    for column in table:
        if (found := f"uns/{column}_categories") in group:
            categories = np.atleast_1d(ad.io.read_elem(group[found]))
            codes = table[column].to_numpy()
            if codes.dtype.kind in "iu" and codes.max(initial=-1) < len(categories):
                table[column] = pd.Categorical.from_codes(codes, categories)
    return table


# ---- parts of a table ----------------------------------------------------------------------------


def counts_of(matrix: np.ndarray | sp.spmatrix, where: str) -> sp.csr_matrix:
    """Return counts as float32 CSR with sorted indices and without stored zeros."""
    if not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)) or matrix.dtype.kind not in "fiub":
        raise PrepareError(f"{where}: holds no matrix of numbers; give raw counts")
    counts = sp.csr_matrix(matrix, dtype=np.float32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def modality_of(
    matrix: np.ndarray | sp.spmatrix, obs: pd.DataFrame, features: Sequence[str] | pd.Index, where: str
) -> ad.AnnData:
    """Return the cells of one modality with their counts (`counts_of`) and annotations, and the feature names."""
    return ad.AnnData(counts_of(matrix, where), obs=obs.copy(), var=pd.DataFrame(index=pd.Index(features)))


def stacked(parts: Sequence[ad.AnnData]) -> ad.AnnData:
    """Stack the cells of files that have the same features in the same order. Feature names may repeat."""
    counts = sp.vstack([part.X for part in parts], format="csr")
    return ad.AnnData(counts, obs=pd.concat([part.obs for part in parts]), var=parts[0].var)


def column_of(frame: pd.DataFrame, column: str, what: str, where: Path) -> pd.Series:
    """Return a column of a file's table."""
    if column not in frame:
        raise PrepareError(f"{where}: {what} has no column {column!r} (it has {', '.join(map(str, frame))})")
    return frame[column]


def obs_of(frame: pd.DataFrame, columns: Mapping[str, str], where: Path) -> pd.DataFrame:
    """Return `columns` (ours: theirs) of a file's ``obs`` under our names."""
    return pd.DataFrame(
        {ours: column_of(frame, theirs, "obs", where).to_numpy() for ours, theirs in columns.items()}, index=frame.index
    )


def check_unique(names: Sequence[str], what: str, where: Path) -> None:
    """Refuse names that occur twice, because they are used to look something up."""
    names = pd.Index(names)
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        raise PrepareError(f"{where}: {what} {twice!r} occurs more than once; make names unique")
