"""In all shipped configurations, no cell used to choose a setting is a test cell of another run."""

from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clue.benchmark.config import Benchmark, load, read_yaml
from clue.benchmark.data.task import split_cells

ROOT = Path(__file__).parents[2]
RUNS = {path.stem: read_yaml(path) for path in sorted((ROOT / "config").glob("*.yaml")) if "run" in read_yaml(path)}
DATASETS = sorted(path.stem for path in (ROOT / "config" / "datasets").glob("*.yaml"))
N_CELLS = 60_000
"""About as many as in the largest data set, since splits name numbers of cells."""


def invented_obs(splits):
    """Return a random annotation with all columns and batches that the splits name."""
    named = {batch for split in splits.values() for key in ("batches", "train") for batch in split.get(key, [])}
    rng = np.random.default_rng(0)
    columns = {"batch": [*sorted(named), *(f"other{i}" for i in range(5))], "donor": [f"donor{i}" for i in range(40)]}
    columns |= {"condition": ["ill", "well"], "is_train": ["True", "False"]}
    return pd.DataFrame({column: rng.choice(values, N_CELLS) for column, values in columns.items()})


@cache
def cells(dataset, split, max_cells=None):
    """Return the training and the test cells of a split, as sets of rows."""
    splits = load("datasets", dataset, ROOT)["splits"]
    parts = split_cells(invented_obs(splits), splits[split], f"{dataset}/{split}", max_cells)
    return [set(part.tolist()) for part in parts]


@cache
def splits_of_runs():
    """Return each run's splits: run, data set, split, whether it is used to choose, and the number of cells."""
    found = []
    for name, config in RUNS.items():
        benchmark = Benchmark(config, ROOT, name)
        for dataset, spec in benchmark.datasets.items():
            for split, settings in spec["splits"].items():
                found.append((name, dataset, split, "within" in settings, benchmark.config["max_cells"]))
    return found


def pairs_to_keep_apart():
    """Return all pairs of a split used to choose and one used to judge methods, of the same data set."""
    chosen, judged = ([row for row in splits_of_runs() if row[3] == choosing] for choosing in (True, False))
    return [(a, b) for a, b in product(chosen, judged) if a[1] == b[1]]


def test_there_are_pairs_to_keep_apart():
    assert len(pairs_to_keep_apart()) > 10


@pytest.mark.parametrize(("choosing", "judging"), pairs_to_keep_apart(), ids=lambda row: "-".join(map(str, row[:3])))
def test_cells_used_to_choose_are_never_test_cells_of_another_run(choosing, judging):
    _, dataset, split, _, max_cells = choosing
    used = set.union(*cells(dataset, split, max_cells))
    _, dataset, split, _, max_cells = judging
    _, test = cells(dataset, split, max_cells)
    assert used and test and not used & test


@pytest.mark.parametrize("run", RUNS)
def test_run_is_used_either_to_choose_or_to_judge(run):
    assert len({inner for name, _, _, inner, _ in splits_of_runs() if name == run}) == 1


@pytest.mark.parametrize(
    ("dataset", "split"), [(name, split) for name in DATASETS for split in load("datasets", name, ROOT)["splits"]]
)
def test_subsampling_never_moves_a_cell_to_the_other_side(dataset, split):
    whole = cells(dataset, split)
    larger, smaller = cells(dataset, split, 9000), cells(dataset, split, 700)
    for all_cells, many, few in zip(whole, larger, smaller, strict=True):
        assert few < many <= all_cells
    assert sum(map(len, smaller)) == 700
    share = len(whole[1]) / sum(map(len, whole))
    assert len(smaller[1]) / 700 == pytest.approx(share, abs=1e-3)
