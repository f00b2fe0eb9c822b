"""Check before a run that the machine has what it needs; otherwise every job would be tried in vain."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clue.benchmark.errors import BenchmarkError

OWN = Path(__file__).resolve().parents[3] / ".r" / "Rscript"
"""The Rscript of `make r`."""
CHECK = """
for (wanted in strsplit(commandArgs(TRUE), ">=")) {
  if (!nzchar(system.file(package = wanted[1]))) {
    cat("no package ", wanted[1], "\\n", sep = "")
  } else if (length(wanted) > 1 && packageVersion(wanted[1]) < wanted[2]) {
    cat(wanted[1], " ", format(packageVersion(wanted[1])), " is too old\\n", sep = "")
  }
}
"""


def unavailable(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the methods that cannot run with the software of this process, with the reason.

    Parameters
    ----------
    methods
        The checked ``config/methods/<name>.yaml`` by name; only ``requires`` is read. No module is imported. R itself
        is asked which packages it has.
    """
    return {name: reason for name, spec in methods.items() if (reason := _missing(spec["requires"]))}


def _missing(requires: Mapping[str, list[str]]) -> str:
    reasons = [f"no program {name}" for name in requires["program"] if not shutil.which(name)]
    reasons += [f"no Python module {name}" for name in requires["python"] if not importlib.util.find_spec(name)]
    if requires["r"]:
        try:
            find_r(requires["r"])
        except BenchmarkError as error:
            reasons.append(str(error))
    return "; ".join(reasons)


def require_slurm() -> None:
    """Raise a `BenchmarkError` if jobs cannot be submitted to Slurm."""
    if not shutil.which("sbatch"):
        raise BenchmarkError(
            "no Slurm on this machine (no command sbatch); start on a cluster's login node, or run here:"
            " `make run`, or `snakemake --cores 4` in place of `--profile slurm`"
        )


def writable_caches() -> dict[str, str]:
    """Return the variable that sends caches to ``.snakemake/cache`` if the user's own folder cannot be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x" * 4096)
    except OSError as error:
        print(f"{folder}: cannot be written ({error.strerror}); caches go to .snakemake/cache", flush=True)
        return {"XDG_CACHE_HOME": str(Path(".snakemake", "cache").resolve())}
    return {}


def require_gpu() -> None:
    """Raise a `BenchmarkError` if no GPU is seen."""
    if not (_succeeds("nvidia-smi", "--list-gpus") or _torch_sees_one()):
        raise BenchmarkError(
            "device: the configuration says cuda, but no GPU was found on this machine; set device: cpu, or start on a"
            " machine with a GPU or on a cluster (--profile slurm)"
        )


def _torch_sees_one() -> bool:
    # In a separate process, since Snakemake's need not load torch. A site's Snakemake may not have torch at all.
    program = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return bool(importlib.util.find_spec("torch")) and _succeeds(sys.executable, "-c", program)


def _succeeds(*command: str) -> bool:
    return bool(shutil.which(command[0])) and subprocess.run(command, capture_output=True).returncode == 0


# ---- finding R -------------------------------------------------------------------------------------


def find_r(packages: Sequence[str]) -> str:
    """Return an Rscript that has the packages: the one on the path, else that of ``make r``.

    Raises
    ------
    BenchmarkError
        If there is none. The message says what each one lacks, and two ways to get one.
    """
    reasons = []
    for program, name in ((shutil.which("Rscript"), "Rscript on the path"), (shutil.which(str(OWN)), str(OWN))):
        reason = lacking(program, packages) if program else "not there"
        if not reason:
            return program
        reasons.append(f"{name}: {reason}")
    raise BenchmarkError(
        f"no R with {', '.join(packages)} ({'; '.join(reasons)}); on Debian, as root, `make r` makes one; elsewhere use"
        " the conda environment of envs/seurat.yaml"
    )


def lacking(rscript: str, packages: Sequence[str]) -> str:
    """Return what an R lacks; an empty text if nothing."""
    with tempfile.TemporaryDirectory(prefix="clue-r-") as folder:
        command = [rscript, "--vanilla", "-e", CHECK, *packages]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        return f"cannot be run ({(done.stderr.splitlines() or [f'status {done.returncode}'])[-1]})"
    return "; ".join(done.stdout.splitlines())
