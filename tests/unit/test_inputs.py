"""Files as other tools write them, made by hand: the counts are read correctly, or one line says what to do."""

import gzip
import shutil
from pathlib import Path

import anndata as ad
import h5py
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import files_of, one_line_error, prepare_files
from scipy.io import mmwrite

from clue.benchmark.config import load
from clue.benchmark.data.task import make_task

N_CELLS, N_GENES, N_PROTEINS = 24, 9, 4
COUNTS = np.random.default_rng(0).integers(0, 9, (N_CELLS, N_GENES + N_PROTEINS))
COUNTS[:, 0] += 1
CELLS = [f"AAAC{i:04d}-1" for i in range(N_CELLS)]
GENES = [f"G{j}" for j in range(N_GENES)]
PROTEINS = [f"CD{j}" for j in range(N_PROTEINS)]
FEATURES = [(f"ENSG{j}", name, "Gene Expression") for j, name in enumerate(GENES)]
FEATURES += [(name, name, "Antibody Capture") for name in PROTEINS]

pytestmark = pytest.mark.filterwarnings("ignore")


def prepared(folder: Path, settings: dict, modalities=("rna", "adt"), **spec) -> md.MuData:
    """Prepare the files in a folder."""
    spec = {"modalities": list(modalities), "source": files_of(folder), "prepare": settings, "splits": {}} | spec
    return prepare_files("tiny", spec, folder)


def fault(folder: Path, settings: dict, **spec) -> str:
    """Return the message of a failing preparation."""
    return one_line_error(prepared, folder, settings, **spec)


def assert_counts(mdata: md.MuData, batch: np.ndarray | None = None) -> None:
    """Check that all counts, and batches if given, are there under the right names."""
    found = np.hstack([mdata.mod[name].to_df().loc[CELLS].to_numpy() for name in ("rna", "adt")])
    names = [*mdata.mod["rna"].var_names, *mdata.mod["adt"].var_names]
    assert names == [*GENES, *PROTEINS] and (found == COUNTS).all()
    for adata in mdata.mod.values() if batch is not None else ():
        assert list(adata.obs.loc[CELLS, "batch"]) == list(batch)


# ---- Cell Ranger and other tools that write its formats ------------------------------------------


def write_mex(folder, packed=(".gz", ".gz", ".gz"), name="features.tsv", columns=3, prefix="", features=FEATURES):
    """Write the three files, each gzipped or not."""
    lines = ["\t".join(feature[:columns]) for feature in features]
    contents = {f"{name}{packed[1]}": "\n".join(lines), f"barcodes.tsv{packed[2]}": "\n".join(CELLS)}
    for name, text in contents.items():
        packed_text = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
        (folder / f"{prefix}{name}").write_bytes(packed_text)
    with (gzip.open if packed[0] else open)(folder / f"{prefix}matrix.mtx{packed[0]}", "wb") as file:
        mmwrite(file, sp.coo_matrix(COUNTS.T))


def write_quoted_mex(folder):
    """Write what R's ``write.table`` does: every string in quotation marks."""
    write_mex(folder, ("", "", ""), features=[[f'"{text}"' for text in feature] for feature in FEATURES])
    (folder / "barcodes.tsv").write_text("".join(f'"{cell}"\n' for cell in CELLS))


def texts(values):
    return np.array([value.encode() for value in values])


def write_h5(path, extra=None):
    """Write Cell Ranger's file; `extra` adds what some versions and other tools also write."""
    matrix = sp.csr_matrix(COUNTS)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"] = matrix.data.astype(np.int32), matrix.indices.astype(np.int64)
        group["indptr"], group["shape"] = matrix.indptr.astype(np.int64), np.array(matrix.shape[::-1], np.int32)
        group["barcodes"] = texts(CELLS)
        columns = dict(zip(("id", "name", "feature_type"), zip(*FEATURES, strict=True), strict=True))
        for key, values in (columns | {"genome": ["GRCh38"] * len(FEATURES)}).items():
            group[f"features/{key}"] = texts(values)
        group["features/_all_tag_keys"] = texts(["genome"])
        for key, value in (extra or {}).items():
            file[key] = value


