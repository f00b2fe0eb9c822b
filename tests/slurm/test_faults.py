"""Faults on a cluster, one at a time: the run still succeeds, and training resumes from its checkpoint.

CLUE writes checkpoints very often, so that each fault finds one. The tests marked ``fault`` take minutes each.
"""

import os
import re
import signal

import cluster
import pytest
from slurm_project import slurm, wait_for


def ends_well(project, process, seconds=1200):
    """Check that the run succeeds with the job's row in the table."""
    assert process.wait(seconds) == 0, project.output()
    assert set(project.table().set_index("method").loc["clue", "status"]) == {"ok"}


def resumed_at(project):
    """Return the step at which CLUE's last try resumed."""
    found = re.search(r"resuming at step (\d+) from", project.log())
    assert found, project.log()
    return int(found.group(1))


@pytest.fixture
def training(project):
    """A project in which CLUE trains on the cluster and has written a checkpoint, and Snakemake's process."""
    project.train_long()
    process = project.snakemake()
    project.job("clue")
    project.checkpoint()
    return project, process


def test_cancelled_job_is_retried(training):
    project, process = training
    slurm("scancel", project.job("clue"))
    ends_well(project, process)
    assert resumed_at(project) > 0
    assert "SLURM status is: 'CANCELLED'" in project.output()
    states = [state for name, _, state in project.jobs() if name.startswith("rule_clue")]
    assert len(states) == 2 and states[0].startswith("CANCELLED") and states[1] == "COMPLETED"


def test_killed_snakemake_then_resume(training):
    project, process = training
    orphan = project.job("clue")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    finished = project.path("results/test/simulated/random20/train.h5mu").stat().st_mtime_ns

    status, output = project.call("-m", "snakemake", *project.options)
    assert status != 0 and "Directory cannot be locked" in output
    # If unlocked by hand, two jobs would write the same files.
    assert project.call("-m", "snakemake", *project.options, "--unlock")[0] == 0
    status, output = project.call("-m", "snakemake", *project.options)
    assert status != 0 and f"left jobs in Slurm's queue ({orphan}" in output and "`make resume`" in output, output

    status, output = project.call("scripts/resume.py")
    assert status == 0 and re.search(r"Cancelled \d job\(s\)", output), output
    assert orphan not in slurm("squeue", "--noheader", "--format=%i").split()
    assert not list(project.path("results").rglob("*.tmp*")), "no half-written file"
    assert not list(project.path("results/test/simulated/random20/clue").rglob("embedding.h5ad"))
    ends_well(project, project.snakemake())
    assert resumed_at(project) > 0
    assert project.path("results/test/simulated/random20/train.h5mu").stat().st_mtime_ns == finished
    assert project.call("scripts/resume.py")[1].startswith("No killed run here.")


def test_job_out_of_memory_is_retried_with_more(project):
    """The first try needs 1.5 GB, may have 1 GB and is killed; the second one may have 2 GB."""
    project.add_method("hungry", body="import time; kept = np.ones(190_000_000); time.sleep(8)")
    project.change("config/methods/hungry.yaml", resources={"mem_gb": 1})
    project.configure(methods=["hungry"])
    project.drop_figures()
    process = project.snakemake()
    first = project.job("hungry")
    wait_for("the job to be killed", lambda: first not in slurm("squeue", "--noheader", "--format=%i").split())
    wait_for("its error", lambda: f"SLURM-job '{first}' failed" in project.output())
    assert process.wait(900) == 0, project.output()
    requests = slurm("sacct", "-X", "-n", "-P", "--format=Comment,ReqMem,State,WorkDir", "--starttime=now-1hour")
    rows = [
        row.split("|") for row in requests.splitlines() if row.startswith("rule_hungry") and str(project.folder) in row
    ]
    assert [row[1] for row in rows] == ["1000M", "2000M"]
    assert rows[0][2] != "COMPLETED" and rows[1][2] == "COMPLETED"


# ---- slow ones, by hand --------------------------------------------------------------------------


@pytest.mark.fault
def test_requeued_job_resumes(training):
    """As in preemption, the job is told to end and queued again; Snakemake keeps waiting for it."""
    project, process = training
    job = project.job("clue")
    slurm("scontrol", "requeue", job)
    ends_well(project, process)
    assert resumed_at(project) > 0
    assert [name for name, _, _ in project.jobs() if name.startswith("rule_clue")]
    assert "failed" not in project.output()


