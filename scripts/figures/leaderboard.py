"""Draw the competition's leaderboard, published scores beside those of this run; write the table beside it."""

import argparse
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from clue.benchmark import plots, style, tables
from clue.benchmark.config import ORACLE
from clue.benchmark.errors import run_program
from clue.benchmark.reference import OVERALL, SPLIT, SUBTASKS, competition_scores, read_published
from clue.benchmark.stats import summarise

PANELS = {**{direction: title for direction, (_, title) in SUBTASKS.items()}, OVERALL: "Overall"}
PUBLISHED = {"marker": "D", "s": 17, "facecolor": "white", "edgecolor": style.INK, "linewidth": 0.9, "zorder": 4}
OWN = {"marker": "o", "s": 17, "edgecolor": "white", "linewidth": 0.4, "zorder": 5}
EVIDENCE_MARKS = {"inferred": "†", "second-hand": "‡"}
REPRODUCES_MARK = "*"
METRICS = ("match_score", "match_score_ot")
"""Ways of matching: a published score stands beside the scores of this run that were matched in its way."""
LEGEND = (
    "† inferred: from values of a plot that names no team, or from a published gain; ‡ second-hand. * settings of a "
    "published method; the other methods of this run have settings of our own.",
    "The overall scores of scMoGNN and MatchCLOT rest on two sub-tasks; methods of this run have one only where all "
    "four are known.",
)
COLUMNS = ["metric", "label", "origin", "method", "reproduces", *PANELS, "evidence", "source", "note"]


# ---- the rows ------------------------------------------------------------------------------------


