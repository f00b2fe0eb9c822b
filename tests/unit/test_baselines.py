"""The baselines compute what they claim: ridge's left-out predictions, the contrastive loss, upstream's results."""

import importlib
import importlib.util
import math
from itertools import product
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from helpers import task_of

from clue.benchmark.config import load
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task
from clue.benchmark.methods.task import Params
from clue.benchmark.methods.validation import choose, choose_metric, combinations, inner_split
from clue.correction import remove_hubs, remove_shifts
from clue.preprocess import preprocessor
from clue.simulate import simulate

ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(scripts):
    """A function that imports a method's program."""
    return lambda name: scripts(f"methods/{name}.py")


def check_metric(task: Task) -> None:
    """Check that the metric of a task is the best of those compared."""
    best = max(task.info["metrics_compared"], key=lambda row: row["match_score"] / row["foscttm"])
    assert task.metric == best["metric"]


# ---- the choice of settings ----------------------------------------------------------------------


def test_combinations_are_the_whole_grid():
    assert combinations({"a": [1, 2], "b": [3]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_setting_that_matches_held_out_cells_is_chosen():
    paired = dict(simulate(60, {"rna": 5, "adt": 5}).mod)
    rng = np.random.default_rng(0)

    def candidates(fit_on, held_out, fold):
        assert not set(fit_on["rna"].obs_names) & set(held_out["rna"].obs_names)
        x = rng.normal(size=(held_out["rna"].n_obs, 4))
        yield x, rng.normal(size=x.shape)
        yield x, x

    grid = combinations({"good": [False, True]})
    chosen, table = choose(paired, grid, candidates, {"n_folds": 2, "max_held_out": None}, seed=0)
    assert chosen == {"good": True}
    assert table[1] == {"good": True, "match_score": 1.0, "foscttm": 0.0}
    assert table[0]["foscttm"] > 0.3


def test_metric_among_the_settings_compares_the_cells():
    paired = dict(simulate(60, {"rna": 5, "adt": 5}).mod)
    by_length = {name: np.outer(1 + np.arange(60), [1.0, 2.0]) for name in paired}

    def candidates(fit_on, held_out, fold):
        rows = paired["rna"].obs_names.get_indexer(held_out["rna"].obs_names)
        for _ in range(2):
            yield by_length["rna"][rows], by_length["adt"][rows]

    grid = combinations({"metric": ["cosine", "euclidean"]})
    chosen, table = choose(paired, grid, candidates, {"max_held_out": None}, seed=0)
    assert chosen == {"metric": "euclidean"} and table[1]["match_score"] == 1 > table[0]["match_score"]


@pytest.mark.parametrize("better", ["cosine", "euclidean"])
def test_metric_is_chosen_on_paired_training_cells(better):
    parts = simulate(50, {"rna": 5, "adt": 5}, seed=1).mod
    train = md.MuData({"rna": parts["rna"], "adt": parts["adt"][5:].copy()})  # 45 cells are paired
    place_of = {name: i for i, name in enumerate(train["rna"].obs_names)}
    angle = np.random.default_rng(0).uniform(0, 1.5, 50)
    asked = []

    def place(modality, names):
        if modality == "rna":
            asked.extend(names)
        rows = np.array([place_of[name] for name in names])
        if better == "euclidean":  # cells differ in length only
            return np.outer(1 + rows, [1.0, 2.0])
        x = np.column_stack([np.cos(angle[rows]), np.sin(angle[rows])])
        return x if modality == "rna" else x * np.random.default_rng(1).uniform(1, 9, (len(rows), 1))

    metric, table = choose_metric(train, place, seed=0)
    assert metric == better and [row["metric"] for row in table] == ["cosine", "euclidean"]
    assert len(set(asked)) == len(asked) == 23 and set(asked) <= set(train["adt"].obs_names)
    again = list(asked)
    asked.clear()
    choose_metric(md.MuData({name: adata[::-1].copy() for name, adata in train.mod.items()}), place, seed=0)
    assert asked == again, "the order of cells in the file does not matter"


@pytest.mark.parametrize(("n_cells", "is_enough"), [(1, False), (2, False), (3, True)])
def test_too_few_paired_cells_are_one_line(n_cells, is_enough):
    paired = dict(simulate(n_cells, {"rna": 5, "adt": 5}, seed=1).mod)
    if is_enough:
        assert inner_split(paired, 0)[0]["rna"].n_obs == 2
    else:
        with pytest.raises(BenchmarkError, match=f"^{n_cells} training cells are seen in every modality, and"):
            inner_split(paired, 0)


def test_metric_is_chosen_on_the_pairs_that_exist():
    """One metric finds all partners in RNA and ATAC, none does in RNA and ADT; no cell has both ATAC and ADT."""
    parts = simulate(60, {"rna": 5, "atac": 5, "adt": 5}, seed=1).mod
    train = md.MuData({"rna": parts["rna"], "atac": parts["atac"][:30].copy(), "adt": parts["adt"][30:].copy()})
    number = {name: i for i, name in enumerate(parts["rna"].obs_names)}

    def place(modality, names):
        rows = np.array([number[name] for name in names])
        lost = modality == "adt"
        return np.ones((len(rows), 2)) if lost else np.outer(1 + rows, [1.0, 2.0])

    metric, table = choose_metric(train, place, seed=0)
    assert metric == "euclidean" and 0.5 < table[1]["match_score"] < 0.7 and 0.2 < table[1]["foscttm"] < 0.25


@pytest.mark.parametrize("n_donors", [1, 3])
def test_inner_split_does_not_depend_on_the_order_of_cells(n_donors):
    paired = dict(simulate(60, {"rna": 5, "adt": 5}, n_donors=n_donors, seed=1).mod)
    assert paired["rna"].obs["donor"].nunique() == 2 * n_donors  # random cells, or whole donors from 4 on
    shuffled = np.random.default_rng(0).permutation(60)
    parts = [inner_split(cells, 0, at_most=9) for cells in (paired, {k: a[shuffled] for k, a in paired.items()})]
    for first, second in zip(*parts, strict=True):
        for name in paired:
            assert list(first[name].obs_names) == list(second[name].obs_names)
            assert (first[name].X != second[name].X).nnz == 0
    assert parts[0][1]["rna"].n_obs == 9


# ---- CCA -----------------------------------------------------------------------------------------


def test_corrected_cca_is_cca_without_shifts_and_hubs(program, tmp_path):
    task = task_of(simulate(160, {"rna": 40, "adt": 20}, n_batches=2), tmp_path)
    spec = load("methods", "cca", ROOT)
    params = spec["params"] | spec["budgets"]["test"] | {"n_features": {}}
    plain, corrected = (program("cca").embed(task, Params(params | {"corrected": is_on}), 0) for is_on in (False, True))
    batches = [cells.obs["batch"] for cells in task.test.values()]
    expected = remove_hubs(remove_shifts(list(plain.values()), batches), batches)
    for name, values in zip(task.test, expected, strict=True):
        np.testing.assert_array_equal(corrected[name], values)


# ---- ridge ---------------------------------------------------------------------------------------


def test_ridge_weights_are_correlations_with_predictions_of_left_out_cells(program):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)) + 1
    y = x @ rng.normal(size=(4, 2)) + rng.normal(size=(30, 2))
    penalty = 0.3
    total = len(x) * penalty * x.var(axis=0).mean()
    left_out = np.zeros_like(y)
    for i in range(len(x)):
        a, b = np.delete(x, i, axis=0), np.delete(y, i, axis=0)
        centred = a - a.mean(axis=0)
        coefficients = np.linalg.solve(centred.T @ centred + total * np.eye(4), centred.T @ (b - b.mean(axis=0)))
        left_out[i] = b.mean(axis=0) + (x[i] - a.mean(axis=0)) @ coefficients
    expected = [np.corrcoef(y[:, j], left_out[:, j])[0, 1] for j in range(2)]
    regression = program("ridge").regress_to_scale(x, y, penalty=penalty, power=1)
    np.testing.assert_allclose(regression["scale"] * y.std(axis=0), expected, rtol=1e-10)


