"""Figures and their tables: known answers, what is shown, and tables of every shape."""

import gzip
from itertools import combinations, pairwise

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from helpers import one_line_error
from tidy import (
    CONTROLS,
    NAN,
    NO_INTERVALS,
    SHAPES,
    check_figure,
    embedding_of,
    metrics,
    resources,
    seeds,
    solution_of,
    texts,
)

from clue.benchmark import contracts
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.report import plots, style, tables, umap
from clue.benchmark.report.reference import read_drops
from clue.benchmark.scores.stats import summarise

pytestmark = pytest.mark.usefixtures("figure_style")
HEADER = "\t".join(tables.METRICS_COLUMNS)


# ---- tables --------------------------------------------------------------------------------------


def test_missing_seed_keeps_the_others_and_its_reason():
    table = metrics(*seeds("m", (0.2, 0.1), ("failed", "no memory"), (NAN, 0.1)))
    found = tables.scores(table, "match_score")
    assert (list(found.values), found.planned, found.status, found.reason) == ([0.2], 3, "failed", "no memory")
    assert len(tables.scores(table, "foscttm").values) == 2
    found = tables.scores(table[table["seed"] == "2"], "match_score")
    assert (found.status, found.reason) == ("n/a", "match_score has no finite value")


def of_three(method, *scores):
    """Return rows of a split of three modalities by pairs: one for each pair, and their mean."""
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
    assert tables.with_pairs(other) is other, "two modalities are shown as they are"
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("", "cannot be read"),
        ("run\tdataset\n", "lacks the column split"),
        (HEADER + "\n", "has no rows"),
        (f"{HEADER}\n" + "\t".join(["x"] * len(tables.METRICS_COLUMNS)) + "\n", "column value"),
    ],
)
def test_wrong_table_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "metrics.tsv"
    if text is not None:
        path.write_text(text)
    found = one_line_error(tables.read_metrics, path)
    assert str(path) in found and message in found


def test_reason_that_looks_like_a_missing_value_stays_text(tmp_path):
    tables.write_table(metrics(("a", "null", "m", "default", 0, "failed", "NA")), tmp_path / "metrics.tsv")
    table = tables.read_metrics(tmp_path / "metrics.tsv")
    assert (table["split"][0], table["reason"][0]) == ("null", "NA")


# ---- display -------------------------------------------------------------------------------------


def test_names_have_fixed_order_labels_and_colours(display, project):
    names = ["zeta", "cca", "alpha", "clue", "random"]
    assert display.order("methods", names) == ["clue", "cca", "random", "alpha", "zeta"], "listed ones first"
    again = style.Display(project / "config" / "display.yaml")
    assert display.color("methods", "new") == again.color("methods", "new") in style.FALLBACK
    assert (display.label("methods", "cca"), display.label("methods", "not_here")) == ("CCA", "not here")
    assert display.name("cca", "my_way") == "CCA, my way"


def test_cell_types_have_their_own_colours(display):
    types = [f"type {i}" for i in range(17)]
    colors = display.cell_type_colors(types)
    assert len(set(colors.values())) == 17
    assert colors == display.cell_type_colors(reversed(types))
    assert len(display.cell_type_colors(map(str, range(60)))) == 60


def test_unknown_display_key_is_one_clear_line(workplace, project):
    path = workplace / "config" / "display.yaml"
    path.write_text((project / "config" / "display.yaml").read_text() + "colours: {}\n")
    with pytest.raises(BenchmarkError, match="unknown key 'colours'"):
        style.Display(path)


# ---- what the figures show -----------------------------------------------------------------------


def test_comparison_shows_failures_and_controls(scripts, display):
    killed = ("a", "s", "cca", "default", 1, "failed", "killed")
    table = metrics(*CONTROLS, *SHAPES["failed"], killed, ("a", "s", "clue", "no_mse", 0, 0.05, 0.1))
    figure_text = texts(scripts("figures/comparison.py").draw(table, NO_INTERVALS, display))
    assert "\nfailed" in figure_text and "CLUE (our settings): out of memory" in figure_text
    assert "1/2" in figure_text and "CCA: killed" in figure_text
    assert "Random 0.01\nOracle 1" in figure_text and "Random 0.5\nOracle 0" in figure_text
    assert "No MSE" not in figure_text and "\nOracle\n" not in figure_text


@pytest.mark.parametrize("n_seeds", [1, 2, 3])
def test_every_seed_is_a_point_and_intervals_need_three(n_seeds, display):
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


