"""Simulated files with the layouts and names of the paper's data sets, for the rehearsal and tests.

Sizes are those of the real data times a factor; proteins are few, so their number is kept. Counts come from
`clue.simulate`, so that methods have something to find. Since the files are known, so is the result that preparation
must reach (`expected`).
"""

import gzip
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.io import mmwrite

from clue.simulate import simulate

Modalities = dict[str, ad.AnnData]

TYPES = {"rna": "GEX", "adt": "ADT", "atac": "ATAC"}
MINIMUM = {"rna": 150, "adt": 134, "atac": 300}
"""Fewest features of a modality, however small the factor."""
MIN_CELLS = 80
"""Fewest cells of a batch, and of a split given by a number: Seurat's bridge integration needs 60 on each side."""
LIBRARY_SIZES = {"rna": 2000.0, "adt": 1000.0, "atac": 5000.0}
ATAC_LIBRARIES = {"53": ("04", "05"), "54": ("06",), "55": ("07",), "56": ("08",)}
"""Names of each RNA library's ATAC libraries in the table of cell types."""


@dataclass(frozen=True)
class Size:
    """Numbers of cells and features of a real data set."""

    features: dict[str, int]
    parts: dict[str, int]
    """Number of cells of each part."""
    batches: dict[str, tuple[str, ...]]
    """Batches that the cells of a part come from."""
    n_types: int

    def scaled(self, factor: float) -> "Size":
        """Return a size that is `factor` times as large, but no smaller than methods need."""
        features = {name: max(min(n, MINIMUM[name]), round(factor * n)) for name, n in self.features.items()}
        least = {part: MIN_CELLS * len(batches) for part, batches in self.batches.items()}
        parts = {part: max(min(n, least[part]), round(factor * n)) for part, n in self.parts.items()}
        return Size(features, parts, self.batches, self.n_types)


_CITE_TRAIN = ("s1d1", "s1d2", "s1d3", "s2d1", "s2d4", "s2d5", "s3d1", "s3d6", "s3d7")
_MULTIOME_TRAIN = ("s1d1", "s1d2", "s1d3", "s2d1", "s2d4", "s2d5", "s3d3", "s3d6", "s3d7", "s3d10")
_SITE_4 = ("s4d1", "s4d8", "s4d9")
_LIBRARIES = ("53", "54", "55", "56")

SIZES = {
    "bmmc_cite": Size(
        {"rna": 13_953, "adt": 134},
        {"train": 66_175, "test": 15_066, "iid_holdout": 9_020},
        {"train": _CITE_TRAIN, "test": _SITE_4, "iid_holdout": _CITE_TRAIN + _SITE_4},
        n_types=45,
    ),
    "bmmc_multiome": Size(
        {"rna": 13_431, "atac": 116_490},
        {"train": 42_492, "test": 20_009, "iid_holdout": 6_748},
        {"train": _MULTIOME_TRAIN, "test": _SITE_4, "iid_holdout": _MULTIOME_TRAIN + _SITE_4},
        n_types=22,
    ),
    "share_skin": Size(
        {"rna": 23_296, "atac": 344_592},
        {"labelled": 32_231, "mixed": 2_543, "rna_only": 8_174},
        {"labelled": _LIBRARIES, "mixed": _LIBRARIES, "rna_only": _LIBRARIES},
        n_types=22,
    ),
}
"""The paper's data sets (Luecken et al. 2021; Ma et al. 2020)."""


def simulate_dataset(name: str, factor: float, seed: int = 0) -> Modalities:
    """Draw the cells of a data set at `factor` times its size; ``obs`` has ``part``, ``batch`` and ``cell_type``."""
    size = SIZES[name].scaled(factor)
    parts = np.repeat(list(size.parts), list(size.parts.values()))
    libraries = {modality: LIBRARY_SIZES[modality] for modality in size.features}
    modalities = simulate(
        len(parts), size.features, n_types=size.n_types, n_batches=1, library_sizes=libraries, dispersion=5.0, seed=seed
    ).mod
    batch = np.concatenate([_spread(size.batches[part], n) for part, n in size.parts.items()])
    barcodes = _share_barcodes(batch) if name == "share_skin" else _tenx_barcodes(batch)
    for modality, adata in modalities.items():
        types = adata.obs["cell_type"].astype(str).str.replace("type", "Type ")
        adata.obs = pd.DataFrame({"part": parts, "batch": batch, "cell_type": types.to_numpy()}, index=barcodes)
        adata.var_names = list(_feature_names(modality, adata.n_vars))
        del adata.obsm, adata.varm
    return modalities


