"""Snakemake's workflow catalogue finds what it looks for, and what it says of this workflow is true.

What it looks for: https://snakemake.github.io/snakemake-workflow-catalog, and its program generate-catalog.py.
"""

import re
import shlex

import pytest
import yaml

DEPLOYMENTS = {"conda", "apptainer", "singularity", "apptainer+conda", "singularity+conda"}


@pytest.fixture(scope="module")
def usage(project):
    """The contents of the file for the catalogue."""
    content = yaml.safe_load((project / ".snakemake-workflow-catalog.yml").read_text())
    assert content.keys() == {"usage"}
    return content["usage"]


def test_workflow_is_where_the_catalogue_looks(project):
    assert not (project / "workflow").exists() and (project / "Snakefile").is_file()
    rules = [path for path in (project / "rules").iterdir() if path.is_file()]
    assert rules and all(path.suffix == ".smk" for path in rules)
    assert (project / "config" / "config.yaml").is_file() and (project / "config" / "README.md").is_file()
    readme = (project / "README.md").read_text().lower()
    assert "snakemake" in readme and "workflow" in readme


def test_file_has_the_keys_that_the_catalogue_reads(usage):
    assert usage.keys() == {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["mandatory-flags"].keys() == {"desc", "flags"}
    deployment = usage["software-stack-deployment"]
    assert deployment.keys() <= DEPLOYMENTS and set(map(type, deployment.values())) == {bool}
    assert any(deployment.values()), "the catalogue needs at least one"


def test_flags_name_files_that_exist(project, usage):
    assert all(word.startswith("-") for word in shlex.split(usage["mandatory-flags"]["flags"]))
    for name in re.findall(r"config/\w+\.yaml", usage["mandatory-flags"]["desc"]):
        assert (project / name).is_file()


def test_conda_is_promised_only_if_every_rule_has_an_environment(project, usage):
    """Rules that run the project's Python use envs/python.yaml or the method's own environment."""
    assert usage["software-stack-deployment"]["conda"]
    for path in (project / "rules").rglob("*.smk"):
        for rule in re.split(r"^(?:    )*rule ", path.read_text(), flags=re.MULTILINE)[1:]:
            if re.search(r"^\s*(shell|script):", rule, re.MULTILINE):
                assert re.search(r"^\s*conda:", rule, re.MULTILINE), f"{path.name}: rule {rule.split(':')[0]}"


def test_snakemake_report_is_promised_only_if_rules_fill_it(project, usage):
    given = any("report(" in path.read_text() for path in (project / "rules").rglob("*.smk"))
    assert usage["report"] == given
