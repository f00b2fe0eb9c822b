"""The layouts of the paper's data sets and of users' own data, on simulated files: counts, pairs, labels, faults."""

import gzip
import re
import tracemalloc
from functools import partial

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml
from helpers import one_line_error, prepare_files

from clue.benchmark.config import load
from clue.benchmark.contracts import check_dataset
from clue.benchmark.data.prepare import PREPARERS
from clue.benchmark.data.prepare.share_seq import read_dense_text
from clue.benchmark.data.task import make_task
from tools.paper_files import SIZES, WRITERS, expected, simulate_dataset, write_geo_bmmc

FACTOR = 0.002
RNA = "GSM4156608_skin.late.anagen.rna.counts.txt.gz"
ATAC = "GSM4156597_skin.late.anagen.counts.txt.gz"
BARCODES = "GSM4156597_skin.late.anagen.barcodes.txt.gz"
CELL_TYPES = "GSM4156597_skin_celltype.txt.gz"
LAYOUTS = list(WRITERS)


@pytest.fixture(scope="session")
def cells():
    """The simulated cells of each data set; not to be changed."""
    return {name: simulate_dataset(name, FACTOR) for name in SIZES}


def spec_of(project, name, source, cells):
    """Return a data set of the project with one of its sources, local files and the numbers of simulated cells."""
    spec = load("datasets", name, project)
    [chosen] = [entry for entry in spec.pop("sources") if entry["name"] == source]
    spec["prepare"] = chosen["prepare"]
    spec["source"] = {"kind": "files", "folder": ".", "files": list(chosen["files"])}
    return spec | {"expect": expected(cells)}


@pytest.fixture
def written(project, cells, tmp_path):
    """A function that writes one layout; it returns the data set and the folder of its files."""

    def write(name, source):
        folder = tmp_path / "raw"
        folder.mkdir()
        WRITERS[name, source](cells[name], folder)
        return spec_of(project, name, source, cells[name]), folder

    return write


fault = partial(one_line_error, prepare_files)

# ---- valid files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "source"), LAYOUTS)
def test_every_layout_gives_the_counts_written(written, cells, name, source):
    spec, folder = written(name, source)
    mdata = prepare_files(name, spec, folder)
    check_dataset(mdata, name)
    kept = cells[name]["rna"].obs["part"].isin(["train", "test", "labelled"])
    names = set(cells[name]["rna"].obs_names[kept])
    assert set(mdata.obs_names) == names and list(mdata.mod) == spec["modalities"]
    for modality, adata in mdata.mod.items():
        simulated = cells[name][modality][adata.obs_names]
        # A protein with the name of a gene got a prefix; features that are zero everywhere were removed.
        columns = np.flatnonzero(simulated.X.getnnz(axis=0))
        assert abs(simulated.X[:, columns] - adata.X).max() == 0
        for column in ("batch", "cell_type"):
            assert list(adata.obs[column]) == list(simulated.obs[column]), column
    assert {path.name for path in folder.iterdir()} <= {*spec["source"]["files"], "source.json", ".lock"}


@pytest.mark.parametrize("name", SIZES)
def test_splits_of_the_paper_are_those_of_the_written_cells(project, cells, name):
    kept = (cells[name]["rna"].obs["part"].isin(["train", "test", "labelled"])).to_numpy()
    modalities = {}
    for modality, adata in cells[name].items():
        modalities[modality] = adata[kept].copy()
        modalities[modality].var_names = f"{modality}:" + modalities[modality].var_names
    mdata = md.MuData(modalities)
    batches = mdata.mod["rna"].obs["batch"]
    for split, settings in load("datasets", name, project)["splits"].items():
        if split.startswith("scmmib"):
            continue  # some need more cells than are simulated here
        task = make_task(mdata, name, split, settings)
        train, test = task.train.mod["rna"].obs["batch"], task.solution.obs["batch"]
        assert len(train) + len(test) == len(batches)
        if settings["kind"] == "batches":
            assert not set(train) & set(test) and set(test) == set(settings["batches"])
            if "bmmc" in name:
                assert (mdata.mod["rna"].obs.loc[task.solution.obs_names, "part"] == "test").all()
        else:
            assert len(test) == round(0.2 * len(batches)) and set(train) == set(test) == set(batches)


@pytest.mark.parametrize("name", SIZES)
def test_simulated_sizes_are_the_published_ones_at_factor_1(project, name):
    expect = load("datasets", name, project)["expect"]
    parts = SIZES[name].scaled(1).parts
    if name == "share_skin":
        assert expect["n_cells"] == parts["labelled"]
    else:
        assert expect["n_cells"] == parts["train"] + parts["test"]
        assert expect["splits"]["site4"]["n_train"] == parts["train"]
        assert expect["splits"]["site4"]["n_test"] == parts["test"]
    assert sum(expect.get("splits", {}).get("site4", {}).get("test_cell_types", {}).values()) in (0, parts.get("test"))


