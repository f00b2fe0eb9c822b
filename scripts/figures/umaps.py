"""Draw the test cells of all modalities in one UMAP per method, coloured by modality and by cell type.

Its name is not that of the package ``umap``, which a program beside it would hide.
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.patheffects as effects
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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


def embed_in_plane(paths: Sequence[str], solution, n_points: int, seed: int) -> pd.DataFrame:
    """Return one row per point and embedding: method, variant, seed, cell, modality, cell type, x, y."""
    cells, frames = sample_cells(solution, n_points, seed), []
    for path in tqdm(paths, desc="UMAP", unit="embedding", mininterval=1):
        chosen = points(read_embedding(path), cells, list(solution.uns["modalities"]), path)
        x, y = coordinates(chosen.X, seed, metric_of(chosen)).T
        frame = pd.DataFrame({key: str(chosen.uns[key]) for key in ("method", "variant", "seed")}, index=range(len(x)))
        frame["cell"] = chosen.obs_names.to_numpy()
        frame[["modality", "cell_type"]] = chosen.obs[["modality", "cell_type"]].astype(str).to_numpy()
        frames.append(frame.assign(x=x, y=y))
    return pd.concat(frames, ignore_index=True)


def draw_points(axis: Axes, frame: pd.DataFrame, by: str, colors: dict[str, str], seed: int) -> None:
    """Draw points in random order, so that no group covers another."""
    shuffled = frame.sample(frac=1, random_state=seed)
    look = {"linewidth": 0, "alpha": 0.8, "s": float(np.clip(6000 / len(frame), 1.5, 12)), "rasterized": True}
    sns.scatterplot(shuffled, x="x", y="y", hue=by, palette=colors, legend=False, ax=axis, **look)
    axis.set(xticks=[], yticks=[], xlabel="", ylabel="", anchor="N")
    axis.spines[:].set_visible(False)
    axis.set_box_aspect(1)


def number_types(axis: Axes, frame: pd.DataFrame, numbers: dict[str, int]) -> None:
    """Write each type's number on the point nearest its median, the most frequent first; none over another."""
    apart = NUMBER_SIZE * np.ptp(frame[["x", "y"]].to_numpy(), axis=0)
    numbered = np.empty((0, 2))
    for name in frame["cell_type"].value_counts().index:
        place = frame.loc[frame["cell_type"] == name, ["x", "y"]].to_numpy()
        middle = place[np.linalg.norm(place - np.median(place, axis=0), axis=1).argmin()]
        if not (np.abs(numbered - middle) < apart).all(axis=1).any():
            numbered = np.vstack([numbered, middle])
            text = axis.text(*middle, str(numbers[name]), fontsize=5.5, fontweight="bold", ha="center", va="center")
            text.set_path_effects([effects.withStroke(linewidth=1.5, foreground="white")])


def add_legend(axis: Axes, title: str, colors: dict[str, str], top: float = 1.0) -> None:
    """Put the legend of one colouring below `top` in an axis that holds nothing else."""
    handles = [Line2D([], [], marker="o", linestyle="", markersize=4, color=color) for color in colors.values()]
    look = {"frameon": False, "alignment": "left", "borderaxespad": 0, "handletextpad": 0.3, "labelspacing": 0.3}
    look |= {"ncols": legend_columns(len(colors)), "loc": "upper left", "bbox_to_anchor": (0, top)}
    axis.add_artist(axis.legend(handles, [plots.shorten(name, 34) for name in colors], title=title, **look))


def legend_columns(n_types: int) -> int:
    """Return into how many columns a legend of cell types goes."""
    return -(-n_types // LEGEND_ROWS)


def draw(frame: pd.DataFrame, title: str, derived: bool, notes: list[str], seed: int, display: style.Display) -> Figure:
    """Draw a row per method; points by modality on the left, by cell type in the middle, legends on the right."""
    types = display.cell_type_colors(frame["cell_type"])
    numbers = {name: i for i, name in enumerate(types, start=1)}
    modalities = {name: display.color("modalities", name) for name in display.order("modalities", frame["modality"])}
    methods = display.methods(frame)
    legend_rows = -(-len(types) // legend_columns(len(types)))
    height = max(ROW_HEIGHT * len(methods), LEGEND_LINE * legend_rows + 1.0) + 0.6
    figure = plt.figure(figsize=(style.PAGE, height), layout="constrained")
    layout = figure.add_gridspec(len(methods), 3, width_ratios=[1, 1, 0.85])
    kind = "cell type (derived)" if derived else "cell type"
    for row, method in enumerate(methods.itertuples()):
        here = frame[frame["method"] == method.method]
        left, middle = (figure.add_subplot(layout[row, column]) for column in range(2))
        draw_points(left, here, "modality", modalities, seed)
        draw_points(middle, here, "cell_type", types, seed)
        number_types(middle, here, numbers)
        left.set_ylabel(plots.shorten(method.label), fontsize=8)
        left.set_title("by modality" if row == 0 else "")
        middle.set_title(f"by {kind}" if row == 0 else "")
    legend = figure.add_subplot(layout[:, 2])
    legend.axis("off")
    add_legend(legend, "Modality", {display.label("modalities", name): color for name, color in modalities.items()})
    below = (0.18 * (len(modalities) + 1) + 0.2) / height
    add_legend(legend, kind.capitalize(), {f"{numbers[name]}  {name}": types[name] for name in types}, 1 - below)
    figure.suptitle(title, fontsize=8.5)
    plots.add_notes(figure, notes)
    return figure


def describe(n_cells: int, n_drawn: int, seed: str, labels: str) -> list[str]:
    """Say in sentences what is drawn."""
    sample = (
        f"{n_drawn:,} of {n_cells:,} test cells, drawn at random" if n_drawn < n_cells else f"{n_cells:,} test cells"
    )
    line = f"UMAP of the embeddings of seed {seed}: {sample}; each is one point per modality. "
    line += "The number of a rare cell type is left out where it would cover another one."
    return [line] if labels == "published" else [line, f"Cell types are not published but {labels}."]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    args = plots.command_line(
        __doc__,
        argv,
        "solution",
        "table",
        "figure",
        embeddings={"nargs": "+", "help": "embedding.h5ad of each method"},
        points={"type": int, "help": "draw a sample where there are more points"},
        seed={"type": int, "help": "of the sample and of UMAP"},
    )
    solution = read_solution(args.solution)
    frame = embed_in_plane(args.embeddings, solution, args.points, args.seed)
    with atomic(Path(args.table)) as temporary:
        compression = {"method": "gzip", "mtime": 1}  # equal coordinates, equal bytes
        frame.to_csv(temporary, sep="\t", index=False, float_format="%.5g", compression=compression)
    labels = str(solution.uns["labels"])
    n_drawn = frame["cell"].nunique() // len(solution.uns["modalities"])
    notes = describe(solution.n_obs, n_drawn, ", ".join(sorted(set(frame["seed"]))), labels)
    title = f"{args.display.label('datasets', str(solution.uns['dataset']))} (split {solution.uns['split']})"
    plots.write_figure(args.figure, draw, frame, title, labels != "published", notes, args.seed, args.display)


if __name__ == "__main__":
    run_program(main)
