"""Draw the pictures of the documents: the model, the workflow, the data sets, and the recorded results.

``docs/pictures/model.svg`` and ``workflow.svg`` are drawn from nothing but this file. ``datasets.svg`` shows
``config/datasets``, ``results.png`` the numbers of ``docs/results``. The other pictures there are figures of a run:
docs/results.md says of which.
"""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from clue.benchmark.config import load
from clue.benchmark.errors import run_program
from clue.benchmark.files import atomic
from clue.benchmark.report import style, tables
from clue.benchmark.report.style import INK, MUTED
from clue.benchmark.running.cost import size_of

PICTURES = Path("docs", "pictures")
RESULTS = Path("docs", "results")
RUNS = ("spaces", "baselines", "quick")
"""Results to show, where they are recorded; a later run adds only what the earlier ones lack."""
SPLITS_OF = "baselines"
"""The run whose splits are shown: the one that has all methods."""
SCORES = ("match_score", "foscttm")
MODALITIES = ("rna", "atac", "adt")
PAPER, SHADE = "#ffffff", "#f1f3f5"
DISCRIMINATOR = "#9d4e76"
DASHED = (0, (2, 1.5))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program in the project folder."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    style.apply()
    # The same input gives the same file; letters as outlines look the same on every machine.
    plt.rcParams.update({"svg.hashsalt": "clue", "svg.fonttype": "path", "font.size": 10, "text.parse_math": True})
    display = style.Display(Path("config", "display.yaml"))
    print(f"wrote {write(model(display), PICTURES / 'model.svg', {'Date': None})}")
    print(f"wrote {write(workflow(display), PICTURES / 'workflow.svg', {'Date': None})}")
    sizes = data_sets()
    of_sizes = {"Date": None, "Description": fingerprint(sizes)}
    print(f"wrote {write(datasets(sizes, display), PICTURES / 'datasets.svg', of_sizes)}")
    scores = recorded(display)
    print(f"wrote {write(results(scores, display), PICTURES / 'results.png', {'Source': fingerprint(scores)})}")


def write(figure: Figure, path: Path, metadata: dict[str, str | None]) -> Path:
    """Write a picture on white, so that it can be read on a dark page as well."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, facecolor=PAPER, metadata=metadata)
    plt.close(figure)
    return path


# ---- drawing ---------------------------------------------------------------------------------------


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure whose coordinates are inches from its lower left corner."""
    figure = plt.figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str = MUTED, **look) -> None:
    """Draw a rounded box around its centre; `look` may set fill, style, weight and size."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=look.get("fill", PAPER),
            edgecolor=color,
            linewidth=look.get("weight", 1.2),
            linestyle=look.get("style", "-"),
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=look.get("size", 10), linespacing=1.35, color=INK)


def trapezium(axes: Axes, x: float, y: float, left: float, right: float, width: float, text: str, color: str) -> None:
    """Draw an encoder, which narrows to the right, or a decoder, which widens."""
    corners = [(-width / 2, -left / 2), (-width / 2, left / 2), (width / 2, right / 2), (width / 2, -right / 2)]
    axes.add_patch(Polygon([(x + dx, y + dy) for dx, dy in corners], facecolor=PAPER, edgecolor=color, linewidth=1.4))
    axes.text(x, y, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = MUTED, **look) -> None:
    """Draw an arrow; `look` may set its style and how it bends."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=look.get("head", "-|>"),
            mutation_scale=9,
            color=color,
            linewidth=1.2,
            linestyle=look.get("style", "-"),
            connectionstyle=look.get("bend", "arc3"),
            shrinkA=0,
            shrinkB=0,
        )
    )


def say(axes: Axes, x: float, y: float, text: str, **look) -> None:
    """Write a line beside what it explains."""
    axes.text(
        x, y, text, **{"ha": "center", "va": "center", "fontsize": 9.5, "color": MUTED, "linespacing": 1.35} | look
    )


# ---- the model -------------------------------------------------------------------------------------


