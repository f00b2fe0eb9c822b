"""Draw match score and FOSCTTM of every method on every data set; write the numbers beside it."""

import argparse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from clue.benchmark import plots, style, tables
from clue.benchmark.errors import run_program
from clue.benchmark.stats import bootstrap_mean, paired_tests, summarise

METRICS = ("match_score", "foscttm")
NO_INTERVALS = pd.DataFrame(columns=[*tables.JOB, "seed", "metric", "n_cells", "low", "high"])
SUMMARY_METRICS = (*METRICS, "foscttm_within_batch", "label_transfer_accuracy", "cell_type_match")


# ---- figure --------------------------------------------------------------------------------------


def compared(table: pd.DataFrame, display: style.Display) -> list[tuple[str, str]]:
    """Return methods and variants that get a line: no ablation, and no control where there is anything else."""
    pairs = set(zip(table["method"], table["variant"], strict=True))
    pairs = [
        (method, variant)
        for method in display.order("methods", {method for method, _ in pairs})
        for variant in display.order("variants", {variant for name, variant in pairs if name == method})
        if not display.is_ablation(variant)
    ]
    return [pair for pair in pairs if not display.is_control(pair[0])] or pairs


def make_line(
    jobs: pd.DataFrame, metric: str, color: str, name: str, notes: plots.Notes, intervals: pd.DataFrame
) -> plots.Line:
    """Return the line of one method variant, with a text and a footnote where seeds are missing."""
    found = tables.scores(jobs, metric)
    cells = cell_intervals(jobs, metric, found.values, intervals)
    if found.status == "ok" or not found.planned:
        return plots.Line(found.values, color, "" if found.planned else "not run", cells)
    mark = notes.mark(f"{name}: {found.reason}")
    if len(found.values):
        return plots.Line(found.values, color, f"{len(found.values)}/{found.planned} {mark}", cells)
    word = {"unsupported": "n/a"}.get(found.status, found.status)
    return plots.Line(found.values, color, f"{word} {mark}")


def cell_intervals(
    jobs: pd.DataFrame, metric: str, values: pd.Series, intervals: pd.DataFrame
) -> list[tuple[float, float]]:
    """Return the interval over cells of each seed, or nothing where one is missing."""
    if jobs.empty:
        return []
    job = {key: jobs[key].iloc[0] for key in tables.JOB}
    known = tables.rows_of(intervals, **job, metric=metric).set_index("seed")[["low", "high"]]
    complete = len(values) and values.index.isin(known.index).all()
    return list(known.loc[values.index].itertuples(index=False, name=None)) if complete else []


def controls(here: pd.DataFrame, metric: str, display: style.Display) -> dict[str, float]:
    """Return the mean of each control on one split."""
    names = display.order("methods", {name for name in here["method"] if display.is_control(name)})
    means = {name: summarise(tables.scores(tables.rows_of(here, method=name), metric).values).mean for name in names}
    return {name: mean for name, mean in means.items() if np.isfinite(mean)}


def finish_panel(
    axis: plt.Axes, metric: str, lines: Sequence[plots.Line], levels: dict[str, float], display: style.Display
) -> None:
    """Set the axis, and mark the controls that lie in its range; the others are in its label."""
    high = plots.extent(lines)[1]
    high = max([high, *(level for level in levels.values() if level < 1.5 * high)])
    high = high or 1.0  # every score is 0
    axis.set_xlim(-0.02 * high, 1.08 * high)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    for name, level in levels.items():
        if level <= high:
            line = display.entry("methods", name).get("line", "dashed")
            axis.axvline(level, color=style.MUTED, linestyle=line, linewidth=0.9, zorder=1)
    entry = display.entry("metrics", metric)
    text = ", ".join(f"{display.label('methods', name).lower()} {level:.2g}" for name, level in levels.items())
    axis.set_xlabel(f"{entry['label']} ({entry['better']} is better)" + (f"\n{text}" if text else ""))


def draw(table: pd.DataFrame, display: style.Display, intervals: pd.DataFrame = NO_INTERVALS) -> plt.Figure:
    """Draw a row of panels per metric and a column per data set and split; `intervals` are those over cells."""
    style.apply()
    pairs, notes = compared(table, display), plots.Notes()
    places = tables.panels(table)
    titles = [plots.panel_title(display.label("datasets", dataset), split) for dataset, split in places]
    figure, axes = plots.grid(len(METRICS), titles, len(pairs))
    names = [display.name(*pair) for pair in pairs]
    for row, metric in enumerate(METRICS):
        for column, (dataset, split) in enumerate(places):
            here = tables.rows_of(table, dataset=dataset, split=split)
            lines = [
                make_line(
                    tables.rows_of(here, method=method, variant=variant),
                    metric,
                    display.color("methods", method),
                    names[i],
                    notes,
                    intervals,
                )
                for i, (method, variant) in enumerate(pairs)
            ]
            axis = axes[row, column]
            plots.draw_lines(axis, names, lines, show_labels=column == 0)
            finish_panel(axis, metric, lines, controls(here, metric, display), display)
    plots.add_notes(figure, [legend(table, display, notes, not intervals.empty), *notes.lines()])
    return figure


