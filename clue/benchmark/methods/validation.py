"""Choose settings on paired training cells, without looking at test cells."""

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations as pairs_of
from itertools import product
from typing import TYPE_CHECKING, Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd

from clue.benchmark.errors import BenchmarkError
from clue.matching import METRICS, Metric, match_snn
from clue.metrics import foscttm, match_score
from clue.preprocess import Preprocessor

if TYPE_CHECKING:
    from clue.benchmark.methods.task import Task

FRACTION = 0.25
"""Share of the paired training cells that is held out."""
MAX_COMPARED = 2000
"""Largest number of training cells that `choose_metric` uses to compare metrics."""

Cells = dict[str, ad.AnnData]
Settings = dict[str, Any]


def paired_cells(train: md.MuData | dict[str, ad.AnnData]) -> dict[str, ad.AnnData]:
    """Return the cells seen in every modality, in the same order.

    A modality whose cells are all paired is returned as it is, because a copy of full-size counts takes gigabytes. Copy
    the cells before you change them.
    """
    adatas = dict(train.mod) if isinstance(train, md.MuData) else dict(train)
    names = _paired_names(adatas)
    return {k: adata if adata.obs_names.equals(names) else adata[names].copy() for k, adata in adatas.items()}


def _paired_names(adatas: Mapping[str, ad.AnnData]) -> pd.Index:
    first, *others = (adata.obs_names for adata in adatas.values())
    return first[np.logical_and.reduce([first.isin(names) for names in others])]


def prepare(
    task: "Task", which: str, fit_on: Cells, cells: Cells, params: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the encoder inputs of `fit_on` and of `cells`, fitted on the cells that `which` names (`Task.fitted`)."""
    fitted: dict[str, Preprocessor] = task.fitted(which, params)
    first, second = ({k: fitted[k].transform(a) for k, a in part.items()} for part in (fit_on, cells))
    return first, second


def inner_split(
    paired: dict[str, ad.AnnData], seed: int, at_most: int | None = None
) -> tuple[dict[str, ad.AnnData], dict[str, ad.AnnData]]:
    """Split paired cells into those to fit on and those held out.

    Whole donors are held out if there are at least four, else whole batches if there are at least four, else random
    cells. Held-out cells should differ from the others as test cells differ from training cells. At most `at_most` of
    the held-out cells are returned, drawn at random.

    Cells are drawn and returned in the order of their names, so the order of the file does not matter.

    Raises
    ------
    BenchmarkError
        If there are too few cells to split.
    """
    order = np.argsort(next(iter(paired.values())).obs_names)
    paired = {k: adata[order] for k, adata in paired.items()}
    first = next(iter(paired.values()))
    rng = np.random.default_rng(seed)
    held_out = _held_out(first, rng)
    if not held_out.any() or np.sum(~held_out) < 2:
        raise BenchmarkError(
            f"{first.n_obs} training cells are seen in every modality, and choosing settings needs at least 3;"
            " raise paired_fraction or the size of the split"
        )
    kept = np.flatnonzero(held_out)
    if at_most is not None:
        kept = np.sort(rng.permutation(kept)[:at_most])
    fit = {k: adata[~held_out].copy() for k, adata in paired.items()}
    return fit, {k: adata[kept].copy() for k, adata in paired.items()}


def _held_out(adata: ad.AnnData, rng: np.random.Generator) -> np.ndarray:
    for column in ("donor", "batch"):
        if column in adata.obs and adata.obs[column].nunique() >= 4:
            groups = adata.obs[column].astype(str)
            sizes = groups.value_counts()
            order = rng.permutation(sorted(sizes.index))
            enough = np.cumsum(sizes[order].to_numpy()) >= FRACTION * adata.n_obs
            return groups.isin(order[: int(np.argmax(enough)) + 1]).to_numpy()
    return rng.permutation(adata.n_obs) < FRACTION * adata.n_obs


def quality(x: np.ndarray, y: np.ndarray, batch: np.ndarray, metric: Metric = "cosine") -> tuple[float, float]:
    """Return match score (mean of both directions) and FOSCTTM of paired rows, as the benchmark scores them."""
    same = np.arange(len(x))
    forth = match_score(match_snn(x, y, batch_x=batch, batch_y=batch, metric=metric), same)
    back = match_score(match_snn(y, x, batch_x=batch, batch_y=batch, metric=metric), same)
    return (forth + back) / 2, float(np.mean(foscttm(x, y, metric)))


def criterion(match: float, closer: float) -> float:
    """Return one number to maximise. It uses logarithms, so a relative gain in either score counts the same."""
    return float(np.log(max(match, 1e-6)) - np.log(max(closer, 1e-6)))


def combinations(values: dict[str, list]) -> list[Settings]:
    """Return every choice of one value per name."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def choose(
    paired: Cells,
    grid: list[Settings],
    candidates: Callable[[Cells, Cells, str], Iterable[tuple[np.ndarray, np.ndarray]]],
    params: Mapping[str, Any],
    seed: int,
) -> tuple[Settings, list[Settings]]:
    """Choose among settings by how well held-out training cells match, averaged over folds.

    Parameters
    ----------
    paired
        Training cells seen in every modality, in one order.
    grid
        The settings to choose from. The ``metric`` of an entry is the metric for its embeddings; cosine if it has none.
    candidates
        Fits on its first argument and yields the embeddings of its second in both modalities, once per entry of `grid`
        and in that order. Work that all entries share need only be done once. The third argument is the name of the
        first for `Task.fitted`.
    params
        Hyper-parameters; ``n_folds`` says how many times to hold out cells (once if it is not given), and
        ``max_held_out`` how many of them to embed at most.
    seed
        Seed of the first fold; each further fold has the next seed.

    Returns
    -------
    The chosen settings, and all of them with their ``match_score`` and ``foscttm``.
    """
    scores, n_folds = np.zeros((len(grid), 2)), params.get("n_folds", 1)
    for fold in range(n_folds):
        fit_on, held_out = inner_split(paired, seed + fold, at_most=params["max_held_out"])
        batch = next(iter(held_out.values())).obs["batch"].astype(str).to_numpy()
        embedded = candidates(fit_on, held_out, f"fold-{seed + fold}")
        scores += [
            quality(x, y, batch, settings.get("metric", "cosine"))
            for settings, (x, y) in zip(grid, embedded, strict=True)
        ]
    return _best(grid, scores / n_folds)


