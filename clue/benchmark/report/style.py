"""The look of every figure: page sizes, fonts, and the labels, order and colours of ``config/display.yaml``."""

import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # figures are drawn by jobs without a screen
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from clue.benchmark.config import check, read_yaml
from clue.benchmark.files import atomic

COLUMN = 3.4
"""Width of one column of a journal page, in inches."""
PAGE = 7.0
"""Width of a journal page, in inches."""
INK = "#262626"
MUTED = "#6b6b6b"
FALLBACK = "#00796b #ad1457 #5d4037 #6a1b9a #827717 #37474f #bf360c #1565c0 #2e7d32 #8d6e63".split()
"""Colours for names that ``config/display.yaml`` does not list."""
MARKERS = "oDsv^P<>Xp*"
"""Shapes that go with colours, for readers who cannot tell all colours apart."""
FONTS_OF_ALL_SCRIPTS = ("CJK", "Source Han", "WenQuanYi", "Droid Sans Fallback", "Arial Unicode", "Unifont")
"""Parts of the names of fonts with Chinese, Japanese and Korean letters, which matplotlib's own font lacks."""


def apply() -> None:
    """Set fonts, sizes and lines; text in a PDF stays text (TrueType)."""
    installed = sorted({font.name for font in fontManager.ttflist})
    others = [name for name in installed if any(part in name for part in FONTS_OF_ALL_SCRIPTS)]
    rc = {
        "font.family": ["DejaVu Sans", *others],  # the first comes with matplotlib: the same figure everywhere
        "text.parse_math": False,  # a name may hold a dollar sign
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "pdf.fonttype": 42,
        "savefig.dpi": 300,
    }
    sns.set_theme(context="paper", style="ticks", font_scale=0.73, rc=rc)  # letters of about 7 points


def save(figure: Figure, path: str | Path) -> None:
    """Write `path` (PNG, 300 dpi) and the PDF of the same name, then close the figure."""
    path = Path(path)
    for target, metadata in ((path, {}), (path.with_suffix(".pdf"), {"CreationDate": None})):
        with atomic(target) as temporary:
            figure.savefig(temporary, metadata=metadata)
        figure.set_layout_engine("none")  # the second file reuses the layout, which takes the most time
    plt.close(figure)


class Display:
    """Labels, order and colours.

    Parameters
    ----------
    path
        ``config/display.yaml``. The folders ``methods`` and ``datasets`` beside it hold the labels that it lacks, and
        say which published method each method reproduces.
    """

    def __init__(self, path: str | Path):
        path = Path(path)
        self.folder = path.parent
        self.entries = check(read_yaml(path), self.folder / "schemas" / "display.schema.yaml", str(path))

    def entry(self, kind: str, name: str) -> dict:
        """Return the file's entry for a name; `kind` is a top-level key such as ``methods``."""
        return self.entries[kind].get(name, {})

    def own_file(self, kind: str, name: str) -> dict:
        """Return the file of a method or data set, such as ``config/methods/cca.yaml``; empty if there is none."""
        path = self.folder / kind / f"{name}.yaml"
        return read_yaml(path) if path.exists() else {}

    def label(self, kind: str, name: str) -> str:
        """Return the label of a name: from this file, else from the name's own file, else made from the name."""
        label = self.entry(kind, name).get("label") or self.own_file(kind, name).get("label")
        return str(label or name.replace("_", " "))

    @functools.cached_property
    def reproduced(self) -> dict[str, str]:
        """The published method that each method reproduces. Methods with our own settings are not in it."""
        specs = {path.stem: read_yaml(path) for path in sorted(self.folder.glob("methods/*.yaml"))}
        return {method: spec["reproduces"] for method, spec in specs.items() if "reproduces" in spec}

    def color(self, kind: str, name: str) -> str:
        """Return the colour of a name; the colour of an unlisted name depends on the name alone."""
        return self.entry(kind, name).get("color", FALLBACK[_number(name) % len(FALLBACK)])

    def marker(self, method: str) -> str:
        """Return the shape of a method's points, by its place in the file or, if it is not listed, by its name."""
        listed = list(self.entries["methods"])
        return MARKERS[(listed.index(method) if method in listed else _number(method)) % len(MARKERS)]

    def order(self, kind: str, names: Iterable[str]) -> list[str]:
        """Return the distinct names: those listed in their order, then the others by name."""
        names = set(names)
        known = [name for name in self.entries[kind] if name in names]
        return known + sorted(names.difference(known))

    def is_control(self, method: str) -> bool:
        """Return whether a method only marks the range of the metrics."""
        return self.entry("methods", method).get("control", False)

    def is_ablation(self, variant: str) -> bool:
        """Return whether a variant lacks a part of its method."""
        return self.entry("variants", variant).get("ablation", False)

    def name(self, method: str, variant: str) -> str:
        """Return the label of a method's variant; the default variant has the label of its method."""
        label = self.label("methods", method)
        return label if variant == "default" else f"{label}, {self.label('variants', variant)}"

    def methods(self, table: pd.DataFrame, controls: bool = False, ablations: bool = False) -> pd.DataFrame:
        """Return labels, colours and markers for the methods of a table, in the order of display.

        Returns
        -------
        DataFrame
            One row per method and variant, with the columns ``method``, ``variant``, ``label``, ``color`` and
            ``marker``. The index ``row`` is the column that `tables.keyed` adds to a table. Controls are left out,
            unless there is nothing else.
        """
        rows = []
        for method in self.order("methods", table["method"]):
            for variant in self.order("variants", table.loc[table["method"] == method, "variant"]):
                color = self.color("methods", method)
                if self.is_ablation(variant):
                    if not ablations:
                        continue
                    color = self.color("variants", variant)
                label = self.name(method, variant)
                rows.append([f"{method}/{variant}", method, variant, label, color, self.marker(method)])
        found = pd.DataFrame(rows, columns=["row", "method", "variant", "label", "color", "marker"]).set_index("row")
        is_control = found["method"].map(self.is_control).astype(bool)
        return found if controls or is_control.all() else found[~is_control]

    def cell_type_colors(self, types: Iterable[str]) -> dict[str, str]:
        """Return a colour per cell type, the same for every method on a data set."""
        palette = self.entries["cell_type_palette"]
        return {name: palette[i % len(palette)] for i, name in enumerate(sorted(set(types)))}


def _number(name: str) -> int:
    """Return a number that depends only on a name, and is the same on every machine."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16)