def test_both_layouts_of_the_competition_are_one_data_set(written, project, cells, tmp_path):
    spec, folder = written("bmmc_cite", "bucket")
    bucket = prepare_files("bmmc_cite", spec, folder)
    (tmp_path / "geo").mkdir()
    write_geo_bmmc(cells["bmmc_cite"], tmp_path / "geo")
    geo = prepare_files("bmmc_cite", spec_of(project, "bmmc_cite", "geo", cells["bmmc_cite"]), tmp_path / "geo")
    for modality in ("rna", "adt"):
        same = geo.mod[modality][bucket.mod[modality].obs_names]
        assert abs(same.X - bucket.mod[modality].X).max() == 0
        for column in ("cell_type", "donor"):
            assert list(same.obs[column]) == list(bucket.mod[modality].obs[column])
    obs = bucket.mod["rna"].obs
    part = cells["bmmc_cite"]["rna"].obs.loc[obs.index, "part"]
    assert list(obs["is_train"] == "True") == list(part == "train")
    assert set(obs.loc[obs["batch"].isin(["s1d1", "s4d1"]), "donor"]) == {"d1"} and obs["donor"].nunique() > 4


def test_missing_labels_of_the_competition_are_derived(written, capsys):
    spec, folder = written("bmmc_cite", "bucket")
    del spec["prepare"]["labels"]
    mdata = prepare_files("bmmc_cite", spec, folder)
    assert "cell_type" not in mdata.mod["rna"].obs
    assert "test_cell_types is not checked" in capsys.readouterr().out
    assert make_task(mdata, "bmmc_cite", "site4", spec["splits"]["site4"]).solution.uns["labels"].startswith("derived")


# ---- expected numbers ----------------------------------------------------------------------------


OF_A_TYPE = "expect.splits.site4.test_cell_types.{cell_type}: found {n_of_type}, expected"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e, s: e.update(n_cells=81_241), "expect.n_cells: found {n_cells}, expected 81241"),
        (lambda e, s: s.update(n_train=1), "expect.splits.site4.n_train: found {n_train}, expected 1"),
        (lambda e, s: s.update(n_test=1), "expect.splits.site4.n_test: found {n_test}, expected 1"),
        (lambda e, s: s["test_cell_types"].update(dict.fromkeys(s["test_cell_types"], 999)), f"{OF_A_TYPE} 999"),
        (lambda e, s: s["test_cell_types"].pop(next(iter(s["test_cell_types"]))), f"{OF_A_TYPE} 0"),
        (lambda e, s: e["splits"].update(site5={}), "expect.splits: no split 'site5'; splits: site4"),
    ],
)
def test_expected_and_actual_numbers_are_both_named(written, change, message):
    spec, folder = written("bmmc_cite", "geo")
    split = spec["expect"]["splits"]["site4"]
    cell_type, n_of_type = next(iter(split["test_cell_types"].items()))
    numbers = {"n_cells": spec["expect"]["n_cells"], "n_train": split["n_train"], "n_test": split["n_test"]}
    change(spec["expect"], split)
    assert message.format(**numbers, cell_type=cell_type, n_of_type=n_of_type) in fault("bmmc_cite", spec, folder)


# ---- faults in the competition's and GEO's files -------------------------------------------------


def rewrite(path, change):
    adata = ad.read_h5ad(path)
    changed = change(adata)
    (adata if changed is None else changed).write_h5ad(path)


def cut(path, keep=0.5):
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


TASK = "openproblems_bmmc_cite_phase2_rna.censor_dataset.output_"
TEST_MOD1, TRAIN_SOL = f"{TASK}test_mod1.h5ad", f"{TASK}train_sol.h5ad"
COMPLETE = "openproblems_bmmc_cite_complete.h5ad"


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (TEST_MOD1, lambda a: a.layers.clear(), "has no layers/counts (layers: none)"),
        (TEST_MOD1, lambda a: a.obs.drop(columns="batch", inplace=True), "obs has no column 'batch' (it has size_"),
        (TEST_MOD1, lambda a: a[:, :20].copy(), "features of rna differ between training and test files"),
        (TEST_MOD1, lambda a: a[:20].copy(), "for 20 and"),
        (TEST_MOD1, lambda a: a.var.__setitem__("feature_types", "RNA"), "must be one of ['GEX', 'ATAC', 'ADT']"),
        (TRAIN_SOL, lambda a: ad.AnnData(sp.csr_matrix(a.X.shape)), "X is not a permutation matrix"),
        (TRAIN_SOL, lambda a: ad.AnnData(a.X[::-1]), "pairs cells of different batches"),
        (COMPLETE, lambda a: a[30:].copy(), "has no cell "),
        (COMPLETE, lambda a: a.obs.drop(columns="cell_type", inplace=True), "obs has no column 'cell_type'"),
        (COMPLETE, lambda a: a[[*range(a.n_obs), 0]].copy(), "occurs more than once"),
    ],
)
def test_faults_in_the_bucket(written, file, change, message):
    spec, folder = written("bmmc_cite", "bucket")
    rewrite(folder / file, change)
    line = fault("bmmc_cite", spec, folder)
    assert message in line and ("differ between" in line or folder.name in line)