def model(display: style.Display) -> Figure:
    """Draw K = 3 modalities from their counts to the embedding and back, and what else reads it."""
    figure, axes = canvas(10, 5.2)
    colors = [display.color("modalities", name) for name in MODALITIES]
    rows = (4.15, 3.2, 2.25)
    cell = 0.46  # the side of a subspace
    for title, x in (("counts", 0.75), ("encoders", 2.15), ("z from one modality", 4.15), ("z of the cell", 6.15)):
        say(axes, x, 4.92, title, color=INK, weight="bold")
    say(axes, 7.75, 4.92, "decoders", color=INK, weight="bold")
    say(axes, 9.2, 4.92, "counts", color=INK, weight="bold")

    for k, (name, y, color) in enumerate(zip(MODALITIES, rows, colors, strict=True)):
        label = display.label("modalities", name).replace(" (ADT)", "")
        box(axes, 0.75, y, 1.15, 0.6, f"{label}  $x_{k + 1}$", color)
        arrow(axes, (1.33, y), (1.68, y), color)
        trapezium(axes, 2.15, y, 0.78, 0.46, 0.92, f"$q(z \\mid x_{k + 1})$", color)
        arrow(axes, (2.62, y), (3.38, y), color)
        for j, own in enumerate(colors):
            x = 4.15 + (j - 1) * (cell + 0.05)
            solid = j == k
            box(
                axes,
                x,
                y,
                cell,
                cell,
                f"$z_{j + 1}$",
                own,
                fill=own + ("40" if solid else "12"),
                style="-" if solid else DASHED,
                weight=2 if solid else 1.1,
            )
        arrow(axes, (4.95, y), (5.86, 3.2 + (1 - k) * 0.3), MUTED)
        box(axes, 6.15, 3.2 + (1 - k) * (cell + 0.05), cell, cell, f"$z_{k + 1}$", color, fill=color + "40", weight=2)
        arrow(axes, (6.42, 3.2 + (1 - k) * (cell + 0.05)), (7.26, y), color)
        trapezium(axes, 7.75, y, 0.46, 0.78, 0.92, f"$p(x_{k + 1} \\mid z_{k + 1})$", color)
        arrow(axes, (8.22, y), (8.62, y), color)
        box(axes, 9.2, y, 1.15, 0.6, f"{label}  $x_{k + 1}$", color)

    say(axes, 5.5, 4.4, "mean over\nwhat is seen")
    outputs_of_the_model(axes)
    return figure


def outputs_of_the_model(axes: Axes) -> None:
    """Draw what reads encoders and embeddings besides the decoders, and the key."""
    arrow(axes, (2.15, 1.78), (2.15, 1.34))
    box(
        axes,
        2.0,
        0.94,
        2.9,
        0.8,
        "read-out, fitted after training:\ncanonical directions for matching",
        INK,
        fill=SHADE,
    )
    say(axes, 2.0, 0.32, "model.align", family="monospace", color=INK)
    arrow(axes, (4.15, 1.93), (4.15, 1.34))
    box(axes, 4.35, 0.94, 1.5, 0.8, "embedding of\nK subspaces", INK, fill=SHADE)
    say(axes, 4.35, 0.32, "model.embed", family="monospace", color=INK)
    arrow(axes, (4.66, 1.93), (5.9, 1.34), DISCRIMINATOR)
    fill = DISCRIMINATOR + "14"
    box(axes, 6.45, 0.94, 2.3, 0.8, "discriminator:\nwhich modality is it from?", DISCRIMINATOR, fill=fill)
    say(axes, 6.45, 0.32, "encoders learn to fool it")
    for y, kind, text in ((1.12, "-", "self-encoder"), (0.76, DASHED, "cross-encoder")):
        box(axes, 8.4, y, 0.26, 0.26, "", INK, fill="#26262630" if kind == "-" else PAPER, style=kind, weight=1.6)
        say(axes, 8.64, y, text, ha="left", color=INK)


# ---- the workflow ----------------------------------------------------------------------------------


