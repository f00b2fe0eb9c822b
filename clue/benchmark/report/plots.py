"""Tools that the figure programs share: panels, seeds as points, legends, notes, and saving."""

import re
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from clue.benchmark.errors import without_control_codes
from clue.benchmark.report import style
from clue.benchmark.report.tables import rows_of
from clue.benchmark.scores.stats import summarise

LABELS_WIDTH = 2.2
"""Width of the labels left of the first panel, in inches."""
NOTE_HEIGHT = 0.11
"""Height of one line of a note, in inches."""
MAX_NOTES = 8
LONGEST_NAME = 42
"""Longest name, in characters; longer ones are cut."""


class NothingToDraw(Exception):
    """A figure has no data. This is no fault; the message says why and becomes the picture."""


# ---- programs ------------------------------------------------------------------------------------


def write_figure(path: Path, draw: Callable[..., Figure], *args) -> None:
    """Draw and save a figure. If there is nothing to draw, save a line that says why.

    An error ends the program, and so the rule fails. Snakemake then makes the report without this figure.
    """
    try:
        style.apply()
        style.save(draw(*args), path)
    except NothingToDraw as reason:
        style.save(message(str(reason)), path)
    finally:
        plt.close("all")


def message(text: str) -> Figure:
    """Return a figure that holds only a text."""
    figure = plt.figure(figsize=(style.COLUMN, 0.8))
    lines = textwrap.wrap(text, 60, max_lines=4, placeholder=" …")
    figure.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", color=style.MUTED)
    return figure


# ---- panels --------------------------------------------------------------------------------------


