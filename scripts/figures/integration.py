"""Draw bio-conservation against mixing of modalities: a panel per split, a point per method."""

from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables

KEY = ["dataset", "split", "method", "variant", "seed", "n_points", "labels"]
COLUMNS = [*KEY[:5], "group", "metric", "value", "n_points", "labels"]
NOTE = (
    "Bio-conservation: mean of NMI, ARI (k-means), silhouette of types, cLISI. Mixing: mean of silhouette of "
    "modalities, iLISI, graph connectivity. First seed of the default variant; {count} points, one per cell "
    "and modality, sampled if there are more. Both range from 0 to 1; the axes show only the range of the methods."
)


def plane(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean of each group's metrics per embedding; NaN where one is missing."""
    means = table.groupby([*KEY, "group"], sort=False)["value"].agg(lambda values: values.mean(skipna=False))
    return means.unstack("group").reindex(columns=["mixing", "bio"]).reset_index()


def draw(table: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a point per method in a panel per split; all panels have the same axes."""
    found = tables.keyed(plane(table)).dropna(subset=["mixing", "bio"])
    if found.empty:
        raise plots.NothingToDraw("There are no embeddings with scores yet.")
    methods = display.methods(found)
    columns = plots.titles(tables.panels(found), display)
    for panel in set(found["panel"][found["labels"] != "published"]):
        columns[panel] += "\n(derived labels)"
    figure, axes = plots.panels({"": "Bio-conservation"}, columns, height=1.7, wrap=3, sharex=True, sharey=True)
    look = {"x": "mixing", "y": "bio", "s": 30, "alpha": 0.8, "linewidth": 0, "zorder": 3}
    plots.draw_method_panels(axes, found, methods, ("", "panel"), sns.scatterplot, **look)
    for axis in axes.values():
        axis.margins(0.12)
        axis.set_box_aspect(1)
        axis.grid(color="#e8e8e8", linewidth=0.5)
        axis.tick_params(labelbottom=True)
        axis.set_xlabel("Mixing of modalities", visible=True)  # hidden where panels share an axis
    plots.add_legend(figure, methods)
    sizes = sorted({f"{int(n):,}" for n in found["n_points"]}, key=lambda text: (len(text), text))
    plots.add_notes(figure, [NOTE.format(count=" to ".join(dict.fromkeys([sizes[0], sizes[-1]])))])
    return figure


def main(display: style.Display, table: Path, figure: Path, scores: tuple[Path, ...] = ()) -> None:
    """Run the program.

    Parameters
    ----------
    scores
        Tables of scripts/integration.py, one per split.
    """
    read = [tables.read_table(path, COLUMNS, numeric=["value", "n_points"]) for path in scores]
    found = pd.concat(read, ignore_index=True) if read else pd.DataFrame(columns=COLUMNS)
    tables.write_table(found, table, digits=6)
    plots.write_figure(figure, draw, found, display)


if __name__ == "__main__":
    run_program(main)
