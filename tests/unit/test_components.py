"""The number of components: given, or chosen by how cells match that no fit has seen."""

import anndata as ad
import numpy as np
import pytest

import clue
from clue.components import MAX_FITTED, choose_widths, fit_preprocessors
from clue.metrics import foscttm
from clue.readout import DEFAULT, Readout
from clue.simulate import simulate

KINDS = {"rna": "rna", "atac": "atac"}
SMALL = {"encoder": (1, 8), "decoder": (1, 8), "discriminator": (1, 8), "n_latent": 4}


@pytest.fixture(scope="module")
def cells():
    """1,200 cells with sparse counts."""
    return dict(simulate(1200, {"rna": 400, "atac": 500}, n_batches=1, seed=1).mod)


def first(cells, n_cells):
    return {k: adata[:n_cells].copy() for k, adata in cells.items()}


@pytest.mark.parametrize("n_components, width", [(15, 15), (None, 20)])
def test_few_cells_have_a_component_for_every_two(cells, n_components, width):
    fitted = fit_preprocessors(first(cells, 40), KINDS, n_components)
    assert [p.width for p in fitted.values()] == [width, width]


def test_number_is_chosen_by_matching(cells):
    """Few components of sparse counts are shared; with more of them, fewer held-out cells are matched."""
    fitted = fit_preprocessors(cells, KINDS)
    width = fitted["rna"].width
    assert 25 <= width < 200 and fitted["atac"].width == width
    fixed = fit_preprocessors(cells, KINDS, width)
    for k in cells:
        narrowed, expected = (found[k].transform(cells[k]) for found in (fitted, fixed))
        np.testing.assert_allclose(narrowed, expected, atol=0.02)


class Views:
    """Fitted inputs of cells whose first components are the same in all modalities, and the others noise."""

    def __init__(self, n_shared, width, seed):
        self.n_shared, self.width, self.seed = n_shared, width, seed

    def transform(self, adata):
        number = adata.obs_names.str.removeprefix("cell").astype(int) % 2000
        shared = np.random.default_rng(0).standard_normal((2000, self.n_shared))[number]
        noise = 3 * np.random.default_rng(self.seed).standard_normal((2000, self.width - self.n_shared))[number]
        return np.hstack([shared, noise])

    def first(self, x, width):
        return x[:, :width]


def numbered(numbers):
    empty = np.zeros((len(numbers), 1), dtype=np.float32)
    found = ad.AnnData(empty)
    found.obs_names = [f"cell{i}" for i in numbers]
    found.obs["batch"] = "all"
    return found


@pytest.mark.parametrize("n_shared, expected", [(100, [100, 71, 50, 35, 25]), (20, [50, 35, 25])])
def test_choice_follows_the_shared_components_and_sees_held_out_cells_in_no_fit(n_shared, expected):
    fits = []

    def fit(some, width):
        fits.append({k: set(adata.obs_names) for k, adata in some.items()})
        return {k: Views(n_shared, width, seed) for seed, k in enumerate(some, 1)}

    cells = {"rna": numbered(range(900)), "atac": numbered(range(300, 1200))}
    of_all = fit(cells, 100)
    quality, chosen = choose_widths(cells, of_all, fit, seed=0)
    assert list(chosen) == expected and quality > 2
    # without the function, the given components serve all folds
    assert choose_widths(cells, of_all, None, seed=0) == (quality, chosen)
    del fits[0]
    paired = {f"cell{i}" for i in range(300, 900)}
    held_out = [paired - fitted["rna"] for fitted in fits]
    assert len(fits) == 3 and set.union(*held_out) == paired and sum(map(len, held_out)) == len(paired)
    for fitted, names in zip(fits, held_out, strict=True):
        assert not fitted["atac"] & names and len(fitted["rna"]) == len(fitted["atac"]) == 900 - len(names)


def test_fits_of_many_cells_are_of_a_sample_with_the_paired_cells():
    sizes = []

    def fit(some, width):
        sizes.append([adata.n_obs for adata in some.values()])
        return {k: Views(20, width, seed) for seed, k in enumerate(some, 1)}

    cells = {"rna": numbered(range(100)), "atac": numbered(range(MAX_FITTED + 100))}
    of_all = fit(cells, 50)
    sizes.clear()
    choose_widths(cells, of_all, fit, seed=0)
    assert [size[1] for size in sizes] == [MAX_FITTED] * 3 and {size[0] for size in sizes} == {66, 67}


def test_too_few_pairs_to_tell_take_the_most_components(cells):
    some = first(cells, 200)
    some["atac"] = ad.concat([some["atac"][:50], some["atac"][50:]], index_unique=None)
    some["atac"].obs_names = [name if i < 50 else f"other{i}" for i, name in enumerate(some["atac"].obs_names)]
    fitted = fit_preprocessors(some, KINDS)
    assert {p.width for p in fitted.values()} == {100} and fitted["rna"].readouts == [(100, DEFAULT)]


