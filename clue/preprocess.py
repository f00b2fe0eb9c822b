"""Components of counts: principal components of RNA and of surface proteins, latent semantic indexing of peaks.

Everything is fitted on training cells and applied unchanged to others. The steps are those of the authors' competition
entry, starting from raw counts; each class gives its formula.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.decomposition import principal_axes
from clue.products import times
from clue.sparse import BLOCK, as_counts, column_sums, columns, count_blocks, per_value, row_sums, with_values

MOST_COMPONENTS, CELLS_PER_COMPONENT = 400, 2
"""Limits if no number of components is given: the most components, and the fewest cells per component."""

CLIP = 10.0
"""Standardised expression is clipped to ± this many standard deviations, as in scanpy's and the authors' code."""


def preprocessor(
    kind: str, n_components: int | None = 100, n_features: int | None = None, seed: int = 0, name: str = ""
) -> "Preprocessor":
    """Return an unfitted preprocessor for this kind of modality; takes the same parameters as `Preprocessor`.

    Raises
    ------
    ValueError
        If the kind is unknown.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown modality {kind!r}; one of {', '.join(_KINDS)}")
    return _KINDS[kind](n_components, n_features, seed, name)


class Preprocessor(ABC):
    """Turns the counts of one modality into components: the protocol of `Expression`, `Proteins` and `Peaks`.

    Parameters
    ----------
    n_components
        Number of components, reduced if the data have fewer cells or features. None: one per
        `CELLS_PER_COMPONENT` cells, at most `MOST_COMPONENTS`.
    n_features
        Number of most variable genes or proteins, or of most often detected peaks, that a decoder models; None for
        all. The components of genes and proteins are made from the same selection.
    seed
        Seed of the decomposition.
    name
        Name of the modality in messages; if empty, its kind.

    Attributes
    ----------
    features
        Names of all features of the training data, in order.
    selected
        Positions of the features that decoders model.
    arrays
        Fitted means, scales and components.
    encoded
        Number of leading components that encoders read; None for all.
    readouts
        Numbers of leading components that the read-out uses, each with its settings, if `clue.components` chose them.
    """

    kind: ClassVar[str]
    per_component: ClassVar[tuple[str, ...]] = ("components",)

    def __init__(self, n_components: int | None = 100, n_features: int | None = None, seed: int = 0, name: str = ""):
        self.n_components, self.n_features, self.seed, self.name = n_components, n_features, seed, name or self.kind
        self.features = np.empty(0, dtype=str)
        self.selected = np.empty(0, dtype=int)
        self.arrays: dict[str, np.ndarray] = {}
        self.encoded: int | None = None
        self.readouts: list[tuple[int, tuple[float, int, float]]] = []

    def fit(self, adata: ad.AnnData, batch_key: str | None = "batch") -> "Preprocessor":
        """Fit on training cells; without a column `batch_key` in ``obs``, they are one batch.

        Raises
        ------
        ValueError
            If X does not hold counts, there are fewer than two cells or two features with a count, or all cells are
            alike.
        """
        for _ in count_blocks(adata.X, self.name, adata):
            pass
        batch_key = batch_key if batch_key in adata.obs else None
        self.features = adata.var_names.to_numpy().astype(str)
        counts = as_counts(adata.X)
        # upstream divides by zero for features that have no count in any training cell
        detected = column_sums(counts, np.sign)
        self.selected = np.flatnonzero(detected)
        if self.n_features is not None and self.n_features < len(self.selected):
            self.selected = self.selected[self._best(counts, detected[self.selected], adata.obs, batch_key)]
        for what, n in (("cells", counts.shape[0]), ("features with a count", len(self.selected))):
            if n < 2:
                raise ValueError(f"{self.name}: {n} {what}; at least two are needed")
        self._fit(counts)
        # single rows: scipy cannot take every n-th row of a mapped matrix whose two index arrays differ in type
        some = [counts[i : i + 1] for i in range(0, counts.shape[0], -(-counts.shape[0] // 100))]
        if np.ptp(self._transform(sp.vstack(some, format="csr")), axis=0).max() < 1e-3:
            raise ValueError(f"{self.name}: all cells are alike; there is nothing to learn from")
        return self

    def _best(
        self, counts: sp.csr_matrix, detected: np.ndarray, obs: pd.DataFrame, batch_key: str | None
    ) -> np.ndarray:
        """Return, in order, which `n_features` of the selected to model; `detected` cells show each selected one."""
        some = ad.AnnData(columns(counts, self.selected), obs=obs)
        return np.flatnonzero(highly_variable(some, self.n_features or some.n_vars, batch_key))

    @abstractmethod
    def _fit(self, counts: sp.csr_matrix) -> None:
        """Fit `arrays`; `selected` is already set."""

    @abstractmethod
    def _transform(self, counts: sp.csr_matrix) -> np.ndarray:
        """Return the components of a few cells."""

    def _axes(self, values: sp.csr_matrix, centred: bool) -> tuple[np.ndarray, np.ndarray]:
        n_components = self.n_components or max(1, min(MOST_COMPONENTS, values.shape[0] // CELLS_PER_COMPONENT))
        return principal_axes(values, n_components, centred, self.seed)

    def narrow(self, width: int) -> None:
        """Keep only the first `width` components."""
        self.arrays = self.arrays | {name: self.arrays[name][..., :width] for name in self.per_component}

    def first(self, x: np.ndarray, width: int) -> np.ndarray:
        """Convert the output of `transform` to what it would be after `narrow`."""
        return x[:, :width]

    def encoder_input(self, x: np.ndarray) -> np.ndarray:
        """Convert the output of `transform` to what encoders read, shape (n_cells, `encoder_width`)."""
        return x if self.encoder_width == x.shape[1] else self.first(x, self.encoder_width)

    # ---- applying --------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Number of components."""
        return self.arrays["components"].shape[1]

    @property
    def encoder_width(self) -> int:
        """Number of components that encoders read."""
        return min(self.encoded or self.width, self.width)

    def transform(self, adata: ad.AnnData) -> np.ndarray:
        """Return the components of `adata`, float32, shape (n_cells, width).

        Features may be in any order; surplus ones are ignored.

        Raises
        ------
        ValueError
            If `adata` lacks features of the training data (the message names some), or does not hold counts.
        """
        x = np.empty((adata.n_obs, self.width), dtype=np.float32)
        start = 0
        for block in self.transformed_blocks(adata):
            x[start : start + len(block)] = block
            start += len(block)
        return x

    def transformed_blocks(self, adata: ad.AnnData) -> Iterator[np.ndarray]:
        """Yield the output of `transform` for a thousand cells at a time; a backed AnnData is read likewise."""
        position = self._columns(adata)
        for block in count_blocks(adata.X, self.name, adata):
            yield self._transform(block if position is None else columns(block, position))

    def align(self, adata: ad.AnnData) -> sp.csr_matrix:
        """Return the counts of `adata` with the training data's features, in their order."""
        position = self._columns(adata)
        counts = as_counts(adata.X)
        return counts if position is None else columns(counts, position)

    def _columns(self, adata: ad.AnnData) -> np.ndarray | None:
        """Positions of the training data's features in `adata`; None if both have the same features in order."""
        if len(self.features) == adata.n_vars and (adata.var_names == self.features).all():
            return None
        check_unique(self.name, "features", adata.var_names)
        position = adata.var_names.get_indexer(self.features)
        missing = self.features[position < 0]
        if len(missing):
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            raise ValueError(f"{self.name} lacks {len(missing)} of {len(self.features)} features: {shown}")
        return position

    # ---- saving ----------------------------------------------------------------------------------

    def state(self) -> dict:
        """Return everything fitted, as plain values and arrays."""
        return {"kind": self.kind, **vars(self)}

    @staticmethod
    def from_state(state: dict) -> "Preprocessor":
        """Restore a preprocessor from its `state`."""
        restored = preprocessor(state["kind"])
        vars(restored).update((name, value) for name, value in state.items() if name != "kind")
        restored.features = np.asarray(restored.features)
        return restored


class Expression(Preprocessor):
    """RNA: principal components of clip((log(1 + 10⁴ c / Σc) − mean) / sd, ±10) for the most variable genes."""

    kind = "rna"

    def _fit(self, counts: sp.csr_matrix) -> None:
        """Fit without a dense matrix: a standardised zero is the same for all cells of a gene.

        So the standardised matrix is the sum of a sparse matrix, the differences from that zero, and a constant row,
        which centring removes.
        """
        # A matrix of most genes would take as much memory as the counts. New values in their pattern take half of that,
        # with zeros for the genes that are not selected.
        narrowed = len(self.selected) <= counts.shape[1] / 2
        kept = np.arange(len(self.selected)) if narrowed else self.selected
        values = self._normalised(counts, narrowed)
        mean = column_sums(values) / values.shape[0]
        variance = column_sums(values, np.square) / values.shape[0] - mean**2
        sd = np.full(len(mean), np.inf)
        sd[kept] = _not_constant(mean, np.sqrt(np.maximum(variance, 0)))[kept]
        zero = np.clip(-mean / sd, -CLIP, CLIP)

        def differences(block: sp.csr_matrix, rows: slice) -> np.ndarray:
            gene = block.indices
            return np.clip((block.data - mean[gene]) / sd[gene], -CLIP, CLIP) - zero[gene]

        centre, axes = self._axes(with_values(values, differences, overwrite=True), centred=True)
        self.arrays = {"mean": mean, "sd": sd, "centre": zero + centre, "components": axes}
        self.arrays = {name: array[kept].astype(np.float32) for name, array in self.arrays.items()}

    def _normalised(self, counts: sp.csr_matrix, narrowed: bool = True) -> sp.csr_matrix:
        total = np.maximum(row_sums(counts), 1)
        some = columns(counts, self.selected) if narrowed else counts

        def scaled(block: sp.csr_matrix, rows: slice) -> np.ndarray:
            return np.log1p(block.data * per_value(block, 1e4 / total[rows]))

        return with_values(some, scaled, overwrite=some is not counts)

    def _transform(self, counts: sp.csr_matrix) -> np.ndarray:
        return _standardised(self._normalised(counts).toarray(), self.arrays) @ self.arrays["components"]


class Proteins(Preprocessor):
    """Surface proteins: principal components of clip((x − mean) / sd, ±10), x = log(1 + c) centred within each cell."""

    kind = "adt"

    def _fit(self, counts: sp.csr_matrix) -> None:
        values = self._normalised(counts)
        mean, sd = _mean_and_sd(values)
        self.arrays = {"mean": mean.astype(np.float32), "sd": sd.astype(np.float32), "centre": np.zeros(1, np.float32)}
        centre, axes = self._axes(sp.csr_matrix(_standardised(values, self.arrays)), centred=True)
        self.arrays |= {"centre": centre.astype(np.float32), "components": axes}

    def _normalised(self, counts: sp.csr_matrix) -> np.ndarray:
        logs = np.log1p(counts[:, self.selected].toarray())
        return logs - logs.mean(axis=1, keepdims=True)

    def _transform(self, counts: sp.csr_matrix) -> np.ndarray:
        return _standardised(self._normalised(counts), self.arrays) @ self.arrays["components"]


class Peaks(Preprocessor):
    """Chromatin accessibility: latent semantic indexing.

    Term frequency times inverse document frequency, c / Σc · cells / Σ_cells c, is scaled to a sum of 10⁴ in each cell;
    log(1 + x) is projected onto its leading singular vectors. Scores are standardised over the training cells. Then the
    scores of each cell are scaled to a root mean square of 1, which removes the remaining effect of its depth.

    Upstream also subtracts each cell's mean over the components. That mean depends on the components' arbitrary signs.
    Subtracting it loses one direction, which costs matches if few components are kept.
    """

    kind = "atac"
    per_component = ("components", "score_mean", "score_sd")

    def _best(
        self, counts: sp.csr_matrix, detected: np.ndarray, obs: pd.DataFrame, batch_key: str | None
    ) -> np.ndarray:
        return np.sort(np.argsort(-detected, kind="stable")[: self.n_features])

    def _fit(self, counts: sp.csr_matrix) -> None:
        per_peak = column_sums(counts)
        idf = np.divide(counts.shape[0], per_peak, out=np.zeros(len(per_peak)), where=per_peak > 0)
        self.arrays = {"idf": idf.astype(np.float32)}
        values = self._normalised(counts)
        axes = self._axes(values, centred=False)[1]
        mean, sd = _mean_and_sd(times(values, axes))
        # beyond the rank of the counts, scores are rounding errors: set them to 0
        sd[sd < 1e-5 * sd.max()] = np.inf
        self.arrays |= {"components": axes, "score_mean": mean.astype(np.float32), "score_sd": sd.astype(np.float32)}

    def _normalised(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        total = np.maximum(row_sums(counts), 1)

        def scaled(block: sp.csr_matrix, rows: slice) -> np.ndarray:
            tf_idf = block.data * self.arrays["idf"][block.indices] * per_value(block, 1 / total[rows])
            weight = np.bincount(per_value(block, np.arange(block.shape[0])), tf_idf, minlength=block.shape[0])
            return np.log1p(tf_idf * per_value(block, 1e4 / np.where(weight > 0, weight, 1)))

        return with_values(counts, scaled)

    def _transform(self, counts: sp.csr_matrix) -> np.ndarray:
        scores = times(self._normalised(counts), self.arrays["components"])
        return _of_one_scale((scores - self.arrays["score_mean"]) / self.arrays["score_sd"])

    def first(self, x: np.ndarray, width: int) -> np.ndarray:
        return _of_one_scale(x[:, :width])


_KINDS: dict[str, type[Preprocessor]] = {kind.kind: kind for kind in (Expression, Peaks, Proteins)}


def _standardised(values: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    values = (values - arrays["mean"]) / arrays["sd"]
    return np.clip(values, -CLIP, CLIP, out=values) - arrays["centre"]


def _of_one_scale(scores: np.ndarray) -> np.ndarray:
    """Scale the scores of each cell to a root mean square of 1."""
    size = np.sqrt(np.square(scores).mean(axis=1, keepdims=True))
    return (scores / np.where(size > 0, size, 1)).astype(np.float32)


def _mean_and_sd(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and standard deviation of each column, summed in float64; a constant column gets deviation 1."""
    mean = values.mean(axis=0, dtype=np.float64)
    squares = sum(np.square(values[i : i + BLOCK] - mean).sum(axis=0) for i in range(0, len(values), BLOCK))
    return mean, _not_constant(mean, np.sqrt(squares / len(values)))


def _not_constant(mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """Return `sd`, but 1 for a constant feature, whose deviation is only rounding error."""
    return np.where(sd > 1e-6 * np.abs(mean), sd, 1)


def check_unique(modality: str, what: str, names: pd.Index) -> None:
    """Raise an error if names repeat."""
    if not names.is_unique:
        raise ValueError(f"{modality}: several {what} are named {names[names.duplicated()][0]!r}")


# ---- which genes -----------------------------------------------------------------------------------

SPANS = (0.3, 1.0)
"""Shares of the genes that the variance fit uses around each gene: scanpy's default, and all genes."""


def highly_variable(adata: ad.AnnData, n_top: int, batch_key: str | None) -> np.ndarray:
    """Return a mask of the `n_top` most variable genes (flavour seurat_v3 on counts, batch-aware).

    The variance fit is meaningless for a batch of fewer than 50 cells. If there is such a batch, the selection
    ignores batches.

    If counts are few, many genes have the same mean, and the fit of variance on mean fails. Then, with a warning,
    it uses more genes at a time (`SPANS`), then the cells of all batches together. If that fails too, genes are
    ranked by the variance of their counts.
    """
    if n_top >= adata.n_vars:
        return np.ones(adata.n_vars, dtype=bool)
    sizes = list(adata.obs[batch_key].value_counts()) if batch_key else []
    keys = [batch_key, None] if len(sizes) > 1 and min(sizes) >= 50 else [None]
    attempts = [(key, span) for key in keys for span in SPANS]
    for key, span in attempts:
        try:
            chosen = _seurat_v3(adata, n_top, key, span)
        except ValueError:
            continue
        if (key, span) != attempts[0]:
            used = f"the fit of {'each batch' if key else 'all cells'} has span {span}"
            warnings.warn(f"variable genes: too few counts for scanpy's fit; {used}", stacklevel=2)
        return chosen
    warnings.warn("variable genes: too few counts for scanpy's fit; genes are ranked by their variance", stacklevel=2)
    variance = column_sums(adata.X, np.square) / adata.n_obs - (column_sums(adata.X) / adata.n_obs) ** 2
    chosen = np.zeros(adata.n_vars, dtype=bool)
    chosen[np.argsort(-variance, kind="stable")[:n_top]] = True
    return chosen


def _seurat_v3(adata: ad.AnnData, n_top: int, batch_key: str | None, span: float) -> np.ndarray:
    """Return scanpy's mask; raise a ValueError if its local regression fails, or would crash."""
    import scanpy as sc

    batches = adata.obs.groupby(batch_key, observed=True).indices.values() if batch_key else [np.arange(adata.n_obs)]
    # With no gene within its span, the regression, which is compiled code, would crash the process.
    if any(span * _n_varying(adata.X[rows[:BLOCK]]) < 1 for rows in batches):
        raise ValueError(f"too few genes vary for a fit of span {span}")
    table = sc.pp.highly_variable_genes(
        ad.AnnData(adata.X, obs=adata.obs[[batch_key]] if batch_key else None, var=adata.var[[]]),
        n_top_genes=n_top,
        flavor="seurat_v3",
        batch_key=batch_key,
        span=span,
        inplace=False,
    )
    return table["highly_variable"].to_numpy()


def _n_varying(counts: sp.csr_matrix) -> int:
    """Return how many columns are not constant."""
    return int(np.sum(counts.shape[0] * column_sums(counts, np.square) > column_sums(counts) ** 2))
