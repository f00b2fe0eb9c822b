"""Figures: statistics with known answers, what is shown and said, and tables of every shape."""

import gzip
from itertools import combinations, pairwise
from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tidy import CONTROLS, NAN, SHAPES, metrics, resources

from clue.benchmark import contracts
from clue.benchmark.config import Benchmark, read_yaml
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.report import plots, style, tables, umap
from clue.benchmark.report.reference import competition_scores, read_drops, read_published
from clue.benchmark.scores.scoring import write_cells
from clue.benchmark.scores.stats import bootstrap_mean, holm, paired_tests, summarise


@pytest.fixture(scope="module")
def display(project) -> style.Display:
    """The project's own labels and colours."""
    return style.Display(project / "config" / "display.yaml")


@pytest.fixture(autouse=True)
def styled_figures():
    """Draw in the style of the programs, and close what a test drew and did not save."""
    style.apply()
    yield
    plt.close("all")


# ---- statistics ----------------------------------------------------------------------------------


def test_interval_has_the_textbook_answer():
    """Mean 2, sd 1 and n 3: t(0.975, 2) = 4.30265, so the interval is 2 ± 4.30265 / sqrt(3)."""
    summary = summarise([1, 2, 3])
    assert (summary.n, summary.mean, summary.sd) == (3, 2, 1)
    assert summary.high - 2 == pytest.approx(2.484138, abs=1e-5)
    assert 2 - summary.low == pytest.approx(2.484138, abs=1e-5)


def test_summary_as_text():
    texts = [str(summarise(values)) for values in ([1, 2, 3], [0.04993, 0.04993 + 1e-12], [0.25])]
    assert texts == ["2 ± 1", "0.0499 ± 0", "0.25"]


def test_two_seeds_have_a_spread_but_no_interval():
    """It would be 2 × 12.7 standard errors wide."""
    summary = summarise([0, 2])
    assert (summary.mean, summary.sd) == (1, pytest.approx(2**0.5)) and np.isnan([summary.low, summary.high]).all()


def test_one_value_has_no_interval_and_none_no_mean():
    one, none = summarise([5.0, NAN, np.inf]), summarise([])
    assert (one.n, one.mean) == (1, 5)
    assert np.isnan([one.sd, one.low, one.high, none.mean]).all()
    assert none.n == 0


def test_bootstrap_interval_of_many_cells_is_that_of_the_normal_law():
    """1,000 values with sd 1: mean ± 1.96 / sqrt(1000), up to the noise of 1,000 resamples."""
    values = np.random.default_rng(0).normal(size=1000)
    values = (values - values.mean()) / values.std()
    low, high = bootstrap_mean(values)
    assert (low, high) == pytest.approx((-1.96 / 1000**0.5, 1.96 / 1000**0.5), abs=0.008)
    assert bootstrap_mean(values) == (low, high), "seeded"
    assert np.isnan(bootstrap_mean([1.0])).all() and bootstrap_mean([2.0, 2.0]) == (2.0, 2.0)


def test_holm_has_the_textbook_answer():
    """0.01 × 4, 0.02 × 3, max(0.03 × 2, 0.06), max(0.04 × 1, 0.06); what was not tested does not count."""
    assert holm([0.04, 0.01, NAN, 0.03, 0.02]).tolist() == pytest.approx([0.06, 0.04, NAN, 0.06, 0.06], nan_ok=True)
    assert holm([0.6, 0.7]).tolist() == [1, 1]


def test_paired_tests_need_six_seeds_and_pair_them():
    """Differences 1..6: mean 3.5, sd 1.8708, t = 4.5826 with 5 degrees of freedom, p = 0.00593."""
    base = pd.Series(np.arange(7.0) ** 2, index=map(str, range(7)))
    other = (base.iloc[:6] - np.arange(1, 7)).iloc[::-1]
    table = paired_tests({"a": base, "b": other}, minimum=6)
    assert (table["n"][0], table["difference"][0]) == (6, 3.5)
    assert table["p"][0] == pytest.approx(0.005934, abs=1e-5) == table["p_holm"][0]
    few = paired_tests({"a": base, "b": other.iloc[:5]}).iloc[0]
    assert np.isnan(few["p"]) and few["note"] == "no test: 5 common seeds, 6 are needed"
    assert "same difference" in paired_tests({"a": base, "b": base})["note"][0]
    assert paired_tests({"a": base}).empty


# ---- tables --------------------------------------------------------------------------------------


def test_a_missing_seed_keeps_the_others_and_its_reason():
    table = metrics(
        ("a", "s", "m", "default", 0, 0.2, 0.1),
        ("a", "s", "m", "default", 1, "failed", "no memory"),
        ("a", "s", "m", "default", 2, NAN, 0.1),
    )
    found = tables.scores(table, "match_score")
    assert (list(found.values), found.planned, found.status, found.reason) == ([0.2], 3, "failed", "no memory")
    assert len(tables.scores(table, "foscttm").values) == 2


