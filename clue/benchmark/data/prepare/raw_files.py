"""Read raw files: what the layouts share. Whatever is wrong with a file is one line that names it."""

import gzip
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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
TOLERATED_LOSS = 0.05
"""Share of a modality's cells that may lack another modality although the YAML does not allow it."""
DIFFERENCES: dict[str, Callable[[str], str]] = {
    "upper and lower case": str.casefold,
    "their signs (- . _ :)": lambda name: re.sub(r"[-._:#]", "-", name),
    "an ending (such as -1)": lambda name: re.sub(r"[-._:#][^-._:#]*$", "", name),
    "a beginning (such as sample_)": lambda name: re.sub(r"^[^-._:#]*[-._:#]", "", name),
}
"""How names of one cell often differ between two files, each with a function that removes the difference."""
UNREADABLE = (OSError, EOFError, zlib.error, zipfile.BadZipFile, LookupError, ValueError, TypeError, AttributeError)
UNREADABLE += (RuntimeError, ad._io.utils.AnnDataReadError, ad._io.specs.registry.IORegistryError)
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

    HDF5 readers jump about in a file, which gzip does not allow: it is unpacked into a file without a name, which
    vanishes with the process, on the disk of the raw file, since /tmp may be small where data are large.
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
        The layer that holds raw counts, or ``"raw"`` for those that scanpy's ``adata.raw`` keeps; `None` where X does.
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
        raise PrepareError(f"{path}: is not in anndata's format (it holds {', '.join(group)}); write it as .h5ad")
    matrices = _matrices(group)
    wanted = layer or "X"
    if wanted not in matrices:
        known = ", ".join(name for name in matrices if name != "X") or "none"
        key = f"layers/{layer}" if layer else "X"
        raise PrepareError(f"{path}: has no {key} (layers: {known}); raw counts are needed")
    key, features = matrices[wanted]
    if not _are_counts(group[key]):
        if others := [name for name, (place, _) in matrices.items() if name != "X" and _are_counts(group[place])]:
            where = f"{group.name}/{key}".lstrip("/")
            raise PrepareError(
                f"{path}: {where} holds no raw counts, but there are some: set prepare.layer: {others[0]}"
            )
    counts = ad.io.read_elem(group[key])
    with warnings.catch_warnings():
        # A name may be a gene and a protein in one file; what we make of it is checked.
        warnings.filterwarnings("ignore", message=".*names are not unique")
        return ad.AnnData(counts, obs=read_table(group, "obs"), var=read_table(group, features))


def _matrices(group: h5py.Group) -> dict[str, tuple[str, str]]:
    """Return where each matrix is and the table of its features, by the name that ``prepare.layer`` gives it.

    ``raw`` keeps features that X has lost; anndata called it ``raw.X`` before 0.7.
    """
    places = {"X": ("X", "var"), "raw": ("raw/X", "raw/var")}
    if "raw.X" in group:
        places["raw"] = ("raw.X", "raw.var")
    places |= {name: (f"layers/{name}", "var") for name in group.get("layers", {})}
    return {name: place for name, place in places.items() if place[0] in group}


def _are_counts(element: h5py.Group | h5py.Dataset) -> bool:
    """Tell whether a matrix in a file seems to hold counts, by some of its values."""
    values = element["data"][:100_000] if isinstance(element, h5py.Group) else element[:100]
    return values.dtype.kind in "uib" or values.dtype.kind == "f" and bool(((values >= 0) & (values % 1 == 0)).all())


def read_table(group: h5py.Group, key: str) -> pd.DataFrame:
    """Return ``obs`` or ``var`` of an open group; before anndata 0.7 it was one dataset, its categories in ``uns``."""
    if isinstance(group[key], h5py.Group):
        return ad.io.read_elem(group[key])
    rows = group[key][()]
    table = pd.DataFrame({name: _decoded(rows[name]) for name in rows.dtype.names}).set_index(rows.dtype.names[0])
    for column in table:
        if (found := f"uns/{column}_categories") in group:
            categories = np.atleast_1d(_decoded(group[found][()]))
            codes = table[column].to_numpy()
            if codes.dtype.kind in "iu" and codes.max(initial=-1) < len(categories):
                table[column] = pd.Categorical.from_codes(codes, categories)
    return table


