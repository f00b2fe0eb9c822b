"""Draw how run time and memory of each method grow with the number of training cells, over the splits of a run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import h5py
import matplotlib.pyplot as plt
import pandas as pd

from clue.benchmark import plots, style, tables
from clue.benchmark.config import ORACLE
from clue.benchmark.contracts import ContractError
from clue.benchmark.errors import run_program

QUANTITIES = {"seconds": "Run time (s)", "peak_memory_mb": "Peak memory (MB)", "gpu_memory_mb": "Peak GPU memory (MB)"}


def n_cells(path: Path) -> int:
    """Return the number of distinct cells of ``train.h5mu``, without reading its counts."""
    try:
        with h5py.File(path) as file:
            group = file["obs"]
            return len(group[group.attrs["_index"]])
    except (OSError, KeyError) as error:
        raise ContractError(f"{path}: cannot be read ({error}); delete it and run again") from error


def measured(resources: pd.DataFrame, results: Path) -> pd.DataFrame:
    """Return the default variants' rows with their number of training cells; the oracle trains nothing."""
    table = tables.rows_of(resources, variant="default")
    table = table[table["method"] != ORACLE]
    paths = {place: results.joinpath(*place, "train.h5mu") for place in tables.panels(table)}
    sizes = {place: n_cells(path) for place, path in paths.items() if path.exists()}
    cells = [sizes.get(place) for place in zip(table["dataset"], table["split"], strict=True)]
    return table.assign(training_cells=pd.array(cells, dtype="Int64")).dropna(subset=["training_cells"])


def compared(table: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Leave out the controls, if there are methods: one that takes milliseconds would stretch the axis."""
    methods = table[[not display.is_control(method) for method in table["method"]]]
    return table if methods.empty else methods


def draw(table: pd.DataFrame, display: style.Display) -> plt.Figure:
    """Draw a panel per quantity: a point per job, a line through the means of each method."""
    style.apply()
    shown = [key for key in QUANTITIES if (table[key] > 0).any()]
    figure, axes = plt.subplots(1, len(shown), figsize=(style.PAGE, 2.7), squeeze=False, layout="constrained")
    for axis, quantity in zip(axes[0], shown, strict=True):
        for method in display.order("methods", table["method"]):
            frame = tables.rows_of(table, method=method)
            frame = frame[frame[quantity] > 0]
            if frame.empty:
                continue
            color, label = display.color("methods", method), display.label("methods", method)
            sizes = frame["training_cells"].astype(float)
            axis.scatter(sizes, frame[quantity], s=11, color=color, alpha=0.6, linewidth=0)
            means = frame.groupby("training_cells")[quantity].mean()
            axis.plot(means.index.astype(float), means, color=color, linewidth=1, marker="_", label=label)
        axis.set(xscale="log", yscale="log", xlabel="Training cells", ylabel=QUANTITIES[quantity])
        for part in (axis.xaxis, axis.yaxis):
            low, high = part.get_data_interval()
            plots.log_ticks(part, low, high)
            middle = (low * high) ** 0.5  # half a decade to each side at least: else no tick may be inside
            part.axes.set(**{f"{part.axis_name}lim": (min(low / 1.3, middle / 3), max(high * 1.3, middle * 3))})
        axis.grid(color="#e8e8e8", linewidth=0.5)
    plots.legend_beside(figure, axes)
    sizes = table.groupby("training_cells")["dataset"].unique()
    places = "; ".join(f"{size:,} ({', '.join(names)})" for size, names in sizes.items())
    text = "Point: one job; line: mean. Data sets differ in features and modalities too, not in cells alone."
    plots.add_notes(figure, [f"{text} Training cells: {places}."])
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources", required=True, help="resources.tsv of a run")
    parser.add_argument("--results", required=True, type=Path, help="results/<run>, for the numbers of cells")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display = style.Display(args.display)
    table = measured(tables.read_resources(args.resources), args.results)
    columns = [*tables.JOB, "seed", "training_cells", *QUANTITIES]
    tables.write_table(table[columns], args.table)
    points = compared(table, display)
    has_any = any((points[key] > 0).any() for key in QUANTITIES)
    style.save(draw(points, display) if has_any else plots.empty("No job has ended yet."), args.figure)


if __name__ == "__main__":
    run_program(main)
