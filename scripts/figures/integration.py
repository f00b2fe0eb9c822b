"""Draw bio-conservation against mixing of modalities: a panel per split, a point per method."""

import argparse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from clue.benchmark import plots, style, tables
from clue.benchmark.errors import run_program

COLUMNS = ["dataset", "split", "method", "variant", "seed", "group", "metric", "value", "n_points", "labels"]
GROUPS = {"mixing": "Mixing of modalities", "bio": "Bio-conservation"}
PANELS_PER_ROW = 3


def plane(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each group's metrics per embedding; NaN where one is missing."""
    key = ["dataset", "split", "method", "variant", "seed", "n_points", "labels"]
    means = table.groupby([*key, "group"], sort=False)["value"].agg(lambda values: values.mean(skipna=False))
    return means.unstack("group").reindex(columns=list(GROUPS)).reset_index()


def draw(found: pd.DataFrame, display: style.Display) -> plt.Figure:
    """Draw a point per method in a panel per split."""
    style.apply()
    places = tables.panels(found)
    n_columns = min(len(places), PANELS_PER_ROW)
    n_rows = -(-len(places) // n_columns)
    size = (2.2 * n_columns + 1.3, 2.4 * n_rows + 0.5)
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(places) :]:
        axis.axis("off")
    for axis, (dataset, split) in zip(axes.flat, places, strict=False):
        here = tables.rows_of(found, dataset=dataset, split=split)
        methods = display.order("methods", here["method"])
        # a later point is smaller: of two in one place the first is a ring around the second
        for method, area in zip(methods, np.linspace(60, 14, len(methods)), strict=True):
            frame = tables.rows_of(here, method=method).dropna(subset=list(GROUPS))
            look = {"s": area, "edgecolor": "white", "linewidth": 0.5, "zorder": 3, "alpha": 0.8}
            color, label = display.color("methods", method), display.label("methods", method)
            axis.scatter(frame["mixing"], frame["bio"], color=color, label=label, **look)
        derived = "" if (here["labels"] == "published").all() else "\n(derived labels)"
        axis.set_title(plots.panel_title(display.label("datasets", dataset), split) + derived)
        axis.set(xlim=limits(found["mixing"]), ylim=limits(found["bio"]), xlabel=GROUPS["mixing"], ylabel=GROUPS["bio"])
        axis.set_box_aspect(1)
        axis.grid(color="#e8e8e8", linewidth=0.5)
        axis.set_axisbelow(True)
    plots.legend_beside(figure, axes)
    plots.add_notes(figure, [note(found)])
    return figure


def limits(values: pd.Series) -> tuple[float, float]:
    """Return the range to show, the same in all panels: methods that score alike must stay apart."""
    values = values.dropna()
    if values.empty:
        return 0.0, 1.0
    margin = max(0.08 * (values.max() - values.min()), 0.02)
    return values.min() - margin, values.max() + margin


def note(found: pd.DataFrame) -> str:
    """Say what the axes are and how many points went in."""
    sizes = sorted(set(found["n_points"].astype(int)))
    count = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return (
        "Bio-conservation: mean of NMI, ARI (k-means), silhouette of types, cLISI. Mixing: mean of silhouette of "
        f"modalities, iLISI, graph connectivity. First seed of the default variant; {count} points, a cell is one per "
        "modality, sampled where there are more. Both range from 0 to 1; the axes show the part where methods are. "
        "Sizes differ so that no point hides another."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scores", required=True, nargs="*", help="tables of scripts/integration.py, one per split")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    read = [tables.read_table(path, COLUMNS, numeric=["value", "n_points"]) for path in args.scores]
    table = pd.concat(read, ignore_index=True) if read else pd.DataFrame(columns=COLUMNS)
    tables.write_table(table, args.table)
    found = plane(table) if len(table) else table
    figure = draw(found, style.Display(args.display)) if len(found) else plots.empty("There are no embeddings yet.")
    style.save(figure, args.figure)


if __name__ == "__main__":
    run_program(main)