def write_h5_of_version_2(path, genomes=("GRCh38",), extra=None):
    matrix = sp.csr_matrix(COUNTS)
    with h5py.File(path, "w") as file:
        for genome in genomes:
            group = file.create_group(genome)
            for key in ("data", "indices", "indptr"):
                group[key] = getattr(matrix, key)
            group["shape"], group["barcodes"] = matrix.shape[::-1], texts(CELLS)
            group["genes"], group["gene_names"] = (texts(column) for column in list(zip(*FEATURES, strict=True))[:2])
        for key, value in (extra or {}).items():
            file[key] = value


FLEX = {"matrix/features/target_sets/Probes": np.arange(3), "matrix/features/is_probe": np.ones(len(FEATURES), bool)}
FLEX |= {"matrix/probe_region": np.zeros(len(FEATURES)), "matrix/filtered_barcodes": np.ones(N_CELLS, bool)}
CELLBENDER = {"matrix/target_false_positive_rate": 0.01, "metadata/estimator": "mean", "matrix/ambient": np.ones(13)}
LATENTS = {"droplet_latents/barcode": np.ones(3), "global_latents/name": np.ones(2)}
CELLBENDER |= LATENTS
TENX = {
    "version 3": lambda folder: write_h5(folder / "x.h5"),
    "Flex": lambda folder: write_h5(folder / "x.h5", FLEX),
    "CellBender": lambda folder: write_h5(folder / "x.h5", CELLBENDER),
    "folder": write_mex,
    "unpacked folder": lambda folder: write_mex(folder, ("", "", "")),
    "folder of R's write.table": write_quoted_mex,
    "folder packed in part": lambda folder: write_mex(folder, ("", ".gz", "")),
}


@pytest.mark.parametrize("kind", TENX)
def test_cell_ranger_of_many_versions(tmp_path, kind):
    TENX[kind](tmp_path)
    sample = "x.h5" if (tmp_path / "x.h5").exists() else ""
    assert_counts(prepared(tmp_path, {"kind": "tenx", "samples": {"one": sample}}))


@pytest.mark.parametrize(
    ("sample", "write"),
    [
        ("x.h5", lambda folder: write_h5_of_version_2(folder / "x.h5")),
        ("x.h5", lambda folder: write_h5_of_version_2(folder / "x.h5", ["matrix_v2"], LATENTS)),
        ("", lambda folder: write_mex(folder, ("", "", ""), "genes.tsv", columns=2)),
    ],
)
def test_cell_ranger_2_has_only_genes(tmp_path, sample, write):
    write(tmp_path)
    message = fault(tmp_path, {"kind": "tenx", "samples": {"one": sample}})
    assert "no feature of type 'Antibody Capture' (adt); types: Gene Expression" in message


def test_names_in_h5_may_have_non_ascii_letters(tmp_path):
    write_h5(tmp_path / "x.h5")
    with h5py.File(tmp_path / "x.h5", "a") as file:
        del file["matrix/features/name"]
        file["matrix/features/name"] = texts([*GENES, "TCRγδ", *PROTEINS[1:]])
    assert prepared(tmp_path, {"kind": "tenx", "samples": {"one": "x.h5"}}).mod["adt"].var_names[0] == "TCRγδ"


