"""Fit the components of each modality; how many to use, and how, is decided by how well held-out cells match."""

from collections.abc import Callable, Mapping

import anndata as ad
import numpy as np
import pandas as pd

from clue.data import BATCH, joined, paired_names, rows_of
from clue.preprocess import Preprocessor, preprocessor
from clue.readout import DEFAULT, LIFTS, MIN_HELD_OUT, Settings, qualities

LEAST_COMPONENTS = 25
"""The smallest number of components to consider."""
N_FOLDS, MAX_HELD_OUT = 3, 1000
MAX_FITTED = 10_000
"""Most cells on which a fold's components are fitted; more only cost time."""
SETTINGS = [(ridge, n, lift) for ridge in (0.1, 1.0) for n in (10, 20, 40, 80) for lift in LIFTS]
"""Settings of the canonical read-out (`clue.readout.Settings`) with which numbers of components are compared."""
TOLERANCE = 0.08
"""How much worse than the best a number of components may be in log(match score / FOSCTTM). The read-out uses all of
these numbers. Encoders read the largest, if cells are many, since hidden layers can use more components than linear
means can, and z also keeps information that only one modality shows. Chosen on splits of `config/study.yaml`, when
held-out cells were still among those of the fits."""
ENCODED, PAIRS_PER_ENCODED = 100, 10
"""Encoders read at most 100 components, as the authors' do, or one per ten paired cells if that is more. With few pairs
and more components, encoders overfit and z matches worse; the read-out, which is regularised, loses nothing by more.
Chosen on samples of training cells of `config/study.yaml` and `config/three.yaml`."""

ADVANTAGE = 0.4
"""How much better, in log(match score / FOSCTTM), held-out cells must match for components to be fitted on the query
too. Cross-validation favours these: without the query, its folds fit on fewer cells than the result does. On samples of
training cells of `config/study.yaml`, other cells matched better or worse where the difference was at most 0.25, and
better where it was 0.48 to 1.9."""

Cells = Mapping[str, ad.AnnData]
Fit = Callable[[Cells, int | None], dict[str, Preprocessor]]


