"""Rank the methods on every split and draw the ranks and their mean; no claim of significance."""

import argparse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from clue.benchmark import plots, style, tables
from clue.benchmark.errors import run_program
from clue.benchmark.stats import summarise

METRICS = ("match_score", "foscttm")


def ranks(table: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return the rank of each method's default variant on each split; 1 is best, equal means share a rank.

    A method is ranked among those that have a result on the split, controls left out.
    """
    records = []
    for dataset, split in tables.panels(table):
        here = tables.rows_of(table, dataset=dataset, split=split, variant="default")
        methods = [name for name in display.order("methods", here["method"]) if not display.is_control(name)]
        for metric in METRICS:
            scores = {name: tables.scores(tables.rows_of(here, method=name), metric).values for name in methods}
            means = pd.Series({name: summarise(values).mean for name, values in scores.items()}, dtype=float).dropna()
            ascending = display.entry("metrics", metric)["better"] == "lower"
            place = means.rank(ascending=ascending)
            records += [
                {"metric": metric, "method": name, "dataset": dataset, "split": split, "mean": means[name]}
                | {"rank": place[name], "of": len(means)}
                for name in means.index
            ]
    return pd.DataFrame(records, columns=["metric", "method", "dataset", "split", "mean", "rank", "of"])


def mean_ranks(found: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return per metric and method the mean rank and on how many splits it has one, best first."""
    groups = found.groupby(["metric", "method"], sort=False)["rank"]
    table = groups.agg(mean_rank="mean", best="min", worst="max", splits="count").reset_index()
    table["of_splits"] = len(found[["dataset", "split"]].drop_duplicates())
    table.insert(2, "label", [display.label("methods", name) for name in table["method"]])
    return table.sort_values(["metric", "mean_rank"], ascending=[False, True], kind="stable", ignore_index=True)


def draw(found: pd.DataFrame, display: style.Display) -> plt.Figure:
    """Draw a panel per metric: a circle per split, a bar at the mean rank."""
    style.apply()
    summary = mean_ranks(found, display)
    methods = display.order("methods", found["method"])
    titles = [display.label("metrics", metric) for metric in METRICS]
    figure, axes = plots.grid(1, titles, len(methods))
    for column, metric in enumerate(METRICS):
        axis, here = axes[0, column], summary[summary["metric"] == metric]
        lines = [
            plots.Line(
                tables.rows_of(found, metric=metric, method=name)["rank"].to_numpy(),
                display.color("methods", name),
                "" if name in set(here["method"]) else "no result",
            )
            for name in methods
        ]
        labels = [f"{display.label('methods', name)} ({n_splits(here, name)})" for name in methods]
        plots.draw_lines(axis, labels, lines, show_labels=column == 0, interval=False)
        axis.set_xlim(0.5, max(found["of"].max(), 2) + 0.5)
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axis.set_xlabel("Rank (1 is best)")
    text = (
        "Circle: rank on one split by the mean over seeds; bar: mean rank; in brackets: splits with a result. "
        "So few splits carry no claim of significance, and splits of one data set are not independent."
    )
    plots.add_notes(figure, [text])
    return figure


def n_splits(summary: pd.DataFrame, method: str) -> str:
    """Return on how many of the splits a method has a rank."""
    row = tables.rows_of(summary, method=method)
    return f"{row['splits'].iloc[0]}/{row['of_splits'].iloc[0]}" if len(row) else "0"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", required=True, help="metrics.tsv of a run")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display = style.Display(args.display)
    found = ranks(tables.read_metrics(args.metrics), display)
    tables.write_table(mean_ranks(found, display), args.table)
    style.save(draw(found, display) if len(found) else plots.empty("No method has scores to rank."), args.figure)


if __name__ == "__main__":
    run_program(main)
