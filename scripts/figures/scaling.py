"""Draw how run time and memory of each method grow with the number of training cells, over the splits of a run."""

from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from clue.benchmark.config import ORACLE
from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.tables import QUANTITIES


def measured(resources: pd.DataFrame, results: Path) -> pd.DataFrame:
    """Return the default variants' rows with their number of training cells; the oracle trains nothing."""
    table = tables.rows_of(resources, variant="default")
    table = table[table["method"] != ORACLE]
    paths = {place: results.joinpath(*place, "train.h5mu") for place in tables.panels(table)}
    sizes = {place: tables.read_facts(path)["n_cells"] for place, path in paths.items() if path.exists()}
    cells = [sizes.get(place) for place in zip(table["dataset"], table["split"], strict=True)]
    return table.assign(training_cells=pd.array(cells, dtype="Int64")).dropna(subset=["training_cells"])


def draw(table: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a panel per quantity: a point per job, a line through the means of each method."""
    methods = display.methods(table)  # without controls: they take milliseconds, which would stretch the axis
    table = tables.keyed(table).astype({"training_cells": float})
    found = table.melt(["row", "dataset", "training_cells"], list(QUANTITIES), var_name="quantity")
    found = found[(found["value"] > 0) & found["row"].isin(methods.index)]
    if found.empty:
        raise plots.NothingToDraw("No job has ended yet.")
    columns = {key: label for key, label in QUANTITIES.items() if key in set(found["quantity"])}
    figure, axes = plots.panels({"": ""}, columns, height=2.4)
    given = {"axes": axes, "points": found, "methods": methods, "by": ("", "quantity")}
    given |= {"x": "training_cells", "y": "value"}
    plots.draw_method_panels(**given, kind=sns.scatterplot, s=14, alpha=0.7, linewidth=0)
    plots.draw_method_panels(**given, kind=sns.lineplot, markers=False, dashes=False, errorbar=None, linewidth=1)
    for axis in axes.values():
        plots.log_scale(axis.xaxis)
        plots.log_scale(axis.yaxis)
        axis.set_xlabel("Training cells")
        axis.grid(color="#e8e8e8", linewidth=0.5)
    plots.add_legend(figure, methods)
    sizes = found.groupby("training_cells")["dataset"].unique()
    places = "; ".join(f"{size:,.0f} ({', '.join(names)})" for size, names in sizes.items())
    text = "Point: one job; line: mean. Data sets differ in features and modalities too, not in cells alone."
    plots.add_notes(figure, [f"{text} Training cells: {places}."])
    return figure


def main(resources: Path, results: Path, display: style.Display, table: Path, figure: Path) -> None:
    """Run the program."""
    found = measured(tables.read_resources(resources), results)
    tables.write_table(found[[*tables.JOB, "seed", "training_cells", *QUANTITIES]], table, digits=6)
    plots.write_figure(figure, draw, found, display)


if __name__ == "__main__":
    run_program(main)