def of_three(method, *scores):
    """Return rows of a split of three modalities: of each pair, and their mean; by pairs."""
    pairs = dict(zip(("rna+atac", "rna+adt", "atac+adt"), scores, strict=True)) | {"both": np.mean(scores)}
    parts = []
    for pair, score in pairs.items():
        first, _, second = pair.partition("+")
        names = {"rna2adt": f"{first}2{second}", "adt2rna": f"{second}2{first}", "both": pair}
        part = metrics(("three", "s", method, "default", 0, score, 1 - score))
        part["direction"] = part["direction"].map(names)
        parts.append(part if second else part[part["direction"] == "both"])
    return pd.concat(parts).assign(reason="by pairs")


def test_pairs_of_three_modalities_are_shown_as_splits(display, scripts):
    failed = metrics(("three", "s", "clue", "default", 0, "failed", "no memory"))
    other = metrics(("a", "s", "clue", "default", 0, 0.3, 0.4))
    table = tables.with_pairs(pd.concat([other, of_three("cca", 0.1, 0.2, 0.6), failed], ignore_index=True))
    splits = ["s", "s rna+atac", "s rna+adt", "s atac+adt"]
    assert tables.panels(table) == [("a", "s"), *(("three", split) for split in splits)]
    shown = tables.rows_of(tables.values_of(table, ["match_score"]), method="cca")
    assert shown.set_index("split")["value"].to_dict() == dict(zip(splits, [0.3, 0.1, 0.2, 0.6], strict=True))
    assert set(tables.rows_of(table, dataset="three", split="s")["direction"]) == {"both", ""}
    assert list(tables.rows_of(table, method="clue", dataset="three")["split"]) == splits
    comparison = scripts("figures/comparison.py")
    readable = comparison.readable_table(table, display)
    assert set(readable.loc[readable["Method"] == "CCA", "Note"]) == {"by pairs"}
    report = scripts("figures/report.py")
    here = report.scores_of(readable, "three", "s", display)
    pairs = ["RNA + ATAC", "RNA + Protein (ADT)", "ATAC + Protein (ADT)"]
    assert list(here["Modalities"].unique()) == ["mean over pairs", *pairs]
    assert "Modalities" not in report.scores_of(readable, "a", "s", display)


def test_two_modalities_are_shown_as_they_are():
    table = metrics(("a", "s", "clue", "default", 0, 0.3, 0.4))
    assert tables.with_pairs(table) is table


def test_a_value_that_is_not_a_number_is_said():
    found = tables.scores(metrics(("a", "s", "m", "default", 0, NAN, 0.1)), "match_score")
    assert (found.status, found.reason) == ("n/a", "match_score has no finite value")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a table"),
        ("run\tdataset\n", "lacks the column split"),
        ("\t".join(tables.METRICS) + "\n", "has no rows"),
        ("\t".join(tables.METRICS) + "\n" + "\t".join(["x"] * len(tables.METRICS)) + "\n", "column value"),
    ],
)
def test_a_wrong_table_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "metrics.tsv"
    path.write_text(text)
    with pytest.raises(BenchmarkError, match=message) as error:
        tables.read_metrics(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_absent_table_is_one_clear_line(tmp_path):
    with pytest.raises(BenchmarkError, match="no such file"):
        tables.read_metrics(tmp_path / "metrics.tsv")


def test_a_reason_that_reads_like_a_missing_value_stays_text(tmp_path):
    tables.write_table(metrics(("a", "null", "m", "default", 0, "failed", "NA")), tmp_path / "metrics.tsv")
    table = tables.read_metrics(tmp_path / "metrics.tsv")
    assert (table["split"][0], table["reason"][0]) == ("null", "NA")


# ---- display -------------------------------------------------------------------------------------


def test_listed_methods_come_first_and_others_by_name(display):
    assert display.order("methods", ["zeta", "cca", "alpha", "clue", "random"]) == [
        "clue", "cca", "random", "alpha", "zeta",
    ]  # fmt: skip


def test_a_colour_depends_on_the_name_alone(display, project):
    again = style.Display(project / "config" / "display.yaml")
    assert display.color("methods", "new") == again.color("methods", "new") in style.FALLBACK


def test_a_label_comes_from_the_methods_own_file(display):
    assert display.label("methods", "cca") == "CCA"
    assert display.label("methods", "not_here") == "not here"
    assert display.name("cca", "my_way") == "CCA, my way"


def test_cell_types_have_colours_of_their_own(display):
    types = [f"type {i}" for i in range(17)]
    colors = display.cell_type_colors(types)
    assert len(set(colors.values())) == 17
    assert colors == display.cell_type_colors(reversed(types))
    assert len(display.cell_type_colors(map(str, range(60)))) == 60


def test_an_unknown_key_of_the_display_is_one_clear_line(tmp_path, project):
    folder = tmp_path / "config"
    (folder / "schemas").mkdir(parents=True)
    schema = "display.schema.yaml"
    (folder / "schemas" / schema).write_text((project / "config" / "schemas" / schema).read_text())
    text = (project / "config" / "display.yaml").read_text()
    (folder / "display.yaml").write_text(text + "colours: {}\n")
    with pytest.raises(BenchmarkError, match="unknown key 'colours'"):
        style.Display(folder / "display.yaml")


# ---- what the figures say ------------------------------------------------------------------------


def texts(figure: plt.Figure) -> str:
    """Return everything that a figure says."""
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text) if text.get_text())


