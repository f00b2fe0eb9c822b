"""Figures beyond the paper: known answers, and tables of every shape."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.legend import Legend
from matplotlib.text import Text
from tidy import NAN, NO_INTERVALS, metrics, resources

from clue.benchmark.report import style
from scripts import probe

pytestmark = pytest.mark.usefixtures("figure_style")


# ---- paired fraction -----------------------------------------------------------------------------


PUBLISHED = ("--published", "config/reference/rebenchmarks.tsv", "config/reference/scmmib.tsv")


@pytest.fixture
def pairing(draw, project, monkeypatch):
    """A function that draws the scores against paired cells and returns the table."""
    monkeypatch.chdir(project)
    return lambda table: draw("pairing", *PUBLISHED, metrics=table)


def test_pairing_connects_splits_with_the_same_test_cells(pairing):
    places = [("simulated", "random20", 0.4), ("simulated", "paired20", 0.2), ("pbmc_multiome", "random30", 0.3)]
    table = metrics(*[(d, s, "clue", "default", i, v + i / 10, 0.1) for d, s, v in places for i in range(3)])
    found = pairing(table).query("metric == 'match_score'").set_index("paired")
    assert sorted(found.index) == [20, 100] and set(found["dataset"]) == {"simulated"} and set(found["unit"]) == {"%"}
    assert found.loc[20, "mean"] == pytest.approx(0.3) and found.loc[100, "n"] == 3


def test_pairing_shows_published_curves_in_their_metrics(pairing, published, scripts, display, project):
    """Splits by number of cells; those of two batches, and a repeated draw, belong to no curve."""
    splits = ["scmmib_3k_paired_5k_test", "scmmib_20k_paired_5k_test", "scmmib_c5k_c5k"]
    table = metrics(*[("share_skin", split, "multivi", "default", 0, 0.1, 0.2) for split in splits])
    table["metric"] = table["metric"].map({"match_score": "top1_euclidean", "foscttm": "foscttm_euclidean_strict"})
    found = pairing(table)
    assert set(found["metric"]) == {"foscttm_euclidean_strict", "top1_euclidean"}
    assert sorted(set(found["paired"])) == [3000, 20000] and set(found["unit"]) == {"cells"}
    program, scores = scripts("figures/pairing.py"), published.query("direction == 'both'")
    figure = program.draw(program.curves(table, scores, display, project), scores, display)
    top1 = figure.axes[1]
    lines = [line.get_xydata().tolist() for line in top1.lines if len(line.get_xdata())]
    assert [[3000, 0.0135], [20000, 0.0425]] in lines and [[3000, 0.1], [20000, 0.1]] in lines
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"MultiVI", "MultiVI (SCMMIB)"} <= set(legend) and "Top-1" in top1.get_ylabel()


@pytest.mark.parametrize(
    ("dataset", "splits"),
    [
        ("pbmc_cite", ["donors", "paired10", "paired30"]),
        ("snare_cortex", ["cells300", "cells900", "cells2700"]),
        ("bmmc_cite", [f"scmmib_{n}k_paired_5k_test" for n in (3, 5, 10, 20)]),
    ],
)
def test_splits_of_a_curve_have_the_same_test_cells(scripts, project, dataset, splits):
    program = scripts("figures/pairing.py")
    table = pd.DataFrame({"dataset": dataset, "split": splits})
    found = program.splits_of_curves(table, project)
    assert found["curve"].nunique() == 1 and list(found["split"]) == splits


# ---- learning curves -----------------------------------------------------------------------------


def write_run(folder: Path, history: list[dict] | None) -> None:
    """Write the report of a CLUE job on split ``s`` of data set ``a``."""
    job = folder / "a" / "s" / "clue" / "default" / "seed-0"
    job.mkdir(parents=True)
    (job / "run.json").write_text(json.dumps({"info": {"history": history}}))


RAN = resources(("a", "s", "clue", "default", 0, 10.0, 100.0, NAN), ("a", "s", "clue", "no_mse", 0, 9.0, 100.0, NAN))


def test_stages_of_a_history_are_consecutive(draw, scripts, tmp_path):
    history = [{"stage": s, "step": t, "epoch": 1, "loss": 1.0, "cross": NAN} for s in (1, 2) for t in (0, 50)]
    write_run(tmp_path, history)
    found = draw("learning", "--results", tmp_path, resources=RAN)
    found = scripts("figures/learning.py").continued(found)
    assert found["step"].tolist() == [0, 50, 50, 100] and found["begin"].tolist() == [0, 0, 50, 50]


@pytest.mark.parametrize("history", [None, []])
def test_method_without_a_history_is_not_an_error(draw, tmp_path, history):
    write_run(tmp_path, history)
    assert draw("learning", "--results", tmp_path, resources=RAN).empty


def test_broken_history_is_left_out_and_named(draw, tmp_path, capsys):
    write_run(tmp_path, [{"loss": 1.0}])
    assert draw("learning", "--results", tmp_path, resources=RAN).empty
    assert "run.json: left out, since it cannot be read" in capsys.readouterr().out


# ---- probes, bio-conservation --------------------------------------------------------------------


def test_probes_are_averaged_over_factors_before_seeds(draw):
    rows = [
        ("simulated", "random20", "clue", "default", seed, "shared", factor, "rna", value)
        for seed, values in enumerate(((0.2, 0.4), (0.6, 0.8)))
        for factor, value in enumerate(values)
    ]
    columns = probe.COLUMNS
    row = draw("factors", probes=pd.DataFrame(rows, columns=columns)).iloc[0]
    assert (row["n"], row["mean"]) == (2, 0.5) and row["sd"] == pytest.approx(0.4 / 2**0.5, abs=1e-5)
    assert draw("factors", probes=pd.DataFrame(columns=columns)).empty


ODD = ["a$\\frac$b", "_starts_low", "100 % CD4", "T" * 200, "日本語", "two\nlines", "", "תא", "<b>&amp;"]
ODD.append("\x1b[31mtab\there\x00")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_any_kind_are_drawn_as_text(scripts, display, tmp_path):
    """Methods, data sets and splits in the comparison; cell types in the UMAPs."""
    jobs = [("$T_" * 40, "s_%", name, "default", seed, 0.1 + seed, 0.1) for name in ODD for seed in range(2)]
    comparison = scripts("figures/comparison.py").draw(metrics(*jobs), NO_INTERVALS, display)
    points = pd.DataFrame({"x": range(20), "y": range(20), "modality": ["rna", "adt"] * 10, "cell_type": ODD * 2})
    points = points.assign(method="clue", variant="default")
    umaps = scripts("figures/umaps.py").draw(points, "$T_" * 80, False, [], 0, display)
    for figure in (comparison, umaps):
        style.save(figure, tmp_path / "odd.png")
        figure_texts = [text.get_text().replace("_", " ") for text in figure.findobj(Text)]
        for name in ("a$\\frac$b", "starts low", "100 % CD4", "T…T", "日本語", "two lines", "<b>&amp;", "tab here"):
            assert any(name in text for text in figure_texts), name
        assert all(len(text) < 90 for text in figure_texts if "$T " in text)


def test_legend_of_many_types_leaves_no_blank_page(scripts, display):
    """45 types, as in the competition's CITE-seq data."""
    types = [f"Type {i}" for i in range(45)]
    points = pd.DataFrame({"x": range(90), "y": range(90), "modality": ["rna", "adt"] * 45, "cell_type": types * 2})
    points = points.assign(method="clue", variant="default")
    figure = scripts("figures/umaps.py").draw(points, "title", False, [], 0, display)
    figure.canvas.draw()
    # the legend ends in the lowest sixth of the page
    assert min(legend.get_window_extent().y0 for legend in figure.findobj(Legend)) < figure.bbox.height / 6