def expected(cells: Modalities) -> dict:
    """Return the value of ``expect`` in a data set's YAML for these cells."""
    obs = cells["rna"].obs
    parts = obs["part"].value_counts()
    if "labelled" in parts:
        return {"n_cells": int(parts["labelled"])}
    types = obs["cell_type"][obs["part"] == "test"].value_counts().to_dict()
    n_train, n_test = int(parts["train"]), int(parts["test"])
    site4 = {"n_train": n_train, "n_test": n_test, "test_cell_types": types}
    return {"n_cells": n_train + n_test, "splits": {"site4": site4}}


def _spread(batches: tuple[str, ...], n_cells: int) -> np.ndarray:
    """Return the batch of each cell, one batch after another, in about equal numbers."""
    return np.repeat(batches, [len(part) for part in np.array_split(np.arange(n_cells), len(batches))])


def _tenx_barcodes(batch: np.ndarray) -> list[str]:
    # A step coprime to 4¹⁵ scatters the barcodes over the 15 bases.
    numbers = np.arange(len(batch)) * 40_503 % 4**15
    bases = ["".join("ACGT"[number // 4**i % 4] for i in range(16)) for number in numbers]
    return [f"{base}-1-{sample}" for base, sample in zip(bases, batch, strict=True)]


def _share_barcodes(batch: np.ndarray) -> list[str]:
    numbers = np.arange(len(batch))
    rounds = [numbers // 96**i % 96 + 1 for i in range(3)]
    return [f"R1.{a:02d}.R2.{b:02d}.R3.{c:02d}.P1.{library}" for a, b, c, library in zip(*rounds, batch, strict=True)]


def _feature_names(modality: str, n_features: int) -> Iterator[str]:
    """Yield names; the first proteins are called like genes, as in the real data."""
    for j in range(n_features):
        match modality:
            case "rna":
                yield f"Gene{j + 1}"
            case "adt":
                yield f"Gene{j + 1}" if j < 5 else f"Protein{j + 1}"
            case _:
                yield f"chr{j % 19 + 1}-{1000 * (j + 1)}-{1000 * (j + 1) + 900}"


# ---- the competition: bucket and GEO -------------------------------------------------------------


def write_bucket(cells: Modalities, folder: Path, seed: int = 0) -> None:
    """Write the bucket's task files (RNA to the other modality), with the solution, and the file of all cells."""
    kind = _kind(cells)
    rng = np.random.default_rng(seed)
    for part in ("train", "test"):
        for role, adata in _task_files(cells, part, rng).items():
            name = f"openproblems_bmmc_{kind}_phase2_rna.censor_dataset.output_{part}_{role}.h5ad"
            adata.write_h5ad(folder / name, compression="gzip")
    _all_cells(cells, []).write_h5ad(folder / f"openproblems_bmmc_{kind}_complete.h5ad", compression="gzip")


def write_geo_bmmc(cells: Modalities, folder: Path) -> None:
    """Write GEO's file of all cells, including held-out ones, which ``obs["is_train"]`` tells apart."""
    plain = folder / f"GSE194122_openproblems_neurips2021_{_kind(cells)}_BMMC_processed.h5ad"
    _all_cells(cells, ["is_train"]).write_h5ad(plain)
    with gzip.open(f"{plain}.gz", "wb", compresslevel=1) as packed, open(plain, "rb") as file:
        shutil.copyfileobj(file, packed)
    plain.unlink()


def _kind(cells: Modalities) -> str:
    return "cite" if "adt" in cells else "multiome"


def _other(cells: Modalities) -> str:
    return next(name for name in cells if name != "rna")


def _task_files(cells: Modalities, part: str, rng: np.random.Generator) -> dict[str, ad.AnnData]:
    """Return ``mod1``, ``mod2`` (shuffled, renamed) and ``sol`` of the training or of the test cells."""
    rows = np.flatnonzero(cells["rna"].obs["part"] == part)
    shuffled = rng.permutation(len(rows))
    files = {}
    for role, modality, order in (("mod1", "rna", rows), ("mod2", _other(cells), rows[shuffled])):
        adata = _processed(cells[modality][order], modality)
        adata.obs = adata.obs[["batch"]].assign(size_factors=1.0)
        adata.X, adata.layers["counts"] = adata.X.tocsc(), adata.layers["counts"].tocsc()
        files[role] = adata
    files["mod2"].obs_names = [f"cell_{i + 1}" for i in range(len(rows))]
    # Row i has its 1 at the place where the shuffle of the second file put cell i.
    places = (np.ones(len(rows)), (np.arange(len(rows)), np.argsort(shuffled)))
    solution = sp.csc_matrix(places, shape=(len(rows), len(rows)))
    files["sol"] = ad.AnnData(solution, obs=files["mod1"].obs.copy(), uns={"pairing_ix": shuffled})
    return files


def _processed(adata: ad.AnnData, modality: str) -> ad.AnnData:
    """Return cells with X processed as the competition does, raw counts in a layer."""
    processed = adata.copy()
    processed.layers["counts"] = adata.X.copy()
    processed.X = (processed.X > 0).astype(np.float32) if modality == "atac" else processed.X.log1p()
    processed.var["feature_types"] = TYPES[modality]
    processed.var["gene_ids"] = [f"{TYPES[modality]}{j:011d}" for j in range(adata.n_vars)]
    return processed


def _all_cells(cells: Modalities, columns: list[str]) -> ad.AnnData:
    """Return one table of all features."""
    parts = [_processed(adata, modality) for modality, adata in cells.items()]
    obs = cells["rna"].obs.rename(columns={"part": "is_train"})
    obs["DonorNumber"] = "donor" + obs["batch"].str.extract(r"d(\d+)$", expand=False)
    with warnings.catch_warnings():
        # A gene and a protein may share a name, here as in the real files.
        warnings.filterwarnings("ignore", message=".*names are not unique")
        return ad.AnnData(
            sp.hstack([part.X for part in parts], format="csr"),
            obs=obs[["batch", "cell_type", "DonorNumber", *columns]],
            var=pd.concat([part.var for part in parts]).rename(columns={"gene_ids": "gene_id"}),
            layers={"counts": sp.hstack([part.layers["counts"] for part in parts], format="csr")},
        )


# ---- SHARE-seq: GEO and GLUE ---------------------------------------------------------------------


def write_geo_share(cells: Modalities, folder: Path) -> None:
    """Write the five files of the skin sample: RNA as dense text, ATAC as Matrix Market, the table of cell types."""
    rna, atac = cells["rna"], cells["atac"]
    atac = atac[(atac.obs["part"] != "rna_only").to_numpy()]
    _write_dense_text(rna, folder / "GSM4156608_skin.late.anagen.rna.counts.txt.gz")
    with gzip.open(folder / "GSM4156597_skin.late.anagen.counts.txt.gz", "wb", compresslevel=1) as file:
        mmwrite(file, sp.coo_matrix(atac.X.T.astype(np.int32)))
    with gzip.open(folder / "GSM4156597_skin.late.anagen.barcodes.txt.gz", "wt") as file:
        file.writelines(f"{name}\n" for name in atac.obs_names)
    with gzip.open(folder / "GSM4156597_skin.late.anagen.peaks.bed.gz", "wt") as file:
        file.writelines(name.replace("-", "\t") + "\n" for name in atac.var_names)
    _table_of_cell_types(atac.obs).to_csv(folder / "GSM4156597_skin_celltype.txt.gz", sep="\t", index=False)


def write_glue(cells: Modalities, folder: Path) -> None:
    """Write GLUE's two files: labelled cells, raw counts, no column of batches."""
    for modality, name in (("rna", "RNA"), ("atac", "ATAC")):
        adata = cells[modality][(cells[modality].obs["part"] == "labelled").to_numpy()].copy()
        adata.obs = adata.obs[["cell_type"]].assign(domain=f"sc{name}-seq")
        adata.write_h5ad(folder / f"Ma-2020-{name}.h5ad", compression="gzip")


def _write_dense_text(rna: ad.AnnData, path: Path) -> None:
    genes = rna.X.T.tocsr()
    # The real file has commas between the rounds of a barcode.
    cells = rna.obs_names.str.replace(".R", ",R", regex=False).str.replace(".P", ",P", regex=False)
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("\t".join(["gene", *cells]) + "\n")
        for j, name in enumerate(rna.var_names):
            counts = genes[j].toarray().ravel().astype(int)
            file.write(name + "\t" + "\t".join(map(str, counts.tolist())) + "\n")


def _table_of_cell_types(obs: pd.DataFrame) -> pd.DataFrame:
    """Return the barcodes of both assays, in which ATAC has its own libraries, and the cell types."""
    own = [ATAC_LIBRARIES[batch][i % len(ATAC_LIBRARIES[batch])] for i, batch in enumerate(obs["batch"])]
    stems = obs.index.str.rsplit(".", n=1).str[0]
    return pd.DataFrame(
        {
            "atac.bc": [f"{stem}.{library}" for stem, library in zip(stems, own, strict=True)],
            "rna.bc": obs.index,
            "celltype": np.where(obs["part"] == "mixed", "Mix", obs["cell_type"]),
        }
    )


WRITERS: dict[tuple[str, str], Callable[[Modalities, Path], None]] = {
    ("bmmc_cite", "bucket"): write_bucket,
    ("bmmc_cite", "geo"): write_geo_bmmc,
    ("bmmc_multiome", "bucket"): write_bucket,
    ("bmmc_multiome", "geo"): write_geo_bmmc,
    ("share_skin", "geo"): write_geo_share,
    ("share_skin", "glue"): write_glue,
}
"""Functions that write the files of a data set's source to a folder."""
