"""Fit the components of each modality; how many to use, and how, is decided by how well held-out cells match."""

from collections.abc import Callable, Mapping

import anndata as ad
import numpy as np
import pandas as pd

from clue.data import BATCH, paired_names, rows_of
from clue.preprocess import Preprocessor, preprocessor
from clue.readout import DEFAULT, LIFTS, MIN_HELD_OUT, Settings, qualities

LEAST_COMPONENTS = 25
"""The smallest number of components to consider."""
N_FOLDS, MAX_HELD_OUT = 3, 1000
MAX_FITTED = 10_000
"""Most paired cells from which a fold learns; more only cost time."""
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

Cells = Mapping[str, ad.AnnData]
Fit = Callable[[Cells], dict[str, Preprocessor]]


def fit_preprocessors(
    cells: Cells,
    kinds: Mapping[str, str],
    n_components: int | None = None,
    n_features: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Preprocessor]:
    """Fit the components of each modality.

    Parameters
    ----------
    cells
        Counts of each modality, with a batch in ``obs["batch"]``. Cells of the same name are the same cell. Cells seen
        in one modality count too: of few or sparse cells, components are mostly noise.
    kinds
        The kind of each modality: ``rna``, ``atac`` or ``adt``.
    n_components
        Number of components of each modality. None chooses it by `choose_widths`, which also chooses how the read-out
        uses them (`Preprocessor.readouts`); with few pairs, encoders then read only the first (`ENCODED`).
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

    fitted = fit(cells, n_components)
    if n_components is None:
        widest = max(found.width for found in fitted.values())
        chosen = choose_widths(cells, fitted, lambda some: fit(some, widest), seed)
        for found in fitted.values():
            found.narrow(max(chosen))
            found.encoded = max(ENCODED, len(paired_names(cells)) // PAIRS_PER_ENCODED)
            found.readouts = list(chosen.items())
    return fitted


def choose_widths(cells: Cells, fitted: dict[str, Preprocessor], fit: Fit, seed: int) -> dict[int, Settings]:
    """Choose, by cross-validation, numbers of components with which cells match well by linear means.

    How many components carry information that modalities share varies. It may be hundreds if cells have many counts. If
    they have few, most components are noise that encoders would fit. A canonical read-out of components shows this in
    seconds.

    Held-out cells must be like those that will be matched. Components also fit the noise of the single cells on which
    they are fitted, and such cells match worse with many components than others do. If all cells are paired, others
    will be matched, so each fold fits components without its held-out cells. If some are seen in one modality alone,
    these will be matched, and they are among the fitted; then so are the held-out cells.

    Parameters
    ----------
    fitted
        The components of each modality, fitted on all cells.
    fit
        Function that fits as many components of each modality on some of the cells.

    Returns
    -------
    The numbers, from the largest down in steps of √2, whose quality is within `TOLERANCE` of the best, each with the
    settings with which cells match best. Only the largest, with `DEFAULT`, if too few cells are seen in two modalities.
    """
    widths = [max(found.width for found in fitted.values())]
    while (narrower := round(widths[-1] / 2**0.5)) >= LEAST_COMPONENTS:
        widths.append(narrower)
    paired = paired_names(cells)
    if len(paired) < N_FOLDS * MIN_HELD_OUT:
        return {widths[0]: DEFAULT}
    all_paired = all(adata.obs_names.isin(paired).all() for adata in cells.values())
    paired = paired[np.random.default_rng(seed).permutation(len(paired))]
    tables = []
    for fold in range(N_FOLDS):
        held_out = paired[fold::N_FOLDS][:MAX_HELD_OUT]
        rest = paired[~paired.isin(held_out)][:MAX_FITTED]
        if all_paired:
            try:
                fitted = fit({k: _of_names(adata, rest) for k, adata in cells.items()})
            except ValueError:  # only the held-out cells may have counts of a feature that the fit needs
                return {widths[0]: DEFAULT}
        tables.append(_compare(cells, fitted, rest, held_out, widths))
    best = {}
    for width in widths:
        if all(table[width] for table in tables):
            means = {settings: float(np.mean([table[width][settings] for table in tables])) for settings in SETTINGS}
            settings = max(means, key=means.__getitem__)
            best[width] = means[settings], settings
    least = max((quality for quality, _ in best.values()), default=0.0) - TOLERANCE
    return {width: settings for width, (quality, settings) in best.items() if quality >= least} or {widths[0]: DEFAULT}


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
    """Return the cells that have one of the names."""
    row = np.flatnonzero(adata.obs_names.isin(names))
    return ad.AnnData(adata.X[row], obs=adata.obs.iloc[row], var=adata.var)
