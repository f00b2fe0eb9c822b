"""The pictures of the documents show what is recorded, and their letters stay inside."""

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from clue.benchmark.report import style, tables


@pytest.fixture(scope="module")
def program(scripts):
    return scripts("drawings.py")


@pytest.fixture
def display(project, monkeypatch):
    monkeypatch.chdir(project)
    style.apply()
    plt.rcParams["text.parse_math"] = True  # as the program does
    return style.Display("config/display.yaml")


def test_the_picture_of_the_results_is_of_the_recorded_scores(program, project, display):
    with Image.open(project / "docs" / "pictures" / "results.png") as picture:
        assert picture.text["Source"] == program.fingerprint(program.recorded(display)), "run `make tables`"


def test_every_recorded_score_is_a_dot(program, display):
    rows = tables.read_table("docs/results/baselines.tsv", ["method"], numeric=["match_score"])
    scores = program.recorded(display)
    assert set(rows["method"][rows["match_score"].notna()]) <= set(scores["method"])
    figure = program.results(scores, display)
    dots = [len(line.get_xdata()) for axes in figure.axes for line in axes.lines if line.get_marker() == "o"]
    assert sum(dots) == 2 * len(scores)
    plt.close(figure)


def test_a_later_run_adds_only_what_the_earlier_lacks(program, display, tmp_path, monkeypatch):
    header = "dataset\tsplit\tmethod\tvariant\tn\tmatch_score\tmatch_score_sd\tfoscttm\tfoscttm_sd\n"
    first, second = "a\tb\tcca\tdefault\t3\t0.5\t\t0.1\t\n", "a\tb\tcca\tdefault\t2\t0.4\t\t0.2\t\n"
    (tmp_path / "baselines.tsv").write_text(header + first + "a\tb\trandom\tdefault\t0\t\t\t\t\n")
    other = second.replace("b\tcca", "other\tcca")  # a split that the run with all methods does not have
    (tmp_path / "quick.tsv").write_text(header + second + second.replace("cca", "ridge") + other)
    monkeypatch.setattr(program, "RESULTS", tmp_path)
    scores = program.recorded(display)
    assert scores[["method", "match_score"]].to_numpy().tolist() == [["cca", 0.5], ["ridge", 0.4]]


def test_the_picture_of_the_data_sets_is_of_their_files(program, project, display):
    sizes = program.data_sets()
    assert f">{program.fingerprint(sizes)}<" in (project / "docs/pictures/datasets.svg").read_text(), (
        "run `make tables`"
    )
    assert len(sizes) == len(list((project / "config" / "datasets").glob("*.yaml")))
    figure = program.datasets(sizes, display)
    shown = [text.get_text() for axes in figure.axes for text in [*axes.texts, *axes.get_yticklabels()]]
    assert set(sizes["label"]) | set(sizes["source"]) <= set(shown)
    plt.close(figure)


@pytest.mark.parametrize("name", ["model", "workflow"])
def test_no_words_leave_the_picture(program, display, name):
    plt.rcParams["font.size"] = 10
    figure = getattr(program, name)(display)
    figure.canvas.draw()
    page = figure.bbox
    words = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(words) > 10
    for text in words:
        place = text.get_window_extent()
        assert page.x0 <= place.x0 and place.x1 <= page.x1 and page.y0 <= place.y0 and place.y1 <= page.y1, text
    plt.close(figure)
