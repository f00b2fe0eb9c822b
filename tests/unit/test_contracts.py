"""Every fault in a file gives one clear line and exit status 1 in the program that reads it."""

import re

import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import yaml
from mudata import MuData

from clue.benchmark import contracts
from clue.benchmark.contracts import ContractError
from clue.benchmark.data.task import make_task

SPLIT = {"kind": "random", "fraction": 0.25, "seed": 0}


@pytest.fixture
def dataset(tiny_mdata):
    tiny_mdata.uns = {"dataset": "tiny", "source": "simulated", "sha256": "0" * 64}
    return tiny_mdata


@pytest.fixture
def task(dataset):
    return make_task(dataset, "tiny", "s", SPLIT)


@pytest.fixture
def split_tiny(workplace, add_dataset, run_script):
    """A function that splits ``dataset.h5mu`` with the program; it returns the exit status and the error."""
    simulated = {"kind": "simulated", "arguments": {"n_cells": 60, "n_features": {"rna": 40, "adt": 12}}}
    spec = {"label": "Tiny", "modalities": ["rna", "adt"], "source": {"kind": "simulated"}, "prepare": simulated}
    add_dataset("tiny", spec | {"splits": {"s": SPLIT}})

    def split():
        return run_script("make_task", *"--dataset-file dataset.h5mu --dataset tiny --split s --folder s".split())

    return split


def assert_one_line(status, error, message):
    assert status == 1
    assert error.startswith("error: dataset.h5mu") and error.count("\n") == 1, error
    assert re.search(message, error), error


# ---- faults in a prepared data set, through the program ------------------------------------------


def test_valid_file_is_split(dataset, split_tiny):
    contracts.write_dataset(dataset, "dataset.h5mu")
    assert split_tiny()[0] == 0


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("mod/rna/obs/batch", "cannot be read"),
        ("mod/rna/obs/_index", "cannot be read"),
        ("mod/rna/X", r"\[rna\]: X must be a float32 CSR matrix"),
        ("mod/rna/X/data", "cannot be read"),
        ("mod/adt", "at least two modalities are needed"),
        ("mod", "cannot be read"),
        ("uns/sha256", "uns lacks 'sha256'"),
    ],
)
def test_missing_keys(dataset, split_tiny, key, message):
    contracts.write_dataset(dataset, "dataset.h5mu")
    with h5py.File("dataset.h5mu", "r+") as file:
        del file[key]
    assert_one_line(*split_tiny(), message)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "1 counts that are NaN"), (np.inf, "1 counts that are"), (-1, "1 negative counts"), (0.5, "not whole")],
)
def test_values_that_are_not_counts(dataset, split_tiny, value, message):
    contracts.write_dataset(dataset, "dataset.h5mu")
    with h5py.File("dataset.h5mu", "r+") as file:
        file["mod/adt/X/data"][3] = value
    assert_one_line(*split_tiny(), rf"dataset.h5mu\[adt\]: X holds .*{message}")


@pytest.mark.filterwarnings("ignore:Observation names are not unique", "ignore:.*not unique")
def test_duplicate_barcodes(dataset, split_tiny):
    contracts.write_dataset(dataset, "dataset.h5mu")
    with h5py.File("dataset.h5mu", "r+") as file:
        for modality in ("rna", "adt"):
            file[f"mod/{modality}/obs/_index"][1] = file[f"mod/{modality}/obs/_index"][0]
    assert_one_line(*split_tiny(), "cell name 'cell_000001' occurs more than once")


@pytest.mark.parametrize("length", [0, 100, 4000, 0.5, 0.99])
def test_truncated_files(dataset, split_tiny, workplace, length):
    contracts.write_dataset(dataset, "dataset.h5mu")
    content = (workplace / "dataset.h5mu").read_bytes()
    (workplace / "dataset.h5mu").write_bytes(content[: int(length * len(content)) if length < 1 else length])
    assert_one_line(*split_tiny(), r"dataset.h5mu: cannot be read \(.*\); if a run wrote it, delete it and run again")


def test_missing_file(split_tiny):
    assert_one_line(*split_tiny(), "no such file")


