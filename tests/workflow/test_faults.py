"""A user's mistakes are reported in one line; after a fault of the machine, the same command completes the run."""

import os
import re
import signal
import time

import psutil
import pytest

# The first try records its process id and waits to be killed; the next one succeeds.
SLOW = """import os, time, pathlib
    if not pathlib.Path("pid").exists():
        print("epoch 3", flush=True)
        pathlib.Path("pid.tmp").write_text(str(os.getpid()))
        os.replace("pid.tmp", "pid")
        time.sleep(600)"""


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ("methods: [randm]", "unknown method 'randm'; did you mean 'random'?"),
        ("max_cells: 400\nmax_cells: 500", "config/test.yaml: not valid YAML: 'max_cells' occurs twice"),
    ],
)
def test_wrong_configuration_is_one_line(fresh, wrong, line):
    path = fresh.path("config/test.yaml")
    path.write_text(re.sub(rf"^{wrong.partition(':')[0]}:.*\n(- .*\n)*", f"{wrong}\n", path.read_text(), flags=re.M))
    status, output = fresh.run()
    assert status == 1 and output.startswith("error: ") and line in output and output.count("\n") == 1, output
    status, output = fresh.snakemake("--dry-run")
    assert status == 1 and line in output and "Traceback" not in output, output


def test_method_with_the_name_of_a_rule_is_one_line(fresh):
    fresh.add_method("table")
    fresh.configure(methods=["table"])
    status, output = fresh.run()
    assert status == 1 and output.endswith("error: The name table is already used by another rule\n"), output


@pytest.fixture
def slow(finished):
    """A finished project with an extra method, whose first try does not end by itself."""
    finished.drop_figures()
    finished.add_method("slow", body=SLOW)
    finished.configure(methods=["slow"])
    yield finished
    # A failing test must not leave a ten-minute job behind.
    if finished.path("pid").exists() and psutil.pid_exists(job := int(finished.path("pid").read_text())):
        os.kill(job, signal.SIGKILL)


def wait_for_job(project, process):
    """Return the process id of the slow job once it is running."""
    deadline = time.monotonic() + 120
    while not project.path("pid").exists():
        assert process.poll() is None and time.monotonic() < deadline, "the job did not start"
        time.sleep(0.1)
    return int(project.path("pid").read_text())


def completes(project):
    """Check that the same command now runs to its end, with the job's row in the table."""
    status, output = project.run()
    assert status == 0, output
    assert set(project.table().set_index("method").loc["slow", "status"]) == {"ok"}


def status(project):
    """Return what `make status` shows."""
    code, output = project.call("scripts/status.py", "--config", "config/test.yaml")
    assert code == 0, output
    return output


def test_killed_job_then_the_same_command(slow):
    process = slow.start(*slow.run_command)
    job = wait_for_job(slow, process)
    shown = status(slow)
    running = re.search(r"^running  slow simulated/random20/default/0: \d+ min: epoch 3$", shown, re.MULTILINE)
    assert "Snakemake is at work" in shown and running, shown
    os.kill(job, signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    failed = "failed   slow simulated/random20/default/0: "
    assert failed in output and "start the same command again" in output, "the end of a run names what failed"
    shown = status(slow)
    counts = {re.search(r"of (\d+) steps", text)[1] for text in (output, shown)}
    assert len(counts) == 1, "make run and make status count the same steps"
    assert "Snakemake is not at work" in shown and failed in shown and "1 failed" in shown, shown
    assert process.returncode != 0, output
    row = slow.table("failures").set_index("method").loc["slow"]
    assert row["status"] == "failed" and row["log"] in row["reason"]
    completes(slow)


def test_killed_snakemake_then_the_same_command(slow):
    runs = [slow.start(*slow.run_command) for _ in range(2)]
    while all(run.poll() is None for run in runs):
        time.sleep(0.1)
    refused, process = sorted(runs, key=lambda run: run.poll() is None)
    job = wait_for_job(slow, process)
    for status, output in ((refused.returncode, refused.communicate()[0]), slow.run()):
        assert status == 1 and re.fullmatch("error: .*: another run is at work here.*\n", output), "no second run"

    [snakemake] = psutil.Process(process.pid).children()
    snakemake.kill()
    output, _ = process.communicate(timeout=60)
    assert output.endswith("error: Snakemake was ended by SIGKILL; start the same command again\n"), output
    assert psutil.pid_exists(job), "the job outlives its run"
    completes(slow)
    assert not psutil.pid_exists(job), "the job of the killed run does not outlive the next one"


@pytest.mark.parametrize("interrupts", [signal.SIG_DFL, signal.SIG_IGN], ids=["foreground", "background"])
def test_terminated_run_ends_its_jobs(slow, interrupts):
    # Shells start background commands with SIGINT ignored.
    process = slow.start(*slow.run_command, preexec_fn=lambda: signal.signal(signal.SIGINT, interrupts))
    job = wait_for_job(slow, process)
    process.terminate()
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not psutil.pid_exists(job)
    completes(slow)


def test_corrupt_embedding_is_not_scored(finished):
    finished.drop_figures()
    path = finished.path("results/test/simulated/random20/random/default/seed-0/embedding.h5ad")
    path.write_bytes(path.read_bytes()[:1000])
    status, output = finished.run()
    assert status != 0
    assert "cannot be read" in output and "delete it and run again" in output
    assert finished.table().set_index("method").loc["random", "status"] == "failed"
    path.unlink()
    status, output = finished.run()
    assert status == 0, output
