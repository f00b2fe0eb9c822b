"""Scoring an embedding against the solution, the oracle, and their programs."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from tidy import embedding_of, solution_of, value

from clue.benchmark import contracts
from clue.benchmark.contracts import ContractError
from clue.benchmark.scores import METRICS_COLUMNS
from clue.benchmark.scores.scoring import score
from clue.matching import match_snn
from clue.metrics import foscttm
from scripts import oracle as oracle_program
from scripts import score as score_program

N = 120
DIRECTIONS = ["rna2adt", "adt2rna", "both"]
METRICS = [
    *["match_score", "match_score_gaussian", "match_score_ot", "cell_type_match"],
    *["foscttm", "foscttm_strict", "foscttm_euclidean", "foscttm_euclidean_strict", "foscttm_within_batch"],
    *["top1_euclidean", "label_transfer_accuracy"],
]


def make_embedding(solution: ad.AnnData, points: dict[str, np.ndarray]) -> ad.AnnData:
    return embedding_of(solution, points, params=json.dumps({"transductive": True}))


@pytest.fixture(scope="module")
def solution() -> ad.AnnData:
    rng = np.random.default_rng(0)
    batches = rng.permutation(np.repeat(["b1", "b2", "b3"], N // 3))
    return solution_of(N, rng.choice(["B", "T"], N), batches)


@pytest.fixture(scope="module")
def points() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shared = rng.standard_normal((N, 5))
    return {name: shared + 0.5 * rng.standard_normal((N, 5)) for name in ("rna", "adt")}


@pytest.fixture
def embedding(solution, points) -> ad.AnnData:
    return make_embedding(solution, points)


@pytest.fixture
def files(tmp_path, solution, embedding) -> Path:
    contracts.write_solution(solution, tmp_path / "solution.h5ad")
    contracts.write_embedding(embedding, tmp_path / "embedding.h5ad")
    return tmp_path


# ---- the table -----------------------------------------------------------------------------------


def test_table_is_tidy_and_complete(embedding, solution):
    metrics = score(embedding, solution, run="quick").metrics
    assert list(metrics.columns) == METRICS_COLUMNS
    assert list(metrics["metric"].unique()) == METRICS
    assert metrics["direction"].tolist() == DIRECTIONS * len(METRICS)
    assert (metrics["status"] == "ok").all() and metrics["value"].between(0, 1).all()
    identity = metrics[METRICS_COLUMNS[:7]].drop_duplicates().to_dict("records")
    assert identity == [
        {"run": "quick", "dataset": "d", "split": "s", "method": "m", "variant": "v", "seed": 3, "transductive": True}
    ]


def test_euclidean_scores_use_all_cells_and_the_unchanged_embedding(embedding, solution, points):
    """As SCMMIB defines them: no batches, no normalisation, mean of both directions."""
    metrics = score(embedding, solution).metrics
    x, y = (points[name].astype(np.float32).astype(float) for name in ("rna", "adt"))
    distance = np.linalg.norm(x[:, None] - y[None], axis=2)
    closer = distance < np.diag(distance)[:, None], distance.T < np.diag(distance)[:, None]
    nearest = distance.argmin(axis=1) == np.arange(N), distance.argmin(axis=0) == np.arange(N)
    for direction, fraction, hit in zip(("rna2adt", "adt2rna"), closer, nearest, strict=True):
        assert value(metrics, "foscttm_euclidean_strict", direction) == pytest.approx(fraction.mean())
        assert value(metrics, "top1_euclidean", direction) == pytest.approx(hit.mean())
    assert value(metrics, "top1_euclidean", "both") == pytest.approx(np.mean(nearest))


def test_scores_per_cell_are_in_the_solutions_order(embedding, solution, points):
    """By hand from the points in the solution's order; their means are the metrics."""
    scores = score(embedding, solution)
    x, y = (points[name].astype(np.float32) for name in ("rna", "adt"))
    batch = solution.obs["batch"].to_numpy()
    fractions = dict(zip(("rna2adt", "adt2rna"), foscttm(x, y), strict=True))
    for direction, a, b in (("rna2adt", x, y), ("adt2rna", y, x)):
        cells = scores.cells[scores.cells["direction"] == direction]
        assert cells["pair"].tolist() == list(range(N))
        np.testing.assert_allclose(cells["match_score"], match_snn(a, b, batch_x=batch, batch_y=batch).diagonal())
        np.testing.assert_allclose(cells["foscttm"], fractions[direction])
        for metric in ("match_score", "foscttm"):
            assert cells[metric].mean() == pytest.approx(value(scores.metrics, metric, direction))


