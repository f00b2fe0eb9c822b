"""Splits and censoring: test cells are sealed, and the solution pairs them correctly."""

import mudata as md
import numpy as np
import pandas as pd
import pytest

from clue.benchmark.contracts import read_solution, read_test, read_train
from clue.benchmark.data.task import TaskError, balanced_donors, derive_cell_types, make_task
from clue.simulate import simulate

RANDOM = {"kind": "random", "fraction": 0.25, "seed": 3}


@pytest.fixture
def dataset():
    """120 cells in three modalities, with a condition; every row is unique."""
    mdata = simulate(120, {"rna": 40, "atac": 30, "adt": 20}, n_types=4, n_donors=6, library_sizes={"adt": 300}, seed=4)
    mdata.uns = {"dataset": "tiny", "source": "simulated", "sha256": "0" * 64, "secret": list(mdata.obs_names)}
    for adata in mdata.mod.values():
        adata.obs["condition"] = np.where(adata.obs["donor"].str[-1].astype(int) % 2, "ill", "well")
        adata.obs["is_train"] = np.where(np.arange(120) < 90, "True", "False")
    return mdata


def rows(adata):
    return [tuple(row) for row in adata.X.toarray()]


def row_of_cell(mdata, modality):
    return dict(zip(mdata.mod[modality].obs_names, rows(mdata.mod[modality]), strict=True))


def assert_rows_are_kept(train, dataset):
    """Check that training cells have their own counts; those seen in one modality are named after it too."""
    for modality, adata in train.mod.items():
        original = row_of_cell(dataset, modality)
        assert [original[name.removesuffix(f"-{modality}")] for name in adata.obs_names] == rows(adata)


# ---- a split within the training cells of another ------------------------------------------------


@pytest.mark.parametrize("inner", [RANDOM, {"kind": "donors", "fraction": 0.3, "seed": 5}])
def test_inner_split_has_no_cell_of_the_outer_test(dataset, inner):
    outer = {"kind": "predefined", "column": "is_train", "test": "False", "seed": 0}
    task = make_task(dataset, "tiny", "s", {**inner, "within": [outer]})
    outside = make_task(dataset, "tiny", "outer", outer)
    held_out, fitted = set(task.solution.obs_names), set(task.train.mod["rna"].obs_names)
    assert held_out | fitted == set(outside.train.mod["rna"].obs_names)
    assert held_out and not held_out & fitted


def test_split_within_two_has_no_test_cell_of_either(dataset):
    outer = [RANDOM, {"kind": "batches", "batches": ["batch1"], "seed": 0}]
    task = make_task(dataset, "tiny", "s", {"kind": "random", "fraction": 0.5, "seed": 1, "within": outer})
    used = {*task.solution.obs_names, *task.train.mod["rna"].obs_names}
    for split in outer:
        assert not used & set(make_task(dataset, "tiny", "s", split).solution.obs_names)


# ---- training cells ------------------------------------------------------------------------------


def test_training_batches_may_be_named(dataset):
    batches = sorted(dataset.mod["rna"].obs["batch"].unique())
    split = {"kind": "batches", "train": batches[:1], "batches": batches[1:2], "seed": 0}
    task = make_task(dataset, "tiny", "s", split)
    assert set(task.train.mod["rna"].obs["batch"]) == {batches[0]}
    assert set(task.solution.obs["batch"]) == {batches[1]}


def test_numbers_of_cells_give_the_same_test_cells_and_nested_training_cells(dataset):
    few, many = (
        make_task(dataset, "tiny", "s", {"kind": "random", "n_test": 30, "n_train": n, "seed": 0}) for n in (40, 80)
    )
    assert list(few.solution.obs_names) == list(many.solution.obs_names) and few.solution.n_obs == 30
    assert few.train.n_obs == 40 and set(few.train.mod["rna"].obs_names) < set(many.train.mod["rna"].obs_names)


# ---- censoring -----------------------------------------------------------------------------------


