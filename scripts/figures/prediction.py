"""Draw how well methods and neighbours predict the other modality of test cells, and write the table."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.reference import read_published
from clue.benchmark.scores.prediction import METRICS
from clue.benchmark.scores.stats import summarise

KINDS = {"predict": "none", "neighbours": "no result"}
"""Text in place of points if a method has none, by kind of prediction."""
DRAWN = ("pearson_cell", "rmse")
NOTES = (
    "Predicted: the method's own predictions; of neighbours: mean of the nearest test cells of the other modality in "
    "its embedding, without the cell's own partner. Point: one seed; bar: mean; line: 95 % t-interval from 3 seeds on.",
    "Dashed: the mean of training cells, for every cell. Dotted: the best value that openproblems published for the "
    "data set, on other test cells and, except for proteins, on other features.",
)


def long_table(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return a row per job, direction and metric of predictions; the means of directions are left out."""
    names = [f"{kind}_{metric}" for kind in KINDS for metric in METRICS]
    found = tables.rows_of(metrics, status="ok")
    found = found[found["metric"].isin(names) & found["direction"].str.contains("2", regex=False)]
    return tables.keyed(found).assign(panel=found["dataset"] + "/" + found["split"] + "/" + found["direction"])


def summary_table(found: pd.DataFrame, published: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return mean and standard deviation over seeds, a column per metric; then the published values."""
    keys = ["dataset", "split", "direction", "method", "variant"]
    own = found.groupby([*keys, "metric"], sort=False)["value"].agg(lambda values: str(summarise(values))).reset_index()
    own = own.assign(label=[display.label("methods", name) for name in own["method"]], origin="this run")
    known = published[published["dataset"].isin(found["dataset"])].assign(origin="published")
    rows: dict[tuple, dict] = {}
    for row in pd.concat([own, known]).fillna("").to_dict("records"):
        kind, _, metric = row["metric"].partition("_")
        rows.setdefault((kind, *map(row.get, keys)), row | {"kind": kind})[metric] = str(row["value"])
    columns = ["label", *keys[:3], "kind", *keys[3:], *METRICS, "origin", "source", "note"]
    table = pd.DataFrame(rows.values(), columns=columns)
    return table.sort_values(["dataset", "direction", "split", "kind"], kind="stable", ignore_index=True)


def draw(found: pd.DataFrame, published: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a column per split and direction, with a panel per kind of prediction and metric."""
    methods = display.methods(found)
    if methods.empty:
        raise plots.NothingToDraw("No method but the controls has predictions or neighbours to score.")
    columns = {panel: title(*panel.split("/"), display) for panel in found["panel"].unique()}
    rows = plots.metric_labels([f"{kind}_{metric}" for metric in DRAWN for kind in KINDS], display)
    rows = {name: label.replace(", ", ",\n") for name, label in rows.items()}
    figure, axes = plots.panels(rows, columns, plots.rows_height(methods))
    for kind, missing in KINDS.items():
        of_kind = {key: axis for key, axis in axes.items() if key[0].startswith(kind)}
        plots.draw_seed_panels(of_kind, found, methods, ("metric", "panel"), missing)
    for (name, panel), axis in axes.items():
        (dataset, _, direction), metric = panel.split("/"), name.partition("_")[2]
        known = tables.rows_of(published, dataset=dataset, direction=direction, metric=f"predict_{metric}")["value"]
        controls = tables.rows_of(found, panel=panel, metric=f"predict_{metric}", method="random")["value"]
        plots.mark_level(axis, controls.mean(), "dashed")
        plots.mark_level(axis, known.max() if metric == "pearson_cell" else known.min(), "dotted")
        axis.xaxis.set_major_locator(MaxNLocator(2))
    plots.add_notes(figure, NOTES)
    return figure


def title(dataset: str, split: str, direction: str, display: style.Display) -> str:
    """Return the title of a column: data set, split and direction."""
    return f"{display.label('datasets', dataset)}\n{split}\n{plots.arrow(direction, display)}"


def main(metrics: Path, published: list[Path], display: style.Display, table: Path, figure: Path) -> None:
    """Run the program."""
    known, found = read_published(published), long_table(tables.read_metrics(metrics))
    tables.write_table(summary_table(found, known, display), table)
    plots.write_figure(figure, draw, found, known, display)


if __name__ == "__main__":
    run_program(main)