def test_euclidean_embedding_is_scored_by_euclidean_distances(solution, points):
    """In every score: cells differ by length, which cosine ignores."""
    length = 1 + np.arange(N)[:, None] / 10
    embedding = make_embedding(solution, {"rna": length * [1, 2], "adt": 1.001 * length * [1, 2]})
    cosine = score(embedding, solution).metrics
    embedding.uns["metric"] = "euclidean"
    euclidean = score(embedding, solution).metrics
    assert value(cosine, "match_score", "both") < 0.1 < 0.9 < value(euclidean, "match_score", "both")
    for metric in METRICS:
        by_cosine, by_length = (value(table, metric, "both") for table in (cosine, euclidean))
        assert (by_cosine == by_length) == ("euclidean" in metric), metric
    assert value(euclidean, "foscttm", "both") == value(euclidean, "foscttm_euclidean", "both")


def test_match_matrices_are_in_file_order_and_within_batch(embedding, solution):
    matches = score(embedding, solution).matches
    assert list(matches) == ["rna2adt", "adt2rna"]
    batch = {name: embedding.obs["batch"][embedding.obs["modality"] == name].to_numpy() for name in ("rna", "adt")}
    entries = matches["rna2adt"].tocoo()
    assert (batch["rna"][entries.row] == batch["adt"][entries.col]).all()


def test_collapsed_embedding_is_not_rewarded(solution):
    points = np.ones((N, 4))
    metrics = score(make_embedding(solution, {"rna": points, "adt": points}), solution).metrics
    assert value(metrics, "foscttm", "both") == pytest.approx(0.5, abs=1 / N)
    assert value(metrics, "foscttm_strict", "both") == value(metrics, "foscttm_euclidean_strict", "both") == 0
    assert value(metrics, "top1_euclidean", "both") == pytest.approx(1 / N)
    assert value(metrics, "match_score", "both") == pytest.approx(3 / N, rel=0.1)


def test_too_large_transport_is_a_row_with_a_reason(embedding, solution, monkeypatch):
    monkeypatch.setattr("clue.matching.MAX_TRANSPORT_ENTRIES", 100)
    metrics = score(embedding, solution).metrics
    rows = metrics[metrics["metric"] == "match_score_ot"]
    assert list(rows["status"]) == ["unsupported"] * 3 and rows["value"].isna().all()
    assert rows["reason"].str.contains("too large").all()
    assert (metrics["status"] == "ok").sum() == len(metrics) - 3


# ---- identity ------------------------------------------------------------------------------------


def test_data_set_and_split_can_come_from_the_solution(embedding, solution):
    del embedding.uns["dataset"]
    embedding.uns["split"] = ""
    metrics = score(embedding, solution).metrics
    assert set(metrics["dataset"]) == {"d"} and set(metrics["split"]) == {"s"}


@pytest.mark.parametrize(
    ("key", "given", "message"),
    [
        ("dataset", "other", "uns\\['dataset'\\] is 'other', but the solution's is 'd'"),
        ("seed", "first", "uns\\['seed'\\] must be a whole number"),
        ("params", "{", ".* uns\\['params'\\] a map or a JSON map"),
        ("params", "3", ".* uns\\['params'\\] a map or a JSON map"),
    ],
)
def test_wrong_identity(embedding, solution, key, given, message):
    embedding.uns[key] = given
    with pytest.raises(ContractError, match=f"^e.h5ad: {message}"):
        score(embedding, solution, where="e.h5ad")


def test_embedding_made_elsewhere_may_name_its_rows_otherwise_and_have_no_params(embedding, solution, tmp_path):
    expected = score(embedding, solution).metrics
    embedding.obs_names = ["0"] * embedding.n_obs
    del embedding.uns["params"]
    contracts.write_embedding(embedding, tmp_path / "embedding.h5ad")
    found = contracts.read_embedding(tmp_path / "embedding.h5ad")
    assert list(found.obs_names) == list(embedding.obs["cell"])
    pd.testing.assert_frame_equal(score(found, solution).metrics, expected.assign(transductive=False))


def test_unknown_metric_is_refused_on_writing_and_reading(embedding, tmp_path):
    embedding.uns["metric"] = "manhattan"
    with pytest.raises(ContractError, match=r"uns\['metric'\] is 'manhattan'; it must be one of \['cosine', 'eucl"):
        contracts.write_embedding(embedding, tmp_path / "embedding.h5ad")


