"""Draw which cell types the matching confuses: of the weight of each type, how much goes to each type."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark import plots, style, tables
from clue.benchmark.contracts import ContractError, names_of_test_cells, read_solution
from clue.benchmark.errors import run_program

COLUMNS = ["method", "seed", "direction", "from_type", "to_type", "fraction", "cells"]
MAX_NUMBERED = 12
"""With more types than this the fields hold no numbers."""
LABEL_INCHES = 0.085
"""What the label of a cell type takes."""


def types_of(solution, modality: str) -> np.ndarray:
    """Return the cell type of each test cell of a modality, in file order."""
    names = pd.Index(solution.obs[modality].astype(str))
    rows = names.get_indexer(names_of_test_cells(modality, solution.n_obs))
    return solution.obs["cell_type"].astype(str).to_numpy()[rows]


def confusion(matches: sp.csr_matrix, types_x: np.ndarray, types_y: np.ndarray) -> pd.DataFrame:
    """Return the fraction of each type's match weight (rows) that goes to each type (columns); rows sum to 1."""
    names = sorted({*types_x, *types_y})

    def indicator(types: np.ndarray) -> sp.csr_matrix:
        codes = pd.Categorical(types, categories=names).codes
        return sp.csr_matrix((np.ones(len(types)), (np.arange(len(types)), codes)), shape=(len(types), len(names)))

    weight = np.asarray((indicator(types_x).T @ matches @ indicator(types_y)).todense())
    total = weight.sum(axis=1, keepdims=True)
    return pd.DataFrame(
        np.divide(weight, total, out=np.zeros_like(weight), where=total > 0), index=names, columns=names
    )


def read_confusion(path: Path, solution) -> tuple[str, str, str, pd.DataFrame]:
    """Return method, seed, direction and confusion of a match matrix; its path says whose it is."""
    method, _, seed = path.parts[-4:-1]
    direction = path.stem.removeprefix("match_")
    types = [types_of(solution, modality) for modality in direction.split("2")]
    try:
        matches = sp.load_npz(path)
        return method, seed.removeprefix("seed-"), direction, confusion(matches, *types)
    except (OSError, ValueError, KeyError) as error:
        raise ContractError(f"{path}: cannot be read, or not of this split ({error}); run again") from error


def draw_panel(axis: plt.Axes, table: pd.DataFrame, show_rows: bool) -> None:
    """Draw one matrix; numbers are percentages."""
    image = axis.imshow(table.to_numpy(), vmin=0, vmax=1, cmap="Blues", aspect="equal")
    image.set_rasterized(True)
    labels = [plots.shorten(name, 18) for name in table]
    axis.set_xticks(range(len(labels)), labels, rotation=90, fontsize=5.5)
    axis.set_yticks(range(len(labels)), labels if show_rows else [""] * len(labels), fontsize=5.5)
    axis.tick_params(length=0)
    if len(labels) <= MAX_NUMBERED:
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            if value >= 0.005:
                color = "white" if value > 0.6 else style.INK
                axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=4.5, color=color)


def draw(found: Sequence[tuple], title: str, derived: bool, display: style.Display) -> plt.Figure:
    """Draw a row per method, a column per direction."""
    style.apply()
    methods = display.order("methods", [method for method, *_ in found])
    directions = list(dict.fromkeys(direction for _, _, direction, _ in found))
    n_types = len(found[0][3])
    side = max(float(np.clip(0.2 * n_types, 1.6, 2.6)), LABEL_INCHES * n_types)
    size = (side * len(directions) + 1.9, (side + 0.25) * len(methods) + 1.6)
    shape = (len(methods), len(directions))
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, sharex=True, layout="constrained")
    for method, _, direction, table in found:
        row, column = methods.index(method), directions.index(direction)
        axis = axes[row, column]
        draw_panel(axis, table, show_rows=column == 0)
        source, target = (display.label("modalities", name) for name in direction.split("2"))
        axis.set_title(f"{source} → {target}" if row == 0 else "")
        axis.set_ylabel(display.label("methods", method) if column == 0 else "", fontsize=8)
    bar = figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.6, aspect=30)
    bar.set_label("Fraction of the row's match weight")
    figure.suptitle(title, fontsize=8.5)
    kind = "derived, not published, " if derived else ""
    text = f"Rows: {kind}type of a cell; columns: type of the cells that it is matched to."
    plots.add_notes(figure, [f"{text} First seed, default variant." + numbers_note(n_types)])
    return figure


def numbers_note(n_types: int) -> str:
    """Say what the numbers are, where there are any."""
    return " Numbers: percent, rounded; below 0.5 none." if n_types <= MAX_NUMBERED else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--solution", required=True, help="solution.h5ad of a split")
    parser.add_argument("--matches", required=True, nargs="+", type=Path, help="match matrices, two per method")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display, solution = style.Display(args.display), read_solution(args.solution)
    found = [read_confusion(path, solution) for path in args.matches]
    rows = []
    for method, seed, direction, table in found:
        cells = pd.Series(types_of(solution, direction.split("2")[0])).value_counts()
        for source, target in np.argwhere(table.to_numpy() > 0):
            names = (table.index[source], table.columns[target])
            rows.append([method, seed, direction, *names, table.iat[source, target], cells.get(names[0], 0)])
    tables.write_table(pd.DataFrame(rows, columns=COLUMNS), args.table)
    title = f"{display.label('datasets', str(solution.uns['dataset']))} (split {solution.uns['split']})"
    style.save(draw(found, title, str(solution.uns["labels"]) != "published", display), args.figure)


if __name__ == "__main__":
    run_program(main)
