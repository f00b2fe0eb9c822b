"""Draw the pictures of the documents that show data: the data sets, and the recorded results.

``docs/pictures/datasets.svg`` shows ``config/datasets``, and ``results.png`` shows the numbers of ``docs/results``.
``umap.png`` and ``pairing.png`` are figures of runs that docs/results.md names. ``model.svg`` and ``workflow.svg`` are
drawn by hand.
"""

import hashlib
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from clue.benchmark.config import load
from clue.benchmark.files import atomic
from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables

PICTURES = Path("docs", "pictures")
RESULTS = Path("docs", "results")
RUNS = ("spaces", "baselines", "quick")
"""Runs to show, if they are recorded; a later run adds only what the earlier ones lack."""
SPLITS_OF = "baselines"
"""The run whose splits are shown: the one that has all methods."""
SCORES = tables.MAIN_METRICS
MODALITIES = ("rna", "atac", "adt")
PAPER = "#ffffff"


def main() -> None:
    """Run the program in the project folder."""
    apply_style()
    display = style.Display(Path("config", "display.yaml"))
    sizes, scores = data_sets(), recorded(display)
    write(datasets(sizes, display), PICTURES / "datasets.svg", {"Date": None, "Description": fingerprint(sizes)})
    write(results(scores, display), PICTURES / "results.png", {"Source": fingerprint(scores)})


def apply_style() -> None:
    """Set the style of figures, so that the same input gives the same file; outlined letters are equal everywhere."""
    style.apply()
    plt.rcParams.update({"svg.hashsalt": "clue", "svg.fonttype": "path"})


def write(figure: Figure, path: Path, metadata: dict[str, str | None]) -> None:
    """Write a picture on white, so that it can be read on a dark page as well."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], dpi=190, facecolor=PAPER, metadata=metadata)
    plt.close(figure)
    print(f"wrote {path}")


def fingerprint(shown: pd.DataFrame) -> str:
    """Return a fingerprint of the numbers in a picture, which is stored in its file."""
    return hashlib.sha256(shown.to_csv(index=False).encode()).hexdigest()[:16]


# ---- the data sets ---------------------------------------------------------------------------------


def data_sets() -> pd.DataFrame:
    """Return a row per data set, the largest first: cells, features of each modality, where the data come from."""
    rows = []
    for path in sorted(Path("config", "datasets").glob("*.yaml")):
        spec = load("datasets", path.stem)
        places = [spec["size"], spec.get("expect", {}), spec.get("prepare", {}).get("arguments", {})]
        n_cells, n_features = (next((x[key] for x in places if key in x), None) for key in ("n_cells", "n_features"))
        if n_cells and n_features:
            package = spec.get("source", {}).get("package")
            source = spec.get("accession") or (f"package {package}" if package else "clue.simulate")
            gigabytes = spec["size"].get("download_gb")
            download = f", {gigabytes:g} GB" if gigabytes else ""
            rows.append({"label": spec["label"], "cells": n_cells, "source": source + download, **n_features})
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
        right.text(1.03, y, source, transform=right.get_yaxis_transform(), va="center", color=style.MUTED)
    left.set(xscale="log", xlim=(200, 6e5), xlabel="cells", ylabel="")
    right.set(xscale="log", xlim=(60, 1e6), xlabel="features", axisbelow=True)
    right.grid(axis="y", color="#e6e6e6", linewidth=0.6)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0, labelsize=8.5)
        axes.minorticks_off()
        # 100k: powers of ten need formulas, which are off since names may have a dollar sign
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
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
        if display.entry("metrics", metric)["better"] == "lower":  # good values lie close together near 0
            axes.set(xscale="log", xlim=(0.8 * scores[metric].min(), 0.8))
            axes.set_xticks([0.01, 0.1, 0.5], ["0.01", "0.1", "0.5"])
            axes.minorticks_off()
        else:
            axes.set_xlim(0, 1.06 * (here[metric] + here[f"{metric}_sd"].fillna(0)).max())
            axes.locator_params(axis="x", nbins=3)
    note = "Mean over seeds; bars: one standard deviation, where it is known. Filled: 3 seeds or more, hollow: fewer."
    plots.add_notes(figure, [f"{note} –: not run. FOSCTTM is on a logarithmic scale."])
    return figure


def short(method: str, variant: str, display: style.Display) -> str:
    """Return a short label for the margin. Variants, and labels with a long remark in brackets, lose the remark."""
    label = display.label("methods", method)
    head, _, remark = label.partition(" (")
    if variant != "default":
        return f"{head}, {display.label('variants', variant)}"
    return head if len(remark) > len("our implementation)") else label


if __name__ == "__main__":
    run_program(main)
