"""Prediction across modalities: targets and their scale, what methods return, and how it is scored."""

import json

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from helpers import method_arguments
from scipy.stats import pearsonr, spearmanr
from tidy import embedding_of, metrics, value

from clue.benchmark import contracts, targets
from clue.benchmark.contracts import ContractError
from clue.benchmark.data.task import make_task
from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.prediction import Scale, fit_scale, paired_names, training_mean
from clue.benchmark.scores.prediction import METRICS, prediction_scores
from clue.benchmark.scores.scoring import score
from clue.simulate import simulate

SPLIT = {"kind": "random", "fraction": 0.25, "seed": 3}


def counts(values, names="abc"):
    return ad.AnnData(sp.csr_matrix(np.array(values, dtype=np.float32)), var=pd.DataFrame(index=list(names)))


@pytest.fixture(scope="module")
def simulated():
    return simulate(120, {"rna": 40, "adt": 12}, n_types=3, seed=1)


@pytest.fixture(scope="module")
def task(simulated):
    return make_task(simulated, "tiny", "s", SPLIT)


# ---- targets -------------------------------------------------------------------------------------


def test_rna_and_atac_are_logarithms_of_counts_per_10000():
    cells = counts([[1, 0, 3], [0, 0, 0]])
    expected = np.log1p([[2500, 7500], [0, 0]])
    found = targets.Targets(pd.Index(["a", "c"]), None)
    np.testing.assert_allclose(found.values(cells).toarray(), expected, rtol=1e-6)
    np.testing.assert_allclose(found.of_expected(np.array([[1.0, 3.0]]), 4), expected[:1])


def test_proteins_are_centred_log_ratios_across_training_cells():
    """As muon's clr does by default: x / exp(mean of log(1 + x) over cells), then log(1 + x)."""
    import muon

    cells = counts([[1, 0, 3], [5, 2, 3], [0, 7, 3]])
    by_muon = muon.prot.pp.clr(ad.AnnData(cells.X.tocsc()), inplace=False).X.toarray()
    targets.choose(cells, "adt")
    found = targets.targets_of({"adt": cells})["adt"]
    assert list(found.names) == ["a", "b"], "constant features are no targets"
    np.testing.assert_allclose(found.values(cells).toarray(), by_muon[:, :2], rtol=1e-5)
    np.testing.assert_allclose(found.of_expected(cells.X.toarray()[:, :2], 1), by_muon[:, :2], rtol=1e-5)


def test_most_variable_features_are_chosen_in_file_order(monkeypatch):
    monkeypatch.setattr(targets, "MOST", 2)
    cells = counts([[9, 1, 0, 4], [0, 1, 9, 5], [9, 1, 0, 4]], "abcd")
    targets.choose(cells, "atac")
    assert list(targets.targets_of({"atac": cells})["atac"].names) == ["a", "c"]


def test_targets_are_chosen_on_training_cells_and_kept_in_the_solution(simulated, task):
    other = simulated.copy()
    held_out = other["rna"].obs_names.isin(task.solution.obs_names)
    for adata in other.mod.values():
        changed = adata.X.toarray()
        changed[held_out] = changed[held_out][:, ::-1]
        adata.X = sp.csr_matrix(changed)
    again = make_task(other, "tiny", "s", SPLIT)
    for name, cells in task.train.mod.items():
        pd.testing.assert_frame_equal(cells.var, again.train.mod[name].var)
        values = targets.targets_of(task.train.mod)[name].values(simulated[name][task.solution.obs_names])
        assert (task.solution.obsm[name] != values).nnz == 0
        assert "target" not in task.tests[name].var


# ---- what a method returns -----------------------------------------------------------------------


def run(folder, task, embed, **options):
    run_method(embed, method_arguments(folder, task.train, task.tests, **options))


def ones(task):
    return {name: np.ones((cells.n_obs, 2)) for name, cells in task.test.items()}


def means(task):
    return {f"{a}2{b}": np.tile(training_mean(task, b), (task.test[a].n_obs, 1)) for a, b in task.directions}


