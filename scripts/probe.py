"""Measure what embeddings of a simulated data set keep of its factors; one table for all of them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import mudata as md
import pandas as pd

from clue.benchmark.config import load
from clue.benchmark.contracts import read_embedding, read_solution
from clue.benchmark.errors import BenchmarkError, run_program
from clue.benchmark.report.tables import write_table
from clue.benchmark.scores.probe import COLUMNS, probe
from clue.simulate import simulate


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--solutions", type=Path, nargs="+", required=True, help="who is who (solution.h5ad)")
    parser.add_argument("--embeddings", type=Path, nargs="*", default=[], help="embeddings of these splits")
    parser.add_argument("--table", type=Path, required=True, help="the table to write")
    parser.add_argument("--project", type=Path, default=".", help="the project folder, which holds config/")
    arguments = parser.parse_args(argv)
    splits = {}
    for path in arguments.solutions:
        solution = read_solution(path)
        splits[solution.uns["dataset"], solution.uns["split"]] = solution
    simulated = {dataset: draw_again(dataset, arguments.project) for dataset, _ in splits}
    found = [pd.DataFrame(columns=COLUMNS)]
    for path in arguments.embeddings:
        embedding = read_embedding(path)
        dataset, split = embedding.uns["dataset"], embedding.uns["split"]
        found.append(probe(embedding, splits[dataset, split], simulated[dataset], str(path)))
    write_table(pd.concat(found), arguments.table)


def draw_again(dataset: str, project: Path) -> md.MuData:
    """Return a simulated data set with its factors, which the benchmark's files leave out."""
    spec = load("datasets", dataset, project)
    if spec["prepare"]["kind"] != "simulated":
        raise BenchmarkError(f"config/datasets/{dataset}.yaml: is not simulated; its factors are not known")
    return simulate(**spec["prepare"]["arguments"])


if __name__ == "__main__":
    run_program(main)
