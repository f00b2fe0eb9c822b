"""Command lines are made from the signatures of programs."""

import subprocess
import sys

import pytest

from clue.benchmark.program import command_line, imported

PROGRAMS = ["scripts", "scripts/figures", "docs/make", "tools"]


def main(
    config: dict, points: list[int], folder: tuple[str, ...] = (), max_cells: int | None = None, dry: bool = False
):
    """Run the program.

    Parameters
    ----------
    points, folder
        What there is
        to say.
    max_cells
        At most.
    dry
        Do nothing.
    """


def test_parameters_are_options(capsys):
    parse = command_line(main).parse_args
    given = parse(["--config", '{"a": [1]}', *"--points 1 2 --max-cells 3 --dry --folder x y".split()])
    assert vars(given) == {"config": {"a": [1]}, "points": [1, 2], "folder": ["x", "y"], "max_cells": 3, "dry": True}
    defaults = {"folder": (), "max_cells": None, "dry": False}
    assert vars(parse("--config {} --points 1".split())) == {"config": {}, "points": [1]} | defaults
    for wrong in ("--config {}", "--config { --points 1", "--config {} --points b", "--config {} --points 1 --other"):
        with pytest.raises(SystemExit):
            parse(wrong.split())
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Command lines are made" in shown and "What there is to say" in shown


@pytest.mark.parametrize("folder", PROGRAMS)
def test_every_program_explains_its_options(folder, project, load_program):
    for path in sorted((project / folder).glob("*.py")):
        if "run_program(main)" in path.read_text():
            program = load_program(f"{folder}/{path.name}")
            assert command_line(program.main).format_help()


def test_imports_of_a_method(project):
    """A change to any of these files reruns the method."""
    cobolt = imported("scripts/methods/cobolt_authors.py", project)
    assert cobolt >= {"scripts/methods/cobolt_native.py", "clue/benchmark/methods/validation.py", "clue/matching.py"}
    assert cobolt >= {"clue/checks.py", "clue/sparse.py", "clue/disk.py"} and "clue/model.py" not in cobolt
    assert "clue/benchmark/methods/prediction.py" in imported("scripts/methods/multivi.py", project)
    clue = imported("scripts/methods/clue_model.py", project)
    assert clue >= {str(path.relative_to(project)) for path in project.glob("clue/*.py")}
    for machinery in ("methods/run.py", "contracts.py", "errors.py"):
        assert f"clue/benchmark/{machinery}" not in cobolt | clue


@pytest.mark.parametrize("lines", [1, 100_000])
def test_closed_output_ends_the_program_quietly(lines):
    program = f"from clue.benchmark.errors import exit_on_error; exit_on_error(lambda: print('x\\n' * {lines}))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