def fit_preprocessors(
    cells: Cells,
    kinds: Mapping[str, str],
    n_components: int | None = None,
    n_features: Mapping[str, int] | None = None,
    seed: int = 0,
    query: Cells | None = None,
) -> dict[str, Preprocessor]:
    """Fit the components of each modality on training cells.

    If these are few or have few counts, components are mostly noise, and those that are also fitted on the query match
    better. But components fit the noise of each single cell on which they are fitted, too, which costs matches if cells
    have many counts. Cross-validation decides (`ADVANTAGE`).

    Parameters
    ----------
    cells
        Counts of each modality, with a batch in ``obs["batch"]``. Cells of the same name are the same cell.
    kinds
        The kind of each modality: ``rna``, ``atac`` or ``adt``.
    n_components
        Number of components of each modality. None chooses it by `choose_widths`, which also chooses how the read-out
        uses them (`Preprocessor.readouts`); with few pairs, encoders then read only the first (`ENCODED`).
    n_features
        See `Preprocessor`.
    query
        Cells that are to be matched, with all features of the training cells. Their pairs are not read. They only count
        if the number of components is chosen.

    Raises
    ------
    ValueError
        If a modality has too few cells or features, if they do not differ, or if the query lacks features.
    """

    def fit(some: Cells, n: int | None) -> dict[str, Preprocessor]:
        features = n_features or {}
        return {k: preprocessor(kinds[k], n, features.get(k), seed, k).fit(x, BATCH) for k, x in some.items()}

    fitted = fit(cells, n_components)
    if n_components is None:
        quality, chosen = choose_widths(cells, fitted, fit, seed)
        if query:
            of_all = fit({k: _with_query(adata, fitted[k], query.get(k)) for k, adata in cells.items()}, None)
            quality_of_all, chosen_of_all = choose_widths(cells, of_all, None, seed)
            if quality_of_all > quality + ADVANTAGE:
                fitted, chosen = of_all, chosen_of_all
        for found in fitted.values():
            found.narrow(max(chosen))
            found.encoded = max(ENCODED, len(paired_names(cells)) // PAIRS_PER_ENCODED)
            found.readouts = list(chosen.items())
    return fitted


def _with_query(adata: ad.AnnData, fitted: Preprocessor, query: ad.AnnData | None) -> ad.AnnData:
    if query is None:
        return adata
    return joined(adata, ad.AnnData(fitted.align(query), obs=query.obs[[BATCH]], var=adata.var[[]]))


def choose_widths(
    cells: Cells, fitted: dict[str, Preprocessor], fit: Fit | None, seed: int
) -> tuple[float, dict[int, Settings]]:
    """Choose, by cross-validation, numbers of components with which cells match well by linear means.

    How many components carry information that modalities share varies. It may be hundreds if cells have many counts. If
    they have few, most components are noise that encoders would fit. A canonical read-out of components shows this in
    seconds. Held-out cells must not be among those on which the components are fitted, unless the cells to be matched
    are, too: with few cells for each, components fit the noise of each single cell, and on these cells many components
    look worse than on others.

    Parameters
    ----------
    fitted
        The components of each modality, as many as possible.
    fit
        Function that fits so many components on some of the cells, to leave out the held-out ones. If it is None,
        `fitted` serves all folds.

    Returns
    -------
    quality
        How well held-out cells match with the best number, as log(match score / FOSCTTM); -inf if it is not known.
    widths
        The numbers, from the largest down in steps of √2, whose quality is within `TOLERANCE` of the best, each with
        the settings with which cells match best. Only the largest, with `DEFAULT`, if too few cells are seen in two
        modalities.
    """
    widest = max(found.width for found in fitted.values())
    widths = [widest]
    while (narrower := round(widths[-1] / 2**0.5)) >= LEAST_COMPONENTS:
        widths.append(narrower)
    paired = paired_names(cells)
    if len(paired) < N_FOLDS * MIN_HELD_OUT:
        return -np.inf, {widest: DEFAULT}
    others = pd.Index(np.concatenate([adata.obs_names for adata in cells.values()])).difference(paired)
    rng = np.random.default_rng(seed)
    paired, others = (names[rng.permutation(len(names))] for names in (paired, others))
    tables = []
    for fold in range(N_FOLDS):
        held_out = paired[fold::N_FOLDS][:MAX_HELD_OUT]
        rest = paired[~paired.isin(held_out)].append(others)[:MAX_FITTED]
        if fit is not None:
            try:
                fitted = fit({k: some for k, x in cells.items() if (some := _of_names(x, rest)).n_obs}, widest)
            except ValueError:  # only the held-out cells may have counts of a feature that the fit needs
                return -np.inf, {widest: DEFAULT}
        tables.append(_compare(cells, fitted, rest, held_out, widths))
    best = {}
    for width in widths:
        if all(table[width] for table in tables):
            means = {settings: float(np.mean([table[width][settings] for table in tables])) for settings in SETTINGS}
            settings = max(means, key=means.__getitem__)
            best[width] = means[settings], settings
    quality = max((quality for quality, _ in best.values()), default=-np.inf)
    near = {width: settings for width, (found, settings) in best.items() if found >= quality - TOLERANCE}
    return quality, near or {widest: DEFAULT}


def _compare(
    cells: Cells, fitted: dict[str, Preprocessor], rest: pd.Index, held_out: pd.Index, widths: list[int]
) -> dict[int, dict]:
    """Return for each width how well the held-out cells match with each of the settings, learned from the rest."""
    # covariances are those of paired cells, as in the read-out
    paired = rest[rest.isin(paired_names(cells))]
    names = paired.append(held_out)
    inputs, batch = rows_of({k: cells[k] for k in fitted}, names, lambda k, adata: fitted[k].transform(adata))
    is_held_out = np.arange(len(names)) >= len(paired)
    tables = {}
    for width in widths:
        narrowed = {k: fitted[k].first(x, width) for k, x in inputs.items()}
        tables[width] = qualities(narrowed, is_held_out, batch, SETTINGS, MAX_HELD_OUT)
    return tables


def _of_names(adata: ad.AnnData, names: pd.Index) -> ad.AnnData:
    """Return the cells that have one of the names."""
    row = np.flatnonzero(adata.obs_names.isin(names))
    return ad.AnnData(adata.X[row], obs=adata.obs.iloc[row], var=adata.var)
