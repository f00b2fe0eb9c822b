"""Published numbers have sources, and are shown beside those of this run."""

import pandas as pd
import pytest
from tidy import SHAPES, metrics, texts

from clue.benchmark.config import Benchmark, read_yaml
from clue.benchmark.report.reference import DROPS, SCORES, competition_scores, read_drops

pytestmark = pytest.mark.usefixtures("figure_style")


def test_every_published_number_has_a_source_and_a_metric_of_ours(published, project, display):
    """Every file of the folder is read. A metric that is not computed here could never be compared with a run."""
    assert len(published) > 250 and len(read_drops(project / "config/reference/ablation.tsv")) == 3
    board = published[published["file"] == "leaderboard.tsv"].set_index(["method", "direction"])["value"].sort_index()
    for method in ("clue", "second_place", "novel_170690", "unnamed", "novel_169594"):
        assert board[method].drop("overall").mean() == pytest.approx(board[method, "overall"], abs=6e-5), "rounded"
    assert not [metric for metric in published["metric"].unique() if not display.entry("metrics", metric)]
    assert set(display.reproduced.values()) <= set(published["method"])
    assert display.reproduced["clue_competition"] == "clue" and "clue" not in display.reproduced


def test_scmmib_scores_belong_to_our_splits(published, project):
    scores = published[published["file"] == "scmmib.tsv"]
    places = set(zip(scores["dataset"], scores["split"], strict=True))
    assert len(scores) == 188 and set(scores["metric"]) == {"foscttm_euclidean_strict", "top1_euclidean"}
    benchmark = Benchmark(read_yaml(project / "config/scmmib.yaml"), project)
    assert {(job.dataset, job.split) for job in benchmark.plan()} == places


def test_every_row_of_the_references_is_complete_and_distinct(project):
    for path in sorted(project.glob("config/reference/*.tsv")):
        columns, number = (DROPS, "drop_percent") if path.stem == "ablation" else (SCORES, "value")
        table = pd.read_csv(path, sep="\t", keep_default_na=False)
        assert list(table) == columns, path
        assert (table.drop(columns=["note", number]) != "").all(axis=None), path
        assert table[number].dtype == float and table[number].notna().all(), path
        assert set(table["evidence"]) <= {"source", "reconstructed", "second-hand", "inferred"}, path
        key = [column for column in ("method", "variant", "dataset", "split", "direction", "metric") if column in table]
        assert not table.duplicated(key).any(), path


SITE4 = [("bmmc_cite", "rna2adt", 0.05), ("bmmc_cite", "adt2rna", 0.06), ("bmmc_multiome", "rna2atac", 0.01)]


def competition(*places: tuple) -> pd.DataFrame:
    """Return a table from (data set, direction, match score) for CLUE's seeds 0 and 1, the second 0.01 higher."""
    jobs = [(dataset, "site4", "clue", "default", seed, 0.5, 0.1) for dataset, *_ in places for seed in range(2)]
    table = metrics(*dict.fromkeys(jobs)).query("metric == 'match_score' and direction == 'both'")
    rows = []
    for dataset, direction, value in places:
        here = table[table["dataset"] == dataset]
        rows.append(here.assign(direction=direction, value=value + 0.01 * here["seed"].astype(int)))
    return pd.concat(rows)


def test_overall_needs_all_four_subtasks():
    three = competition_scores(competition(*SITE4)).loc["clue"]
    assert three["overall"].isna().all() and three["rna2adt"].tolist() == pytest.approx([0.05, 0.06])
    four = competition_scores(competition(*SITE4, ("bmmc_multiome", "atac2rna", 0.04))).loc["clue"]
    assert four["overall"].tolist() == pytest.approx([0.04, 0.05])


def test_leaderboard_ranks_published_and_own_and_says_what_did_not_run(scripts, display, published):
    program = scripts("figures/leaderboard.py")
    table = competition(*SITE4, ("bmmc_multiome", "atac2rna", 0.09))
    own = competition_scores(table)
    board = program.leaderboard(published, own, "match_score", display)
    ours = board.index[board["origin"] == "this run"].item()
    theirs = board.index[board["label"] == "CLUE (team GLUE)"].item()
    assert ours == theirs - 1
    assert board["overall"][ours] == pytest.approx(0.0575) and program.not_run(table) == []
    figure_text = texts(program.draw({"match_score": board}, {"match_score": own}, [], display))
    assert "CLUE (our settings)" in figure_text and "CLUE (team GLUE)" in figure_text
    absent = program.not_run(metrics(("a", "s", "clue", "default", 0, 0.1, 0.1)))
    assert len(absent) == 2 and "no scores on bmmc_cite (split site4)" in absent[0]
    alone = program.leaderboard(published, own[:0], "match_score", display)
    figure_text = texts(program.draw({"match_score": alone}, {"match_score": own[:0]}, absent, display))
    assert "CLUE (our settings)" not in figure_text and absent[0] in figure_text