def test_ridge_scales_measured_and_predicted_components_alike(program):
    ridge = program("ridge")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)) * [3, 1, 0.1]
    y = x @ rng.normal(size=(3, 3)) + rng.normal(size=(50, 3))
    for embedding in ridge.place(x, y, ridge.fit(x, y, penalty=0.1, n_predicted=2, power=0)):
        assert embedding.shape == (50, 4)
        np.testing.assert_allclose(embedding.std(axis=0), 1)
        np.testing.assert_allclose(embedding.mean(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("power", [0, 1])
def test_constant_component_has_no_weight_in_ridge(program, power):
    """Few cells with few proteins have fewer components than requested."""
    ridge = program("ridge")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 3)), np.hstack([rng.normal(size=(12, 2)), np.zeros((12, 1))])
    found, without = (ridge.regress_to_scale(x, targets, 0.1, power) for targets in (y, y[:, :2]))
    for key in ("coefficients", "scale"):
        np.testing.assert_allclose(found[key][..., :2], without[key])
        assert not found[key][..., 2].any()
    assert all(np.isfinite(z).all() for z in ridge.place(x, y, ridge.fit(x, y, 0.1, 3, power)))


# ---- contrastive ---------------------------------------------------------------------------------


def test_contrastive_loss_of_two_cells(program):
    encoders = program("contrastive").Encoders([torch.nn.Identity(), torch.nn.Identity()], temperature=0.5)
    x = torch.eye(2)
    # Each cell has similarity 1 with itself and 0 with the other, divided by the temperature.
    assert encoders.loss([x, 3 * x]).item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 1)))
    assert encoders.loss([x, x.flip(0)]).item() == pytest.approx(-math.log(1 / (math.exp(2) + 1)))