NO_INTERVALS = pd.DataFrame(columns=[*tables.JOB, "seed", "metric", "low", "high"])


def test_comparison_says_what_failed_and_where_controls_are(scripts, display):
    table = metrics(*CONTROLS, *SHAPES["failed"], ("a", "s", "clue", "no_mse", 0, 0.05, 0.1))
    said = texts(scripts("figures/comparison.py").draw(table, NO_INTERVALS, display))
    assert "\nfailed" in said and "CLUE (our settings): out of memory" in said
    assert "Random 0.01\nOracle 1" in said and "Random 0.5\nOracle 0" in said
    assert "No MSE" not in said and "\nOracle\n" not in said


def test_comparison_counts_seeds(scripts, display):
    table = metrics(("a", "s", "cca", "default", 0, 0.1, 0.1), ("a", "s", "cca", "default", 1, "failed", "killed"))
    said = texts(scripts("figures/comparison.py").draw(table, NO_INTERVALS, display))
    assert "1/2" in said and "CCA: killed" in said


@pytest.mark.parametrize("n_seeds", [1, 2, 3])
def test_every_seed_is_a_point_and_an_interval_needs_three(n_seeds, display):
    values = np.array([0.1, 0.2, 0.4])[:n_seeds]
    points = pd.DataFrame({"method": "cca", "variant": "default", "row": "cca/default", "value": values})
    axis = plt.figure().add_subplot()
    plots.draw_seeds(axis, points, display.methods(points))
    shown = np.concatenate([np.asarray(found.get_offsets())[:, 0] for found in axis.collections])
    assert sorted(shown) == pytest.approx(values)
    lines = [np.asarray(line.get_xdata(), dtype=float) for line in axis.lines]
    wide = [ends for ends in lines if np.ptp(ends) > 0]
    assert len(wide) == (n_seeds == 3)
    if n_seeds == 3:
        summary = summarise(values)
        assert (min(wide[0]), max(wide[0])) == pytest.approx((summary.low, summary.high))


NASTY = ["a$\\frac$b", "_starts_low", "100 % CD4", "T" * 200, "日本語", "x^{2", "two\nlines", ""]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_any_kind_are_drawn_as_they_are(scripts, display, tmp_path):
    jobs = [("$\\sum", "s_%", name, "default", seed, 0.1 + seed, 0.1) for name in NASTY for seed in range(2)]
    figure = scripts("figures/comparison.py").draw(metrics(*jobs), NO_INTERVALS, display)
    style.save(figure, tmp_path / "nasty.png")
    said = texts(figure)
    assert "a$\\frac$b" in said and "$\\sum" in said and "日本語" in said and "T" * 60 not in said and "T…T" in said


def test_labels_do_not_overlap_with_many_methods_and_data_sets(scripts, display):
    """13 methods with long names on five data sets; a page of a journal is 7 inches wide."""
    names = [f"a method with a rather long name and number {i}" for i in range(13)]
    places = [(f"data set of a long name {i}", f"split_of_a_long_name_{i}") for i in range(5)]
    table = metrics(
        *[(*place, name, "default", i, 0.1 + i / 50, 0.1) for place in places for name in names for i in (0, 1)]
    )
    figure = scripts("figures/comparison.py").draw(table, NO_INTERVALS, display)
    assert figure.get_figwidth() <= style.PAGE
    figure.canvas.draw()
    for axis in figure.axes:
        for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]
            assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    titles = [axis.title.get_window_extent() for axis in figure.axes[:5]]
    assert all(a.x1 <= b.x0 for a, b in pairwise(titles))


def test_nothing_to_draw_is_a_picture_and_an_error_is_none(tmp_path):
    def draw(error):
        raise error

    plots.write_figure(str(tmp_path / "empty.png"), draw, plots.NothingToDraw("no method has scores"))
    check_figure(tmp_path / "empty.png")
    with pytest.raises(ZeroDivisionError):
        plots.write_figure(str(tmp_path / "broken.png"), draw, ZeroDivisionError())
    assert not (tmp_path / "broken.png").exists()


