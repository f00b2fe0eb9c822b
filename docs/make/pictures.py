"""Draw the pictures of the documents: the model, the workflow, the data sets, and the recorded results.

``docs/pictures/model.svg`` and ``workflow.svg`` are drawn from nothing but this file. ``datasets.svg`` shows
``config/datasets``, ``results.png`` the numbers of ``docs/results``. The other pictures there are figures of a run:
docs/results.md says of which.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import BoxStyle, FancyArrowPatch
from matplotlib.path import Path as Outline
from matplotlib.text import Text

from clue.benchmark.config import load
from clue.benchmark.files import atomic
from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.style import INK, MUTED
from clue.benchmark.running.cost import size_of

PICTURES = Path("docs", "pictures")
RESULTS = Path("docs", "results")
RUNS = ("spaces", "baselines", "quick")
"""Results to show, where they are recorded; a later run adds only what the earlier ones lack."""
SPLITS_OF = "baselines"
"""The run whose splits are shown: the one that has all methods."""
SCORES = tables.MAIN_METRICS
MODALITIES = ("rna", "atac", "adt")
PAPER, SHADE = "#ffffff", "#f1f3f5"
DISCRIMINATOR = "#9d4e76"
DASHED = (0, (2, 1.5))


def main() -> None:
    """Run the program in the project folder."""
    apply_style()
    display = style.Display(Path("config", "display.yaml"))
    sizes, scores = data_sets(), recorded(display)
    write(model(display), PICTURES / "model.svg", {"Date": None})
    write(workflow(display), PICTURES / "workflow.svg", {"Date": None})
    write(datasets(sizes, display), PICTURES / "datasets.svg", {"Date": None, "Description": fingerprint(sizes)})
    write(results(scores, display), PICTURES / "results.png", {"Source": fingerprint(scores)})


def apply_style() -> None:
    """Set the style of figures; the same input gives the same file, and letters are outlines, the same everywhere."""
    style.apply()
    plt.rcParams.update({"svg.hashsalt": "clue", "svg.fonttype": "path", "text.parse_math": True})


def write(figure: Figure, path: Path, metadata: dict[str, str | None]) -> None:
    """Write a picture on white, so that it can be read on a dark page as well."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=190, facecolor=PAPER, metadata=metadata)
    plt.close(figure)
    print(f"wrote {path}")


def fingerprint(shown: pd.DataFrame) -> str:
    """Return what tells whether a picture shows these numbers; its file says so."""
    return hashlib.sha256(shown.to_csv(index=False).encode()).hexdigest()[:16]


# ---- boxes and arrows ------------------------------------------------------------------------------


class Diagram:
    """Boxes with text at places in inches from the lower left corner, and arrows from the edge of one to another."""

    def __init__(self, width: float, height: float):
        self.figure = plt.figure(figsize=(width, height))
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        self.axes.axis("off")

    def say(self, x: float, y: float, text: str, **look) -> Text:
        """Write a text around its centre."""
        given = {"ha": "center", "va": "center", "fontsize": 9.5, "color": MUTED, "linespacing": 1.35} | look
        return self.axes.text(x, y, text, **given)

    def box(self, x: float, y: float, text: str, size: tuple, color: str = MUTED, **look) -> Text:
        """Draw a box in a colour; `look` may set its fill, line style and width. Return it for `arrow`."""
        frame = {"boxstyle": outline(*size), "facecolor": PAPER, "edgecolor": color, "linewidth": 1.2} | look
        return self.say(x, y, text, fontsize=10, color=INK, bbox=frame)

    def arrow(self, start: Text, end: Text, color: str = MUTED, style: str | tuple = "-") -> None:
        """Draw an arrow between two boxes, above both."""
        look = {"arrowstyle": "-|>", "mutation_scale": 9, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 2, "zorder": 4}
        look |= {"patchA": start.get_bbox_patch(), "patchB": end.get_bbox_patch(), "color": color, "linestyle": style}
        self.axes.add_patch(FancyArrowPatch(start.get_position(), end.get_position(), **look))


