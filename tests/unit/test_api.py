"""The library as a user calls it: any subset of modalities in, matching and prediction out, and errors."""

import re

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

import clue
from clue.correction import remove_hubs, remove_shifts
from clue.matching import match_gaussian, match_ot, match_snn
from clue.metrics import match_score
from clue.simulate import simulate

WIDTHS = {"n_latent": 6, "encoder": (1, 32), "decoder": (1, 32), "discriminator": (1, 16), "n_components": 20}
SHORT = {"max_steps": 120, "warmup_steps": 20, "check_steps": 20, "progress": False}


@pytest.fixture(scope="module")
def cells():
    """RNA, ATAC and proteins of the same 300 cells in two batches."""
    return simulate(300, n_features={"rna": 80, "atac": 100, "adt": 20}, n_batches=2, seed=0)


@pytest.fixture(scope="module")
def model(cells):
    return clue.CLUE(cells, batch_key="batch", **WIDTHS).fit(**SHORT)


# ---- cells seen in any modalities ----------------------------------------------------------------


def test_cell_seen_in_several_modalities_is_embedded_from_all(model, cells):
    """The encoder of a subspace's own modality counts twice."""
    apart = {k: model.embed(adata, k) for k, adata in cells.mod.items()}
    fused = model.embed(cells)
    assert fused.shape == (300, 18) and fused.dtype == np.float32
    unit = np.stack([z / np.linalg.norm(z, axis=1, keepdims=True) for z in apart.values()])
    weight = np.repeat(1 + np.eye(3), 6, axis=1)[:, None]  # modalities × 1 × (3 subspaces of width 6)
    mean = (weight * unit).sum(axis=0) / weight.sum(axis=0)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(fused / np.linalg.norm(fused, axis=1, keepdims=True), expected, atol=1e-5)
    length = np.mean([np.linalg.norm(z, axis=1) for z in apart.values()], axis=0)
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), length, rtol=1e-4)


@pytest.mark.parametrize("place", ["embed", "align"])
def test_mosaic_is_embedded_in_the_order_of_its_cells(model, cells, place):
    place = getattr(model, place)
    mosaic = md.MuData({"rna": cells["rna"][:200].copy(), "adt": cells["adt"][150:][::-1].copy()})
    placed = place(mosaic, key_added="X_clue")
    assert np.array_equal(mosaic.obsm["X_clue"], placed)
    row = mosaic.obs_names.get_indexer
    rna, adt = cells["rna"][:150], cells["adt"][200:]
    np.testing.assert_allclose(placed[row(rna.obs_names)], place(rna, "rna"), atol=1e-5)
    np.testing.assert_allclose(placed[row(adt.obs_names)], place(adt, "adt"), atol=1e-5)
    both = cells[150:200].copy()
    fused = place({"rna": both["rna"], "adt": both["adt"]})
    np.testing.assert_allclose(placed[row(both["rna"].obs_names)], fused, atol=1e-5)
    assert np.array_equal(place(mosaic, "rna"), place(mosaic["rna"], "rna")), "one modality of several"


def test_one_modality_in_another_order_is_stored_by_name(model, cells):
    mdata = md.MuData({"rna": cells["rna"].copy(), "adt": cells["adt"][::-1].copy()})
    model.embed(mdata, "adt", key_added="X_adt")
    np.testing.assert_allclose(mdata.obsm["X_adt"], model.embed(cells["adt"]), atol=1e-5)


def test_product_fusion_weighs_by_precision(cells):
    """Cells seen in only one modality are where that one puts them."""
    model = clue.CLUE(cells, fusion="product", **WIDTHS)
    mosaic = {"rna": cells["rna"], "adt": cells["adt"][200:]}
    (rna, std_rna), (adt, std_adt) = (model.posterior(adata) for adata in mosaic.values())
    weights = 1 / std_rna[200:] ** 2, 1 / std_adt**2
    fused = (weights[0] * rna[200:] + weights[1] * adt) / sum(weights)
    np.testing.assert_allclose(model.embed(mosaic), np.vstack([rna[:200], fused]), rtol=1e-3, atol=1e-5)


def test_modality_is_recognised_by_its_features(model, cells):
    assert np.array_equal(model.embed(cells["atac"]), model.embed(cells["atac"], "atac"))
    adata = cells["rna"].copy()
    model.embed(adata, key_added="X_clue")
    assert adata.obsm["X_clue"].shape == (300, 18)
    with pytest.raises(ValueError, match=r"features do not fit any modality of .*; of rna they lack \d+, such as '"):
        model.embed(cells["rna"][:, :5])


