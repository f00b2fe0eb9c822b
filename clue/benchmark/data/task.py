"""Split a data set into what a method may see and the sealed solution, and censor the test cells.

Test cells are shuffled separately in each modality and renamed, so that neither their names nor their order tells which
cells are the same. The permutations follow from the split's seed. The seal only keeps methods from seeing pairs by
accident; the tests check that a method opens nothing but its own files.
"""

import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.contracts import VAR_COLUMNS, names_of_test_cells
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.targets import TARGET, choose, targets_of

TRAIN_COLUMNS = ("batch", "donor")
"""Columns that inner validation may need. Methods do not get cell types and conditions."""
STRATA = ("batch", "condition")

N_TOP_GENES = 2000
N_COMPONENTS = 30
N_NEIGHBOURS = 15
RESOLUTION = 1.0
LABEL_SEED = 0

Split = Mapping[str, Any]


class TaskError(BenchmarkError):
    """A data set cannot be split as its YAML says."""


@dataclass(frozen=True)
class TaskFiles:
    """The contents of one split of a data set."""

    train: md.MuData
    tests: dict[str, ad.AnnData]
    solution: ad.AnnData


def make_task(mdata: md.MuData, dataset: str, name: str, split: Split, max_cells: int | None = None) -> TaskFiles:
    """Split a prepared data set into training cells, censored test cells and the solution.

    Parameters
    ----------
    mdata
        The prepared data set (``<dataset>.h5mu``).
    dataset
        Its name.
    name
        The split's name.
    split
        The split's settings: an entry of ``splits`` in the data set's YAML, as `clue.benchmark.config.load` returns it.
        ``within`` holds the settings of other splits; only cells that are training cells in all of these are split.
    max_cells
        Keep at most this many cells; see `split_cells`.

    Returns
    -------
    TaskFiles
        Training cells, test cells by modality, and the solution. Only the solution holds cell types.

    Raises
    ------
    TaskError
        If a column, batch or value that the split names does not exist, or if one side has no cells.
    """
    where = f"{dataset}: splits.{name}"
    obs, places = all_cells(mdata.mod)
    train_rows, test_rows = split_cells(obs, split, where, max_cells, (places >= 0).all(axis=1))
    origin = {"dataset": dataset, "split": name}
    train = _training_cells(mdata, places[train_rows], split, where)
    train.uns = dict(origin)
    for modality, cells in train.mod.items():
        choose(cells, modality)
        if (n_targets := int(cells.var[TARGET].sum())) < 2:
            raise TaskError(
                f"{where}: {n_targets} of {cells.n_vars} features of {modality} differ between {cells.n_obs} training"
                " cells, and methods need at least two; make the split larger, or give more features"
            )
    rows = dict(zip(mdata.mod, places[test_rows].T, strict=True))
    orders = {name: _stream(split["seed"], f"test {name}").permutation(len(test_rows)) for name in mdata.mod}
    tests = {name: _censored(mdata.mod[name], rows[name][order], name, origin) for name, order in orders.items()}
    return TaskFiles(train, tests, _solution(mdata, obs.iloc[test_rows], rows, orders, train, origin, where))


def all_cells(modalities: Mapping[str, ad.AnnData]) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the annotation of the cells of all modalities, and their rows in each modality.

    Returns
    -------
    obs
        One row per cell, starting with those of the first modality.
    places
        The row of each cell in each modality, -1 if it is not seen there; shape (n_cells, n_modalities).
    """
    obs = pd.concat([adata.obs for adata in modalities.values()])
    obs = obs[~obs.index.duplicated()]
    return obs, np.column_stack([adata.obs_names.get_indexer(obs.index) for adata in modalities.values()])


def split_cells(
    obs: pd.DataFrame, split: Split, where: str, max_cells: int | None = None, is_complete: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the training and of the test cells.

    Parameters
    ----------
    obs
        The data set's annotation of cells.
    split
        The split's settings.
    where
        The beginning of messages.
    max_cells
        Keep at most this many cells, in the split's proportion of training and test cells. The cells are drawn after
        the split, so no cell moves to the other side. A smaller subsample lies within a larger one.
    is_complete
        Whether each cell is seen in every modality; by default all are. Incomplete cells are never test cells. They are
        training cells unless their batch or donor is tested.

    Raises
    ------
    TaskError
        If a column, batch or value that the split names does not exist, or if one side has no cells.
    """
    is_complete = np.ones(len(obs), dtype=bool) if is_complete is None else is_complete
    rows = [np.flatnonzero(part) for part in _parts(obs, is_complete, split, where)]
    n_cells = sum(map(len, rows))
    if max_cells is not None and max_cells < n_cells:
        n_test = round(max_cells * len(rows[1]) / n_cells)
        sizes = {"training": max_cells - n_test, "test": n_test}
        drawn = zip(rows, sizes.items(), strict=True)
        rows = [_draw(part, n, split["seed"], f"subsample of {side} cells") for part, (side, n) in drawn]
    train_rows, test_rows = rows
    if not len(train_rows) or not len(test_rows):
        raise TaskError(f"{where}: {len(train_rows)} training and {len(test_rows)} test cells; both sides need cells")
    return train_rows, test_rows