def outline(width: float, height: float, right: float | None = None) -> Callable:
    """Return the outline of a box, in units of its letters: rounded, or tapered to the height `right` on the right."""

    def path(x: float, y: float, text_width: float, text_height: float, em: float) -> Outline:
        x, y = x + text_width / 2, y + text_height / 2
        half, up = width * em / 2, height * em / 2
        if right is None:
            return BoxStyle.Round(pad=0, rounding_size=0.4)(x - half, y - up, 2 * half, 2 * up, em)
        end = right * em / 2
        corners = [(x - half, y - up), (x - half, y + up), (x + half, y + end), (x + half, y - end)]
        return Outline([*corners, corners[0]], closed=True)

    return path


def model(display: style.Display) -> Figure:
    """Draw K = 3 modalities from their counts to the embedding and back, and what else reads it."""
    draw = Diagram(10, 5.2)
    columns = {0.75: "counts", 2.15: "encoders", 4.15: "z from one modality", 6.15: "z of the cell"}
    for x, title in (columns | {7.75: "decoders", 9.2: "counts"}).items():
        draw.say(x, 4.92, title, color=INK, weight="bold")
    draw.say(5.5, 4.4, "mean over\nwhat is seen")
    colors = [display.color("modalities", name) for name in MODALITIES]
    counts, subspace = (8.3, 4.3), (3.3, 3.3)
    for k, (name, color) in enumerate(zip(MODALITIES, colors, strict=True)):
        y, middle = 4.15 - 0.95 * k, 3.2 + 0.51 * (1 - k)
        label = f"{display.label('modalities', name).replace(' (ADT)', '')}  $x_{k + 1}$"
        encoder = draw.box(2.15, y, f"$q(z \\mid x_{k + 1})$", (6.6, 5.6, 3.3), color)
        subspaces = [
            draw.box(3.64 + 0.51 * j, y, f"$z_{j + 1}$", subspace, own, **self_or_cross(j == k, own))
            for j, own in enumerate(colors)
        ]
        whole = draw.box(6.15, middle, f"$z_{k + 1}$", subspace, color, **self_or_cross(True, color))
        decoder = draw.box(7.75, y, f"$p(x_{k + 1} \\mid z_{k + 1})$", (6.6, 3.3, 5.6), color)
        draw.arrow(draw.box(0.75, y, label, counts, color), encoder, color)
        draw.arrow(encoder, subspaces[0], color)
        draw.arrow(subspaces[-1], whole)
        draw.arrow(whole, decoder, color)
        draw.arrow(decoder, draw.box(9.2, y, label, counts, color), color)
    text = "read-out, fitted after training:\ncanonical directions for matching"
    read_out = draw.box(2.15, 0.94, text, (19.2, 5.8), INK, facecolor=SHADE)
    embedding = draw.box(4.15, 0.94, "embedding of\nK subspaces", (8.9, 5.8), INK, facecolor=SHADE)
    text, fill = "discriminator:\nwhich modality is it from?", DISCRIMINATOR + "14"
    discriminator = draw.box(6.45, 0.94, text, (16.6, 5.8), DISCRIMINATOR, facecolor=fill)
    draw.arrow(encoder, read_out)  # of the last row
    draw.arrow(subspaces[1], embedding)
    draw.arrow(subspaces[2], discriminator, DISCRIMINATOR)
    draw.say(2.15, 0.32, "model.align", family="monospace", color=INK)
    draw.say(4.15, 0.32, "model.embed", family="monospace", color=INK)
    draw.say(6.45, 0.32, "encoders learn to fool it")
    for y, own, text in ((1.12, True, "self-encoder"), (0.76, False, "cross-encoder")):
        draw.box(8.4, y, " ", (1.9, 1.9), INK, **self_or_cross(own, INK))
        draw.say(8.64, y, text, ha="left", color=INK)
    return draw.figure