def test_rna_that_lacks_a_gene_is_not_taken_for_proteins_of_the_same_names(cells):
    adt = cells["adt"].copy()
    adt.var_names = cells["rna"].var_names[:20]
    model = clue.CLUE({"rna": cells["rna"], "adt": adt}, **WIDTHS)
    for rna in (cells["rna"], cells["rna"][:, :79]):
        with pytest.raises(ValueError, match="all or most of those of .*; say which modality it is"):
            model.embed(rna)
    assert np.array_equal(model.embed(adt), model.embed(adt, "adt"))


# ---- matching and prediction ---------------------------------------------------------------------


def test_match_is_within_the_given_column(model, cells):
    rna, adt = cells["rna"].copy(), cells["adt"][np.random.default_rng(0).permutation(300)].copy()
    truth = adt.obs_names.get_indexer(rna.obs_names)
    free, within = model.match(rna, adt), model.match(rna, adt, within="batch")
    batch = rna.obs["batch"].to_numpy()[:, None] == adt.obs["batch"].to_numpy()[None, :]
    assert not within.toarray()[~batch].any() and free.toarray()[~batch].any()
    for matches in (free, within):
        np.testing.assert_allclose(matches.sum(axis=1), 1, rtol=1e-5)
        # chance is 1 / 300
        assert match_score(matches, truth) > 0.05
    batch = [adata.obs["batch"] for adata in (rna, adt)]
    placed = remove_hubs(remove_shifts([model.align(rna), model.align(adt)], batch), batch)
    assert (match_snn(*placed, batch_x=batch[0], batch_y=batch[1]) != within).nnz == 0
    in_z = [model.embed(rna), model.embed(adt)]
    assert (match_snn(*in_z) != model.match(rna, adt, space="z")).nnz == 0
    soft = model.match(rna, adt, space="z", matching=match_gaussian, k=5)
    assert (np.diff(soft.indptr) == 5).all()
    with pytest.raises(ValueError, match="b: obs lacks the batch column 'lane'"):
        model.match(ad.AnnData(rna.X, obs=rna.obs.assign(lane="a"), var=rna.var), adt, within="lane")
    rna.obs["site"] = adt.obs["site"] = "s"
    assert (model.match(rna, adt, within=["batch", "site"]) != within).nnz == 0


@pytest.mark.parametrize("column", ["batch", "lane"])
def test_match_of_a_modality_of_mudata_is_within_the_batches_of_its_cells(model, cells, column):
    """Its cells may be in another order, or fewer; the column may be in the obs of the MuData."""
    mdata = md.MuData({"rna": cells["rna"].copy(), "adt": cells["adt"][200:2:-1].copy()})
    mdata.obs["lane"] = cells["rna"].obs["batch"].reindex(mdata.obs_names)
    apart = model.match(mdata["rna"], mdata["adt"], within="batch")
    together = model.match(mdata, mdata, "rna", "adt", within=column)
    assert together.shape == (300, 198) and (apart != together).nnz == 0
    with pytest.raises(ValueError, match="a: within needs the obs of an AnnData or MuData, not a dict"):
        model.match({"rna": cells["rna"]}, mdata, None, "adt", within=column)


def test_target_is_read_only_of_cells_that_show_nothing_else(model, cells):
    mosaic = {"rna": cells["rna"][:200].copy(), "adt": cells["adt"][150:][::-1].copy()}
    predicted = model.predict(md.MuData(mosaic), "adt").to_df()
    for source, k in ((mosaic["rna"], "rna"), (cells["adt"][200:], "adt")):
        expected = model.predict(source, "adt", source=k).to_df()
        np.testing.assert_allclose(predicted.loc[expected.index], expected, rtol=1e-4)


def test_predict_averages_over_batches_or_takes_one(model, cells):
    rna = cells["rna"]
    share = model.predict(rna, "adt")
    np.testing.assert_allclose(share.X.sum(axis=1), 1, rtol=1e-4)
    assert list(share.obs_names) == list(rna.obs_names) and list(share.var_names) == list(cells["adt"].var_names)
    by_batch = [model.predict(rna, "adt", batch=batch).X for batch in model.batches]
    weight = cells["adt"].obs["batch"].value_counts(normalize=True)[model.batches]
    np.testing.assert_allclose(share.X, sum(w * x for w, x in zip(weight, by_batch, strict=True)), rtol=1e-4)
    own = model.predict(rna, "adt", batch=rna.obs["batch"]).X
    rows = rna.obs["batch"] == model.batches[1]
    np.testing.assert_allclose(own[rows], by_batch[1][rows], rtol=1e-4)
    with pytest.raises(ValueError, match="knows no batch 'x'"):
        model.predict(rna, "adt", batch="x")