def _draw(rows: np.ndarray, n: int, seed: int, purpose: str) -> np.ndarray:
    """Draw `n` of the rows and keep their order. The draw of a smaller `n` is part of the draw of a larger one."""
    return np.sort(_stream(seed, purpose).permutation(rows)[:n])


def _stream(seed: int, purpose: str) -> np.random.Generator:
    """Return the random numbers for one purpose; drawing for one purpose does not shift the others."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


def _column(obs: pd.DataFrame, column: str, where: str) -> pd.Series:
    if column not in obs:
        raise TaskError(f"{where}: the data set's obs has no column {column!r} (it has {', '.join(obs)})")
    return obs[column].astype(str)


# ---- which cells are test ------------------------------------------------------------------------


Parts = tuple[np.ndarray, np.ndarray]


def _parts(obs: pd.DataFrame, is_complete: np.ndarray, split: Split, where: str) -> Parts:
    """Return masks of the training cells and of the test cells, both of shape (n_cells,)."""
    kept = np.ones(len(obs), dtype=bool)
    for outer in split.get("within", []):
        outer_train, _ = _parts(obs, is_complete, outer, f"{where}.within")
        kept &= outer_train
    is_train, is_test = SPLITTERS[split["kind"]](obs, kept, kept & is_complete, split, where)
    return is_train & kept, is_test & kept & is_complete


def _split_random(obs: pd.DataFrame, kept: np.ndarray, testable: np.ndarray, split: Split, where: str) -> Parts:
    rows, n_cells = np.flatnonzero(testable), int(kept.sum())
    n_test = split.get("n_test") or round(split["fraction"] * len(rows))
    n_train = split.get("n_train") or max(n_cells - n_test, 0)
    if n_test > len(rows) or n_test + n_train > n_cells:
        alone = f", {n_cells - len(rows)} of which lack a modality" if n_cells > len(rows) else ""
        raise TaskError(
            f"{where}: n_train {n_train} and n_test {n_test} are too many for the {n_cells} available cells{alone}"
        )
    is_test = np.zeros(len(obs), dtype=bool)
    is_test[_stream(split["seed"], "split").choice(rows, n_test, replace=False)] = True
    is_train = np.zeros(len(obs), dtype=bool)
    is_train[_draw(np.flatnonzero(kept & ~is_test), n_train, split["seed"], "training cells")] = True
    return is_train, is_test


def _split_donors(obs: pd.DataFrame, kept: np.ndarray, testable: np.ndarray, split: Split, where: str) -> Parts:
    if "donor" not in obs:
        raise TaskError(f"{where}: the data set's obs has no column 'donor'; name it: prepare.donor")
    donors = _column(obs, "donor", where)
    strata = pd.Series("", index=obs.index)
    for column in STRATA:
        if column in obs:
            strata += obs[column].astype(str) + " "
    cells = pd.crosstab(donors[testable], strata[testable])
    chosen = balanced_donors(cells.to_numpy(), split["fraction"], _stream(split["seed"], "split"))
    is_test = donors.isin(cells.index[chosen]).to_numpy()
    return ~is_test, is_test


def balanced_donors(cells: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Choose donors that together have about the given fraction of the cells of every stratum.

    At the start no donor is chosen. One or two donors are moved to the other side whenever that lowers the sum over
    strata of n (p - fraction)², where p is the chosen donors' fraction of the n cells of a stratum. This ends when no
    such move is left.

    Parameters
    ----------
    cells
        Number of cells, donors × strata.
    fraction
        The wanted fraction of the cells.
    rng
        Decides the order in which moves are tried, and so which of several balanced choices is found.

    Returns
    -------
    ndarray
        Whether each donor is chosen.
    """
    totals = cells.sum(axis=0)
    chosen = np.zeros(len(cells), dtype=bool)
    loss = _imbalance(cells, chosen, totals, fraction)
    moves = [list(move) for n in (1, 2) for move in itertools.combinations(rng.permutation(len(cells)), n)]
    improved = True
    while improved:
        improved = False
        for move in moves:
            chosen[move] ^= True
            moved = _imbalance(cells, chosen, totals, fraction)
            if moved < loss:
                loss, improved = moved, True
            else:
                chosen[move] ^= True
    return chosen


