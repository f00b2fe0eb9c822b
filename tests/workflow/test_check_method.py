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
    fresh.change("config/methods/mine.yaml", settings="none")
    fresh.environment["CHECK_METHOD"] = "mine"
    words = ["tests/unit/test_method_programs.py", "-p", "no:cacheprovider", "--tb=short", "-k", "embeds"]
    status, output = fresh.call("-m", "pytest", *words)
    assert status == 1 and reason in output, output
