"""Draw scores against how many training cells are paired, beside the published ones where there are some."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from clue.benchmark import plots, style, tables
from clue.benchmark.config import load
from clue.benchmark.errors import run_program
from clue.benchmark.reference import read_published
from clue.benchmark.stats import summarise

METRICS = ("match_score", "foscttm")
UNITS = {"paired_fraction": "%", "n_train": "cells"}
"""What a split says of its paired cells, and in which unit; a split that says nothing leaves 100 % paired."""
LABELS = {"%": "Training cells that are paired (%)", "cells": "Paired training cells"}
COLUMNS = ["dataset", "split", "paired", "unit", "method", "metric", "n", "mean", "sd", "low", "high"]
PUBLISHED = {"markersize": 3, "markerfacecolor": "white", "linewidth": 0.7, "linestyle": "dashed", "zorder": 1}
OTHERS = "sv^<>pPX"
"""Markers of published methods that none of ours reproduces, in turn."""

Place = tuple[str, str]


def paired(spec: dict) -> tuple[float, str]:
    """Return how many training cells a split leaves paired, and the unit."""
    if "n_train" in spec:
        return float(spec["n_train"]), UNITS["n_train"]
    return 100 * float(spec.get("paired_fraction", 1.0)), UNITS["paired_fraction"]


def family(dataset: str, spec: dict) -> tuple:
    """Return what decides which cells are test cells, and the unit; splits are one curve where both are equal."""
    return dataset, paired(spec)[1], *sorted((key, str(value)) for key, value in spec.items() if key not in UNITS)


def families(table: pd.DataFrame, root: Path) -> list[dict[Place, tuple[float, str]]]:
    """Return the curves: for each how much is paired by data set and split, at least two different amounts."""
    found: dict[tuple, dict[Place, tuple[float, str]]] = {}
    for dataset, split in tables.panels(table):
        spec = load("datasets", dataset, root)["splits"].get(split, {})
        found.setdefault(family(dataset, spec), {})[dataset, split] = paired(spec)
    return [places for places in found.values() if len(set(places.values())) > 1]


def curves(table: pd.DataFrame, published: pd.DataFrame, display: style.Display, root: Path) -> list[pd.DataFrame]:
    """Return the scores of each curve, in the metrics of what is published of it; else match score and FOSCTTM."""
    found = families(table, root)
    here = {place for places in found for place in places}
    is_here = [place in here for place in zip(published["dataset"], published["split"], strict=True)]
    metrics = display.order("metrics", published["metric"][is_here]) or METRICS
    return [
        pd.DataFrame(sum((points(table, place, metrics, *at) for place, at in places.items()), []), columns=COLUMNS)
        for places in found
    ]


def points(table: pd.DataFrame, place: Place, metrics: Sequence[str], paired: float, unit: str) -> list[dict]:
    """Return a row per method and metric on one split, default variants only."""
    dataset, split = place
    here = tables.rows_of(table, dataset=dataset, split=split, variant="default")
    rows = []
    for method in dict.fromkeys(here["method"]):
        for metric in metrics:
            values = tables.scores(tables.rows_of(here, method=method), metric).values
            base = {"dataset": dataset, "split": split, "paired": paired, "unit": unit}
            base |= {"method": method, "metric": metric}
            rows.append(base | vars(summarise(values)))
    return rows


def draw(found: Sequence[pd.DataFrame], published: pd.DataFrame, display: style.Display) -> plt.Figure:
    """Draw a row per metric and a column per data set, a curve per method with its range over seeds."""
    style.apply()
    metrics = list(dict.fromkeys(found[0]["metric"]))
    size = (max(style.COLUMN + 1.3, 2.4 * len(found) + 1.3), 2.0 * len(metrics))
    figure, axes = plt.subplots(len(metrics), len(found), figsize=size, squeeze=False, layout="constrained")
    published = published[published["dataset"].isin({name for frame in found for name in frame["dataset"]})]
    looks = published_looks(published["method"], display)
    for column, frame in enumerate(found):
        known = published.merge(frame[["dataset", "split", "paired"]].drop_duplicates(), on=["dataset", "split"])
        for row, metric in enumerate(metrics):
            axis = axes[row, column]
            for method in display.order("methods", frame["method"]):
                if not display.is_control(method):
                    draw_curve(axis, tables.rows_of(frame, metric=metric, method=method), method, display)
            draw_published(axis, tables.rows_of(known, metric=metric), looks)
            entry = display.entry("metrics", metric)
            axis.set(ylabel=f"{entry['label']}\n({entry['better']} is better)", xscale="log")
            ticks = sorted(set(frame["paired"]))
            axis.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
            axis.minorticks_off()
            axis.set_xlim(min(ticks) / 1.2, max(ticks) * 1.2)
            if len(known):
                axis.set_yscale("log")  # the weakest of the published methods are far off
            else:
                axis.set_ylim(bottom=0)
        axes[0, column].set_title(display.label("datasets", frame["dataset"].iloc[0]))
        axes[-1, column].set_xlabel(LABELS[frame["unit"].iloc[0]])
    plots.legend_beside(figure, axes)
    text = "Point: mean over seeds; line through it: ± standard deviation. The test cells are the same along a curve."
    text += " Controls are in the table only. Dashed: published, on other test cells of the same data."
    plots.add_notes(figure, [text])
    return figure


def draw_published(axis: plt.Axes, frame: pd.DataFrame, looks: dict[str, dict]) -> None:
    """Draw what is published of each method."""
    for label, rows in frame.sort_values("paired").groupby("label", sort=False):
        axis.plot(rows["paired"], rows["value"], label=label, **PUBLISHED, **looks[rows["method"].iloc[0]])


def published_looks(methods: Iterable[str], display: style.Display) -> dict[str, dict]:
    """Return colour and marker of published methods; those that none of ours reproduces are grey."""
    ours = set(display.reproduced.values())
    others = sorted(set(methods) - ours)
    looks = {name: {"color": style.MUTED, "marker": OTHERS[i % len(OTHERS)]} for i, name in enumerate(others)}
    return looks | {name: {"color": display.color("methods", name), "marker": "D"} for name in ours}


def draw_curve(axis: plt.Axes, frame: pd.DataFrame, method: str, display: style.Display) -> None:
    """Draw one method's curve, where it has a value."""
    frame = frame[frame["n"] > 0].sort_values("paired")
    if len(frame):
        look = {"color": display.color("methods", method), "marker": "o", "markersize": 3.5, "linewidth": 1}
        axis.errorbar(
            frame["paired"],
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
    parser.add_argument("--published", required=True, nargs="+", help="files of config/reference")
    parser.add_argument("--display", required=True, help="config/display.yaml; the splits are beside it")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display = style.Display(args.display)
    published = read_published(args.published).query("direction == 'both'")
    found = curves(tables.read_metrics(args.metrics), published, display, Path(args.display).parent.parent)
    tables.write_table(pd.concat(found) if found else pd.DataFrame(columns=COLUMNS), args.table)
    nothing = "This run has no splits that differ in how many cells are paired alone."
    style.save(draw(found, published, display) if found else plots.empty(nothing), args.figure)


if __name__ == "__main__":
    run_program(main)
