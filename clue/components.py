"""Fit the components of each modality; how many to use, and how, is decided by how well held-out cells match."""

from collections.abc import Callable, Mapping

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.data import BATCH, paired_names, rows_of
from clue.disk import is_mapped, mapped
from clue.preprocess import Preprocessor, preprocessor
from clue.readout import DEFAULT, LIFTS, MIN_HELD_OUT, Settings, qualities
from clue.sparse import BLOCK

LEAST_COMPONENTS = 25
"""The smallest number of components to consider."""
N_FOLDS, MAX_HELD_OUT = 3, 1000
MAX_FITTED = 10_000
"""Most cells from which a fold learns; more only cost time."""
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
"""How much better, in log(match score / FOSCTTM), held-out cells must match for components of all cells to be taken,
and not those of paired cells alone. Cross-validation favours the former, since folds of the latter fit on fewer cells
than the result does. On samples of training cells of `config/study.yaml`, other cells matched better or worse where the
difference was at most 0.25, and better where it was 0.48 to 1.9."""

Cells = Mapping[str, ad.AnnData]
Fit = Callable[[Cells, int | None], dict[str, Preprocessor]]


def fit_preprocessors(
    cells: Cells,
    kinds: Mapping[str, str],
    n_components: int | None = None,
    n_features: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Preprocessor]:
    """Fit the components of each modality.

    Components also fit the noise of the single cells on which they are fitted. So cells seen in one modality alone,
    which are to be matched, are better left out. But components of few cells, or of cells with few counts, are mostly
    noise; these are better fitted on all cells. Cross-validation decides (`ADVANTAGE`).

    Parameters
    ----------
    cells
        Counts of each modality, with a batch in ``obs["batch"]``. Cells of the same name are the same cell.
    kinds
        The kind of each modality: ``rna``, ``atac`` or ``adt``.
    n_components
        Number of components of each modality, fitted on all cells. None chooses it by `choose_widths`, which also
        chooses how the read-out uses them (`Preprocessor.readouts`); with few pairs, encoders then read only the first
        (`ENCODED`).
    n_features
        See `Preprocessor`.

    Raises
    ------
    ValueError
        If a modality has too few cells or features, or if they do not differ.
    """

    def fit(some: Cells, n: int | None) -> dict[str, Preprocessor]:
        features = n_features or {}
        return {k: preprocessor(kinds[k], n, features.get(k), seed, k).fit(x, BATCH) for k, x in some.items()}

    if n_components is not None:
        return fit(cells, n_components)
    paired = paired_names(cells)
    of_pairs = {k: _of_names(adata, paired) for k, adata in cells.items()}
    none_alone = all(of_pairs[k].n_obs == adata.n_obs for k, adata in cells.items())
    try:
        fitted = fit(of_pairs, None)
        quality, chosen = choose_widths(of_pairs, fitted, fit, seed)
    except ValueError:  # the paired cells alone may be too few
        if none_alone:
            raise
        quality = -np.inf
    if not none_alone:
        of_all = fit(cells, None)
        quality_of_all, chosen_of_all = choose_widths(of_pairs, of_all, None, seed)
        if not quality > quality_of_all - ADVANTAGE:
            fitted, chosen = of_all, chosen_of_all
    for found in fitted.values():
        found.narrow(max(chosen))
        found.encoded = max(ENCODED, len(paired) // PAIRS_PER_ENCODED)
        found.readouts = list(chosen.items())
    return fitted


def choose_widths(
    cells: Cells, fitted: dict[str, Preprocessor], fit: Fit | None, seed: int
) -> tuple[float, dict[int, Settings]]:
    """Choose, by cross-validation, numbers of components with which paired cells match well by linear means.

    How many components carry information that modalities share varies. It may be hundreds if cells have many counts. If
    they have few, most components are noise that encoders would fit. A canonical read-out of components shows this in
    seconds. Held-out cells must be among those on which the components are fitted if the cells to be matched are, and
    otherwise not: on fitted cells, many components look worse than they are on others.

    Parameters
    ----------
    cells
        Cells seen in several modalities.
    fitted
        The components of each modality, with the most components.
    fit
        Function that fits so many components on some of the cells, for each fold without its held-out cells. None if
        these must be among the fitted; then `fitted` serves all folds.

    Returns
    -------
    quality
        How well held-out cells match with the best number, as log(match score / FOSCTTM); -inf if it is not known.
    widths
        The numbers, from the largest down in steps of √2, whose quality is within `TOLERANCE` of the best, each with
        the settings with which cells match best. Only the largest, with `DEFAULT`, if there are too few cells to tell.
    """
    widest = max(found.width for found in fitted.values())
    widths = [widest]
    while (narrower := round(widths[-1] / 2**0.5)) >= LEAST_COMPONENTS:
        widths.append(narrower)
    unknown = -np.inf, {widest: DEFAULT}
    names = paired_names(cells)
    if len(names) < N_FOLDS * MIN_HELD_OUT:
        return unknown
    names = names[np.random.default_rng(seed).permutation(len(names))]
    tables = []
    for fold in range(N_FOLDS):
        held_out = names[fold::N_FOLDS][:MAX_HELD_OUT]
        rest = names[~names.isin(held_out)][:MAX_FITTED]
        if fit is not None:
            try:
                fitted = fit({k: some for k, x in cells.items() if (some := _of_names(x, rest)).n_obs}, widest)
            except ValueError:  # only the held-out cells may have counts of a feature that the fit needs
                return unknown
        tables.append(_compare(cells, fitted, rest, held_out, widths))
    best = {}
    for width in widths:
        if all(table[width] for table in tables):
            means = {settings: float(np.mean([table[width][settings] for table in tables])) for settings in SETTINGS}
            settings = max(means, key=means.__getitem__)
            best[width] = means[settings], settings
    quality = max((quality for quality, _ in best.values()), default=-np.inf)
    near = {width: settings for width, (found, settings) in best.items() if found >= quality - TOLERANCE}
    return (quality, near) if near else unknown


def _compare(
    cells: Cells, fitted: dict[str, Preprocessor], rest: pd.Index, held_out: pd.Index, widths: list[int]
) -> dict[int, dict]:
    """Return for each width how well held-out cells match with each of the settings, learned from the `rest`."""
    names = rest.append(held_out)
    inputs, batch = rows_of({k: cells[k] for k in fitted}, names, lambda k, adata: fitted[k].transform(adata))
    is_held_out = np.arange(len(names)) >= len(rest)
    tables = {}
    for width in widths:
        narrowed = {k: fitted[k].first(x, width) for k, x in inputs.items()}
        tables[width] = qualities(narrowed, is_held_out, batch, SETTINGS, MAX_HELD_OUT)
    return tables


def _of_names(adata: ad.AnnData, names: pd.Index) -> ad.AnnData:
    """Return the cells that have one of the names; counts in a file stay in one."""
    row = np.flatnonzero(adata.obs_names.isin(names))
    if len(row) == adata.n_obs:
        return adata
    if len(row) and len(row) == row[-1] + 1:  # a view of the first rows, where paired cells often are
        data, indices, indptr = adata.X.data, adata.X.indices, adata.X.indptr[: len(row) + 1]
        counts = sp.csr_matrix((data[: indptr[-1]], indices[: indptr[-1]], indptr), shape=(len(row), adata.n_vars))
    elif is_mapped(adata.X.data):
        counts = mapped((adata.X[row[i : i + BLOCK]] for i in range(0, len(row), BLOCK)), adata.n_vars)
    else:
        counts = adata.X[row]
    return ad.AnnData(counts, obs=adata.obs.iloc[row], var=adata.var)
