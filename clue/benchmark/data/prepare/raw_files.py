"""Read raw files: what the layouts share. Whatever is wrong with a file is one line that names it."""

import gzip
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

Spec = Mapping[str, Any]
Modalities = dict[str, ad.AnnData]

CHUNK = 1 << 22
UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, KeyError, ValueError, TypeError)
UNREADABLE += (ad._io.utils.AnnDataReadError,)
"""What readers raise at a truncated or foreign file."""


class PrepareError(BenchmarkError):
    """Raw files are not what the data set's YAML says."""


# ---- files that cannot be read -------------------------------------------------------------------


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what readers raise at a missing, truncated or foreign file into one line that names it."""
    if not path.exists():
        raise PrepareError(f"{path}: no such file; download the data set again")
    try:
        yield
    except UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # A link leads to the user's own file, or to one of a mirror; deleting the link would bring it back.
        fix = "replace the file" if path.is_symlink() else f"delete it and {path.with_name(MANIFEST)}, and run again"
        raise PrepareError(
            f"{path.resolve() if path.is_symlink() else path}: cannot be read ({reason}); {fix}"
        ) from error


# ---- h5ad ----------------------------------------------------------------------------------------


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, or what a ``.gz`` of one holds.

    HDF5 is read here and there, which gzip cannot do: it is unpacked into a file without a name, which vanishes with
    the process, on the disk of the raw file, since /tmp may be small where data are large.
    """
    with reading(path):
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
        The layer that holds raw counts; `None` where X does. It becomes X.

    Raises
    ------
    PrepareError
        If the file cannot be read or has no such matrix.
    """
    with opened(path) as file:
        return elements(file, path, layer)


def elements(group: h5py.Group, path: Path, layer: str | None) -> ad.AnnData:
    """Return ``obs``, ``var`` and one matrix of an open group: a whole ``.h5ad`` file or a modality of an ``.h5mu``."""
    key = f"layers/{layer}" if layer else "X"
    if key not in group:
        known = ", ".join(group.get("layers", {})) or "none"
        raise PrepareError(f"{path}: has no {key} (layers: {known}); raw counts are needed")
    obs, var, counts = (ad.io.read_elem(group[name]) for name in ("obs", "var", key))
    with warnings.catch_warnings():
        # A name may be a gene and a protein in one file; what we make of it is checked.
        warnings.filterwarnings("ignore", message=".*names are not unique")
        return ad.AnnData(counts, obs=obs, var=var)


# ---- parts of a table ----------------------------------------------------------------------------


def counts_of(matrix: np.ndarray | sp.spmatrix, where: str) -> sp.csr_matrix:
    """Return counts as float32 CSR with sorted indices and without stored zeros."""
    if not (sp.issparse(matrix) or isinstance(matrix, np.ndarray)) or matrix.dtype.kind not in "fiub":
        raise PrepareError(f"{where}: holds no matrix of numbers; give raw counts")
    counts = sp.csr_matrix(matrix, dtype=np.float32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


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
    """Refuse names that occur twice, where they are used to find something."""
    names = pd.Index(names)
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        raise PrepareError(f"{where}: {what} {twice!r} occurs more than once; make names unique")


def same_cells(modalities: Modalities, where: Path) -> Modalities:
    """Return the cells that every modality has, in the order of the first; the number of others is printed."""
    names = {modality: adata.obs_names for modality, adata in modalities.items()}
    for modality, cells in names.items():
        check_unique(cells, f"cell name of {modality}", where)
    first = next(iter(names.values()))
    shared = first[np.logical_and.reduce([first.isin(cells) for cells in names.values()])]
    if not len(shared):
        examples = ", ".join(f"{modality} {cells[0]!r}" for modality, cells in names.items() if len(cells))
        raise PrepareError(f"{where}: no cell is in every modality ({examples}); cells are paired by name")
    for modality, cells in names.items():
        if len(cells) > len(shared):
            print(f"{modality}: {len(cells) - len(shared)} of {len(cells)} cells lack another modality and are dropped")
    return {modality: adata[shared].copy() for modality, adata in modalities.items()}
