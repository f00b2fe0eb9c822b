"""A run's log becomes a progress bar, descriptions of jobs, and failures."""

import pytest

from clue.benchmark.config import Benchmark
from clue.benchmark.running.progress import Progress, job_label

RUN = {"run": "test", "datasets": ["pbmc_cite/donors"], "methods": ["random"], "seeds": [1]}
JOB = """
localrule random:
    input: a, b
    jobid: 7
    wildcards: dataset=pbmc_cite, split=donors, variant=default, seed=1
    resources: tmpdir=/tmp
[Thu Nov 26 22:17:23 2026]
"""
STATS = """
Job stats:
job               count
--------------  -------
random                1
score_rna_adt         2
umap                  1
collect               1
total                 5
"""
IN_ALL = "8 steps in all\n"
DONE = "Finished jobid: 7 (Rule: random)\n1 of 5 steps (20%) done\n"
FAILURE = """
Error in rule random:
    jobid: 7
    log: random.log (check log file(s) for error details)
"""


@pytest.fixture
def benchmark(project):
    return Benchmark(RUN, project)


@pytest.fixture
def progress(benchmark, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Progress(benchmark, terminal=False)


def read(progress, text):
    for line in text.splitlines(keepends=True):
        progress.read(line)


def test_job_is_at_work_until_it_has_finished(progress, capsys):
    read(progress, STATS + IN_ALL + JOB)
    assert progress.at_work == {"7": "Random, PBMC CITE-seq donors, seed 1"}
    read(progress, DONE)
    assert not progress.at_work
    read(progress, JOB)
    line = "at work: Random, PBMC CITE-seq donors, seed 1\n"
    assert capsys.readouterr().out == f"4 of 8 steps done; {line}5 of 8 steps done; {line}", "earlier steps count"


def test_second_plan_after_failures_is_counted(progress, capsys):
    read(progress, STATS + IN_ALL + DONE + STATS.replace("5", "2") + JOB)
    assert capsys.readouterr().out.startswith("7 of 8 steps done; ")


def test_failure_is_reported_at_once(progress, capsys, tmp_path):
    (tmp_path / "random.log").write_text("Traceback:\nValueError: no luck\n")
    read(progress, JOB + FAILURE)
    line = "failed: Random, PBMC CITE-seq donors, seed 1: ValueError: no luck (log: random.log)\n"
    assert capsys.readouterr().out.endswith(line) and progress.n_failed == 1 and not progress.at_work
    read(progress, "Trying to restart job 7.\n")
    assert capsys.readouterr().out == "tried again: Random, PBMC CITE-seq donors, seed 1\n"


def test_fatal_error_is_kept(progress):
    read(progress, 'Building DAG of jobs...\nWorkflowError in file "rules/common.smk", line 3:\nno GPU was found\n')
    assert progress.wrong[1:] == ["no GPU was found"] and progress.n_failed == 0


def test_bar_counts_steps(benchmark, capsys):
    progress = Progress(benchmark, terminal=True)
    read(progress, STATS + IN_ALL + DONE + JOB)
    progress.close()
    shown = capsys.readouterr()
    assert "5 of 8 steps" in shown.err and "Random, PBMC CITE-seq donors, seed 1" in shown.err and not shown.out


@pytest.mark.parametrize(
    ("rule", "wildcards", "label"),
    [
        ("score_rna_adt", {"method": "random", "variant": "small", "seed": "1"}, "scores of Random (small), seed 1"),
        ("integration_scores", {"dataset": "pbmc_cite", "split": "donors"}, "integration scores, PBMC CITE-seq donors"),
        ("collect", {}, "collect"),
    ],
)
def test_job_descriptions(benchmark, rule, wildcards, label):
    assert job_label(benchmark, rule, wildcards) == label