def test_labels_do_not_overlap_with_many_methods_and_data_sets(scripts, display):
    """13 methods with long names on five data sets; a journal page is 7 inches wide."""
    names = [f"a method with a rather long name and number {i}" for i in range(13)]
    places = [(f"data set of a long name {i}", f"split_of_a_long_name_{i}") for i in range(5)]
    jobs = [(*place, name, "default", i, 0.1 + i / 50, 0.1) for place in places for name in names for i in (0, 1)]
    table = metrics(*jobs)
    figure = scripts("figures/comparison.py").draw(table, NO_INTERVALS, display)
    assert figure.get_figwidth() <= style.PAGE
    figure.canvas.draw()
    for axis in figure.axes:
        for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
            boxes = [label.get_window_extent() for label in labels if label.get_text() and label.get_visible()]
            assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    titles = [axis.title.get_window_extent() for axis in figure.axes[:5]]
    assert all(a.x1 <= b.x0 for a, b in pairwise(titles))


def test_nothing_to_draw_gives_a_picture_but_an_error_does_not(tmp_path):
    def draw(error):
        raise error

    plots.write_figure(str(tmp_path / "empty.png"), draw, plots.NothingToDraw("no method has scores"))
    check_figure(tmp_path / "empty.png")
    with pytest.raises(ZeroDivisionError):
        plots.write_figure(str(tmp_path / "broken.png"), draw, ZeroDivisionError())
    assert not (tmp_path / "broken.png").exists()


def test_comparison_table_has_known_answers(scripts):
    program = scripts("figures/comparison.py")
    table = program.summary_table(metrics(*seeds("cca", (1.0, 0.5), (2.0, 0.5), (3.0, 0.5))))
    row = table[(table["metric"] == "match_score") & (table["direction"] == "both")].iloc[0]
    assert (row["n"], row["planned"], row["mean"], row["sd"]) == (3, 3, 2, 1)
    assert row["high"] == pytest.approx(4.484138, abs=1e-5)


def test_readable_table_states_where_settings_come_from(scripts, display):
    jobs = [("a", "s", name, "default", 0, 0.1, 0.2) for name in ("cca", "clue_scglue", "not_here")]
    table = scripts("figures/comparison.py").readable_table(metrics(*jobs), display)
    settings = {"CLUE (scglue)": "authors' competition entry", "not here": ""}
    settings["CCA"] = "chosen on held-out training cells of each split"
    assert dict(zip(table["Method"], table["Settings"], strict=True)) == settings


def test_changes_are_paired_by_seed():
    """Seed 0 loses half, seed 1 a quarter; seed 2 has no full method and does not count."""
    without = seeds("clue", (0.1, 0.1), (0.3, 0.2), (0.3, 0.2), variant="no_mse")
    table = metrics(*seeds("clue", (0.2, 0.1), (0.4, 0.1)), *without)
    assert tables.changes(table, "clue", "no_mse", "match_score")[0].tolist() == pytest.approx([-50, -25])
    assert tables.changes(table, "clue", "no_mse", "foscttm")[0].tolist() == pytest.approx([0, 100])
    assert tables.changes(table, "clue", "no_cross", "foscttm")[1] == "no_cross: not part of this run"


def test_ablation_shows_published_drops_only_for_published_settings(scripts, display, project):
    """Ours, with other settings than the authors', has one ablation and no published drop; the other has all three."""
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
    assert summary[summary["metric"] == "foscttm"]["published_change_percent"].isna().all()
    figure_text = texts(program.draw(points, summary, methods, "note", display))
    assert "No MSE loss" in figure_text and "n/a" in figure_text