def test_declared_predictions_are_written(tmp_path, task):
    path = tmp_path / "predictions.npz"
    run(tmp_path, task, lambda task, params, seed: (ones(task), means(task)), predictions=path)
    found = contracts.read_arrays(path)
    assert {name: values.shape for name, values in found.items()} == {"rna2adt": (30, 12), "adt2rna": (30, 40)}
    names = task.train["adt"].var_names[task.train["adt"].var["target"]]
    columns = targets.Targets(names, task.train["adt"].var.loc[names, "level"].to_numpy()).values(task.train["adt"])
    np.testing.assert_allclose(found["rna2adt"][7], columns.toarray().mean(axis=0), rtol=1e-5)
    scores = score(contracts.read_embedding(tmp_path / "embedding.h5ad"), task.solution, predictions=found).metrics
    assert {f"predict_{metric}" for metric in METRICS} < set(scores["metric"])


def test_undeclared_predictions_are_not_kept(tmp_path, task, capsys):
    run(tmp_path, task, lambda task, params, seed: (ones(task), means(task)))
    assert (tmp_path / "embedding.h5ad").exists() and not (tmp_path / "predictions.npz").exists()
    assert "predicts: true" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: None, "returned no predictions, but its YAML says predicts: true"),
        (lambda found: {"rna2adt": found["rna2adt"]}, "it must return those of ['rna2adt', 'adt2rna']"),
        (lambda found: found | {"rna2adt": found["rna2adt"][:, 1:]}, "rna2adt: has shape (30, 11), not (30, 12)"),
        (lambda found: found | {"adt2rna": np.nan * found["adt2rna"]}, "adt2rna: 30 of 30 rows are not finite"),
    ],
)
def test_wrong_predictions_are_one_line(tmp_path, task, change, message):
    def embed(task, params, seed):
        found = change(means(task))
        return ones(task) if found is None else (ones(task), found)

    with pytest.raises(SystemExit):
        run(tmp_path, task, embed, predictions=tmp_path / "predictions.npz")
    assert message in json.loads((tmp_path / "failure.json").read_text())["error"]


def test_scale_is_a_straight_line_per_feature():
    expected = np.array([[0.0, 1.0, 3.0], [1.0, 2.0, 3.0], [2.0, 3.0, 3.0]])
    scale = Scale(expected, np.array([[1.0, 3.0, 7.0], [3.0, 2.0, 8.0], [5.0, 1.0, 9.0]]))
    np.testing.assert_allclose(scale(np.array([[3.0, 9.0, 4.0]])), [[7.0, 2.0, 8.0]])


def test_without_paired_cells_the_means_are_matched(simulated):
    parts = make_task(simulated, "tiny", "s", SPLIT)
    apart = md.MuData({"rna": parts.train["rna"][:40].copy(), "adt": parts.train["adt"][40:].copy()})
    given = Task(apart, parts.tests, "cpu", 1, None)
    chosen = np.arange(len(given.targets["adt"].names)) > 2
    asked = []

    def expected(names):
        asked.extend(names)
        return np.full((len(names), chosen.sum()), 5.0)

    scale = fit_scale(given, "rna", "adt", chosen, expected, seed=0)
    assert set(asked) == set(apart["rna"].obs_names)
    found = scale(np.full((1, chosen.sum()), 6.0))[0]
    np.testing.assert_allclose(found, 1 + training_mean(given, "adt")[chosen], rtol=1e-5)


def test_scale_is_learnt_from_paired_training_cells(simulated):
    partly = make_task(simulated, "tiny", "s", SPLIT | {"paired_fraction": 0.5})
    given = Task(partly.train, partly.tests, "cpu", 1, None)
    names = paired_names(given, "rna", "adt", seed=0, at_most=20)
    assert len(names) == 20 and set(names) <= set(partly.train["rna"].obs_names) & set(partly.train["adt"].obs_names)


# ---- scores --------------------------------------------------------------------------------------


