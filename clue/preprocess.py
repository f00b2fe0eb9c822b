"""Encoder inputs: principal components of RNA and surface proteins, latent semantic indexing of peaks.

Everything is fitted on training cells and applied to others unchanged. The steps are those of the
authors' competition entry (facts of each in the methods' docstrings), from raw counts.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import anndata as ad
import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.utils.extmath import randomized_svd, svd_flip

from clue.disk import as_type, fill, filled, is_mapped, mapped

CLIP = 10.0
"""Standardised expression is clipped to ± this many standard deviations, as scanpy's and the authors' code do."""

BLOCK = 1024
"""Cells that are read, or made dense, at a time. Dense blocks come on top of the counts: RNA of the competition's size
needs 1.86 times its counts, and with 4096 cells 2.05 times (`benchmarks/preprocess_scale.py`)."""

SMALL_COVARIANCE = 2000
"""Genes up to which principal components are computed from the covariance matrix."""


def row_blocks(matrix) -> Iterator[sp.csr_matrix]:
    """Yield all rows in blocks; `matrix` may be sparse, dense, or in a file (`X` of a backed AnnData)."""
    for start in range(0, matrix.shape[0], BLOCK):
        yield sp.csr_matrix(matrix[start : start + BLOCK])


def as_counts(matrix) -> sp.csr_matrix:
    """Return a matrix, which may be in a file, as CSR in float32 that stores each entry once.

    It shares the memory of `matrix` where that is so already.
    """
    counts = sp.csr_matrix(matrix if sp.issparse(matrix) or isinstance(matrix, np.ndarray) else matrix[:])
    canonical = counts.has_canonical_format
    # before entries are added up: 8 bits hold 255 at most
    if counts.dtype != np.float32:
        parts = as_type(counts.data, np.float32), counts.indices, counts.indptr
        counts = sp.csr_matrix(parts, shape=counts.shape)
    if not canonical:
        counts = counts.copy()
        counts.sum_duplicates()
    return counts


def count_blocks(matrix, modality: str) -> Iterator[sp.csr_matrix]:
    """Yield all rows in blocks (`as_counts`).

    Raises
    ------
    ValueError
        If `matrix` does not hold counts; the message names the modality.
    """
    if matrix is None:
        raise ValueError(f"{modality}: there is no X, which must hold raw counts")
    for block in row_blocks(matrix):
        values = block.data
        wrong = ~(np.isfinite(values) & (values >= 0) & (values == np.round(values)))
        if wrong.any():
            raise ValueError(f"{modality}: X must hold raw counts, whole numbers from 0 up, not {values[wrong][0]}")
        yield as_counts(block)


def row_sums(matrix: sp.csr_matrix, function: Callable[[np.ndarray], np.ndarray] = np.positive) -> np.ndarray:
    """Return the sum of each row, or of a function of its non-zeros, added up in float64."""
    parts = (
        np.bincount(_per_value(block, np.arange(block.shape[0])), function(block.data.astype(float)), block.shape[0])
        for block in row_blocks(matrix)
    )
    return np.concatenate([np.zeros(0), *parts])


def column_sums(matrix: sp.csr_matrix, function: Callable[[np.ndarray], np.ndarray] = np.positive) -> np.ndarray:
    """Return the sum of each column, or of a function of its non-zeros, added up in float64.

    scipy's ``sum`` adds float32 in float32, whatever `dtype` it is given, and so loses what is small beside the sum.
    """
    sums = np.zeros(matrix.shape[1])
    for block in row_blocks(matrix):
        sums += np.bincount(block.indices, function(block.data.astype(float)), matrix.shape[1])
    return sums


def columns(matrix: sp.csr_matrix, chosen: np.ndarray) -> sp.csr_matrix:
    """Return the columns `chosen`: of all in order, `matrix` itself; of a mapped matrix, a mapped one."""
    if np.array_equal(chosen, np.arange(matrix.shape[1])):
        return matrix
    if is_mapped(matrix.data):
        return mapped((_some(block, chosen) for block in row_blocks(matrix)), len(chosen))
    return _some(matrix, chosen)


def _some(matrix: sp.csr_matrix, chosen: np.ndarray) -> sp.csr_matrix:
    matrix = matrix[:, chosen]
    # else another order of features would be another order of sums
    matrix.sort_indices()
    return matrix


def size_normalised(counts: sp.csr_matrix, chosen: np.ndarray, target: float = 1e4) -> sp.csr_matrix:
    """Scale every cell to `target` counts and take log(1 + x); return the columns `chosen`."""
    total = row_sums(counts)
    some = columns(counts, chosen)

    def scaled(block: sp.csr_matrix, rows: slice) -> np.ndarray:
        return np.log1p(block.data * _per_value(block, target / _above(total[rows])))

    return _with_values(some, scaled, overwrite=some is not counts)


def _above(total: np.ndarray) -> np.ndarray:
    return np.maximum(total, 1)


def _per_value(block: sp.csr_matrix, of_row: np.ndarray) -> np.ndarray:
    return np.repeat(of_row, np.diff(block.indptr))


def _with_values(
    matrix: sp.csr_matrix, values: Callable[[sp.csr_matrix, slice], np.ndarray], overwrite: bool = False
) -> sp.csr_matrix:
    """Return a float32 matrix of the same pattern, sharing its memory; `values` gets some rows and which they are.

    `overwrite` says that the old values are needed no more: new ones take their place if they are of the same type.
    """
    slices = (slice(start, start + BLOCK) for start in range(0, matrix.shape[0], BLOCK))
    parts = (values(matrix[rows], rows) for rows in slices)
    if overwrite and matrix.data.dtype == np.float32:
        fill(matrix.data, parts)
        return matrix
    data = filled(parts, matrix.nnz, np.float32, is_mapped(matrix.data))
    return sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def centred_log_ratio(counts: sp.csr_matrix) -> np.ndarray:
    """Centred log-ratio within each cell, of counts + 1 (surface proteins), dense."""
    logs = np.log1p(counts.toarray())
    return (logs - logs.mean(axis=1, keepdims=True)).astype(np.float32)


SPANS = (0.3, 1.0)
"""Shares of the genes that the variance fit reads around each gene: scanpy's default, and all of them."""