def test_comparison_table_has_known_answers(scripts):
    program = scripts("figures/comparison.py")
    table = program.summary_table(metrics(*[("a", "s", "cca", "default", i, i + 1.0, 0.5) for i in range(3)]))
    row = table[(table["metric"] == "match_score") & (table["direction"] == "both")].iloc[0]
    assert (row["n"], row["planned"], row["mean"], row["sd"]) == (3, 3, 2, 1)
    assert row["high"] == pytest.approx(4.484138, abs=1e-5)


def test_readable_table_says_where_settings_come_from(scripts, display):
    jobs = [("a", "s", name, "default", 0, 0.1, 0.2) for name in ("cca", "clue_scglue", "not_here")]
    table = scripts("figures/comparison.py").readable_table(metrics(*jobs), display)
    assert dict(zip(table["Method"], table["Settings"], strict=True)) == {
        "CLUE (scglue)": "authors' competition entry",
        "CCA": "chosen on held-out training cells of each split",
        "not here": "",
    }


def test_changes_pair_seeds():
    """Seed 0 loses half, seed 1 a quarter; seed 2 has no full method and does not count."""
    table = metrics(
        ("a", "s", "clue", "default", 0, 0.2, 0.1),
        ("a", "s", "clue", "default", 1, 0.4, 0.1),
        ("a", "s", "clue", "no_mse", 0, 0.1, 0.1),
        ("a", "s", "clue", "no_mse", 1, 0.3, 0.2),
        ("a", "s", "clue", "no_mse", 2, 0.3, 0.2),
    )
    assert tables.changes(table, "clue", "no_mse", "match_score")[0].tolist() == pytest.approx([-50, -25])
    assert tables.changes(table, "clue", "no_mse", "foscttm")[0].tolist() == pytest.approx([0, 100])
    assert tables.changes(table, "clue", "no_cross", "foscttm")[1] == "no_cross: not part of this run"


def test_ablation_shows_published_drops_beside_the_published_settings_alone(scripts, display, project):
    """Ours, whose settings are not the authors', has one ablation and no published drop; the other one all three."""
    program = scripts("figures/ablation.py")
    reference = read_drops(project / "config/reference/ablation.tsv")
    theirs = [("a", "s", "clue_competition", *job[3:]) for job in SHAPES["one seed"]]
    table = metrics(*SHAPES["one seed"], *theirs)
    methods = program.ablations(table, reference, display)
    published = [("clue_competition", variant) for variant in ("no_adversarial", "no_mse", "no_cross")]
    assert list(zip(methods["method"], methods["variant"], strict=True)) == [("clue", "no_mse"), *published]
    points, summary = program.change_table(table, methods, reference, display)
    changes = summary[summary["metric"] == "match_score"].set_index(["method", "variant"])["published_change_percent"]
    assert changes[published].tolist() == [-47.3, -16.5, -17.6] and np.isnan(changes["clue", "no_mse"])
    assert np.isnan(program.published_change(reference, *published[0], "foscttm", display))
    said = texts(program.draw(points, summary, methods, "note", display))
    assert "No MSE loss" in said and "n/a" in said