def test_comparison_reads_scores_per_cell(scripts, display, tmp_path):
    """Half of the pairs match in one direction, all in the other: mean 0.75 per seed, within the interval."""
    table = metrics(*seeds("cca", (0.75, 0.2), (0.75, 0.2)))
    cells = pd.DataFrame(
        {"pair": [*range(100)] * 2, "direction": ["x"] * 100 + ["y"] * 100, "match_score": [0, 1] * 50 + [1] * 100}
    ).assign(foscttm=0.2)
    folder = tmp_path / "a" / "s" / "cca" / "default" / "seed-0"
    folder.mkdir(parents=True)
    tables.write_table(cells, folder / "cells.tsv.gz")
    program = scripts("figures/comparison.py")
    found = program.bootstrap_table(table, str(tmp_path))
    rows = [["0", "match_score", 100], ["0", "foscttm", 100]]
    assert found[["seed", "metric", "n_cells"]].to_numpy().tolist() == rows
    low, high = found.loc[0, ["low", "high"]]
    assert low < 0.75 < high and high - low == pytest.approx(0.1, abs=0.02)
    band = program.draw(table, found, display).axes[0].collections[-1].get_paths()[0].vertices
    assert band[:, 0].tolist() == pytest.approx([low, high])
    (folder / "cells.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(BenchmarkError, match="cells.tsv.gz: cannot be read"):
        program.bootstrap_table(table, str(tmp_path))


# ---- programs on tables of every shape -----------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_programs_accept_tables_of_every_shape(shape, draw, project, tmp_path):
    table = metrics(*CONTROLS, *SHAPES[shape])
    draw("comparison", "--cells", tmp_path, metrics=table)
    summary = tables.read_table(tmp_path / "summary.tsv", ["Method", "Note"])
    assert len(summary) == len(table[tables.JOB].drop_duplicates())
    draw("ablation", "--reference", project / "config/reference/ablation.tsv", metrics=table)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("shape", ["usual", "nan", "failed", "controls only"])
def test_leaderboard_shows_published_scores_beside_any_table(shape, draw, references):
    table = metrics(*CONTROLS, *SHAPES[shape]).replace({"dataset": {"a": "bmmc_cite"}, "split": {"s": "site4"}})
    board = draw("leaderboard", "--published", *references.values(), metrics=table)
    assert (board["origin"] == "published").sum() > 8


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
def test_resources_accepts_tables_of_every_shape(jobs, draw):
    draw("resources", resources=resources(*jobs))


# ---- UMAP ----------------------------------------------------------------------------------------


@pytest.fixture
def solution() -> ad.AnnData:
    """40 test cells of three types."""
    types = [f"type {i % 3}" for i in range(40)]
    return solution_of(40, types, ["all"] * 40, dataset="pbmc_cite", split="donors", n_train=80)


@pytest.fixture
def embedding(solution) -> ad.AnnData:
    """An embedding in which true pairs coincide and types are apart."""
    points = np.eye(3)[np.arange(40) % 3] + np.random.default_rng(0).normal(0, 0.05, (40, 3))
    return embedding_of(solution, {"rna": points, "adt": points}, method="clue", variant="default", seed=0)


def test_points_of_a_pair_have_one_type_and_coincide(solution, embedding):
    found = umap.points(embedding, umap.sample_cells(solution, 20, seed=0), ["rna", "adt"])
    assert found.n_obs == 20
    np.testing.assert_allclose(found.X[:10], found.X[10:])
    assert (found.obs["cell_type"].to_numpy() == [f"type {i}" for i in found.X.argmax(axis=1)]).all()


def test_sample_is_seeded_and_complete_if_small(solution):
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


def test_umap_program_writes_the_same_coordinates_twice(scripts, display, tmp_path, solution, embedding):
    contracts.write_solution(solution, tmp_path / "solution.h5ad")
    contracts.write_embedding(embedding, tmp_path / "embedding.h5ad")
    given = tmp_path / "solution.h5ad", [tmp_path / "embedding.h5ad"], 60, 0, display
    written = []
    for _ in range(2):
        scripts("figures/umaps.py").main(*given, tmp_path / "umap.tsv.gz", tmp_path / "umap.png")
        written.append((tmp_path / "umap.tsv.gz").read_bytes())
    assert written[0] == written[1] and len(gzip.decompress(written[0]).splitlines()) == 61
    check_figure(tmp_path / "umap.png")


def test_umap_states_that_labels_are_derived_and_cells_sampled(scripts):
    describe = scripts("figures/umaps.py").describe
    assert "30 of 40 test cells" in describe(40, 30, "0", "published")[0]
    assert describe(40, 40, "0", "derived: clusters")[1] == "Cell types are not published but derived: clusters."


# ---- data sets -------------------------------------------------------------------------


def test_datasets_table_states_source_and_size(scripts, display, tmp_path, tiny_mdata, solution):
    for adata in tiny_mdata.mod.values():
        adata.uns = {}
    lost = "rna: 2 of 62 cells lack another modality and are dropped"
    tiny_mdata.uns = {"dataset": "pbmc_cite", "source": "a wheel", "sha256": "abc", "dropped": lost}
    tiny_mdata.write(tmp_path / "dataset.h5mu")
    contracts.write_solution(solution, tmp_path / "solution.h5ad")
    files = [tmp_path / "dataset.h5mu"], [tmp_path / "solution.h5ad"]
    scripts("figures/datasets.py").main(display, tmp_path / "datasets.tsv", *files)
    row = tables.read_table(tmp_path / "datasets.tsv", ["Source"]).iloc[0]
    assert row["Cells"] == "60" and row["Features"] == "40 rna, 12 adt"
    assert row["Splits"] == "donors: 80 training and 40 test cells, labels published"
    assert row["Source"].startswith("a wheel GSE161918") and row["SHA-256"] == "abc" and row["Licence"]
    assert row["Notes"].endswith(lost)


def test_broken_data_set_is_one_clear_line(tmp_path):
    (tmp_path / "dataset.h5mu").write_bytes(b"not HDF5")
    with pytest.raises(BenchmarkError, match="dataset.h5mu: cannot be read"):
        tables.read_facts(tmp_path / "dataset.h5mu")


def test_datasets_table_may_have_no_data_sets(scripts, display, tmp_path):
    """As after a run in which no data set could be prepared."""
    scripts("figures/datasets.py").main(display, tmp_path / "datasets.tsv")
    assert len(pd.read_csv(tmp_path / "datasets.tsv", sep="\t")) == 0
