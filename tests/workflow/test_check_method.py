"""`make check-method` tells a method's author what the table would say, and what no table shows."""

import shutil

import pytest

FINE = "pass"
FILTERS = "[task.test[name]._inplace_subset_obs(slice(1, None)) for name in task.test]"
# A relative path, such as the embedding's, would then point into another folder.
MOVES = "import os; os.chdir('/'); (task.checkpoints / 'last').write_text('state')"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (FILTERS, "has filtered, reordered or renamed the cells of task.test['rna']"),
        # This method's rows are random: copies of a cell lie apart, whatever the folder.
        (MOVES, "are copies, but apart; is the order kept?"),
        (FINE, "are copies, but apart; is the order kept?"),
    ],
    ids=["filters", "moves", "random rows"],
)
def test_mistake_in_a_method_is_one_line(fresh, project, body, reason):
    shutil.copytree(project / "tests/unit", fresh.path("tests/unit"), ignore=shutil.ignore_patterns("__pycache__"))
    fresh.add_method("mine", body=body)
    fresh.change("config/methods/mine.yaml", settings="none", params={"transductive": False})
    status, output = check(fresh, "mine")
    assert status == 1 and reason in output, output


def check(fresh, name):
    """Run the check of a method; return its exit status and what it printed."""
    fresh.environment["CHECK_METHOD"] = name
    words = ["tests/unit/test_method_programs.py", "-p", "no:cacheprovider", "--tb=short", "-k", "embeds"]
    return fresh.call("-m", "pytest", *words)


def test_method_that_cannot_be_checked_is_one_line(fresh, project):
    shutil.copytree(project / "tests/unit", fresh.path("tests/unit"), ignore=shutil.ignore_patterns("__pycache__"))
    file = fresh.path("config/methods/mine.yaml")
    fresh.add_method("mine")
    plain = file.read_text()

    def line(text, name="mine"):
        file.write_text(text)
        fresh.environment["CHECK_METHOD"] = name
        status, output = fresh.call("tests/unit/test_method_programs.py")
        assert (status, output.count("\n")) == (1, 1), output
        return output

    where = "error: config/methods/mine.yaml: "
    assert line(plain).startswith(f"{where}params: say whether it trains on test cells")
    assert line(f"{plain}scripts: x\n").startswith(f"{where}top level: unknown key 'scripts'")
    assert line("label: {\n\tparams: 3\n").startswith(f"{where}not valid YAML: ")
    file.write_text(plain)
    fresh.change("config/methods/mine.yaml", params={"transductive": False}, requires={"python": ["nopackage"]})
    assert line(file.read_text()).startswith(f"{where}requires: no Python module nopackage")
    assert "names no script, so precomputed has a rule of its own" in line(plain, "precomputed")
    assert "unknown method 'nomethod'" in line(plain, "nomethod")
