"""The look of every figure: page sizes, fonts, and the labels, order and colours of ``config/display.yaml``."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # figures are drawn by jobs without a screen
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from clue.benchmark.config import check, read_yaml
from clue.benchmark.files import atomic

COLUMN = 3.4
"""Width of one column of a journal page, in inches."""
PAGE = 7.0
"""Width of a journal page, in inches."""
INK = "#262626"
MUTED = "#6b6b6b"
FALLBACK = (
    "#00796b",
    "#ad1457",
    "#5d4037",
    "#6a1b9a",
    "#827717",
    "#37474f",
    "#bf360c",
    "#1565c0",
    "#2e7d32",
    "#8d6e63",
)
"""Colours of what ``config/display.yaml`` does not list."""


def apply() -> None:
    """Set fonts, sizes and lines; text in a PDF stays text (TrueType)."""
    sns.set_theme(
        context="paper",
        style="ticks",
        rc={
            "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
            "font.size": 7,
            "axes.titlesize": 7.5,
            "axes.labelsize": 7,
            "xtick.labelsize": 6.5,
            "ytick.labelsize": 7,
            "legend.fontsize": 6.5,
            "legend.title_fontsize": 7,
            "text.color": INK,
            "axes.labelcolor": INK,
            "xtick.color": INK,
            "ytick.color": INK,
            "axes.edgecolor": INK,
            "axes.linewidth": 0.6,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.major.size": 2.5,
            "ytick.major.size": 2.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "pdf.fonttype": 42,
            "savefig.dpi": 300,
        },
    )


def save(figure: Figure, path: str | Path) -> None:
    """Write `path` (PNG, 300 dpi) and the PDF of the same name, then close the figure."""
    path = Path(path)
    for target, metadata in ((path.with_suffix(".pdf"), {"CreationDate": None}), (path, {})):
        with atomic(target) as temporary:
            figure.savefig(temporary, metadata=metadata)
    plt.close(figure)


class Display:
    """Labels, order and colours.

    Parameters
    ----------
    path
        ``config/display.yaml``. The folders ``methods`` and ``datasets`` beside it hold the labels
        that it does not give, and which published method a method reproduces.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        self.folder = path.parent
        self.entries = check(read_yaml(path), self.folder / "schemas" / "display.schema.yaml", str(path))

    def entry(self, kind: str, name: str) -> dict:
        """Return what is said of a name; `kind` is a top-level key such as ``methods``."""
        return self.entries[kind].get(name, {})

    def label(self, kind: str, name: str) -> str:
        """Return the label of a name: here, else in its own file, else made from the name."""
        if "label" in self.entry(kind, name):
            return self.entry(kind, name)["label"]
        own = self.folder / kind / f"{name}.yaml"
        if own.exists() and "label" in (spec := read_yaml(own)):
            return str(spec["label"])
        return name.replace("_", " ")

    @functools.cached_property
    def reproduced(self) -> dict[str, str]:
        """The published method that a method reproduces; those that are not here have settings of our own."""
        specs = {path.stem: read_yaml(path) for path in sorted(self.folder.glob("methods/*.yaml"))}
        return {method: spec["reproduces"] for method, spec in specs.items() if "reproduces" in spec}

    def settings(self, method: str) -> str:
        """Return where a method's settings come from, as its own file says; empty where it has none."""
        own = self.folder / "methods" / f"{method}.yaml"
        return read_yaml(own).get("settings", "") if own.exists() else ""

    def color(self, kind: str, name: str) -> str:
        """Return the colour of a name; an unlisted name has one that depends on the name alone."""
        digest = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        return self.entry(kind, name).get("color", FALLBACK[digest % len(FALLBACK)])

    def order(self, kind: str, names: Iterable[str]) -> list[str]:
        """Return the distinct names: those listed in their order, then the others by name."""
        names = set(names)
        known = [name for name in self.entries[kind] if name in names]
        return known + sorted(names.difference(known))

    def is_control(self, method: str) -> bool:
        """Tell whether a method only marks the range of the metrics."""
        return self.entry("methods", method).get("control", False)

    def is_ablation(self, variant: str) -> bool:
        """Tell whether a variant lacks a part of its method."""
        return self.entry("variants", variant).get("ablation", False)

    def name(self, method: str, variant: str) -> str:
        """Return the label of a method's variant; the default one is the method."""
        label = self.label("methods", method)
        return label if variant == "default" else f"{label}, {self.label('variants', variant)}"

    def cell_type_colors(self, types: Iterable[str]) -> dict[str, str]:
        """Return a colour per cell type, the same for every method on a data set."""
        palette = self.entries["cell_type_palette"]
        return {name: palette[i % len(palette)] for i, name in enumerate(sorted(set(types)))}