def test_comparison_reads_the_scores_of_cells(scripts, display, tmp_path):
    """Half of the pairs match in one direction, all in the other: mean 0.75 per seed, and the interval holds it."""
    table = metrics(("a", "s", "cca", "default", 0, 0.75, 0.2), ("a", "s", "cca", "default", 1, 0.75, 0.2))
    cells = pd.DataFrame(
        {"pair": [*range(100)] * 2, "direction": ["x"] * 100 + ["y"] * 100, "match_score": [0, 1] * 50 + [1] * 100}
    ).assign(foscttm=0.2)
    folder = tmp_path / "a" / "s" / "cca" / "default" / "seed-0"
    folder.mkdir(parents=True)
    write_cells(cells, folder / "cells.tsv.gz")
    program = scripts("figures/comparison.py")
    found = program.bootstrap_table(table, str(tmp_path))
    assert found[["seed", "metric", "n_cells"]].to_numpy().tolist() == [
        ["0", "match_score", 100],
        ["0", "foscttm", 100],
    ]
    assert found["low"][0] < 0.75 < found["high"][0] and found["high"][0] - found["low"][0] == pytest.approx(
        0.1, abs=0.02
    )
    band = program.draw(table, found, display).axes[0].collections[-1].get_paths()[0].vertices
    assert band[:, 0].tolist() == pytest.approx([found["low"][0], found["high"][0]])
    (folder / "cells.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(BenchmarkError, match="cells.tsv.gz: cannot be read"):
        program.bootstrap_table(table, str(tmp_path))


# ---- published numbers ---------------------------------------------------------------------------


def test_every_published_number_has_a_source(project):
    """The closed check reads every file of the folder."""
    paths = sorted((project / "config/reference").glob("*.tsv"))
    scores = read_published(path for path in paths if path.stem != "ablation")
    assert len(scores) > 250 and len(read_drops(project / "config/reference/ablation.tsv")) == 3
    board = scores[scores["file"] == "leaderboard.tsv"].set_index(["method", "direction"])["value"].sort_index()
    for method in ("clue", "second_place", "novel_170690", "unnamed", "novel_169594"):
        assert board[method].drop("overall").mean() == pytest.approx(board[method, "overall"], abs=6e-5), "rounded"


def test_every_published_score_has_a_metric_of_ours(project, display):
    """What is not computed here can never be held against a run."""
    paths = (project / "config/reference").glob("*.tsv")
    scores = read_published(path for path in paths if path.stem != "ablation")
    assert {metric for metric in scores["metric"] if not display.entry("metrics", metric)} == set()


def test_scores_of_scmmib_are_of_splits_of_ours(project):
    scores = read_published([project / "config/reference/scmmib.tsv"])
    places = set(zip(scores["dataset"], scores["split"], strict=True))
    assert len(scores) == 188 and set(scores["metric"]) == {"foscttm_euclidean_strict", "top1_euclidean"}
    benchmark = Benchmark(read_yaml(project / "config/scmmib.yaml"), project)
    assert {(job.dataset, job.split) for job in benchmark.plan()} == places


def test_what_a_method_reproduces_is_published(project, display):
    paths = (project / "config/reference").glob("*.tsv")
    published = read_published(path for path in paths if path.stem != "ablation")
    assert set(display.reproduced.values()) <= set(published["method"])
    assert display.reproduced["clue_competition"] == "clue" and "clue" not in display.reproduced


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        ("source", "", "line 2: source is empty"),
        ("value", "", "line 2: value is not a number"),
        ("value", "many", "column value"),
        ("evidence", "hearsay", "line 2: evidence is not one of source, reconstructed"),
        ("Extra", "x", "unknown column 'Extra'"),
    ],
)
def test_a_wrong_published_number_is_one_clear_line(project, tmp_path, column, text, message):
    table = pd.read_csv(project / "config/reference/leaderboard.tsv", sep="\t", dtype=str, keep_default_na=False)
    table.loc[0, column] = text
    table.to_csv(tmp_path / "wrong.tsv", sep="\t", index=False)
    with pytest.raises(BenchmarkError, match=f"wrong.tsv: {message}"):
        read_published([tmp_path / "wrong.tsv"])


def test_a_number_given_twice_is_one_clear_line(project, tmp_path):
    lines = (project / "config/reference/leaderboard.tsv").read_text().splitlines(keepends=True)
    (tmp_path / "twice.tsv").write_text("".join([*lines, lines[1]]))
    with pytest.raises(BenchmarkError, match=f"line {len(lines) + 1}: .* are those of an earlier line"):
        read_published([tmp_path / "twice.tsv"])


SITE4 = [("bmmc_cite", "rna2adt", 0.05), ("bmmc_cite", "adt2rna", 0.06), ("bmmc_multiome", "rna2atac", 0.01)]


def competition(*places: tuple) -> pd.DataFrame:
    """Return a table from (data set, direction, match score) of CLUE's seeds 0 and 1, the second 0.01 higher."""
    jobs = [(dataset, "site4", "clue", "default", seed, 0.5, 0.1) for dataset, *_ in places for seed in range(2)]
    table = metrics(*dict.fromkeys(jobs)).query("metric == 'match_score' and direction == 'both'")
    rows = []
    for dataset, direction, value in places:
        here = table[table["dataset"] == dataset]
        rows.append(here.assign(direction=direction, value=value + 0.01 * here["seed"].astype(int)))
    return pd.concat(rows)


def test_overall_needs_all_four_subtasks():
    three = competition_scores(competition(*SITE4))["clue"]
    assert three["overall"].isna().all() and three["rna2adt"].tolist() == pytest.approx([0.05, 0.06])
    four = competition_scores(competition(*SITE4, ("bmmc_multiome", "atac2rna", 0.04)))["clue"]
    assert four["overall"].tolist() == pytest.approx([0.04, 0.05])


@pytest.fixture(scope="module")
def published(project) -> pd.DataFrame:
    """All published scores."""
    return read_published(p for p in sorted((project / "config/reference").glob("*.tsv")) if p.stem != "ablation")


