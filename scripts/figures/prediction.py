"""Draw how well the other modality of test cells is predicted, by methods and by neighbours; write the table."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.reference import read_published
from clue.benchmark.scores.prediction import METRICS
from clue.benchmark.scores.stats import summarise

KINDS = ("predict", "neighbours")
DRAWN = ("pearson_cell", "rmse")
NOTES = (
    "Predicted: values that the method returns; of neighbours: mean of the nearest test cells of the other modality in "
    "its embedding, without the cell's own partner. Point: one seed; bar: mean; line: 95 % t-interval from 3 seeds on.",
    "Dashed: the mean of training cells, for every cell. Dotted: the best value that openproblems published for the "
    "data set, on other test cells and, but for proteins, other features.",
)


def long_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return a row per job, direction, kind of prediction and metric; the means of directions are left out."""
    kind, _, metric = (metrics["metric"].str.partition("_")[i] for i in range(3))
    of_kind = kind.isin(KINDS) & metrics["direction"].str.contains("2", regex=False) & (metrics["status"] == "ok")
    return tables.keyed(metrics.assign(kind=kind, metric=metric)[of_kind & metric.isin(METRICS)])


def summary_table(found: pd.DataFrame, published: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return mean and standard deviation over seeds, a column per metric; then the published values."""
    keys, rows = ["dataset", "split", "direction", "kind", "method", "variant"], []
    for key, group in found.groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True)) | {"label": display.label("methods", key[4]), "origin": "this run"}
        rows.append(row | {metric: str(summarise(part)) for metric, part in group.groupby("metric")["value"]})
    here = published[published["dataset"].isin(found["dataset"])]
    for key, group in here.groupby(["dataset", "split", "direction", "method", "label"], sort=False):
        row = dict(zip(["dataset", "split", "direction", "method", "label"], key, strict=True))
        row |= {"kind": "predict", "origin": "published", "source": group["source"].iloc[0]}
        row["note"] = group["note"].iloc[0]
        rows.append(row | dict(zip(group["metric"], group["value"].map(str), strict=True)))
    table = pd.DataFrame(rows, columns=["label", *keys, *METRICS, "origin", "source", "note"])
    return table.sort_values(["dataset", "direction", "split", "kind"], kind="stable", ignore_index=True)


def draw(found: pd.DataFrame, published: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a column per split and direction; in each a panel per kind of prediction and metric."""
    methods = display.methods(found)
    if methods.empty:
        raise plots.NothingToDraw("No method but the controls has predictions or neighbours to score.")
    columns = {}
    for place in dict.fromkeys(zip(found["dataset"], found["split"], found["direction"], strict=True)):
        dataset, split, direction = place
        arrow = " → ".join(display.label("modalities", name) for name in direction.split("2"))
        columns[place] = f"{display.label('datasets', dataset)}\n{split}\n{arrow}"
    rows = plots.metric_labels([f"{kind}_{metric}" for metric in DRAWN for kind in KINDS], display)
    rows = {name: label.replace(", ", ",\n") for name, label in rows.items()}
    figure, axes = plots.panels(rows, columns, plots.rows_height(methods))
    for (name, (dataset, split, direction)), axis in axes.items():
        kind, _, metric = name.partition("_")
        here = tables.rows_of(found, dataset=dataset, split=split, direction=direction, metric=metric)
        points = tables.rows_of(here, kind=kind)
        missing = dict.fromkeys(methods.index.difference(points["row"]), "none" if kind == "predict" else "no result")
        plots.draw_seeds(axis, points[points["row"].isin(methods.index)], methods, missing=missing)
        known = tables.rows_of(published, dataset=dataset, direction=direction, metric=metric)["value"]
        best = known.max() if metric == "pearson_cell" else known.min()
        draw_level(axis, tables.rows_of(here, kind="predict", method="random")["value"].mean(), "dashed")
        draw_level(axis, best, "dotted")
        axis.xaxis.set_major_locator(MaxNLocator(2))
    plots.add_notes(figure, NOTES)
    return figure


def draw_level(axis: Axes, level: float, line: str) -> None:
    """Draw a vertical line, if there is a level."""
    if pd.notna(level):
        axis.axvline(level, color=style.MUTED, linestyle=line, linewidth=0.9, zorder=1)


def main(metrics: Path, published: list[Path], display: style.Display, table: Path, figure: Path) -> None:
    """Run the program."""
    known = read_published(published)
    known["metric"] = known["metric"].str.removeprefix("predict_")
    found = long_table(tables.read_metrics(metrics))
    tables.write_table(summary_table(found, known, display), table)
    plots.write_figure(figure, draw, found, known, display)


if __name__ == "__main__":
    run_program(main)