def _imbalance(cells: np.ndarray, chosen: np.ndarray, totals: np.ndarray, fraction: float) -> float:
    return float((totals * (cells[chosen].sum(axis=0) / totals - fraction) ** 2).sum())


def _split_batches(obs: pd.DataFrame, kept: np.ndarray, testable: np.ndarray, split: Split, where: str) -> Parts:
    batches = _column(obs, "batch", where)
    for key in ("batches", "train"):
        if absent := sorted(set(split.get(key, [])) - set(batches[kept])):
            known = ", ".join(sorted(set(batches)))
            raise TaskError(f"{where}.{key}: no cell of {', '.join(absent)}; batches: {known}")
    is_test = batches.isin(split["batches"]).to_numpy()
    is_train = batches.isin(split["train"]).to_numpy() if "train" in split else ~is_test
    if (is_train & is_test).any():
        raise TaskError(f"{where}: a batch is in both `train` and `batches` (the test batches); name it in only one")
    return is_train, is_test


def _split_predefined(obs: pd.DataFrame, kept: np.ndarray, testable: np.ndarray, split: Split, where: str) -> Parts:
    is_test = (_column(obs, split["column"], where) == str(split["test"])).to_numpy()
    return ~is_test, is_test


SPLITTERS = {
    "random": _split_random,
    "donors": _split_donors,
    "batches": _split_batches,
    "predefined": _split_predefined,
}


# ---- what a method sees --------------------------------------------------------------------------


def _bare(adata: ad.AnnData, rows: np.ndarray, columns: Sequence[str]) -> ad.AnnData:
    """Return the counts and the named annotations of some cells. Categories that none of them has are removed."""
    obs = adata.obs.iloc[rows].filter(columns).astype(str).astype("category")
    return ad.AnnData(adata.X[rows], obs=obs, var=adata.var.filter(VAR_COLUMNS))


def _training_cells(mdata: md.MuData, places: np.ndarray, split: Split, where: str) -> md.MuData:
    """Return training cells; `places` is as in `all_cells`."""
    seen = _seen_in(places >= 0, list(mdata.mod), split, where)
    modalities = {}
    for k, (modality, adata) in enumerate(mdata.mod.items()):
        here = np.flatnonzero(seen[:, k])
        cells = _bare(adata, places[here, k], TRAIN_COLUMNS)
        alone = seen[here].sum(axis=1) == 1
        cells.obs_names = np.where(alone, cells.obs_names + f"-{modality}", cells.obs_names)
        modalities[modality] = cells
    with md.set_options(pull_on_update=False):
        return md.MuData(modalities)


def _seen_in(is_there: np.ndarray, modalities: list[str], split: Split, where: str) -> np.ndarray:
    """Return in which modalities a method sees each training cell.

    The split decides this for cells that every modality has; other cells are seen wherever they exist. `is_there` and
    the result have shape (n_cells, n_modalities).
    """
    seen = is_there.copy()
    complete = np.flatnonzero(seen.all(axis=1))
    order = _stream(split["seed"], "pairs").permutation(len(complete))
    if mosaic := split.get("mosaic"):
        ends = np.round(np.cumsum(list(mosaic.values())) * len(complete)).astype(int)
        subsets = [subset.split("+") for subset in mosaic]
        parts = np.split(order, ends[:-1])
    else:
        n_paired = round(split.get("paired_fraction", 1.0) * len(complete))
        subsets = [modalities, *([name] for name in modalities)]
        parts = [order[:n_paired], *np.array_split(order[n_paired:], len(modalities))]
    for subset, part in zip(subsets, parts, strict=True):
        seen[complete[part]] = np.isin(modalities, subset)
    if not (seen.sum(axis=1) > 1).any():
        key, fix = ("mosaic", "add a subset of two") if mosaic else ("paired_fraction", "make it larger")
        raise TaskError(f"{where}.{key}: leaves none of {len(seen)} training cells paired; {fix}")
    return seen