def test_leaderboard_sorts_published_and_own_and_says_what_did_not_run(scripts, display, published):
    program = scripts("figures/leaderboard.py")
    table = competition(*SITE4, ("bmmc_multiome", "atac2rna", 0.09))
    own = competition_scores(table)
    board = program.leaderboard(published, own, "match_score", display)
    ours = board.index[board["origin"] == "this run"].item()
    theirs = board.index[board["label"] == "CLUE (team GLUE)"].item()
    assert ours == theirs - 1
    assert board["overall"][ours] == pytest.approx(0.0575) and program.not_run(table) == []
    said = texts(program.draw({"match_score": board}, {"match_score": own}, [], display))
    assert "CLUE (our settings)" in said and "CLUE (team GLUE)" in said
    absent = program.not_run(metrics(("a", "s", "clue", "default", 0, 0.1, 0.1)))
    assert len(absent) == 2 and "no scores on bmmc_cite (split site4)" in absent[0]
    alone = program.leaderboard(published, {}, "match_score", display)
    said = texts(program.draw({"match_score": alone}, {"match_score": {}}, absent, display))
    assert "CLUE (our settings)" not in said and absent[0] in said


def test_leaderboard_sets_beside_each_other_what_is_matched_alike(scripts, display, published, project, tmp_path):
    """Two methods are published with optimal transport or bipartite matching; they stand beside ours by transport."""
    by_neighbours = competition(*SITE4, ("bmmc_multiome", "atac2rna", 0.09))
    by_transport = by_neighbours.assign(metric="match_score_ot", value=by_neighbours["value"] * 2)
    tables.write_table(pd.concat([by_neighbours, by_transport]), tmp_path / "metrics.tsv")
    files = [str(path) for path in (project / "config/reference").glob("[lor]*.tsv")]
    given = ["--metrics", f"{tmp_path}/metrics.tsv", "--display", f"{project}/config/display.yaml"]
    written = ["--figure", f"{tmp_path}/board.png", "--table", f"{tmp_path}/board.tsv"]
    scripts("figures/leaderboard.py").main([*given, "--published", *files, *written])
    board = tables.read_table(tmp_path / "board.tsv", ["metric"], ["overall"])
    methods = {metric: set(part["method"]) for metric, part in board.groupby("metric")}
    assert methods["match_score_ot"] == {"clue", "scmognn", "scmognn_dance", "matchclot", "matchclot_preprint"}
    assert {"clue", "second_place"} < methods["match_score"] and not {"scmognn"} & methods["match_score"]
    ours = board[board["origin"] == "this run"].set_index("metric")["overall"]
    assert ours["match_score_ot"] == pytest.approx(2 * ours["match_score"])


def test_leaderboard_marks_settings_that_are_published(scripts, display, published):
    program = scripts("figures/leaderboard.py")
    table = competition(*SITE4)
    scores = competition_scores(pd.concat([table, table.assign(method="clue_competition")]))
    board = program.leaderboard(published, scores, "match_score", display)
    ours = board[board["origin"] == "this run"].set_index("method")
    assert ours["reproduces"].to_dict() == {"clue": "", "clue_competition": "clue"}
    assert (
        program.row_label(ours.loc["clue_competition"]).endswith("*")
        and program.row_label(ours.loc["clue"]) == "CLUE (our settings)"
    )


@pytest.mark.parametrize(
    ("published", "better", "expected"),
    [(2.0, "higher", "within seeds"), (0.5, "higher", "better"), (0.5, "lower", "worse"), (9.0, "lower", "better")],
)
def test_verdict(scripts, published, better, expected):
    assert scripts("figures/paper.py").verdict(published, [1.0, 3.0], better) == expected


def test_paper_table_holds_what_this_run_can_be_held_against(scripts, display, published):
    """Data set, split, metric and method: CLUE with the published settings counts, with our own it does not."""
    here = competition(*SITE4)
    table = pd.concat([here.assign(method=name) for name in ("clue", "clue_competition")])
    rows = pd.DataFrame(scripts("figures/paper.py").score_rows(published, table, display))
    assert set(zip(rows["dataset"], rows["split"], strict=True)) == {
        ("bmmc_cite", "site4"), ("bmmc_multiome", "site4"), ("all", "site4"),
    }  # fmt: skip
    assert set(rows["method"]) == {"clue", "cobolt"} and set(rows["method_here"].dropna()) == {"clue_competition"}
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


def test_published_drops_are_held_against_each_method_that_reproduces_clue(scripts, display, project):
    program = scripts("figures/paper.py")
    drops = read_drops(project / "config/reference/ablation.tsv")
    jobs = [("a", "s", name, *job[3:]) for name in ("clue", "clue_scglue") for job in SHAPES["one seed"]]
    rows = pd.DataFrame(program.drop_rows(drops, metrics(*jobs), display)).set_index("label")
    assert rows.loc["clue, no_mse", ["method_here", "published", "verdict"]].tolist() == [
        "clue_scglue", -16.5, "larger drop",
    ]  # fmt: skip
    assert rows.loc["clue, no_mse", "ours"] == pytest.approx(-20)
    assert rows.drop("clue, no_mse")["verdict"].tolist() == ["not run here"] * 2


