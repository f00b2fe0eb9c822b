"""Draw how well simulated factors can be read out of each embedding by a linear probe: R² per kind of factor.

Reads a tidy table with the columns dataset, method, variant, seed, factor_kind, factor, input_modality, r2.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from clue.benchmark import plots, style, tables
from clue.benchmark.errors import run_program
from clue.benchmark.stats import summarise

PROBES = ["dataset", "method", "variant", "seed", "factor_kind", "factor", "input_modality", "r2"]
GROUP = ["dataset", "method", "variant", "input_modality", "factor_kind"]


def per_seed(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the mean R² over the factors of a kind, per seed."""
    return probes.groupby([*GROUP, "seed"], sort=False)["r2"].mean().reset_index()


def summarised(found: pd.DataFrame) -> pd.DataFrame:
    """Return mean, standard deviation and interval over seeds."""
    groups = found.groupby(GROUP, sort=False)["r2"]
    rows = [dict(zip(GROUP, key, strict=True)) | vars(summarise(values)) for key, values in groups]
    return pd.DataFrame(rows, columns=[*GROUP, "n", "mean", "sd", "low", "high"])


def draw(found: pd.DataFrame, display: style.Display) -> plt.Figure:
    """Draw a row per data set and kind of factor, a column per modality that was embedded."""
    style.apply()
    methods = display.order("methods", found["method"])
    pairs = [
        (method, variant)
        # a control is no embedding that was learned
        for method in [name for name in methods if not display.is_control(name)] or methods
        for variant in display.order("variants", tables.rows_of(found, method=method)["variant"])
    ]
    names = [display.name(*pair) for pair in pairs]
    rows = list(dict.fromkeys(zip(found["dataset"], found["factor_kind"], strict=True)))
    inputs = display.order("modalities", found["input_modality"])
    titles = [f"Embedded from {display.label('modalities', name)}" for name in inputs]
    figure, axes = plots.grid(len(rows), titles, len(pairs))
    for row, (dataset, kind) in enumerate(rows):
        for column, modality in enumerate(inputs):
            here = tables.rows_of(found, dataset=dataset, factor_kind=kind, input_modality=modality)
            lines = []
            for method, variant in pairs:
                values = tables.rows_of(here, method=method, variant=variant)["r2"].dropna()
                color = display.color("methods", method)
                if display.is_ablation(variant):
                    color = display.color("variants", variant)
                lines.append(plots.Line(values, color, "" if len(values) else "not run"))
            axis = axes[row, column]
            plots.draw_lines(axis, names, lines, show_labels=column == 0)
            low = min(0.0, plots.extent(lines)[0])
            axis.set_xlim(low - 0.03, 1.03)
            axis.set_xlabel(f"R² of {kind} factors\n{display.label('datasets', dataset)}")
    text = "Circle: one seed, mean over the factors of a kind; bar: mean; line through it: 95 % t-interval."
    plots.add_notes(figure, [f"{text} R² of a linear probe on held-out cells."])
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--probes", required=True, type=Path, help="tidy table of the probes")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display = style.Display(args.display)
    found = per_seed(tables.read_table(args.probes, PROBES, numeric=["r2"]))
    tables.write_table(summarised(found), args.table)
    style.save(draw(found, display) if len(found) else plots.empty("There are no probes."), args.figure)


if __name__ == "__main__":
    run_program(main)
