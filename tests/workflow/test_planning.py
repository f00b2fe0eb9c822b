"""The plan of every shipped configuration, made where there is Snakemake and its Slurm plugin and nothing else."""

import functools
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path for path in (ROOT / "config").glob("*.yaml") if path.name != "display.yaml")
PLANNER = ("snakemake", "snakemake-executor-plugin-slurm")

# Snakemake in a Python in which the top-level modules that sys.argv[1] names cannot be imported.
PROGRAM = """
import importlib.abc, importlib.util, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

absent = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Absent())
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.partition(".")[0] in absent else find_spec(name, *rest)
from snakemake.cli import main
main()
"""


def needed(*distributions):
    """Return the distributions that these depend on, themselves included: what pip would install with them here."""
    found, wanted = set(), list(distributions)
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name not in found:
            found.add(name)
            requirements = map(Requirement, importlib.metadata.requires(name) or [])
            wanted += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@functools.cache
def absent_modules():
    """Return the top-level modules of all distributions that Snakemake and the Slurm plugin do without."""
    present = needed(*PLANNER)
    modules = importlib.metadata.packages_distributions().items()
    return {module for module, owners in modules if not present & set(map(canonicalize_name, owners))} - {"clue"}


def plan(project, *options):
    """Make the plan of a copy of the project with Snakemake and the Slurm plugin alone."""
    command = [sys.executable, "-c", PROGRAM, ",".join(absent_modules()), "--dry-run", "--quiet", "all", *options]
    return subprocess.run(command, cwd=project.folder, env=project.environment, capture_output=True, text=True)


def test_what_is_absent():
    """The test below is about the packages of the jobs; those of Snakemake must stay."""
    absent = absent_modules()
    assert {"torch", "anndata", "scanpy", "filelock", "tqdm", "matplotlib"} <= absent
    assert not {"snakemake", "snakemake_executor_plugin_slurm", "yaml", "jsonschema", "psutil"} & absent


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_planning_needs_snakemake_and_its_slurm_plugin_alone(fresh, config):
    done = plan(fresh, "--cores", "1", "--configfile", f"config/{config.name}")
    assert done.returncode == 0, done.stderr