def self_or_cross(own: bool, color: str) -> dict:
    """Return how a subspace looks: filled where its own modality encodes it, else dashed."""
    return {"facecolor": color + "40", "linewidth": 2} if own else {"facecolor": color + "12", "linestyle": DASHED}


def workflow(display: style.Display) -> Figure:
    """Draw the files from download to report, and which of them a method sees."""
    draw = Diagram(10, 4.1)
    blue, sealed = display.color("methods", "clue"), display.color("methods", "cobolt")
    draw.box(6.05, 2.8, " ", (30.2, 16.6), "none", facecolor=blue + "0d")
    draw.say(6.05, 3.76, "all that a method sees", color=blue)
    draw.say(7.13, 1.28, "for scoring and figures alone", color=sealed)
    step, file = (11.2, 6.6), (12.4, 6.2)
    download = draw.box(0.9, 2.2, "download\nverified, resumed", step, facecolor=SHADE)
    prepare = draw.box(2.8, 2.2, "prepare and split\nraw counts", step, facecolor=SHADE)
    train = draw.box(4.95, 3.2, "training cells\npaired, or partly", file, blue)
    test = draw.box(4.95, 2.2, "test cells\none file per modality,\nshuffled and renamed", (12.4, 6.6), blue)
    pairing = draw.box(4.95, 1.1, "the pairing\nand labels, sealed", file, sealed, linestyle=DASHED)
    text = "method\nCLUE, its ablations,\nbaselines, yours:\none function each"
    method = draw.box(7.2, 2.7, text, (12.4, 9.4), blue, linewidth=2)
    embedding = draw.box(9.18, 2.7, "embedding\nof test cells", (10.4, 5.5), blue)
    score = draw.box(9.18, 1.1, "match, score\nsame for all", (10.4, 5.5), facecolor=SHADE)
    report = draw.box(9.18, 0.26, " ", (10.4, 2.7), "none", facecolor="none")
    draw.box(7.6, 0.26, "metrics.tsv, figures, tables, report.html", (33.1, 2.7), facecolor=SHADE)
    for start, end, color in (
        (download, prepare, MUTED),
        (prepare, train, blue),
        (prepare, test, blue),
        (train, method, blue),
        (test, method, blue),
        (method, embedding, blue),
        (embedding, score, blue),
        (score, report, MUTED),
    ):
        draw.arrow(start, end, color)
    draw.arrow(prepare, pairing, sealed, DASHED)
    draw.arrow(pairing, score, sealed, DASHED)
    return draw.figure


# ---- the data sets ---------------------------------------------------------------------------------


def data_sets() -> pd.DataFrame:
    """Return a row per data set, the largest first: cells, features of each modality, where the data come from."""
    rows = []
    for path in sorted(Path("config", "datasets").glob("*.yaml")):
        spec = load("datasets", path.stem)
        if size := size_of(spec, None, None):
            package = spec.get("source", {}).get("package")
            source = spec.get("accession") or (f"package {package}" if package else "clue.simulate")
            gigabytes = spec["size"].get("download_gb")
            download = f", {gigabytes:g} GB" if gigabytes else ""
            rows.append({"label": spec["label"], "cells": size.n_train, "source": source + download, **size.n_features})
    return pd.DataFrame(rows).sort_values("cells", ascending=False, ignore_index=True)