def test_leaderboard_compares_scores_from_the_same_matching(draw, references):
    """Two methods are published with optimal transport or bipartite matching; ours by transport is beside them."""
    by_neighbours = competition(*SITE4, ("bmmc_multiome", "atac2rna", 0.09))
    by_transport = by_neighbours.assign(metric="match_score_ot", value=by_neighbours["value"] * 2)
    files = [references[name] for name in ("leaderboard", "organisers", "rebenchmarks")]
    board = draw("leaderboard", "--published", *files, metrics=pd.concat([by_neighbours, by_transport]))
    methods = {metric: set(part["method"]) for metric, part in board.groupby("metric")}
    assert methods["match_score_ot"] == {"clue", "scmognn", "scmognn_dance", "matchclot", "matchclot_preprint"}
    assert {"clue", "second_place"} < methods["match_score"] and not {"scmognn"} & methods["match_score"]
    ours = board[board["origin"] == "this run"].set_index("metric")["overall"]
    assert ours["match_score_ot"] == pytest.approx(2 * ours["match_score"])


def test_leaderboard_marks_published_settings(scripts, display, published):
    program = scripts("figures/leaderboard.py")
    table = competition(*SITE4)
    scores = competition_scores(pd.concat([table, table.assign(method="clue_competition")]))
    board = program.leaderboard(published, scores, "match_score", display)
    ours = board[board["origin"] == "this run"].set_index("method")
    assert ours["reproduces"].to_dict() == {"clue": "", "clue_competition": "clue"}
    assert program.row_label(ours.loc["clue_competition"]).endswith("*")
    assert program.row_label(ours.loc["clue"]) == "CLUE (our settings)"


@pytest.mark.parametrize(
    ("published", "better", "expected"),
    [(2.0, "higher", "within seeds"), (0.5, "higher", "better"), (0.5, "lower", "worse"), (9.0, "lower", "better")],
)
def test_verdict(scripts, published, better, expected):
    assert scripts("figures/paper.py").verdict(published, [1.0, 3.0], better) == expected


def test_paper_table_has_what_this_run_can_be_compared_with(scripts, display, published):
    """Data set, split, metric and method must agree: CLUE counts with the published settings, not with ours."""
    here = competition(*SITE4)
    table = pd.concat([here.assign(method=name) for name in ("clue", "clue_competition")])
    rows = pd.DataFrame(scripts("figures/paper.py").score_rows(published, table, display))
    assert set(rows["dataset"]) == {"bmmc_cite", "bmmc_multiome", "all"} and set(rows["split"]) == {"site4"}
    assert set(rows["method"]) == {"clue", "cobolt", "matchclot"}
    assert set(rows["method_here"].dropna()) == {"clue_competition"}
    of = rows[rows["file"] == "leaderboard.tsv"].set_index(["method", "direction"])
    assert of.loc[("clue", "rna2adt"), "verdict"] == "better" and of.loc[("clue", "adt2rna"), "verdict"] == "better"
    assert of.loc[("clue", "rna2atac"), "difference"] == pytest.approx(0.015 - 0.0560)
    assert "four sub-tasks" in of.loc[("clue", "overall"), "why"]
    cobolt = rows[rows["method"] == "cobolt"]
    assert len(cobolt) == 4 and set(cobolt["why"]) == {"not part of this run: cobolt, cobolt_native"}
    assert rows.loc[rows["verdict"] == "not run here", "why"].ne("").all()


def test_paper_table_has_no_overall_score_without_both_data_sets(scripts, display, published):
    rows = pd.DataFrame(scripts("figures/paper.py").score_rows(published, competition(*SITE4[:2]), display))
    assert set(rows["dataset"]) == {"bmmc_cite"}


def test_published_drops_are_compared_with_every_reproduction_of_clue(scripts, display, project):
    program = scripts("figures/paper.py")
    drops = read_drops(project / "config/reference/ablation.tsv")
    jobs = [("a", "s", name, *job[3:]) for name in ("clue", "clue_scglue") for job in SHAPES["one seed"]]
    rows = pd.DataFrame(program.drop_rows(drops, metrics(*jobs), display)).set_index("label")
    row = rows.loc["clue, no_mse"]
    assert (row["method_here"], row["published"], row["verdict"]) == ("clue_scglue", -16.5, "larger drop")
    assert row["ours"] == pytest.approx(-20)
    assert rows.drop("clue, no_mse")["verdict"].tolist() == ["not run here"] * 2