def test_cell_ranger_errors_name_the_file(tmp_path):
    write_h5_of_version_2(tmp_path / "x.h5", ["hg19", "mm10"])
    settings = {"kind": "tenx", "samples": {"one": "x.h5"}}
    assert "x.h5: holds the genomes hg19, mm10" in fault(tmp_path, settings)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["matrix/barcodes"] = texts(CELLS)
    assert "x.h5: holds no Cell Ranger matrix (only matrix)" in fault(tmp_path, settings)
    write_mex(tmp_path)
    shutil.copy(tmp_path / "barcodes.tsv.gz", tmp_path / "barcodes.tsv")
    assert "barcodes.tsv is beside it" in fault(tmp_path, {"kind": "tenx", "samples": {"one": ""}})
    (tmp_path / "barcodes.tsv").unlink()
    (tmp_path / "barcodes.tsv.gz").write_bytes(gzip.compress("\n".join(CELLS[:-1]).encode()))
    assert "24 × 13 counts for 23 barcodes" in fault(tmp_path, {"kind": "tenx", "samples": {"one": ""}})
    (tmp_path / "barcodes.tsv.gz").write_bytes(gzip.compress("\n".join(["AC\0GT", *CELLS[1:]]).encode()))
    message = fault(tmp_path, {"kind": "tenx", "samples": {"one": ""}})
    assert "barcodes.tsv.gz: cannot be read (it holds zero bytes, as damaged files do)" in message


def test_samples_are_batches_and_share_their_features(tmp_path):
    """A name shared by two genes is replaced by identifiers; one shared by a gene and a protein gets a prefix."""
    named = [(f"ENSG{i}", name, "Gene Expression") for i, name in enumerate(("CD0", "G2", "G2"))] + FEATURES[3:]
    for prefix in ("a_", "b_"):
        write_mex(tmp_path, prefix=prefix, features=named)
    samples = {"kind": "tenx", "samples": {"a": "a_", "b": "b_"}}
    mdata = prepared(tmp_path, samples)
    assert list(mdata.mod["rna"].var_names[:4]) == ["CD0", "ENSG1", "ENSG2", "G3"]
    assert mdata.mod["adt"].var_names[0] == "adt:CD0"
    assert list(mdata.mod["rna"].obs["batch"]) == ["a"] * N_CELLS + ["b"] * N_CELLS
    assert mdata.mod["rna"].obs_names[N_CELLS] == f"b_{CELLS[0]}"
    assert (mdata.mod["adt"].X.toarray() == np.tile(COUNTS[:, N_GENES:], (2, 1))).all()
    twice = [*named[:2], named[1], *named[3:]]
    for prefix in ("a_", "b_"):
        write_mex(tmp_path, prefix=prefix, features=twice)
    assert "feature name 'ENSG1' occurs more than once" in fault(tmp_path, samples)
    write_mex(tmp_path, prefix="a_", features=named)
    write_mex(tmp_path, prefix="b_", features=[("ENSG99", *FEATURES[0][1:]), *FEATURES[1:]])
    assert "features of sample 'b' differ" in fault(tmp_path, samples)
    assert "c_matrix.mtx.gz: no such file" in fault(tmp_path, {"kind": "tenx", "samples": {"c": "c_"}})
    path = tmp_path / "a_matrix.mtx.gz"
    path.write_bytes(path.read_bytes()[:50])
    assert "a_matrix.mtx.gz: cannot be read" in fault(tmp_path, samples)


# ---- anndata files of all versions ---------------------------------------------------------------

