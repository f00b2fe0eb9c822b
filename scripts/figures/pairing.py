"""Draw scores against how many training cells are paired, beside published scores if there are any."""

import itertools
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from clue.benchmark.config import load
from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.reference import read_published
from clue.benchmark.report.tables import MAIN_METRICS
from clue.benchmark.scores.stats import summaries

UNITS = {"paired_fraction": "%", "n_train": "cells"}
"""Keys of a split that say how many cells are paired, with the unit. Without such a key 100 % are paired."""
LABELS = {"%": "Training cells that are paired (%)", "cells": "Paired training cells"}
KEY = ["dataset", "split", "paired", "unit", "method", "variant", "metric"]
OF_VARIANTS = "^vPX"
"""Markers of the variants of a method after its first."""
OTHERS = "sv^<>pPX"
"""Markers of published methods that none of ours reproduces, used one after another."""
NOTE = (
    "Point: mean over seeds; line through it: ± standard deviation. The test cells are the same along a curve. "
    "Controls and ablations are in the table only. Dashed: published, on other test cells of the same data."
)


def paired(spec: dict) -> tuple[float, str]:
    """Return how many training cells a split leaves paired, and the unit."""
    if "n_train" in spec:
        return float(spec["n_train"]), UNITS["n_train"]
    return 100 * float(spec.get("paired_fraction", 1.0)), UNITS["paired_fraction"]


def splits_of_curves(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Return a row per split with its curve, the amount that is paired, and the unit of that amount.

    Splits with the same test cells form a curve. The test cells depend on all settings except the amount that is
    paired. A curve has at least two different amounts.
    """
    rows = []
    for dataset, split in tables.panels(table):
        spec = load("datasets", dataset, root)["splits"].get(split, {})
        amount, unit = paired(spec)
        test_cells = sorted((key, value) for key, value in spec.items() if key not in UNITS)
        rows.append([dataset, split, f"{dataset} {unit} {test_cells}", amount, unit])
    found = pd.DataFrame(rows, columns=["dataset", "split", "curve", "paired", "unit"])
    return found[found.groupby("curve")["paired"].transform("nunique") > 1]


def curves(table: pd.DataFrame, published: pd.DataFrame, display: style.Display, root: Path) -> pd.DataFrame:
    """Return the scores of methods and their variants along each curve, a row per seed.

    The metrics are those published for the curves or, if there are none, match score and FOSCTTM.
    """
    splits = splits_of_curves(table, root)
    metrics = display.order("metrics", published.merge(splits, on=["dataset", "split"])["metric"]) or MAIN_METRICS
    return tables.values_of(table, metrics).merge(splits, on=["dataset", "split"])


def published_methods(published: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return labels, colours and markers of published methods, like `Display.methods`; grey if we do not have them."""
    found = published.drop_duplicates("method").sort_values("method").set_index("row")[["method", "label"]]
    ours, others = found["method"].isin(display.reproduced.values()), itertools.cycle(OTHERS)
    colors = pd.Series([display.color("methods", name) for name in found["method"]], found.index, dtype=object)
    return found.assign(color=colors.where(ours, style.MUTED), marker=["D" if own else next(others) for own in ours])


def draw(scores: pd.DataFrame, published: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a row per metric and a column per data set, with a curve per method and its spread over seeds."""
    if scores.empty:
        raise plots.NothingToDraw("No splits of this run with scores differ only in how many cells are paired.")
    methods, places = display.methods(scores), scores.drop_duplicates("panel")
    further = methods.duplicated("method")  # variants have the colour of their method
    methods.loc[further, "marker"] = list(itertools.islice(itertools.cycle(OF_VARIANTS), further.sum()))
    known = published.merge(places[["dataset", "split", "curve", "paired"]], on=["dataset", "split"])
    known = known.assign(row=known["method"] + "/published").sort_values("paired")
    theirs = published_methods(known, display)
    rows = plots.metric_labels(display.order("metrics", scores["metric"]), display)
    firsts = places.drop_duplicates("curve").set_index("curve")
    columns = {curve: display.label("datasets", name) for curve, name in firsts["dataset"].items()}
    points, lines = pd.concat([scores, known]), pd.concat([methods, theirs])
    dashes = dict.fromkeys(methods.index, "") | dict.fromkeys(theirs.index, (3, 1.5))
    look = {"dashes": dashes, "errorbar": "sd", "err_style": "bars", "linewidth": 1, "markersize": 5}
    figure, axes = plots.panels(rows, columns, height=1.6)
    plots.draw_method_panels(axes, points, lines, ("metric", "curve"), sns.lineplot, x="paired", y="value", **look)
    for (_, curve), axis in axes.items():
        if curve in set(known["curve"]):
            plots.log_scale(axis.yaxis)  # the weakest of the published methods are far off
        else:
            axis.set_ylim(bottom=0)
        ticks = sorted(set(places["paired"][places["curve"] == curve]))
        axis.set(xscale="log", xlabel=LABELS[firsts["unit"][curve]])
        axis.set_xticks(ticks, [f"{tick / 1000:g}k" if tick >= 1000 else f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
    plots.add_legend(figure, lines)
    plots.add_notes(figure, [NOTE])
    return figure


def main(metrics: Path, published: list[Path], display: style.Display, table: Path, figure: Path) -> None:
    """Run the program."""
    known = read_published(published).query("direction == 'both'")
    scores = curves(tables.read_metrics(metrics), known, display, display.folder.parent)
    tables.write_table(summaries(scores, KEY), table, digits=6)
    plots.write_figure(figure, draw, scores, known, display)


if __name__ == "__main__":
    run_program(main)
