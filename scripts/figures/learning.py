"""Draw the losses on held-out training cells while a method learns, from the histories in run.json."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from clue.benchmark import plots, style, tables
from clue.benchmark.errors import BenchmarkError, run_program

KEYS = [*tables.JOB, "seed", "stage", "step"]
NOT_LOSSES = {"stage", "step", "epoch", "learning_rate"}


def read_history(path: Path) -> pd.DataFrame:
    """Return the history that a run.json holds, a row per validation; empty where its method leaves none."""
    try:
        frame = pd.DataFrame((json.loads(path.read_text()).get("info") or {}).get("history") or [])
        return frame.astype({"stage": int, "step": int}) if len(frame) else frame
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise BenchmarkError(f"{path}: cannot be read ({error}); delete it and run again") from error


def read_histories(resources: pd.DataFrame, results: Path) -> pd.DataFrame:
    """Return the histories of the jobs that ran, default variants only."""
    found = [pd.DataFrame(columns=KEYS)]
    for row in tables.rows_of(resources, variant="default").itertuples():
        job = {key: getattr(row, key) for key in tables.JOB}
        path = results.joinpath(*job.values(), f"seed-{row.seed}", "run.json")
        if path.exists() and len(history := read_history(path)):
            found.append(history.assign(**job, seed=row.seed))
    return pd.concat(found[1:] or found, ignore_index=True)


def losses_of(table: pd.DataFrame) -> list[str]:
    """Return the names of the losses to draw: the total, likelihoods, others; not what is 0, nor the small KL terms."""
    numbers = [
        name for name in table if name not in {*KEYS, *NOT_LOSSES} and pd.api.types.is_numeric_dtype(table[name])
    ]
    names = [name for name in numbers if table[name].fillna(0).any() and not name.startswith("kl_")]
    return sorted(names, key=lambda name: (name != "loss", not name.startswith("nll_"), names.index(name)))


def continued(history: pd.DataFrame) -> pd.DataFrame:
    """Return a history whose steps go on from stage to stage."""
    ends = history.groupby("stage")["step"].max().cumsum().shift(fill_value=0)
    return history.assign(step=history["step"] + history["stage"].map(ends))


def draw(table: pd.DataFrame, display: style.Display) -> plt.Figure:
    """Draw a row per loss and a column per split; a line per seed of each method's default variant."""
    style.apply()
    places, losses = tables.panels(table), losses_of(table)
    size = (max(style.COLUMN + 1.3, 2.3 * len(places) + 1.3), 1.0 * len(losses) + 1.1)
    shape = (len(losses), len(places))
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, sharex="col", layout="constrained")
    for column, (dataset, split) in enumerate(places):
        here = tables.rows_of(table, dataset=dataset, split=split)
        for row, loss in enumerate(losses):
            axis = axes[row, column]
            for method in display.order("methods", here["method"]):
                draw_method(axis, tables.rows_of(here, method=method), loss, method, display)
            axis.set_ylabel(loss.replace("_", " ") if column == 0 else "")
            if not axis.lines:  # a modality that this data set lacks
                axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", va="center", color=style.MUTED)
                axis.tick_params(axis="y", left=False, labelleft=False)
        axes[0, column].set_title(plots.panel_title(display.label("datasets", dataset), split))
        axes[-1, column].set_xlabel("Step")
    plots.legend_beside(figure, axes)
    text = (
        "A line is one seed, on held-out training cells; dotted: where a transductive method goes on with test cells."
    )
    plots.add_notes(figure, [text])
    return figure


def draw_method(axis: plt.Axes, frame: pd.DataFrame, loss: str, method: str, display: style.Display) -> None:
    """Draw one loss of all seeds of a method, and where a stage begins."""
    for i, (_, history) in enumerate(frame.dropna(subset=[loss]).groupby("seed")):
        history = continued(history)
        values = history[loss].where(np.isfinite(history[loss]))
        look = {"color": display.color("methods", method), "linewidth": 0.9, "alpha": 0.8}
        axis.plot(history["step"], values, label=display.label("methods", method), **look)
        ends = history.groupby("stage")["step"].max().iloc[:-1] if i == 0 else []
        for end in ends:
            axis.axvline(end, color=display.color("methods", method), linewidth=0.7, linestyle=":")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resources", required=True, help="resources.tsv of a run, which lists its jobs")
    parser.add_argument("--results", required=True, type=Path, help="results/<run>")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display = style.Display(args.display)
    table = read_histories(tables.read_resources(args.resources), args.results)
    tables.write_table(table[[*KEYS, *[name for name in table if name not in KEYS]]], args.table)
    nothing = "No method of this run left a history of its losses."
    style.save(draw(table, display) if losses_of(table) and len(table) else plots.empty(nothing), args.figure)


if __name__ == "__main__":
    run_program(main)
