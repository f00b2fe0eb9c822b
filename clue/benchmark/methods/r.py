"""Run an R script on cells. Data are exchanged as plain HDF5.

A CSR matrix of (cells × features) has the same arrays as R's ``dgCMatrix`` of (features × cells).
"""

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.running.machine import find_r

# ---- running ---------------------------------------------------------------------------------------


def run_r(
    script: Path, cells: Mapping[str, ad.AnnData], params: Mapping[str, Any], packages: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Run an R script in a folder with ``input.h5`` and ``params.json``; read ``output.h5`` and ``info.json`` back.

    What R prints goes to this process's standard error.

    Parameters
    ----------
    script
        The R script; it runs in that folder.
    cells
        Raw counts, keyed by the name of their group in ``input.h5``; see `write_counts`.
    params
        Any value that JSON can hold.
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
    rscript = find_r(packages)
    with tempfile.TemporaryDirectory(prefix="clue-r-") as name:
        folder = Path(name)
        with h5py.File(folder / "input.h5", "w") as file:
            for group, adata in cells.items():
                write_counts(file.create_group(group), adata)
        (folder / "params.json").write_text(json.dumps(params))
        shutil.copyfile(script, folder / script.name)
        status = subprocess.run([rscript, "--vanilla", script.name], cwd=folder).returncode
        if status:
            raise BenchmarkError(f"{script.name}: {reason_of(status, folder / 'error.txt')}")
        return read_arrays(folder / "output.h5"), json.loads((folder / "info.json").read_text())


def reason_of(status: int, error_file: Path) -> str:
    """Return one line that says why R failed: its message, or the signal that ended it."""
    if error_file.exists():
        return " ".join(error_file.read_text(errors="replace").split())
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"R was ended by {name}" + (": out of memory?" if name == "SIGKILL" else "")
    return f"R ended with status {status}; the job's log says more"


# ---- exchange --------------------------------------------------------------------------------------


def write_counts(group: h5py.Group, adata: ad.AnnData) -> None:
    """Write the counts of (cells × features) as ``data``, ``indices``, ``indptr`` and ``shape``.

    Names are not written: rows keep their order, and Seurat would change the names of features.
    """
    counts = sp.csr_matrix(adata.X)
    counts.sort_indices()
    if counts.nnz >= 2**31:
        raise BenchmarkError(f"{group.name}: {counts.nnz} counts above 0; a sparse matrix in R holds at most 2^31 - 1")
    group["data"] = counts.data.astype(np.float64)
    group["indices"] = counts.indices.astype(np.int32)
    group["indptr"] = counts.indptr.astype(np.int32)
    group["shape"] = np.array(counts.shape, dtype=np.int32)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an HDF5 file that R wrote; R stores a matrix by columns, HDF5 by rows."""
    with h5py.File(path, "r") as file:
        return {name: np.ascontiguousarray(file[name][()].T) for name in file}
