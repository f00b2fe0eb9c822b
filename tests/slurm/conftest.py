"""Runs on a real Slurm (cluster.py beside this file), which is started for the tests and stopped after them."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cluster
import pytest
from slurm_project import ROOT, RUN, SITE, SlurmProject, workflow


def pytest_collection_modifyitems(items):
    """Mark the tests in this folder."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm_cluster():
    """The cluster, started if it is not running, and in that case stopped after the tests."""
    if reason := cluster.why_not():
        pytest.skip(f"no Slurm here: {reason}")
    os.environ.update(cluster.environment())
    found = bool(cluster._running("slurmctld"))
    cluster.start()
    yield cluster
    if not found:
        cluster.stop()


@pytest.fixture
def fresh(tmp_path):
    """A copy of the project with a site file, in which nothing has run."""
    return on_slurm(workflow.copy_project(tmp_path / "project").folder)


def on_slurm(folder):
    """Add the profile, the site file and the configuration to a copy of the project."""
    copy = SlurmProject(folder)
    shutil.copytree(ROOT / "profiles", copy.path("profiles"))
    copy.path("slurm").symlink_to("profiles/slurm")
    copy.write("slurm-site.yaml", SITE)
    copy.configure(**RUN)
    return copy


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A copy in which the data set and the task were made on this machine; not to be changed."""
    copy = on_slurm(workflow.copy_project(tmp_path_factory.mktemp("prepared") / "project").folder)
    words = ["--configfile", "config/test.yaml", "--cores", "1", "results/test/simulated/random20/solution.h5ad"]
    status, output = copy.call("-m", "snakemake", *words)
    assert status == 0, output
    return copy


@pytest.fixture
def project(slurm_cluster, request, tmp_path):
    """A prepared project, or a fresh one if the test asks for that; what a failing test leaves running is ended."""
    if "fresh" in request.fixturenames:
        copy = request.getfixturevalue("fresh")
    else:
        source = request.getfixturevalue("prepared").folder
        copy = SlurmProject(shutil.copytree(source, tmp_path / "project", symlinks=True))
    started = []
    start = copy.snakemake
    copy.snakemake = lambda *options: started.append(start(*options)) or started[-1]
    yield copy
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
    subprocess.run([sys.executable, "scripts/resume.py"], cwd=copy.folder, env=copy.environment, timeout=120)
