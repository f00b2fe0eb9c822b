"""The pictures of the documents show what is recorded."""

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from clue.benchmark.report import style, tables


@pytest.fixture(scope="module")
def program(document_programs):
    return document_programs("pictures.py")


@pytest.fixture
def display(program, project, monkeypatch):
    monkeypatch.chdir(project)
    program.apply_style()
    yield style.Display("config/display.yaml")
    plt.close("all")


def test_picture_of_the_results_shows_every_recorded_score(program, project, display):
    scores = program.recorded(display)
    with Image.open(project / "docs" / "pictures" / "results.png") as picture:
        assert picture.text["Source"] == program.fingerprint(scores), "run `make tables`"
    rows = tables.read_table("docs/results/baselines.tsv", ["method"], numeric=["match_score"])
    assert set(rows["method"][rows["match_score"].notna()]) <= set(scores["method"])
    lines = [line for axes in program.results(scores, display).axes for line in axes.lines]
    points = [line.get_xdata() for line in lines if line.get_marker() == "o"]
    assert sum(len(x) for x in points if x[0] == x[0]) == 2 * len(scores)


def test_later_run_adds_only_what_the_earlier_lacks(program, display, tmp_path, monkeypatch):
    header = "dataset\tsplit\tmethod\tvariant\tn\tmatch_score\tmatch_score_sd\tfoscttm\tfoscttm_sd\n"
    first, second = "a\tb\tcca\tdefault\t3\t0.5\t\t0.1\t\n", "a\tb\tcca\tdefault\t2\t0.4\t\t0.2\t\n"
    (tmp_path / "baselines.tsv").write_text(header + first + "a\tb\trandom\tdefault\t0\t\t\t\t\n")
    other = second.replace("b\tcca", "other\tcca")  # a split that is not in the run with all methods
    (tmp_path / "quick.tsv").write_text(header + second + second.replace("cca", "ridge") + other)
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    scores = program.recorded(display)
    assert scores[["method", "match_score"]].to_numpy().tolist() == [["cca", 0.5], ["ridge", 0.4]]


def test_picture_of_the_data_sets_is_up_to_date(program, project, display):
    sizes = program.data_sets()
    picture = (project / "docs/pictures/datasets.svg").read_text()
    assert f">{program.fingerprint(sizes)}<" in picture, "run `make tables`"
    assert len(sizes) == len(list((project / "config" / "datasets").glob("*.yaml")))
    figure = program.datasets(sizes, display)
    shown = {text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]}
    assert {*sizes["label"], *sizes["source"], *sizes["cells"].map("{:,}".format)} <= shown
