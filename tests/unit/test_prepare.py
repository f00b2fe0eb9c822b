"""Preparation: raw files of every kind become one checked file of raw counts."""

from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import files_of, one_line_error, prepare_files

from clue.benchmark.config import load
from clue.benchmark.contracts import ContractError
from clue.benchmark.data.prepare import PrepareError
from clue.benchmark.data.sources import has_files

fault = partial(one_line_error, prepare_files)
STARTER = "openproblems_bmmc_cite_starter"


def dense(adata):
    return adata.X.toarray()


# ---- one file ------------------------------------------------------------------------------------


@pytest.fixture
def h5ad_spec():
    prepare = {"kind": "h5ad", "file": "all.h5ad", "drop_features": ["isotype"]}
    prepare["feature_types"] = {"rna": "Gene Expression", "adt": "Antibody Capture"}
    prepare["obs"] = {"batch": "Batch", "cell_type": "type", "donor": "Donor"}
    source = {"kind": "files", "folder": ".", "files": ["all.h5ad"]}
    return {"modalities": ["rna", "adt"], "source": source, "prepare": prepare}


@pytest.fixture
def h5ad():
    """4 cells; CD4 is a gene and a protein, GENE0 is zero everywhere, one protein is an isotype control."""
    counts = np.float32([[1, 0, 2, 5, 9, 7], [0, 0, 3, 6, 9, 7], [4, 0, 0, 7, 9, 7], [0, 0, 1, 0, 9, 7]])
    names = ["GENE1", "GENE0", "CD4", "CD4", "isotype", "CD8"]
    types = ["Gene Expression"] * 3 + ["Antibody Capture"] * 3
    obs = {"Batch": list("aabb"), "type": ["T", "B", "T", "B"], "Donor": ["x", "x", "y", "y"], "age": [1, 2, 3, 4]}
    with pytest.warns(UserWarning, match="not unique"):
        return ad.AnnData(
            sp.csr_matrix(counts),
            obs=pd.DataFrame(obs, index=list("1234")),
            var=pd.DataFrame({"feature_types": types}, index=names),
            obsm={"X_umap": np.ones((4, 2))},
        )


