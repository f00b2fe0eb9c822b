"""The contents of ``run.json``: settings, time and memory, machine, versions and commit of a run."""

import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from clue.benchmark.methods.features import peak_memory_mb
from clue.benchmark.methods.task import Task

REPORTED_PACKAGES = ("clue-bench", "numpy", "scipy", "pandas", "anndata", "mudata")
REPORTED_IF_IMPORTED = {
    "torch": "torch",
    "scglue": "scglue",
    "sklearn": "scikit-learn",
    "scanpy": "scanpy",
    "scvi": "scvi-tools",
}


def report(arguments: Any, metric: Any, task: Task, seconds: float) -> dict[str, Any]:
    """Return the entries of ``run.json`` for a finished run, except its identity."""
    gpu_mb = round(sys.modules["torch"].cuda.max_memory_allocated() / 1e6, 1) if arguments.device == "cuda" else None
    # Shared fits count as the method's own work, since other methods do all of their work themselves.
    shared = sum(part.seconds for part in task.shared)
    return {
        "metric": metric,
        **{key: getattr(arguments, key) for key in ("params", "by_pairs", "device", "threads")},
        # Slurm's own name of the machine, if Slurm runs the process
        "host": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        "seconds": round(seconds + shared, 3),
        "shared_seconds": round(shared, 3),
        "peak_memory_mb": round(max([peak_memory_mb(), *(part.memory_mb for part in task.shared)]), 1),
        "gpu_memory_mb": gpu_mb,
        "versions": _versions(),
        "info": task.info,
    }


def commit(root: Path = Path(__file__).parents[3]) -> str:
    """Return git's short hash of the running checkout, with ``-dirty`` if it has changes; empty if there is no git.

    Changes to documents do not count, since they change no result.
    """
    git = ["git", "-C", str(root)]
    head = ["rev-parse", "--short", "HEAD"]
    changes = ["diff", "--quiet", "HEAD", "--", ".", ":!docs", ":!*.md"]
    try:
        found = subprocess.run([*git, *head], capture_output=True, text=True, check=True).stdout.strip()
        return found + ("-dirty" if subprocess.run([*git, *changes], capture_output=True).returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _versions() -> dict[str, str]:
    imported = [package for module, package in REPORTED_IF_IMPORTED.items() if module in sys.modules]
    versions = {"python": platform.python_version()}
    for package in (*REPORTED_PACKAGES, *imported):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # The library runs from a checkout that is on the path but not installed.
            versions[package] = "not installed"
    return versions
