"""Score an embedding against the solution: write match matrices and a tidy table, and print a summary."""

from pathlib import Path

import pandas as pd
import scipy.sparse as sp

from clue.benchmark.contracts import read_arrays, read_embedding, read_solution
from clue.benchmark.files import atomic
from clue.benchmark.program import run_program
from clue.benchmark.report.tables import write_table
from clue.benchmark.scores.scoring import score


def main(
    embedding: Path,
    solution: Path,
    matches: tuple[Path, ...] = (),
    predictions: Path | None = None,
    metrics: Path | None = None,
    cells: Path | None = None,
    run: str = "",
) -> None:
    """Run the program.

    Parameters
    ----------
    embedding
        The embedding to score (embedding.h5ad).
    matches
        Match matrices to write, both directions of each pair (.npz).
    predictions
        Predictions to score (predictions.npz).
    metrics, cells
        Table to write: metrics.tsv, and cells.tsv.gz with scores per cell.
    run
        Name of the run, for the table.
    """
    predicted = read_arrays(predictions) if predictions else None
    scores = score(read_embedding(embedding), read_solution(solution), run, str(embedding), predicted)
    for matrix, path in zip(scores.matches.values(), matches, strict=False):
        with atomic(path) as temporary:
            sp.save_npz(temporary, matrix)
    if cells:
        write_table(scores.cells, cells, digits=6)
    if metrics:
        write_table(scores.metrics, metrics)
    print(summary(scores.metrics))


def summary(metrics: pd.DataFrame) -> str:
    """Return a readable table: a row per metric and a column per direction."""
    wide = metrics.pivot(index="metric", columns="direction", values="value")
    wide = wide.loc[metrics["metric"].unique(), metrics["direction"].unique()]
    lines = [" ".join(f"{key} {metrics[key].iloc[0]}" for key in ("dataset", "split", "method", "variant", "seed"))]
    lines.append(wide.rename_axis(index=None, columns=None).to_string(float_format="%.4f", na_rep="-"))
    lines += sorted(set(metrics["reason"]) - {""})
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