def test_scores_agree_with_scipy():
    rng = np.random.default_rng(0)
    x, y = rng.poisson(1, (2, 20, 9)).astype(np.float32)
    x[3] = 2.0
    found = prediction_scores(x, y)
    cells = [i for i in range(20) if i != 3]
    per_cell = [(pearsonr(x[i], y[i])[0], spearmanr(x[i], y[i])[0]) for i in cells] + [(0, 0)]
    assert (found["pearson_cell"], found["spearman_cell"]) == pytest.approx(tuple(np.mean(per_cell, axis=0)))
    assert found["pearson"] == pytest.approx(pearsonr(x.ravel(), y.ravel())[0])
    assert found["spearman"] == pytest.approx(spearmanr(x.ravel(), y.ravel())[0])
    assert found["rmse"] == pytest.approx(np.sqrt(((x - y) ** 2).mean()))
    assert found["mae"] == pytest.approx(np.abs(x - y).mean())
    assert list(found) == list(METRICS)


def test_prediction_is_scored_against_its_own_cell(task):
    solution = task.solution
    embedding = embedding_of(solution, dict.fromkeys(("rna", "adt"), np.eye(30)), dataset="tiny", metric="euclidean")
    right = {}
    for source, target in (("rna", "adt"), ("adt", "rna")):
        order = np.argsort(solution.obs[source].astype(str).to_numpy())
        right[f"{source}2{target}"] = solution.obsm[target].toarray()[order]
    table = score(embedding, solution, predictions=right).metrics
    assert value(table, "predict_pearson_cell", "both") == pytest.approx(1)
    assert value(table, "predict_rmse", "both") == pytest.approx(0, abs=1e-6)
    table = score(embedding, solution, predictions=right | {"rna2adt": right["rna2adt"][::-1]}).metrics
    assert value(table, "predict_rmse", "adt2rna") < 1e-6 < value(table, "predict_rmse", "rna2adt")
    with pytest.raises(ContractError, match="lacks adt2rna"):
        score(embedding, solution, predictions={"rna2adt": right["rna2adt"]})


def test_neighbour_prediction_excludes_the_partner(task, monkeypatch):
    """Cells on a line, the same in both modalities: a cell's two nearest others are those before and after it."""
    monkeypatch.setattr("clue.benchmark.scores.scoring.NEIGHBOURS", 2)
    solution, line = task.solution, np.arange(30.0)[:, None]
    embedding = embedding_of(solution, {"rna": line, "adt": line}, dataset="tiny", metric="euclidean")
    table = score(embedding, solution).metrics
    near = np.array([[1, 2], *([i - 1, i + 1] for i in range(1, 29)), [27, 28]])
    for direction, target in (("rna2adt", "adt"), ("adt2rna", "rna")):
        measured = solution.obsm[target].toarray()
        expected = prediction_scores(measured[near].mean(axis=1), measured)
        for metric in METRICS:
            assert value(table, f"neighbours_{metric}", direction) == pytest.approx(expected[metric], rel=1e-5)
    assert not any(metric.startswith("predict_") for metric in table["metric"])


# ---- figure and table ----------------------------------------------------------------------------


def rows(method, kind, shift):
    table = metrics(("bmmc_cite", "site4", method, "default", 0, 0.5 + shift, 0.4))
    names = {"match_score": f"{kind}_pearson_cell", "foscttm": f"{kind}_rmse"}
    return table.assign(metric=table["metric"].map(names))


def test_table_has_predictions_beside_published_ones(draw, project):
    parts = [rows("clue", "predict", 0.1), rows("clue", "neighbours", 0), rows("random", "predict", -0.2)]
    other = metrics(("bmmc_cite", "site4", "cca", "default", 0, 0.1, 0.2))
    published = project / "config" / "reference" / "predict_modality.tsv"
    table = draw("prediction", "--published", published, metrics=pd.concat([*parts, other], ignore_index=True))
    ours = table[table["origin"] == "this run"]
    assert set(ours["method"] + " " + ours["kind"]) == {"clue predict", "clue neighbours", "random predict"}
    best = table[(table["method"] == "openproblems_guanlab_dengkw_pm") & (table["direction"] == "rna2adt")]
    assert best["pearson"].tolist() == ["0.7518"] and set(table["dataset"]) == {"bmmc_cite"}


def test_picture_of_a_run_without_predictions_says_so(scripts, display):
    module = scripts("figures/prediction.py")
    found = module.long_table(metrics(("a", "s", "cca", "default", 0, 0.1, 0.2)))
    assert found.empty
    with pytest.raises(module.plots.NothingToDraw):
        module.draw(found, pd.DataFrame(), display)
