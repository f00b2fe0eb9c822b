"""Draw run time and peak memory of every method on every data set, on logarithmic axes."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from clue.benchmark.config import ORACLE
from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.tables import QUANTITIES

SHORTEST = 0.01
"""Times shorter than this, in seconds, are too short to tell and are drawn here."""


def measured(resources: pd.DataFrame) -> pd.DataFrame:
    """Return the values to draw, a row per quantity and job. Zeros and the oracle, which does no work, are left out."""
    table = tables.keyed(resources[resources["method"] != ORACLE])
    table = table.assign(seconds=table["seconds"].clip(lower=SHORTEST))
    found = table.melt([*tables.JOB, "seed", "row", "panel"], list(QUANTITIES), var_name="quantity")
    return found[found["value"] > 0]


def draw(found: pd.DataFrame, resources: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a row of panels per quantity and a column per data set and split."""
    methods = display.methods(found, controls=True)
    if methods.empty:
        raise plots.NothingToDraw("No job has ended yet.")
    rows = {key: label for key, label in QUANTITIES.items() if (found["quantity"] == key).any()}
    figure, axes = plots.panels(rows, plots.titles(tables.panels(found), display), plots.rows_height(methods))
    plots.draw_seed_panels(axes, found, methods, ("quantity", "panel"), "–", interval=False)
    for axis in axes.values():
        plots.log_scale(axis.xaxis)
    used = resources[resources["device"].isin(["cpu", "cuda"])]
    machines = sorted({f"{row.device}, {row.threads or '?'} thread(s)" for row in used.itertuples()})
    where = "; ".join(machines) or "not recorded"
    note = f"Point: one seed; bar: mean; –: no result, or not measured. Times below {SHORTEST} s are drawn at it."
    plots.add_notes(figure, [f"{note} Jobs ran on: {where}."])
    return figure


def main(resources: Path, display: style.Display, table: Path, figure: Path) -> None:
    """Run the program."""
    jobs = tables.read_resources(resources)
    found = measured(jobs)
    tables.write_table(found.drop(columns=["row", "panel"]), table, digits=6)
    plots.write_figure(figure, draw, found, jobs, display)


if __name__ == "__main__":
    run_program(main)
