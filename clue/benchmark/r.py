"""Run an R script on cells: plain HDF5 to R and back, and an R that has the packages it needs.

A CSR matrix of (cells × features) is, array by array, R's ``dgCMatrix`` of (features × cells).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clue.benchmark.errors import BenchmarkError

# Planning looks for R, in an environment that may hold Snakemake alone.
if TYPE_CHECKING:
    import anndata as ad
    import h5py
    import numpy as np

ROOT_FOLDER = Path(__file__).resolve().parents[2] / ".r" / "root"
"""Where `make r` puts an R of its own; a file system to run R in, not a program to call."""
INSIDE = "/mnt"
"""Where that R sees the folder of the exchange."""
PASSED_ON = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE", "CLUE_BENCH_FOLDER")
"""Threads, and the mark by which a run knows its own jobs; a host's other variables are not for that R."""

# In a mount name space of its own: nothing stays mounted, however the process ends. It ends with this one.
ENTER = """
mount --bind "$2" "$1$3" && mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" || exit 127
root=$1 inside=$3; shift 3
exec setpriv --pdeathsig KILL chroot "$root" sh -c 'cd "$0" && exec Rscript --vanilla "$@"' "$inside" "$@"
"""


# ---- running ---------------------------------------------------------------------------------------


def run_r(
    script: Path, cells: Mapping[str, ad.AnnData], params: Mapping[str, Any], packages: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Run an R script in a folder with ``input.h5`` and ``params.json``; read ``output.h5`` and ``info.json`` back.

    What R prints goes to this process's standard error.

    Parameters
    ----------
    script
        The R script; it works in the current folder.
    cells
        Raw counts, by the name of their group in ``input.h5``; see `write_counts`.
    params
        Anything that JSON can say.
    packages
        The R packages that the script needs: ``"hdf5r"``, or ``"Seurat>=5.0.0"``.

    Returns
    -------
    The arrays of ``output.h5``, shape as in R, and the contents of ``info.json``.

    Raises
    ------
    BenchmarkError
        If no R has these packages, or the script fails; with R's own message if it left one in ``error.txt``.
    """
    import h5py

    root = find_r(packages)
    with tempfile.TemporaryDirectory(prefix="clue-r-") as name:
        folder = Path(name)
        with h5py.File(folder / "input.h5", "w") as file:
            for group, adata in cells.items():
                write_counts(file.create_group(group), adata)
        (folder / "params.json").write_text(json.dumps(params))
        shutil.copyfile(script, folder / script.name)
        status = call(root, folder, [script.name])
        if status:
            raise BenchmarkError(f"{script.name}: {reason_of(status, folder / 'error.txt')}")
        return read_arrays(folder / "output.h5"), json.loads((folder / "info.json").read_text())


def call(root: Path | None, folder: Path, arguments: list[str], **options: Any) -> int:
    """Run Rscript in a folder, from a root folder or from the path; return its exit status."""
    if root is None:
        return subprocess.run(["Rscript", "--vanilla", *arguments], cwd=folder, check=False, **options).returncode
    words = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    words += ["sh", "-c", ENTER, "sh", str(root), str(folder), INSIDE, *arguments]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": INSIDE, "TMPDIR": INSIDE}
    environment |= {key: os.environ[key] for key in PASSED_ON if key in os.environ}
    return subprocess.run(words, env=environment, check=False, **options).returncode


def reason_of(status: int, error_file: Path) -> str:
    """Say in a line why R failed: its message, or the signal that ended it."""
    if error_file.exists():
        return " ".join(error_file.read_text(errors="replace").split())
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"R was ended by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return f"R ended with status {status}; the job's log says more"


# ---- finding R -------------------------------------------------------------------------------------


def find_r(packages: Sequence[str]) -> Path | None:
    """Find an R that has the packages: Rscript on the path (then None), else the root folder of ``make r``.

    Raises
    ------
    BenchmarkError
        If there is none; the line names what was looked at and both mends.
    """
    looked_at = []
    if shutil.which("Rscript") is None:
        looked_at.append("no Rscript on the path")
    elif reason := lacking(None, packages):
        looked_at.append(f"Rscript on the path: {reason}")
    else:
        return None
    # Written last: without it the folder is not whole.
    if not (ROOT_FOLDER / "etc" / "made-from").exists():
        looked_at.append(f"no {ROOT_FOLDER}")
    elif reason := lacking(ROOT_FOLDER, packages):
        looked_at.append(f"{ROOT_FOLDER}: {reason}")
    else:
        return ROOT_FOLDER
    raise BenchmarkError(
        f"no R with {', '.join(packages)} ({'; '.join(looked_at)}); on Debian, as root, `make r` makes one; elsewhere"
        " use the conda environment of envs/seurat.yaml"
    )


def lacking(root: Path | None, packages: Sequence[str]) -> str:
    """Say what an R lacks; an empty text if nothing."""
    least = {name: version for name, _, version in (package.partition(">=") for package in packages)}
    names = ", ".join(f'"{name}"' for name in least)
    code = f"for (p in c({names})) if (nzchar(system.file(package = p))) cat(p, format(packageVersion(p)), '\\n')"
    with tempfile.TemporaryDirectory(prefix="clue-r-") as folder, tempfile.TemporaryFile("w+") as output:
        status = call(root, Path(folder), ["-e", code], stdout=output, stderr=subprocess.STDOUT)
        output.seek(0)
        lines = output.read().strip().splitlines()
    if status:
        return f"cannot be run ({lines[-1] if lines else f'status {status}'})"
    found = dict(words for words in map(str.split, lines) if len(words) == 2)
    return "; ".join(
        f"{name} {found[name]} is too old" if name in found else f"no package {name}"
        for name, version in least.items()
        if name not in found or _numbers(found[name]) < _numbers(version)
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall("[0-9]+", version)]


# ---- exchange --------------------------------------------------------------------------------------


def write_counts(group: h5py.Group, adata: ad.AnnData) -> None:
    """Write the counts of (cells × features) as ``data``, ``indices``, ``indptr`` and ``shape``.

    Names are not written: rows stay in order, and Seurat would change what names of features hold.
    """
    import numpy as np
    import scipy.sparse as sp

    counts = sp.csr_matrix(adata.X)
    counts.sort_indices()
    if counts.nnz >= 2**31:
        raise BenchmarkError(f"{group.name}: {counts.nnz} counts above 0; a sparse matrix of R holds 2^31 - 1 at most")
    group["data"] = counts.data.astype(np.float64)
    group["indices"] = counts.indices.astype(np.int32)
    group["indptr"] = counts.indptr.astype(np.int32)
    group["shape"] = np.array(counts.shape, dtype=np.int32)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an HDF5 file that R wrote; R stores a matrix by columns, HDF5 by rows."""
    import h5py
    import numpy as np

    with h5py.File(path, "r") as file:
        return {name: np.ascontiguousarray(file[name][()].T) for name in file}
