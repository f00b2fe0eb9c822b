"""What 10x Genomics' Cell Ranger writes: ``filtered_feature_bc_matrix.h5``, or a folder of three files (MEX).

Several samples must share their features, as peaks of one aggregation do; each sample is a batch. These files hold no
cell types: those of the test cells are derived.
"""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec, check_unique, counts_of, reading

TYPES = {"rna": "Gene Expression", "atac": "Peaks", "adt": "Antibody Capture"}
MEX = ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz")


def prepare_tenx(spec: Spec, folder: Path) -> Modalities:
    """Return the modalities of all samples; the names of cells get the sample's name in front."""
    samples = spec["prepare"]["samples"]
    parts = [_read_sample(folder, source, sample, len(samples) > 1) for sample, source in samples.items()]
    first = parts[0]
    for sample, part in zip(samples, parts, strict=True):
        if not part.var_names.equals(first.var_names):
            raise PrepareError(
                f"{folder}: features of sample {sample!r} differ from the first sample's; aggregate them first"
            )
    adata = ad.concat(parts, merge="first") if len(parts) > 1 else first
    modalities = {}
    for modality in spec["modalities"]:
        columns = np.flatnonzero(adata.var["feature_types"] == TYPES[modality])
        if not len(columns):
            found = ", ".join(sorted(set(adata.var["feature_types"])))
            raise PrepareError(f"{folder}: no feature of type {TYPES[modality]!r} ({modality}); types: {found}")
        names = _unique_names(adata.var.iloc[columns])
        var = pd.DataFrame({"feature_types": TYPES[modality]}, index=names)
        modalities[modality] = ad.AnnData(
            counts_of(adata.X[:, columns], f"{folder} [{modality}]"), obs=adata.obs, var=var
        )
    return modalities


def _read_sample(folder: Path, source: str, sample: str, several: bool) -> ad.AnnData:
    import scanpy as sc  # takes seconds to import, and few data sets need it

    if source.endswith(".h5"):
        with reading(folder / source):
            adata = sc.read_10x_h5(folder / source, gex_only=False)
    else:
        for name in MEX:
            with reading(folder / f"{source}{name}"):
                pass
        with reading(folder / f"{source}{MEX[0]}"):
            adata = sc.read_10x_mtx(folder, prefix=source, gex_only=False, make_unique=False)
    # Names of genes may repeat; their identifiers do not.
    adata.var["name"] = adata.var_names
    adata.var_names = adata.var["gene_ids"].astype(str).to_numpy()
    check_unique(adata.obs_names, f"barcode of {sample}", folder)
    if several:
        adata.obs_names = sample + "_" + adata.obs_names
    adata.obs = pd.DataFrame({"batch": sample}, index=adata.obs_names)
    return adata


def _unique_names(var: pd.DataFrame) -> np.ndarray:
    """Return readable names, and the identifier for a feature whose name is another's too."""
    names = var["name"].astype(str)
    return np.where(names.duplicated(keep=False), var.index, names)
