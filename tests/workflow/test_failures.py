"""A run with failures still makes its tables and its report; only the exit status says that it failed."""

import pytest

COUNT = "import os, signal, pathlib; open(pathlib.Path(__file__).with_suffix('.tries'), 'a').write('x')"
KILLED = f"{COUNT}; os.kill(os.getpid(), signal.SIGKILL)"
BROKEN = f"{COUNT}; raise ValueError('no luck')"


@pytest.fixture
def small(finished):
    """A finished project without figures."""
    finished.drop_figures()
    return finished


def tries(project, method):
    """Return how often a method was started."""
    return len(project.path("scripts/methods", f"{method}.tries").read_text())


def test_killed_jobs_are_retried_but_errors_are_not(small):
    small.add_method("killed", body=KILLED)
    small.add_method("broken", body=BROKEN)
    small.configure(methods=["killed", "broken", "random"])
    status, output = small.snakemake("--retries", "1")
    assert status == 1, output
    assert (tries(small, "killed"), tries(small, "broken")) == (2, 1)
    table = small.table().drop_duplicates("method").set_index("method")
    assert table["status"].to_dict() == {"killed": "failed", "broken": "failed", "random": "ok", "oracle": "ok"}
    assert table.loc["broken", "reason"] == "ValueError: no luck"
    # No failure is remembered: the same command tries again.
    assert small.snakemake()[0] == 1
    assert (tries(small, "killed"), tries(small, "broken")) == (3, 2)


def test_run_without_any_scores_says_so_in_one_line(finished):
    finished.add_method("broken", body=BROKEN)
    finished.configure(methods=["broken"])
    finished.path("results/test/report.html").unlink()
    status, output = finished.snakemake()
    assert status == 1 and output.count("No method has scores: there is nothing to draw.") == 1, output
    assert finished.table("failures")["reason"].tolist() == ["ValueError: no luck"]
    assert not finished.path("results/test/report.html").exists()


def test_failed_preparation_affects_no_other_data_set(small):
    small.change("config/datasets/simulated_factors.yaml", expect={"n_cells": 1})
    small.configure(datasets=["simulated/random20", "simulated_factors"], methods=["random"])
    status, output = small.run()
    assert status == 1 and "failed   prepare simulated_factors: error: " in output, output
    assert "error: some jobs failed; see results/test/failures.tsv" in output
    table = small.table().drop_duplicates(["dataset", "method"]).set_index(["dataset", "method"])
    assert table.loc[("simulated", "random"), "status"] == "ok"
    lost = table.loc[("simulated_factors", "random")]
    assert lost["status"] == "failed" and lost["reason"].startswith("not run, since an earlier step failed")


def test_scores_of_before_a_failed_step_are_not_shown(small):
    """A changed data set can no longer be prepared; the scores of the unchanged one are still there."""
    small.configure(methods=["random"])
    small.change("config/datasets/simulated.yaml", expect={"n_cells": 1})
    status, output = small.run()
    assert status == 1 and "failed   prepare simulated: error: " in output, output
    assert set(small.table()["status"]) == {"failed"}
    failures = small.table("failures").set_index("method")
    assert failures.loc["random", "reason"].startswith("not scored again, since an earlier step failed")
    small.change("config/datasets/simulated.yaml", expect={"n_cells": 1500})
    status, output = small.run()
    assert status == 0, output
    assert set(small.table()["status"]) == {"ok"}


def test_failed_figure_does_not_prevent_the_report(finished):
    table = finished.path("results/test/metrics.tsv").stat().st_mtime_ns
    finished.path("results/test/report.html").unlink()
    finished.path("scripts/figures/resources.py").write_text("raise SystemExit('error: cannot be drawn')\n")
    status, output = finished.snakemake()
    log = finished.path("logs/test/figures/resources.log").read_text()
    assert status == 1 and "error: cannot be drawn" in log, output
    assert finished.path("results/test/report.html").stat().st_size > 100_000
    assert not finished.path("results/test/figures/resources.png").exists()
    assert finished.path("results/test/metrics.tsv").stat().st_mtime_ns == table, "no method failed, so the table stays"


def test_only_requested_files_are_made(small):
    small.add_method("broken", body=BROKEN)
    small.configure(methods=["broken", "random"])
    small.path("results/test/metrics.tsv").unlink()
    assert small.snakemake("embeddings")[0] == 1
    assert not small.path("results/test/metrics.tsv").exists()
