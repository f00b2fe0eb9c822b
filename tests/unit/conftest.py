"""Fixtures for the tests of figures."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from tidy import check_figure

from clue.benchmark.program import run_program


@pytest.fixture(scope="session")
def display(project):
    """The project's own labels and colours."""
    from clue.benchmark.report.style import Display

    return Display(project / "config" / "display.yaml")


@pytest.fixture
def figure_style() -> Iterator[None]:
    """Draw in the style of the programs, and close figures that a test did not save."""
    import matplotlib.pyplot as plt

    from clue.benchmark.report import style

    style.apply()
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def references(project) -> dict[str, Path]:
    """The files of published scores, by name."""
    return {path.stem: path for path in sorted((project / "config/reference").glob("*.tsv")) if path.stem != "ablation"}


@pytest.fixture(scope="session")
def published(references) -> pd.DataFrame:
    """All published scores."""
    from clue.benchmark.report.reference import read_published

    return read_published(references.values())


@pytest.fixture
def draw(scripts, project, tmp_path) -> Callable[..., pd.DataFrame]:
    """A function that runs a figure's program on tables, checks the figure, and returns the table it writes."""
    from clue.benchmark.report import tables

    def run(name: str, *arguments, **inputs: pd.DataFrame) -> pd.DataFrame:
        given = [*map(str, arguments), "--display", f"{project}/config/display.yaml"]
        for option, table in inputs.items():
            tables.write_table(table, tmp_path / f"{option}.tsv")
            given += [f"--{option}", f"{tmp_path}/{option}.tsv"]
        given += ["--figure", f"{tmp_path}/{name}.png", "--table", f"{tmp_path}/{name}_table.tsv"]
        run_program(scripts(f"figures/{name}.py").main, given)
        check_figure(tmp_path / f"{name}.png")
        return pd.read_csv(tmp_path / f"{name}_table.tsv", sep="\t", keep_default_na=False, na_values={"overall": [""]})

    return run