def test_plane_is_the_mean_of_each_group(scripts, draw, project):
    program = scripts("figures/integration.py")
    job = ("a", "s", "clue", "default", 0)
    values = [("bio", "nmi", 0.2), ("bio", "ari", 0.4), ("mixing", "ilisi", 0.9)]
    table = pd.DataFrame([(*job, *value, 100, "published") for value in values], columns=program.COLUMNS)
    assert program.plane(table)[["bio", "mixing"]].to_numpy().tolist() == [pytest.approx([0.3, 0.9])]
    assert len(draw("integration", scores=table)) == 3
    table.loc[0, "value"] = NAN
    assert np.isnan(program.plane(table)["bio"][0])


@pytest.mark.slow
def test_integration_ranks_embeddings_correctly(scripts):
    """Types apart and modalities mixed; modalities apart; no information."""
    rng = np.random.default_rng(0)
    types, modalities = np.tile(list("ABC"), 80), np.repeat(["rna", "adt"], 120)
    noise = rng.normal(0, 0.05, (240, 6))
    by_type = noise + np.pad(np.eye(3)[np.tile(range(3), 80)], ((0, 0), (0, 3)))
    by_modality = noise + np.pad(np.eye(2)[np.repeat(range(2), 120)], ((0, 0), (4, 0)))
    scores = scripts("integration.py").scores
    good, split, nothing = (scores(x, types, modalities, seed=0) for x in (by_type, by_modality, noise))
    every = [item for found in (good, split, nothing) for item in found.items()]
    outside = [(key, value) for key, value in every if not -0.05 <= value <= 1.05]
    assert not outside, "chance is at 0, so noise falls a little below"
    alone = scores(noise[:20], np.tile(np.arange(10), 2), np.repeat(["rna", "adt"], 10), seed=0)
    assert np.isnan(alone[("mixing", "silhouette_modality")]), "each type has one cell"
    assert good[("bio", "nmi")] > 0.95 > 0.2 > nothing[("bio", "nmi")]
    assert good[("mixing", "ilisi")] > 0.8 > 0.2 > split[("mixing", "ilisi")]