# ---- the authors' CLUE ---------------------------------------------------------------------------

PARAMS = {
    "transductive": True,
    "n_components": 10,
    "n_features": {},
    "model": {"latent_dim": 4, "x2u_h_depth": 2, "x2u_h_dim": 16, "u2x_h_depth": 1, "u2x_h_dim": 16}
    | {"du_h_depth": 2, "du_h_dim": 16, "dropout": 0.2, "shared_batches": True},
    "compile": {"lam_data": 1, "lam_kl": 1, "lam_align": 2, "lam_sup": 0, "lam_joint_cross": 2, "lam_real_cross": 0}
    | {"lam_cos": 1, "normalize_u": True, "lr": 0.002},
    "training": {"batch_size": 32, "val_split": 0.1, "max_steps": 10**6},
    "fine_tuning": {"lr": 0.001, "align_burnin": 0, "max_epochs": 4, "patience": 3, "reduce_lr_patience": 2}
    | {"max_steps": 10**6},
}


@pytest.mark.slow
@pytest.mark.parametrize("second", ["adt", "atac"])
def test_clue_scglue_equals_upstream_called_directly(program, second, tmp_path, monkeypatch):
    scglue = pytest.importorskip("scglue", reason="scglue, the authors' implementation, is not installed")
    # Upstream takes the length of training from these constants; its own values would take minutes.
    for name, value in {"MAX_EPOCH": 0.06, "ALIGN_BURNIN": 0.01, "PATIENCE": 0.02, "REDUCE_LR_PATIENCE": 0.01}.items():
        monkeypatch.setattr(scglue.models.SCCLUEModel, f"{name}_PRG", value)
    monkeypatch.setattr(scglue.config, "CPU_ONLY", True)
    cells = simulate(120, {"rna": 40, second: 30}, seed=2)
    # A gene that no cell has is not passed to upstream.
    cells["rna"].X = cells["rna"].X @ sp.diags(np.arange(40) != 5, dtype=np.float32).tocsr()
    own = task_of(cells, tmp_path / "own")
    expected = upstream(scglue, own, tmp_path / "upstream")
    found = program("clue_scglue").embed(own, PARAMS, seed=3)
    for name in ("rna", second):
        np.testing.assert_array_equal(found[name], expected[name])
    assert own.info["training"]["max_epochs"] == 12 and own.info["fine_tuning"]["max_epochs"] == 4
    assert {path.name for path in (tmp_path / "own").iterdir()} == {"training", "fine_tuning"}


def upstream(scglue, task, folder):
    """Train on the training cells, fine-tune with the test cells: upstream's own calls on our input."""
    train, test = {}, {}
    for name, adata in task.train.mod.items():
        prepared = preprocessor(name, 10, PARAMS["n_features"].get(name), seed=3).fit(adata)
        train[name], test[name] = adata.copy(), task.test[name].copy()
        for part in (train[name], test[name]):
            part.obsm["X_rep"] = prepared.transform(part)
            part.var["highly_variable"] = np.isin(np.arange(part.n_vars), prepared.selected)
    model = upstream_model(scglue, train, lr=0.002)
    model.fit(train, directory=folder / "1", batch_size=32)
    both = {name: ad.concat([train[name], test[name]], merge="same") for name in train}
    tuned = upstream_model(scglue, both, lr=0.001)
    tuned.adopt_pretrained_model(model)
    lengths = {"align_burnin": 0, "max_epochs": 4, "patience": 3, "reduce_lr_patience": 2}
    tuned.fit(both, directory=folder / "2", batch_size=32, **lengths)
    return {name: tuned.encode_data(name, test[name]) for name in test}


