"""A copy of the project whose runs go to Slurm, and functions that wait for its jobs."""

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import cluster
import yaml

ROOT = Path(__file__).parents[2]
# Two files called conftest cannot both be imported by that name.
_spec = importlib.util.spec_from_file_location("workflow_conftest", ROOT / "tests/workflow/conftest.py")
workflow = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(workflow)

RUN = {
    "run": "test",
    "datasets": ["simulated/random20"],
    "methods": ["random", "cca/default", "clue/default"],
    "seeds": [0],
    "max_cells": 400,
    "budget": "test",
}
SITE = {
    "account": cluster.ACCOUNT,
    "partitions": {"cpu": {"max_mem_mb": 20000}, "gpu": {"max_mem_mb": 20000, "max_gpu": 2}},
}


class SlurmProject(workflow.Project):
    """A copy of the project whose runs go to the cluster."""

    # Poll more often than the profile does, since the jobs are short.
    options = (
        "--profile",
        "slurm",
        "--configfile",
        "config/test.yaml",
        "--slurm-init-seconds-before-status-checks",
        "2",
    )

    def snakemake(self, *options):
        """Start `snakemake --profile slurm`; its output is in ``snakemake.out``."""
        command = [sys.executable, "-m", "snakemake", *self.options, *options]
        with open(self.path("snakemake.out"), "a") as log:
            # Shells make background commands ignore Ctrl-C, and what these start inherits it.
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def output(self):
        """Return everything that Snakemake has printed."""
        return self.path("snakemake.out").read_text()

    def job(self, rule, state="RUNNING", seconds=600):
        """Wait until a job of a rule is in a state; return its number."""

        def number():
            lines = slurm("squeue", "--noheader", "--format=%i %T %Z %k").splitlines()
            words = [line.split() for line in lines]
            return [w[0] for w in words if w[1:3] == [state, str(self.folder)] and w[3].startswith(f"rule_{rule}_")]

        return wait_for(f"{rule} to be {state}", number, seconds)[0]

    def log(self, method="clue"):
        """Return the log of a method, or nothing before it exists."""
        path = self.path(f"logs/test/simulated/random20/{method}/default/seed-0.log")
        return path.read_text() if path.exists() else ""

    def checkpoint(self, seconds=600):
        """Wait until CLUE has written a checkpoint; return its path."""
        folder = self.path("results/test/simulated/random20/clue/default/seed-0/checkpoints")
        return wait_for("a checkpoint", lambda: list(folder.glob("*.pt")), seconds)[0]

    def jobs(self):
        """Return (rule and wildcards, node, state) of every job that was submitted here, in order."""
        command = [
            "sacct",
            "-X",
            "--parsable2",
            "--noheader",
            "--format=WorkDir,Comment,NodeList,State",
            "--duplicates",
        ]
        rows = [line.split("|") for line in slurm(*command, "--starttime=now-1hour").splitlines()]
        return [tuple(row[1:]) for row in rows if row[0] == str(self.folder)]

    def train_long(self, steps=2000):
        """Make CLUE train for some time, with a checkpoint every tenth of a second."""
        training = {
            "max_steps": steps,
            "batch_size": 32,
            "warmup_steps": 2,
            "checkpoint_seconds": 0.1,
            "patience_steps": steps,
        }
        tiny = {"encoder": [1, 16], "decoder": [1, 16], "discriminator": [1, 16], "n_latent": 4}
        budget = {"n_components": 10, "model": tiny, "training": training, "fine_tuning": training | {"max_steps": 3}}
        params = yaml.safe_load(self.path("config/methods/clue.yaml").read_text())["params"]
        for part in ("training", "fine_tuning"):
            params[part]["checkpoint_seconds"] = 60
        self.change("config/methods/clue.yaml", params=params)
        self.change("config/methods/clue.yaml", budgets={"test": budget}, resources={"mem_gb": 2, "runtime_min": 60})
        self.configure(**RUN | {"methods": ["clue/default"]})
        self.drop_figures()


def slurm(*command):
    """Return what one of Slurm's commands prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def wait_for(what, ready, seconds=600):
    """Call a function until its result is true; return that result."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.2)
    return found
