"""Runs outside the checkout: data and results are in the working directory, programs and settings are not."""

import pandas as pd
import pytest

MODULE = """
configfile: "{checkout}/config/test.yaml"


module clue:
    snakefile:
        "{checkout}/Snakefile"
    config:
        config


use rule * from clue as clue_*


rule mine:
    default_target: True
    input:
        "results/test/metrics.tsv",
"""


@pytest.fixture
def scratch(tmp_path):
    """An empty folder."""
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def files(folder):
    """Return the files below a folder, apart from Python's caches."""
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def call(project, folder, *words):
    """Run Snakemake in a folder; return its exit status and everything it printed."""
    elsewhere = type(project)(folder)
    elsewhere.environment = project.environment
    return elsewhere.call("-m", "snakemake", "--cores", "1", *words)


def test_results_are_in_the_working_directory(fresh, scratch):
    fresh.configure(methods=["random"])
    before = files(fresh.folder)
    snakefile, config = fresh.path("Snakefile"), fresh.path("config/test.yaml")
    targets = ["table", "results/test/tables/datasets.tsv", "results/test/tables/paper.tsv"]
    status, output = call(fresh, scratch, "--snakefile", snakefile, "--configfile", config, "--", *targets)
    assert status == 0, output
    assert set(pd.read_csv(scratch / "results/test/metrics.tsv", sep="\t")["status"]) == {"ok"}
    assert {path.name for path in scratch.iterdir()} == {"results", "logs", ".snakemake"}
    assert files(fresh.folder) == before, "nothing is written into the checkout"

    # Started from the checkout, the same folder has nothing left to do.
    status, output = call(fresh, fresh.folder, "--directory", scratch, "--configfile", config, "--", "table")
    assert status == 0 and "Nothing to be done" in output, output


def test_other_programs_work_there_too(fresh, scratch):
    config = fresh.path("config/test.yaml")
    elsewhere = type(fresh)(scratch)
    elsewhere.environment = fresh.environment
    status, output = elsewhere.call(fresh.path("scripts/status.py"), "--config", config)
    assert status == 0 and "run test: Snakemake is not at work" in output, output
    fresh.configure(methods=["randm"])
    status, output = elsewhere.call(fresh.path("scripts/run.py"), "--config", config, "--cores", "1")
    assert status == 1 and "unknown method 'randm'; did you mean 'random'?" in output


def test_default_configuration_comes_from_the_checkout(fresh, scratch):
    fresh.path("config/test.yaml").rename(fresh.path("config/config.yaml"))
    status, output = call(fresh, scratch, "--snakefile", fresh.path("Snakefile"), "--dry-run", "--quiet", "rules")
    assert status == 0 and "random" in output, output


def test_checkout_with_a_space_works_only_as_the_working_directory(fresh, scratch):
    folder = fresh.folder.rename(fresh.folder.with_name("my project"))
    project = type(fresh)(folder)
    words = ["--dry-run", "--quiet", "all", "--configfile", folder / "config/test.yaml"]
    status, output = call(project, folder, *words)
    assert status == 0, output
    status, output = call(project, scratch, *words, "--snakefile", folder / "Snakefile")
    assert status == 1 and f"{folder}: has a space, so that it works as the working directory only" in output, output


def test_another_workflow_uses_this_one_as_a_module(fresh, scratch):
    (scratch / "Snakefile").write_text(MODULE.format(checkout=fresh.folder))
    status, output = call(fresh, scratch, "--dry-run", "--quiet", "rules")
    assert status == 0, output
    rules = {line.split()[0] for line in output.splitlines() if line.startswith("clue_")}
    assert rules >= {f"clue_{name}" for name in "prepare task_rna_atac random cca score_rna_atac collect".split()}
    status, output = call(fresh, scratch, "--", "results/prepared/simulated.h5mu")
    assert status == 0 and (scratch / "results/prepared/simulated.h5mu").exists(), output
