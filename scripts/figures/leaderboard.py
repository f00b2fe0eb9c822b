"""Draw the competition's leaderboard, published scores beside those of this run; write the table beside it."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from clue.benchmark.config import ORACLE
from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.reference import OVERALL, SPLIT, SUBTASKS, competition_scores, read_published

PANELS = {**{direction: title for direction, (_, title) in SUBTASKS.items()}, OVERALL: "Overall"}
PUBLISHED = {"marker": "D", "s": 17, "facecolor": "white", "edgecolor": style.INK, "linewidth": 0.9, "zorder": 4}
EVIDENCE_MARKS = {"inferred": "†", "second-hand": "‡"}
REPRODUCES_MARK = "*"
METRICS = ("match_score", "match_score_ot")
"""Ways of matching. A published score stands beside scores of this run that were matched in the same way."""
NOTES = (
    "Open diamond: published. Filled point on a band of colour: one seed of this run; bar: their mean.",
    "† inferred: from values of a plot that names no team, or from a published gain; ‡ second-hand. * settings of a "
    "published method; the other methods of this run have settings of our own.",
    "The overall scores of scMoGNN and MatchCLOT rest on two sub-tasks; methods of this run have one only where all "
    "four are known.",
)
COLUMNS = ["metric", "label", "origin", "method", "reproduces", *PANELS, "evidence", "source", "note"]


# ---- the rows ------------------------------------------------------------------------------------


def published_rows(reference: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a row per published method with a column per panel. Only the best baseline is kept.

    A sub-task without a score stays empty.
    """
    wanted = reference[
        (reference["split"] == SPLIT)
        & (reference["metric"] == metric)
        & reference["direction"].isin(PANELS)
        & reference["file"].isin(["leaderboard.tsv", "organisers.tsv", "rebenchmarks.tsv"])
    ]
    keys = ["file", "method", "label"]
    texts = wanted.groupby(keys, sort=False)[["evidence", "source", "note"]]
    texts = texts.agg(lambda column: "; ".join(dict.fromkeys(filter(None, column))))
    table = texts.join(wanted.pivot(index=keys, columns="direction", values="value")).reset_index()
    table = table.assign(metric=metric, origin="published", reproduces="").reindex(columns=COLUMNS)
    baselines = table[table["method"].str.startswith("baseline_")].sort_values(OVERALL, ascending=False)
    return table.drop(index=baselines.index[1:])


def own_rows(own: pd.DataFrame, metric: str, display: style.Display) -> pd.DataFrame:
    """Return a row per method of this run with a column per panel: its mean over seeds."""
    rows = [
        {"metric": metric, "label": display.label("methods", method), "origin": "this run", "method": method}
        | {"reproduces": display.reproduced.get(method, ""), "evidence": "computed", "source": "metrics.tsv"}
        | own.loc[method].mean().to_dict()
        | {"note": f"mean over {len(own.loc[method])} seed(s)"}
        for method in display.order("methods", own.index.unique("method"))
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def leaderboard(reference: pd.DataFrame, own: pd.DataFrame, metric: str, display: style.Display) -> pd.DataFrame:
    """Return published rows and those of this run, best first: by the overall score, else the mean of known scores."""
    parts = [part for part in (published_rows(reference, metric), own_rows(own, metric, display)) if len(part)]
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=COLUMNS)
    by = table[OVERALL].fillna(table[list(SUBTASKS)].mean(axis=1))
    return table.loc[by.sort_values(ascending=False, kind="stable").index].reset_index(drop=True)


def not_run(metrics: pd.DataFrame) -> list[str]:
    """Return a sentence for each data set of the competition that has no scores in this run."""
    done = set(tables.panels(tables.rows_of(metrics, status="ok")))
    names = dict.fromkeys(dataset for dataset, _ in SUBTASKS.values())
    return [f"This run has no scores on {name} (split {SPLIT})." for name in names if (name, SPLIT) not in done]


# ---- figure --------------------------------------------------------------------------------------


def row_label(row: pd.Series) -> str:
    """Return a method's label, with marks for weak evidence and for a method that reproduces a published one."""
    marks = [mark for evidence, mark in EVIDENCE_MARKS.items() if evidence in row["evidence"]]
    marks += [REPRODUCES_MARK] if row["reproduces"] else []
    return plots.shorten(row["label"], 34) + "".join(marks)


def draw_panel(axis: Axes, board: pd.DataFrame, panel: str, own: pd.Series, display: style.Display) -> None:
    """Draw published scores as open diamonds, and own seeds as filled points with a bar at their mean."""
    colors = [display.color("methods", name) for name in board["method"]]
    rows = pd.DataFrame({"label": [row_label(row) for _, row in board.iterrows()], "color": colors})
    rows.index = board["origin"] + "/" + board["method"]
    seeds = own.dropna().rename("value").reset_index()
    plots.draw_seeds(axis, seeds.assign(row="this run/" + seeds["method"]), rows, interval=False)
    published = board[(board["origin"] == "published") & board[panel].notna()]
    axis.hlines(published.index, 0, published[panel], color="#d0d0d0", linewidth=0.7, zorder=2)
    axis.scatter(published[panel], published.index, **PUBLISHED)
    for y in board.index[board["origin"] == "this run"]:
        axis.axhspan(y - 0.5, y + 0.5, color=colors[y], alpha=0.10, linewidth=0)
    axis.set(xlabel=textwrap.fill(display.label("metrics", board["metric"].iloc[0]), 20))
    axis.tick_params(axis="x", labelbottom=True)
    axis.xaxis.set_major_locator(MaxNLocator(3))


def draw(
    boards: dict[str, pd.DataFrame], own: dict[str, pd.DataFrame], missing: Sequence[str], display: style.Display
) -> Figure:
    """For each way of matching, draw a panel per sub-task and one for their mean."""
    lengths = [len(board) for board in boards.values()]
    height = 0.17 * sum(lengths) / len(lengths)
    figure, axes = plots.panels(dict.fromkeys(boards, ""), PANELS, height, height_ratios=lengths, sharex=True)
    figure.set_figwidth(style.PAGE)
    for (metric, panel), axis in axes.items():
        draw_panel(axis, boards[metric], panel, own[metric][panel], display)
    axis.set_xlim(left=-0.04 * axis.get_xlim()[1])
    plots.add_notes(figure, [*NOTES, *missing])
    return figure


def main(metrics: Path, published: list[Path], display: style.Display, table: Path, figure: Path) -> None:
    """Run the program."""
    scores, theirs = tables.read_metrics(metrics), read_published(published)
    own = {metric: competition_scores(scores[scores["method"] != ORACLE], metric) for metric in METRICS}
    found = {metric: leaderboard(theirs, own[metric], metric, display) for metric in METRICS}
    tables.write_table(pd.concat(found.values()), table, digits=6)
    boards = {metric: board for metric, board in found.items() if len(board)}
    plots.write_figure(figure, draw, boards, own, not_run(scores), display)


if __name__ == "__main__":
    run_program(main)
