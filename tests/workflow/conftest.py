"""Real runs of the workflow in temporary copies of the project, on the data set `simulated`."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).parents[2]
PARTS = ["Snakefile", "rules", "config", "envs", "scripts", "clue"]
RUN = {
    "run": "test",
    "datasets": ["simulated/random20"],
    "methods": ["random", "cca/default"],
    "seeds": [0],
    "max_cells": 400,
}
SMALL = {"cca": {"n_components": 20, "n_input": [20], "ridge": [0.1], "n_canonical": [10], "power": [0], "n_folds": 2}}
"""Hyper-parameters that make a method quick."""
FOLDER_OF_RANDOM = "results/test/simulated/random20/random/default/seed-0"

PROGRAM = """
import numpy as np

from clue.benchmark.methods import Task, run_method


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    {body}
    return {{name: np.random.default_rng(seed).random((cells.n_obs, 3)) for name, cells in task.test.items()}}


if __name__ == "__main__":
    run_method(embed)
"""


class Project:
    """A copy of the project."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}

    def path(self, *parts):
        """Return a path within the copy."""
        return self.folder.joinpath(*parts)

    def write(self, path, data):
        """Write a mapping to a YAML file."""
        self.path(path).write_text(yaml.safe_dump(data))

    def configure(self, **changes):
        """Write the configuration of the run."""
        self.write("config/test.yaml", RUN | changes)

    def change(self, path, **changes):
        """Replace top-level keys of a YAML file."""
        self.write(path, yaml.safe_load(self.path(path).read_text()) | changes)

    def drop_figures(self):
        """Leave out figures and report where they are not tested: drawing takes longer than everything else."""
        self.path("rules/figures.smk").write_text("FIGURES = []\nTABLES = []\nREPORT = []\n")

    def draw_only(self, *names):
        """Leave out all figures except these; the report has what is drawn."""
        rules = self.path("rules/figures.smk")
        before, end, after = rules.read_text().partition('if FINISHING == "report":\n')
        rules.write_text(f"{before}FIGURES, TABLES = expand(FIGURE, name={list(names)}), []\n{end}{after}")

    def add_method(self, name, body="pass", modalities=("rna", "atac")):
        """Add a method as the README says: a YAML file and a program with one function."""
        self.path("scripts/methods", f"{name}.py").write_text(PROGRAM.format(body=body))
        spec = {"label": name, "script": f"{name}.py", "modalities": [list(modalities)], "params": {"n_latent": 3}}
        self.write(f"config/methods/{name}.yaml", spec)

    def start(self, *words, **options):
        """Start a program of the copy."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        options |= {"cwd": self.folder, "env": self.environment, "start_new_session": True}
        return subprocess.Popen([sys.executable, *words], **pipes, **options)

    def call(self, *words):
        """Run a program of the copy; return its exit status and everything it printed."""
        process = self.start(*words)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output

    def run(self):
        """Do what `make run` does."""
        return self.call(*self.run_command)

    def snakemake(self, *options):
        """Call Snakemake directly, as a user might."""
        words = ["--configfile", "config/test.yaml", "--cores", "2", "--keep-going", *options]
        return self.call("-m", "snakemake", *words)

    run_command = ("scripts/run.py", "--config", "config/test.yaml", "--cores", "2")

    def planned_rules(self):
        """Return the rules that Snakemake would run, each with its number of jobs."""
        status, output = self.snakemake("--dry-run", "--quiet", "rules")
        assert status == 0, output
        rows = re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)
        return {rule: int(n_jobs) for rule, n_jobs in rows if rule not in ("total", "all")}

    def table(self, name="metrics"):
        """Return one of the tables of the run."""
        return pd.read_csv(self.path("results/test", f"{name}.tsv"), sep="\t", keep_default_na=False)


@pytest.fixture
def fresh(tmp_path):
    """A copy of the project in which nothing has run yet."""
    return copy_project(tmp_path / "project")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A copy in which the run of `RUN` has ended, with its exit status and output; not to be changed.

    Parallel test processes share it. Two figures are enough here; the rehearsals in `.ci/run` draw all of them.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "finished"
    project, ended = Project(folder / "project"), folder / "ended.json"
    with FileLock(f"{folder}.lock"):
        if not ended.exists():
            copy_project(project.folder).draw_only("leaderboard", "resources")
            ended.write_text(json.dumps(project.run()))
    return project, *json.loads(ended.read_text())


@pytest.fixture
def finished(finished_run, tmp_path):
    """A copy of the project in which a run has succeeded; tests may change it."""
    project, status, output = finished_run
    assert status == 0, output
    return Project(shutil.copytree(project.folder, tmp_path / "project", symlinks=True))


@pytest.fixture
def unscored(finished):
    """A finished project without figures, in which the score of `random` and the table must be made again."""
    finished.drop_figures()
    finished.configure(methods=["random"])
    for path in (f"{FOLDER_OF_RANDOM}/metrics.tsv", "results/test/metrics.tsv"):
        finished.path(path).unlink()
    return finished


def copy_project(folder):
    """Copy what the workflow needs, with small hyper-parameters."""
    folder.mkdir(parents=True)
    for part in PARTS:
        source, target = ROOT / part, folder / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    project = Project(folder)
    project.configure()
    for name, params in SMALL.items():
        path = f"config/methods/{name}.yaml"
        known = yaml.safe_load(project.path(path).read_text())["params"]
        project.change(path, params=known | params)
    return project