def _censored(adata: ad.AnnData, rows: np.ndarray, modality: str, origin: Mapping[str, str]) -> ad.AnnData:
    cells = _bare(adata, rows, ("batch",))
    cells.obs_names = names_of_test_cells(modality, len(rows))
    cells.uns = {"modality": modality, **origin}
    return cells


# ---- the solution --------------------------------------------------------------------------------


def _solution(
    mdata: md.MuData,
    cells: pd.DataFrame,
    rows: Mapping[str, np.ndarray],
    orders: Mapping[str, np.ndarray],
    train: md.MuData,
    origin: Mapping[str, str],
    where: str,
) -> ad.AnnData:
    """Return the solution of test cells.

    Parameters
    ----------
    cells
        The annotation of the test cells.
    rows, orders
        Their rows in each modality, and their order in each modality's test file.
    """
    obs = pd.DataFrame({"batch": cells["batch"].astype(str)}, index=cells.index)
    if "cell_type" in cells:
        obs["cell_type"], labels = cells["cell_type"].astype(str), "published"
    elif "rna" in mdata.mod:
        obs["cell_type"], labels = derive_cell_types(train.mod["rna"].X, mdata.mod["rna"].X[rows["rna"]])
    else:
        raise TaskError(f"{where}: the data set has neither cell types nor RNA to derive them from")
    for modality, order in orders.items():
        obs[modality] = np.array(names_of_test_cells(modality, len(order)))[np.argsort(order)]
    for column in ("batch", "cell_type"):
        obs[column] = obs[column].astype("category")
    solution = ad.AnnData(sp.csr_matrix((len(obs), 0), dtype=np.float32), obs=obs)
    for modality, targets in targets_of(train.mod).items():
        solution.obsm[modality] = targets.values(_bare(mdata.mod[modality], rows[modality], ()))
    solution.uns = {"modalities": list(orders), "labels": labels, "n_train": train.n_obs, **origin}
    return solution


def derive_cell_types(train: sp.csr_matrix, test: sp.csr_matrix) -> tuple[np.ndarray, str]:
    """Cluster the training cells' RNA and give each test cell the most frequent cluster among its neighbours.

    Parameters
    ----------
    train, test
        Raw RNA counts of the training and test cells, cells × genes.

    Returns
    -------
    labels
        One cluster name per test cell.
    description
        How the labels were made, for ``uns["labels"]``.
    """
    import scanpy as sc  # takes seconds to import, and few data sets need it
    from sklearn.decomposition import PCA
    from sklearn.neighbors import KNeighborsClassifier, kneighbors_graph

    fitted, query = ad.AnnData(train.copy()), ad.AnnData(test.copy())
    for adata in (fitted, query):
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    if fitted.n_vars > N_TOP_GENES:
        sc.pp.highly_variable_genes(fitted, n_top_genes=N_TOP_GENES)
    else:
        fitted.var["highly_variable"] = True
    genes = fitted.var["highly_variable"].to_numpy()
    n_components = min(N_COMPONENTS, fitted.n_obs - 1, int(genes.sum()))
    n_neighbours = min(N_NEIGHBOURS, fitted.n_obs - 1)
    pca = PCA(n_components, svd_solver="randomized", random_state=LABEL_SEED).fit(fitted.X[:, genes].toarray())
    coordinates = pca.transform(fitted.X[:, genes].toarray())
    # Exact neighbours: with so few cells they cost less than compiling an approximate search.
    graph = kneighbors_graph(coordinates, n_neighbours)
    settings = {"flavor": "igraph", "directed": False, "n_iterations": -1, "random_state": LABEL_SEED}
    sc.tl.leiden(fitted, resolution=RESOLUTION, adjacency=graph.maximum(graph.T), **settings)
    vote = KNeighborsClassifier(n_neighbours).fit(coordinates, fitted.obs["leiden"].astype(str))
    clusters = vote.predict(pca.transform(query.X[:, genes].toarray()))
    description = (
        f"derived: Leiden clusters (resolution {RESOLUTION}) of the training RNA ({genes.sum()} variable genes, "
        f"{n_components} principal components), test cells by vote of {n_neighbours} nearest training cells"
    )
    return np.array([f"cluster {cluster}" for cluster in clusters]), description