def _decoded(values: Any) -> np.ndarray:
    """Return text where a file holds bytes."""
    values = np.asarray(values)
    is_text = values.dtype.kind in "SO"
    return np.array([v.decode() if isinstance(v, bytes) else v for v in values.ravel()], object) if is_text else values


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


def same_cells(modalities: Modalities, where: Mapping[str, Path], declared: bool = False) -> tuple[Modalities, str]:
    """Return the cells that every modality has, in the order of the first, and how many others there were.

    Parameters
    ----------
    modalities
        Cells by modality; those of one name are one cell.
    where
        The file of each modality.
    declared
        Whether the YAML says how many cells there are to be. Without that, a loss of more than `TOLERATED_LOSS` of a
        modality's cells is an error, since names that differ by a suffix make one too.

    Raises
    ------
    PrepareError
        If a name occurs twice, no cell is in every modality, or too many are not.
    """
    names, shared = _names_and_shared(modalities, where)
    lost = []
    for modality, cells in names.items():
        n_lost = len(cells) - len(shared)
        if n_lost > (len(cells) - 1 if declared else TOLERATED_LOSS * len(cells)):
            raise PrepareError(f"{where[modality]}: {_why_lost(modality, names, shared)}")
        if n_lost:
            lost.append(f"{modality}: {n_lost} of {len(cells)} cells lack another modality and are dropped")
            print(lost[-1])
    return {modality: adata[shared].copy() for modality, adata in modalities.items()}, "; ".join(lost)


def with_unpaired(modalities: Modalities, where: Mapping[str, Path]) -> Modalities:
    """Return all cells. Those that every modality has come first, in the same order.

    Raises
    ------
    PrepareError
        If a name occurs twice, or no cell is in every modality.
    """
    names, shared = _names_and_shared(modalities, where)
    if not len(shared):
        modality = next(iter(names))
        raise PrepareError(f"{where[modality]}: {_why_lost(modality, names, shared)}")
    order = {modality: shared.append(cells.difference(shared, sort=False)) for modality, cells in names.items()}
    alone = [f"{len(cells) - len(shared)} of {len(cells)} cells of {modality}" for modality, cells in names.items()]
    print(f"{', '.join(alone)} lack another modality: they train and are never test cells")
    return {modality: adata[order[modality]].copy() for modality, adata in modalities.items()}


def _names_and_shared(modalities: Modalities, where: Mapping[str, Path]) -> tuple[dict[str, pd.Index], pd.Index]:
    """Return the names of each modality's cells, and those that all have, in the order of the first."""
    names = {modality: adata.obs_names for modality, adata in modalities.items()}
    for modality, cells in names.items():
        check_unique(cells, f"cell name of {modality}", where[modality])
    first = next(iter(names.values()))
    return names, first[np.logical_and.reduce([first.isin(cells) for cells in names.values()])]


def _why_lost(modality: str, names: Mapping[str, pd.Index], shared: pd.Index) -> str:
    """Say how many cells of a modality match no other, with examples of both sides and the likely reason."""
    alone = {name: cells.difference(shared, sort=False) for name, cells in names.items()}
    other = max((name for name in names if name != modality), key=lambda name: len(alone[name]))
    mine, theirs = alone[modality], alone[other]
    enough = max(1, min(len(mine), len(theirs)) // 2)
    reasons = [
        f"names differ by {what}"
        for what, plain in DIFFERENCES.items()
        if len(_with_plain(mine, names[modality], plain) & _with_plain(theirs, names[other], plain)) >= enough
    ]
    example = theirs[0] if len(theirs) else names[other][0]
    keep = "keep them for training with prepare: {keep_unpaired: true}"
    allowed = f", drop them with expect: {{n_cells: {len(shared)}}}, or {keep}" if len(shared) else ""
    return (
        f"{len(mine)} of {len(names[modality])} cells of {modality} are not in {other} ({modality} {mine[0]!r}, {other}"
        f" {example!r}); {[*reasons, 'cells are paired by name'][0]}: make names equal{allowed}"
    )


def _with_plain(cells: pd.Index, among: pd.Index, plain: Callable[[str], str]) -> set[str]:
    """Return the names of cells, and their plain names where no other cell gets the same.

    Without its beginning, every AAAC-1 and CCCT-1 is 1: that would explain any loss.
    """
    own = among.map(plain).drop_duplicates(keep=False)
    return {*cells, *cells.map(plain).intersection(own)}
