"""Bridge integration with Seurat 5 (Hao et al., Nature Biotechnology 2023); ``seurat_bridge.R`` does the work.

Paired training cells are the bridge, test RNA is the reference, and the other modality's test cells are the query.
Held-out training cells decide in which of two spaces cells are matched, and by which metric. If the parameters name
only one of each, or if the held-out cells are too few for Seurat, the first ones are used.
"""

from pathlib import Path

import anndata as ad
import numpy as np

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.r import run_r
from clue.benchmark.methods.validation import choose, combinations, paired_cells

SCRIPT = Path(__file__).with_suffix(".R")
R_PACKAGES = ("Seurat>=5.0.0", "hdf5r", "jsonlite")
MIN_CELLS = 60
"""Seurat looks for up to 50 neighbours of a cell, among bridge, reference and query alike."""
FOR_R = ("normalization", "n_genes", "n_pcs", "n_query", "supervised", "k_weight")


class TooFewCells(BenchmarkError):
    """There are too few cells for Seurat."""


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Choose space and metric, then embed the test cells."""
    paired = paired_cells(task.train)
    grid = combinations({name: params[name] for name in ("space", "metric")})
    settings = grid[0]
    if len(grid) > 1:

        def candidates(fit_on, held_out, fold):
            spaces, _ = integrate(fit_on, held_out, params, seed)
            for settings in grid:
                yield tuple(spaces[settings["space"]].values())

        try:
            settings, task.info["inner_validation"] = choose(paired, grid, candidates, params, seed)
        except TooFewCells as error:
            task.info["inner_validation"] = f"not possible with some cells held out: {error}"
    spaces, info = integrate(paired, task.test, params, seed)
    task.info.update(info, chosen=settings)
    task.metric = settings["metric"]
    return spaces[settings["space"]]


def integrate(
    paired: dict[str, ad.AnnData], cells: dict[str, ad.AnnData], params: dict, seed: int
) -> tuple[dict[str, dict[str, np.ndarray]], dict]:
    """Return the cells of each modality in each space, and a record of what was done.

    Parameters
    ----------
    paired
        The bridge, with paired rows.
    cells
        RNA cells (the reference) and cells of another modality (the query), with rows in any order.

    Raises
    ------
    TooFewCells
        If any of the four inputs has fewer than `MIN_CELLS`.
    """
    other = next(modality for modality in cells if modality != "rna")
    n_available = paired["rna"].n_obs
    paired = subsample(paired, params["max_bridge_cells"], seed)
    inputs = {
        "bridge_rna": paired["rna"],
        "bridge_query": paired[other],
        "reference": cells["rna"],
        "query": cells[other],
    }
    for name, adata in inputs.items():
        if adata.n_obs < MIN_CELLS:
            raise TooFewCells(f"{name} has {adata.n_obs} cells, Seurat needs {MIN_CELLS}; give more cells")
    values = {name: params[name] for name in FOR_R}
    n_components = limits(inputs, values)
    arrays, info = run_r(SCRIPT, inputs, values | n_components | {"query": other, "seed": seed}, R_PACKAGES)
    spaces = {
        space: {"rna": arrays[f"{space}_reference"], other: arrays[f"{space}_query"]}
        for space in ("direct", "integrated")
    }
    return spaces, info | n_components | {"n_bridge_available": n_available}


def subsample(paired: dict[str, ad.AnnData], at_most: int | None, seed: int) -> dict[str, ad.AnnData]:
    """Draw bridge cells if there are too many; they stay in order."""
    n_cells = paired["rna"].n_obs
    if at_most is None or n_cells <= at_most:
        return paired
    kept = np.sort(np.random.default_rng(seed).permutation(n_cells)[:at_most])
    return {modality: adata[kept] for modality, adata in paired.items()}


def limits(inputs: dict[str, ad.AnnData], values: dict) -> dict[str, int]:
    """Return the numbers of components: those asked for, or as many as cells and features that are not 0 allow."""
    n_genes = min(values["n_genes"], n_features_seen(inputs["reference"]))
    n_query = min(n_features_seen(inputs["bridge_query"]), inputs["bridge_query"].n_obs)
    return {
        "n_pcs": min(values["n_pcs"], n_genes - 1, inputs["reference"].n_obs - 1),
        "n_query": min(values["n_query"], n_query - 1),
    }


def n_features_seen(adata: ad.AnnData) -> int:
    """Count the features that occur in at least one cell."""
    return int((np.asarray(adata.X.sum(axis=0)) > 0).sum())


if __name__ == "__main__":
    run_method(embed)