def test_file_in_the_bucket_that_the_yaml_does_not_name(written):
    spec, folder = written("bmmc_cite", "bucket")
    spec["source"]["files"].remove(TRAIN_SOL)
    assert "source.files names 0 files that end in 'train_sol.h5ad'" in fault("bmmc_cite", spec, folder)


def test_geo_without_held_out_cells_is_another_file(written):
    spec, folder = written("bmmc_cite", "geo")
    spec["prepare"]["drop_cells"]["values"] = ["holdout"]
    assert "no cell to drop; obs['is_train'] holds iid_holdout, test, train" in fault("bmmc_cite", spec, folder)


# ---- SHARE-seq -----------------------------------------------------------------------------------


def lines_of(path):
    with gzip.open(path, "rt") as file:
        return file.read().splitlines()


def write_lines(path, lines):
    with gzip.open(path, "wt") as file:
        file.write("\n".join(lines) + "\n")


def test_libraries_are_repaired_and_mixed_cells_removed(written, cells, capsys):
    spec, folder = written("share_skin", "geo")
    table = pd.read_table(folder / CELL_TYPES)
    assert set(table["atac.bc"].str[-2:]) == {"04", "05", "06", "07", "08"}
    assert "," in lines_of(folder / RNA)[0] and (table["celltype"] == "Mix").any()
    mdata = prepare_files("share_skin", spec, folder)
    assert set(mdata.mod["atac"].obs["batch"]) == {"53", "54", "55", "56"}
    assert "Mix" not in set(mdata.mod["rna"].obs["cell_type"])
    output = capsys.readouterr().out
    assert f"{(table['celltype'] == 'Mix').sum()} of {len(table)} cells are 'Mix' and dropped" in output


def test_misspelt_cell_types_are_fixed(written):
    spec, folder = written("share_skin", "geo")
    table = [line.replace("Type 2", "Dermal Fibrobalst") for line in lines_of(folder / CELL_TYPES)]
    write_lines(folder / CELL_TYPES, table)
    types = set(prepare_files("share_skin", spec, folder).mod["rna"].obs["cell_type"])
    assert any("Dermal Fibroblast" in name for name in types) and "Dermal Fibrobalst" not in types


def test_cell_that_an_assay_lacks_is_dropped_and_missed_by_expect(written, capsys):
    spec, folder = written("share_skin", "geo")
    n_cells = spec["expect"]["n_cells"]
    first = next(line for line in lines_of(folder / CELL_TYPES)[1:] if not line.endswith("Mix"))
    table = [line.replace("R1.", "X1.") if line == first else line for line in lines_of(folder / CELL_TYPES)]
    write_lines(folder / CELL_TYPES, table)
    assert f"expect.n_cells: found {n_cells - 1}, expected {n_cells}" in fault("share_skin", spec, folder)
    assert "1 of" in capsys.readouterr().out


def with_first_count(text):
    """Return a change of the lines of a table: another text as the first count."""
    return lambda rows: [rows[0], re.sub(r"\t\d+", f"\t{text}", rows[1], count=1), *rows[2:]]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CELL_TYPES, lambda rows: [row.replace("R1.", "X1.") for row in rows], "is in both assays"),
        (CELL_TYPES, lambda rows: [rows[0].replace("rna.bc", "x"), *rows[1:]], "the table has no column 'rna.bc'"),
        (CELL_TYPES, lambda rows: [*rows, next(r for r in rows[1:] if "Mix" not in r)], "rna.bc 'R1"),
        (CELL_TYPES, lambda rows: [row.replace(".04\t", ".09\t") for row in rows], "not end in a known library (04"),
        (BARCODES, lambda rows: rows[:-1], "barcodes, but"),
        (BARCODES, lambda rows: [rows[1], *rows[1:]], "occurs more than once"),
        (RNA, lambda rows: [*rows[:3], rows[3].rsplit("\t", 1)[0], *rows[4:]], "line 4 (Gene3): "),
        (RNA, lambda rows: [*rows, rows[1]], "gene 'Gene1' occurs more than once"),
        (RNA, with_first_count("0.5"), f"{RNA}: line 2 (Gene1): holds a value that is not a whole number; give raw"),
        (RNA, with_first_count("a"), f"{RNA}: line 2 (Gene1): holds a value that is not a whole number; give raw"),
        (RNA, with_first_count(""), f"{RNA}: line 2 (Gene1): "),
        (RNA, with_first_count("-1"), f"{RNA} [rna]: X holds 1 negative counts; give raw counts"),
        (RNA, lambda rows: rows[:1], "holds no genes"),
        (RNA, lambda rows: [rows[0] + "\t" + rows[0].split("\t")[1], *rows[1:]], "counts for"),
    ],
)
def test_faults_in_share_seq(written, file, change, message):
    spec, folder = written("share_skin", "geo")
    write_lines(folder / file, change(lines_of(folder / file)))
    assert message in fault("share_skin", spec, folder)


