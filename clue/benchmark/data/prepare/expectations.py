"""Compare a prepared data set with the published numbers in ``expect`` of its YAML."""

from collections.abc import Mapping

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
    obs, places = all_cells(modalities)
    found = {"n_cells": len(obs)} | {f"n_features.{modality}": adata.n_vars for modality, adata in modalities.items()}
    wanted = {"n_cells": expect["n_cells"]} if "n_cells" in expect else {}
    wanted |= {f"n_features.{modality}": number for modality, number in expect.get("n_features", {}).items()}
    _compare(name, wanted, found)
    for split, numbers in expect.get("splits", {}).items():
        if split not in spec["splits"]:
            raise PrepareError(f"{name}: expect.splits: no split {split!r}; splits: {', '.join(spec['splits'])}")
        where, is_complete = f"{name}: splits.{split}", (places >= 0).all(axis=1)
        train, test = split_cells(obs, spec["splits"][split], where, is_complete=is_complete)
        wanted, found = dict(numbers), {"n_train": len(train), "n_test": len(test)}
        types = wanted.pop("test_cell_types", {})
        if types and "cell_type" in obs:
            n_of_type = obs["cell_type"].astype(str).iloc[test].value_counts()
            for cell_type in dict.fromkeys([*types, *n_of_type.index]):
                wanted[f"test_cell_types.{cell_type}"] = types.get(cell_type, 0)
                found[f"test_cell_types.{cell_type}"] = int(n_of_type.get(cell_type, 0))
        elif types:
            print(f"expect.splits.{split}.test_cell_types is not checked: the files hold no cell types")
        _compare(name, wanted, found, f"splits.{split}.")


def _compare(name: str, wanted: Mapping[str, int], found: Mapping[str, int], prefix: str = "") -> None:
    for key, number in wanted.items():
        if found.get(key) != number:
            raise PrepareError(
                f"{name}: expect.{prefix}{key}: found {found.get(key)}, expected {number}; are the data a different"
                " version? If not, correct the YAML"
            )
        print(f"{prefix}{key}: {number}, as expected")
