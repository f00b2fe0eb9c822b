"""CHAMPOLLION, by its authors' package: inverse optimal transport finds a sparse matrix A between two modalities.

The package is under the GPL, so it runs as a separate program (`champollion_program.py`) that receives and returns
arrays. It learns from paired cells alone. Its memory and time grow with the square of their number, so at most
`max_bridge` are drawn. It has no embedding, but the logarithm of its transport plan is x'Ay plus a potential of each
cell. `embedded` turns these into coordinates whose cosine ranks cells as the plan does. Upstream cannot resume: an
interrupted run starts anew.
"""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad
import numpy as np
import pandas as pd

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.validation import Cells, choose, combinations, paired_cells
from scripts.methods.midas import selected

PROGRAM = Path(__file__).with_name("champollion_program.py")


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Choose the penalty, fit on paired training cells, and return coordinates that match cells as the plan does."""
    tables = {name: components(task, name, params, seed) for name in task.test}
    paired = paired_cells(task.train)
    grid = combinations({"gamma": params["gamma"]})

    def candidates(fit_on, held_out, fold):
        for settings in grid:
            yield transport(tables, fit_on, held_out, task, params | settings, seed)[:2]

    chosen, table = choose(paired, grid, candidates, params, seed)
    x, y, fitted = transport(tables, paired, task.test, task, params | chosen, seed)
    task.info.update(
        chosen=chosen,
        inner_validation=table,
        bridge_cells=min(len(paired[next(iter(paired))]), params["max_bridge"]),
        iterations=int(fitted["iterations"]),
        marginal_error=float(fitted["marginal_error"]),
        champollion=version("champollion-omics"),
    )
    return dict(zip(task.test, (x, y), strict=True))


def transport(
    tables: dict[str, pd.DataFrame], paired: Cells, test: Cells, task: Task, params: dict, seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Fit on paired cells and transport between the cells of `test`; return their coordinates and upstream's result."""
    bridge = next(iter(paired.values())).obs_names.sort_values()
    bridge = np.random.default_rng(seed).permutation(bridge)[: params["max_bridge"]]
    arrays = {f"bridge_{i}": table.loc[bridge].to_numpy() for i, table in enumerate(tables.values())}
    arrays |= {
        f"test_{i}": tables[name].loc[cells.obs_names].to_numpy() for i, (name, cells) in enumerate(test.items())
    }
    settings = {**params["model"], "gamma": params["gamma"], "random_state": seed, "device": task.device}
    fitted = run(arrays, settings)
    x, y = embedded(arrays["test_0"], arrays["test_1"], fitted["A"], fitted["f"], fitted["g"])
    return x, y, fitted


def components(task: Task, modality: str, params: dict, seed: int) -> pd.DataFrame:
    """Return upstream's inputs of all cells, float32, one row per cell, indexed by name.

    Inputs are principal components of standardised logarithms of normalised counts. For proteins they are standardised
    centred log-ratios, made by muon.
    """
    import scanpy as sc  # here, since it may start numba's threads before the program has set their number

    cells = ad.concat([task.train.mod[modality], task.test[modality]])
    cells = cells[:, selected(modality, cells, params["n_features"].get(modality))].copy()
    cells.X = cells.X.astype(np.float32)
    if modality == "adt":
        from muon import prot

        prot.pp.clr(cells)
        cells.X = cells.X.toarray()
        sc.pp.scale(cells)
        return pd.DataFrame(cells.X, index=cells.obs_names)
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    sc.pp.scale(cells, zero_center=False)  # the components are centred, and the counts stay sparse
    values = sc.pp.pca(cells.X, min(params["n_components"], min(cells.shape) - 1), random_state=seed)
    return pd.DataFrame(values, index=cells.obs_names)


def run(arrays: dict[str, np.ndarray], settings: dict) -> dict[str, np.ndarray]:
    """Run upstream in a separate process; return its matrix, the test cells' potentials and how it converged."""
    with TemporaryDirectory() as folder:
        given, result = Path(folder, "given.npz"), Path(folder, "result.npz")
        np.savez(given, **arrays)
        command = [sys.executable, "-P", str(PROGRAM), str(given), str(result), json.dumps(settings)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        print(done.stderr, file=sys.stderr, flush=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BenchmarkError(f"CHAMPOLLION ended with status {done.returncode}: {last}")
        with np.load(result) as found:
            return dict(found)


def embedded(
    x: np.ndarray, y: np.ndarray, matrix: np.ndarray, f: np.ndarray, g: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates of both sides, all of one length, whose inner products are x'Ay + f + g up to a constant.

    The matrix is split between both sides by its singular vectors. Two more coordinates bring all cells to one length,
    so that cosine and inner product rank alike. Each of these is 0 on one side, so inner products stay as they are.
    """
    left, weights, right = np.linalg.svd(matrix, full_matrices=False)
    u = np.column_stack([x @ (left * np.sqrt(weights)), f - f.mean(), np.ones(len(x))])
    v = np.column_stack([y @ (right.T * np.sqrt(weights)), np.ones(len(y)), g - g.mean()])
    longest = max((u**2).sum(axis=1).max(), (v**2).sum(axis=1).max())
    rest_u, rest_v = (np.sqrt(longest - (a**2).sum(axis=1)) for a in (u, v))
    none_u, none_v = np.zeros(len(u)), np.zeros(len(v))
    return np.column_stack([u, rest_u, none_u]), np.column_stack([v, none_v, rest_v])


if __name__ == "__main__":
    run_method(embed)
