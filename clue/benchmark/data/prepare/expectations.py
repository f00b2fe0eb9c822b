"""Compare a prepared data set with the published numbers in ``expect`` of its YAML."""

import pandas as pd

from clue.benchmark.data.prepare.raw_files import Modalities, PrepareError, Spec
from clue.benchmark.data.task import all_cells, split_cells


def check_expected(name: str, spec: Spec, modalities: Modalities) -> None:
    """Refuse a data set whose numbers differ from those that its YAML expects.

    Parameters
    ----------
    name
        The name of the data set.
    spec
        The data set as it was downloaded. Its ``expect`` may give the numbers of cells and features and, for each
        split, of training cells, test cells and test cells of each cell type.
    modalities
        All its cells, before subsampling.

    Raises
    ------
    PrepareError
        At the first number that differs; the message has both numbers.
    """
    expect = spec.get("expect", {})
    wanted: dict[str, int] = next(iter(pd.json_normalize(expect).to_dict("records")), {})
    obs, places = all_cells(modalities)
    found = {"n_cells": len(obs)} | {f"n_features.{modality}": adata.n_vars for modality, adata in modalities.items()}
    for split, numbers in expect.get("splits", {}).items():
        if split not in spec["splits"]:
            raise PrepareError(f"{name}: expect.splits: no split {split!r}; splits: {', '.join(spec['splits'])}")
        where, is_complete = f"{name}: splits.{split}", (places >= 0).all(axis=1)
        train, test = split_cells(obs, spec["splits"][split], where, is_complete=is_complete)
        found |= {f"splits.{split}.n_train": len(train), f"splits.{split}.n_test": len(test)}
        types = f"splits.{split}.test_cell_types"
        if "cell_type" not in obs:
            if "test_cell_types" in numbers:
                print(f"expect.{types} is not checked: the files hold no cell types")
            wanted = {key: number for key, number in wanted.items() if not key.startswith(types)}
        elif "test_cell_types" in numbers:
            n_of_type = obs["cell_type"].astype(str).iloc[test].value_counts().add_prefix(f"{types}.").to_dict()
            found |= n_of_type
            wanted = dict.fromkeys([*wanted, *n_of_type], 0) | wanted  # a type that is not listed has no cells
    for key, number in wanted.items():
        if found.get(key, 0) != number:
            raise PrepareError(
                f"{name}: expect.{key}: found {found.get(key, 0)}, expected {number}; are the data a different version?"
                " If not, correct the YAML"
            )
        print(f"{key}: {number}, as expected")
