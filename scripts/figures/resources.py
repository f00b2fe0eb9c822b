"""Draw run time and peak memory of every method on every data set, on logarithmic axes."""

import argparse
from collections.abc import Sequence

import matplotlib.pyplot as plt
import pandas as pd

from clue.benchmark import plots, style, tables
from clue.benchmark.errors import run_program

QUANTITIES = {
    "seconds": "Run time (s)",
    "peak_memory_mb": "Peak memory (MB)",
    "gpu_memory_mb": "Peak GPU memory (MB)",
}

SHORTEST = 0.01
"""Shorter times, in seconds, say nothing and are drawn as this."""


def measured(table: pd.DataFrame) -> dict[str, str]:
    """Return the quantities to draw; GPU memory only where a job used any."""
    return {key: label for key, label in QUANTITIES.items() if key != "gpu_memory_mb" or (table[key] > 0).any()}


def shown(table: pd.DataFrame, display: style.Display) -> list[tuple[str, str]]:
    """Return methods and variants that did work; the oracle does none, and ablations cost what their method does."""
    pairs = set(zip(table["method"], table["variant"], strict=True))
    return [
        (method, variant)
        for method in display.order("methods", {method for method, _ in pairs if method != "oracle"})
        for variant in display.order("variants", {variant for name, variant in pairs if name == method})
        if not display.is_ablation(variant)
    ]


def drawable(values: pd.Series, quantity: str) -> pd.Series:
    """Return the values that a logarithmic axis can show; a time of 0 is one too short to tell."""
    values = values.dropna()
    return values.clip(lower=SHORTEST) if quantity == "seconds" else values[values > 0]


def finish_panel(axis: plt.Axes, label: str, values: pd.Series) -> None:
    """Set a logarithmic axis that spans a decade at least and labels 1, 2 and 5 of each."""
    positive = values[values > 0]
    low, high = (positive.min(), positive.max()) if len(positive) else (1.0, 10.0)
    middle = (low * high) ** 0.5
    axis.set_xscale("log")
    axis.set_xlim(min(low / 1.4, middle / 10**0.5), max(high * 1.4, middle * 10**0.5))
    plots.log_ticks(axis.xaxis, low, high)
    axis.set_xlabel(label)


def draw(table: pd.DataFrame, display: style.Display) -> plt.Figure:
    """Draw a row of panels per quantity and a column per data set and split."""
    style.apply()
    pairs, places, quantities = shown(table, display), tables.panels(table), measured(table)
    titles = [plots.panel_title(display.label("datasets", dataset), split) for dataset, split in places]
    figure, axes = plots.grid(len(quantities), titles, len(pairs))
    names = [display.name(*pair) for pair in pairs]
    for row, (quantity, label) in enumerate(quantities.items()):
        for column, (dataset, split) in enumerate(places):
            here = tables.rows_of(table, dataset=dataset, split=split)
            lines = []
            for method, variant in pairs:
                values = tables.rows_of(here, method=method, variant=variant)[quantity]
                values = drawable(values, quantity)
                lines.append(plots.Line(values, display.color("methods", method), "" if len(values) else "no result"))
            axis = axes[row, column]
            plots.draw_lines(axis, names, lines, show_labels=column == 0, interval=False)
            finish_panel(axis, label, pd.concat([pd.Series(line.values) for line in lines]))
    plots.add_notes(figure, [legend(table)])
    return figure


def legend(table: pd.DataFrame) -> str:
    """Say in a sentence what is drawn and where the jobs ran."""
    used = table[table["device"].isin(["cpu", "cuda"])]
    machines = sorted({f"{row.device}, {row.threads or '?'} thread(s)" for row in used.itertuples()})
    where = "; ".join(machines) or "not recorded"
    return f"Circle: one seed; bar: mean. Times below {SHORTEST} s are drawn there. Jobs ran on: {where}."


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources", required=True, help="resources.tsv of a run")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    args = parser.parse_args(argv)
    display, table = style.Display(args.display), tables.read_resources(args.resources)
    has_any = not table.empty and bool(shown(table, display))
    style.save(draw(table, display) if has_any else plots.empty("No job has ended yet."), args.figure)


if __name__ == "__main__":
    run_program(main)