def test_values_per_cell_are_matched_by_name(model, cells):
    rna = cells["rna"]
    batch, size = rna.obs["batch"][::-1], pd.Series(np.arange(300.0), index=rna.obs_names)[::-1]
    by_name = model.predict(rna[:9], "adt", batch=batch, library_size=size).X
    expected = model.predict(rna[:9], "adt", batch=rna.obs["batch"][:9], library_size=np.arange(9)).X
    np.testing.assert_array_equal(by_name, expected)
    numbered = rna.obs["batch"][:9].reset_index(drop=True)
    by_position = model.predict(rna[:9], "adt", batch=numbered, library_size=np.arange(9)).X
    np.testing.assert_array_equal(by_position, expected)
    with pytest.raises(ValueError, match="batch: the Series lacks 1 of 9 cells, such as 'cell_000001'"):
        model.predict(rna[:9], "adt", batch=rna.obs["batch"][1:10])


def test_predicting_as_a_batch_without_the_target_warns(cells):
    some = {"rna": cells["rna"], "adt": cells["adt"][cells["adt"].obs["batch"] == "batch1"].copy()}
    model = clue.CLUE(some, batch_key="batch", **WIDTHS)
    with pytest.warns(UserWarning, match="adt was not measured in batch batch2 during training") as warned:
        model.predict(cells["rna"], "adt", batch="batch2")
    assert warned[0].filename == __file__


def test_numeric_batches_are_named_by_number(cells):
    data = {k: cells[k].copy() for k in ("rna", "adt")}
    for adata in data.values():
        adata.obs["batch"] = np.arange(300) % 2
    model = clue.CLUE(data, batch_key="batch", **WIDTHS)
    by_number, by_name = (model.predict(cells["rna"], "adt", batch=batch).X for batch in (1, "1"))
    assert np.array_equal(by_number, by_name)