def upstream_model(scglue, adatas, lr):
    for adata in adatas.values():
        options = {"use_highly_variable": True, "use_rep": "X_rep", "use_batch": "batch", "use_obs_names": True}
        scglue.models.configure_dataset(adata, "NB", **options)
    sizes = {"x2u_h_depth": 2, "x2u_h_dim": 16, "u2x_h_depth": 1, "u2x_h_dim": 16, "du_h_depth": 2, "du_h_dim": 16}
    model = scglue.models.SCCLUEModel(adatas, latent_dim=4, dropout=0.2, shared_batches=True, random_seed=3, **sizes)
    weights = {"lam_align": 2, "lam_sup": 0, "lam_joint_cross": 2, "lam_real_cross": 0, "lam_cos": 1}
    model.compile(lam_data=1, lam_kl=1, normalize_u=True, lr=lr, **weights)
    return model


# ---- MultiVI -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("second", ["adt", "atac"])
def test_multivi_equals_upstream_called_directly(program, second, tmp_path):
    scvi = pytest.importorskip("scvi", reason="scvi-tools, which holds MultiVI, is not installed")
    cells = simulate(160, {"rna": 50, second: 40}, seed=2)
    own = task_of(cells, tmp_path, paired_fraction=0.8)
    training = {"max_epochs": 3, "lr": 0.001, "batch_size": 32, "train_size": 0.9, "n_epochs_kl_warmup": 1}
    params = {"min_cell_fraction": 0.01, "min_steps": 0, "model": {"n_latent": 4, "n_hidden": 16}, "training": training}
    found, predictions = program("multivi").embed(own, params, seed=3)

    # Upstream's calls and none of our code: tables padded with zeros, cells and features by name.
    tables = {name: pd.concat([a.to_df() for a in (own.train.mod[name], own.test[name])]) for name in own.train.mod}
    batch = pd.concat([a.obs["batch"].astype(str) for a in (*own.train.mod.values(), *own.test.values())])
    names = sorted(set().union(*(table.index for table in tables.values())))
    obs = pd.DataFrame({"sample": batch[~batch.index.duplicated()].loc[names]}, index=names)
    obs["measured"] = ["+".join(name for name, table in tables.items() if cell in table.index) for cell in names]
    assert obs["measured"].value_counts().to_dict() == {f"rna+{second}": 96, "rna": 52, second: 52}
    layers = {"rna": "rna_layer", "atac": "atac_layer", "adt": "protein_layer"}
    padded = {name: table.reindex(names, fill_value=0.0) for name, table in tables.items()}
    padded = {name: table.loc[:, (table > 0).sum() >= int(0.01 * len(names))] for name, table in padded.items()}
    modalities = {name: ad.AnnData(sp.csr_matrix(t.to_numpy(np.float32)), obs=obs) for name, t in padded.items()}
    scvi.settings.seed = 3
    mdata = md.MuData(modalities)
    mdata.obs = obs
    keys = {"batch_key": "measured", "categorical_covariate_keys": ["sample"]}
    scvi.model.MULTIVI.setup_mudata(mdata, modalities={layers[name]: name for name in modalities}, **keys)
    model = scvi.model.MULTIVI(mdata, n_latent=4, n_hidden=16)
    model.train(**training, accelerator="cpu")
    expected = pd.DataFrame(model.get_latent_representation(), index=names)
    for name, test in own.test.items():
        np.testing.assert_array_equal(found[name], expected.loc[test.obs_names])
    assert own.info["epochs"] == 3 and own.info["n_latent"] == 4

    # Predicted RNA is what upstream decodes for the test cells, on another scale: linear for each gene.
    genes = own.targets["rna"].names
    test_cells = mdata.obs_names.get_indexer(own.test[second].obs_names)
    decoded = model.get_normalized_expression(indices=test_cells, return_numpy=True)
    decoded = pd.DataFrame(decoded, columns=padded["rna"].columns)
    both = [(np.log1p(1e4 * decoded[gene]), predictions[f"{second}2rna"][:, i]) for i, gene in enumerate(genes)]
    correlations = [np.corrcoef(x, y)[0, 1] for x, y in both if np.ptp(y) > 1e-6]
    assert len(correlations) > 10 and min(correlations) > 0.999

    # Training cells are embedded from one modality alone, as test cells are.
    check_metric(own)
    words = {"rna": "expression", "atac": "accessibility", "adt": "protein"}
    for name, test in own.test.items():
        rows = mdata.obs_names.get_indexer(test.obs_names[::-1])
        alone = model.get_latent_representation(indices=rows, modality=words[name])
        np.testing.assert_allclose(alone[::-1], found[name], rtol=1e-5, atol=1e-6)


