"""SHARE-seq as its authors deposited it (GSE140203), or as GLUE's authors prepared it.

The deposit has RNA as a dense text table and ATAC as a Matrix Market file. It is prepared as GLUE prepared these data
(`data/collect/Ma-2020.ipynb` in gao-lab/GLUE). A barcode has four fields; the last one names the library: ``04`` …
``08`` in ATAC are ``53`` … ``56`` in RNA. A table of cell types pairs the barcodes. Two of GLUE's filters need files
that are not in the deposit and are left out: genes without coordinates in GENCODE vM25, and peaks on the ENCODE
blacklist v2 of mm10. Features that are zero everywhere are dropped, as for all data sets.

GLUE's files are ``Ma-2020-RNA.h5ad`` and ``Ma-2020-ATAC.h5ad``. Both are in the order of one table of cells, each with
its own assay's barcodes. Neither has a column of batches; the last field of a barcode names the library.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.io import mmread
from tqdm import tqdm

from clue.benchmark.data.prepare import raw_files
from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec

LIBRARIES = {"04": "53", "05": "53", "06": "54", "07": "55", "08": "56"}
"""RNA library of each ATAC library, both as in the last field of a barcode."""
CELL_TYPES = {
    "Dermal Fibrobalst": "Dermal Fibroblast",
    "Hair Shaft-cuticle.cortex": "Hair Shaft-Cuticle/Cortex",
    "K6+ Bulge Companion Layer": "K6+ Bulge/Companion Layer",
    "ahighCD34+ bulge": "ahigh CD34+ bulge",
    "alowCD34+ bulge": "alow CD34+ bulge",
}
"""Misspelt cell types."""
NO_CELL_TYPE = "Mix"


def prepare_share_seq(spec: Spec, folder: Path) -> Modalities:
    """Return the cells of the cell-type table that both assays have. Batches are libraries."""
    paths = {name: folder / file for name, file in spec["prepare"]["files"].items()}
    cells = _read_cell_types(paths["cell_types"])
    rna = read_dense_text(paths["rna"])
    atac = _read_atac(paths)
    present = cells["rna"].isin(rna.obs_names) & cells["atac"].isin(atac.obs_names)
    if not present.any():
        raise PrepareError(
            f"{paths['cell_types']}: none of its {len(cells)} cells is in both assays (here {cells['rna'].iloc[0]!r}"
            f" and {cells['atac'].iloc[0]!r}, RNA {rna.obs_names[0]!r}, ATAC {atac.obs_names[0]!r}); are all files from"
            " the same sample?"
        )
    print(f"{(~present).sum()} of {len(cells)} cells of the table are not in both assays and are dropped")
    cells = cells[present]
    obs = _annotation(cells["rna"], cells["cell_type"])
    modalities = {}
    for modality, adata in (("rna", rna), ("atac", atac)):
        rows = adata.obs_names.get_indexer(cells[modality])
        modalities[modality] = ad.AnnData(adata.X[rows], obs=obs.copy(), var=adata.var)
    return modalities


# ---- barcodes and cell types ---------------------------------------------------------------------


def _read_cell_types(path: Path) -> pd.DataFrame:
    """Return ``rna``, ``atac`` (barcodes) and ``cell_type`` of the cells that have a cell type."""
    table = raw_files.read_text(path, sep="\t", dtype=str, keep_default_na=False)
    columns = {"rna": "rna.bc", "atac": "atac.bc", "cell_type": "celltype"}
    cells = pd.DataFrame(
        {ours: raw_files.column_of(table, theirs, "the table", path) for ours, theirs in columns.items()}
    )
    known = cells["cell_type"] != NO_CELL_TYPE
    print(f"{(~known).sum()} of {len(cells)} cells are {NO_CELL_TYPE!r} and dropped")
    cells = cells[known].reset_index(drop=True)
    cells["cell_type"] = cells["cell_type"].replace(CELL_TYPES)
    for assay in ("rna", "atac"):
        cells[assay] = rna_barcodes(cells[assay], path)
        raw_files.check_unique(cells[assay], f"{columns[assay]}", path)
    return cells


def rna_barcodes(barcodes: pd.Series, path: Path) -> pd.Series:
    """Return barcodes in RNA's form: fields joined by dots, and ATAC's libraries renamed.

    Raises
    ------
    PrepareError
        If the last field of a barcode is not a known library.
    """
    fields = barcodes.str.replace(",", ".").str.rsplit(".", n=1, expand=True).reindex(columns=[0, 1])
    # The last field reads P1.04 or P1.53; only its number names the library.
    unknown = ~fields[1].isin([*LIBRARIES, *LIBRARIES.values()])
    if unknown.any():
        raise PrepareError(
            f"{path}: barcode {barcodes[unknown].iloc[0]!r} does not end in a known library"
            f" ({', '.join([*LIBRARIES, *sorted(set(LIBRARIES.values()))])})"
        )
    return fields[0] + "." + fields[1].replace(LIBRARIES)


def _annotation(barcodes: pd.Series, cell_types: pd.Series) -> pd.DataFrame:
    """Return ``batch``, which is the library, and ``cell_type`` by barcode."""
    batch = barcodes.str.rsplit(".", n=1).str[-1]
    return pd.DataFrame({"batch": batch.to_numpy(), "cell_type": cell_types.to_numpy()}, index=barcodes.to_numpy())


# ---- RNA: a dense table of text ------------------------------------------------------------------


def read_dense_text(path: Path) -> ad.AnnData:
    """Read a gzipped, tab-separated table of whole counts, genes × cells, one gene at a time.

    It needs memory for the non-zero counts and one line only; the whole table has 10⁹ numbers.

    Parameters
    ----------
    path
        The first line holds a name for the gene column and the barcodes; each other line holds a gene and its counts.

    Returns
    -------
    AnnData
        Cells × genes, float32 CSR; ``obs_names`` are barcodes in the form of `rna_barcodes`.

    Raises
    ------
    PrepareError
        If the file is truncated, a line has the wrong number of counts, or a count is not a whole number.
    """
    with raw_files.reading(path), gzip.open(path) as lines:
        header = lines.readline().rstrip(b"\r\n").decode().split("\t")
        names, rows = _parse(tqdm(lines, unit=" genes", mininterval=10), len(header) - 1, path)
    barcodes = rna_barcodes(pd.Series(header[1:], dtype=str), path)
    raw_files.check_unique(barcodes, "barcode", path)
    raw_files.check_unique(names, "gene", path)
    counts = sp.vstack(rows).T.tocsr()
    return ad.AnnData(counts, obs=pd.DataFrame(index=barcodes.to_numpy()), var=pd.DataFrame(index=names))


def _parse(lines: Iterator[bytes], n_cells: int, path: Path) -> tuple[list[str], list[sp.csr_matrix]]:
    """Return the names of the genes and the counts of each, shape (1, n_cells)."""
    names, rows = [], []
    for number, line in enumerate(lines, start=2):
        name, _, text = line.rstrip(b"\r\n").partition(b"\t")
        try:
            of_gene = np.fromstring(text, dtype=np.int64, sep="\t")
        except ValueError as error:
            where = f"{path}: line {number} ({name.decode()})"
            raise PrepareError(f"{where}: holds a value that is not a whole number; give raw counts") from error
        if len(of_gene) != n_cells:
            raise PrepareError(f"{path}: line {number} ({name.decode()}): {len(of_gene)} counts for {n_cells} barcodes")
        names.append(name.decode())
        rows.append(sp.csr_matrix(of_gene, dtype=np.float32))
    if not names:
        raise PrepareError(f"{path}: holds no genes")
    return names, rows


# ---- ATAC: Matrix Market, peaks × cells ----------------------------------------------------------


def _read_atac(paths: dict[str, Path]) -> ad.AnnData:
    with raw_files.reading(paths["atac"]):
        peaks_by_cells = mmread(paths["atac"])
    barcodes = raw_files.read_text(paths["barcodes"], sep="\t", header=None, usecols=[0], dtype=str)[0]
    bed = raw_files.read_text(paths["peaks"], sep="\t", header=None, usecols=[0, 1, 2], dtype=str)
    for axis, number, what in ((0, len(bed), "peaks"), (1, len(barcodes), "barcodes")):
        if peaks_by_cells.shape[axis] != number:
            found = peaks_by_cells.shape[axis]
            raise PrepareError(f"{paths['atac']}: has {found} {what}, but {paths[what]} has {number}")
    barcodes = rna_barcodes(barcodes, paths["barcodes"])
    raw_files.check_unique(barcodes, "barcode", paths["barcodes"])
    names = bed[0] + ":" + bed[1] + "-" + bed[2]
    return raw_files.modality_of(peaks_by_cells.T, pd.DataFrame(index=barcodes.to_numpy()), names, str(paths["atac"]))


# ---- as GLUE's authors prepared it ---------------------------------------------------------------


def prepare_glue(spec: Spec, folder: Path) -> Modalities:
    """Return both modalities. Rows whose barcodes or cell types differ are an error."""
    paths = {modality: folder / file for modality, file in spec["prepare"]["files"].items()}
    read = {modality: raw_files.read_h5ad(path) for modality, path in paths.items()}
    cells = {modality: _glue_cells(adata, paths[modality]) for modality, adata in read.items()}
    reference = cells["rna"]
    for modality, frame in cells.items():
        if len(frame) != len(reference):
            raise PrepareError(f"{paths[modality]}: has {len(frame)} cells, but {paths['rna']} has {len(reference)}")
        differ = (frame.index != reference.index) | (frame.to_numpy() != reference.to_numpy()).any(axis=1)
        if differ.any():
            row = int(np.flatnonzero(differ)[0])
            raise PrepareError(
                f"{paths[modality]}: cell {row} is {frame.index[row]!r} ({frame['cell_type'].iloc[row]}), but"
                f" {reference.index[row]!r} ({reference['cell_type'].iloc[row]}) in {paths['rna']}"
            )
    return {
        modality: raw_files.modality_of(adata.X, reference, adata.var_names, str(paths[modality]))
        for modality, adata in read.items()
    }


def _glue_cells(adata: ad.AnnData, path: Path) -> pd.DataFrame:
    barcodes = rna_barcodes(pd.Series(adata.obs_names, dtype=str), path)
    return _annotation(barcodes, raw_files.column_of(adata.obs, "cell_type", "obs", path).astype(str))
