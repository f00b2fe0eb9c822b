"""Rank the methods on every split, and draw the ranks and their mean, without a claim of significance."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.tables import MAIN_METRICS

KEY = ["metric", "dataset", "split"]
NOTE = (
    "Point: rank on one split by the mean over seeds; bar: mean rank; 2/3: splits with a result, if not all. "
    "So few splits carry no claim of significance, and splits of one data set are not independent."
)


def ranks(table: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return the rank of each method on each split; 1 is best, equal means share a rank.

    Variants are ranked among those that have a result on the split. Ablations and controls are left out.
    """
    scores = tables.values_of(table, MAIN_METRICS)
    left_out = scores["method"].map(display.is_control) | scores["variant"].map(display.is_ablation)
    scores = scores[~left_out.astype(bool)]
    means = scores.groupby([*KEY, "method", "variant"], sort=False)["value"].mean().rename("mean").reset_index()
    higher = means["metric"].map(lambda metric: display.entry("metrics", metric)["better"] == "higher").astype(bool)
    groups = means.assign(best_first=means["mean"].where(~higher, -means["mean"])).groupby(KEY)
    return means.assign(rank=groups["best_first"].rank(), of=groups["mean"].transform("count"))


def mean_ranks(found: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return the mean rank of each method's variant per metric, and the number of its ranked splits, best first."""
    groups = found.groupby(["metric", "method", "variant"], sort=False)["rank"]
    table = groups.agg(mean_rank="mean", best="min", worst="max", splits="count").reset_index()
    table["of_splits"] = len(found[["dataset", "split"]].drop_duplicates())
    table.insert(3, "label", [display.name(*row) for row in zip(table["method"], table["variant"], strict=True)])
    return table.sort_values(["metric", "mean_rank"], ascending=[False, True], kind="stable", ignore_index=True)


def draw(found: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a panel per metric: a point per split, a bar at the mean rank."""
    if found.empty:
        raise plots.NothingToDraw("No method has scores to rank.")
    methods, n_splits = display.methods(found), len(found[["dataset", "split"]].drop_duplicates())
    points = tables.keyed(found).assign(value=found["rank"])
    counts = points.drop_duplicates(["panel", "row"])["row"].value_counts()
    methods["label"] += [f" ({counts[row]}/{n_splits})" if counts[row] < n_splits else "" for row in methods.index]
    columns = {metric: display.label("metrics", metric) for metric in MAIN_METRICS}
    figure, axes = plots.panels({"": ""}, columns, plots.rows_height(methods))
    plots.draw_seed_panels(axes, points, methods, ("", "metric"), "no result", interval=False)
    for axis in axes.values():
        axis.set(xlim=(0.5, max(found["of"].max(), 2) + 0.5), xlabel="Rank (1 is best)")
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    plots.add_notes(figure, [NOTE])
    return figure


def main(metrics: Path, display: style.Display, table: Path, figure: Path) -> None:
    """Run the program."""
    found = ranks(tables.read_metrics(metrics), display)
    tables.write_table(mean_ranks(found, display), table, digits=6)
    plots.write_figure(figure, draw, found, display)


if __name__ == "__main__":
    run_program(main)
