"""Encoder inputs: sparse computations equal the dense formulas, files are read in blocks, memory is bounded."""

import tracemalloc
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

import clue
from clue import decomposition, preprocess, products, sparse
from clue.preprocess import CLIP, preprocessor
from clue.simulate import simulate


@pytest.fixture(scope="module")
def data():
    """RNA, ATAC and proteins of the same 300 cells."""
    return simulate(300, {"rna": 120, "atac": 200, "adt": 15}, n_batches=2, seed=3)


def same_scores(found, expected, tolerance=1e-3):
    """Principal components agree up to their signs."""
    sign = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found * sign, expected, atol=tolerance * np.abs(expected).max())


def test_expression_equals_the_dense_formula(data, monkeypatch):
    monkeypatch.setattr(sparse, "BLOCK", 64)
    counts = data["rna"].X.toarray()
    # a gene rare enough for its counts to be clipped
    counts[:, 7] = 0
    counts[4, 7] = 50
    adata = ad.AnnData(sp.csr_matrix(counts), obs=data["rna"].obs, var=data["rna"].var[[]])
    found = preprocessor("rna", 8).fit(adata).transform(adata)

    logs = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))[:, counts.sum(axis=0) > 0]
    values = np.clip((logs - logs.mean(axis=0)) / logs.std(axis=0), -CLIP, CLIP)
    assert (values == CLIP).any()
    values -= values.mean(axis=0)
    u, s, _ = randomized_svd(values, 8, n_iter=15, random_state=0)
    same_scores(found, u * s)


def test_genes_that_are_not_selected_have_no_effect(data):
    """They stay in the matrix as zeros, or are cut out if they are the majority."""
    most = data["rna"]
    zeros = sp.csr_matrix((most.n_obs, 500), dtype=np.float32)
    few = ad.AnnData(sp.hstack([most.X, zeros], format="csr"), obs=most.obs)
    assert most.n_vars < 2 * 100 < few.n_vars
    found = []
    for adata in (most, few):
        before = adata.X.copy()
        fitted = preprocessor("rna", 8, n_features=100).fit(adata)
        assert {len(array) for array in fitted.arrays.values()} == {100}
        found.append(fitted.transform(adata))
        assert (adata.X != before).nnz == 0
    np.testing.assert_allclose(*found, atol=1e-3 * np.abs(found[0]).max())


def test_peaks_equal_the_dense_formula(data, monkeypatch):
    monkeypatch.setattr(sparse, "BLOCK", 64)
    adata = data["atac"]
    found = preprocessor("atac", 6).fit(adata).transform(adata)
    counts = adata.X.toarray().astype(np.float64)
    idf = len(counts) / np.where(counts.sum(axis=0) > 0, counts.sum(axis=0), np.inf)
    tf_idf = counts / counts.sum(axis=1, keepdims=True) * idf
    values = np.log1p(1e4 * tf_idf / tf_idf.sum(axis=1, keepdims=True))
    u, s, vt = randomized_svd(values, 6, n_iter=15, random_state=0)
    scores = values @ vt.T
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    same_scores(found, scores / np.sqrt(np.square(scores).mean(axis=1, keepdims=True)))


def test_peaks_of_few_distinct_cells_have_no_scores_from_rounding():
    kinds = np.random.default_rng(0).poisson(1.5, (4, 30))
    cells = np.random.default_rng(1).integers(0, 4, 40)
    adata = ad.AnnData(sp.csr_matrix(kinds[cells].astype(np.float32)))
    found = preprocessor("atac", 10).fit(adata, None).transform(adata)
    assert np.ptp(found[:, :4], axis=0).min() > 1 and not found[:, 4:].any()


@pytest.mark.parametrize("n_features", [None, 60])
@pytest.mark.parametrize("modality", ["rna", "atac", "adt"])
def test_counts_are_not_changed(data, modality, n_features):
    adata = data[modality].copy()
    assert adata.X.dtype == np.float32, "the type that could be changed in place"
    preprocessor(modality, 8, n_features).fit(adata).transform(adata)
    assert (adata.X != data[modality].X).nnz == 0


@pytest.mark.parametrize("modality", ["rna", "atac", "adt"])
def test_backed_file_gives_the_same(data, modality, tmp_path, monkeypatch):
    adata = data[modality].copy()
    prepared = preprocessor(modality, 8).fit(adata)
    shuffled = adata[:, ::-1].copy()
    for name, cells in (("same", adata), ("shuffled", shuffled)):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    expected = prepared.transform(adata)
    monkeypatch.setattr(sparse, "BLOCK", 64)
    for name in ("same", "shuffled"):
        backed = ad.read_h5ad(tmp_path / f"{name}.h5ad", backed="r")
        np.testing.assert_allclose(prepared.transform(backed), expected, atol=1e-5)
        backed.file.close()


