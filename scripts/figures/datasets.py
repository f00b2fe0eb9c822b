"""Write the table of data sets: how many cells and features, and where they come from."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from clue.benchmark import tables
from clue.benchmark.config import check, read_yaml
from clue.benchmark.contracts import MODALITIES, ContractError
from clue.benchmark.errors import run_program

COLUMNS = ["Data set", "Cells", "Features", "Splits", "Source", "Licence", "Citation", "Notes", "SHA-256"]


def shapes(path: Path) -> dict[str, tuple[int, int]]:
    """Return cells and features of each modality of a prepared data set, without reading its counts."""
    try:
        with h5py.File(path) as file:
            groups = {name: file["mod"][name] for name in MODALITIES if name in file["mod"]}
            return {name: tuple(int(n) for n in group["X"].attrs["shape"]) for name, group in groups.items()}
    except (OSError, KeyError) as error:
        raise ContractError(f"{path}: cannot be read ({error}); delete it and run again") from error


def text_of(group: h5py.Group, key: str) -> str:
    """Return an entry of ``uns`` as text; several are joined."""
    value = group[key][()] if key in group else ""
    values = [item.decode() if isinstance(item, bytes) else str(item) for item in np.atleast_1d(value)]
    return ", ".join(values)


def read_uns(path: Path, *keys: str) -> dict[str, str]:
    """Return entries of ``uns`` as text, empty where they are absent."""
    try:
        with h5py.File(path) as file:
            return {key: text_of(file["uns"], key) for key in keys}
    except (OSError, KeyError) as error:
        raise ContractError(f"{path}: cannot be read ({error}); delete it and run again") from error


def describe_dataset(path: Path, config: Path) -> dict[str, str]:
    """Return what the table says of a data set."""
    name = read_uns(path, "dataset")["dataset"]
    spec_path = config / "datasets" / f"{name}.yaml"
    spec = check(read_yaml(spec_path), config / "schemas" / "dataset.schema.yaml", str(spec_path))
    sizes = shapes(path)
    known = read_uns(path, "source", "sha256")
    return {
        "Data set": spec["label"] or name,
        "Cells": f"{next(iter(sizes.values()))[0]:,}",
        "Features": ", ".join(f"{features:,} {modality}" for modality, (_, features) in sizes.items()),
        "Source": " ".join(part for part in (known["source"], spec["accession"], spec["url"]) if part),
        "Licence": spec["licence"],
        "Citation": spec["citation"],
        "Notes": spec["notes"],
        "SHA-256": known["sha256"],
    }


def describe_split(path: Path) -> dict[str, str]:
    """Return what the table says of a split."""
    known = read_uns(path, "dataset", "split", "labels", "n_train")
    try:
        with h5py.File(path) as file:
            obs = file["obs"]
            n_cells = len(obs[obs.attrs["_index"]])
    except (OSError, KeyError) as error:
        raise ContractError(f"{path}: cannot be read ({error}); delete it and run again") from error
    sizes = f"{int(known['n_train']):,} training and {n_cells:,} test cells"
    return {"dataset": known["dataset"], "text": f"{known['split']}: {sizes}, labels {known['labels']}"}


def make_table(datasets: Sequence[Path], solutions: Sequence[Path], config: Path) -> pd.DataFrame:
    """Return one row per data set, its splits named in one field."""
    splits = [describe_split(path) for path in solutions]
    records = []
    for path in datasets:
        record = describe_dataset(path, config)
        name = read_uns(path, "dataset")["dataset"]
        texts = [split["text"] for split in splits if split["dataset"] == name]
        records.append(record | {"Splits": "; ".join(texts)})
    return pd.DataFrame(records, columns=COLUMNS)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", nargs="*", required=True, type=Path, help="results/prepared/<dataset>.h5mu")
    parser.add_argument("--solutions", nargs="*", required=True, type=Path, help="solution.h5ad files")
    parser.add_argument("--config", required=True, type=Path, help="the folder config")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    tables.write_table(make_table(args.datasets, args.solutions, args.config), args.table)


if __name__ == "__main__":
    run_program(main)
