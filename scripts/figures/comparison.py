"""Draw match score and FOSCTTM of every method on every data set; write the numbers beside it."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.tables import MAIN_METRICS, write_table
from clue.benchmark.scores.stats import Summary, bootstrap_mean, summarise

SUMMARY_METRICS = (*MAIN_METRICS, "foscttm_within_batch", "label_transfer_accuracy", "cell_type_match")
LEGEND = (
    "Point: one seed; bar: mean over seeds; line: 95 % t-interval of the mean, from 3 seeds on; pale band: 95 % "
    "bootstrap interval over test cells. 2/3: seeds with a result, of those planned. Lines of the controls: {controls}."
)


# ---- figure --------------------------------------------------------------------------------------


def draw(table: pd.DataFrame, intervals: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a row of panels per metric and a column per data set and split; `intervals` are those over cells."""
    methods, keyed = display.methods(table), tables.keyed(table)
    scores, bands = tables.values_of(table, MAIN_METRICS), tables.keyed(intervals)
    columns = plots.titles(tables.panels(table), display)
    rows = plots.metric_labels(MAIN_METRICS, display)
    figure, axes = plots.panels(rows, columns, plots.rows_height(methods))
    reasons = []
    for (metric, panel), axis in axes.items():
        jobs = tables.rows_of(keyed, panel=panel)
        found = {row: tables.scores(tables.rows_of(jobs, row=row), metric) for row in methods.index}
        incomplete = {row: score for row, score in found.items() if score.status != "ok"}
        reasons += [f"{methods['label'][row]}: {score.reason}" for row, score in incomplete.items() if score.planned]
        here = tables.rows_of(scores, metric=metric, panel=panel)
        points = here[here["row"].isin(methods.index)]
        plots.draw_seeds(axis, points, methods, missing={row: shortfall(score) for row, score in incomplete.items()})
        draw_bands(axis, tables.rows_of(bands, metric=metric, panel=panel), methods)
        finish_panel(axis, here, display)
    lines = [f"{name} {line_of(name, display)}" for name in controls(table["method"], display)]
    plots.add_notes(figure, [LEGEND.format(controls=", ".join(lines) or "none"), *reasons])
    return figure


def controls(methods: Iterable[str], display: style.Display) -> list[str]:
    """Return the controls among some methods."""
    return display.order("methods", filter(display.is_control, methods))


def line_of(control: str, display: style.Display) -> str:
    """Return the style of the line that marks a control."""
    return display.entry("methods", control).get("line", "dashed")


def shortfall(score: tables.Scores) -> str:
    """Return a short text about the seeds that a method lacks."""
    if len(score.values):
        return f"{len(score.values)}/{score.planned}"
    return {"unsupported": "n/a"}.get(score.status, score.status) if score.planned else "not run"


def draw_bands(axis: Axes, bands: pd.DataFrame, methods: pd.DataFrame) -> None:
    """Draw the interval over cells of each method, its ends averaged over seeds."""
    ends = bands.groupby("row")[["low", "high"]].mean().reindex(methods.index)
    axis.hlines(range(len(ends)), ends["low"], ends["high"], methods["color"], linewidth=5, alpha=0.18, zorder=1)


def finish_panel(axis: Axes, scores: pd.DataFrame, display: style.Display) -> None:
    """Start the axis at 0. Mark each control's mean by a line, if it is in range, and by its value below the axis."""
    high = axis.get_xlim()[1] if len(scores) else 1.0
    axis.set_xlim(0 if scores.empty else -0.02 * high, high)
    axis.xaxis.set_major_locator(MaxNLocator(3))
    levels = scores.groupby("method")["value"].mean()
    levels = levels[controls(levels.index, display)]
    for name, level in levels.items():
        if level <= 1.5 * high:
            plots.mark_level(axis, level, line_of(name, display))
    axis.set_xlabel("\n".join(f"{display.label('methods', name)} {level:.2g}" for name, level in levels.items()))
    axis.xaxis.label.set(color=style.MUTED, fontsize=6)


# ---- tables --------------------------------------------------------------------------------------


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean, standard deviation and 95 % interval over seeds of every metric of every method variant."""
    rows = []
    for job, jobs in table.groupby(tables.JOB, sort=False):
        measured = jobs.loc[jobs["metric"] != "", ["metric", "direction"]].drop_duplicates().to_numpy()
        for metric, direction in measured if len(measured) else [(metric, "both") for metric in MAIN_METRICS]:
            found = tables.scores(jobs, metric, direction)
            summary = summarise(found.values)
            rows.append([*job, metric, direction, *summary, found.planned, found.status, found.reason])
    columns = [*tables.JOB, "metric", "direction", *Summary._fields, "planned", "status", "reason"]
    return pd.DataFrame(rows, columns=columns)


def readable_table(table: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return one row per split and method variant: ``mean ± sd`` of the main metrics, or why there is none."""
    methods = display.methods(table, controls=True, ablations=True)
    records = []
    for dataset, split in tables.panels(table):
        for row in methods.itertuples():
            jobs = tables.rows_of(table, dataset=dataset, split=split, method=row.method, variant=row.variant)
            if len(jobs):
                record = {"Data set": display.label("datasets", dataset), "Split": split, "Method": row.label}
                settings = display.own_file("methods", row.method).get("settings", "")
                records.append(record | readable_scores(jobs, display) | {"Settings": settings})
    return pd.DataFrame(records)


def readable_scores(jobs: pd.DataFrame, display: style.Display) -> dict[str, str]:
    """Return ``mean ± sd`` per metric, or why there is none."""
    record = {}
    for metric in SUMMARY_METRICS:
        found, entry = tables.scores(jobs, metric), display.entry("metrics", metric)
        summary = summarise(found.values)
        arrow = "↑" if entry["better"] == "higher" else "↓"
        record[f"{entry['label']} {arrow}"] = str(summary) if summary.n else found.status
    main = tables.scores(jobs, MAIN_METRICS[0])
    return record | {"Seeds": f"{len(main.values)} of {main.planned}", "Note": main.reason}


def bootstrap_table(table: pd.DataFrame, folder: str) -> pd.DataFrame:
    """Return the interval over cells of both metrics for every job that has scores per cell."""
    keys, records = [*tables.JOB, "seed"], []
    jobs = table.loc[table["status"] == "ok", keys].drop_duplicates()
    for job in tqdm(jobs.itertuples(index=False, name=None), total=len(jobs), desc="bootstrap", mininterval=1):
        if (cells := tables.read_cells(folder, *job)) is not None:
            for metric in MAIN_METRICS:
                records.append([*job, metric, len(cells), *bootstrap_mean(cells[metric])])
    return pd.DataFrame(records, columns=[*keys, "metric", "n_cells", "low", "high"])


def main(metrics: Path, cells: Path, display: style.Display, table: Path, figure: Path) -> None:
    """Run the program.

    Parameters
    ----------
    cells
        results/<run>, with cells.tsv.gz of its jobs.
    table
        Table to write; beside it go summary.tsv, for readers, and intervals.tsv, which are over cells.
    """
    scores = tables.read_metrics(metrics)
    over_cells = bootstrap_table(scores, cells)
    scores = tables.with_pairs(scores)
    write_table(summary_table(scores), table, digits=6)
    write_table(readable_table(scores, display), table.with_name("summary.tsv"))
    write_table(over_cells, table.with_name("intervals.tsv"), digits=6)
    plots.write_figure(figure, draw, scores, over_cells, display)


if __name__ == "__main__":
    run_program(main)