def datasets(sizes: pd.DataFrame, display: style.Display) -> Figure:
    """Plot how many cells and features each data set has, and say where it comes from."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 0.29 * len(sizes) + 0.9), sharey=True, layout="constrained")
    sns.barplot(sizes, x="cells", y="label", color="#b8c4ce", ax=left)
    left.bar_label(left.containers[0], fmt="{:,.0f}", padding=2)
    names = {display.label("modalities", name): display.color("modalities", name) for name in MODALITIES}
    features = sizes.rename(columns=dict(zip(MODALITIES, names, strict=True))).melt("label", list(names))
    sns.stripplot(features, x="value", y="label", hue="variable", palette=names, jitter=False, size=5, ax=right)
    sns.move_legend(right, "lower left", bbox_to_anchor=(0, 1), ncols=3, title=None, frameon=False, handletextpad=0.1)
    for y, source in sizes["source"].items():
        right.text(1.03, y, source, transform=right.get_yaxis_transform(), va="center", color=MUTED)
    left.set(xscale="log", xlim=(200, 6e5), xlabel="cells", ylabel="")
    right.set(xscale="log", xlim=(60, 1e6), xlabel="features", axisbelow=True)
    right.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0, labelsize=8.5)
        axes.minorticks_off()
    return figure


# ---- the results -----------------------------------------------------------------------------------


def recorded(display: style.Display) -> pd.DataFrame:
    """Return the scores of `RUNS` without ablations, which have a figure of their own; earlier runs go first."""
    numeric = [*SCORES, *(f"{metric}_sd" for metric in SCORES), "n"]
    files = {run: path for run in RUNS if (path := RESULTS / f"{run}.tsv").exists()}
    found = {run: tables.read_table(path, [*tables.JOB, *numeric], numeric=numeric) for run, path in files.items()}
    scores = found[SPLITS_OF][["dataset", "split"]].drop_duplicates().merge(pd.concat(found.values()))
    scores = scores.drop_duplicates(tables.JOB)
    return scores[~scores["variant"].map(display.is_ablation)].dropna(subset=list(SCORES), how="all")


def results(scores: pd.DataFrame, display: style.Display) -> Figure:
    """Plot the scores of every method on every small data set: a column per data set, a row of panels per metric."""
    methods = display.methods(scores, controls=True)
    methods = methods.assign(label=[short(row.method, row.variant, display) for row in methods.itertuples()])
    scores = tables.keyed(scores)
    columns, rows = plots.titles(tables.panels(scores), display), plots.metric_labels(SCORES, display)
    figure, panels = plots.panels(rows, columns, plots.rows_height(methods))
    for (metric, panel), axes in panels.items():
        here = tables.rows_of(scores, panel=panel).set_index("row").reindex(methods.index)
        for y, (row, color) in enumerate(methods["color"].items()):
            face = color if here["n"][row] >= 3 else PAPER
            look = {"fmt": "o", "color": color, "markerfacecolor": face, "markersize": 3.6, "elinewidth": 1}
            axes.errorbar(here[metric][row], y, xerr=here[f"{metric}_sd"].fillna(0)[row], **look)
        plots.method_rows(axes, methods, missing=dict.fromkeys(here.index[here[metric].isna()], "–"))
        if display.entry("metrics", metric)["better"] == "lower":  # the good ones are close to each other near 0
            axes.set(xscale="log", xlim=(0.008, 0.8))
            axes.set_xticks([0.01, 0.1, 0.5], ["0.01", "0.1", "0.5"])
            axes.minorticks_off()
        else:
            axes.set_xlim(0, 1.12 * here[metric].max())
            axes.locator_params(axis="x", nbins=3)
    note = "Mean over seeds; bars: one standard deviation, where it is known. Filled: 3 seeds or more, hollow: fewer."
    plots.add_notes(figure, [f"{note} –: not run. FOSCTTM is on a logarithmic scale."])
    return figure


def short(method: str, variant: str, display: style.Display) -> str:
    """Return a label for the margin: of a variant, and where the remark in brackets is long, without that remark."""
    label = display.label("methods", method)
    head, _, remark = label.partition(" (")
    if variant != "default":
        return f"{head}, {display.label('variants', variant)}"
    return head if len(remark) > len("our implementation)") else label


if __name__ == "__main__":
    run_program(main)
