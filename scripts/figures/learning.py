"""Draw the losses on held-out training cells while a method learns, from the histories in run.json."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables

KEYS = [*tables.JOB, "seed", "stage", "step"]
NOT_LOSSES = {*KEYS, "epoch", "learning_rate"}
NOTE = "A line is one seed, on held-out training cells; dotted: where a transductive method goes on with test cells."


def read_history(path: Path) -> pd.DataFrame:
    """Return the history in a run.json, a row per validation; empty if there is none, or if the file is broken."""
    try:
        history = pd.DataFrame((json.loads(path.read_text()).get("info") or {}).get("history") or [])
        return history.astype({"stage": int, "step": int}) if len(history) else history
    except (OSError, ValueError, KeyError, AttributeError) as error:
        print(f"{path}: left out, since it cannot be read ({error}); delete it and run again")
        return pd.DataFrame()


def read_histories(resources: pd.DataFrame, results: Path) -> pd.DataFrame:
    """Return the histories of the jobs that ran, default variants only."""
    found = []
    for *job, seed in tables.rows_of(resources, variant="default")[[*tables.JOB, "seed"]].to_numpy():
        path = results.joinpath(*job, f"seed-{seed}", "run.json")
        if path.exists() and len(history := read_history(path)):
            found.append(history.assign(**dict(zip(tables.JOB, job, strict=True)), seed=seed))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=KEYS)


def losses_of(table: pd.DataFrame) -> list[str]:
    """Return the losses to draw: the total, likelihoods, then others, without those at 0 and the small KL terms."""
    numbers = [name for name in table.select_dtypes("number") if name not in NOT_LOSSES]
    names = [name for name in numbers if not name.startswith("kl_") and table[name].fillna(0).any()]
    return sorted(names, key=lambda name: (name != "loss", not name.startswith("nll_"), names.index(name)))


def continued(histories: pd.DataFrame) -> pd.DataFrame:
    """Return histories whose steps go on from stage to stage, with the step at which each stage begins."""
    *job, stage, step = KEYS
    stages = histories.groupby([*job, stage], sort=True)[step].max()
    begins = (stages.groupby(level=job).cumsum() - stages).rename("begin")
    found = histories.merge(begins.reset_index(), on=[*job, stage])
    return found.assign(step=found[step] + found["begin"])


def draw(table: pd.DataFrame, display: style.Display) -> Figure:
    """Draw a row per loss and a column per split; a line per seed of each method's default variant."""
    losses = losses_of(table)
    if not losses:
        raise plots.NothingToDraw("No method of this run left a history of its losses.")
    methods, table = display.methods(table), tables.keyed(continued(table))
    found = table.melt(["row", "panel", "seed", "stage", "step", "begin"], losses, var_name="loss")
    found = found[np.isfinite(found["value"])]
    rows = {loss: loss.replace("_", " ") for loss in losses}
    figure, axes = plots.panels(rows, plots.titles(tables.panels(table), display), height=0.6, sharex="col")
    look = {"units": "seed", "estimator": None, "linewidth": 0.9, "alpha": 0.8, "markers": False, "dashes": False}
    look |= {"kind": sns.lineplot, "x": "step", "y": "value"}
    plots.draw_method_panels(axes, found, methods, ("loss", "panel"), **look)
    later = found[found["stage"] > found["stage"].min()]
    starts = later.groupby(["loss", "panel", "row", "stage"])["begin"].min()
    for (loss, panel, row, _), step in starts.items():
        axes[loss, panel].axvline(step, color=methods["color"][row], linewidth=0.7, linestyle=":")
    for axis in axes.values():
        axis.set_xlabel("Step")
        axis.yaxis.set_major_locator(MaxNLocator(3))
        if not axis.lines:  # a modality that this data set lacks
            axis.text(0.5, 0.5, "none", transform=axis.transAxes, ha="center", va="center", color=style.MUTED)
            axis.tick_params(axis="y", left=False, labelleft=False)
    plots.add_legend(figure, methods, marker="", linestyle="-")
    plots.add_notes(figure, [NOTE])
    return figure


def main(resources: Path, results: Path, display: style.Display, table: Path, figure: Path) -> None:
    """Run the program."""
    found = read_histories(tables.read_resources(resources), results)
    tables.write_table(found[[*KEYS, *[name for name in found if name not in KEYS]]], table, digits=6)
    plots.write_figure(figure, draw, found, display)


if __name__ == "__main__":
    run_program(main)