# ---- rows that do not fit ------------------------------------------------------------------------


def with_obs(embedding: ad.AnnData, column: str, value: str) -> ad.AnnData:
    """Change the annotation of one cell."""
    embedding.obs.loc["adt_000001", column] = value
    return embedding


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found[1:].copy(), "119 rows of rna for 120 test cells"),
        (
            lambda found: found[[1, 0, *range(2, 2 * N)]].copy(),
            "of rna is not the test cells in file order: row 1 is 'rna_000002', expected 'rna_000001'",
        ),
        (lambda found: with_obs(found, "modality", "atac"), r"obs\['modality'\] of row \d+ is 'atac', expected rna or"),
        (lambda found: with_obs(found, "cell", "adt_000002"), "row 121 is 'adt_000002', expected 'adt_000001'"),
        (lambda found: with_obs(found, "batch", "mine"), r"obs\['batch'\] of 1 adt cells differs"),
        (lambda found: found[:, :0].copy(), "X has no columns"),
    ],
)
def test_rows_that_do_not_fit(embedding, solution, change, message):
    with pytest.raises(ContractError, match=message):
        score(change(embedding), solution)


# ---- three modalities ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solution_of_three(solution) -> ad.AnnData:
    three = solution.copy()
    three.obs["atac"] = np.random.default_rng(2).permutation(contracts.names_of_test_cells("atac", N))
    three.uns["modalities"] = ["rna", "atac", "adt"]
    return three


@pytest.fixture
def points_of_three(points) -> dict[str, np.ndarray]:
    return {"rna": points["rna"], "atac": points["rna"] + 1.5 * points["adt"], "adt": points["adt"]}


def of_two(solution: ad.AnnData, *pair: str) -> ad.AnnData:
    """Return the solution of two of three modalities."""
    two = solution.copy()
    two.uns["modalities"] = list(pair)
    return two


def test_pairs_of_three_modalities_are_scored_like_two_modalities(solution_of_three, points_of_three):
    found = score(make_embedding(solution_of_three, points_of_three), solution_of_three)
    means = []
    for pair in (("rna", "atac"), ("rna", "adt"), ("atac", "adt")):
        two = of_two(solution_of_three, *pair)
        alone = score(make_embedding(two, {name: points_of_three[name] for name in pair}), two)
        forth, back = f"{pair[0]}2{pair[1]}", f"{pair[1]}2{pair[0]}"
        for direction, name in ((forth, forth), (back, back), ("both", "+".join(pair))):
            for metric in METRICS:
                assert value(found.metrics, metric, name) == value(alone.metrics, metric, direction)
        for direction in (forth, back):
            assert (found.matches[direction] != alone.matches[direction]).nnz == 0
        means.append(alone.metrics.loc[alone.metrics["direction"] == "both", "value"].to_numpy())
    overall = found.metrics[found.metrics["direction"] == "both"]
    assert list(overall["metric"]) == METRICS
    np.testing.assert_allclose(overall["value"], np.mean(means, axis=0))
    assert len(found.cells) == 6 * N and set(found.metrics["reason"]) == {""}


def by_pairs(solution: ad.AnnData, points: dict[str, np.ndarray], pairs: dict[tuple, int]) -> ad.AnnData:
    """Make an embedding by pairs, each with its own width; the second one is compared by Euclidean distance."""
    parts = {}
    for i, (pair, width) in enumerate(pairs.items()):
        two = of_two(solution, *pair)
        parts["+".join(pair)] = make_embedding(two, {name: points[name][:, :width] for name in pair})
        parts["+".join(pair)].uns["metric"] = ["cosine", "euclidean"][i == 1]
    embedding = contracts.join_pairs(parts)
    params = {"rna+atac": {}, "rna+adt": {"transductive": True}}
    embedding.uns |= {"method": "m", "variant": "v", "seed": 3, "params": json.dumps(params)}
    return embedding


