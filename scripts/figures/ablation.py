"""Draw what each ablation changes, relative to the full method with the same seed, beside the published drops."""

import argparse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from clue.benchmark import plots, style, tables
from clue.benchmark.errors import run_program
from clue.benchmark.reference import read_drops
from clue.benchmark.stats import relative_changes, summarise

METRICS = {"match_score": "below 0 is worse", "foscttm": "above 0 is worse"}
FULL = "default"
PUBLISHED = {"marker": "D", "s": 18, "facecolor": "black", "edgecolor": "white", "linewidth": 0.6}


def changes(here: pd.DataFrame, method: str, variant: str, metric: str) -> pd.Series:
    """Return the change in percent per seed that both have and where the full method is not at 0."""
    full = tables.scores(tables.rows_of(here, method=method, variant=FULL), metric).values
    part = tables.scores(tables.rows_of(here, method=method, variant=variant), metric).values
    return relative_changes(full, part)


def ablations(table: pd.DataFrame, reference: pd.DataFrame, display: style.Display) -> list[tuple[str, str]]:
    """Return methods and ablations, those included that only the reference has of a method that reproduces its own."""
    pairs = set(zip(table["method"], table["variant"], strict=True))
    methods = {method for method, variant in pairs if display.is_ablation(variant)}
    for method in methods:
        published = tables.rows_of(reference, method=display.reproduced.get(method, ""))
        pairs |= {(method, variant) for variant in published["variant"]}
    return [
        (method, variant)
        for method in display.order("methods", methods)
        for variant in display.order("variants", {variant for name, variant in pairs if name == method})
        if display.is_ablation(variant)
    ]


def why_missing(here: pd.DataFrame, method: str, variant: str, metric: str) -> str:
    """Return why there is no change to show."""
    for part in (FULL, variant):
        found = tables.scores(tables.rows_of(here, method=method, variant=part), metric)
        if found.status != "ok":
            return f"{part}: {found.reason}"
    return "no seed in common, or the full method is at 0"


def change_table(
    table: pd.DataFrame, pairs: Sequence[tuple[str, str]], reference: pd.DataFrame, display: style.Display
) -> pd.DataFrame:
    """Return mean, standard deviation and interval of the change, with the published one where there is one."""
    records = []
    for dataset, split in tables.panels(table):
        here = tables.rows_of(table, dataset=dataset, split=split)
        for method, variant in pairs:
            for metric in METRICS:
                values = changes(here, method, variant, metric)
                record = {"dataset": dataset, "split": split, "method": method, "variant": variant, "metric": metric}
                record |= {f"change_percent_{key}": value for key, value in vars(summarise(values)).items()}
                record["published_change_percent"] = published_change(reference, (method, variant), metric, display)
                record["reason"] = "" if len(values) else why_missing(here, method, variant, metric)
                records.append(record)
    columns = ["dataset", "split", "method", "variant", "metric"]
    return pd.DataFrame(records).rename(columns={"change_percent_n": "n"}) if records else pd.DataFrame(columns=columns)


def published_change(reference: pd.DataFrame, pair: tuple[str, str], metric: str, display: style.Display) -> float:
    """Return the change in percent that is published of what a method reproduces, or NaN."""
    method, variant = pair
    found = tables.rows_of(reference, method=display.reproduced.get(method, ""), variant=variant, metric=metric)
    return -float(found["drop_percent"].iloc[0]) if len(found) else float("nan")


def make_line(
    here: pd.DataFrame, pair: tuple[str, str], metric: str, color: str, name: str, notes: plots.Notes
) -> plots.Line:
    """Return the line of one ablation."""
    values = changes(here, *pair, metric)
    if len(values):
        return plots.Line(values, color)
    return plots.Line(values, color, f"n/a {notes.mark(f'{name}: {why_missing(here, *pair, metric)}')}")


def draw(
    table: pd.DataFrame, pairs: Sequence[tuple[str, str]], reference: pd.DataFrame, display: style.Display
) -> plt.Figure:
    """Draw a row of panels per metric and a column per data set and split."""
    style.apply()
    notes, places = plots.Notes(), tables.panels(table)
    several = len({method for method, _ in pairs}) > 1
    names = [
        display.name(method, variant) if several else display.label("variants", variant) for method, variant in pairs
    ]
    titles = [plots.panel_title(display.label("datasets", dataset), split) for dataset, split in places]
    figure, axes = plots.grid(len(METRICS), titles, len(pairs))
    for row, metric in enumerate(METRICS):
        published = [published_change(reference, pair, metric, display) for pair in pairs]
        for column, (dataset, split) in enumerate(places):
            here = tables.rows_of(table, dataset=dataset, split=split)
            lines = [
                make_line(here, pair, metric, display.color("variants", pair[1]), name, notes)
                for pair, name in zip(pairs, names, strict=True)
            ]
            axis = axes[row, column]
            plots.draw_lines(axis, names, lines, show_labels=column == 0)
            finish_panel(axis, metric, lines, published, display)
    plots.add_notes(figure, [legend(reference), *notes.lines()])
    return figure


def finish_panel(
    axis: plt.Axes, metric: str, lines: Sequence[plots.Line], published: Sequence[float], display: style.Display
) -> None:
    """Mark no change and the published changes, and set the axis so that all are inside."""
    known = [(y, value) for y, value in enumerate(published) if value == value]
    axis.axvline(0, color=style.INK, linewidth=0.7, zorder=1)
    axis.scatter([value for _, value in known], [y + 0.3 for y, _ in known], zorder=5, **PUBLISHED)
    low, high = plots.extent(lines) if any(len(line.values) for line in lines) else (-10.0, 10.0)
    low, high = min([low, 0, *(value for _, value in known)]), max([high, 0, *(value for _, value in known)])
    pad = 0.06 * (high - low)
    axis.set_xlim(low - pad, high + pad)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.set_xlabel(f"{display.label('metrics', metric)}, change (%)\n{METRICS[metric]}")


def legend(reference: pd.DataFrame) -> str:
    """Say in a sentence what is drawn."""
    evidence = "; ".join(dict.fromkeys(reference["evidence"] + ", " + reference["note"]))
    return (
        "Circle: one seed, against the full method with the same seed; bar: mean; line through it: 95 % t-interval, "
        f"cut where very wide. Black diamond: published ({evidence}); methods without one have settings of our own."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", required=True, help="metrics.tsv of a run")
    parser.add_argument("--reference", required=True, help="config/reference/ablation.tsv")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display, table = style.Display(args.display), tables.read_metrics(args.metrics)
    reference = read_drops(args.reference)
    pairs = ablations(table, reference, display)
    tables.write_table(change_table(table, pairs, reference, display), args.table)
    figure = draw(table, pairs, reference, display) if pairs else plots.empty("This run has no ablations.")
    style.save(figure, args.figure)


if __name__ == "__main__":
    run_program(main)