@pytest.fixture
def prepare_h5ad(h5ad, h5ad_spec, tmp_path):
    def run():
        h5ad.write_h5ad(tmp_path / "all.h5ad")
        return prepare_files("tiny", h5ad_spec, tmp_path)

    return run


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
class TestH5ad:
    def test_features_are_split_renamed_and_dropped(self, prepare_h5ad):
        mdata = prepare_h5ad()
        assert list(mdata.mod) == ["rna", "adt"]
        assert list(mdata.mod["rna"].var_names) == ["GENE1", "CD4"]
        assert list(mdata.mod["adt"].var_names) == ["adt:CD4", "CD8"]
        assert dense(mdata.mod["rna"]).tolist() == [[1, 2], [0, 3], [4, 0], [0, 1]]
        assert dense(mdata.mod["adt"]).tolist() == [[5, 7], [6, 7], [7, 7], [0, 7]]

    def test_only_our_annotations_are_kept(self, prepare_h5ad):
        mdata = prepare_h5ad()
        for adata in mdata.mod.values():
            assert list(adata.obs.columns) == ["batch", "cell_type", "donor"]
            assert list(adata.obs["donor"]) == ["x", "x", "y", "y"]
            assert not adata.obsm and not adata.layers and not adata.uns
        assert mdata.obs.columns.empty
        assert mdata.uns["dataset"] == "tiny" and mdata.uns["sha256"].startswith("all.h5ad ")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda a, _: a.obs.pop("Batch"), r"all.h5ad: obs has no column 'Batch' \(it has type, Donor, age\)"),
            (lambda a, _: a.var.pop("feature_types"), "all.h5ad: var has no column 'feature_types'"),
            (lambda a, _: setattr(a, "obs_names", list("1134")), "cell name '1' occurs more than once"),
            (lambda a, _: a.obs.__setitem__("type", ["T", None, "T", "B"]), r"obs\['cell_type'\] has missing values"),
            (lambda _, s: s["prepare"].update(drop_features=["absent"]), "no feature absent"),
            (lambda _, s: s["prepare"]["feature_types"].update(rna="GEX"), "no feature whose .* is 'GEX'"),
            (lambda _, s: s.update(modalities=["rna", "atac"]), "modalities: the files hold"),
            (lambda _, s: s.update(expect={"n_features": {"adt": 3}}), "expect.n_features.adt: found 2, expected 3"),
            (lambda _, s: s.update(donor_in_batch="a"), "tiny: donor_in_batch: 'a' matches nothing in the batch 'b'"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Observation names are not unique")
    def test_errors_name_what_is_wrong(self, h5ad, h5ad_spec, prepare_h5ad, change, message):
        change(h5ad, h5ad_spec)
        with pytest.raises((PrepareError, ContractError), match=message):
            prepare_h5ad()

    def test_donor_may_be_part_of_the_batch_name(self, h5ad, h5ad_spec, prepare_h5ad):
        h5ad.obs["Batch"] = ["s1d1", "s1d12", "s2d1", "s2d12"]
        h5ad_spec["donor_in_batch"] = r"d\d+$"
        for adata in prepare_h5ad().mod.values():
            assert list(adata.obs["donor"]) == ["d1", "d12", "d1", "d12"]


# ---- bare arrays ---------------------------------------------------------------------------------


@pytest.fixture
def npy_spec():
    return {
        "modalities": ["rna", "atac"],
        "source": {"kind": "files", "folder": ".", "files": ["a.npy", "b.npy"]},
        "prepare": {"kind": "npy", "files": {"rna": "a.npy", "atac": "b.npy"}},
    }


def save_arrays(folder, rna, atac):
    np.save(folder / "a.npy", np.array(rna, dtype=np.float64))
    np.save(folder / "b.npy", np.array(atac, dtype=np.float64))


def test_arrays_get_names_and_joint_duplicates_are_removed(npy_spec, tmp_path, capsys):
    # Cells 1 and 3 are equal in both arrays, cells 1 and 4 only in the first. Gene 2 is zero everywhere.
    save_arrays(tmp_path, [[1, 0, 2], [3, 0, 0], [1, 0, 2], [1, 0, 2]], [[1, 1], [0, 2], [1, 1], [0, 5]])
    mdata = prepare_files("tiny", npy_spec, tmp_path)
    assert list(mdata.mod["rna"].obs_names) == ["cell_0001", "cell_0002", "cell_0004"]
    assert list(mdata.mod["rna"].var_names) == ["gene_00001", "gene_00003"]
    assert list(mdata.mod["atac"].var_names) == ["peak_00001", "peak_00002"]
    assert dense(mdata.mod["atac"]).tolist() == [[1, 1], [0, 2], [0, 5]]
    assert set(mdata.mod["rna"].obs["batch"]) == {"all"}
    assert "1 of 4 cells repeat" in capsys.readouterr().out


def test_arrays_of_wrong_length_or_shape_or_truncated_are_refused(npy_spec, tmp_path):
    save_arrays(tmp_path, [[1], [2]], [[1]])
    assert "unequal numbers of cells" in fault("tiny", npy_spec, tmp_path)
    np.save(tmp_path / "a.npy", np.ones(3))
    assert "a.npy: has 1 dimensions" in fault("tiny", npy_spec, tmp_path)
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-4])
    assert "a.npy: cannot be read" in fault("tiny", npy_spec, tmp_path)
    np.save(tmp_path / "a.npy", np.array([["x"]]))
    assert "a.npy: holds no matrix of numbers" in fault("tiny", npy_spec, tmp_path)


# ---- sparse matrices, features × cells -----------------------------------------------------------


