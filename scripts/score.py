"""Score an embedding against the solution: match matrices, a tidy table, and a summary to read."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from clue.benchmark.contracts import read_embedding, read_predictions, read_solution
from clue.benchmark.errors import run_program
from clue.benchmark.report.tables import write_table
from clue.benchmark.scores.scoring import score, write_cells, write_matches


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--embedding", type=Path, required=True, help="the embedding to score (embedding.h5ad)")
    parser.add_argument("--solution", type=Path, required=True, help="who is who (solution.h5ad)")
    parser.add_argument(
        "--matches",
        type=Path,
        nargs="+",
        help="match matrices to write, there and back of each pair (.npz)",
    )
    parser.add_argument("--predictions", type=Path, help="predictions to score (predictions.npz)")
    parser.add_argument("--metrics", type=Path, help="the table to write (metrics.tsv)")
    parser.add_argument("--cells", type=Path, help="scores per cell to write (cells.tsv.gz)")
    parser.add_argument("--run", default="", help="name of the run, for the table")
    arguments = parser.parse_args(argv)

    scores = score(
        read_embedding(arguments.embedding),
        read_solution(arguments.solution),
        arguments.run,
        str(arguments.embedding),
        read_predictions(arguments.predictions) if arguments.predictions else None,
    )
    for matches, path in zip(scores.matches.values(), arguments.matches or (), strict=False):
        write_matches(matches, path)
    if arguments.cells:
        write_cells(scores.cells, arguments.cells)
    if arguments.metrics:
        write_table(scores.metrics, arguments.metrics)
    print(summary(scores.metrics))


def summary(metrics: pd.DataFrame) -> str:
    """Return the table as a person reads it: a row per metric, a column per direction."""
    wide = metrics.pivot(index="metric", columns="direction", values="value")
    wide = wide.loc[metrics["metric"].unique(), metrics["direction"].unique()]
    lines = [" ".join(f"{key} {metrics[key].iloc[0]}" for key in ("dataset", "split", "method", "variant", "seed"))]
    lines.append(wide.rename_axis(index=None, columns=None).to_string(float_format="%.4f", na_rep="-"))
    lines += sorted(set(metrics["reason"]) - {""})
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