def test_predict_chosen_features_as_counts_to_a_file(model, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(clue.model, "BLOCK", 64)
    whole = model.predict(cells, "rna")
    genes = list(whole.var_names[[7, 3]])
    size = np.linspace(100, 1000, 300)
    path = tmp_path / "new" / "predicted.h5ad"
    backed = model.predict(cells, "rna", features=genes, library_size=size, log=True, path=path)
    assert backed.isbacked and list(backed.var_names) == genes and list(backed.obs_names) == list(cells.obs_names)
    np.testing.assert_allclose(backed.X[:], np.log1p(size[:, None] * whole[:, genes].X), rtol=1e-4)
    backed.file.close()
    assert [path.name for path in path.parent.iterdir()] == ["predicted.h5ad"]
    assert np.array_equal(model.predict(cells, "rna", features=genes[0]).X, whole[:, genes[:1]].X)
    with pytest.raises(ValueError, match="rna has no decoded feature 'none'"):
        model.predict(cells, "rna", features=["none"])


# ---- data in other forms -------------------------------------------------------------------------


def test_counts_in_a_layer_and_names_of_muon(cells):
    plain = clue.CLUE({k: cells[k] for k in ("rna", "adt")}, batch_key="batch", **WIDTHS)
    changed = {}
    for name, k in (("gex", "rna"), ("prot", "adt")):
        adata = cells[k]
        changed[name] = ad.AnnData(adata.X.log1p(), obs=adata.obs[[]], var=adata.var, layers={"counts": adata.X})
    mdata = md.MuData(changed)
    mdata.obs["lane"] = cells["rna"].obs["batch"]
    model = clue.CLUE(mdata, layer="counts", batch_key="lane", kinds={"gex": "rna"}, **WIDTHS)
    assert model.modalities == ["gex", "prot"] and model.batches == plain.batches
    assert np.array_equal(model.embed(mdata["gex"]), plain.embed(cells["rna"]))
    assert np.array_equal(model.embed(mdata), plain.embed({k: cells[k] for k in ("rna", "adt")}))
    with pytest.raises(ValueError, match="gex: there is no layer 'counts'"):
        model.embed(cells["rna"], "gex")
    with pytest.raises(ValueError, match="modality 'gex' is unknown; say what it is: kinds="):
        clue.CLUE(mdata, layer="counts", **WIDTHS)


def test_layer_of_one_modality(cells):
    rna = ad.AnnData(cells["rna"].X.log1p(), obs=cells["rna"].obs, var=cells["rna"].var)
    rna.layers["counts"] = cells["rna"].X
    plain = clue.CLUE({k: cells[k] for k in ("rna", "adt")}, **WIDTHS)
    model = clue.CLUE({"rna": rna, "adt": cells["adt"]}, layer={"rna": "counts"}, **WIDTHS)
    assert np.array_equal(model.embed({"rna": rna, "adt": cells["adt"]}), plain.embed(dict(cells.mod)))


def test_several_columns_form_one_batch(cells):
    data = {k: cells[k].copy() for k in ("rna", "adt")}
    for adata in data.values():
        adata.obs["site"] = np.where(np.arange(300) % 3 == 0, "s1", "s2")
    model = clue.CLUE(data, batch_key=["batch", "site"], **WIDTHS)
    names = sorted(cells["rna"].obs["batch"].unique())
    assert model.batches == [f"{batch} | {site}" for batch in names for site in ("s1", "s2")]


# ---- saved models --------------------------------------------------------------------------------


def test_saved_model_continues_training(model, cells, tmp_path):
    model.save(tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    with pytest.raises(ValueError, match="no training data"):
        clue.CLUE.load(tmp_path / "model.pt").fit(**SHORT)
    loaded = clue.CLUE.load(tmp_path / "model.pt", cells)
    pd.testing.assert_frame_equal(loaded.history, model.history)
    for place in ("embed", "align"):
        assert np.array_equal(getattr(loaded, place)(cells["adt"]), getattr(model, place)(cells["adt"]))
    loaded.fit(**SHORT)
    assert set(loaded.history["stage"]) == {1, 2}
    assert not np.allclose(loaded.embed(cells["adt"]), model.embed(cells["adt"]))


def test_saved_model_is_fine_tuned_on_new_pairs(model, tmp_path):
    model.save(tmp_path / "model.pt")
    query = simulate(200, n_features={"rna": 80, "atac": 100, "adt": 20}, n_batches=1, seed=5)
    for adata in query.mod.values():
        adata.obs["batch"] = "query"
    shuffled = {k: query[k][:, ::-1].copy() for k in ("rna", "adt")}
    loaded = clue.CLUE.load(tmp_path / "model.pt", shuffled).fit(**SHORT)
    assert loaded.batches == [*model.batches, "query"]
    assert np.isfinite(loaded.match(query["rna"], query["adt"]).data).all()
    np.testing.assert_allclose(loaded.predict(query["rna"], "adt", batch="query").X.sum(axis=1), 1, rtol=1e-4)


def test_fine_tuning_on_two_modalities_keeps_the_third(model, cells, tmp_path):
    model.save(tmp_path / "model.pt")
    loaded = clue.CLUE.load(tmp_path / "model.pt", {k: cells[k] for k in ("rna", "adt")}).fit(**SHORT)
    assert np.isfinite(loaded.embed(cells["atac"])).all()
    np.testing.assert_allclose(loaded.predict(cells["rna"], "atac").X.sum(axis=1), 1, rtol=1e-4)
    assert np.isfinite(loaded.match(cells["rna"], cells["adt"]).data).all()
    with pytest.raises(
        ValueError, match="atac cannot be aligned: too few training cells are seen in it and in another"
    ):
        loaded.align(cells["atac"])


def test_modality_without_pairs_trains_and_is_embedded(cells):
    given = {"rna": cells["rna"], "adt": cells["adt"], "atac": apart(cells["atac"])}
    model = clue.CLUE(given, batch_key="batch", **WIDTHS).fit(**SHORT)
    assert np.isfinite(model.align(cells["rna"])).all() and np.isfinite(model.embed(given["atac"])).all()
    chosen = clue.CLUE(given)
    assert chosen.preprocessors["atac"].width == chosen.preprocessors["rna"].width < 150


def test_loading_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"format": 3, "settings": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="evil.pt: is not a model that CLUE.save wrote"):
        clue.CLUE.load(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("path", ["", "folder"])
def test_model_is_saved_to_a_file(model, tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder, not a model file"):
        model.save(path)
    assert [file.name for file in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.parametrize("content", [b"", b"no model", b"PK\x03\x04"])
def test_file_that_is_not_a_model(model, tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ValueError, match="file.pt: is not a model"):
        clue.CLUE.load(tmp_path / "file.pt")
    model.save(tmp_path / "file.pt")
    whole = (tmp_path / "file.pt").read_bytes()
    # more than the padding between arrays (at most 63 bytes), which no checksum covers
    middle = len(whole) // 2
    for damaged in (whole[:5000], whole[:middle] + b"x" * 64 + whole[middle + 64 :]):
        (tmp_path / "file.pt").write_bytes(damaged)
        with pytest.raises(ValueError, match="file.pt: is not a model .* or is damaged"):
            clue.CLUE.load(tmp_path / "file.pt")
    torch.save({"network": {}}, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="old.pt: is not a model of this version"):
        clue.CLUE.load(tmp_path / "old.pt")


# ---- training ------------------------------------------------------------------------------------


def test_history_is_a_table_that_can_be_plotted(model):
    assert {"stage", "step", "train_loss", "loss", "foscttm"} <= set(model.history)
    figure = model.plot_history()
    assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 2


def test_ctrl_c_keeps_the_best_weights_and_the_history(cells, monkeypatch):
    model = clue.CLUE(cells, batch_key="batch", **WIDTHS)
    advance = clue.train._Loop.advance
    best = {}

    def interrupted(loop):
        if loop.step == 70:
            best.update(loop.best_weights)
            raise KeyboardInterrupt
        advance(loop)

    monkeypatch.setattr(clue.train._Loop, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.fit(**SHORT)
    assert len(model.history) and model.history["step"].max() < 70
    assert all(torch.equal(value, best[name]) for name, value in model.network.state_dict().items())
    assert np.isfinite(model.align(cells["rna"])).all()


def test_fit_that_fails_leaves_no_batch_and_a_further_fit_keeps_those_seen(cells):
    known = {k: cells[k][:200].copy() for k in ("rna", "adt")}
    extra = cells["adt"][200:].copy()
    extra.obs["batch"] = "new"
    model = clue.CLUE(known, batch_key="batch", shared_batches=False, **WIDTHS)
    batches, z = model.batches, model.embed(known["rna"])
    with pytest.raises(ValueError, match="at least two are needed"):
        model.fit({"adt": extra}, **SHORT | {"validation": 0.9999})
    assert model.batches == batches and np.array_equal(model.embed(known["rna"]), z)
    model.fit({"adt": extra}, **SHORT).fit(**SHORT)
    assert model._cells_seen["adt"] == known["adt"].obs["batch"].value_counts().to_dict() | {"new": 100}


# ---- wrong calls ---------------------------------------------------------------------------------


def alike(adata):
    return ad.AnnData(sp.csr_matrix(np.tile(adata.X[0].toarray(), (adata.n_obs, 1))), obs=adata.obs, var=adata.var)


@pytest.mark.parametrize("k", ["rna", "atac", "adt"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (alike, "all cells are alike"),
        (lambda a: ad.AnnData(obs=a.obs, var=a.var), "there is no X"),
        (lambda a: a[:, :1].copy(), "1 features with a count; at least two are needed"),
        (lambda a: ad.AnnData(0 * a.X, obs=a.obs, var=a.var), "0 features with a count"),
    ],
    ids=["alike", "no X", "one feature", "all zero"],
)
def test_uninformative_modality_is_refused(cells, k, change, message):
    with pytest.raises(ValueError, match=f"^{k}: {message}"):
        clue.CLUE(dict(cells.mod) | {k: change(cells[k])}, **WIDTHS)


def apart(adata):
    again = adata.copy()
    again.obs_names = "other_" + again.obs_names
    return again


def logs(adata, place=None):
    """Return logarithms, with the counts in a layer or in raw if `place` says so."""
    logged = ad.AnnData(adata.X.log1p(), obs=adata.obs, var=adata.var, layers={place: adata.X} if place else None)
    if place == "raw":
        del logged.layers[place]
        logged.raw = adata
    return logged


def texts(adata):
    return ad.AnnData(np.full(adata.shape, "1", dtype=object), obs=adata.obs, var=adata.var)


def doubled(adata, axis):
    names = adata.obs_names if axis == "obs" else adata.var_names
    again = adata.copy()
    setattr(again, f"{axis}_names", [names[1], *names[1:]])
    return again


def untrained(cells):
    return clue.CLUE(cells, **WIDTHS)


def with_rna(cells, rna):
    """Return a model of other RNA and the same proteins."""
    return clue.CLUE({"rna": rna, "adt": cells["adt"]})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: clue.CLUE(c["rna"]), "a MuData or a dict of AnnData by modality is needed, not an object of type"),
        (lambda c: with_rna(c, c["rna"].X), "is needed, not a dict of"),
        (lambda c: clue.CLUE({"rna": c["rna"]}), "two modalities or more"),
        (lambda c: with_rna(c, logs(c["rna"])), "rna: X must hold raw counts"),
        (lambda c: with_rna(c, logs(c["rna"], "n")), r"; there are counts in layers\['n'\]: give layer='n'$"),
        (lambda c: untrained(c).embed(logs(c["rna"], "raw")), r"; there are counts in raw: give adata.raw.to_adata\("),
        (lambda c: untrained(c).embed(c["rna"][:, 3:], "rna"), "rna lacks 3 of 80 features"),
        (lambda c: untrained(c).embed(c["rna"], "dna"), "unknown modality 'dna'; the model knows"),
        (lambda c: clue.CLUE(c, batch_key="batch", **WIDTHS).fit({"rna": c["rna"]}), "name of another cell of rna"),
        (
            lambda c: clue.CLUE({"rna": c["rna"], "adt": apart(c["adt"])}, **WIDTHS),
            "no cell is seen in two modalities; .* the first names are 'cell_.*' in rna, 'other_.*' in adt",
        ),
        (lambda c: clue.CLUE(c, batch_key="lane"), "rna: obs lacks the batch column 'lane'; it has"),
        (
            lambda c: clue.CLUE({"rna.v2": c["rna"], "adt": c["adt"]}, kinds={"rna.v2": "rna"}),
            "PyTorch does not allow 'rna.v2' as the name of a modality",
        ),
        (lambda c: clue.CLUE({"keys": c["rna"], "adt": c["adt"]}, kinds={"keys": "rna"}), "not allow 'keys' as"),
        (lambda c: clue.CLUE({1: c["rna"], "adt": c["adt"]}, kinds={1: "rna"}), "not allow 1 as the name"),
        (lambda c: clue.CLUE(c, n_latent=0), "n_latent is 0"),
        (lambda c: clue.CLUE(c, encoder=(1, 0)), "encoder is 0"),
        (lambda c: clue.CLUE(c, encoder=256), "encoder is 256; it must be .number of hidden layers, their width"),
        (lambda c: clue.CLUE(c, dropout=1.0), "dropout is 1.0"),
        (lambda c: clue.CLUE(c, device="gpu"), "device 'gpu' is unknown; use 'cpu', 'cuda' or 'auto'"),
        (lambda c: clue.CLUE(c, n_features=500), "n_features is 500; it must name modalities"),
        (lambda c: clue.CLUE(c, n_features={"rna": 0}), "n_features of rna is 0"),
        (lambda c: clue.CLUE(c, kinds="rna"), "kinds is 'rna'; it must name modalities"),
        (lambda c: clue.CLUE(c, batch_key=3), "rna: obs lacks the batch column 3"),
        (lambda c: with_rna(c, texts(c["rna"])), "rna: X must hold .* not values of type object"),
        (lambda c: untrained(c).fit(learning_rate=-1), "learning_rate is -1"),
        (lambda c: untrained(c).fit(validation=1.0), "validation is 1.0"),
        (lambda c: untrained(c).fit(monitor="acc"), "monitor is 'acc'; it must be 'loss' or 'foscttm'"),
        (lambda c: untrained(c).fit(objective="mse"), "objective is 'mse'; give a dict of weights"),
        (lambda c: untrained(c).fit(objective={"mse": -1}), "mse is -1; the weight of a loss must be at"),
        (lambda c: untrained(c).fit(validation=0.999), "cells are left to train on, the rest are held out"),
        (
            lambda c: clue.CLUE({"rna": c["rna"][:151], "adt": c["adt"][150:]}, **WIDTHS).fit(**SHORT, batch_size=2),
            "no modality shows two of the 2 cells of a mini-batch; make batch_size larger",
        ),
        (lambda c: untrained(c).embed(c["rna"].to_df()), "^an AnnData, a MuData or a dict of AnnData"),
        (lambda c: untrained(c).match(c["rna"], c["adt"], matching="ot"), "matching is 'ot'; give a function"),
        (lambda c: untrained(c).posterior(c), "say which modality to read"),
        (lambda c: untrained(c).embed(doubled(c["rna"], "var"), "rna"), "rna: several features are named"),
        (lambda c: untrained(c).embed({"rna": doubled(c["rna"], "obs")}), "rna: several cells are named"),
        (lambda c: untrained(c).predict("adt", c["rna"]), "target is an object of type AnnData; it must be"),
        (lambda c: untrained(c).predict(c["rna"], "adt", features=np.ones(20, bool)), "no decoded feature"),
        (lambda c: untrained(c).predict(c["rna"], "adt", library_size=-1), "library_size is -1; it must be"),
        (lambda c: untrained(c).predict(c["rna"], "adt", library_size=[1, 2]), "one for each of 300 cells"),
        (lambda c: untrained(c).match({"rna": c["rna"]}, c["adt"], within="batch"), "a: within needs the obs of an"),
        (lambda c: clue.CLUE(c, kinds={"gex": "rna"}), "kinds names .'gex'., which the data do not hold"),
        (lambda c: clue.CLUE(c, kinds={"rna": "dna"}), "kind 'dna' of modality 'rna' is unknown"),
        (lambda c: clue.CLUE(c, layer="counts"), "rna: there is no layer 'counts'"),
        (lambda c: with_rna(c, doubled(c["rna"], "obs")), "rna: several cells are named"),
        (lambda c: with_rna(c, doubled(c["rna"], "var")), "rna: several features are named"),
        (lambda c: untrained(c).fit(batch_size=1), "batch_size is 1"),
        (lambda c: untrained(c).fit(c["rna"]), "a MuData or a dict of AnnData"),
        (lambda c: untrained(c).plot_history(), "fit the model first"),
        (lambda c: untrained(c).match(c["rna"], c["adt"], space="y"), "space is 'y'; it must be 'aligned'"),
        (lambda c: with_rna(c, c["rna"]).embed({"atac": c["atac"]}), "the model knows"),
        (lambda c: untrained(c).embed(md.MuData({"rna": c["rna"], "x": c["atac"][:9].copy()}), "x"), "unknown"),
    ],
)
def test_wrong_calls_are_explained_in_one_line(cells, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(cells)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be at least 0"),
        ({"n_latent": True}, "n_latent is True; it must be a whole number"),
        ({"n_latent": sp.eye(30)}, "n_latent is an object of type dia_matrix; it must be a whole number"),
        ({"n_components": "20"}, "n_components is '20'; it must be a whole number or None"),
        ({"dropout": "0.2"}, "dropout is '0.2'; it must be a finite number"),
        ({"encoder": (1.5, 32)}, "the number of hidden layers of encoder is 1.5; it must be a whole number, at least"),
        ({"decoder": (1, "x")}, "the width of decoder is 'x'; it must be a whole number, at least 1"),
        ({"normalize": "no"}, "normalize is 'no'; it must be True or False"),
        ({"fusion": ["mean"]}, "fusion is ['mean']; it must be 'mean' or 'product'"),
        ({"layer": ["counts"]}, "layer is ['counts']; it must be a string or a dict or None"),
        ({"layer": {"dna": "counts"}}, "layer names ['dna'], which the data do not hold: ['rna', 'atac', 'adt']"),
        ({"preprocessors": {"rna": 3}}, "preprocessors: none was fitted on the 80 features of rna"),
        (
            {"query": {"dna": ad.AnnData(np.ones((3, 2)))}},
            "query: there is no modality 'dna' in the data (they have rna,",
        ),
        ({"query": {"rna": ad.AnnData(np.ones((3, 2)))}, "n_components": None}, "rna lacks 80 of 80 features: "),
        ({"query": 3}, "a MuData or a dict of AnnData by modality is needed, not an object of type int"),
    ],
)
def test_wrong_settings(cells, settings, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        clue.CLUE(cells, **WIDTHS | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"compile": "x"}, "compile is 'x'; it must be a backend of torch.compile: .*inductor"),
        ({"compile": True}, "compile is True; it must be a string"),
        ({"max_steps": "10"}, "max_steps is '10'; it must be a whole number"),
        ({"max_steps": -1}, "max_steps is -1; it must be at least 0"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; it must be a finite number"),
        ({"learning_rate": np.inf}, "learning_rate is inf; it must be a finite number"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be at least 0"),
        ({"optimizer": None}, "optimizer is None; it must be 'rmsprop' or 'adam'"),
        ({"progress": "no"}, "progress is 'no'; it must be True or False"),
        ({"checkpoints": 3}, "checkpoints is 3; it must be a string or a Path or None"),
        ({"objective": []}, r"objective is \[\]; give a dict of weights or an Objective"),
        ({"objective": {"mse": np.inf}}, "mse is inf; it must be a finite number"),
        ({"objective": {"contrastive": 1, "temperature": 0}}, "temperature is 0, but the contrastive loss divides"),
    ],
)
def test_wrong_training_settings(model, settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        model.fit(**settings)


@pytest.mark.parametrize("path", [3, None, True, b"model.pt"])
def test_wrong_paths(model, cells, path):
    """Python takes integers for open files, and would close them."""
    for call in (model.save, clue.CLUE.load):
        with pytest.raises(ValueError, match=f"^path is {path!r}; it must be a string or a Path$"):
            call(path)
    with pytest.raises(ValueError, match=f"^path is {0!r}; it must be a string or a Path or None$"):
        model.predict(cells["rna"], "adt", path=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, c: m.embed(c, key_added=3), "key_added is 3; it must be a string or None"),
        (lambda m, c: m.align(c["rna"], 3), "modality is 3; it must be a string or None"),
        (lambda m, c: m.predict(c["rna"], "adt", log="no"), "log is 'no'; it must be True or False"),
        (lambda m, c: m.predict(c["rna"], "adt", features=3), "adt has no decoded feature 3"),
        (lambda m, c: m.predict(c["rna"], "adt", library_size=np.inf), "library_size is inf; it must be a finite"),
        (lambda m, c: m.match(c["rna"], c["adt"], k=1.5), "k is 1.5; it must be a whole number"),
        (lambda m, c: m.match(c["rna"], c["adt"], matching=match_ot, epsilon=0), "epsilon is 0; it must be greater"),
    ],
)
def test_wrong_arguments(model, cells, call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(model, cells)


def test_numpy_scalars_are_accepted(cells, tmp_path):
    """Such as those from a table or a grid of settings."""
    widths = {name: np.int64(n) if name in ("n_latent", "n_components") else n for name, n in WIDTHS.items()}
    model = clue.CLUE(cells, seed=np.int64(1), normalize=np.bool_(True), dropout=np.float32(0.2), **widths)
    model.fit(max_steps=np.int64(4), learning_rate=np.float32(1e-3), checkpoints=tmp_path / "steps", progress=False)
    model.save(tmp_path / "model.pt")
    loaded = clue.CLUE.load(tmp_path / "model.pt")
    assert np.array_equal(loaded.embed(cells), model.embed(cells))


def test_unknown_argument_is_named(cells):
    for call in (clue.CLUE, clue.Training, clue.Objective):
        with pytest.raises(TypeError, match="unexpected keyword argument 'n_laten'"):
            call(*[cells][: call is clue.CLUE], n_laten=20)


@pytest.mark.parametrize(
    ("settings", "known"),
    [({"max_epochs": 10}, "no max_epochs.*max_passes"), ({"objective": {"x": 1}}, "has no x; it has .*adversarial")],
)
def test_error_on_an_unknown_setting_lists_the_known_ones(cells, settings, known):
    with pytest.raises(TypeError, match=known):
        untrained(cells).fit(**settings)


def test_preprocessors_of_another_model_are_reused(cells):
    widths = {name: value for name, value in WIDTHS.items() if name != "n_components"}
    first = clue.CLUE(cells, **widths)
    again = clue.CLUE(cells, preprocessors=first.preprocessors, **widths)
    np.testing.assert_array_equal(again.embed(cells), first.embed(cells))
    with pytest.raises(ValueError, match="preprocessors: none was fitted on the 79 features of rna"):
        clue.CLUE({"rna": cells["rna"][:, 1:], "adt": cells["adt"]}, preprocessors=first.preprocessors)


def test_names_of_another_dtype_are_the_same_names(cells):
    adt = cells["adt"].copy()
    adt.obs.index = adt.obs.index.astype("string")
    clue.CLUE({"rna": cells["rna"], "adt": adt}, batch_key="batch", **WIDTHS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(cells):
    with pytest.raises(ValueError, match="device 'cuda': torch finds no GPU"):
        clue.CLUE(cells, device="cuda", **WIDTHS)
    assert clue.CLUE(cells, **WIDTHS).device == "cpu", "auto"


def test_training_works_with_a_single_held_out_cell(cells, monkeypatch):
    monkeypatch.setattr(clue.train, "held_out", lambda names, fraction, seed: np.arange(len(names)) == 3)
    model = untrained(cells).fit(max_steps=20, check_steps=10, progress=False)
    assert np.isfinite(model.history["loss"]).all()
    with pytest.raises(ValueError, match="monitor 'foscttm' needs two held-out cells seen in two .*; use 'loss'"):
        model.fit(**SHORT, monitor="foscttm")
