"""Write the table of data sets: how many cells and features, and where they come from."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clue.benchmark.config import load
from clue.benchmark.program import run_program
from clue.benchmark.report import style, tables

COLUMNS = ["Data set", "Cells", "Features", "Splits", "Source", "Licence", "Citation", "Notes", "SHA-256"]


def describe_dataset(path: Path, splits: Sequence[dict], project: Path) -> dict[str, str]:
    """Return the table's row for a data set, with those of its splits that are part of the run."""
    found = tables.read_facts(path)
    spec = load("datasets", found["dataset"], project)
    texts = [
        f"{split['split']}: {int(split['n_train']):,} training and {split['n_cells']:,} test cells, "
        f"labels {split['labels']}"
        for split in splits
        if split["dataset"] == found["dataset"]
    ]
    return {
        "Data set": spec["label"] or found["dataset"],
        "Cells": f"{next(iter(found['shapes'].values()))[0]:,}",
        "Features": ", ".join(f"{features:,} {modality}" for modality, (_, features) in found["shapes"].items()),
        "Splits": "; ".join(texts),
        "Source": " ".join(part for part in (found.get("source"), spec["accession"], spec["url"]) if part),
        "Licence": spec["licence"],
        "Citation": spec["citation"],
        "Notes": " ".join(part for part in (spec["notes"], found.get("dropped")) if part),
        "SHA-256": found.get("sha256", ""),
    }


def main(
    display: style.Display, table: Path, datasets: tuple[Path, ...] = (), solutions: tuple[Path, ...] = ()
) -> None:
    """Run the program.

    Parameters
    ----------
    datasets
        results/prepared/<dataset>.h5mu.
    solutions
        solution.h5ad of each split.
    """
    splits = [tables.read_facts(path) for path in solutions]
    rows = [describe_dataset(path, splits, display.folder.parent) for path in datasets]
    tables.write_table(pd.DataFrame(rows, columns=COLUMNS), table)


if __name__ == "__main__":
    run_program(main)