def test_embed_streams_a_file_without_loading_it(data, tmp_path, monkeypatch):
    model = clue.CLUE(data, n_latent=4, encoder=(1, 8), decoder=(1, 8), n_components=10)
    few = data["rna"]
    many = ad.AnnData(sp.vstack([few.X] * 40, format="csr"), var=few.var[[]])
    many.obs_names = [f"cell_{i}" for i in range(many.n_obs)]
    many.write_h5ad(tmp_path / "many.h5ad")
    loaded = many.X.data.nbytes + many.X.indices.nbytes
    expected = model.embed(few, "rna")
    del many
    monkeypatch.setattr(sparse, "BLOCK", 256)
    backed = ad.read_h5ad(tmp_path / "many.h5ad", backed="r")
    tracemalloc.start()
    embedding = model.embed(backed, "rna")
    peak = tracemalloc.get_traced_memory()[1] - embedding.nbytes
    tracemalloc.stop()
    np.testing.assert_allclose(embedding, np.tile(expected, (40, 1)), atol=1e-5)
    assert peak < loaded / 2


@pytest.mark.parametrize("modality", ["rna", "atac"])
def test_fitting_needs_no_dense_matrix(modality, monkeypatch):
    # with so few cells even the matrix of products would be larger than the counts
    monkeypatch.setattr(decomposition, "SMALL", 0)
    # 2 % non-zeros: the dense matrix is 25 times the sparse one
    counts = sp.random(8000, 2000, 0.02, format="csr", dtype=np.float32, random_state=0)
    counts.data = np.ceil(counts.data * 3)
    adata = ad.AnnData(counts)
    size = counts.data.nbytes + counts.indices.nbytes
    prepared = preprocessor(modality, 10)
    tracemalloc.start()
    prepared.fit(adata, batch_key=None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * size < 8000 * 2000 * 4 / 4


# ---- counts in any form --------------------------------------------------------------------------


def stored_twice(counts):
    """The same matrix with counts of 2 or more split into two entries, and rows in reverse order."""
    parts = np.stack([np.minimum(counts.data, 1), np.maximum(counts.data - 1, 0)], axis=1).ravel()[::-1]
    row = np.repeat(np.arange(counts.shape[0]), 2 * np.diff(counts.indptr))[::-1]
    order = np.argsort(row, kind="stable")
    indices = np.repeat(counts.indices, 2)[::-1]
    return sp.csr_matrix((parts[order], indices[order], 2 * counts.indptr), shape=counts.shape)


FORMS = {
    "uint8": lambda counts: counts.astype(np.uint8),
    "int64": lambda counts: counts.astype(np.int64),
    "float64": lambda counts: counts.astype(np.float64),
    "csc": sp.csc_matrix,
    "dense": lambda counts: counts.toarray(),
    "dense, float16": lambda counts: counts.toarray().astype(np.float16),
    "stored twice": stored_twice,
    "stored twice, uint8": lambda counts: stored_twice(counts).astype(np.uint8),
}


@pytest.mark.parametrize("modality", ["rna", "atac", "adt"])
@pytest.mark.parametrize("form", FORMS)
def test_counts_are_the_same_in_any_form(data, modality, form):
    adata = data[modality].copy()
    adata.X.data = adata.X.data.clip(max=255)
    changed = ad.AnnData(FORMS[form](adata.X), obs=adata.obs, var=adata.var[[]])
    given, kept = changed.X, changed.X.copy()
    assert (sp.csr_matrix(given.astype(float)) != adata.X).nnz == 0 and adata.X.max() == 255
    first, second = (preprocessor(modality, 8, 60).fit(cells) for cells in (adata, changed))
    assert np.array_equal(first.selected, second.selected)
    assert np.array_equal(first.transform(adata), second.transform(changed))
    if sp.issparse(given):
        for part in ("data", "indices", "indptr"):
            assert np.array_equal(getattr(given, part), getattr(kept, part)), "the user's matrix is changed"


def test_values_that_are_not_counts_are_refused(data):
    prepared = preprocessor("adt", 8).fit(data["adt"])
    for value, named in ((0.5, "0.5"), (-3, "-3"), (np.nan, "nan"), (np.inf, "inf")):
        wrong = data["adt"].copy()
        wrong.X.data[-1] = value
        with pytest.raises(ValueError, match=f"^adt: X must hold raw counts, whole numbers from 0 up, not {named}"):
            prepared.transform(wrong)
    with pytest.raises(ValueError, match="^adt: there is no X"):
        prepared.transform(ad.AnnData(obs=data["adt"].obs, var=data["adt"].var[[]]))


# ---- sums over many cells ------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["rna", "atac", "adt"])
def test_moments_of_many_cells_have_float64_accuracy(modality):
    """In float32 a sum of so many values loses the small ones."""
    rng = np.random.default_rng(0)
    counts = rng.normal([100, 10_000, 5], [10, 100, 1], (200_000, 3)).round().clip(1).astype(np.float32)
    prepared = preprocessor(modality, 2).fit(ad.AnnData(sp.csr_matrix(counts)), batch_key=None)
    counts = sp.csr_matrix(counts)
    if modality == "atac":
        mean, sd = "score_mean", "score_sd"
        values = products.times(prepared._normalised(counts), prepared.arrays["components"])
    else:
        mean, sd = "mean", "sd"
        values = prepared._normalised(counts)
        values = values.toarray() if sp.issparse(values) else values
    np.testing.assert_allclose(prepared.arrays[mean], values.mean(axis=0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(prepared.arrays[sd], values.std(axis=0, dtype=np.float64), rtol=1e-5)


def test_sums_of_rows_and_columns():
    rng = np.random.default_rng(0)
    matrix = sp.random(3000, 7, 0.3, format="csr", dtype=np.float32, random_state=0)
    matrix.data = rng.integers(1, 300, matrix.nnz).astype(np.float32)
    dense = matrix.toarray().astype(np.float64)
    for function in (np.positive, np.square):
        assert np.array_equal(sparse.row_sums(matrix, function), function(dense).sum(axis=1))
        assert np.array_equal(sparse.column_sums(matrix, function), function(dense).sum(axis=0))
    assert sparse.row_sums(matrix[:0]).shape == (0,)
    # 2^24 + 1 is not a float32
    assert sparse.row_sums(sp.csr_matrix(np.float32([[2**24, 1]])))[0] == 2**24 + 1


# ---- variable genes ------------------------------------------------------------------------------


def few_counts(n_cells, density, n_batches):
    """Counts so few that most genes share their mean with others, and the 20 genes with larger variance."""
    rng = np.random.default_rng(0)
    counts = sp.random(n_cells, 1000, density, "csr", dtype=np.float32, random_state=0).sign().tolil()
    variable = rng.choice(1000, 20, replace=False)
    for gene in variable:
        counts[rng.choice(n_cells, 4, replace=False), gene] = 8
    obs = {"batch": [f"batch{i % n_batches}" for i in range(n_cells)]}
    return ad.AnnData(counts.tocsr(), obs=pd.DataFrame(obs, index=[f"cell{i}" for i in range(n_cells)])), variable


@pytest.mark.parametrize(
    ("n_cells", "density", "n_batches", "warned"),
    [
        (300, 0.005, 4, "the fit of each batch has span 1.0"),
        (500, 0.003, 10, "the fit of all cells has span 1.0"),
        (100, 0.0, 1, "genes are ranked by their variance"),
    ],
)
def test_variable_genes_of_few_counts(n_cells, density, n_batches, warned):
    adata, variable = few_counts(n_cells, density, n_batches)
    with pytest.warns(UserWarning, match=f"^variable genes: too few counts for scanpy's fit; {warned}$"):
        chosen = preprocess.highly_variable(adata, 30, "batch")
    # 0.03 is chance
    assert chosen.sum() == 30 and chosen[variable].mean() > 0.3


def test_variable_genes_of_three():
    """The fit would crash with so few genes, or in a batch in which so few vary."""
    for n_genes in (3, 300):
        counts = np.zeros((120, n_genes), dtype=np.float32)
        counts[:, :3] = np.random.default_rng(0).poisson([1, 5, 2], (120, 3))
        counts[60:] = np.random.default_rng(1).poisson(1, (60, n_genes))
        adata = ad.AnnData(sp.csr_matrix(counts), obs={"batch": ["a"] * 60 + ["b"] * 60})
        with pytest.warns(UserWarning, match="^variable genes: too few counts"):
            assert preprocess.highly_variable(adata, 2, "batch").sum() == 2


def test_variable_genes_equal_those_of_scanpy_if_it_finds_them(data):
    adata = data["rna"]
    table = sc.pp.highly_variable_genes(adata, n_top_genes=50, flavor="seurat_v3", batch_key="batch", inplace=False)
    with warnings.catch_warnings(action="error", category=UserWarning):
        assert np.array_equal(preprocess.highly_variable(adata, 50, "batch"), table["highly_variable"])


def test_fit_needs_counts_and_no_batches(data):
    plain = ad.AnnData(data["rna"].X, var=data["rna"].var)
    one_batch = ad.AnnData(plain.X, obs=pd.DataFrame({"batch": ["all"] * 300}, index=plain.obs_names), var=plain.var)
    alone, expected = (preprocessor("rna", 8, n_features=50).fit(adata) for adata in (plain, one_batch))
    assert np.array_equal(alone.selected, expected.selected)
    with pytest.raises(ValueError, match="rna: X must hold raw counts, .* not [0-9]*[.]5"):
        preprocessor("rna", 8).fit(ad.AnnData(plain.X * 0.5))
