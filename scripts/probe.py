"""Measure what embeddings of simulated data sets keep of the factors; one table for all of them."""

from pathlib import Path

import mudata as md
import pandas as pd

from clue.benchmark.config import load
from clue.benchmark.contracts import read_embedding, read_solution
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.program import run_program
from clue.benchmark.report.tables import write_table
from clue.benchmark.scores.probe import COLUMNS, probe
from clue.simulate import simulate


def main(solutions: list[Path], table: Path, embeddings: tuple[Path, ...] = (), project: Path = Path()) -> None:
    """Run the program.

    Parameters
    ----------
    solutions
        The solution of each split (solution.h5ad).
    embeddings
        Embeddings of these splits.
    """
    splits = {(found.uns["dataset"], found.uns["split"]): found for found in map(read_solution, solutions)}
    simulated = {dataset: draw_again(dataset, project) for dataset, _ in splits}
    found = []
    for path in embeddings:
        embedding = read_embedding(path)
        dataset, split = embedding.uns["dataset"], embedding.uns["split"]
        found.append(probe(embedding, splits[dataset, split], simulated[dataset], str(path)))
    write_table(pd.concat(found) if found else pd.DataFrame(columns=COLUMNS), table)


def draw_again(dataset: str, project: Path) -> md.MuData:
    """Return a simulated data set with its factors, which the benchmark's files leave out."""
    spec = load("datasets", dataset, project)
    if spec["prepare"]["kind"] != "simulated":
        raise BenchmarkError(f"config/datasets/{dataset}.yaml: is not simulated; its factors are not known")
    return simulate(**spec["prepare"]["arguments"])


if __name__ == "__main__":
    run_program(main)
