"""Hold out some training cells, to choose settings without looking at a test cell."""

from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import anndata as ad
import mudata as md
import numpy as np

from clue.matching import match_snn
from clue.metrics import foscttm, match_score
from clue.preprocess import Preprocessor

FRACTION = 0.25
"""Share of the paired training cells that is held out."""

Cells = dict[str, ad.AnnData]
Settings = dict[str, Any]


def paired_cells(train: md.MuData | dict[str, ad.AnnData]) -> dict[str, ad.AnnData]:
    """Return the cells seen in every modality, in one order."""
    adatas = dict(train.mod) if isinstance(train, md.MuData) else dict(train)
    names = None
    for adata in adatas.values():
        names = adata.obs_names if names is None else names[names.isin(adata.obs_names)]
    return {modality: adata[names].copy() for modality, adata in adatas.items()}


def prepare(
    paired: Cells, n_components: int, n_features: dict[str, int], seed: int
) -> tuple[dict[str, Preprocessor], dict[str, np.ndarray]]:
    """Fit the encoder inputs of each modality; return the preprocessors and what they make of the cells."""
    fitted = {k: Preprocessor(k, n_components, n_features.get(k), seed=seed).fit(a) for k, a in paired.items()}
    return fitted, {k: fitted[k].transform(a) for k, a in paired.items()}


def inner_split(
    paired: dict[str, ad.AnnData], seed: int, at_most: int | None = None
) -> tuple[dict[str, ad.AnnData], dict[str, ad.AnnData]]:
    """Split paired cells into those to fit on and those held out.

    Whole donors are held out where there are at least four, else whole batches where there are at
    least four, else random cells: as test cells differ from training cells, so should held-out ones.
    At most `at_most` of the held-out cells are returned, drawn at random.
    """
    first = next(iter(paired.values()))
    rng = np.random.default_rng(seed)
    held_out = _held_out(first, rng)
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


def quality(x: np.ndarray, y: np.ndarray, batch: np.ndarray) -> tuple[float, float]:
    """Match score (mean of both directions) and FOSCTTM of paired rows, as the benchmark scores them."""
    same = np.arange(len(x))
    forth = match_score(match_snn(x, y, batch_x=batch, batch_y=batch), same)
    back = match_score(match_snn(y, x, batch_x=batch, batch_y=batch), same)
    return (forth + back) / 2, float(np.mean(foscttm(x, y)))


def criterion(match: float, closer: float) -> float:
    """One number to maximise: the logarithms of both, so that a relative gain in either counts the same."""
    return float(np.log(max(match, 1e-6)) - np.log(max(closer, 1e-6)))


def combinations(values: dict[str, list]) -> list[Settings]:
    """Return every choice of one value per name."""
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


def choose(
    paired: Cells,
    grid: list[Settings],
    candidates: Callable[[Cells, Cells], Iterable[tuple[np.ndarray, np.ndarray]]],
    *,
    seed: int,
    n_folds: int,
    max_held_out: int | None,
) -> tuple[Settings, list[Settings]]:
    """Choose among settings by how well held-out training cells match, averaged over folds.

    Parameters
    ----------
    paired
        Training cells seen in every modality, in one order.
    grid
        The settings to choose from.
    candidates
        Fits on its first argument and yields the embeddings of its second in both modalities, once
        per entry of `grid` and in its order. What all entries share need be done once only.
    seed
        Seed of the first fold; the next one has the next seed.
    n_folds
        How often to hold out cells.
    max_held_out
        Embed at most this many of them.

    Returns
    -------
    The chosen settings, and all of them with their ``match_score`` and ``foscttm``.
    """
    scores = np.zeros((len(grid), 2))
    for fold in range(n_folds):
        fit_on, held_out = inner_split(paired, seed + fold, at_most=max_held_out)
        batch = next(iter(held_out.values())).obs["batch"].astype(str).to_numpy()
        embedded = candidates(fit_on, held_out)
        scores += [quality(x, y, batch) for _, (x, y) in zip(grid, embedded, strict=True)]
    scores /= n_folds
    best = max(range(len(grid)), key=lambda row: criterion(*scores[row]))
    table = [s | {"match_score": m, "foscttm": f} for s, (m, f) in zip(grid, scores.tolist(), strict=True)]
    return grid[best], table
