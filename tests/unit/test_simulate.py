"""The simulation: known factors, right moments, reproducible."""

import tracemalloc

import numpy as np
import pytest

from clue import simulate as module
from clue.simulate import simulate


def counts(mdata, modality):
    return mdata.mod[modality].X.toarray()


def test_shapes_names_and_annotations():
    mdata = simulate(50, {"rna": 30, "atac": 40, "adt": 7}, n_shared=4, n_specific=2, n_batches=3, seed=3)
    assert list(mdata.mod) == ["rna", "atac", "adt"]
    assert mdata.obs.columns.empty
    for modality, width in {"rna": 30, "atac": 40, "adt": 7}.items():
        adata = mdata.mod[modality]
        assert adata.shape == (50, width)
        assert adata.X.format == "csr" and adata.X.dtype == np.float32
        assert (adata.X.data == np.round(adata.X.data)).all() and (adata.X.data > 0).all()
        assert adata.obsm["shared"].shape == (50, 4) and adata.obsm["specific"].shape == (50, 2)
        assert adata.varm["loadings"].shape == (width, 6)
        assert adata.obs_names.equals(mdata.mod["rna"].obs_names)
        assert list(adata.obs.columns) == ["batch", "donor", "cell_type"]
        assert adata.obs["batch"].nunique() == 3


def test_seed_decides_and_another_modality_changes_nothing():
    first, again = (simulate(40, {"rna": 20, "adt": 8}, seed=5) for _ in range(2))
    other = simulate(40, {"rna": 20, "adt": 8}, seed=6)
    wider = simulate(40, {"rna": 20, "adt": 8, "atac": 10}, seed=5)
    for modality in ("rna", "adt"):
        assert (counts(first, modality) == counts(again, modality)).all()
        assert (counts(first, modality) == counts(wider, modality)).all()
        assert (counts(first, modality) != counts(other, modality)).any()


def test_shared_factors_are_shared_and_specific_ones_are_not():
    mdata = simulate(200, {"rna": 30, "adt": 10}, seed=2)
    rna, adt = mdata.mod["rna"], mdata.mod["adt"]
    assert (rna.obsm["shared"] == adt.obsm["shared"]).all()
    correlation = np.corrcoef(rna.obsm["specific"].T, adt.obsm["specific"].T)[:3, 3:]
    assert np.abs(correlation).max() < 0.3


def test_donors_are_in_one_batch_and_types_are_clusters_of_the_shared_factors():
    mdata = simulate(2000, {"rna": 10, "adt": 5}, n_types=4, n_donors=3, type_separation=5.0, seed=0)
    obs, shared = mdata.mod["rna"].obs, mdata.mod["rna"].obsm["shared"]
    assert (obs.groupby("donor", observed=True)["batch"].nunique() == 1).all()
    assert obs["donor"].nunique() == 6
    for _, rows in obs.groupby("cell_type", observed=True).indices.items():
        assert shared[rows].std(axis=0).mean() == pytest.approx(1.0, abs=0.1)


def test_library_sizes_are_those_requested():
    sizes = {"rna": 2000, "adt": 500}
    mdata = simulate(3000, {"rna": 500, "adt": 400}, library_sizes=sizes, dispersion=1e6, library_spread=0.0)
    for modality, size in sizes.items():
        totals = counts(mdata, modality).sum(axis=1)
        assert totals.mean() == pytest.approx(size, rel=0.01)
        assert totals.var() == pytest.approx(size, rel=0.1)  # Poisson where theta is large


def test_variance_is_that_of_the_negative_binomial():
    flat = {"shared_strength": 0.0, "specific_strength": 0.0, "batch_strength": 0.0, "library_spread": 0.0}
    mdata = simulate(20000, {"rna": 20, "adt": 2}, dispersion=4.0, library_sizes={"rna": 200}, **flat, seed=1)
    x = counts(mdata, "rna")
    mean = x.mean(axis=0)
    assert x.var(axis=0) == pytest.approx(mean + mean**2 / 4.0, rel=0.1)


def test_sparsity_is_the_fraction_of_zero_loadings():
    loadings = simulate(5, {"rna": 2000, "adt": 5}, sparsity=0.7).mod["rna"].varm["loadings"]
    assert (loadings == 0).mean() == pytest.approx(0.7, abs=0.02)


def test_memory_stays_far_below_a_dense_matrix(monkeypatch):
    monkeypatch.setattr(module, "ENTRIES_PER_BLOCK", 200_000)
    tracemalloc.start()
    simulate(2000, {"rna": 4000, "adt": 5}, library_sizes={"rna": 200})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2000 * 4000 * 8 / 2  # dense float64 is 64 MB


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_cells": 0}, "n_cells must be at least 1"),
        ({"n_features": {}}, "names no modality"),
        ({"n_features": {"rna": 0}}, "n_features"),
        ({"n_specific": -1}, "n_specific"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"dispersion": 0.0}, "dispersion"),
        ({"library_sizes": {"atac": 1.0}}, "library_sizes names"),
        ({"library_sizes": {"rna": 0.0}}, "positive"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        simulate(**arguments)
