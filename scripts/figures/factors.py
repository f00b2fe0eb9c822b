"""Draw how well a linear probe reads simulated factors out of each embedding: R² per kind of factor."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.scores.stats import summaries

GROUP = ["dataset", "method", "variant", "input_modality", "factor_kind"]
NOTE = (
    "Point: one seed, mean over the factors of a kind; bar: mean; line: 95 % t-interval, from 3 seeds on. R² of a "
    "linear probe on held-out cells."
)


def per_seed(probes: pd.DataFrame) -> pd.DataFrame:
    """Return the mean R² over the factors of a kind, per seed."""
    return probes.groupby([*GROUP, "seed"], sort=False)["r2"].mean().rename("value").reset_index()


def draw(found: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a row per data set and kind of factor, and a column per modality that was embedded."""
    if found.empty:
        raise plots.NothingToDraw("There are no probes.")
    found = found.assign(
        row=found["method"] + "/" + found["variant"], kind=found["dataset"] + "/" + found["factor_kind"]
    )
    methods = display.methods(found, ablations=True)
    kinds = found.drop_duplicates("kind").set_index("kind")
    rows = {
        key: f"{kind} factors\n{plots.shorten(display.label('datasets', name), 20)}"
        for key, name, kind in kinds[["dataset", "factor_kind"]].itertuples()
    }
    inputs = display.order("modalities", found["input_modality"])
    columns = {name: f"Embedded from\n{display.label('modalities', name)}" for name in inputs}
    figure, axes = plots.panels(rows, columns, plots.rows_height(methods), sharex=True)
    plots.draw_seed_panels(axes, found, methods, ("kind", "input_modality"), "not run")
    for axis in axes.values():
        axis.axvline(0, color=style.MUTED, linewidth=0.7, zorder=1)
        axis.set(xlim=(None, 1.03), xlabel="R²")
        axis.label_outer()
    plots.add_notes(figure, [NOTE])
    return figure


def main(probes: Path, display: style.Display, table: Path, figure: Path) -> None:
    """Run the program.

    Parameters
    ----------
    probes
        Tidy table of the probes.
    """
    found = per_seed(tables.read_table(probes, [*GROUP, "seed", "r2"], numeric=["r2"]))
    tables.write_table(summaries(found, GROUP), table, digits=6)
    plots.write_figure(figure, draw, found, display)


if __name__ == "__main__":
    run_program(main)
