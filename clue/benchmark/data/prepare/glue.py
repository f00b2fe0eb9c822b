"""GLUE's prepared SHARE-seq data: ``Ma-2020-RNA.h5ad`` and ``Ma-2020-ATAC.h5ad``, rows paired by their order.

GLUE writes both files in the order of one table of cells, each under its own assay's barcodes, and keeps no column of
batches: the last field of a barcode names the library.
"""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec, column_of, counts_of, read_h5ad
from clue.benchmark.data.prepare.share_seq import rna_barcodes


def prepare_glue(spec: Spec, folder: Path) -> Modalities:
    """Return both modalities; rows whose barcodes or cell types differ are refused."""
    paths = {modality: folder / file for modality, file in spec["prepare"]["files"].items()}
    read = {modality: read_h5ad(path) for modality, path in paths.items()}
    cells = {modality: _cells(adata, paths[modality]) for modality, adata in read.items()}
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
        modality: ad.AnnData(
            counts_of(adata.X, str(paths[modality])), obs=reference.copy(), var=pd.DataFrame(index=adata.var_names)
        )
        for modality, adata in read.items()
    }


def _cells(adata: ad.AnnData, path: Path) -> pd.DataFrame:
    barcodes = rna_barcodes(pd.Series(adata.obs_names, dtype=str), path)
    cell_type = column_of(adata.obs, "cell_type", "obs", path).astype(str)
    batch = barcodes.str.rsplit(".", n=1).str[-1]
    return pd.DataFrame({"batch": batch.to_numpy(), "cell_type": cell_type.to_numpy()}, index=barcodes.to_numpy())