def highly_variable(adata: ad.AnnData, n_top: int, batch_key: str | None) -> np.ndarray:
    """Return a mask of the `n_top` most variable genes (flavour seurat_v3 on counts, batch-aware).

    Batches with fewer than 50 cells would make the variance fit of a batch meaningless; with such
    a batch present the selection ignores batches.

    Where counts are few, many genes have the same mean and the fit of variance by mean fails. Then, with a warning,
    it reads more genes at a time (`SPANS`), then the cells of all batches together; if that fails too, genes are
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
            used = f"that of {'each batch' if key else 'all cells'} has span {span}"
            warnings.warn(f"variable genes: too few counts for scanpy's fit; {used}", stacklevel=2)
        return chosen
    warnings.warn("variable genes: too few counts for scanpy's fit; genes are ranked by their variance", stacklevel=2)
    variance = column_sums(adata.X, np.square) / adata.n_obs - (column_sums(adata.X) / adata.n_obs) ** 2
    chosen = np.zeros(adata.n_vars, dtype=bool)
    chosen[np.argsort(-variance, kind="stable")[:n_top]] = True
    return chosen


def _seurat_v3(adata: ad.AnnData, n_top: int, batch_key: str | None, span: float) -> np.ndarray:
    """Return scanpy's mask; a ValueError of its local regression says that there is no fit."""
    import scanpy as sc

    table = sc.pp.highly_variable_genes(
        ad.AnnData(adata.X, obs=adata.obs[[batch_key]] if batch_key else None, var=adata.var[[]]),
        n_top_genes=n_top,
        flavor="seurat_v3",
        batch_key=batch_key,
        span=span,
        inplace=False,
    )
    return table["highly_variable"].to_numpy()