def panels(
    rows: Mapping[str, str], columns: Mapping[str, str], height: float, wrap: int | None = None, **options
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """Return a figure and its panels.

    Parameters
    ----------
    rows, columns
        The label of each row and column, by its key. Row labels are written upwards, left of the first panel.
    height
        Height of a panel, in inches.
    wrap
        Number of panels side by side in a figure that has only one row; the others go below.
    options
        Further arguments of `matplotlib.pyplot.subplots`.

    Returns
    -------
    tuple
        The figure, as wide as a page if its panels allow, and a panel for each pair of a row's and a column's key.
    """
    keys = [(row, column) for row in rows for column in columns]
    n = min(len(columns), wrap or len(columns))
    width = LABELS_WIDTH + min(1.7 * n, max(style.PAGE - LABELS_WIDTH, 0.95 * n))
    shape = (-(-len(keys) // n), n)
    size = (width, shape[0] * (height + 0.6) + 0.4)
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained", **options)
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.04)
    characters = int(16 * (width - LABELS_WIDTH) / n)
    found = dict(zip(keys, axes.flat, strict=False))
    for (row, column), axis in found.items():
        parts = [textwrap.wrap(shorten(part, 2 * characters), characters) for part in columns[column].split("\n")]
        axis.set_title("\n".join(sum(parts, [])) if row == next(iter(rows)) else "")
        axis.set_ylabel(rows[row] if axis.get_subplotspec().is_first_col() else "")
    for axis in axes.flat[len(keys) :]:
        axis.remove()
    return figure, found


def titles(places: Iterable[tuple[str, str]], display: style.Display) -> dict[str, str]:
    """Return the titles of panels by their key ``data set/split``: the label of the data set above the split."""
    return {f"{a}/{b}": f"{display.label('datasets', a)}\n{b}" for a, b in places}


def arrow(direction: str, display: style.Display) -> str:
    """Return the label of a direction such as ``rna2adt``."""
    return " → ".join(display.label("modalities", name) for name in direction.split("2"))


def split_title(solution, display: style.Display) -> str:
    """Return the title of a figure about the split of a solution."""
    return f"{display.label('datasets', str(solution.uns['dataset']))} (split {solution.uns['split']})"


def metric_labels(metrics: Iterable[str], display: style.Display) -> dict[str, str]:
    """Return the labels of metrics, which say whether higher or lower is better."""
    entries = {metric: display.entry("metrics", metric) for metric in metrics}
    return {metric: f"{entry['label']}\n({entry['better']} is better)" for metric, entry in entries.items()}


def rows_height(methods: pd.DataFrame) -> float:
    """Return the height of a panel with a row per method, in inches."""
    return 0.165 * max(len(methods), 3)


# ---- methods in panels ---------------------------------------------------------------------------


def draw_seeds(
    axis: Axes,
    points: pd.DataFrame,
    methods: pd.DataFrame,
    interval: bool = True,
    missing: Mapping[str, str] | None = None,
) -> None:
    """Draw a row per method: a point per seed, a bar at their mean and, from 3 seeds on, the interval of the mean.

    Parameters
    ----------
    axis
        The panel.
    points
        The columns ``row`` and ``value``.
    methods
        From `style.Display.methods`: the rows from top to bottom.
    interval
        Whether to draw the 95 % t-interval of the mean.
    missing
        For each row, a text to write in place of points or to their right.
    """
    order = list(methods.index)
    if len(points):
        given = {"data": points, "x": "value", "y": "row", "order": order, "ax": axis, "legend": False}
        given |= {"hue": "row", "hue_order": order, "palette": methods["color"].to_dict()}
        sns.stripplot(**given, jitter=False, size=3.6, alpha=0.55, linewidth=0)
        look = {"linestyle": "none", "marker": "|", "markersize": 8, "markeredgewidth": 1.5}
        errorbar = (lambda values: summarise(values)[-2:]) if interval else None
        sns.pointplot(**given, **look, errorbar=errorbar, err_kws={"linewidth": 1.1})
    method_rows(axis, methods, missing or {}, drawn=set(points["row"]))


def method_rows(axis: Axes, methods: pd.DataFrame, missing: Mapping[str, str], drawn: Collection[str] = ()) -> None:
    """Label the rows of a panel with its methods, from top to bottom.

    A text in `missing` stands in the middle of its row, or beside the panel if the row is in `drawn`.
    """
    for row, text in missing.items():
        place = {"x": 1.02, "ha": "left"} if row in drawn else {"x": 0.5, "ha": "center"}
        look = {"va": "center", "style": "italic", "fontsize": 6, "color": style.MUTED}
        axis.text(y=methods.index.get_loc(row), s=text, transform=axis.get_yaxis_transform(), **place, **look)
    first = axis.get_subplotspec().is_first_col()
    axis.xaxis.label.set_visible(True)  # hidden by seaborn where panels share an axis
    label = axis.get_ylabel() if axis.get_ylabel() != "row" else ""
    axis.set(xlabel="", ylim=(len(methods) - 0.5, -0.5), ylabel=label)
    axis.set_yticks(range(len(methods)), [shorten(label) if first else "" for label in methods["label"]])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", color="#e8e8e8", linewidth=0.5)
    axis.set_axisbelow(True)


def draw_seed_panels(
    axes: Mapping, points: pd.DataFrame, methods: pd.DataFrame, by: Sequence[str], missing: str, **options
) -> None:
    """Draw a row per method in every panel, as `draw_seeds` does, and `missing` where a method has no point.

    Parameters
    ----------
    axes, methods
        From `panels` and `style.Display.methods`.
    points
        The columns ``row`` and ``value``, and those of `by`. Rows that are not in `methods` are not drawn.
    by
        The columns of `points` that say in which row and column of panels a point is; an empty name if there is only
        one row.
    options
        Further arguments of `draw_seeds`.
    """
    for here, axis in _in_panels(axes, points.dropna(subset=["value"]), methods, by):
        absent = methods.index.difference(here["row"])
        draw_seeds(axis, here, methods, missing=dict.fromkeys(absent, missing), **options)


def draw_method_panels(
    axes: Mapping, points: pd.DataFrame, methods: pd.DataFrame, by: Sequence[str], kind: Callable, **look
) -> None:
    """Draw every panel with `kind`, a function of seaborn. Each method has its own colour and marker.

    The other arguments are as in `draw_seed_panels`; `look` holds arguments of `kind`, such as ``x`` and ``y``.
    """
    rows = list(methods.index)
    given = {"hue": "row", "style": "row", "hue_order": rows, "style_order": rows, "legend": False}
    given |= {"palette": methods["color"].to_dict(), "markers": methods["marker"].to_dict()}
    for here, axis in _in_panels(axes, points, methods, by):
        label = axis.get_ylabel()
        kind(here, ax=axis, **given | look)
        axis.set_ylabel(label)


def _in_panels(axes: Mapping, points: pd.DataFrame, methods: pd.DataFrame, by: Sequence[str]) -> Iterator:
    points = points[points["row"].isin(methods.index)]
    for key, axis in axes.items():
        yield rows_of(points, **{column: value for column, value in zip(by, key, strict=True) if column}), axis


def mark_level(axis: Axes, level: float, line: str) -> None:
    """Draw a vertical line at a level, behind the points; nothing at NaN."""
    if np.isfinite(level):
        axis.axvline(level, color=style.MUTED, linestyle=line, linewidth=0.9, zorder=1)


def add_legend(figure: Figure, entries: pd.DataFrame, rows: int = 20, **look) -> None:
    """Put one legend for all panels to their right, in columns of at most `rows` entries.

    `entries` has the columns ``label``, ``color`` and ``marker``, as `style.Display.methods` gives them.
    """
    look = {"linestyle": "", "markersize": 4, "markeredgewidth": 0} | look
    handles = [Line2D([], [], **{"color": row.color, "marker": row.marker} | look) for row in entries.itertuples()]
    labels = [shorten(label) for label in entries["label"]]
    place = {"loc": "outside right upper", "ncols": -(-len(labels) // rows)}
    figure.legend(handles, labels, frameon=False, handletextpad=0.3, **place)


# ---- text and axes -------------------------------------------------------------------------------


def add_notes(figure: Figure, notes: Iterable[str]) -> None:
    """Write small text below the figure, wrapped to its width; the figure grows, so that panels keep their height."""
    notes = list(dict.fromkeys(notes))
    shown, hidden = notes[:MAX_NOTES], len(notes) - MAX_NOTES
    shown += [f"{hidden} more: see failures.tsv"] if hidden > 0 else []
    characters = int(figure.get_figwidth() * 22)
    lines = [line for note in shown for line in textwrap.wrap(textwrap.shorten(note, 400), characters)]
    figure.set_figheight(figure.get_figheight() + NOTE_HEIGHT * max(0, len(lines) - 2))
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=6, color=style.MUTED)


def shorten(text: str, width: int = LONGEST_NAME) -> str:
    """Return a text as one line of at most `width` characters. The middle is cut, since names differ at the end."""
    text = re.sub(r"\s", " ", without_control_codes(text)).strip()
    return text if len(text) <= width else f"{text[: width * 2 // 3 - 1]}…{text[-(width // 3) :]}"


def log_scale(axis: Axis) -> None:
    """Make an axis logarithmic, with at least half a decade on each side of its middle, and plain numbers as labels."""
    low, high = axis.get_data_interval()
    low, high = (low, high) if 0 < low <= high < np.inf else (1.0, 10.0)
    middle, name = (low * high) ** 0.5, axis.axis_name
    axis.axes.set(
        **{f"{name}scale": "log", f"{name}lim": (min(low / 1.4, middle / 3.2), max(high * 1.4, middle * 3.2))}
    )
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 30 else (1.0, 3.0), numticks=4))
    axis.set_major_formatter(lambda value, _: f"{value / 1000:g}k" if value >= 1000 else f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