def published_rows(reference: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a row per published method with a column per panel; the weaker baselines are left out.

    A method without one of the sub-tasks keeps it empty.
    """
    wanted = reference[
        (reference["split"] == SPLIT)
        & (reference["metric"] == metric)
        & reference["direction"].isin(PANELS)
        & reference["file"].isin(["leaderboard.tsv", "organisers.tsv", "rebenchmarks.tsv"])
    ]
    rows = []
    for _, group in wanted.groupby(["file", "method"], sort=False):
        row = {"metric": metric, "label": group["label"].iloc[0], "origin": "published"}
        row |= {"method": group["method"].iloc[0], "reproduces": ""}
        row |= dict(zip(group["direction"], group["value"], strict=True))
        row["evidence"] = ", ".join(dict.fromkeys(group["evidence"]))
        row["source"] = "; ".join(dict.fromkeys(group["source"]))
        row["note"] = "; ".join(dict.fromkeys(note for note in group["note"] if note))
        rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS)
    baselines = table[table["method"].str.startswith("baseline_")].sort_values(OVERALL, ascending=False)
    return table.drop(index=baselines.index[1:])


def own_rows(own: dict[str, pd.DataFrame], metric: str, display: style.Display) -> pd.DataFrame:
    """Return a row per method of this run with a column per panel: its mean over seeds."""
    rows = []
    for method in display.order("methods", own):
        row = {"metric": metric, "label": display.label("methods", method), "origin": "this run", "method": method}
        row |= {"reproduces": display.reproduced.get(method, ""), "evidence": "computed", "source": "metrics.tsv"}
        row |= {panel: summarise(own[method][panel]).mean for panel in PANELS}
        rows.append(row | {"note": f"mean over {len(own[method])} seed(s)"})
    return pd.DataFrame(rows, columns=COLUMNS)


def leaderboard(
    reference: pd.DataFrame, own: dict[str, pd.DataFrame], metric: str, display: style.Display
) -> pd.DataFrame:
    """Return published rows and those of this run, best first; where there is no overall score the mean of what is."""
    parts = [part for part in (published_rows(reference, metric), own_rows(own, metric, display)) if len(part)]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    by = table[OVERALL].fillna(table[list(SUBTASKS)].mean(axis=1))
    return table.loc[by.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def not_run(metrics: pd.DataFrame) -> list[str]:
    """Return a sentence per data set of the competition that this run has no scores of."""
    sentences = []
    for dataset in dict.fromkeys(dataset for dataset, _ in SUBTASKS.values()):
        here = tables.rows_of(metrics, dataset=dataset, split=SPLIT)
        if here.empty:
            sentences.append(f"Not run here: {dataset} (split {SPLIT}) is not part of this run.")
        elif not (here["status"] == "ok").any():
            sentences.append(f"No scores here on {dataset} (split {SPLIT}): {here['reason'].iloc[0]}.")
    return sentences


# ---- figure --------------------------------------------------------------------------------------


def row_label(row: pd.Series) -> str:
    """Return a method's label, with the marks of weak evidence and of a method that reproduces a published one."""
    marks = [mark for evidence, mark in EVIDENCE_MARKS.items() if evidence in row["evidence"]]
    marks += [REPRODUCES_MARK] if row["reproduces"] else []
    return plots.shorten(row["label"], 32) + "".join(marks)


def draw_panel(
    axis: plt.Axes, board: pd.DataFrame, panel: str, own: dict[str, pd.DataFrame], display: style.Display
) -> None:
    """Draw published scores as open diamonds, own seeds as filled circles with a bar at their mean."""
    for y, row in board.iterrows():
        if row["origin"] == "published":
            axis.plot([0, row[panel]], [y, y], color="#d0d0d0", linewidth=0.7, zorder=2)
            axis.scatter([row[panel]], [y], **PUBLISHED)
            continue
        values = own[row["method"]][panel].dropna()
        color = display.color("methods", row["method"])
        axis.axhspan(y - 0.5, y + 0.5, color=color, alpha=0.10, linewidth=0)
        axis.scatter(values, [y] * len(values), color=color, **OWN)
        if len(values):
            axis.plot([values.mean()] * 2, [y - 0.32, y + 0.32], color=color, linewidth=1.6, zorder=3)
    label = display.label("metrics", board["metric"].iloc[0])
    axis.set(title=PANELS[panel], ylim=(len(board) - 0.5, -0.5))
    axis.set_xlabel(textwrap.fill(label, 20))
    axis.set_yticks(range(len(board)), [row_label(row) for _, row in board.iterrows()])
    axis.tick_params(axis="y", length=0, labelleft=axis.get_subplotspec().is_first_col())
    axis.tick_params(axis="x", labelbottom=True)
    axis.xaxis.set_major_locator(plt.MaxNLocator(3))


def draw(
    boards: Sequence[pd.DataFrame],
    own: Sequence[dict[str, pd.DataFrame]],
    missing: Sequence[str],
    display: style.Display,
) -> plt.Figure:
    """Draw for each way of matching a panel per sub-task and one for their mean."""
    style.apply()
    lengths = [len(board) for board in boards]
    figure, axes = plt.subplots(
        len(boards),
        len(PANELS),
        figsize=(style.PAGE, 0.17 * sum(lengths) + 0.6 * len(boards) + 0.7),
        height_ratios=lengths,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for line, board, scores in zip(axes, boards, own, strict=True):
        for axis, panel in zip(line, PANELS, strict=True):
            draw_panel(axis, board, panel, scores, display)
    seeds = [table.max().max() for scores in own for table in scores.values()]
    highest = np.nanmax([*(board[list(PANELS)].max().max() for board in boards), *seeds, 0.01])
    axes[0, 0].set_xlim(-0.04 * highest, 1.12 * highest)
    handles = [Line2D([], [], marker="D", linestyle="", markersize=4, markerfacecolor="white", color=style.INK)]
    labels = ["published"]
    if any(own):
        handles.append(Line2D([], [], marker="o", linestyle="", markersize=4, color=style.MUTED))
        labels.append("this run: one seed; bar: mean")
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False)
    plots.add_notes(figure, [*LEGEND, *missing])
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--metrics", required=True, help="metrics.tsv of a run")
    parser.add_argument("--published", required=True, nargs="+", help="files of config/reference")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="table to write")
    args = parser.parse_args(argv)
    display, metrics = style.Display(args.display), tables.read_metrics(args.metrics)
    published, boards, own = read_published(args.published), [], []
    for metric in METRICS:
        scores = {name: found for name, found in competition_scores(metrics, metric).items() if name != ORACLE}
        board = leaderboard(published, scores, metric, display)
        if len(board):
            boards.append(board)
            own.append(scores)
    tables.write_table(pd.concat(boards), args.table)
    style.save(draw(boards, own, not_run(metrics), display), args.figure)


if __name__ == "__main__":
    run_program(main)
