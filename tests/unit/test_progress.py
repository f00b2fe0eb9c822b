"""A run's log becomes a bar, jobs in words, and failures."""

import pytest

from clue.benchmark.config import Benchmark
from clue.benchmark.running.progress import Progress, words

RUN = {"run": "test", "datasets": ["pbmc_cite/donors"], "methods": ["random"], "seeds": [1]}
JOB = """
localrule random:
    input: a, b
    jobid: 7
    wildcards: dataset=pbmc_cite, split=donors, variant=default, seed=1
    resources: tmpdir=/tmp
[Thu Nov 26 22:17:23 2026]
"""
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


def test_a_job_is_at_work_until_it_has_finished(progress, capsys):
    read(progress, JOB)
    assert progress.at_work == {"7": "Random, PBMC CITE-seq donors, seed 1"}
    read(progress, "Finished jobid: 7 (Rule: random)\n3 of 9 steps (33%) done\n")
    assert not progress.at_work
    read(progress, JOB)
    line = "at work: Random, PBMC CITE-seq donors, seed 1\n"
    assert capsys.readouterr().out == f"0 steps done; {line}3 of 9 steps done; {line}"


def test_a_failure_is_said_when_it_comes(progress, capsys, tmp_path):
    (tmp_path / "random.log").write_text("Traceback:\nValueError: no luck\n")
    read(progress, JOB + FAILURE)
    line = "failed: Random, PBMC CITE-seq donors, seed 1: ValueError: no luck (log: random.log)\n"
    assert capsys.readouterr().out.endswith(line) and progress.n_failed == 1 and not progress.at_work
    read(progress, "Trying to restart job 7.\n")
    assert capsys.readouterr().out == "tried again: Random, PBMC CITE-seq donors, seed 1\n"


def test_what_stops_everything_is_kept(progress):
    read(progress, 'Building DAG of jobs...\nWorkflowError in file "rules/common.smk", line 3:\nno GPU is seen\n')
    assert progress.wrong[1:] == ["no GPU is seen"] and progress.n_failed == 0


def test_the_bar_counts_steps(benchmark, capsys):
    progress = Progress(benchmark, terminal=True)
    read(progress, JOB + "3 of 9 steps (33%) done\n")
    progress.close()
    shown = capsys.readouterr()
    assert "3 of 9 steps" in shown.err and "Random, PBMC CITE-seq donors, seed 1" in shown.err and not shown.out


@pytest.mark.parametrize(
    ("rule", "wildcards", "said"),
    [
        ("score_rna_adt", {"method": "random", "variant": "small", "seed": "1"}, "scores of Random (small), seed 1"),
        ("integration_scores", {"dataset": "pbmc_cite", "split": "donors"}, "integration scores, PBMC CITE-seq donors"),
        ("collect", {}, "collect"),
    ],
)
def test_jobs_in_words(benchmark, rule, wildcards, said):
    assert words(benchmark, rule, wildcards) == said
