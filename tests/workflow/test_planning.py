"""Every shipped configuration can be planned where only Snakemake and its Slurm plugin are installed."""

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

# Snakemake in a Python that cannot import the top-level modules named in sys.argv[1].
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
    """Return these distributions and all that they depend on: what pip would install here."""
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
    """Return the top-level modules of all distributions that Snakemake and the Slurm plugin do not need."""
    present = needed(*PLANNER)
    modules = importlib.metadata.packages_distributions().items()
    return {module for module, owners in modules if not present & set(map(canonicalize_name, owners))} - {"clue"}


def plan(project, *options):
    """Plan the run of a copy of the project with only Snakemake and the Slurm plugin."""
    command = [sys.executable, "-c", PROGRAM, ",".join(absent_modules()), "--dry-run", "--quiet", "all", *options]
    return subprocess.run(command, cwd=project.folder, env=project.environment, capture_output=True, text=True)


def test_absent_modules():
    """The test below hides the packages that jobs need; those that Snakemake needs must stay."""
    absent = absent_modules()
    assert {"torch", "anndata", "scanpy", "filelock", "tqdm", "matplotlib"} <= absent
    assert not {"snakemake", "snakemake_executor_plugin_slurm", "yaml", "jsonschema", "psutil"} & absent


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_planning_needs_only_snakemake_and_its_slurm_plugin(fresh, config):
    done = plan(fresh, "--cores", "1", "--configfile", f"config/{config.name}")
    assert done.returncode == 0, done.stderr
