"""The read-out: canonical directions of the encoders' outputs, chosen on cells that encoders were not trained on."""

from itertools import combinations

import numpy as np
import pytest

import clue
from clue.matching import match_snn
from clue.metrics import foscttm, match_score
from clue.readout import LEAST_PAIRS, MIN_HELD_OUT, RIDGES, Readout, _Moments, _scaled, qualities
from clue.simulate import simulate

N = 600
ONE = np.full(N, "all")
"""One batch of all cells."""


def correlated(rng, n_features, shared):
    """Return features with the shared factors in some of their directions, and noise in all."""
    features = rng.normal(size=(len(shared), n_features))
    features[:, : shared.shape[1]] += 2 * shared
    return features @ np.linalg.qr(rng.normal(size=(n_features, n_features)))[0]


@pytest.fixture
def features():
    """Two modalities of 600 cells that share two factors."""
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(N, 2))
    return {"rna": correlated(rng, 8, shared), "adt": correlated(rng, 5, shared)}


def test_two_modalities_have_the_canonical_correlations(features):
    directions = next(_Moments(features, np.ones(N, dtype=bool), ONE).canonical([0.0], 5))
    centred = [x - x.mean(axis=0) for x in features.values()]
    bases = [np.linalg.svd(x, full_matrices=False)[0] for x in centred]
    expected = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    x, y = (c @ d for c, d in zip(centred, directions.values(), strict=True))
    np.testing.assert_allclose(np.std(x, axis=0), expected, atol=1e-8)  # the weight of a direction
    np.testing.assert_allclose(x.T @ y / N, np.diag(expected**3), atol=1e-8)