def choose_metric(
    train: md.MuData, place: Callable[[str, pd.Index], np.ndarray], seed: int
) -> tuple[Metric, list[Settings]]:
    """Choose between cosine and Euclidean distances by how well paired training cells match.

    This is for methods that are not trained for a metric. The method was trained on these cells, including their pairs,
    so they match better than test cells do, and their scores are no estimate of test scores. The scores only compare
    two geometries of one embedding that training did not tell apart.

    Parameters
    ----------
    train
        The training cells; those seen in both modalities of a pair are compared.
    place
        Returns the embeddings of the named cells, in this order, from one modality alone, as test cells are embedded.
    seed
        Seed for drawing cells: half of the paired ones, at most `MAX_COMPARED`. The other half is for a method that
        places cells by its knowledge of others (Cobolt).

    Returns
    -------
    The chosen metric, and both metrics with their ``match_score`` and ``foscttm``, means over pairs of modalities.
    """
    compared = []
    for first, second in pairs_of(train.mod, 2):
        names = _paired_names({name: train.mod[name] for name in (first, second)}).sort_values()
        if not len(names):
            continue
        cells = pd.Index(np.random.default_rng(seed).permutation(names)[: min(MAX_COMPARED, (len(names) + 1) // 2)])
        x, y = place(first, cells), place(second, cells)
        batch = train.mod[first].obs.loc[cells, "batch"].astype(str).to_numpy()
        compared.append([quality(x, y, batch, metric) for metric in METRICS])
    chosen, table = _best([{"metric": metric} for metric in METRICS], np.mean(compared, axis=0))
    return chosen["metric"], table


def _best(grid: list[Settings], scores: Iterable[tuple[float, float]]) -> tuple[Settings, list[Settings]]:
    """Return the settings with the best score, and all settings with their scores."""
    scores = np.asarray(scores).tolist()
    best = max(range(len(grid)), key=lambda row: criterion(*scores[row]))
    return grid[best], [s | {"match_score": m, "foscttm": f} for s, (m, f) in zip(grid, scores, strict=True)]