# ---- programs on tables of every shape -----------------------------------------------------------


def check_figure(path: Path) -> None:
    """Check that a PNG of 300 dpi and a PDF with TrueType fonts are there."""
    with Image.open(path) as image:
        assert image.info["dpi"][0] == pytest.approx(300, abs=1)
        assert image.width > 500
    pdf = path.with_suffix(".pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf


@pytest.mark.parametrize("shape", SHAPES)
def test_programs_take_tables_of_every_shape(shape, scripts, project, tmp_path):
    table = metrics(*CONTROLS, *SHAPES[shape])
    tables.write_table(table, tmp_path / "metrics.tsv")
    given = ["--metrics", f"{tmp_path}/metrics.tsv", "--display", f"{project}/config/display.yaml"]
    comparison = ["--table", f"{tmp_path}/comparison.tsv", "--summary", f"{tmp_path}/summary.tsv"]
    comparison += ["--tests", f"{tmp_path}/tests.tsv", "--intervals", f"{tmp_path}/intervals.tsv"]
    comparison += ["--cells", str(tmp_path)]
    scripts("figures/comparison.py").main([*given, "--figure", f"{tmp_path}/comparison.png", *comparison])
    reference = ["--reference", f"{project}/config/reference/ablation.tsv", "--table", f"{tmp_path}/ablation.tsv"]
    scripts("figures/ablation.py").main([*given, "--figure", f"{tmp_path}/ablation.png", *reference])
    for name in ("comparison", "ablation"):
        check_figure(tmp_path / f"{name}.png")
    summary = tables.read_table(tmp_path / "summary.tsv", ["Method", "Note"])
    assert len(summary) == len(table[tables.JOB].drop_duplicates())
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "jobs",
    [
        [],
        [("a", "s", "oracle", "default", 0, 0.1, 100.0, NAN)],
        [("a", "s", "random", "default", 0, 0.0, 100.0, NAN)],
        [("a", "s", "clue", "default", i, 10.0 + i, 100.0, 2000.0) for i in range(3)]
        + [("b", "s", "cca", "default", 0, NAN, NAN, NAN)],
    ],
    ids=["empty", "oracle only", "no time at all", "GPU and missing"],
)
def test_resources_takes_tables_of_every_shape(jobs, scripts, project, tmp_path):
    tables.write_table(resources(*jobs), tmp_path / "resources.tsv")
    given = ["--resources", f"{tmp_path}/resources.tsv", "--display", f"{project}/config/display.yaml"]
    written = ["--figure", f"{tmp_path}/resources.png", "--table", f"{tmp_path}/table.tsv"]
    scripts("figures/resources.py").main([*given, *written])
    check_figure(tmp_path / "resources.png")


# ---- UMAP ----------------------------------------------------------------------------------------


def write_task(folder: Path, n_cells: int = 40, labels: str = "published") -> tuple[Path, Path]:
    """Write a solution and an embedding in which true pairs coincide and types are apart."""
    rng = np.random.default_rng(0)
    orders = {modality: rng.permutation(n_cells) for modality in ("rna", "adt")}
    names = {modality: np.array(contracts.names_of_test_cells(modality, n_cells)) for modality in orders}
    obs = pd.DataFrame({"batch": "all", "cell_type": [f"type {i % 3}" for i in range(n_cells)]})
    obs.index = [f"cell {i}" for i in range(n_cells)]
    for modality, order in orders.items():
        obs[modality] = names[modality][order]
    uns = {"modalities": list(orders), "dataset": "pbmc_cite", "split": "donors", "labels": labels, "n_train": 80}
    solution = ad.AnnData(np.zeros((n_cells, 0), dtype=np.float32), obs=obs, uns=uns)
    truth = np.eye(3)[np.arange(n_cells) % 3] + rng.normal(0, 0.05, (n_cells, 3))
    blocks = []
    for order in orders.values():
        block = np.empty_like(truth)
        block[order] = truth
        blocks.append(block)
    cells = np.concatenate(list(names.values()))
    rows = pd.DataFrame({"cell": cells, "modality": np.repeat(list(orders), n_cells), "batch": "all"}, index=cells)
    run = {"method": "clue", "variant": "default", "seed": 0, "params": "{}"}
    embedding = ad.AnnData(np.concatenate(blocks).astype(np.float32), obs=rows, uns=run)
    contracts.write_solution(solution, folder / "solution.h5ad")
    contracts.write_embedding(embedding, folder / "embedding.h5ad")
    return folder / "solution.h5ad", folder / "embedding.h5ad"