def test_differences_between_batches_make_no_directions(features):
    """Three batches differ in both modalities, so their means are correlated; cells of one batch do not tell this."""
    batch = np.array(["a", "b", "c"])[np.arange(N) % 3]
    rng = np.random.default_rng(1)
    moved = {k: x + 10 * rng.normal(size=(3, x.shape[1]))[np.arange(N) % 3] for k, x in features.items()}
    seen = np.ones(N, dtype=bool)
    expected, found = (next(_Moments(x, seen, batch).canonical([0.1], 3)) for x in (features, moved))
    sign = np.sign((found["rna"] * expected["rna"]).sum(axis=0))  # of an eigenvector; it differs between processors
    for k in features:
        np.testing.assert_allclose(found[k] * sign, expected[k], atol=1e-8)
    # batches of few cells have uncertain means, and are not told apart
    few, one = (next(_Moments(moved, seen, each).canonical([0.1], 3)) for each in (np.arange(N) // 10, ONE))
    np.testing.assert_array_equal(few["rna"], one["rna"])


def test_hidden_layers_of_few_inputs_and_few_cells_have_canonical_directions():
    """Most correlations are zero, and an iterative solver cannot separate them."""
    rng = np.random.default_rng(0)
    features = {}
    for modality in ("rna", "adt"):
        inputs = rng.normal(size=(60, 5))
        features[modality] = np.hstack([inputs, np.maximum(inputs @ rng.normal(size=(5, 295)), 0)])
    directions = next(_Moments(features, np.ones(60, dtype=bool), ONE[:60]).canonical([0.01], 160))
    assert all(np.isfinite(d).all() and d.shape == (300, 160) for d in directions.values())


def test_three_modalities_are_aligned_from_pairs():
    """No cell is seen in all three; what two of them share with the third aligns them."""
    rng = np.random.default_rng(1)
    shared = rng.normal(size=(N, 2))
    sizes = {"rna": 8, "atac": 7, "adt": 5}
    # the last two columns are z
    whole = {k: np.hstack([correlated(rng, n, shared), shared + rng.normal(size=(N, 2))]) for k, n in sizes.items()}
    features = {k: x.copy() for k, x in whole.items()}
    for part, missing in enumerate(features):
        features[missing][part * N // 3 : (part + 1) * N // 3] = np.nan
    none = np.zeros(N, dtype=bool)
    readout = Readout.fit(features, sizes, 2, none, none.astype(str))
    placed = {k: readout(k, x) for k, x in whole.items()}
    for a, b in (("rna", "atac"), ("rna", "adt"), ("atac", "adt")):
        assert np.mean(foscttm(placed[a], placed[b])) < 0.25 < 0.35 < np.mean(foscttm(whole[a][:, :5], whole[b][:, :5]))


def noisy(features, n_noise=40):
    rng = np.random.default_rng(2)
    return {k: np.hstack([x, rng.normal(size=(N, n_noise))]) for k, x in features.items()}


def test_quality_of_held_out_cells_depends_on_ridge_and_components(features):
    held_out, batch = np.arange(N) % 4 == 0, np.full(N, "all")
    found = qualities(noisy(features), held_out, batch, [(1.0, 2, 0.5), (0.01, 40, 0.5)], N)
    assert found[1.0, 2, 0.5] > found[0.01, 40, 0.5] + 0.2


@pytest.mark.parametrize("n_held_out", [MIN_HELD_OUT - 1, N // 4])
def test_hidden_layers_take_the_ridge_with_which_held_out_cells_match_best(features, n_held_out):
    """If too few cells are held out, the largest ridge."""
    sizes = {k: x.shape[1] for k, x in features.items()}
    with_hidden = noisy(features)
    with_z = {k: np.hstack([x, np.ones((N, 1))]) for k, x in with_hidden.items()}
    held_out, batch = np.arange(N) < n_held_out, np.full(N, "all")
    readout = Readout.fit(with_z, sizes, 1, held_out, batch, [(8, (1.0, 2, 0))])
    scaled, scale = _scaled(with_hidden, sizes)
    found = qualities(scaled, held_out, batch, [(ridge, n, 0) for ridge in RIDGES for n in (2, 4)], N)
    best, n, _ = max(found, key=found.get) if found else (max(RIDGES), 2, 0)
    directions = next(_Moments(scaled, np.ones(N, dtype=bool), batch).canonical([best], n))
    for k, expected in directions.items():
        np.testing.assert_allclose(readout.of_all.directions[k], scale[k][:, None] * expected)


def test_lift_is_better_if_lengths_carry_over(features):
    """Two modalities share two factors, so the direction alone is one number; the length is another."""
    held_out, batch = np.arange(N) % 4 == 0, np.full(N, "all")
    plain, lifted = (1.0, 2, 0), (1.0, 2, 0.5)
    quality = qualities(features, held_out, batch, [plain, lifted], N)
    assert quality[lifted] > quality[plain] + 0.5
    # held-out cells ten times nearer to the mean, as if components had fitted the noise of the other cells
    nearer = {k: np.where(held_out[:, None] & (k == "rna"), x / 10, x) for k, x in features.items()}
    quality = qualities(nearer, held_out, batch, [plain, lifted], N)
    assert quality[lifted] < quality[plain]


def test_lifted_cosine_compares_lengths(features):
    """Of cells in one direction, the one of the same length is nearest."""
    none, batch, n_inputs = np.zeros(N, dtype=bool), np.full(N, "all"), {k: x.shape[1] for k, x in features.items()}
    with_z = {k: np.hstack([x, np.ones((N, 1))]) for k, x in features.items()}
    (projection,) = Readout.fit(with_z, n_inputs, 1, none, batch, [(8, (0.1, 2, 0.5))]).of_inputs
    assert all(len(d.T) == 2 for d in projection.directions.values())
    centre = projection.mean["rna"]
    one, three = (projection("rna", centre + times * (features["rna"] - centre)) for times in (1, 3))
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1)
    assert (np.sum(one * three, axis=1) < 1 - 1e-3).mean() > 0.9


def test_projections_of_inputs_together_weigh_as_much_as_one(features):
    none, batch, n_inputs = np.zeros(N, dtype=bool), np.full(N, "all"), dict.fromkeys(features, 6)
    rng = np.random.default_rng(3)
    wide = {k: np.hstack([x, rng.normal(size=(N, 4))]) for k, x in features.items()}
    alone, other, both = (
        Readout.fit(wide, n_inputs, 2, none, batch, chosen)
        for chosen in ([(6, (0.1, 2, 0.5))], [(3, (1.0, 2, 0.5))], [(6, (0.1, 2, 0.5)), (3, (1.0, 2, 0.5))])
    )
    assert [d.shape for part in both.of_inputs for d in part.directions.values()] == [(6, 2)] * 2 + [(3, 2)] * 2
    cosines = [readout("rna", wide["rna"]) @ readout("adt", wide["adt"]).T for readout in (alone, other, both)]
    np.testing.assert_allclose(cosines[2], (cosines[0] + cosines[1]) / 2)
    assert both.width == both("rna", wide["rna"]).shape[1]
    again = Readout.from_state(both.state())
    np.testing.assert_array_equal(again("adt", wide["adt"]), both("adt", wide["adt"]))


# ---- as part of the model ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A model of three modalities, with half of the training cells seen in all of them, and test cells."""
    cells = simulate(900, {"rna": 200, "atac": 300, "adt": 30}, library_sizes={"adt": 500}, seed=3)
    train, test = cells[:700].copy(), cells[700:].copy()
    mosaic = {k: adata[i * 100 : 400 + i * 100].copy() for i, (k, adata) in enumerate(train.mod.items())}
    model = clue.CLUE(mosaic, batch_key="batch", encoder=(1, 64), n_latent=10, seed=0)
    return model.fit(max_steps=150, check_steps=50, progress=False), dict(test.mod)


def test_aligned_cells_match_better_than_embedded_cells(trained):
    """On average over the pairs of modalities: with 200 cells, single pairs vary by chance."""
    model, test = trained
    scores = {}
    for place in (model.embed, model.align):
        placed = {k: place(adata, k) for k, adata in test.items()}
        pairs = [(placed[k], placed[m]) for k, m in combinations(placed, 2)]
        distance = np.mean([np.mean(foscttm(x, y)) for x, y in pairs])
        scores[place.__name__] = distance, np.mean([match_score(match_snn(x, y), np.arange(200)) for x, y in pairs])
    assert scores["align"][0] < scores["embed"][0] and scores["align"][1] > scores["embed"][1], scores


def test_alignment_has_unit_length_and_keeps_the_order_of_cells(trained):
    model, test = trained
    placed = model.align(test["rna"], "rna")
    np.testing.assert_allclose(np.linalg.norm(placed, axis=1), 1, rtol=1e-5)
    turned = model.align(test["rna"][::-1].copy(), "rna")
    np.testing.assert_allclose(turned[::-1], placed, atol=1e-5)
    with pytest.raises(ValueError, match="unknown modality 'protein'"):
        model.align(test["rna"], "protein")


def test_model_of_an_earlier_version_cannot_align(trained, tmp_path):
    model, test = trained
    model.save(tmp_path / "model.pt")
    loaded = clue.CLUE.load(tmp_path / "model.pt")
    loaded._readout = None  # as in a file from an earlier version
    with pytest.raises(ValueError, match="holds no read-out; train the model again"):
        loaded.align(test["adt"], "adt")


def test_further_training_makes_a_new_readout(trained):
    model, test = trained
    before, readout = model.align(test["rna"], "rna"), model.readout
    assert model.readout is readout, "fitted once"
    model.fit(max_steps=20, progress=False)
    assert model.readout is not readout
    after = model.align(test["rna"], "rna")
    assert after.shape != before.shape or not np.allclose(after, before)


TINY = {"encoder": (1, 8), "decoder": (1, 8), "discriminator": (1, 8), "n_latent": 3}


def with_pairs(n_pairs, modality):
    """The first 100 cells of each modality, but of one only `n_pairs` of them, and 60 other cells."""
    data = dict(simulate(160, {"rna": 60, "atac": 80, "adt": 15}, n_batches=1, seed=0).mod)
    return {k: adata[100 - n_pairs :].copy() if k == modality else adata[:100].copy() for k, adata in data.items()}


@pytest.mark.parametrize("n_components", [None, 8])
@pytest.mark.parametrize("n_pairs", [1, LEAST_PAIRS - 1, LEAST_PAIRS])
def test_modality_with_few_pairs_is_left_out(n_pairs, n_components, tmp_path):
    cells = with_pairs(n_pairs, "adt")
    model = clue.CLUE(cells, n_components=n_components, **TINY).fit(max_steps=4, progress=False)
    assert np.isfinite(model.align(cells["rna"])).all()
    model.save(tmp_path / "model.pt")
    loaded = clue.CLUE.load(tmp_path / "model.pt")
    assert list(loaded.readout.n_inputs) == ["rna", "atac", "adt"][: 3 if n_pairs == LEAST_PAIRS else 2]
    if n_pairs < LEAST_PAIRS:
        with pytest.raises(ValueError, match="adt cannot be aligned: too few training cells"):
            model.align(cells["adt"])


def test_modality_is_left_out_if_its_partners_are():
    """Each pair of modalities has three cells in common; of one modality, they are six."""
    rng = np.random.default_rng(0)
    features = {k: rng.normal(size=(6, 4)) for k in ("rna", "atac", "adt")}
    features["rna"][:3] = features["adt"][3:] = np.nan
    none = np.zeros(6, dtype=bool)
    with pytest.raises(ValueError, match="cells cannot be aligned: fewer than 4 training cells"):
        Readout.fit(features, dict.fromkeys(features, 3), 1, none, none.astype(str))


@pytest.mark.parametrize("reason", ["pairs", "counts"])
def test_model_is_saved_without_a_readout_that_cannot_be_fitted(reason, tmp_path):
    cells = {k: adata for k, adata in with_pairs(1 if reason == "pairs" else 100, "adt").items() if k != "atac"}
    model = clue.CLUE(cells, n_components=8, **TINY).fit(max_steps=4, progress=False)
    message = "cells cannot be aligned: fewer than 4 training cells"
    if reason == "counts":
        message = "X must hold raw counts"
        cells["rna"].X.data *= 0.5
    with pytest.warns(UserWarning, match=f"saved without its read-out: .*{message}"):
        model.save(tmp_path / "model.pt")
    for call in (model.align, lambda adata: model.match(adata, adata, "adt", "adt")):
        with pytest.raises(ValueError, match=message):
            call(cells["adt"])
    loaded = clue.CLUE.load(tmp_path / "model.pt")
    np.testing.assert_array_equal(loaded.embed(cells["adt"]), model.embed(cells["adt"]))
