"""Encoder inputs: principal components of RNA and surface proteins, latent semantic indexing of peaks.

Everything is fitted on training cells and applied to others unchanged. The steps are those of the
authors' competition entry (facts of each in the methods' docstrings), from raw counts.
"""

from dataclasses import dataclass, field

import anndata as ad
import numpy as np
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

CLIP = 10.0
"""Standardised expression is clipped to ± this many standard deviations, as scanpy's and the authors' code do."""

BLOCK = 4096
"""Cells that are made dense at a time."""


def size_normalised(counts: sp.csr_matrix, target: float = 1e4) -> sp.csr_matrix:
    """Scale every cell to `target` counts and take log(1 + x)."""
    total = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sp.diags(target / np.maximum(total, 1)) @ counts
    return sp.csr_matrix(scaled.log1p(), dtype=np.float32)


def centred_log_ratio(counts: sp.csr_matrix) -> np.ndarray:
    """Centred log-ratio within each cell, of counts + 1 (surface proteins), dense."""
    logs = np.log1p(counts.toarray())
    return (logs - logs.mean(axis=1, keepdims=True)).astype(np.float32)


def highly_variable(adata: ad.AnnData, n_top: int, batch_key: str | None) -> np.ndarray:
    """Return a mask of the `n_top` most variable genes (flavour seurat_v3 on counts, batch-aware).

    Batches with fewer than 50 cells would make the variance fit of a batch meaningless; with such
    a batch present the selection ignores batches.
    """
    import scanpy as sc

    if n_top >= adata.n_vars:
        return np.ones(adata.n_vars, dtype=bool)
    batches = adata.obs[batch_key].value_counts() if batch_key else []
    by_batch = batch_key if len(batches) > 1 and batches.min() >= 50 else None
    table = sc.pp.highly_variable_genes(
        ad.AnnData(adata.X, obs=adata.obs[[batch_key]] if by_batch else None, var=adata.var[[]]),
        n_top_genes=n_top,
        flavor="seurat_v3",
        batch_key=by_batch,
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
    features: np.ndarray = field(default=None, repr=False)
    """Names of all features of the training data, in order."""
    selected: np.ndarray = field(default=None, repr=False)
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
        self.selected = np.flatnonzero(self._select(adata, batch_key))
        counts = sp.csr_matrix(adata.X)
        fit = self._fit_peaks if self.modality == "atac" else self._fit_expression
        fit(counts)
        return self

    def _select(self, adata: ad.AnnData, batch_key: str | None) -> np.ndarray:
        """Features seen in some training cell (upstream divides by zero on others), best first."""
        detected = np.asarray((sp.csr_matrix(adata.X) > 0).sum(axis=0)).ravel()
        keep = detected > 0
        if self.n_features is None or self.n_features >= keep.sum():
            return keep
        if self.modality == "atac":
            chosen = np.argsort(-detected, kind="stable")[: self.n_features]
        else:
            seen = np.flatnonzero(keep)
            chosen = seen[highly_variable(adata[:, seen], self.n_features, batch_key)]
        mask = np.zeros(adata.n_vars, dtype=bool)
        mask[chosen] = True
        return mask & keep

    # ---- RNA and proteins: standardised principal components -------------------------------------

    def _expression(self, counts: sp.csr_matrix) -> np.ndarray:
        if self.modality == "adt":
            return centred_log_ratio(counts[:, self.selected])
        return size_normalised(counts)[:, self.selected].toarray()

    def _standardise(self, values: np.ndarray) -> np.ndarray:
        values = (values - self.arrays["mean"]) / self.arrays["std"]
        return np.clip(values, -CLIP, CLIP, out=values)

    def _fit_expression(self, counts: sp.csr_matrix) -> None:
        values = self._expression(counts)
        std = values.std(axis=0)
        self.arrays = {"mean": values.mean(axis=0), "std": np.where(std > 0, std, 1).astype(np.float32)}
        values = self._standardise(values)
        self.arrays["centre"] = values.mean(axis=0)
        self.arrays["components"] = self._components(values - self.arrays["centre"])

    def _components(self, values: np.ndarray | sp.csr_matrix) -> np.ndarray:
        n_components = min(self.n_components, min(values.shape) - 1)
        _, _, vt = randomized_svd(values, n_components, n_iter=15, random_state=self.seed)
        return np.ascontiguousarray(vt.T, dtype=np.float32)

    # ---- chromatin accessibility: latent semantic indexing ---------------------------------------

    def _tf_idf(self, counts: sp.csr_matrix) -> sp.csr_matrix:
        total = np.asarray(counts.sum(axis=1)).ravel()
        tf_idf = sp.diags(1 / np.maximum(total, 1)) @ counts @ sp.diags(self.arrays["idf"])
        weight = np.asarray(tf_idf.sum(axis=1)).ravel()
        return sp.csr_matrix((sp.diags(1e4 / np.where(weight > 0, weight, 1)) @ tf_idf).log1p(), dtype=np.float32)

    def _fit_peaks(self, counts: sp.csr_matrix) -> None:
        per_peak = np.asarray(counts.sum(axis=0)).ravel()
        idf = np.zeros(counts.shape[1])
        idf[per_peak > 0] = counts.shape[0] / per_peak[per_peak > 0]
        self.arrays = {"idf": idf.astype(np.float32)}
        values = self._tf_idf(counts)
        self.arrays["components"] = self._components(values)
        scores = values @ self.arrays["components"]
        self.arrays["score_mean"] = scores.mean(axis=0)
        self.arrays["score_std"] = scores.std(axis=0, ddof=1)

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
            If `adata` lacks features of the training data; the message names some.
        """
        counts = self.align(adata)
        if counts.shape[0] == 0:
            return np.zeros((0, self.width), dtype=np.float32)
        blocks = [self._transform(counts[i : i + BLOCK]) for i in range(0, counts.shape[0], BLOCK)]
        return np.concatenate(blocks)

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
        if len(self.features) == adata.n_vars and (adata.var_names == self.features).all():
            return sp.csr_matrix(adata.X)
        position = adata.var_names.get_indexer(self.features)
        missing = self.features[position < 0]
        if len(missing):
            shown = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
            raise ValueError(f"{self.modality} lacks {len(missing)} of {len(self.features)} features: {shown}")
        return sp.csr_matrix(adata.X)[:, position]

    # ---- saving ----------------------------------------------------------------------------------

    def state(self) -> dict:
        """Return everything fitted, as plain values and arrays."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict) -> "Preprocessor":
        """Restore what `state` returned."""
        return cls(**state)