def test_solution_pairs_the_test_cells(dataset):
    task = make_task(dataset, "tiny", "s", RANDOM)
    for modality, adata in task.tests.items():
        original, censored = row_of_cell(dataset, modality), dict(zip(adata.obs_names, rows(adata), strict=True))
        for cell, name in task.solution.obs[modality].items():
            assert original[cell] == censored[name]
            assert adata.obs.loc[name, "batch"] == dataset.mod[modality].obs.loc[cell, "batch"]
    published = dataset.mod["rna"].obs["cell_type"]
    assert (task.solution.obs["cell_type"] == published[task.solution.obs_names].astype(str)).all()
    assert task.solution.uns["labels"] == "published"


def test_visible_files_do_not_reveal_pairs_or_types(dataset):
    task = make_task(dataset, "tiny", "s", RANDOM)
    for modality, adata in task.tests.items():
        assert list(adata.obs.columns) == ["batch"]
        assert adata.uns == {"modality": modality, "dataset": "tiny", "split": "s"}
        assert not (adata.obsm or adata.varm or adata.layers or adata.obsp) and adata.raw is None
        assert not set(adata.obs_names) & set(dataset.obs_names)
    for adata in task.train.mod.values():
        assert list(adata.obs.columns) == ["batch", "donor"]
        assert not (adata.obsm or adata.varm or adata.layers or adata.obsp or adata.uns)
    assert task.train.uns == {"dataset": "tiny", "split": "s"}
    assert task.train.obs.columns.empty and task.train.var.columns.empty


def test_test_cells_are_shuffled_separately_in_each_modality(dataset):
    solution = make_task(dataset, "tiny", "s", RANDOM).solution.obs
    orders = {modality: solution[modality].str[-6:].astype(int).to_numpy() for modality in ("rna", "atac", "adt")}
    orders["file"] = np.arange(1, 31)
    for first in orders:
        for second in orders:
            if first != second:
                assert (orders[first] == orders[second]).sum() < 8
                assert abs(np.corrcoef(orders[first], orders[second])[0, 1]) < 0.5


def test_no_category_of_other_cells_is_left(dataset):
    donors = dataset.mod["rna"].obs["donor"]
    task = make_task(dataset, "tiny", "s", {"kind": "batches", "batches": ["batch2"], "seed": 0})
    assert list(task.train.mod["rna"].obs["batch"].cat.categories) == ["batch1"]
    assert list(task.tests["adt"].obs["batch"].cat.categories) == ["batch2"]
    assert len(task.train.mod["rna"].obs["donor"].cat.categories) < donors.nunique()


def test_seed_decides(dataset):
    def cells(seed):
        task = make_task(dataset, "tiny", "s", RANDOM | {"seed": seed})
        return task.solution.obs["rna"].to_dict()

    assert cells(3) == cells(3) != cells(4)


# ---- test cells ----------------------------------------------------------------------------------


def test_donors_of_test_cells_are_unseen_and_strata_are_balanced():
    mdata = simulate(3000, {"rna": 5, "adt": 3}, n_donors=12, n_batches=2)
    for adata in mdata.mod.values():
        adata.obs["condition"] = np.where(adata.obs["donor"].str[-1].astype(int) % 2, "ill", "well")
    task = make_task(mdata, "tiny", "s", {"kind": "donors", "fraction": 0.3, "seed": 0})
    obs = mdata.mod["rna"].obs
    is_test = obs.index.isin(task.solution.obs_names)
    assert not set(obs["donor"][is_test]) & set(obs["donor"][~is_test])
    fractions = pd.Series(is_test, index=obs.index).groupby([obs["batch"], obs["condition"]], observed=True).mean()
    assert len(fractions) == 4
    assert fractions.between(0.2, 0.4).all() and is_test.mean() == pytest.approx(0.3, abs=0.05)


def test_balanced_donors_finds_the_only_perfect_choice():
    cells = np.array([[30, 0], [70, 0], [0, 30], [0, 40], [0, 30]])
    chosen = balanced_donors(cells, 0.3, np.random.default_rng(0))
    assert chosen[:2].tolist() == [True, False]
    assert chosen[2:].tolist() in ([True, False, False], [False, False, True])


def test_batches_and_predefined_cells(dataset):
    obs = dataset.mod["rna"].obs
    by_batch = make_task(dataset, "tiny", "s", {"kind": "batches", "batches": ["batch2"], "seed": 0})
    assert set(by_batch.solution.obs_names) == set(obs.index[obs["batch"] == "batch2"])
    predefined = {"kind": "predefined", "column": "is_train", "test": False, "seed": 0}
    assert set(make_task(dataset, "tiny", "s", predefined).solution.obs_names) == set(obs.index[90:])