@dataclass
class Preprocessor:
    """Encoder input of one modality.

    Parameters
    ----------
    modality
        ``rna``: size-normalised, log, the most variable genes, standardised, principal components.
        ``adt``: the same from centred log-ratios, all proteins.
        ``atac``: TF-IDF, L1 × 10⁴, log, truncated SVD; components standardised over training cells,
        then within each cell.
    n_components
        Width of the encoder input; lowered where the data have fewer cells or features.
    n_features
        Most variable genes (``rna``) or most often detected peaks (``atac``) to use; None for all.
        These are also the features that a decoder models.
    seed
        Seed of the randomised SVD.
    """

    modality: str
    n_components: int = 100
    n_features: int | None = None
    seed: int = 0
    features: np.ndarray = field(default=cast(np.ndarray, None), repr=False)
    """Names of all features of the training data, in order."""
    selected: np.ndarray = field(default=cast(np.ndarray, None), repr=False)
    """Positions of the features used."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Fitted means, scales and components."""

    def fit(self, adata: ad.AnnData, batch_key: str | None = "batch") -> "Preprocessor":
        """Fit on training cells.

        Raises
        ------
        ValueError
            If the modality is unknown.
        """
        if self.modality not in ("rna", "adt", "atac"):
            raise ValueError(f"unknown modality {self.modality!r}; one of rna, atac, adt")
        self.features = adata.var_names.to_numpy().astype(str)
        counts = as_counts(adata.X)
        self.selected = np.flatnonzero(self._select(counts, adata, batch_key))
        fit = self._fit_peaks if self.modality == "atac" else self._fit_expression
        fit(counts)
        return self

    def _select(self, counts: sp.csr_matrix, adata: ad.AnnData, batch_key: str | None) -> np.ndarray:
        """Features seen in some training cell (upstream divides by zero on others), best first."""
        detected = column_sums(counts, np.sign)
        keep = detected > 0
        if self.n_features is None or self.n_features >= keep.sum():
            return keep
        if self.modality == "atac":
            chosen = np.argsort(-detected, kind="stable")[: self.n_features]
        else:
            seen = np.flatnonzero(keep)
            some = ad.AnnData(columns(counts, seen), obs=adata.obs, var=adata.var[[]].iloc[seen])
            chosen = seen[highly_variable(some, self.n_features, batch_key)]
        mask = np.zeros(adata.n_vars, dtype=bool)
        mask[chosen] = True
        return mask & keep

    # ---- RNA and proteins: standardised principal components -------------------------------------

    def _expression(self, counts: sp.csr_matrix) -> np.ndarray:
        if self.modality == "adt":
            return centred_log_ratio(counts[:, self.selected])
        return size_normalised(counts, self.selected).toarray()

    def _standardise(self, values: np.ndarray) -> np.ndarray:
        values = (values - self.arrays["mean"]) / self.arrays["std"]
        return np.clip(values, -CLIP, CLIP, out=values)

    def _fit_expression(self, counts: sp.csr_matrix) -> None:
        if self.modality == "rna":
            self._fit_sparse(size_normalised(counts, self.selected))
            return
        values = self._expression(counts)
        mean, std = _mean_and_std(values)
        self.arrays = {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
        values = self._standardise(values)
        self.arrays["centre"] = values.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.arrays["components"] = self._components(values - self.arrays["centre"])

    def _fit_sparse(self, values: sp.csr_matrix) -> None:
        """Fit without a dense matrix, overwriting `values`: a standardised zero is the same for all cells of a gene.

        So the standardised matrix is a sparse one, of the differences from that zero, and a constant row, which
        centring removes.
        """
        mean = column_sums(values) / values.shape[0]
        variance = column_sums(values, np.square) / values.shape[0] - mean**2
        std = _not_constant(mean, np.sqrt(np.maximum(variance, 0)))
        self.arrays = {"mean": mean.astype(np.float32), "std": std.astype(np.float32)}
        zero = np.clip(-mean / std, -CLIP, CLIP)

        def differences(block: sp.csr_matrix, rows: slice) -> np.ndarray:
            gene = block.indices
            return np.clip((block.data - mean[gene]) / std[gene], -CLIP, CLIP) - zero[gene]

        sparse = _with_values(values, differences, overwrite=True)
        n_components = self._n_components(sparse.shape)
        # the eigenvectors of a small covariance matrix cost a fraction of hundreds of Lanczos vectors
        if sparse.shape[1] <= SMALL_COVARIANCE:
            centre, axes = _principal_axes(sparse, n_components)
        else:
            pca = PCA(n_components, svd_solver="arpack", tol=1e-6, random_state=self.seed).fit(sparse)
            centre, axes = pca.mean_, pca.components_
        self.arrays["centre"] = (zero + centre).astype(np.float32)
        self.arrays["components"] = np.ascontiguousarray(axes.T, dtype=np.float32)

    def _components(self, values: np.ndarray | sp.csr_matrix) -> np.ndarray:
        _, _, vt = randomized_svd(values, self._n_components(values.shape), n_iter=15, random_state=self.seed)
        return np.ascontiguousarray(vt.T, dtype=np.float32)

    def _n_components(self, shape: tuple[int, int]) -> int:
        return min(self.n_components, min(shape) - 1)

    # ---- chromatin accessibility: latent semantic indexing ---------------------------------------

    def _tf_idf(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        total = row_sums(counts)

        def scaled(block: sp.csr_matrix, rows: slice) -> np.ndarray:
            tf_idf = block.data * self.arrays["idf"][block.indices] * _per_value(block, 1 / _above(total[rows]))
            weight = np.bincount(_per_value(block, np.arange(block.shape[0])), tf_idf, minlength=block.shape[0])
            return np.log1p(tf_idf * _per_value(block, 1e4 / np.where(weight > 0, weight, 1)))

        return _with_values(counts, scaled)

    def _fit_peaks(self, counts: sp.csr_matrix) -> None:
        per_peak = column_sums(counts)
        idf = np.zeros(counts.shape[1])
        idf[per_peak > 0] = counts.shape[0] / per_peak[per_peak > 0]
        self.arrays = {"idf": idf.astype(np.float32)}
        values = self._tf_idf(counts)
        self.arrays["components"] = self._components(values)
        scores = values @ self.arrays["components"]
        mean, std = _mean_and_std(scores, ddof=1)
        self.arrays["score_mean"], self.arrays["score_std"] = mean.astype(np.float32), std.astype(np.float32)

    # ---- applying --------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Number of components of the encoder input."""
        return self.arrays["components"].shape[1]

    def transform(self, adata: ad.AnnData) -> np.ndarray:
        """Return the encoder input of `adata`, float32, shape (n_cells, width).

        Features may stand in any order; surplus ones are ignored.

        Raises
        ------
        ValueError
            If `adata` lacks features of the training data, of which the message names some, or does not hold counts.
        """
        x = np.empty((adata.n_obs, self.width), dtype=np.float32)
        start = 0
        for block in self.transformed_blocks(adata):
            x[start : start + len(block)] = block
            start += len(block)
        return x

    def transformed_blocks(self, adata: ad.AnnData) -> Iterator[np.ndarray]:
        """Yield what `transform` returns for a few thousand cells at a time; of a backed AnnData no more is read."""
        position = self._columns(adata)
        for block in count_blocks(adata.X, self.modality):
            yield self._transform(block if position is None else columns(block, position))

    def _transform(self, counts: sp.csr_matrix) -> np.ndarray:
        if self.modality != "atac":
            values = self._standardise(self._expression(counts)) - self.arrays["centre"]
            return (values @ self.arrays["components"]).astype(np.float32)
        scores = self._tf_idf(counts) @ self.arrays["components"]
        scores = (scores - self.arrays["score_mean"]) / self.arrays["score_std"]
        scores -= scores.mean(axis=1, keepdims=True)
        std = scores.std(axis=1, ddof=1, keepdims=True)
        return (scores / np.where(std > 0, std, 1)).astype(np.float32)

    def align(self, adata: ad.AnnData) -> sp.csr_matrix:
        """Return the counts of `adata` with the training data's features, in their order."""
        position = self._columns(adata)
        counts = as_counts(adata.X)
        return counts if position is None else columns(counts, position)

    def _columns(self, adata: ad.AnnData) -> np.ndarray | None:
        """Positions of the training data's features in `adata`; None where they are the same features in order."""
        if len(self.features) == adata.n_vars and (adata.var_names == self.features).all():
            return None
        position = adata.var_names.get_indexer(self.features)
        missing = self.features[position < 0]
        if len(missing):
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            raise ValueError(f"{self.modality} lacks {len(missing)} of {len(self.features)} features: {shown}")
        return position

    # ---- saving ----------------------------------------------------------------------------------

    def state(self) -> dict:
        """Return everything fitted, as plain values and arrays."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict) -> "Preprocessor":
        """Restore what `state` returned."""
        return cls(**state)


def _mean_and_std(values: np.ndarray, ddof: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column, added up in float64; 1 for a constant one's deviation."""
    mean = values.mean(axis=0, dtype=np.float64)
    squares = sum(np.square(values[i : i + BLOCK] - mean).sum(axis=0) for i in range(0, len(values), BLOCK))
    return mean, _not_constant(mean, np.sqrt(squares / (len(values) - ddof)))


def _not_constant(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Return `std`, but 1 for a constant feature: what is left of it is rounding."""
    return np.where(std > 1e-6 * np.abs(mean), std, 1)


def _principal_axes(matrix: sp.csr_matrix, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return means and principal axes through the covariance matrix, a few rows at a time.

    The steps are those of scikit-learn's PCA with ``covariance_eigh``, which copies the whole matrix to transpose it,
    and adds up in float32.
    """
    n_rows, n_columns = matrix.shape
    product = np.zeros((n_columns, n_columns))
    for block in row_blocks(matrix):
        dense = block.toarray().astype(np.float64)
        product += dense.T @ dense
    means = column_sums(matrix) / n_rows
    covariance = (product - n_rows * means[:, None] * means) / (n_rows - 1)
    _, axes = np.linalg.eigh(covariance.astype(np.float32))
    _, axes = svd_flip(None, axes[:, ::-1].T, u_based_decision=False)
    return means, axes[:n_components]
