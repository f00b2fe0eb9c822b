"""Our Cobolt computes the published model and agrees with the authors' code; each is a method of its own."""

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import scipy.stats
import torch
from helpers import task_of

from clue.benchmark.config import Benchmark
from clue.benchmark.errors import BenchmarkError
from clue.matching import METRICS
from clue.metrics import foscttm
from clue.simulate import simulate
from scripts.methods import cobolt_authors
from scripts.methods import cobolt_native as cobolt

ROOT = Path(__file__).parents[2]
N_LATENT = 5
HIDDEN = [8, 6]
TRAINING = {"learning_rate": 0.005, "n_epochs": 3, "annealing_epochs": 1, "batch_size": 32, "seed": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def params():
    """Hyper-parameters of the budget `test`."""
    config = {"run": "x", "datasets": ["simulated"], "methods": ["cobolt", "cobolt_native"], "seeds": [0]}
    benchmark = Benchmark(config | {"budget": "test"}, ROOT)
    theirs, ours = (benchmark.params(name, "default", ["rna", "adt"]) for name in ("cobolt", "cobolt_native"))
    assert theirs == ours
    return ours


@pytest.fixture
def task(tmp_path):
    """A tiny task."""
    return task_of(simulate(160, {"rna": 60, "adt": 20}, seed=1), tmp_path, paired_fraction=0.8)


def modalities(n_cells=50, n_alone=7, seed=0):
    """Return cells of two modalities and two data sets; the last ones are in one modality only."""
    rng = np.random.default_rng(seed)
    made = {}
    for name, n_features in (("rna", 30), ("adt", 12)):
        names = pd.Index([f"{i:03d}" for i in range(n_cells)] + [f"{name}{i:03d}" for i in range(n_alone)])
        counts = sp.csr_matrix(rng.poisson(2.0, (len(names), n_features)).astype(np.float32))
        made[name] = cobolt.Modality(names, counts, np.repeat([0, 1], [n_cells, n_alone]))
    return made


def build(parts, seed=0):
    torch.manual_seed(seed)
    n_features = {name: part.counts.shape[1] for name, part in parts.items()}
    return cobolt.CoboltModel(n_features, dict.fromkeys(parts, 2), N_LATENT, HIDDEN)


# ---- the published model -------------------------------------------------------------------------


def test_prior_is_the_laplace_approximation_of_a_dirichlet():
    n, a = 10, 50 / 10
    formula = (1 - 2 / n) / a + n / a / n**2
    assert cobolt.prior_variance(n) == pytest.approx(formula) == pytest.approx(0.18)


def test_posterior_is_a_product_of_the_prior_and_an_expert_per_modality():
    parts = modalities()
    model = build(parts)
    counts, _ = cobolt.View(parts, ("rna", "adt")).batch(np.arange(9), "cpu")
    experts = [(torch.zeros(9, N_LATENT), torch.full((9, N_LATENT), cobolt.prior_variance(N_LATENT)))]
    for name, x in counts.items():
        mean, log_variance = model.encoders[name](torch.log1p(x)).chunk(2, dim=1)
        experts.append((mean, log_variance.exp()))
    grid = torch.linspace(-8, 8, 4001)
    for dimension in (0, N_LATENT - 1):
        normals = [torch.distributions.Normal(m[3, dimension], v[3, dimension].sqrt()) for m, v in experts]
        density = sum(normal.log_prob(grid) for normal in normals).softmax(dim=0)
        mean = (density * grid).sum()
        found = [moment[3, dimension].item() for moment in model.posterior(counts)]
        assert found == pytest.approx([mean.item(), (density * (grid - mean) ** 2).sum().item()], rel=1e-3)


def test_likelihood_is_multinomial():
    parts = modalities()
    model = build(parts)
    counts, dataset = cobolt.View(parts, ("adt",)).batch(np.array([0, 55]), "cpu")
    z = torch.randn(2, N_LATENT)
    found = model.log_likelihood("adt", z, counts["adt"], dataset["adt"]).detach()
    for cell in range(2):
        k = cell  # the first cell belongs to the first data set, the second to the second
        slope, intercept = 1 + model.slopes["adt"][k], model.intercepts["adt"][k]
        scores = torch.softmax(z[cell], 0) @ model.topics["adt"] * slope + intercept
        p = torch.softmax(scores, 0).detach().double().numpy()
        x = counts["adt"][cell].numpy().astype(int)
        coefficient = scipy.special.gammaln(x.sum() + 1) - scipy.special.gammaln(x + 1).sum()
        expected = scipy.stats.multinomial.logpmf(x, x.sum(), p / p.sum()) - coefficient
        assert found[cell].item() == pytest.approx(expected, rel=1e-5)


def test_divergence_is_that_between_gaussians():
    parts = modalities()
    model = build(parts)
    batch = cobolt.View(parts, ("rna", "adt")).batch(np.arange(9), "cpu")
    mean, variance = model.posterior(batch[0])
    prior = torch.distributions.Normal(0.0, model.prior_variance.sqrt())
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, variance.sqrt()), prior).sum()
    assert model.losses(*batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_view_holds_the_cells_seen_in_all_of_its_modalities():
    parts = modalities(n_cells=5, n_alone=2)
    sizes = {tuple(view.modalities): len(view) for view in cobolt.all_views(parts)}
    assert sizes == {("rna",): 7, ("adt",): 7, ("rna", "adt"): 5}


def test_no_batch_has_a_single_cell():
    parts = modalities(n_cells=57, n_alone=8)  # 65 cells of each modality, 57 of both
    assert [cobolt.widened(size, parts) for size in (32, 64, 56, 50)] == [33, 65, 57, 50]


def split_cells(data, n_paired):
    """Return the modalities of a simulation in which only the first cells keep their pairing."""
    parts = {}
    for name, adata in data.mod.items():
        alone = adata.n_obs - n_paired
        cells = pd.Index([*adata.obs_names[:n_paired], *(f"{name}{i:03d}" for i in range(alone))])
        parts[name] = cobolt.Modality(cells, adata.X.tocsr(), np.repeat([0, 1], [n_paired, alone]))
    return parts


def placed_alone(parts, settings):
    """Train, and return the embeddings of the cells seen in only one modality."""
    found = cobolt.posteriors(cobolt.fit(parts, **settings), parts)
    alone = {name: part.cells[~part.cells.isin(found.joint.index)] for name, part in parts.items()}
    return {name: cobolt.place(found, name, cells, 1) for name, cells in alone.items()}


@pytest.mark.slow
def test_embedding_finds_partners():
    data = simulate(400, {"rna": 100, "adt": 60}, n_specific=0, batch_strength=0, seed=3)
    parts = split_cells(data, n_paired=300)
    settings = {**TRAINING, "n_epochs": 30, "annealing_epochs": 10, "n_latent": 6, "hidden": [32, 16]}
    found = placed_alone(parts, settings)
    assert {name: z.shape for name, z in found.items()} == {"rna": (100, 6), "adt": (100, 6)}
    np.testing.assert_allclose(found["rna"].mean(axis=1), 0, atol=1e-5)
    assert np.mean(foscttm(found["rna"], found["adt"])) < 0.35


def test_embedding_is_determined_by_the_seed():
    parts = modalities()
    settings = {**TRAINING, "n_latent": N_LATENT, "hidden": HIDDEN}
    first, second = (placed_alone(parts, settings) for _ in range(2))
    other = placed_alone(parts, settings | {"seed": 1})
    for name in parts:
        np.testing.assert_array_equal(first[name], second[name])
        assert not np.allclose(first[name], other[name])


def test_paired_cell_is_placed_by_trees_not_trained_on_it():
    rng = np.random.default_rng(0)
    names = pd.Index([f"{i:03d}" for i in range(80)])
    joint = pd.DataFrame(rng.normal(size=(80, 3)), index=names)
    held_out = names[:20]
    found = cobolt.Posteriors(joint, {"rna": 2 * joint, "adt": joint})
    placed = cobolt.place(found, "rna", held_out, 1)
    changed = joint.copy()
    changed.loc[held_out] = 1e6
    np.testing.assert_array_equal(placed, cobolt.place(cobolt.Posteriors(changed, found.single), "rna", held_out, 1))
    truth = joint.loc[held_out].to_numpy()
    assert np.corrcoef(placed.ravel(), (truth - truth.mean(axis=1, keepdims=True)).ravel())[0, 1] > 0.8


# ---- the programs --------------------------------------------------------------------------------


def test_divergence_is_retried_at_a_smaller_learning_rate(params, task):
    params = {**params, "training": {**params["training"], "learning_rates": [1e30, 0.005]}}
    embedded = cobolt.embed(task, params, seed=0)
    assert task.info["diverged_at"] == [1e30] and task.info["learning_rate"] == 0.005
    assert all(np.isfinite(z).all() for z in embedded.values())


def test_divergence_at_every_learning_rate_is_an_error(params, task):
    params = {**params, "training": {**params["training"], "learning_rates": [1e30]}}
    with pytest.raises(BenchmarkError, match="diverged at every learning rate of .*learning_rates"):
        cobolt.embed(task, params, seed=0)


def test_metric_is_the_better_one_for_paired_training_cells(params, task):
    cobolt.embed(task, params, seed=0)
    scores = {row["metric"]: row["match_score"] / row["foscttm"] for row in task.info["metrics_compared"]}
    assert list(scores) == list(METRICS) and task.metric == max(scores, key=scores.get)


def test_error_without_the_authors_package_names_our_method(params, task, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    other = tmp_path / "cobolt" / "__init__.py"
    other.parent.mkdir()
    other.write_text("raise RuntimeError('another package was imported')")
    importlib.invalidate_caches()
    with pytest.raises(BenchmarkError, match="one on the package index is another.*envs/cobolt.yaml.*cobolt_native"):
        cobolt_authors.embed(task, params, seed=0)


def test_filter_that_leaves_nothing_is_an_error(params, task):
    strict = {"min_count": 10**6, "min_cells": 5, "lower_quantile": 0, "upper_quantile": 1}
    with pytest.raises(BenchmarkError, match="adt: no feature passes params.filter.adt"):
        cobolt.embed(task, {**params, "filter": {**params["filter"], "adt": strict}}, seed=0)


# ---- the authors' code, if it is installed -------------------------------------------------------


@pytest.fixture
def upstream():
    """The authors' package; tests are skipped with the reason if it is missing."""
    try:
        cobolt_authors.check_installed()
    except BenchmarkError as error:
        pytest.skip(str(error))
    import cobolt.model
    import cobolt.utils

    return cobolt


def copied(upstream, model, parts):
    """Return the authors' model with the weights of ours."""
    n_features = [part.counts.shape[1] for part in parts.values()]
    theirs = upstream.model.CoboltModel(n_features, N_LATENT, [2] * len(parts), hidden_dims=HIDDEN)
    with torch.no_grad():
        for i, name in enumerate(parts):
            *hidden, last = (m for m in model.encoders[name] if isinstance(m, torch.nn.Linear))
            norms = [m for m in model.encoders[name] if isinstance(m, torch.nn.BatchNorm1d)]
            for block, linear, norm in zip(theirs.encoder[i], hidden, norms, strict=True):
                block[0].load_state_dict(linear.state_dict())
                block[1].load_state_dict(norm.state_dict(), strict=False)  # ours has no running statistics
            for head, rows in ((theirs.fc_mu[i], slice(N_LATENT)), (theirs.fc_var[i], slice(N_LATENT, None))):
                head.weight.copy_(last.weight[rows])
                head.bias.copy_(last.bias[rows])
            theirs.beta[i].copy_(model.topics[name])
            theirs.beta_dataset[i].copy_(model.intercepts[name])
            theirs.beta_dataset_mtp[i].copy_(model.slopes[name])
    return theirs


@pytest.mark.parametrize("names", [("rna",), ("adt",), ("rna", "adt")], ids="+".join)
def test_losses_gradients_and_posteriors_equal_upstream(names, upstream):
    parts = modalities()
    model = build(parts)
    theirs = copied(upstream, model, parts)
    counts, dataset = cobolt.View(parts, names).batch(np.arange(40, 50), "cpu")
    seen = [name in names for name in parts]
    x = [[counts.get(name) for name in parts], [dataset.get(name) for name in parts]]
    torch.manual_seed(1)
    own = model.losses(counts, dataset)
    torch.manual_seed(1)
    expected = theirs(x, elbo_combn=[seen])
    # Upstream subtracts the number of topics once per coordinate instead of once per cell: a constant.
    constant = len(x[0][names == ("adt",)]) * N_LATENT * (N_LATENT - 1) / 2
    assert own[0].item() == pytest.approx(expected[0].item() + constant, rel=1e-5)
    assert own[1].item() == pytest.approx(expected[1].item(), rel=1e-5)
    sum(own).backward()
    sum(expected).backward()
    for i, name in enumerate(parts):
        pairs = [(model.topics, theirs.beta), (model.slopes, theirs.beta_dataset_mtp)]
        pairs = [(a[name].grad, b[i].grad) for a, b in pairs]
        pairs.append((model.encoders[name][0].weight.grad, theirs.encoder[i][0][0].weight.grad))
        for ours, upstreams in pairs:
            if name not in names:
                # Upstream also leaves them out of the graph.
                assert ours is None and upstreams is None
            else:
                torch.testing.assert_close(ours, upstreams, rtol=1e-3, atol=1e-4)
    latent = theirs.get_latent(x, elbo_bool=seen)
    np.testing.assert_allclose(model.posterior(counts)[0].detach(), latent, rtol=1e-4, atol=1e-5)


def test_features_are_those_upstream_keeps(params, upstream, task):
    limits = params["filter"]["rna"]
    # Not csr_matrix, whose sums are numpy matrices, of which numpy's quantiles keep every feature.
    counts = sp.csr_array(task.train.mod["rna"].X)
    features = np.array([f"{column:03d}" for column in range(counts.shape[1])])
    single = upstream.utils.SingleData("rna", "train", features, counts, task.train.mod["rna"].obs_names.to_numpy())
    theirs = {"min_cell" if name == "min_cells" else name: value for name, value in limits.items()}
    single.filter_features(**theirs)
    np.testing.assert_array_equal(features[cobolt.passes(task.train.mod["rna"].X, **limits)], single.feature)


def test_upstream_cannot_embed_a_single_cell(upstream, task):
    with pytest.raises(BenchmarkError, match="use the method cobolt_native"):
        cobolt_authors.train(task, modalities(n_cells=120, n_alone=9), TRAINING)


def test_cells_are_placed_as_upstream_places_test_cells(params, upstream, task):
    parts = {name: cobolt.both_sets(name, task, **params["filter"][name]) for name in task.test}
    found, embedded = cobolt_authors.train(task, parts, TRAINING | {"n_latent": N_LATENT, "hidden": HIDDEN})
    assert set(found.joint.index) == set(task.train["rna"].obs_names) & set(task.train["adt"].obs_names)
    for name, cells in task.test.items():
        np.testing.assert_allclose(cobolt.place(found, name, cells.obs_names, 1), embedded[name], atol=1e-5)


def test_upstream_embeds_every_test_cell(params, upstream, task):
    embedded = cobolt_authors.embed(task, params, seed=0)
    assert json.dumps(task.info) and [row["metric"] for row in task.info["metrics_compared"]] == list(METRICS)
    assert {name: len(z) for name, z in embedded.items()} == {name: cells.n_obs for name, cells in task.test.items()}
    again = cobolt_authors.embed(task, params, seed=0)
    for name in embedded:
        np.testing.assert_array_equal(embedded[name], again[name])
