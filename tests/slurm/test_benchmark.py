"""The whole benchmark through Slurm, on two nodes and two partitions."""

import re

import pytest
from slurm_project import SITE, slurm


@pytest.fixture
def finished(fresh, project):
    """A project whose run has succeeded, with CLUE on a GPU node."""
    project.draw_only("comparison")
    process = project.snakemake("--set-resources", "clue:gpu=1")
    assert process.wait(1200) == 0, project.output()
    return project


def test_benchmark_on_two_nodes_and_two_partitions(finished):
    table = finished.table()
    assert set(table["method"]) == {"random", "cca", "clue", "oracle"} and set(table["status"]) == {"ok"}
    assert finished.path("results/test/figures/comparison.png").exists()
    nodes = {comment.split("_wildcards")[0]: node for comment, node, _ in finished.jobs()}
    assert nodes.pop("rule_clue") == "gpu1"
    assert set(nodes.values()) == {"cpu1"}
    rules = ("random", "cca", "features", "task_rna_atac", "score_rna_atac", "collect")
    assert {f"rule_{name}" for name in rules} <= set(nodes)
    assert finished.path("results/test/report.html").exists()
    assert "rule_html_report" not in nodes, "small rules run where Snakemake does"
    assert {state for _, _, state in finished.jobs()} == {"COMPLETED"}

    n_jobs = len(finished.jobs())
    process = finished.snakemake()
    assert process.wait(300) == 0 and "Nothing to be done" in finished.output()
    assert len(finished.jobs()) == n_jobs

    status, output = finished.call("scripts/status.py", "--config", "config/test.yaml")
    assert status == 0 and re.search(r"^(\d+) done of \1 steps$", output, re.MULTILINE), output


def test_results_in_another_folder(project, tmp_path):
    """The site file comes from the checkout, where nothing is written."""
    scratch = type(project)(tmp_path / "scratch")
    scratch.folder.mkdir()
    scratch.environment = project.environment
    words = ["--snakefile", project.path("Snakefile"), "--profile", project.path("slurm"), *project.options[2:]]
    words[words.index("config/test.yaml")] = project.path("config/test.yaml")
    status, output = scratch.call("-m", "snakemake", *words, "--", "results/prepared/simulated.h5mu")
    assert status == 0 and scratch.path("results/prepared/simulated.h5mu").exists(), output
    assert [state for _, _, state in scratch.jobs()] == ["COMPLETED"] and not project.jobs()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"account": "nobody"}, "Slurm refuses a job with --account=nobody --partition=cpu: Invalid account"),
        ({"partitions": {"long": {}}}, "invalid partition specified: long"),
        ({"acount": "bench"}, "slurm-site.yaml: top level: unknown key 'acount'; did you mean 'account'?"),
        ({"partitions": ["cpu"]}, "slurm-site.yaml: partitions: ['cpu'] is not a map of keys"),
    ],
)
def test_wrong_site_file_is_reported_before_submission(project, change, line):
    project.write("slurm-site.yaml", SITE | change)
    status, output = project.call("-m", "snakemake", *project.options)
    assert status == 1 and output.splitlines()[-1].startswith("error: ") and line in output, output
    assert not project.jobs()


def test_refused_requests_are_reported_before_submission(project):
    """No node has that much memory, but the site file sets no limit."""
    project.write("slurm-site.yaml", SITE | {"partitions": {"cpu": {}}})
    project.change("config/methods/cca.yaml", resources={"mem_gb": 900_000})
    status, output = project.call("-m", "snakemake", *project.options)
    lines = [line for line in output.splitlines() if line.startswith("cca: Slurm refuses ")]
    assert status == 1 and len(lines) == 1 and "random: Slurm refuses" not in output, output
    assert "mem_mb=900000000 runtime=60 gpu=0 cores=1 -p cpu" in lines[0], lines
    assert "change resources in config/methods/cca.yaml" in lines[0], lines
    assert not project.jobs()


def test_run_with_a_failed_method_makes_its_table(project):
    """As on one machine: the table, the reason and a non-zero exit status; the error is not retried."""
    project.add_method("broken", body="raise ValueError('no luck')")
    project.configure(methods=["broken", "random"])
    project.drop_figures()
    process = project.snakemake()
    assert process.wait(900) == 1, project.output()
    assert "failed   broken simulated/random20/default/0: ValueError: no luck" in project.output()
    assert set(project.table().set_index("method").loc["random", "status"]) == {"ok"}
    assert project.table().set_index("method").loc["broken", "reason"] == "ValueError: no luck"
    rules = [name.split("_wildcards")[0] for name, _, _ in project.jobs()]
    assert rules.count("rule_broken") == 1 and rules.count("rule_collect") == 1, rules


def test_missing_site_file_is_reported(project):
    """Without a default partition every job must name one, hence the file."""
    project.path("slurm-site.yaml").unlink()
    slurm("scontrol", "update", "partitionname=cpu", "default=no")
    try:
        status, output = project.call("-m", "snakemake", *project.options)
    finally:
        slurm("scontrol", "update", "partitionname=cpu", "default=yes")
    assert status != 0 and "copy profiles/slurm/site.example.yaml to slurm-site.yaml" in output, output
    assert not project.jobs()
