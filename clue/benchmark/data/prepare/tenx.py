"""Output of 10x Genomics' Cell Ranger: ``filtered_feature_bc_matrix.h5``, or a folder of three files (MEX).

Files of Cell Ranger 2, which hold genes only, can be read as well, and so can folders that are not gzipped (from
STARsolo, or unpacked). Several samples must share their features, as the peaks of one aggregation do; each sample is a
batch. These files hold no cell types, so those of the test cells are derived.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp

from clue.benchmark.data.prepare import raw_files
from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec

TYPES = {"rna": "Gene Expression", "atac": "Peaks", "adt": "Antibody Capture"}
MATRIX, FEATURES, BARCODES = ("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",)


def prepare_tenx(spec: Spec, folder: Path) -> Modalities:
    """Return the modalities of all samples. If there are several, cell names begin with the sample's name."""
    samples = spec["prepare"]["samples"]
    parts = [_read_sample(folder, source, sample, len(samples) > 1) for sample, source in samples.items()]
    first = parts[0]
    for (sample, source), part in zip(samples.items(), parts, strict=True):
        if not part.var_names.equals(first.var_names):
            raise PrepareError(
                f"{folder / source}: features of sample {sample!r} differ from the first sample's; aggregate them first"
            )
    adata = raw_files.stacked(parts)
    where = folder / next(iter(samples.values()))
    modalities = {}
    for modality in spec["modalities"]:
        columns = np.flatnonzero(adata.var["feature_types"] == TYPES[modality])
        if not len(columns):
            found = ", ".join(sorted(set(adata.var["feature_types"])))
            raise PrepareError(
                f"{where}: no feature of type {TYPES[modality]!r} ({modality}); types: {found}; correct modalities in"
                " the data set's YAML, or name a file that has them"
            )
        names = _unique_names(adata.var.iloc[columns])
        modalities[modality] = raw_files.modality_of(adata.X[:, columns], adata.obs, names, f"{where} [{modality}]")
    return modalities


def _read_sample(folder: Path, source: str, sample: str, several: bool) -> ad.AnnData:
    is_h5 = source.endswith((".h5", ".h5.gz"))
    counts, barcodes, features = _read_h5(folder / source) if is_h5 else _read_mex(folder, source)
    raw_files.check_unique(barcodes, f"barcode of {sample}", folder / source)
    if counts.shape != (len(barcodes), len(features)):
        raise PrepareError(
            f"{folder / source}: {counts.shape[0]} × {counts.shape[1]} counts for {len(barcodes)} barcodes and"
            f" {len(features)} features; the files belong to different runs"
        )
    cells = [f"{sample}_{barcode}" if several else barcode for barcode in barcodes]
    return ad.AnnData(counts, obs=pd.DataFrame({"batch": sample}, index=cells), var=features)


def _read_h5(path: Path) -> tuple[sp.csr_matrix, Sequence[str], pd.DataFrame]:
    """Return counts, barcodes and features of an ``.h5`` file. A file of Cell Ranger 2 has one group per genome."""
    with raw_files.opened(path) as file:
        groups = [name for name, group in file.items() if isinstance(group, h5py.Group) and "indptr" in group]
        if len(groups) > 1:
            raise PrepareError(f"{path}: holds the genomes {', '.join(groups)}; a file of one genome is needed")
        if not groups:
            raise PrepareError(f"{path}: holds no Cell Ranger matrix (only {', '.join(file)}); name Cell Ranger's .h5")
        group = file[groups[0]]
        keys = ("features/id", "features/name", "features/feature_type")
        columns = [_texts(group[key]) for key in (keys if "features" in group else ("genes", "gene_names"))]
        # Features × cells, stored by columns, is the same as cells × features, stored by rows.
        arrays = tuple(group[key][()] for key in ("data", "indices", "indptr"))
        counts = sp.csr_matrix(arrays, shape=tuple(group["shape"][()][::-1]))
        return counts, _texts(group["barcodes"]), _features(columns)


def _texts(column: h5py.Dataset) -> list[str]:
    """Return a column of texts. Files declare it as ASCII, but names of proteins may hold Greek letters."""
    return column.asstr("utf-8")[()].tolist()


def _read_mex(folder: Path, prefix: str) -> tuple[sp.csr_matrix, Sequence[str], pd.DataFrame]:
    """Return counts, barcodes and features of three files whose names begin with `prefix`."""
    matrix, features, barcodes = (_find(folder, prefix, names) for names in (MATRIX, FEATURES, BARCODES))
    with raw_files.reading(matrix):
        counts = sp.csr_matrix(scipy.io.mmread(matrix).T)
    return counts, _columns(barcodes)[0], _features(_columns(features))


def _find(folder: Path, prefix: str, names: tuple[str, ...]) -> Path:
    """Return whichever of several files exists, gzipped or not; the first name if none does."""
    paths = [folder / f"{prefix}{name}{packed}" for name in names for packed in (".gz", "")]
    found = [path for path in paths if path.exists()]
    if not found and (folder / prefix).is_file():
        raise PrepareError(f"{folder / prefix}: is neither Cell Ranger's .h5 nor the common prefix of its three files")
    if len(found) > 1:
        raise PrepareError(f"{found[0]}: {found[1].name} is beside it; name one of them in source.files")
    return (found or paths)[0]


def _columns(path: Path) -> list[Sequence[str]]:
    # A gene may be called NA, and a name may hold a quotation mark.
    text = {"dtype": str, "keep_default_na": False, "quoting": csv.QUOTE_NONE, "encoding": "utf-8"}
    table = raw_files.read_text(path, sep="\t", header=None, **text)
    return [_unquoted(table[column].tolist()) for column in table]


def _unquoted(column: list[str]) -> list[str]:
    """Remove the quotation marks that R's ``write.table`` puts around each value."""
    is_quoted = all(len(text) > 1 and text[0] == text[-1] == '"' for text in column)
    return [text[1:-1] for text in column] if is_quoted else column


def _features(columns: list[Sequence[str]]) -> pd.DataFrame:
    """Return names and types by identifier. Names of genes may repeat; their identifiers do not."""
    ids, names = columns[0], columns[1] if len(columns) > 1 else columns[0]
    types = columns[2] if len(columns) > 2 else TYPES["rna"]
    return pd.DataFrame({"name": names, "feature_types": types}, index=pd.Index(ids, dtype=object))


def _unique_names(var: pd.DataFrame) -> np.ndarray:
    """Return readable names. A feature that shares its name with another one gets its identifier instead."""
    names = var["name"].astype(str)
    return np.where(names.duplicated(keep=False), var.index, names)
