"""Draw which cell types the matching confuses: how much of the match weight of each type goes to each type."""

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import seaborn as sns
from matplotlib.figure import Figure

from clue.benchmark.contracts import cells_of_test_file, read_arrays, read_solution
from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables

COLUMNS = ["method", "variant", "seed", "direction", "from_type", "to_type", "fraction", "cells"]
MAX_NUMBERED = 12
"""With more types than this, the fields show no numbers."""
LABEL_INCHES = 0.085
"""Height of the label of a cell type."""
NOTE = (
    "Rows: type of a cell{derived}; columns: type of the cells that it is matched to. First seed, default variant. "
    "Numbers, if shown, are rounded percentages; those below 0.5 are left out."
)


def confusion(matches: sp.spmatrix, types_x: np.ndarray, types_y: np.ndarray) -> pd.DataFrame:
    """Return the fraction of each type's match weight (rows) that goes to each type (columns); rows sum to 1."""
    names, pairs = sorted({*types_x, *types_y}), sp.coo_matrix(matches)
    ends = types_x[pairs.row], types_y[pairs.col]
    table = pd.crosstab(*ends, values=pairs.data, aggfunc="sum", normalize="index", dropna=False)
    return table.reindex(index=names, columns=names).fillna(0.0)


def read_confusion(path: Path, solution) -> pd.DataFrame:
    """Return the confusion of a match matrix in long form, with the columns `COLUMNS`; the path names the job."""
    method, variant, seed = path.parts[-4:-1]
    direction = path.stem.removeprefix("match_")
    types_x, types_y = (cells_of_test_file(solution, name)["cell_type"].to_numpy() for name in direction.split("2"))
    parts = read_arrays(path)  # of a file that scipy wrote
    matches = sp.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), parts["shape"])
    table = confusion(matches, types_x, types_y)
    found = table.rename_axis(index="from_type", columns="to_type").stack().rename("fraction").reset_index()
    found["cells"] = found["from_type"].map(pd.Series(types_x).value_counts()).fillna(0).astype(int)
    job = {"method": method, "variant": variant, "seed": seed.removeprefix("seed-"), "direction": direction}
    return found.assign(**job)[COLUMNS]


def draw(found: pd.DataFrame, title: str, derived: bool, display: style.Display) -> Figure:
    """Draw a row per method and a column per direction."""
    methods, types = display.methods(found), sorted(set(found["from_type"]))
    labels = [plots.shorten(name, 18) for name in types]
    side = max(float(np.clip(0.2 * len(types), 1.4, 2.3)), LABEL_INCHES * len(types))
    columns = {direction: plots.arrow(direction, display) for direction in found["direction"].unique()}
    rows = {row.method: plots.shorten(row.label, 30) for row in methods.itertuples()}
    figure, axes = plots.panels(rows, columns, side, sharex=True, sharey=True)
    figure.set_size_inches(side * len(columns) + 1.9, (side + 0.25) * len(rows) + 1.6)
    layout = figure.get_layout_engine()
    figure.set_layout_engine("none")  # seaborn draws the figure with each heatmap
    for (method, direction), axis in axes.items():
        here = tables.rows_of(found, method=method, direction=direction)
        table, label = here.pivot(index="from_type", columns="to_type", values="fraction"), axis.get_ylabel()
        numbers = (100 * table).round().astype(int).astype(str).where(table >= 0.005, "")
        look = {"vmin": 0, "vmax": 1, "cmap": "Blues", "square": True, "cbar": False, "rasterized": True}
        look |= {"annot": numbers, "fmt": "", "annot_kws": {"fontsize": 4.5}} if len(types) <= MAX_NUMBERED else {}
        sns.heatmap(table, xticklabels=labels, yticklabels=labels, ax=axis, **look)
        axis.set(xlabel="", ylabel=label)
        axis.tick_params(length=0, labelsize=5.5)
    figure.set_layout_engine(layout)
    bar = figure.colorbar(axis.collections[0], ax=list(axes.values()), shrink=0.6, aspect=30)
    bar.set_label("Fraction of the row's match weight")
    figure.suptitle(plots.shorten(title, int(11 * figure.get_figwidth())), fontsize=8.5)
    plots.add_notes(figure, [NOTE.format(derived=" (derived, not published)" if derived else "")])
    return figure


def main(solution: Path, matches: list[Path], display: style.Display, table: Path, figure: Path) -> None:
    """Run the program.

    Parameters
    ----------
    matches
        Match matrices, two per method.
    """
    sealed = read_solution(solution)
    found = pd.concat([read_confusion(path, sealed) for path in matches], ignore_index=True)
    tables.write_table(found[found["fraction"] > 0], table, digits=6)
    is_derived = str(sealed.uns["labels"]) != "published"
    plots.write_figure(figure, draw, found, plots.split_title(sealed, display), is_derived, display)


if __name__ == "__main__":
    run_program(main)