def test_partly_paired_training_cells(dataset):
    task = make_task(dataset, "tiny", "s", RANDOM | {"paired_fraction": 0.4})
    names = {modality: set(adata.obs_names) for modality, adata in task.train.mod.items()}
    paired = set.intersection(*names.values())
    assert len(paired) == 36 and paired <= set(dataset.obs_names)
    alone = {modality: names[modality] - paired for modality in names}
    assert [len(cells) for cells in alone.values()] == [18, 18, 18]
    assert all(name.endswith(f"-{modality}") for modality, cells in alone.items() for name in cells)
    stems = [name.rsplit("-", 1)[0] for cells in alone.values() for name in cells]
    assert len(set(stems)) == 54 and not set(stems) & paired
    assert_rows_are_kept(task.train, dataset)
    fully = make_task(dataset, "tiny", "s", RANDOM)
    assert fully.solution.obs.equals(task.solution.obs)


def test_mosaic_of_training_cells(dataset):
    mosaic = {"rna+atac+adt": 0.2, "rna+atac": 0.3, "atac+adt": 0.4, "rna": 0.1}
    task = make_task(dataset, "tiny", "s", RANDOM | {"mosaic": mosaic})
    names = {modality: set(adata.obs_names) for modality, adata in task.train.mod.items()}
    cells = set().union(*names.values())
    seen = ["+".join(modality for modality in names if cell in names[modality]) for cell in cells]
    assert {subset: seen.count(subset) for subset in seen} == {name: round(90 * part) for name, part in mosaic.items()}
    assert len({cell.removesuffix("-rna") for cell in cells}) == 90, "each cell once"
    assert_rows_are_kept(task.train, dataset)
    assert make_task(dataset, "tiny", "s", RANDOM).solution.obs.equals(task.solution.obs), "the same test cells"


@pytest.fixture
def mosaic(dataset):
    """The data set without RNA in its first 20 cells and without accessibility in the next 20, these cells last."""
    order = [*range(40, 120), *range(40)]
    seen = {"rna": order[:80] + order[100:], "atac": order[:100], "adt": order}
    with md.set_options(pull_on_update=False):
        return md.MuData({modality: dataset.mod[modality][rows].copy() for modality, rows in seen.items()})


@pytest.mark.parametrize(
    "split",
    [
        RANDOM,
        {"kind": "donors", "fraction": 0.3, "seed": 5},
        {"kind": "batches", "batches": ["batch1"], "seed": 0},
        RANDOM | {"paired_fraction": 0.5},
    ],
)
def test_cells_that_lack_a_modality_are_only_training_cells(dataset, mosaic, split):
    task = make_task(mosaic, "tiny", "s", split)
    partial = set(dataset.obs_names[:40])
    assert len(task.solution) and not partial & set(task.solution.obs_names)
    for modality, cells in task.tests.items():
        original, names = row_of_cell(dataset, modality), task.solution.obs.reset_index().set_index(modality)["index"]
        for name, row in zip(cells.obs_names, rows(cells), strict=True):
            assert original[names[name]] == row
    tested = dataset["rna"].obs.loc[task.solution.obs_names, "batch"]
    assert_rows_are_kept(task.train, dataset)
    for modality, cells in task.train.mod.items():
        stems = [name.removesuffix(f"-{modality}") for name in cells.obs_names]
        kept = partial & set(mosaic[modality].obs_names)
        if split["kind"] == "batches":
            kept = {name for name in kept if dataset["rna"].obs.loc[name, "batch"] not in set(tested)}
        if split["kind"] != "donors":
            assert kept == partial & set(stems)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"kind": "batches", "batches": ["b"], "seed": 0}, "splits.s.batches: no cell of b; batches: batch1, "),
        ({"kind": "batches", "batches": ["batch1", "batch2"], "seed": 0}, "0 training and 120 test cells"),
        ({"kind": "predefined", "column": "site", "test": "s4", "seed": 0}, "no column 'site'"),
        ({"kind": "batches", "train": ["batch1"], "batches": ["batch1"], "seed": 0}, "a batch is in both `train` and"),
        ({"kind": "batches", "train": ["x"], "batches": ["batch1"], "seed": 0}, "splits.s.train: no cell of x; batch"),
        ({"kind": "random", "n_test": 30, "n_train": 100, "seed": 0}, "n_train 100 and n_test 30 are too many for the"),
        ({"kind": "random", "n_test": 130, "seed": 0}, "n_test 130 are too many for the 120 available cells"),
        (RANDOM | {"mosaic": {"rna": 0.5, "atac": 0.3, "adt": 0.2}}, "mosaic: leaves none of 90 training cells paired"),
        (RANDOM | {"mosaic": {"rna+atac": 0.001, "rna": 0.9, "adt": 0.099}}, "mosaic: leaves none of 90 training"),
        (RANDOM | {"paired_fraction": 0.001}, "paired_fraction: leaves none of 90"),
    ],
)
def test_impossible_splits_are_explained(dataset, split, message):
    with pytest.raises(TaskError, match=message):
        make_task(dataset, "tiny", "s", split)