@pytest.mark.parametrize(
    ("name", "file", "keep"),
    [
        *(("bmmc_cite", "GSE*.gz", keep) for keep in (0.01, 0.3, 0.99)),
        *(("share_skin", file, 0.5) for file in (RNA, ATAC, BARCODES, CELL_TYPES, "*.peaks.bed.gz")),
    ],
)
def test_truncated_file_is_one_line_and_leaves_nothing(written, name, file, keep):
    spec, folder = written(name, "geo")
    [path] = folder.glob(file)
    cut(path, keep)
    assert f"{path}: cannot be read" in fault(name, spec, folder)
    assert {entry.name for entry in folder.iterdir()} <= {*spec["source"]["files"], "source.json", ".lock"}


def test_glue_rows_of_different_cells_are_refused(written):
    spec, folder = written("share_skin", "glue")
    rewrite(folder / "Ma-2020-ATAC.h5ad", lambda a: a[[1, 0, *range(2, a.n_obs)]].copy())
    assert "Ma-2020-ATAC.h5ad: cell 0 is 'R1." in fault("share_skin", spec, folder)
    rewrite(folder / "Ma-2020-ATAC.h5ad", lambda a: a[2:].copy())
    assert "cells, but" in fault("share_skin", spec, folder)


def test_memory_of_dense_text_depends_on_its_non_zero_counts(tmp_path):
    n_genes, n_cells, path = 400, 20_000, tmp_path / "counts.txt.gz"
    counts = sp.random(n_genes, n_cells, density=0.02, format="csr", random_state=0)
    counts.data = np.arange(len(counts.data)) % 9 + 1.0
    line = np.full(2 * n_cells, ord("\t"), dtype=np.uint8)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write("\t".join(["gene", *(f"R1.{i}.P1.53" for i in range(n_cells))]).encode() + b"\n")
        for j in range(n_genes):
            line[::2] = ord("0") + counts[j].toarray().ravel().astype(np.uint8)
            file.write(b"g%d\t" % j + line[:-1].tobytes() + b"\n")
    tracemalloc.start()
    adata = read_dense_text(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(adata.X - counts.T).max() == 0
    sparse, text_of_all_genes = counts.nnz * 8, 2 * n_genes * n_cells
    # Three copies of the counts (by gene, joined, transposed), the names, and a few arrays of the length of a line.
    assert peak < 3 * sparse + 300 * n_cells + 2**20 < text_of_all_genes


# ---- a user's own data ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_three_lines_from_the_documents(tiny_mdata, project, workplace, add_dataset):
    """What docs/extend.md says to write, with only the folder replaced."""
    chapter = (project / "docs" / "extend.md").read_text().partition("## Add a data set")[2]
    yaml_block = chapter.partition("```yaml\n")[2].partition("```")[0]
    assert len(yaml_block.strip().splitlines()) == 3
    written = yaml.safe_load(yaml_block)
    written["source"]["folder"] = str(workplace)
    add_dataset("my_data", written)
    for adata in tiny_mdata.mod.values():
        adata.obs = adata.obs.rename(columns={"batch": "sample", "cell_type": "annotation"})
    tiny_mdata.write(workplace / "my.h5mu")
    spec = load("datasets", "my_data")
    prepared = prepare_files("my_data", spec, workplace / "raw")
    task = make_task(prepared, "my_data", "random20", spec["splits"]["random20"])
    assert task.solution.n_obs == 12 and task.solution.uns["labels"] == "published"


def test_every_line_of_the_documents_table_is_valid(project, workplace, add_dataset):
    chapter = (project / "docs" / "extend.md").read_text().partition("## Add a data set")[2].partition("\n## ")[0]
    rows = re.findall(r"`(\{kind: .*\})` \|$", chapter, flags=re.MULTILINE)
    assert len(rows) == 5
    for row in rows:
        source = {"kind": "files", "folder": ".", "files": [*set(re.findall(r"\w+\.h5\w+|\w+_(?=})|\w+\.h5", row))]}
        add_dataset("mine", {"modalities": ["rna", "adt"], "source": source, "prepare": yaml.safe_load(row)})
        assert load("datasets", "mine")["prepare"]["kind"] in PREPARERS