def workflow(display: style.Display) -> Figure:
    """Draw the files from download to report, and which of them a method sees."""
    figure, axes = canvas(10, 4.1)
    blue, sealed = display.color("methods", "clue"), display.color("methods", "cobolt")
    top, middle, bottom = 3.2, 2.2, 1.1
    seen = FancyBboxPatch((3.95, 1.65), 4.2, 2.3, boxstyle="round,pad=0,rounding_size=0.1", fc=blue + "0d", ec="none")
    axes.add_patch(seen)
    say(axes, 6.05, 3.76, "all that a method sees", color=blue)

    box(axes, 0.9, middle, 1.55, 0.76, "download\nverified, resumed", fill=SHADE)
    arrow(axes, (1.68, middle), (2.02, middle))
    box(axes, 2.8, middle, 1.55, 0.76, "prepare and split\nraw counts", fill=SHADE)
    for y, height, text, color, kind in (
        (top, 0.66, "training cells\npaired, or partly", blue, "-"),
        (middle, 0.9, "test cells\none file per modality,\nshuffled and renamed", blue, "-"),
        (bottom, 0.66, "the pairing\nand labels, sealed", sealed, DASHED),
    ):
        arrow(axes, (3.58, middle + (y - middle) * 0.16), (4.08, y), color, style=kind)
        box(axes, 4.95, y, 1.72, height, text, color)
    arrow(axes, (5.82, top), (6.33, 2.95), blue)
    arrow(axes, (5.82, middle), (6.33, 2.5), blue)
    box(axes, 7.2, 2.7, 1.72, 1.3, "method\nCLUE, its ablations,\nbaselines, yours:\none function each", blue, weight=2)
    arrow(axes, (8.07, 2.7), (8.44, 2.7), blue)
    box(axes, 9.18, 2.7, 1.45, 0.76, "embedding\nof test cells", blue)
    arrow(axes, (9.18, 2.32), (9.18, 1.49), blue)
    box(axes, 9.18, bottom, 1.45, 0.76, "match, score\nsame for all", fill=SHADE)
    arrow(axes, (5.82, bottom), (8.44, bottom), sealed, style=DASHED)
    say(axes, 7.13, 1.28, "for scoring and figures alone", color=sealed)
    arrow(axes, (9.18, 0.72), (9.18, 0.46))
    box(axes, 7.6, 0.26, 4.6, 0.38, "metrics.tsv, figures, tables, report.html", fill=SHADE)
    return figure


# ---- the data sets ---------------------------------------------------------------------------------


def data_sets() -> pd.DataFrame:
    """Return a row per data set, the largest first: cells, features of each modality, where the data come from."""
    rows = []
    for path in sorted(Path("config", "datasets").glob("*.yaml")):
        spec = load("datasets", path.stem)
        if size := size_of(spec, None, None):
            source = spec.get("accession") or (
                f"package {spec['source']['package']}" if "package" in spec.get("source", {}) else "clue.simulate"
            )
            gigabytes = spec["size"].get("download_gb")
            download = f", {gigabytes:g} GB" if gigabytes else ""
            rows.append({"label": spec["label"], "cells": size.n_train, "source": source + download, **size.n_features})
    return pd.DataFrame(rows).sort_values("cells", ascending=False, ignore_index=True)