BATCH = np.array(["a", "b"] * (N_CELLS // 2), object)
OWN = {"kind": "own", "files": {"rna": "rna.h5ad", "adt": "adt.h5ad"}, "batch": "batch"}
PARTS = {"rna": (COUNTS[:, :N_GENES], GENES), "adt": (COUNTS[:, N_GENES:], PROTEINS)}


def write_h5ads(folder, change=lambda adata: adata):
    """Write both modalities with the installed anndata; `change` is applied to each first."""
    for name, (counts, features) in PARTS.items():
        obs, var = pd.DataFrame({"batch": BATCH}, index=CELLS), pd.DataFrame(index=features)
        adata = ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)
        change(adata).write_h5ad(folder / f"{name}.h5ad")


def with_matrix(convert):
    def change(adata):
        adata.X = convert(adata.X)
        return adata

    return change


def with_batch(convert):
    def change(adata):
        adata.obs["batch"] = convert(adata.obs["batch"])
        return adata

    return change


def with_annotations(adata):
    """Add columns of every kind, some with missing values; they must not matter."""
    adata.obs["n"] = pd.array([1, None] * (N_CELLS // 2), "Int64")
    adata.obs["is"] = pd.array([True, None] * (N_CELLS // 2), "boolean")
    adata.obs["type"] = pd.Categorical(["x", None] * (N_CELLS // 2))
    adata.obsm["X_umap"], adata.uns["neighbors"] = np.zeros((N_CELLS, 2)), {"params": {}}
    return adata


KINDS = {
    "dense": with_matrix(lambda x: x.toarray()),
    "by columns": with_matrix(sp.csc_matrix),
    "int64": with_matrix(lambda x: x.astype(np.int64)),
    "uint8 dense": with_matrix(lambda x: x.toarray().astype(np.uint8)),
    "uint32 of SnapATAC2": with_matrix(lambda x: x.astype(np.uint32)),
    "float64": with_matrix(lambda x: x.astype(np.float64)),
    "float16 dense": with_matrix(lambda x: x.toarray().astype(np.float16)),
    "categorical batch": with_batch(pd.Categorical),
    "string batch": with_batch(lambda batch: batch.astype("string")),
    "annotations": with_annotations,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_anndata_file(tmp_path, kind):
    with ad.settings.override(allow_write_nullable_strings=True):
        write_h5ads(tmp_path, KINDS[kind])
    assert_counts(prepared(tmp_path, OWN), BATCH)


def test_without_columns_all_cells_are_one_batch_and_have_no_types(tmp_path):
    write_h5ads(tmp_path)
    obs = prepared(tmp_path, {"kind": "own", "files": OWN["files"]}).mod["rna"].obs
    assert set(obs["batch"]) == {"all"} and list(obs) == ["batch"]


def write_anndata_06(path, counts, features, sparse):
    """Write obs and var as one HDF5 dataset each, and categories in uns, as anndata did before 0.7."""
    with h5py.File(path, "w") as file:
        if sparse:
            matrix = sp.csr_matrix(counts.astype(np.float32))
            group = file.create_group("X")
            group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = "csr", matrix.shape
            for key in ("data", "indices", "indptr"):
                group[key] = getattr(matrix, key)
        else:
            file["X"] = counts.astype(np.float32)
        obs = [(name.encode(), i % 2) for i, name in enumerate(CELLS)]
        file["obs"] = np.array(obs, [("index", "S20"), ("batch", "i1")])
        file["var"] = np.array([(name.encode(), 1.0) for name in features], [("index", "S20"), ("mean", "f4")])
        file["uns/batch_categories"] = texts(["a", "b"])


@pytest.mark.parametrize("sparse", [True, False])
def test_anndata_before_0_7(tmp_path, sparse):
    for name, (counts, features) in PARTS.items():
        write_anndata_06(tmp_path / f"{name}.h5ad", counts, features, sparse)
    assert_counts(prepared(tmp_path, OWN), BATCH)


def test_categories_of_anndata_0_7(tmp_path):
    """SeuratDisk writes them this way too."""
    write_h5ads(tmp_path)
    for name in PARTS:
        with h5py.File(tmp_path / f"{name}.h5ad", "a") as file:
            obs = file["obs"]
            obs.attrs["encoding-version"] = "0.1.0"
            del obs["batch"]
            obs["batch"] = np.array([0, 1] * (N_CELLS // 2), np.int8)
            obs["__categories/batch"] = texts(["a", "b"])
            obs["batch"].attrs["categories"] = obs["__categories/batch"].ref
    assert_counts(prepared(tmp_path, OWN), BATCH)


# ---- counts that are not in X --------------------------------------------------------------------


def normalised(place):
    def change(adata):
        counts = adata.copy()
        if place == "raw":
            adata.raw = counts
            adata = adata[:, 2:].copy()  # as after selecting variable genes: raw has more
        elif place:
            adata.layers[place] = counts.X
        adata.X = adata.X.log1p()
        return adata

    return change


@pytest.mark.parametrize("place", ["raw", "counts"])
def test_place_of_counts_is_suggested_and_used(tmp_path, place):
    write_h5ads(tmp_path, normalised(place))
    message = fault(tmp_path, OWN)
    assert f"rna.h5ad: X holds no raw counts, but there are counts: set prepare.layer: {place}" in message
    assert_counts(prepared(tmp_path, OWN | {"layer": place}))


def test_each_modality_may_have_its_own_layer(tmp_path):
    write_h5ads(tmp_path, lambda adata: normalised("raw")(adata) if adata.n_vars == N_GENES else adata)
    message = "adt.h5ad: has no layers/raw (layers: none), but there are counts: set prepare.layer: X"
    assert message in fault(tmp_path, OWN | {"layer": "raw"})
    assert_counts(prepared(tmp_path, OWN | {"layer": {"rna": "raw", "adt": "X"}}))
    assert_counts(prepared(tmp_path, OWN | {"layer": {"rna": "raw"}}))


def test_counts_of_a_mudata_are_found_too(tmp_path):
    write_h5ads(tmp_path, normalised("counts"))
    mdata = md.MuData({name: ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in PARTS})
    mdata.obs["annotation"] = "T cell"
    mdata.write(tmp_path / "all.h5mu")
    own = {"kind": "own", "file": "all.h5mu", "batch": "batch", "cell_type": "annotation"}
    message = "all.h5mu: mod/rna/X holds no raw counts, but there are counts: set prepare.layer: counts"
    assert message in fault(tmp_path, own)
    mdata = prepared(tmp_path, own | {"layer": {"rna": "counts", "adt": "counts"}})
    assert_counts(mdata, BATCH)
    assert set(mdata.mod["adt"].obs["cell_type"]) == {"T cell"}, "a column of the MuData itself"
    assert "all.h5mu: obs (prepare.batch) has no column 'lane' (it has " in fault(
        tmp_path, own | {"batch": "lane", "layer": "counts"}
    )
    assert "all.h5mu: has no modality atac (it has " in fault(tmp_path, own, modalities=("rna", "atac"))


OTHERS = [OWN | {"files": {"rna": "x.rds", "adt": "x.rds"}}, {"kind": "own", "file": "x.rds"}]
OTHERS += [{"kind": "tenx", "samples": {"one": "x.rds"}}]


@pytest.mark.parametrize("settings", OTHERS)
def test_file_of_another_program_is_not_called_damaged(tmp_path, settings):
    (tmp_path / "x.rds").write_bytes(gzip.compress(b"X\n\0\0\0\3"))
    message = fault(tmp_path, settings)
    assert "x.rds: is " in message and "again" not in message


def test_missing_batches_in_a_categorical_of_nullable_strings(tmp_path):
    """As pandas 3 makes it: a missing value is NA, which compares neither equal nor unequal."""
    batch = pd.Categorical([None, *["a"] * (N_CELLS - 1)])
    write_h5ads(tmp_path, with_batch(lambda _: batch))
    for name in PARTS:
        with h5py.File(tmp_path / f"{name}.h5ad", "a") as file, ad.settings.override(allow_write_nullable_strings=True):
            ad.io.write_elem(file["obs/batch"], "categories", pd.array(["a"], "string"))
    assert "rna.h5ad [rna]: obs['batch'] has missing values" in fault(tmp_path, OWN)


def test_unmatched_names_are_not_explained_by_a_useless_edit(tmp_path):
    for name, cells in (("rna", slice(0, 20)), ("adt", slice(1, N_CELLS))):
        counts, features = PARTS[name]
        obs, var = pd.DataFrame({"batch": BATCH}, index=CELLS)[cells], pd.DataFrame(index=features)
        ad.AnnData(sp.csr_matrix(counts[cells]), obs=obs, var=var).write_h5ad(tmp_path / f"{name}.h5ad")
    message = fault(tmp_path, OWN)
    assert "4 of 23 cells of adt" in message and "differ" not in message


def test_file_without_x(tmp_path):
    def change(adata):
        adata.layers["counts"], adata.X = adata.X, None
        return adata

    write_h5ads(tmp_path, change)
    message = "rna.h5ad: has no X (layers: counts), but there are counts: set prepare.layer: counts"
    assert message in fault(tmp_path, OWN)
    assert_counts(prepared(tmp_path, OWN | {"layer": "counts"}))


@pytest.mark.parametrize("writer", ["anndata before 0.7", "SeuratDisk"])
def test_raw_of_other_writers(tmp_path, writer):
    """SeuratDisk's feature table in raw is not marked as a data frame."""
    write_h5ads(tmp_path, normalised("raw"))
    for name in PARTS:
        with h5py.File(tmp_path / f"{name}.h5ad", "a") as file:
            if writer == "SeuratDisk":
                del file["raw/var"].attrs["encoding-type"], file["raw/var"].attrs["encoding-version"]
            else:
                file.move("raw/X", "raw.X"), file.move("raw/var", "raw.var")
                del file["raw"]
    assert_counts(prepared(tmp_path, OWN | {"layer": "raw"}))


# ---- cells and columns that disagree -------------------------------------------------------------


def renamed(convert, n=N_CELLS):
    """Rename the first cells of the proteins."""

    def change(adata):
        if adata.n_vars == N_PROTEINS:
            adata.obs_names = [convert(name) if i < n else name for i, name in enumerate(adata.obs_names)]
        return adata

    return change


@pytest.mark.parametrize(
    ("convert", "reason"),
    [
        (lambda name: name.removesuffix("-1"), "their ending"),
        (lambda name: f"s1_{name}", "their beginning"),
        (str.lower, "upper and lower case"),
        (lambda name: name.replace("-", "."), "their punctuation"),
        (lambda name: f"{hash(name)}", "cells are paired by name"),
    ],
)
def test_unpaired_cells_are_named_with_the_reason(tmp_path, convert, reason):
    write_h5ads(tmp_path, renamed(convert, 20))
    message = fault(tmp_path, OWN)
    example = f"(rna 'AAAC0000-1', adt {convert('AAAC0000-1')!r})"
    assert f"rna.h5ad: 20 of 24 cells of rna are not in adt {example}" in message and reason in message
    assert "expect: {n_cells: 4}" in message
    mdata = prepared(tmp_path, OWN, expect={"n_cells": 4})
    assert mdata.n_obs == 4 and mdata.uns["dropped"].startswith("rna: 20 of 24 cells lack another modality")


def test_unpaired_cells_are_kept_if_the_yaml_says_so(tmp_path):
    write_h5ads(tmp_path, renamed(lambda name: f"x{name}", 20))
    assert "keep them for training with prepare: {keep_unpaired: true}" in fault(tmp_path, OWN)
    mdata = prepared(tmp_path, OWN | {"keep_unpaired": True})
    assert mdata.n_obs == 44 and mdata.uns["dropped"] == ""
    names = {modality: list(adata.obs_names) for modality, adata in mdata.mod.items()}
    assert names["rna"][:4] == names["adt"][:4] and not set(names["rna"][4:]) & set(names["adt"][4:])
    write_h5ads(tmp_path, renamed(lambda name: f"x{name}", N_CELLS))
    for settings in (OWN, OWN | {"keep_unpaired": True}):
        message = fault(tmp_path, settings)
        assert "24 of 24 cells of rna are not in adt" in message
        assert "expect" not in message and "keep_unpaired" not in message, "no cell is left to allow"


def write_mosaic(folder, parts: dict[str, slice | list[int]]) -> None:
    """Write three modalities, each with some of the cells."""
    for name, part in parts.items():
        counts, features = PARTS["adt" if name == "adt" else "rna"]
        obs = pd.DataFrame({"batch": BATCH}, index=CELLS).iloc[part]
        cells = ad.AnnData(sp.csr_matrix(counts[part].astype(np.float32)), obs=obs, var=pd.DataFrame(index=features))
        cells.write_h5ad(folder / f"{name}.h5ad")


THREE = ("rna", "atac", "adt")
OWN_THREE = {"kind": "own", "files": {name: f"{name}.h5ad" for name in THREE}, "keep_unpaired": True}


def test_no_cell_seen_in_all_three_modalities(tmp_path):
    write_mosaic(tmp_path, {"rna": slice(0, 24), "atac": slice(0, 12), "adt": slice(12, 24)})
    message = fault(tmp_path, OWN_THREE, modalities=list(THREE))
    assert "rna.h5ad: no cell is seen in all of rna, atac, adt, as test cells must be" in message
    assert "names differ" not in message
    assert prepared(tmp_path, OWN_THREE | {"files": {k: f"{k}.h5ad" for k in ("rna", "adt")}}).n_obs == 24


def test_mosaic_without_training_pairs_of_two_modalities(tmp_path):
    """Cells 0 to 9 have RNA and peaks, 10 to 19 RNA and proteins; the others are test cells and have all three."""
    write_mosaic(tmp_path, {"rna": slice(0, 24), "atac": [*range(10), *range(20, 24)], "adt": slice(10, 24)})
    mdata = prepared(tmp_path, OWN_THREE, modalities=THREE)
    task = make_task(mdata, "tiny", "s", {"kind": "random", "n_test": 4, "seed": 0})
    names = {name: set(adata.obs_names) for name, adata in task.train.mod.items()}
    assert not names["atac"] & names["adt"] and len(names["rna"] & names["adt"]) == 10
    assert {name: adata.n_obs for name, adata in task.tests.items()} == dict.fromkeys(THREE, 4)


def test_few_lost_cells_are_not_an_error(tmp_path, capsys):
    write_h5ads(tmp_path, renamed(lambda name: f"x{name}", 1))
    assert prepared(tmp_path, OWN).n_obs == N_CELLS - 1
    assert "rna: 1 of 24 cells lack another modality" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["batch", "cell_type", "donor"])
def test_column_that_differs_between_modalities_is_one_line(tmp_path, key):
    def change(adata):
        adata.obs["mine"] = BATCH if adata.n_vars == N_GENES else ["z", *BATCH[1:]]
        return adata

    write_h5ads(tmp_path, change)
    message = fault(tmp_path, OWN | {key: "mine"})
    assert f"adt.h5ad: prepare.{key}: obs['mine'] of cell 'AAAC0000-1' is 'z' in adt, but 'a' in rna" in message


def test_equal_numbers_of_other_types_agree(tmp_path):
    def change(adata):
        adata.obs["batch"] = np.arange(N_CELLS, dtype=int if adata.n_vars == N_GENES else float)
        return adata

    write_h5ads(tmp_path, change)
    assert list(prepared(tmp_path, OWN).mod["adt"].obs["batch"]) == [str(i) for i in range(N_CELLS)]


# ---- what is not read ----------------------------------------------------------------------------


def write_groups(path, *keys):
    with h5py.File(path, "w") as file:
        for key in keys:
            file[key] = np.zeros(3)


FOREIGN = {
    "SeuratDisk": lambda path: write_groups(path, "assays/RNA/counts", "cell.names", "meta.data/x"),
    "loom": lambda path: write_groups(path, "matrix", "row_attrs/Gene", "col_attrs/CellID"),
    "ArchR": lambda path: write_groups(path, "Class", "TileMatrix/Info", "GeneScoreMatrix/Info"),
    "Cell Ranger": write_h5,
    "rds": lambda path: path.write_bytes(gzip.compress(b"RDX3\nX\n" + bytes(50))),
    "csv": lambda path: path.write_text("cell,G1\na,1\n"),
    "empty": lambda path: path.write_bytes(b""),
    "zarr": Path.mkdir,
    "unknown encoding": lambda path: write_with_encoding(path, "dataframe", "9.9.9"),
    "foreign encoding": lambda path: write_with_encoding(path, "polars", "0.1.0"),
}


def write_with_encoding(path, kind, version):
    write_h5ads(path.parent)
    with h5py.File(path, "a") as file:
        file["obs"].attrs["encoding-type"], file["obs"].attrs["encoding-version"] = kind, version


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_named_in_one_line(tmp_path, kind):
    write_h5ads(tmp_path)
    (tmp_path / "rna.h5ad").unlink()
    FOREIGN[kind](tmp_path / "rna.h5ad")
    expected = "is a folder; write a zarr store as .h5ad" if kind == "zarr" else ""
    assert f"rna.h5ad: {expected}" in fault(tmp_path, OWN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_matrix(lambda x: -x), "negative counts"),
        (with_matrix(lambda x: x / 2), "counts that are not whole numbers"),
        (with_matrix(lambda x: x * np.nan), "NaN or infinite"),
        (with_matrix(lambda x: x * 0), "all counts are zero"),
        (with_batch(lambda batch: batch.where(batch == "a")), "obs['batch'] has missing values"),
    ],
)
def test_errors_on_wrong_values_name_the_file(tmp_path, change, message):
    write_h5ads(tmp_path, change)
    assert "rna.h5ad [rna]: " in (found := fault(tmp_path, OWN)) and message in found


# ---- columns that a split names, layers ------------------------------------------------------------


def test_own_column_of_a_split_is_kept(tmp_path, workplace, add_dataset):
    obs = pd.DataFrame({"fold": ["a", "b"] * (N_CELLS // 2)}, index=CELLS)
    for name, counts in (("rna", COUNTS[:, :N_GENES]), ("adt", COUNTS[:, N_GENES:])):
        names = pd.DataFrame(index=GENES if name == "rna" else PROTEINS)
        ad.AnnData(counts.astype(np.float32), obs=obs, var=names).write_h5ad(tmp_path / f"{name}.h5ad")
    files = {"rna": "rna.h5ad", "adt": "adt.h5ad"}
    spec = {
        "modalities": ["rna", "adt"],
        "source": {"kind": "files", "folder": str(tmp_path), "files": [*files.values()]},
        "prepare": {"kind": "own", "files": files},
        "splits": {"fold": {"kind": "predefined", "column": "fold", "test": "b", "seed": 0}},
    }
    add_dataset("tiny", spec)
    loaded = load("datasets", "tiny")
    mdata = prepare_files("tiny", loaded, tmp_path)
    task = make_task(mdata, "tiny", "fold", loaded["splits"]["fold"])
    assert sorted(task.solution.obs_names) == CELLS[1::2]
    assert list(task.train["rna"].obs) == ["batch"]


def test_message_names_the_layer(tmp_path):
    adata = ad.AnnData(COUNTS[:, :N_GENES].astype(np.float32), obs=pd.DataFrame(index=CELLS))
    adata.layers["norm"] = adata.X / 3
    adata.X = adata.X / 2
    for name in ("rna", "adt"):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    settings = {"kind": "own", "files": {"rna": "rna.h5ad", "adt": "adt.h5ad"}, "layer": "norm"}
    assert "[rna]: layer 'norm' holds counts that are not whole numbers" in fault(tmp_path, settings)