def test_multivi_trains_for_the_requested_number_of_steps(program):
    long_enough = program("multivi").long_enough
    settings = {"max_epochs": 10, "batch_size": 100, "train_size": 0.9}
    assert long_enough(settings, n_cells=1000, min_steps=0)["max_epochs"] == 10
    assert long_enough(settings, n_cells=1000, min_steps=91)["max_epochs"] == 11


def test_multivi_without_features_is_an_error(program, tmp_path):
    task = task_of(simulate(40, {"rna": 8, "adt": 5}, seed=0), tmp_path, fraction=0.5)
    with pytest.raises(BenchmarkError, match="rna: no feature is detected in 200% of 60 cells"):
        program("multivi").all_cells(task, min_cell_fraction=2)


# ---- UniVI ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("second", ["adt", "atac"])
def test_univi_equals_upstream_called_directly(program, second, tmp_path):
    univi = pytest.importorskip("univi", reason="univi, the authors' package, is not installed")
    weights = {"adt": {"beta": 1.5, "gamma": 5}, "atac": {"beta": 1.25, "gamma": 4.35, "align_anneal_end": 2}}[second]
    model_settings = {"latent_dim": 4, "encoder_dropout": 0.1, **weights}
    training = {"n_epochs": 3, "batch_size": 32, "lr": 1e-3, "weight_decay": 1e-4, "early_stopping": True}
    preprocessing = {"rna": {"n_hvg": 2000, "scale": True}, "adt": {"scale": True}}
    preprocessing["atac"] = {"n_components": 101, "drop_first": True}
    params = {"validation_share": 0.1, "preprocessing": preprocessing, "hidden": {"rna": [16], second: [24, 16]}}
    params |= {"model": model_settings, "objective": {"loss_mode": "v1", "v1_recon": "avg"}, "training": training}
    own = task_of(simulate(160, {"rna": 50, second: 40}, seed=2), tmp_path, paired_fraction=0.8)
    found = program("univi_model").embed(own, params, seed=3)

    # Upstream's calls as in its tutorials, and none of our code: 96 paired cells, 10 of them for early stopping.
    names = [name for name in own.train["rna"].obs_names if name in set(own.train[second].obs_names)]
    order = np.random.default_rng(3).permutation(len(names))
    assert len(names) == 96
    importlib.import_module("univi.utils.seed").set_seed(3)
    kinds = {
        "rna": lambda: univi.RNAPreprocessor(n_hvg=2000, scale=True, layer=None),
        "adt": lambda: univi.ADTPreprocessor(scale=True, layer=None),
        "atac": lambda: univi.ATACPreprocessor(n_components=39, drop_first=True, layer=None, random_state=3),
    }
    fit_on, held_out = (np.array(names)[np.sort(rows)] for rows in (order[10:], order[:10]))
    prepared = {name: kinds[name]().fit(own.train[name][fit_on]) for name in ("rna", second)}
    train = {name: prepared[name].transform(own.train[name][fit_on]) for name in prepared}
    validation = {name: prepared[name].transform(own.train[name][held_out]) for name in prepared}
    modalities = [
        univi.ModalityConfig("rna", train["rna"].n_vars, [16], [16], likelihood="gaussian"),
        univi.ModalityConfig(second, train[second].n_vars, [24, 16], [16, 24], likelihood="gaussian"),
    ]
    model = univi.UniVIMultiModalVAE(univi.UniVIConfig(modalities=modalities, **model_settings), loss_mode="v1")
    loader = univi.make_loader(train, batch_size=32, shuffle=True, drop_last=True, seed=3)
    stopping = univi.make_loader(validation, batch_size=1024)
    settings = univi.TrainingConfig(**training)
    univi.UniVITrainer(model, train_loader=loader, val_loader=stopping, train_cfg=settings).fit()
    for name, test in own.test.items():
        expected = univi.encode_adata(model, prepared[name].transform(test), modality=name, latent="modality_mean")
        np.testing.assert_array_equal(found[name], expected)
    assert own.info["epochs"] == 3 and own.info["univi"] == univi.__version__
    check_metric(own)