def datasets(sizes: pd.DataFrame, display: style.Display) -> Figure:
    """Plot how many cells and features each data set has, and say where it comes from."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 0.33 * len(sizes) + 1), sharey=True, layout="constrained")
    left.barh(sizes.index, sizes["cells"], color="#b8c4ce", height=0.6)
    for y, n in sizes["cells"].items():
        left.text(n * 1.12, y, f"{n:,}", va="center", fontsize=8)
    for modality in MODALITIES:
        look = {"color": display.color("modalities", modality), "label": display.label("modalities", modality)}
        right.plot(sizes[modality], sizes.index, "o", markersize=6, **look)
    for y, source in sizes["source"].items():
        right.axhline(y, color="#e6e6e6", linewidth=0.6, zorder=0)
        right.text(1.03, y, source, transform=right.get_yaxis_transform(), va="center", fontsize=8, color=MUTED)
    left.set(xscale="log", xlim=(200, 6e5), xlabel="cells", ylim=(len(sizes) - 0.5, -0.5))
    left.set_yticks(sizes.index, sizes["label"], fontsize=9)
    right.set(xscale="log", xlim=(60, 1e6), xlabel="features")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.minorticks_off()
    right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8, handletextpad=0.2)
    return figure


# ---- the results -----------------------------------------------------------------------------------


def results(scores: pd.DataFrame, display: style.Display) -> Figure:
    """Plot the scores of every method on every small data set: a column per data set, a row of panels per metric."""
    rows = [(m, v) for m in display.order("methods", scores["method"]) for v in variants(scores, m, display)]
    columns = list(dict.fromkeys(zip(scores["dataset"], scores["split"], strict=True)))
    figure, panels = plt.subplots(len(SCORES), len(columns), figsize=(10, 6.8), sharey=True, layout="constrained")
    for line, metric in zip(panels, SCORES, strict=True):
        for axes, (dataset, split) in zip(line, columns, strict=True):
            shown = scores[(scores["dataset"] == dataset) & (scores["split"] == split)]
            dots(axes, shown.set_index(["method", "variant"]), rows, metric, display)
            if metric == SCORES[0]:
                axes.set_title(f"{display.label('datasets', dataset)}\n{split}", fontsize=8.5)
        better = (
            "higher is better"
            if display.entry("metrics", metric)["better"] == "higher"
            else "lower is better, log scale"
        )
        line[0].set_ylabel(f"{display.label('metrics', metric)}\n({better})", fontsize=9)
        line[0].set_yticks(range(len(rows)), [short(*row, display) for row in rows], fontsize=9)
        line[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(
        "Mean over seeds; bars: one standard deviation, where it is known."
        " Filled: 3 seeds or more, hollow: fewer. –: not run.",
        fontsize=8,
        color=MUTED,
    )
    return figure


def recorded(display: style.Display) -> pd.DataFrame:
    """Return the scores of `RUNS` without ablations, which have a figure of their own; earlier runs go first."""
    numeric = [*SCORES, *(f"{metric}_sd" for metric in SCORES), "n"]
    files = {run: path for run in RUNS if (path := RESULTS / f"{run}.tsv").exists()}
    found = {run: tables.read_table(path, [*tables.JOB, *numeric], numeric=numeric) for run, path in files.items()}
    scores = found[SPLITS_OF][["dataset", "split"]].drop_duplicates().merge(pd.concat(found.values()))
    scores = scores.drop_duplicates(tables.JOB)
    return scores[~scores["variant"].map(display.is_ablation)].dropna(subset=list(SCORES), how="all")


def fingerprint(scores: pd.DataFrame) -> str:
    """Return what tells whether a picture shows these scores; its file says so."""
    return hashlib.sha256(scores.to_csv(index=False).encode()).hexdigest()[:16]


def variants(scores: pd.DataFrame, method: str, display: style.Display) -> list[str]:
    """Return the variants of a method in the order of figures."""
    return display.order("variants", scores.loc[scores["method"] == method, "variant"])


def short(method: str, variant: str, display: style.Display) -> str:
    """Return a label for the margin: of a variant, and where the remark in brackets is long, without that remark."""
    label = display.label("methods", method)
    head, _, remark = label.partition(" (")
    if variant != "default":
        return f"{head}, {display.label('variants', variant)}"
    return head if len(remark) > len("our implementation)") else label


def dots(axes: Axes, shown: pd.DataFrame, rows: list[tuple[str, str]], metric: str, display: style.Display) -> None:
    """Draw one panel: a dot and its spread for each method's variant."""
    for y, row in enumerate(rows):
        axes.axhline(y, color="#e6e6e6", linewidth=0.6, zorder=0)
        if row not in shown.index or pd.isna(shown.loc[row, metric]):
            axes.text(0.03, y, "–", transform=axes.get_yaxis_transform(), va="center", color=MUTED, fontsize=8)
            continue
        value, spread, n = shown.loc[row, [metric, f"{metric}_sd", "n"]]
        color = display.color("methods", row[0])
        look = {"color": color, "markerfacecolor": color if n >= 3 else PAPER, "markersize": 5, "elinewidth": 1.2}
        axes.errorbar(value, y, xerr=None if pd.isna(spread) else spread, fmt="o", **look)
    if display.entry("metrics", metric)["better"] == "lower":  # the good ones are close to each other near 0
        axes.set_xscale("log")
        axes.set_xlim(0.008, 0.8)
        axes.set_xticks([0.01, 0.1, 0.5], ["0.01", "0.1", "0.5"])
        axes.minorticks_off()
    else:
        axes.set_xlim(0, 1.12 * shown[metric].max())
        axes.locator_params(axis="x", nbins=3)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)


if __name__ == "__main__":
    matplotlib.use("Agg")
    run_program(main)