# ---- faults in a data set's YAML, through the program --------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lable": "x"}, "top level: unknown key 'lable'; did you mean 'label'"),
        ({"modalities": "rna"}, "modalities: 'rna' is not a list"),
        ({"modalities": ["rna", "dna"]}, "modalities.1: 'dna' is not one of"),
        ({"splits": {"s": SPLIT | {"fractoin": 1}}}, "splits.s: unknown key 'fractoin'; did you mean 'fraction'"),
        ({"splits": {"s": {"kind": "batches", "seed": 0}}}, "splits.s: 'batches' is a required property"),
        ({"splits": {"s": SPLIT | {"kind": "sites"}}}, "splits.s.kind: 'sites' is not one of"),
        ({"splits": {"s": SPLIT | {"fraction": 1.5}}}, "splits.s.fraction: 1.5 is"),
        ({"source": {"kind": "pypi", "package": "a"}}, "source: 'version' is a required property"),
        ({"prepare": {"kind": "h5ad", "path": "a"}}, "prepare: "),
    ],
)
def test_wrong_settings(workplace, add_dataset, split_tiny, run_script, change, message):
    spec = yaml.safe_load((workplace / "config/datasets/tiny.yaml").read_text())
    add_dataset("tiny", spec | change)
    programs = {"download": "--folder raw", "prepare": "--raw raw --output dataset.h5mu"}
    programs["make_task"] = "--dataset-file dataset.h5mu --split s --folder s"
    for program, arguments in programs.items():
        status, error = run_script(program, "--dataset", "tiny", *arguments.split())
        assert status == 1 and error.count("\n") == 1
        assert error.startswith("error: config/datasets/tiny.yaml: ") and message in error, error


def test_unknown_data_set(split_tiny, run_script):
    status, error = run_script("prepare", "--dataset", "tinny", "--raw", "raw", "--output", "dataset.h5mu")
    assert status == 1 and "unknown dataset 'tinny'; did you mean 'tiny'?" in error


# ---- the other contracts -------------------------------------------------------------------------


def test_reading_gives_what_was_written(dataset, task, tmp_path):
    contracts.write_dataset(dataset, tmp_path / "dataset.h5mu")
    assert contracts.read_dataset(tmp_path / "dataset.h5mu").mod["rna"].shape == (60, 40)
    contracts.write_train(task.train, tmp_path / "train.h5mu")
    assert contracts.read_train(tmp_path / "train.h5mu").n_obs == 45
    contracts.write_solution(task.solution, tmp_path / "solution.h5ad")
    assert contracts.read_solution(tmp_path / "solution.h5ad").n_obs == 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.h5mu", "solution.h5ad", "train.h5mu"]


def test_wrong_file_is_not_written(dataset, tmp_path):
    del dataset.uns["source"]
    with pytest.raises(ContractError, match="uns lacks 'source'"):
        contracts.write_dataset(dataset, tmp_path / "dataset.h5mu")
    assert list(tmp_path.iterdir()) == []


def test_training_cells_carry_no_type_and_some_are_paired(dataset, task):
    task.train.mod["rna"].obs["cell_type"] = "T"
    with pytest.raises(ContractError, match="which no method may see"):
        contracts.check_train(task.train, "train.h5mu")
    del task.train.mod["rna"].obs["cell_type"]
    task.train.mod["rna"].obs_names = task.train.mod["rna"].obs_names + "-rna"
    with pytest.raises(ContractError, match="no cell is seen in two modalities"):
        contracts.check_train(task.train, "train.h5mu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.obs.__setitem__("donor", "x"), "only 'batch' may be seen"),
        (lambda a: setattr(a, "obs_names", a.obs_names[::-1]), "must be named adt_000001 to adt_000015"),
        (lambda a: a.uns.__setitem__("modality", "protein"), "is 'protein', not one of"),
        (lambda a: setattr(a, "X", a.X.toarray()), "float32 CSR"),
        (lambda a: setattr(a, "X", sp.csr_matrix(a.X, dtype=np.float64)), "float32 CSR"),
    ],
)
def test_test_cells_show_nothing_but_their_batch(task, change, message):
    change(task.tests["adt"])
    with pytest.raises(ContractError, match=message):
        contracts.check_test(task.tests["adt"], "test_adt.h5ad")


def test_solution_is_a_permutation_of_each_file(task):
    task.solution.obs["adt"] = ["adt_000001"] * 15
    with pytest.raises(ContractError, match="not a permutation of the test cells"):
        contracts.check_solution(task.solution, "solution.h5ad")


def test_modalities_are_known_and_ordered(dataset):
    swapped = MuData({"adt": dataset.mod["adt"], "rna": dataset.mod["rna"]})
    swapped.uns = dict(dataset.uns)
    with pytest.raises(ContractError, match="in that order"):
        contracts.check_dataset(swapped, "dataset.h5mu")
    with pytest.raises(ContractError, match="at least two modalities"):
        contracts.check_dataset(MuData({"rna": dataset.mod["rna"]}), "dataset.h5mu")