@pytest.fixture
def npz_spec(tmp_path):
    """Two matrices of three cells, with their features and the cell table; peak 2 is 0 in all cells."""
    sp.save_npz(tmp_path / "g.npz", sp.csr_matrix(np.array([[1, 0, 2], [0, 3, 0]])))
    sp.save_npz(tmp_path / "r.npz", sp.csc_matrix(np.array([[0, 1, 1], [0, 0, 0], [4, 0, 1]])))
    (tmp_path / "genes.txt").write_text("Actb\nGapdh\n")
    (tmp_path / "regions.txt").write_text("chr1_1_2\nchr1_3_4\nchr2_1_9\n")
    (tmp_path / "cells.csv").write_text(",Batch,Ident\nc1,A,Ast\nc2,A,Mic\nc3,B,Ast\n")
    prepare = {"kind": "npz", "cells": "cells.csv", "obs": {"batch": "Batch", "cell_type": "Ident"}}
    prepare["files"] = {"rna": "g.npz", "atac": "r.npz"}
    prepare["features"] = {"rna": "genes.txt", "atac": "regions.txt"}
    return {"modalities": ["rna", "atac"], "source": files_of(tmp_path), "prepare": prepare}


def test_sparse_matrices_are_transposed_and_named(npz_spec, tmp_path):
    mdata = prepare_files("tiny", npz_spec, tmp_path)
    rna, atac = mdata.mod["rna"], mdata.mod["atac"]
    assert dense(rna).tolist() == [[1, 0], [0, 3], [2, 0]] and list(rna.var_names) == ["Actb", "Gapdh"]
    assert dense(atac).tolist() == [[0, 4], [1, 0], [1, 1]] and list(atac.var_names) == ["chr1_1_2", "chr2_1_9"]
    assert list(atac.obs_names) == ["c1", "c2", "c3"] and list(atac.obs["batch"]) == ["A", "A", "B"]
    assert list(rna.obs["cell_type"]) == ["Ast", "Mic", "Ast"]


def test_faults_in_sparse_matrices_are_one_line(npz_spec, tmp_path):
    (tmp_path / "genes.txt").write_text("Actb\n")
    message = fault("tiny", npz_spec, tmp_path)
    assert "g.npz: is 2 × 3, but genes.txt names 1 features and cells.csv 3 cells" in message
    (tmp_path / "genes.txt").write_text("Actb\nGapdh\n")
    (tmp_path / "r.npz").write_bytes((tmp_path / "r.npz").read_bytes()[:-30])
    assert "r.npz: cannot be read (not an npz file)" in fault("tiny", npz_spec, tmp_path)
    (tmp_path / "cells.csv").write_text(",Lane\nc1,A\n")
    assert "cells.csv: obs has no column 'Batch'" in fault("tiny", npz_spec, tmp_path)


# ---- the competition's files ---------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_real_competition_files_are_unscrambled(shared_data):
    folder = shared_data / STARTER
    files = sorted(path.name for path in folder.glob("*.h5ad") if ".output_" not in path.name)
    source = {"kind": "files", "folder": ".", "files": files}
    spec = {"modalities": ["rna", "adt"], "source": source, "prepare": {"kind": "competition"}}
    mdata = prepare_files(STARTER, spec, folder)
    assert {name: adata.shape for name, adata in mdata.mod.items()} == {"rna": (600, 1000), "adt": (600, 134)}
    for modality, file in (("rna", "output_rna"), ("adt", "output_mod2")):
        uncensored = ad.read_h5ad(folder / f"{STARTER}.{file}.h5ad")[mdata.obs_names]
        uncensored = uncensored[:, mdata.mod[modality].var_names.str.removeprefix("adt:")]
        assert abs(uncensored.layers["counts"] - mdata.mod[modality].X).max() == 0
        assert list(uncensored.obs["is_train"].astype(str)) == list(mdata.mod[modality].obs["is_train"])
        assert list(uncensored.obs["batch"].astype(str)) == list(mdata.mod[modality].obs["batch"])


# ---- the project's data sets ---------------------------------------------------------------------


def test_every_data_set_with_files_states_its_citation_and_licence(project):
    for path in (project / "config" / "datasets").glob("*.yaml"):
        spec = load("datasets", path.stem, project)
        assert not has_files(spec) or (spec["citation"] and spec["licence"]), path