def test_fold_that_cannot_be_fitted_is_no_error(cells):
    """Two proteins, one of them seen in a single cell: without this cell, there is one feature."""
    counts = np.array([[i % 5 + 1, i == 0] for i in range(150)], dtype=np.float32)
    adt = ad.AnnData(counts, obs=cells["rna"].obs.iloc[:150])
    some = {"rna": cells["rna"][:150].copy(), "adt": adt}
    fitted = fit_preprocessors(some, {"rna": "rna", "adt": "adt"})
    assert fitted["rna"].width == 75


def test_components_of_few_sparse_cells_are_fitted_on_the_query_too(cells):
    """The query is then matched better. That its cells have the names of pairs is not used."""
    few, query = first(cells, 100), {k: adata[100:, ::-1].copy() for k, adata in cells.items()}
    closer = []
    for given in (None, query):
        fitted = fit_preprocessors(few, KINDS, query=given)
        inputs = {k: np.hstack([found.transform(cells[k]), np.ones((1200, 1))]) for k, found in fitted.items()}
        of_pairs = {k: x[:100] for k, x in inputs.items()}, {k: x.shape[1] - 1 for k, x in inputs.items()}, 1
        readout = Readout.fit(*of_pairs, np.zeros(100, dtype=bool), np.zeros(100), fitted["rna"].readouts)
        closer.append(np.mean(foscttm(*(readout(k, x)[100:] for k, x in inputs.items()))))
    assert closer[1] < 0.7 * closer[0]
    again = fit_preprocessors(few, KINDS, query={"rna": query["rna"], "atac": query["atac"][::-1]})
    assert again["rna"].readouts == fitted["rna"].readouts


def test_query_that_hardly_helps_changes_nothing(cells):
    many, query = first(cells, 1000), {k: adata[1000:].copy() for k, adata in cells.items()}
    plain, given = fit_preprocessors(many, KINDS), fit_preprocessors(many, KINDS, query=query)
    for k, found in given.items():
        assert found.readouts == plain[k].readouts
        np.testing.assert_array_equal(found.transform(cells[k]), plain[k].transform(cells[k]))


def test_model_chooses_and_takes_given_inputs_as_they_are(cells):
    some = first(cells, 300)
    model = clue.CLUE(some, **SMALL)
    chosen = model.preprocessors
    again = fit_preprocessors(some, KINDS)["rna"]
    assert chosen["rna"].width == again.width == again.readouts[0][0]
    assert clue.CLUE(some, preprocessors=chosen, **SMALL).preprocessors == chosen
    widths = [len(part.mean["rna"]) for part in model.readout.of_inputs]
    assert widths == [n for n, _ in chosen["rna"].readouts]
    fixed = clue.CLUE(some, n_components=40, **SMALL)
    assert not fixed.preprocessors["rna"].readouts and [len(p.mean["rna"]) for p in fixed.readout.of_inputs] == [40]


@pytest.mark.parametrize("n_cells, expected", [(60, 30), (300, 100), (1200, 120)])
def test_encoders_read_fewer_components_than_the_readout_if_cells_are_few(cells, monkeypatch, n_cells, expected):
    monkeypatch.setattr("clue.components.TOLERANCE", np.inf)
    some = first(cells, n_cells)
    fitted = fit_preprocessors(some, KINDS)
    for k, found in fitted.items():
        components = found.transform(some[k])
        assert found.width >= min(399, n_cells // 2) and found.encoder_width == expected
        given = found.encoder_input(components)
        found.narrow(expected)
        np.testing.assert_allclose(given, found.transform(some[k]), atol=1e-5)


def test_model_embeds_the_same_whether_its_encoders_read_some_components_or_there_are_no_others(cells, tmp_path):
    """The read-out of the first also reads the others, and both survive saving."""
    some = first(cells, 300)
    wide, narrow = (fit_preprocessors(some, KINDS, n) for n in (60, 60))
    for k in some:
        wide[k].encoded = 20
        narrow[k].narrow(20)
    models = [clue.CLUE(some, preprocessors=fitted, **SMALL) for fitted in (wide, narrow)]
    for model in models:
        model.fit(max_steps=5, progress=False)
    z = [model.embed(some["atac"], "atac") for model in models]
    np.testing.assert_allclose(*z, atol=1e-5)
    assert [model.readout.n_inputs for model in models] == [{"rna": 60, "atac": 60}, {"rna": 20, "atac": 20}]
    models[0].save(tmp_path / "model.pt")
    loaded = clue.CLUE.load(tmp_path / "model.pt")
    np.testing.assert_array_equal(loaded.embed(some["atac"], "atac"), z[0])
    np.testing.assert_allclose(loaded.align(some["atac"], "atac"), models[0].align(some["atac"], "atac"), atol=1e-6)
