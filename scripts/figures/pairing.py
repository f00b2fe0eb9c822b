"""Draw match score and FOSCTTM against the fraction of training cells that stay paired."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from clue.benchmark import plots, style, tables
from clue.benchmark.config import load
from clue.benchmark.errors import run_program
from clue.benchmark.stats import summarise

METRICS = ("match_score", "foscttm")
COLUMNS = ["dataset", "split", "percent_paired", "method", "metric", "n", "mean", "sd", "low", "high"]


def percent_paired(dataset: str, split: str, root: Path) -> float:
    """Return which percentage of the training cells a split leaves paired."""
    spec = load("datasets", dataset, root)["splits"].get(split, {})
    return 100 * float(spec.get("paired_fraction", 1.0))


def family(dataset: str, split: str, root: Path) -> tuple:
    """Return what decides which cells are test cells; splits are one curve where it is equal."""
    spec = load("datasets", dataset, root)["splits"].get(split, {})
    return dataset, *sorted((key, str(value)) for key, value in spec.items() if key != "paired_fraction")


def curves(table: pd.DataFrame, display: style.Display, root: Path) -> dict[str, pd.DataFrame]:
    """Return per curve's data set the scores by percentage paired; only those with at least two percentages."""
    families: dict[tuple, list[tuple[str, str]]] = {}
    for dataset, split in tables.panels(table):
        families.setdefault(family(dataset, split, root), []).append((dataset, split))
    found = {}
    for places in families.values():
        percents = [percent_paired(*place, root) for place in places]
        if len(set(percents)) > 1:
            rows = sum((points(table, *pair) for pair in zip(places, percents, strict=True)), [])
            found[f"{places[0][0]} {places[0][1]}"] = pd.DataFrame(rows, columns=COLUMNS)
    return found


def points(table: pd.DataFrame, place: tuple[str, str], percent: float) -> list[dict]:
    """Return a row per method and metric on one split, default variants only."""
    dataset, split = place
    here = tables.rows_of(table, dataset=dataset, split=split, variant="default")
    rows = []
    for method in dict.fromkeys(here["method"]):
        for metric in METRICS:
            values = tables.scores(tables.rows_of(here, method=method), metric).values
            base = {"dataset": dataset, "split": split, "percent_paired": percent, "method": method, "metric": metric}
            rows.append(base | vars(summarise(values)))
    return rows


def draw(found: dict[str, pd.DataFrame], display: style.Display) -> plt.Figure:
    """Draw a row per metric and a column per data set, a curve per method with its range over seeds."""
    style.apply()
    size = (max(style.COLUMN + 1.3, 2.4 * len(found) + 1.3), 4.0)
    figure, axes = plt.subplots(2, len(found), figsize=size, squeeze=False, layout="constrained")
    for column, frame in enumerate(found.values()):
        for row, metric in enumerate(METRICS):
            axis = axes[row, column]
            for method in display.order("methods", frame["method"]):
                if not display.is_control(method):
                    draw_curve(axis, tables.rows_of(frame, metric=metric, method=method), method, display)
            entry = display.entry("metrics", metric)
            axis.set(ylabel=f"{entry['label']} ({entry['better']} is better)", xscale="log")
            ticks = sorted(set(frame["percent_paired"]))
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.set_xlim(min(ticks) / 1.2, max(ticks) * 1.2)
            axis.set_ylim(bottom=0)
        axes[0, column].set_title(display.label("datasets", frame["dataset"].iloc[0]))
        axes[1, column].set_xlabel("Training cells that are paired (%)")
    plots.legend_beside(figure, axes)
    text = "Point: mean over seeds; line through it: ± standard deviation. The test cells are the same along a curve."
    text += " Controls are in the table only."
    plots.add_notes(figure, [text])
    return figure


def draw_curve(axis: plt.Axes, frame: pd.DataFrame, method: str, display: style.Display) -> None:
    """Draw one method's curve, where it has a value."""
    frame = frame[frame["n"] > 0].sort_values("percent_paired")
    if len(frame):
        look = {"color": display.color("methods", method), "marker": "o", "markersize": 3.5, "linewidth": 1}
        axis.errorbar(
            frame["percent_paired"],
            frame["mean"],
            yerr=np.nan_to_num(frame["sd"]),
            label=display.label("methods", method),
            elinewidth=0.8,
            **look,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", required=True, help="metrics.tsv of a run")
    parser.add_argument("--display", required=True, help="config/display.yaml; the splits are beside it")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display = style.Display(args.display)
    found = curves(tables.read_metrics(args.metrics), display, Path(args.display).parent.parent)
    tables.write_table(pd.concat(found.values()) if found else pd.DataFrame(columns=COLUMNS), args.table)
    nothing = "This run has no splits that differ in the paired fraction alone."
    style.save(draw(found, display) if found else plots.empty(nothing), args.figure)


if __name__ == "__main__":
    run_program(main)
