"""Draw what each ablation changes, relative to the full method with the same seed, beside the published drops."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.reference import read_drops
from clue.benchmark.report.tables import MAIN_METRICS
from clue.benchmark.scores.stats import Summary, summarise

PUBLISHED = {"marker": "D", "s": 18, "facecolor": "black", "edgecolor": "white", "linewidth": 0.6, "zorder": 5}
KEY = ["dataset", "split", "method", "variant", "metric"]


def ablations(table: pd.DataFrame, reference: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return the ablations in the order and form of `Display.methods`.

    A method that reproduces a published one gets all ablations of that one, whether they were run or not.
    """
    run = table[table["variant"].map(display.is_ablation)][["method", "variant"]]
    reproduced = {method: name for method, name in display.reproduced.items() if method in set(run["method"])}
    published = pd.DataFrame(reproduced.items(), columns=["ours", "method"]).merge(reference[["method", "variant"]])
    published = published[["ours", "variant"]].rename(columns={"ours": "method"})
    return display.methods(pd.concat([run, published]), ablations=True)


def change_table(
    table: pd.DataFrame, methods: pd.DataFrame, reference: pd.DataFrame, display: style.Display
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the changes: a row per seed for the figure, and a row per ablation for the table."""
    drops = reference.set_index(["method", "variant", "metric"])["drop_percent"]
    points, rows = [], []
    for (dataset, split), ablation, metric in product(tables.panels(table), methods.itertuples(), MAIN_METRICS):
        here = tables.rows_of(table, dataset=dataset, split=split)
        values, reason = tables.changes(here, ablation.method, ablation.variant, metric)
        key = [dataset, split, ablation.method, ablation.variant, metric]
        points += [[*key, value] for value in values]
        published = -drops.get((display.reproduced.get(ablation.method), ablation.variant, metric), np.nan)
        rows.append([*key, *summarise(values), published, reason])
    changes = ["n", *(f"change_percent_{name}" for name in Summary._fields[1:])]
    summary = pd.DataFrame(rows, columns=[*KEY, *changes, "published_change_percent", "reason"])
    return pd.DataFrame(points, columns=[*KEY, "value"]), summary


def draw(points: pd.DataFrame, summary: pd.DataFrame, methods: pd.DataFrame, note: str, display) -> Figure:
    """Draw a row of panels per metric and a column per data set and split."""
    if methods.empty:
        raise plots.NothingToDraw("This run has no ablations.")
    points, summary = tables.keyed(points), tables.keyed(summary)
    labels = methods.assign(label=[display.label("variants", name) for name in methods["variant"]])
    rows = plots.metric_labels(MAIN_METRICS, display)
    columns = plots.titles(tables.panels(summary), display)
    figure, axes = plots.panels(rows, columns, plots.rows_height(methods))
    shown = methods if methods["method"].nunique() > 1 else labels
    plots.draw_seed_panels(axes, points, shown, ("metric", "panel"), "n/a")
    for (metric, panel), axis in axes.items():
        here = tables.rows_of(summary, metric=metric, panel=panel).dropna(subset=["published_change_percent"])
        axis.scatter(here["published_change_percent"], methods.index.get_indexer(here["row"]) + 0.25, **PUBLISHED)
        axis.axvline(0, color=style.INK, linewidth=0.7, zorder=1)
        axis.xaxis.set_major_locator(MaxNLocator(3))
        axis.set_xlabel("Change (%)")
    reasons = methods["label"].loc[summary["row"]].to_numpy() + ": " + summary["reason"]
    plots.add_notes(figure, [note, *reasons[(summary["reason"] != "").to_numpy()]])
    return figure


def main(metrics: Path, reference: Path, display: style.Display, table: Path, figure: Path) -> None:
    """Run the program.

    Parameters
    ----------
    reference
        config/reference/ablation.tsv.
    """
    scores, drops = tables.read_metrics(metrics), read_drops(reference)
    methods = ablations(scores, drops, display)
    points, summary = change_table(scores, methods, drops, display)
    tables.write_table(summary, table, digits=6)
    evidence = "; ".join(dict.fromkeys(drops["evidence"] + ", " + drops["note"]))
    note = (
        "Point: one seed, against the full method with the same seed; bar: mean; line: 95 % t-interval, from 3 seeds "
        f"on. Black diamond: published ({evidence}); methods without one have settings of our own."
    )
    plots.write_figure(figure, draw, points, summary, methods, note, display)


if __name__ == "__main__":
    run_program(main)