def test_univi_with_too_few_paired_cells_is_an_error(program):
    paired = dict(simulate(2, {"rna": 5, "adt": 5}, seed=1).mod)
    with pytest.raises(BenchmarkError, match="^2 training cells are seen in both .* UniVI needs at least 3"):
        program("univi_model").split(paired, 0.1, seed=0)


# ---- CHAMPOLLION ---------------------------------------------------------------------------------


def test_champollion_embedding_ranks_cells_as_its_plan_does(program):
    rng = np.random.default_rng(0)
    x, y, f, g = rng.normal(size=(8, 5)), rng.normal(size=(6, 3)), rng.normal(size=8), rng.normal(size=6)
    matrix = rng.normal(size=(5, 3))
    u, v = program("champollion").embedded(x, y, matrix, f, g)
    expected = x @ matrix @ y.T + (f - f.mean())[:, None] + g - g.mean()
    np.testing.assert_allclose(u @ v.T, expected)
    lengths = np.linalg.norm(np.vstack([u, v]), axis=1)
    np.testing.assert_allclose(lengths, lengths[0])  # so the cosine gives the same ranks


def test_failure_of_champollions_program_is_one_line(program):
    # the module is missing or, if installed, an array
    with pytest.raises(BenchmarkError, match="^CHAMPOLLION ended with status 1: (ModuleNotFound|Key)Error: .*$"):
        program("champollion").run({"bridge_0": np.ones((3, 2))}, {})


@pytest.mark.slow
def test_champollion_equals_upstream_called_directly(program, tmp_path):
    pytest.importorskip("champollion", reason="champollion-omics, which holds CHAMPOLLION, is not installed")
    from champollion import Champollion

    own = task_of(simulate(120, {"rna": 30, "adt": 8}, seed=2), tmp_path)
    model = {"epsilon": 1.0, "learning_rate": 0.001, "max_iter": 40, "sinkhorn_tol": 0.001, "log_every": 10}
    params = {"n_features": {}, "n_components": 5, "max_bridge": 1000, "max_held_out": 100, "gamma": [0.1]}
    params["model"] = model
    champollion = program("champollion")
    found = champollion.embed(own, params, seed=3)

    tables = {name: champollion.components(own, name, params, seed=3) for name in own.test}
    bridge = np.random.default_rng(3).permutation(own.train["rna"].obs_names.sort_values())
    upstream = Champollion(**model, gamma=0.1, random_state=3, device="cpu")
    upstream.fit(md.MuData({name: ad.AnnData(table.loc[bridge]) for name, table in tables.items()}), "rna", "adt")
    tests = {name: ad.AnnData(table.loc[own.test[name].obs_names]) for name, table in tables.items()}
    plan = upstream.transport(tests, store_plan=True).plan.numpy()
    logs = found["rna"] @ found["adt"].T
    np.testing.assert_allclose(logs - logs.mean(), np.log(plan) - np.log(plan).mean(), atol=1e-3)