@pytest.mark.fault
def test_job_out_of_time_is_retried_with_more(project):
    """Training that would take an hour gets a minute, then two; each try resumes where the last one was stopped."""
    project.train_long(steps=1_000_000)
    project.change("config/methods/clue.yaml", resources={"mem_gb": 2, "runtime_min": 1})
    process = project.snakemake()
    first = project.job("clue")
    wait_for("the time to be up", lambda: f"SLURM-job '{first}' failed, SLURM status is: 'TIMEOUT'" in project.output())
    second = project.job("clue")
    wait_for("training to go on", lambda: resumed_at(project) if "resuming" in project.log() else 0)
    limits = [slurm("sacct", "-X", "-n", "-P", "-j", job, "--format=Timelimit").strip() for job in (first, second)]
    assert limits == ["00:01:00", "00:02:00"]
    [log] = project.path("logs/slurm/rule_clue").rglob(f"{first}.log")
    assert "DUE TO TIME LIMIT" in log.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(300) != 0
    assert second not in slurm("squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%i").split()


@pytest.mark.fault
def test_lost_node(project):
    project.train_long()
    process = project.snakemake("--set-resources", "clue:gpu=1")
    job = project.job("clue")
    project.checkpoint()
    cluster.lose_node("gpu1")
    try:
        wait_for("Slurm to notice", lambda: f"{job} PENDING" in slurm("squeue", "--noheader", "--format=%i %T"), 300)
    finally:
        cluster.start_node("gpu1")
    ends_well(project, process)
    assert resumed_at(project) > 0
    assert "Error in rule clue" not in project.output()


@pytest.mark.fault
def test_restarted_controller(project):
    """Snakemake asks the accounting instead, says so, and goes on; the job does not notice."""
    project.train_long()
    process = project.snakemake()
    job = project.job("clue")
    project.checkpoint()
    cluster.end("slurmctld")
    try:
        wait_for("Snakemake to notice", lambda: "Falling back to 'sacct' for status queries" in project.output())
        assert process.poll() is None
        status, output = project.call("scripts/status.py", "--config", "config/test.yaml")
        assert status == 1 and "Slurm must answer first, so try again later" in output, output
    finally:
        cluster.start_controller()
    ends_well(project, process)
    assert f"SLURM-job '{job}' failed" not in project.output()
    assert [state for name, _, state in project.jobs() if name.startswith("rule_clue")] == ["COMPLETED"]
    assert "resuming" not in project.log()


@pytest.mark.fault
def test_make_run_after_a_killed_run(training):
    """`make run PROFILE=slurm` alone cancels jobs, unlocks and goes on."""
    project, process = training
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    finished = project.path("results/test/simulated/random20/train.h5mu").stat().st_mtime_ns
    run = project.start("scripts/run.py", "--config", "config/test.yaml", "--profile", "slurm")
    output, _ = run.communicate(timeout=1200)
    assert run.returncode == 0 and re.search(r"Cancelled \d job\(s\)", output), output
    assert resumed_at(project) > 0
    assert project.path("results/test/simulated/random20/train.h5mu").stat().st_mtime_ns == finished
    assert not list(project.path("results").rglob("*.tmp*"))


@pytest.mark.fault
def test_slow_file_system(project):
    """Outputs appear 20 s after the job that wrote them has ended, as on a slow shared file system."""
    project.configure(methods=["random"])
    project.drop_figures()
    common = project.path("rules/methods.smk")
    text = common.read_text()
    appear = "sleep 20; mv {output.embedding}.late {output.embedding}"
    late = f"&& mv {{output.embedding}} {{output.embedding}}.late && (setsid sh -c '{appear}' > /dev/null 2>&1 &)"
    end = '--threads {threads} > {log} 2>&1"'  # of the command of methods
    assert text.count(end) == 1
    common.write_text(text.replace(end, f'{end[:-1]} {late}"'))
    process = project.snakemake()
    assert process.wait(900) == 0, project.output()
    assert "Waiting at most 120 seconds for missing files" in project.output() + "".join(
        log.read_text() for log in project.path("logs/slurm").rglob("*.log")
    )
