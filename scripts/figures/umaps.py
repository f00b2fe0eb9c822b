"""Draw the test cells of all modalities in one UMAP per method, coloured by modality and by cell type.

Its name is not that of the package ``umap``, which a program beside it would hide.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib.patheffects as effects
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from tqdm import tqdm

from clue.benchmark import plots, style
from clue.benchmark.contracts import metric_of, read_embedding, read_solution
from clue.benchmark.errors import run_program
from clue.benchmark.files import atomic
from clue.benchmark.umap import coordinates, points, sample_cells

ROW_HEIGHT = 2.35
LEGEND_LINE = 0.135
NUMBER_SIZE = np.array([0.07, 0.055])
"""Width and height of a cell type's number, as shares of a panel."""
LEGEND_ROWS = 40
"""Cell types per column of the legend."""


def embed_in_plane(paths: Sequence[str], solution_path: str, n_points: int, seed: int) -> pd.DataFrame:
    """Return one row per point and embedding: method, variant, seed, cell, modality, cell type, x, y."""
    solution = read_solution(solution_path)
    cells = sample_cells(solution, n_points, seed)
    frames = []
    for path in tqdm(paths, desc="UMAP", unit="embedding", mininterval=1):
        embedding = read_embedding(path)
        chosen = points(embedding, cells, list(solution.uns["modalities"]), path)
        x, y = coordinates(chosen.X, seed, metric_of(chosen)).T
        frame = pd.DataFrame({key: str(chosen.uns[key]) for key in ("method", "variant", "seed")}, index=range(len(x)))
        frame["cell"] = chosen.obs_names.to_numpy()
        frame["modality"] = chosen.obs["modality"].astype(str).to_numpy()
        frame["cell_type"] = chosen.obs["cell_type"].to_numpy()
        frames.append(frame.assign(x=x, y=y))
    return pd.concat(frames, ignore_index=True)


# ---- drawing -------------------------------------------------------------------------------------


def draw_points(axis: Axes, frame: pd.DataFrame, colors: Sequence[str], seed: int) -> None:
    """Draw points in random order, so that no group covers another."""
    order = np.random.default_rng(seed).permutation(len(frame))
    size = float(np.clip(6000 / len(frame), 1.5, 12))
    axis.scatter(
        frame["x"].to_numpy()[order],
        frame["y"].to_numpy()[order],
        c=np.asarray(colors)[order],
        s=size,
        linewidth=0,
        alpha=0.8,
        rasterized=True,
    )
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_box_aspect(1)
    axis.set_anchor("N")


def number_types(axis: Axes, frame: pd.DataFrame, numbers: dict[str, int]) -> None:
    """Write each type's number on the point nearest its median, the most frequent first; none over another."""
    apart = NUMBER_SIZE * np.ptp(frame[["x", "y"]].to_numpy(), axis=0)
    taken = np.empty((0, 2))
    for name in frame["cell_type"].value_counts().index:
        place = frame.loc[frame["cell_type"] == name, ["x", "y"]].to_numpy()
        middle = place[np.linalg.norm(place - np.median(place, axis=0), axis=1).argmin()]
        if (np.abs(taken - middle) < apart).all(axis=1).any():
            continue
        taken = np.vstack([taken, middle])
        text = axis.text(*middle, str(numbers[name]), fontsize=5.5, fontweight="bold", ha="center", va="center")
        text.set_path_effects([effects.withStroke(linewidth=1.5, foreground="white")])


def add_legends(axis: Axes, modalities: dict[str, str], types: dict[str, str], numbers: dict[str, int], title: str):
    """Put the legends of both colourings in an axis of their own."""
    axis.axis("off")

    def handles(colors: dict[str, str]) -> list[Line2D]:
        return [Line2D([], [], marker="o", linestyle="", markersize=4, color=color) for color in colors.values()]

    look = {"frameon": False, "alignment": "left", "borderaxespad": 0, "handletextpad": 0.3, "labelspacing": 0.3}
    first = axis.legend(handles(modalities), modalities, title="Modality", loc="upper left", **look)
    axis.add_artist(first)
    below = (0.18 * (len(modalities) + 1) + 0.2) / axis.figure.get_figheight()
    axis.legend(
        handles(types),
        [f"{numbers[name]}  {plots.shorten(name, 30)}" for name in types],
        title=title,
        loc="upper left",
        bbox_to_anchor=(0, 1 - below),
        ncols=legend_columns(len(types)),
        **look,
    )


