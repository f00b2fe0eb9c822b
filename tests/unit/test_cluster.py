"""What is known without asking a cluster: the site file, the owner of a lock, the state of a run's steps."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from helpers import one_line_error

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.running import cluster, status
from clue.benchmark.running.cluster import Site, slurm_site
from clue.benchmark.running.recovery import clear_killed_run, lock_folder, register_run


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch, tmp_path):
    """A machine without Slurm; tests/slurm tests with one."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clue.benchmark.running.cluster.CHECKOUT", tmp_path)


def test_no_site_file_means_the_clusters_defaults():
    assert slurm_site() == Site()


def test_site(tmp_path):
    path = tmp_path / "slurm-site.yaml"
    path.write_text("account: 123\npartitions: {gpu: {max_gpu: 2}}\n")
    assert slurm_site(path) == Site("123", "", {"gpu": {"max_gpu": 2}}, str(path))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("acount: a", "unknown key 'acount'; did you mean 'account'?"),
        ("account: [a, b]", "account: ['a', 'b'] is not text or a whole number"),
        ("partitions: [cpu]", "partitions: ['cpu'] is not a map of keys"),
        ("partitions: {cpu: 5}", "partitions.cpu: 5 is not a map of keys"),
        ("partitions: {cpu: {max_runtime: 2d}}", "partitions.cpu.max_runtime: '2d' is not a whole number"),
        ("- account", "must hold a map of keys"),
    ],
)
def test_wrong_site_is_one_line(tmp_path, text, line):
    path = tmp_path / "slurm-site.yaml"
    path.write_text(text)
    found = one_line_error(slurm_site, path)
    assert "slurm-site.yaml: " in found and line in found


def test_sbatch_without_a_cluster_does_not_blame_the_site_file(tmp_path, monkeypatch):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'sbatch: fatal: Could not establish a configuration source' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(sbatch))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(BenchmarkError, match="^sbatch cannot reach Slurm: .* on a login node, or set SLURM_CONF$"):
        slurm_site()


def test_most_that_a_job_may_request():
    gpu = {"max_gpu": 2, "max_mem_mb": 300}
    site = Site(partitions={"cpu": {"max_mem_mb": 100}, "big": {"max_mem_mb": 900}, "gpu": gpu})
    assert site.most("max_mem_mb", gpu=0) == 900
    assert site.most("max_mem_mb", gpu=1) == 300
    assert site.most("max_runtime", gpu=0) == Site().most("max_mem_mb", gpu=1) == float("inf")


def test_example_site_file_is_valid(project):
    assert slurm_site(project / "profiles/slurm/site.example.yaml").partitions


def test_site_file_of_this_folder_precedes_that_of_the_checkout(tmp_path, monkeypatch):
    checkout, here = tmp_path / "checkout", tmp_path / "here"
    for folder in (checkout, here):
        folder.mkdir()
        (folder / "slurm-site.yaml").write_text(f"account: {folder.name}\n")
    monkeypatch.setattr(cluster, "CHECKOUT", checkout)
    assert slurm_site() == Site("checkout", file=str(checkout / "slurm-site.yaml"))
    monkeypatch.chdir(here)
    assert slurm_site() == Site("here", file=str(here / "slurm-site.yaml"))