def test_points_of_a_pair_have_one_type_and_coincide(tmp_path):
    solution, embedding = (ad.read_h5ad(path) for path in write_task(tmp_path))
    found = umap.points(embedding, umap.sample_cells(solution, 20, seed=0), ["rna", "adt"], "here")
    assert found.n_obs == 20
    np.testing.assert_allclose(found.X[:10], found.X[10:])
    assert (found.obs["cell_type"].to_numpy() == [f"type {i}" for i in found.X.argmax(axis=1)]).all()


def test_an_embedding_of_another_task_is_one_clear_line(tmp_path):
    solution, embedding = (ad.read_h5ad(path) for path in write_task(tmp_path))
    with pytest.raises(contracts.ContractError, match="here: lacks 1 of 80 test cells, such as 'rna_000001'"):
        umap.points(embedding[1:], solution.obs, ["rna", "adt"], "here")


def test_a_sample_is_seeded_and_whole_where_small(tmp_path):
    solution = ad.read_h5ad(write_task(tmp_path)[0])
    first, again = (umap.sample_cells(solution, 30, seed=1) for _ in range(2))
    assert len(first) == 15 and first.equals(again)
    assert len(umap.sample_cells(solution, 5000, seed=1)) == 40


@pytest.mark.parametrize("shape", [(60, 8), (30, 1), (5, 3), (3, 1)])
@pytest.mark.parametrize("fill", ["random", "equal", "zero"])
def test_coordinates_are_finite_whatever_the_embedding(shape, fill):
    rng = np.random.default_rng(0)
    vectors = {"random": rng.normal(size=shape), "equal": np.ones(shape), "zero": np.zeros(shape)}[fill]
    found = umap.coordinates(vectors, seed=0)
    assert found.shape == (shape[0], 2) and np.isfinite(found).all()


def test_umap_program_writes_the_same_coordinates_twice(scripts, project, tmp_path):
    solution, embedding = write_task(tmp_path, labels="derived: clusters of the training RNA")
    given = ["--solution", str(solution), "--embeddings", str(embedding), "--points", "60", "--seed", "0"]
    given += ["--display", f"{project}/config/display.yaml", "--figure", f"{tmp_path}/umap.png"]
    written = []
    for _ in range(2):
        scripts("figures/umaps.py").main([*given, "--table", f"{tmp_path}/umap.tsv.gz"])
        written.append((tmp_path / "umap.tsv.gz").read_bytes())
    assert written[0] == written[1]
    assert len(gzip.decompress(written[0]).splitlines()) == 61
    check_figure(tmp_path / "umap.png")


def test_umap_says_that_labels_are_derived_and_cells_sampled(scripts):
    describe = scripts("figures/umaps.py").describe
    assert "30 of 40 test cells" in describe(40, 30, "0", "published")[0]
    assert describe(40, 40, "0", "derived: clusters")[1] == "Cell types are not published but derived: clusters."


# ---- data sets -------------------------------------------------------------------------


def test_datasets_table_names_source_and_size(scripts, project, tmp_path, tiny_mdata):
    for adata in tiny_mdata.mod.values():
        adata.uns = {}
    lost = "rna: 2 of 62 cells lack another modality and are dropped"
    tiny_mdata.uns = {"dataset": "pbmc_cite", "source": "a wheel", "sha256": "abc", "dropped": lost}
    tiny_mdata.write(tmp_path / "dataset.h5mu")
    solution, _ = write_task(tmp_path)
    given = ["--datasets", f"{tmp_path}/dataset.h5mu", "--solutions", str(solution)]
    given += ["--display", f"{project}/config/display.yaml", "--table", f"{tmp_path}/datasets.tsv"]
    scripts("figures/datasets.py").main(given)
    row = tables.read_table(tmp_path / "datasets.tsv", ["Source"]).iloc[0]
    assert row["Cells"] == "60" and row["Features"] == "40 rna, 12 adt"
    assert row["Splits"] == "donors: 80 training and 40 test cells, labels published"
    assert row["Source"].startswith("a wheel GSE161918") and row["SHA-256"] == "abc" and row["Licence"]
    assert row["Notes"].endswith(lost)


def test_a_broken_data_set_is_one_clear_line(scripts, tmp_path):
    (tmp_path / "dataset.h5mu").write_bytes(b"not HDF5")
    with pytest.raises(BenchmarkError, match="dataset.h5mu: cannot be read"):
        scripts("figures/datasets.py").look_into(tmp_path / "dataset.h5mu")


def test_datasets_table_without_data_sets_is_a_table(scripts, project, tmp_path):
    """As after a run in which no data set could be prepared."""
    table = tmp_path / "datasets.tsv"
    display = ["--display", f"{project}/config/display.yaml"]
    scripts("figures/datasets.py").main(["--datasets", "--solutions", *display, "--table", str(table)])
    assert len(pd.read_csv(table, sep="\t")) == 0
