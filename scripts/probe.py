"""Measure what an embedding keeps of simulated factors: a linear probe for each, from cells of each modality.

The paper claims that z = (z_1 … z_K) keeps both what the modalities share and what only one of them shows. If the
factors are known, this can be measured. Ridge regression reads a factor out of the embedding, and R² on cells that the
regression has not seen says how much of it is there. There is one table for all simulated data sets.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from clue.benchmark.config import load
from clue.benchmark.contracts import ContractError, read_embedding, read_solution
from clue.benchmark.program import run_program
from clue.benchmark.report.tables import write_table
from clue.simulate import simulate

COLUMNS = ["dataset", "split", "method", "variant", "seed", "factor_kind", "factor", "input_modality", "r2"]
FOLDS = 5
PENALTIES = np.logspace(-1, 4, 11)


def probe(embedding: ad.AnnData, solution: ad.AnnData, simulated: md.MuData, where: str) -> pd.DataFrame:
    """Return R² of every factor, read from the embedding of each modality.

    Parameters
    ----------
    embedding
        An ``embedding.h5ad``.
    solution
        The ``solution.h5ad`` of its split, which says which test cell is which.
    simulated
        The data as `clue.simulate.simulate` drew them, with ``obsm["shared"]`` and ``obsm["specific"]``.
    where
        The embedding's name in messages.

    Returns
    -------
    DataFrame
        One row per factor and embedded modality. ``factor_kind`` is ``shared``, ``own`` (specific to the modality that
        was embedded) or ``other`` (specific to another one; the embedded cells do not show it, so R² should be 0).

    Raises
    ------
    ContractError
        If cells of the solution are not in the simulated data.
    """
    first = next(iter(simulated.mod.values()))
    rows = first.obs_names.get_indexer(solution.obs_names)
    if (rows < 0).any():
        raise ContractError(f"{where}: {solution.obs_names[rows < 0][0]!r} is not a cell of the simulated data")
    identity = {key: embedding.uns.get(key, "") for key in COLUMNS[:5]}
    found = []
    for modality in solution.uns["modalities"]:
        x = embedding[solution.obs[modality].to_numpy()].X
        for kind, factors in factors_of(simulated, rows, modality).items():
            for i, r2 in enumerate(r_squared(x, factors), start=1):
                row = {"factor_kind": kind, "factor": f"{kind}_{i}", "input_modality": modality, "r2": r2}
                found.append(identity | row)
    return pd.DataFrame(found, columns=COLUMNS)


def factors_of(simulated: md.MuData, rows: np.ndarray, modality: str) -> Mapping[str, np.ndarray]:
    """Return the factors of some cells by kind, each of shape (n_cells, n_factors)."""
    specific = {name: adata.obsm["specific"][rows] for name, adata in simulated.mod.items()}
    others = [values for name, values in specific.items() if name != modality]
    kinds: dict[str, Any] = {"shared": simulated.mod[modality].obsm["shared"][rows]}
    return kinds | {"own": specific[modality], "other": np.hstack(others)}


def r_squared(x: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Return R² of each factor on held-out cells, by cross-validated ridge regression on standardised columns.

    Parameters
    ----------
    x
        Embedding, shape (n_cells, width).
    factors
        Shape (n_cells, n_factors).
    """
    model = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    return r2_score(factors, cross_val_predict(model, x, factors, cv=folds), multioutput="raw_values")


def main(solutions: list[Path], table: Path, embeddings: tuple[Path, ...] = (), project: Path = Path()) -> None:
    """Run the program.

    Parameters
    ----------
    solutions
        The solution of each split (solution.h5ad).
    embeddings
        Embeddings of these splits.
    """
    splits = {(found.uns["dataset"], found.uns["split"]): found for found in map(read_solution, solutions)}
    simulated = {dataset: draw_again(dataset, project) for dataset, _ in splits}
    found = []
    for path in embeddings:
        embedding = read_embedding(path)
        dataset, split = embedding.uns["dataset"], embedding.uns["split"]
        found.append(probe(embedding, splits[dataset, split], simulated[dataset], str(path)))
    write_table(pd.concat(found) if found else pd.DataFrame(columns=COLUMNS), table)


def draw_again(dataset: str, project: Path) -> md.MuData:
    """Return a simulated data set with its factors, which the benchmark's files leave out."""
    return simulate(**load("datasets", dataset, project)["prepare"]["arguments"])


if __name__ == "__main__":
    run_program(main)