@pytest.mark.parametrize("word", ["{0}/slurm", "--profile={0}/slurm", "{0}/Snakefile", "--snakefile={0}/Snakefile"])
def test_profile_finds_the_checkout_from_elsewhere(project, tmp_path, word):
    checkout = tmp_path / "checkout"
    shutil.copytree(project / "clue", checkout / "clue", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(project / "profiles", checkout / "profiles")
    (checkout / "slurm").symlink_to("profiles/slurm")
    program = "import sys, yte; yte.process_yaml(open(sys.argv[1]), require_use_yte=True); print(sys.modules['clue'])"
    # The profile is read from a copy: only the word on the command line tells where the checkout is.
    profile = shutil.copy(project / "profiles/slurm/config.yaml", tmp_path / "config.yaml")
    command = [sys.executable, "-P", "-c", program, profile, word.format(checkout)]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert str(checkout) in done.stdout, done.stderr


def test_profile_is_reachable_by_its_name(project):
    assert (project / "slurm/config.yaml").samefile(project / "profiles/slurm/config.yaml")
    assert not (project / "profiles/default").exists(), "it would take precedence over every other profile"


# ---- after a kill --------------------------------------------------------------------------------


@pytest.fixture
def lock(tmp_path):
    """The lock of a run that has ended."""
    path = tmp_path / ".snakemake/locks/0.input.lock"
    path.parent.mkdir(parents=True)
    path.touch()
    return path


def test_lock_of_a_dead_run_is_cleared(tmp_path, lock):
    register_run(tmp_path)
    assert clear_killed_run(tmp_path) == ["Cleared the lock of a killed run."]
    assert not lock.exists()
    assert clear_killed_run(tmp_path) == []


def test_folder_has_one_run_until_all_its_processes_end(tmp_path):
    file = lock_folder(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
    file.close()  # as if the run were killed but not Snakemake
    with pytest.raises(BenchmarkError, match="another run is at work here"):
        lock_folder(tmp_path)
    child.communicate(b"\n")
    lock_folder(tmp_path).close()


def test_lock_of_another_machine_is_not_touched(tmp_path, lock):
    register_run(tmp_path)
    (tmp_path / ".snakemake/clue-bench-host").write_text("login2")
    with pytest.raises(BenchmarkError, match="here on login2; run this command there or.* delete .*-host first"):
        clear_killed_run(tmp_path)
    assert lock.exists()


# ---- states of steps -----------------------------------------------------------------------------


STEP = status.Step("clue", ("d", "s", "default", "0"), "results/x/embedding.h5ad", "logs/x.log")


def write(path, text=""):
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_best_available_reason_is_given(tmp_path):
    assert status.failure_reason(STEP, tmp_path) == "ended without a message, as a killed process does"
    write(tmp_path / STEP.log, "reading\n 10%|#   |\r 20%|##  | 40/200\n\n")
    killed = "ended without a message, as a killed process does; its log ends in: "
    assert status.failure_reason(STEP, tmp_path) == killed + "20%|##  | 40/200"
    write(tmp_path / STEP.log, "using default settings\n")
    assert status.failure_reason(STEP, tmp_path) == killed + "using default settings"
    write(tmp_path / STEP.log, "reading\n\x1b[31mValueError\x1b[0m: no luck\n\x1b[0m\n")
    assert status.failure_reason(STEP, tmp_path) == "ValueError: no luck"
    slurm_log = tmp_path / "logs/slurm/rule_clue/d_s_default_0/7.log"
    cancelled = "JOB 7 ON n1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT"
    write(slurm_log, f"x\nslurmstepd-n1: error: *** {cancelled} ***\n")
    assert status.failure_reason(STEP, tmp_path) == f"Slurm: {cancelled}"
    write(tmp_path / "results/x/failure.json", json.dumps({"error": "ValueError: no\nluck"}))
    assert status.failure_reason(STEP, tmp_path) == "ValueError: no luck"


@pytest.mark.parametrize(
    ("error", "log", "explained"),
    [
        ("ValueError: no luck", "", True),
        ("", "reading\nerror: no file\n", True),
        ("", "reading\n", False),
        ("MemoryError: 3 GB", "", False),
        ("R was ended by SIGKILL: out of memory?", "", False),
        ("ValueError: sigma is not significant", "", True),
    ],
)
def test_error_is_retried_only_if_more_memory_may_help(tmp_path, error, log, explained):
    write(tmp_path / "job.log", log)
    if error:
        write(tmp_path / "failure.json", json.dumps({"error": error}))
    assert status.has_explained([tmp_path / "embedding.h5ad"], [tmp_path / "job.log"]) == explained


@pytest.mark.parametrize("text", ["", "[]", '{"error"', "{}"])
def test_malformed_failure_file_is_ignored(tmp_path, text):
    write(tmp_path / "results/x/failure.json", text)
    assert status.failure_reason(STEP, tmp_path) == "ended without a message, as a killed process does"


def test_step_that_must_run_again_is_waiting(tmp_path):
    """An old log says nothing about a step whose output exists, or that an earlier step must come before."""
    write(tmp_path / STEP.log, "loss 3\n")
    assert status._standing(STEP, tmp_path, {}, {}).state == "failed"
    assert status._standing(replace(STEP, is_ready=False), tmp_path, {}, {}).state == "waiting"
    write(tmp_path / STEP.output)
    assert status._standing(STEP, tmp_path, {}, {}).state == "waiting"
    assert status._standing(replace(STEP, is_due=False), tmp_path, {}, {}).state == "done"


def test_report_counts_steps_and_lists_unfinished_ones(tmp_path):
    states = [("done",), ("queued", "Slurm job 3 (Priority)"), ("failed", "no luck")]
    assert status.report([status.Standing(STEP, *state) for state in states]) == [
        "1 done, 1 queued, 1 failed of 3 steps",
        "queued   clue d/s/default/0: Slurm job 3 (Priority)",
        "failed   clue d/s/default/0: no luck (log: logs/x.log)",
    ]