# ---- MIDAS ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("second", ["adt", "atac"])
def test_midas_equals_upstream_called_directly(program, second, tmp_path):
    scmidas = pytest.importorskip("scmidas", reason="scmidas, which holds MIDAS, is not installed")
    lightning = pytest.importorskip("lightning", reason="lightning, which scmidas trains with, is not installed")
    cells = simulate(160, {"rna": 30, second: 20}, seed=2)
    # Peaks alternate between two chromosomes: upstream needs those of one chromosome next to each other.
    peaks = {f"peak{i}": f"chr{1 + i % 2}:{100 * i}-{100 * i + 50}" for i in range(20)}
    if second == "atac":
        cells["atac"].var_names = list(peaks.values())
        cells.update_var()
    own = task_of(cells, tmp_path, paired_fraction=0.8)
    model_settings = {"dim_c": 4, "dims_shared_enc": [16], "dims_shared_dec": [16], "dims_dsc": [8]}
    model_settings |= {"dims_before_enc_atac": [8, 4], "dims_after_dec_atac": [4, 8]}
    params = {"n_features": {"rna": 4000}, "model": model_settings, "training": {"batch_size": 32, "max_epochs": 2}}
    found = program("midas").embed(own, params, seed=3)

    # Upstream's calls and none of our code: batches by what was measured, cells in one order in both modalities.
    tables = {name: pd.concat([a.to_df() for a in (own.train[name], own.test[name])]).sort_index() for name in found}
    batch = pd.concat([a.obs["batch"].astype(str) for a in (*own.train.mod.values(), *own.test.values())])
    batch = batch[~batch.index.duplicated()]
    seen_in = {cell: [name for name in tables if cell in tables[name].index] for cell in batch.index}
    measured = {cell: "+".join([*names, batch[cell]]) for cell, names in seen_in.items()}
    if second == "atac":
        tables["atac"] = tables["atac"][sorted(peaks.values(), key=lambda peak: peak.split(":")[0])]
    modalities = {
        name: ad.AnnData(
            sp.csr_matrix(table.to_numpy(np.float32)),
            obs=pd.DataFrame({"batch": [measured[cell] for cell in table.index]}, index=table.index),
            var=pd.DataFrame(index=name + table.columns),
        )
        for name, table in tables.items()
    }
    lightning.seed_everything(3)
    mdata = md.MuData(modalities)
    dims = {"rna": [30], "atac": [10, 10]} if second == "atac" else None
    scmidas.MIDAS.setup_mudata(mdata, batch_key="batch", dims_x=dims)
    configs = {**scmidas.config.load_config(), **model_settings, "num_workers": 0, "persistent_workers": False}
    model = scmidas.MIDAS(mdata, configs=configs, batch_size=32, save_model_path=str(tmp_path))
    model.train(max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    expected = pd.DataFrame(model.get_latent_representation(kind="c"), index=mdata.obs_names)
    for name, test in own.test.items():
        np.testing.assert_array_equal(found[name], expected.loc[test.obs_names])
    assert own.info["epochs"] == 2 and own.info["batches"] == len(set(measured.values())) == 6
    check_metric(own)


def test_midas_selects_variable_genes_and_observed_peaks(program):
    selected = program("midas").selected
    cells = simulate(80, {"rna": 40, "atac": 30}, seed=1)
    np.testing.assert_array_equal(selected("rna", cells["rna"], None), np.arange(40))
    seen = cells["atac"].X.getnnz(axis=0)
    chosen = selected("atac", cells["atac"], 10)
    assert len(chosen) == 10 and list(chosen) == sorted(chosen)
    assert seen[chosen].min() >= np.delete(seen, chosen).max()
    constant = cells["rna"].X.tolil()
    constant[:, :20] = 1
    cells["rna"].X = constant.tocsr()
    genes = selected("rna", cells["rna"], 15)
    assert len(genes) == 15 and (genes >= 20).all()


# ---- MatchCLOT -----------------------------------------------------------------------------------


def test_matchclot_lsi_follows_its_formula(program):
    """Against a dense decomposition, whose signs are arbitrary: one choice of them gives our result."""
    counts = np.random.default_rng(0).poisson(1.0, size=(30, 8)).astype(float)
    counts[:, 3] = 0
    found = program("matchclot").lsi(sp.csr_matrix(counts), 2, seed=0)
    seen = np.delete(counts, 3, axis=1)
    weights = seen / seen.sum(axis=1, keepdims=True) * (30 / seen.sum(axis=0))
    u, s, _ = np.linalg.svd(np.log1p(1e4 * weights / weights.sum(axis=1, keepdims=True)), full_matrices=False)
    apart = []
    for signs in product((-1, 1), repeat=3):
        scores = u[:, :3] * s[:3] * signs
        scores = (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, ddof=1, keepdims=True)
        apart.append(np.abs(found - scores[:, 1:]).max())
    assert found.shape == (30, 2) and min(apart) < 1e-6


def test_matchclot_has_a_width_and_a_dropout_for_each_layer(program):
    layers = program("matchclot").perceptron([5, 7, 3], [0.3, 0.6], n_latent=2)
    linear = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(5, 7), (7, 3), (3, 2)]
    assert [layer.p for layer in layers if isinstance(layer, torch.nn.Dropout)] == [0.3, 0.6]
    with pytest.raises(ValueError, match="shorter|longer"):
        program("matchclot").perceptron([5, 7, 3], [0.3], n_latent=2)