def test_identical_training_cells_are_refused(dataset):
    with pytest.raises(TaskError, match="splits.s: 0 of .* features of rna differ between 1 training cells"):
        make_task(dataset, "tiny", "s", {"kind": "random", "n_train": 1, "n_test": 30, "seed": 0})
    dataset.mod["adt"].X.data[:] = 2
    dataset.mod["adt"] = dataset.mod["adt"][:, dataset.mod["adt"].X.getnnz(axis=0) == 120].copy()
    with pytest.raises(TaskError, match="splits.s: 0 of .* features of adt differ between 90 training cells"):
        make_task(dataset, "tiny", "s", RANDOM)


def test_donors_are_needed_to_split_by_donor(dataset):
    for adata in dataset.mod.values():
        del adata.obs["donor"]
    with pytest.raises(TaskError, match="no column 'donor'"):
        make_task(dataset, "tiny", "s", {"kind": "donors", "fraction": 0.3, "seed": 0})


# ---- derived labels ------------------------------------------------------------------------------


def test_missing_labels_are_derived_from_the_rna():
    mdata = simulate(400, {"rna": 200, "adt": 10}, n_types=3, type_separation=4.0, shared_strength=1.0, seed=0)
    truth = mdata.mod["rna"].obs["cell_type"].astype(str)
    for adata in mdata.mod.values():
        del adata.obs["cell_type"]
    task = make_task(mdata, "tiny", "s", RANDOM)
    assert task.solution.uns["labels"].startswith("derived: ")
    derived = task.solution.obs["cell_type"]
    # Clusters may split a type, but should hardly mix two.
    majority = pd.crosstab(derived, truth[task.solution.obs_names].to_numpy()).max(axis=1).sum()
    assert majority / len(derived) > 0.95
    rna = mdata.mod["rna"].X
    again = [derive_cell_types(rna[:300], rna[300:])[0] for _ in range(2)]
    assert (again[0] == again[1]).all()


def test_labels_cannot_be_derived_without_rna(dataset):
    del dataset.mod["rna"]
    for adata in dataset.mod.values():
        del adata.obs["cell_type"]
    with pytest.raises(TaskError, match="neither cell types nor RNA"):
        make_task(dataset, "tiny", "s", RANDOM)


# ---- the program ---------------------------------------------------------------------------------


def test_program_writes_files_that_fulfil_their_contracts(project, run_script, monkeypatch, tmp_path):
    monkeypatch.chdir(project)
    dataset, folder = tmp_path / "dataset.h5mu", tmp_path / "paired20"
    arguments = ["--dataset", "simulated", "--raw", tmp_path, "--output", dataset]
    assert run_script("prepare", *arguments)[0] == 0
    task = ["--dataset-file", dataset, "--dataset", "simulated", "--folder", folder, "--max-cells", "200"]
    assert run_script("make_task", *task, "--split", "paired20")[0] == 0
    train, solution = read_train(folder / "train.h5mu"), read_solution(folder / "solution.h5ad")
    assert isinstance(train, md.MuData) and train.obs.columns.empty
    assert [adata.n_obs for adata in train.mod.values()] == [96, 96] and solution.n_obs == 40
    for modality in ("rna", "atac"):
        assert read_test(folder / f"test_{modality}.h5ad").uns["split"] == "paired20"
