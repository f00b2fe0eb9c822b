"""Draw the test cells of all modalities in one UMAP per method, coloured by modality and by cell type.

The program is not called umap.py, because that name would hide the package ``umap``.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.patheffects as effects
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clue.benchmark.contracts import metric_of, read_solution
from clue.benchmark.program import run_program
from clue.benchmark.report import plots, style, tables
from clue.benchmark.report.umap import coordinates, sampled

ROW_HEIGHT = 2.35
LEGEND_LINE = 0.14
NUMBER_SIZE = np.array([0.07, 0.055])
"""Width and height of a cell type's number, as shares of a panel."""
LEGEND_ROWS = 40
"""Entries per column of the legend."""


def embed_in_plane(paths: Sequence[Path], solution, n_points: int, seed: int) -> pd.DataFrame:
    """Return one row per point and embedding: method, variant, seed, cell, modality, cell type, x, y."""
    frames = []
    for chosen in sampled(paths, solution, n_points, seed):
        job = {key: str(chosen.uns[key]) for key in ("method", "variant", "seed")}
        frame = pd.DataFrame(coordinates(chosen.X, seed, metric_of(chosen)), columns=["x", "y"])
        groups = {key: chosen.obs[key].astype(str).to_numpy() for key in ("modality", "cell_type")}
        frames.append(frame.assign(**job, cell=chosen.obs_names.to_numpy(), **groups))
    columns = ["method", "variant", "seed", "cell", "modality", "cell_type", "x", "y"]
    return pd.concat(frames, ignore_index=True)[columns]


def draw_points(axis: Axes, frame: pd.DataFrame, by: str, colors: dict[str, str], seed: int) -> None:
    """Draw points in random order, so that no group covers another."""
    shuffled, label = frame.sample(frac=1, random_state=seed), axis.get_ylabel()
    look = {"linewidth": 0, "alpha": 0.8, "s": float(np.clip(6000 / len(frame), 1.5, 12)), "rasterized": True}
    sns.scatterplot(shuffled, x="x", y="y", hue=by, palette=colors, legend=False, ax=axis, **look)
    axis.set(xticks=[], yticks=[], xlabel="", ylabel=label, anchor="N")
    axis.spines[:].set_visible(False)
    axis.set_box_aspect(1)


def number_types(axis: Axes, frame: pd.DataFrame, numbers: dict[str, int]) -> None:
    """Write each type's number on the point nearest its median, frequent types first, unless it would cover another."""
    apart = NUMBER_SIZE * np.ptp(frame[["x", "y"]].to_numpy(), axis=0)
    numbered = np.empty((0, 2))
    for name in frame["cell_type"].value_counts().index:
        place = frame.loc[frame["cell_type"] == name, ["x", "y"]].to_numpy()
        middle = place[np.linalg.norm(place - np.median(place, axis=0), axis=1).argmin()]
        if not (np.abs(numbered - middle) < apart).all(axis=1).any():
            numbered = np.vstack([numbered, middle])
            text = axis.text(*middle, str(numbers[name]), fontsize=5.5, fontweight="bold", ha="center", va="center")
            text.set_path_effects([effects.withStroke(linewidth=1.5, foreground="white")])


def draw(frame: pd.DataFrame, title: str, derived: bool, notes: list[str], seed: int, display: style.Display) -> Figure:
    """Draw a row per method: points by modality on the left, by cell type in the middle, the legend on the right."""
    modalities = {name: display.color("modalities", name) for name in display.order("modalities", frame["modality"])}
    colors = {"modality": modalities, "cell_type": display.cell_type_colors(frame["cell_type"])}
    numbers = {name: i for i, name in enumerate(colors["cell_type"], start=1)}
    titles = {"modality": "Modality", "cell_type": "Cell type (derived)" if derived else "Cell type"}
    entries = [(titles["modality"], "none", "")]
    entries += [(display.label("modalities", name), color, "o") for name, color in modalities.items()]
    entries += [("", "none", ""), (titles["cell_type"], "none", "")]
    entries += [(f"{number}  {name}", colors["cell_type"][name], "o") for name, number in numbers.items()]
    legend = pd.DataFrame(entries, columns=["label", "color", "marker"])
    rows = {row.method: plots.shorten(row.label) for row in display.methods(frame).itertuples()}
    columns = {by: f"by {text[0].lower()}{text[1:]}" for by, text in titles.items()}
    figure, axes = plots.panels(rows, columns, ROW_HEIGHT)
    n_columns = -(-len(legend) // LEGEND_ROWS)
    height = max(ROW_HEIGHT * len(rows), LEGEND_LINE * len(legend) / n_columns) + 0.6
    figure.set_size_inches(style.PAGE, height)
    for (method, by), axis in axes.items():
        here = tables.rows_of(frame, method=method)
        draw_points(axis, here, by, colors[by], seed)
        if by == "cell_type":
            number_types(axis, here, numbers)
    plots.add_legend(figure, legend, LEGEND_ROWS)
    figure.suptitle(plots.shorten(title, int(11 * figure.get_figwidth())), fontsize=8.5)
    plots.add_notes(figure, notes)
    return figure


def describe(n_cells: int, n_drawn: int, seed: str, labels: str) -> list[str]:
    """Return sentences that say what is drawn."""
    sample = f"{n_drawn:,} of {n_cells:,} test cells, drawn at random"
    sample = sample if n_drawn < n_cells else f"{n_cells:,} test cells"
    line = f"UMAP of the embeddings of seed {seed}: {sample}; each is one point per modality. "
    line += "The number of a rare cell type is left out if it would cover another."
    return [line] if labels == "published" else [line, f"Cell types are not published but {labels}."]


def main(
    solution: Path, embeddings: list[Path], points: int, seed: int, display: style.Display, table: Path, figure: Path
) -> None:
    """Run the program.

    Parameters
    ----------
    embeddings
        embedding.h5ad of each method.
    points
        Draw a sample if there are more points.
    seed
        Seed of the sample and of UMAP.
    """
    sealed = read_solution(solution)
    frame = embed_in_plane(embeddings, sealed, points, seed)
    tables.write_table(frame, table, digits=5)
    labels, n_drawn = str(sealed.uns["labels"]), frame["cell"].nunique() // len(sealed.uns["modalities"])
    notes = describe(sealed.n_obs, n_drawn, ", ".join(sorted(set(frame["seed"]))), labels)
    title = plots.split_title(sealed, display)
    plots.write_figure(figure, draw, frame, title, labels != "published", notes, seed, display)


if __name__ == "__main__":
    run_program(main)