def legend(table: pd.DataFrame, display: style.Display, notes: plots.Notes, over_cells: bool) -> str:
    """Say in a sentence what is drawn."""
    names = display.order("methods", {name for name in table["method"] if display.is_control(name)})
    lines = [f"{display.entry('methods', name).get('line', 'dashed')} line: {name}" for name in names]
    drawn = "Circle: one seed; bar: mean; line through it: 95 % t-interval over seeds, cut where very wide"
    drawn += "; thin line: 95 % bootstrap interval over the cells of a seed" if over_cells else ""
    missing = ["2/3: seeds with a result of those planned"] if notes.texts else []
    return "; ".join([drawn, *lines, *missing]) + "."


# ---- tables --------------------------------------------------------------------------------------


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean, standard deviation and 95 % interval over seeds of every metric of every method variant."""
    records = []
    for job, jobs in table.groupby(tables.JOB, sort=False):
        measured = jobs[jobs["metric"] != ""]
        keys = list(dict.fromkeys(zip(measured["metric"], measured["direction"], strict=True)))
        for metric, direction in keys or [(metric, "both") for metric in METRICS]:
            found = tables.scores(jobs, metric, direction)
            record = dict(zip(tables.JOB, job, strict=True)) | {"metric": metric, "direction": direction}
            record |= {"planned": found.planned} | vars(summarise(found.values))
            records.append(record | {"status": found.status, "reason": found.reason})
    return pd.DataFrame(records)


def readable_table(table: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return one row per data set and method variant: ``mean ± sd`` of the main metrics, where settings come from."""
    records = []
    for dataset, split in tables.panels(table):
        here = tables.rows_of(table, dataset=dataset, split=split)
        for method in display.order("methods", here["method"]):
            jobs = tables.rows_of(here, method=method)
            for variant in display.order("variants", jobs["variant"]):
                record = {"Data set": display.label("datasets", dataset), "Split": split}
                record |= {"Method": display.name(method, variant)}
                record |= readable_scores(tables.rows_of(jobs, variant=variant), display)
                records.append(record | {"Settings": display.settings(method)})
    return pd.DataFrame(records)


def readable_scores(jobs: pd.DataFrame, display: style.Display) -> dict[str, str]:
    """Return ``mean ± sd`` per metric, or why there is none."""
    record = {}
    for metric in SUMMARY_METRICS:
        found = tables.scores(jobs, metric)
        summary = summarise(found.values)
        entry = display.entry("metrics", metric)
        arrow = "↑" if entry["better"] == "higher" else "↓"
        record[f"{entry['label']} {arrow}"] = str(summary) if summary.n else found.status
    main = tables.scores(jobs, METRICS[0])
    record["Seeds"] = f"{len(main.values)} of {main.planned}"
    record["Note"] = main.reason
    return record


def bootstrap_table(table: pd.DataFrame, folder: str) -> pd.DataFrame:
    """Return the interval over cells of both metrics of every job that left its scores per cell."""
    records = []
    jobs = table.loc[table["status"] == "ok", [*tables.JOB, "seed"]].drop_duplicates()
    for job in tqdm(jobs.itertuples(index=False, name=None), total=len(jobs), desc="bootstrap", mininterval=1):
        cells = tables.read_cells(folder, *job)
        if cells is None:
            continue
        for metric in METRICS:
            low, high = bootstrap_mean(cells[metric])
            record = dict(zip([*tables.JOB, "seed"], job, strict=True))
            records.append(record | {"metric": metric, "n_cells": len(cells), "low": low, "high": high})
    return pd.DataFrame(records, columns=list(NO_INTERVALS))


def tests_table(table: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return a paired test over seeds for each pair of methods, corrected per split and metric."""
    found = []
    pairs = compared(table, display)
    for dataset, split in tables.panels(table):
        here = tables.rows_of(table, dataset=dataset, split=split)
        for metric in METRICS:
            values = {
                display.name(method, variant): tables.scores(
                    tables.rows_of(here, method=method, variant=variant), metric
                ).values
                for method, variant in pairs
            }
            tests = paired_tests({name: value for name, value in values.items() if len(value)})
            found.append(tests.assign(dataset=dataset, split=split, metric=metric))
    tests = pd.concat(found, ignore_index=True)
    return tests[["dataset", "split", "metric", *[key for key in tests if key not in ("dataset", "split", "metric")]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", required=True, help="metrics.tsv of a run")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="tidy table to write")
    parser.add_argument("--summary", required=True, help="readable table to write")
    parser.add_argument("--tests", required=True, help="table of paired tests to write")
    parser.add_argument("--cells", required=True, help="results/<run>, whose jobs hold cells.tsv.gz")
    parser.add_argument("--intervals", required=True, help="table of intervals over cells to write")
    args = parser.parse_args(argv)
    display, table = style.Display(args.display), tables.read_metrics(args.metrics)
    tables.write_table(summary_table(table), args.table)
    tables.write_table(readable_table(table, display), args.summary)
    tables.write_table(tests_table(table, display), args.tests)
    intervals = bootstrap_table(table, args.cells)
    tables.write_table(intervals, args.intervals)
    style.save(draw(table, display, intervals), args.figure)


if __name__ == "__main__":
    run_program(main)