def test_method_by_pairs_has_a_space_and_a_metric_for_each(solution_of_three, points_of_three, tmp_path):
    pairs = {("rna", "atac"): 3, ("rna", "adt"): 5, ("atac", "adt"): 4}
    embedding = by_pairs(solution_of_three, points_of_three, pairs)
    contracts.write_embedding(embedding, tmp_path / "embedding.h5ad")
    found = score(contracts.read_embedding(tmp_path / "embedding.h5ad"), solution_of_three).metrics
    assert set(found["reason"]) == {"by pairs"} and found["transductive"].all()
    for i, (pair, width) in enumerate(pairs.items()):
        two = of_two(solution_of_three, *pair)
        alone = make_embedding(two, {name: points_of_three[name][:, :width] for name in pair})
        alone.uns["metric"] = ["cosine", "euclidean"][i == 1]
        alone = score(alone, two).metrics
        for metric in METRICS:
            assert value(found, metric, "+".join(pair)) == value(alone, metric, "both")


def test_pair_that_a_method_does_not_support_has_rows_with_the_reason(solution_of_three, points_of_three):
    embedding = by_pairs(solution_of_three, points_of_three, {("rna", "atac"): 3, ("rna", "adt"): 5})
    embedding.uns["left_out"] = {}
    scores = score(embedding, solution_of_three)
    missing = scores.metrics[scores.metrics["status"] != "ok"]
    assert set(missing["direction"]) == {"atac2adt", "adt2atac", "atac+adt", "both"}
    assert set(missing["reason"]) == {"does not support atac+adt"} and missing["value"].isna().all()
    assert len(missing) == 4 * len(METRICS)
    assert scores.matches["atac2adt"].shape == (N, N) and scores.matches["atac2adt"].nnz == 0
    embedding.uns["left_out"] = {"atac+adt": "no training cell"}
    reasons = score(embedding, solution_of_three).metrics["reason"]
    assert set(reasons) == {"by pairs", "no training cell"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda adata: adata.uns.pop("width"), r"uns\['width'\] must have an entry for each pair"),
        (lambda adata: adata.uns.update(metric="cosine"), r"uns\['metric'\] must have an entry for each pair"),
    ],
)
def test_embedding_by_pairs_must_describe_each_pair(solution_of_three, points_of_three, tmp_path, change, message):
    embedding = by_pairs(solution_of_three, points_of_three, {("rna", "atac"): 3, ("rna", "adt"): 5})
    change(embedding)
    with pytest.raises(ContractError, match=message):
        contracts.write_embedding(embedding, tmp_path / "embedding.h5ad")


def test_pair_of_other_modalities_is_refused(solution_of_three, points_of_three):
    embedding = by_pairs(solution_of_three, points_of_three, {("rna", "atac"): 3})
    with pytest.raises(ContractError, match=r"obs\['pair'\] is 'rna\+atac', not a pair of rna, adt"):
        contracts.check_embedding_fits(embedding, {"rna": pd.Index([]), "adt": pd.Index([])}, "e.h5ad")


# ---- programs ------------------------------------------------------------------------------------


def test_score_program(files, embedding, solution, capsys):
    matches = [files / "match_rna2adt.npz", files / "match_adt2rna.npz"]
    given = {"matches": matches, "metrics": files / "metrics.tsv", "run": "quick"}
    score_program.main(files / "embedding.h5ad", files / "solution.h5ad", **given)
    expected = score(embedding, solution, "quick")
    written = pd.read_csv(files / "metrics.tsv", sep="\t", keep_default_na=False)
    pd.testing.assert_frame_equal(written, expected.metrics.reset_index(drop=True), check_dtype=False)
    for path, matrix in zip(matches, expected.matches.values(), strict=True):
        assert (sp.load_npz(path) != matrix).nnz == 0
    printed = capsys.readouterr().out
    assert "match_score_gaussian" in printed and "rna2adt" in printed
    assert not list(files.glob(".*tmp*"))


def test_score_program_only_prints_without_outputs(files, capsys):
    before = sorted(files.iterdir())
    score_program.main(files / "embedding.h5ad", files / "solution.h5ad")
    assert "foscttm" in capsys.readouterr().out
    assert sorted(files.iterdir()) == before


def test_oracle_program_reaches_every_bound(files, solution):
    out = files / "oracle" / "embedding.h5ad"
    oracle_program.main(files / "solution.h5ad", out)
    embedding = contracts.read_embedding(out)
    metrics = score(embedding, solution).metrics
    distances = metrics["metric"].str.startswith("foscttm")
    assert (metrics.loc[distances, "value"] == 0).all()
    np.testing.assert_allclose(metrics.loc[~distances, "value"], 1, atol=1e-3)
    assert embedding.uns["method"] == "oracle" and not metrics["transductive"].any()
