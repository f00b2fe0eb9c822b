"""Small multiples of dot plots: one line per method, seeds as points, the mean and its 95 % interval."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from clue.benchmark import style
from clue.benchmark.stats import summarise

LINE_HEIGHT = 0.19
"""Height of one line of a panel, in inches."""
NOTE_HEIGHT = 0.11
"""Height of one line of a note, in inches."""
MAX_NOTES = 8


@dataclass
class Notes:
    """Numbered footnotes; equal ones share a number."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """Return the mark of a footnote, such as ``[2]``."""
        if text not in self.texts:
            self.texts.append(text)
        return f"[{self.texts.index(text) + 1}]"

    def lines(self) -> list[str]:
        """Return the footnotes, the last ones counted rather than shown where there are many."""
        shown = [f"[{i}] {textwrap.shorten(text, 230)}" for i, text in enumerate(self.texts[:MAX_NOTES], start=1)]
        hidden = len(self.texts) - MAX_NOTES
        return shown + ([f"{hidden} more: see failures.tsv"] if hidden > 0 else [])


@dataclass(frozen=True)
class Line:
    """One line of a panel: its values over seeds, or a text that says why there are none."""

    values: Sequence[float] | pd.Series
    color: str
    text: str = ""
    cells: Sequence[tuple[float, float]] = ()
    """Per value an interval over the cells behind it, or none at all."""


def grid(n_rows: int, titles: Sequence[str], n_lines: int) -> tuple[Figure, np.ndarray]:
    """Return a figure of `n_rows` panels for each of `titles`, tall enough for `n_lines` lines each."""
    width = max(1.3 + 1.55 * len(titles), style.COLUMN)
    height = n_rows * (LINE_HEIGHT * max(n_lines, 2) + 0.75) + 0.45
    figure, axes = plt.subplots(
        n_rows, len(titles), figsize=(max(width, style.PAGE * 0.75), height), squeeze=False, layout="constrained"
    )
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.06)
    return figure, axes


def panel_title(label: str, split: str) -> str:
    """Return the title of a panel, in lines short enough for it."""
    return "\n".join([*textwrap.wrap(label, 26), f"(split {split})"])


def empty(text: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    style.apply()
    figure = plt.figure(figsize=(style.COLUMN, 0.8))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=style.MUTED)
    return figure


def draw_lines(
    axis: Axes, labels: Sequence[str], lines: Sequence[Line], show_labels: bool, interval: bool = True
) -> None:
    """Draw one line per label, from the top; a text goes right of the points, or in their place."""
    for y, line in enumerate(lines):
        values = np.asarray(line.values, dtype=float)
        if len(values):
            _draw_values(axis, values, y, line, interval)
        if line.text:
            axis.text(
                1.01 if len(values) else 0.98,
                y,
                line.text,
                transform=axis.get_yaxis_transform(),
                ha="left" if len(values) else "right",
                va="center",
                style="italic",
                fontsize=6,
                color=style.MUTED,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if not len(values) else None,
            )
    axis.set_yticks(range(len(labels)), labels if show_labels else [""] * len(labels))
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", color="#e8e8e8", linewidth=0.5)
    axis.set_axisbelow(True)


def _draw_values(axis: Axes, values: np.ndarray, y: int, line: Line, interval: bool) -> None:
    summary, color = summarise(values), line.color
    spread = 0.27 if line.cells and len(values) > 1 else 0.0
    heights = y + np.linspace(-spread, spread, len(values))
    for (low, high), height in zip(line.cells, heights, strict=False):
        axis.plot([low, high], [height, height], color=color, alpha=0.45, linewidth=0.6, zorder=2)
    if interval and summary.n > 1:
        axis.plot([summary.low, summary.high], [y, y], color=color, linewidth=1.1, solid_capstyle="butt", zorder=2)
    axis.plot([summary.mean] * 2, [y - 0.3, y + 0.3], color=color, linewidth=1.8, solid_capstyle="butt", zorder=3)
    size = float(np.clip(26 / max(len(values), 1), 4, 13)) if line.cells else 13
    axis.scatter(values, heights, s=size, facecolor="white", edgecolor=color, linewidth=0.8, zorder=4)


def extent(lines: Sequence[Line]) -> tuple[float, float]:
    """Return the range to show: all values, and intervals up to as far again as the values reach.

    With two seeds an interval is 13 standard errors wide to each side: shown in full it would hide the values.
    """
    values = np.concatenate([np.asarray(line.values, dtype=float) for line in lines] or [[]])
    if not len(values):
        return 0.0, 1.0
    summaries = [summarise(line.values) for line in lines if len(line.values) > 1]
    room = max(np.ptp(values), 0.25 * np.abs(values).max(), 1e-12)
    low = max(min([values.min(), *(summary.low for summary in summaries)]), values.min() - room)
    high = min(max([values.max(), *(summary.high for summary in summaries)]), values.max() + room)
    over_cells = [end for line in lines for interval in line.cells for end in interval]
    return min([low, *over_cells]), max([high, *over_cells])


def add_notes(figure: Figure, lines: Sequence[str]) -> None:
    """Write small text below the figure, wrapped to its width; the figure grows, so that panels keep their height."""
    characters = int(figure.get_figwidth() * 22)
    text = [part for line in lines for part in textwrap.wrap(line, characters)]
    figure.set_figheight(figure.get_figheight() + NOTE_HEIGHT * max(0, len(text) - 2))
    if text:
        figure.supxlabel("\n".join(text), x=0.01, ha="left", fontsize=6, color=style.MUTED)


def shorten(text: str, width: int) -> str:
    """Return a text cut to `width` characters, with an ellipsis where it was longer."""
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"


def log_ticks(axis: Axis, low: float, high: float) -> None:
    """Label 1, 2 and 5 of each decade of a logarithmic axis, or the decades alone where there are many."""
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_beside(figure: Figure, axes: np.ndarray) -> None:
    """Put one legend of all panels to the right of them, each label once."""
    named = {}
    for axis in axes.flat:
        named |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    columns = -(-len(named) // 16)
    figure.legend(named.values(), named, loc="outside right upper", frameon=False, ncols=columns)