def test_matchclot_stops_by_held_out_matches(program):
    x = np.eye(4)
    misses = program("matchclot").held_out_misses
    assert misses(x, x) == 0
    assert misses(x, x[[1, 0, 2, 3]]) == 0.5


def test_matchclot_features_are_those_of_the_competition(program, tmp_path):
    """Peaks are binary, RNA depth does not matter, proteins are centred, and test cells are included."""
    cells = simulate(60, {"rna": 30, "atac": 25, "adt": 10}, seed=1)
    own = task_of(cells, tmp_path, fraction=0.5)
    features = program("matchclot").features
    before = {name: features(own, name, 5, seed=0) for name in cells.mod}
    # The largest cell stays above the median, the depth to which cells are scaled.
    largest = np.argmax(own.train["rna"].X.sum(axis=1))
    own.train["rna"].X = sp.diags(np.where(np.arange(30) == largest, 3.0, 1.0)) @ own.train["rna"].X
    assert own.train["rna"].X[largest].sum() > own.test["rna"].X.sum(axis=1).max()
    own.test["atac"].X = own.test["atac"].X * 3
    for name in ("rna", "atac"):
        pd.testing.assert_frame_equal(features(own, name, 5, seed=0), before[name], atol=1e-3)
    assert np.abs(before["adt"].mean(axis=1)).max() < 1e-5
    assert set(before["adt"].index) == {*own.train["adt"].obs_names, *own.test["adt"].obs_names}


@pytest.mark.slow
@pytest.mark.parametrize("second", ["adt", "atac"])
def test_matchclot_equals_the_authors_classes(program, second, tmp_path):
    reason = "matchclot, the authors' package, or a package it imports is not installed"
    upstream = pytest.importorskip("matchclot.embedding.models", reason=reason)
    preprocess = pytest.importorskip("matchclot.preprocessing.preprocess", reason=reason)
    matchclot = program("matchclot")
    cells = simulate(60, {"rna": 30, second: 25}, seed=1)
    own = task_of(cells, tmp_path, fraction=0.5)
    tables = {name: matchclot.features(own, name, 5, seed=777) for name in ("rna", second)}

    # The values that the competition provided: logarithms of normalised expression, detected peaks.
    together = {name: ad.concat([own.train[name], own.test[name]]) for name in tables}
    total = np.asarray(together["rna"].X.sum(axis=1)).ravel()
    together["rna"].X = sp.csr_matrix(np.log1p(together["rna"].X.toarray() * np.median(total) / total[:, None]))
    if second == "atac":
        together["atac"].X = together["atac"].X.sign()
    for name in {"rna", second} - {"adt"}:
        expected = preprocess.lsiTransformer(n_components=5, drop_first=True).fit_transform(together[name])
        np.testing.assert_allclose(tables[name], expected.loc[tables[name].index], rtol=1e-3, atol=1e-3)

    # With the same weights and no dropout: the same embeddings and the same loss.
    widths, rates = ([8, 6], [4]), ([0.3, 0.1], [0.6])
    inputs = [torch.from_numpy(table.to_numpy()) for table in tables.values()]
    dims = [x.shape[1] for x in inputs]
    theirs = upstream.Modality_CLIP(upstream.Encoder, widths, rates, *dims, output_dim=3, T=2.74).eval()
    perceptrons = [matchclot.perceptron([n, *w], r, 3) for n, w, r in zip(dims, widths, rates, strict=True)]
    ours = matchclot.Encoders(perceptrons, math.exp(-2.74)).eval()
    of_theirs = [v for k, v in theirs.state_dict().items() if k != "logit_scale"]
    of_ours = {k: v for k, v in ours.state_dict().items() if k != "log_scale"}
    ours.load_state_dict(dict(zip(of_ours, of_theirs, strict=True)) | {"log_scale": theirs.logit_scale})
    logits, *embedded = theirs(*inputs)
    for x, y in zip(ours(inputs), embedded, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(ours.loss(inputs), upstream.symmetric_npair_loss(logits, torch.arange(60)))
    assert [layer.p for layer in perceptrons[0] if isinstance(layer, torch.nn.Dropout)] == [
        layer.p for layer in theirs.encoder_modality1.dropout_list
    ]
