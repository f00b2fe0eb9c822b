"""Prepare one data set: raw files to one checked file of raw counts."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clue.benchmark.config import load
from clue.benchmark.contracts import write_dataset
from clue.benchmark.data.prepare import prepare
from clue.benchmark.errors import run_program


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True, help="a name of config/datasets")
    parser.add_argument("--raw", type=Path, required=True, help="folder of the raw files (data/raw/<dataset>)")
    parser.add_argument("--output", type=Path, required=True, help="the file to write (<dataset>.h5mu)")
    parser.add_argument("--project", type=Path, default=".", help="the project folder, which holds config/")
    arguments = parser.parse_args(argv)
    mdata = prepare(arguments.dataset, load("datasets", arguments.dataset, arguments.project), arguments.raw)
    write_dataset(mdata, arguments.output)
    widths = ", ".join(f"{adata.n_vars} {modality}" for modality, adata in mdata.mod.items())
    print(f"{arguments.output}: {mdata.n_obs} cells; features: {widths}")


if __name__ == "__main__":
    run_program(main)