def legend_columns(n_types: int) -> int:
    """Return into how many columns a legend of cell types goes."""
    return -(-n_types // LEGEND_ROWS)


def draw(frame: pd.DataFrame, title: str, derived: bool, notes: list[str], display: style.Display, seed: int):
    """Draw a row per method; points by modality on the left, by cell type in the middle, legends on the right."""
    style.apply()
    types = display.cell_type_colors(frame["cell_type"])
    numbers = {name: i for i, name in enumerate(types, start=1)}
    modalities = {name: display.color("modalities", name) for name in display.order("modalities", frame["modality"])}
    methods = display.order("methods", frame["method"])
    legend_rows = -(-len(types) // legend_columns(len(types)))
    height = max(ROW_HEIGHT * len(methods), LEGEND_LINE * legend_rows + 1.0) + 0.6
    figure = plt.figure(figsize=(style.PAGE, height), layout="constrained")
    layout = figure.add_gridspec(len(methods), 3, width_ratios=[1, 1, 0.85])
    for row, method in enumerate(methods):
        here = frame[frame["method"] == method]
        left, middle = (figure.add_subplot(layout[row, column]) for column in range(2))
        draw_points(left, here, here["modality"].map(modalities).tolist(), seed)
        draw_points(middle, here, here["cell_type"].map(types).tolist(), seed)
        number_types(middle, here, numbers)
        left.set_ylabel(display.name(method, here["variant"].iloc[0]), fontsize=8)
        if row == 0:
            left.set_title("by modality")
            middle.set_title("by cell type" + (" (derived)" if derived else ""))
    named = {display.label("modalities", name): color for name, color in modalities.items()}
    legend = figure.add_subplot(layout[:, 2])
    add_legends(legend, named, types, numbers, "Cell type (derived)" if derived else "Cell type")
    figure.suptitle(title, fontsize=8.5)
    plots.add_notes(figure, notes)
    return figure


def describe(n_cells: int, n_drawn: int, seed: str, labels: str) -> list[str]:
    """Say in sentences what is drawn."""
    sample = (
        f"{n_drawn:,} of {n_cells:,} test cells, drawn at random" if n_drawn < n_cells else f"{n_cells:,} test cells"
    )
    lines = [
        f"UMAP of the embeddings of seed {seed}: {sample}; each is one point per modality. "
        "The number of a rare cell type is left out where it would cover another one."
    ]
    return lines if labels == "published" else [*lines, f"Cell types are not published but {labels}."]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--solution", required=True, help="solution.h5ad of a split")
    parser.add_argument("--embeddings", nargs="+", required=True, help="embedding.h5ad of each method")
    parser.add_argument("--points", type=int, required=True, help="draw a sample where there are more points")
    parser.add_argument("--seed", type=int, required=True, help="of the sample and of UMAP")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--figure", required=True, help="PNG to write; the PDF goes beside it")
    parser.add_argument("--table", required=True, help="coordinates to write (.tsv.gz)")
    args = parser.parse_args(argv)
    display, solution = style.Display(args.display), read_solution(args.solution)
    frame = embed_in_plane(args.embeddings, args.solution, args.points, args.seed)
    with atomic(Path(args.table)) as temporary:
        compression = {"method": "gzip", "mtime": 1}  # equal coordinates, equal bytes
        frame.to_csv(temporary, sep="\t", index=False, float_format="%.5g", compression=compression)
    labels = str(solution.uns["labels"])
    n_drawn = frame["cell"].nunique() // len(solution.uns["modalities"])
    notes = describe(solution.n_obs, n_drawn, ", ".join(sorted(set(frame["seed"]))), labels)
    title = f"{display.label('datasets', str(solution.uns['dataset']))} (split {solution.uns['split']})"
    style.save(draw(frame, title, labels != "published", notes, display, args.seed), args.figure)


if __name__ == "__main__":
    run_program(main)
