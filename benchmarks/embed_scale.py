"""A million cells through `CLUE.embed`, from a file, in little memory.

    OMP_NUM_THREADS=1 python benchmarks/embed_scale.py [--cells 1000000] [--genes 2000] [--folder FOLDER]

Writes simulated counts (CSR, 12 % non-zeros) as .h5ad, block by block; then a process of its own opens the
file backed, embeds all cells with an untrained model of the default sizes, and reports its peak memory. Weights do
not change what embedding costs.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from tqdm import tqdm

import clue
from clue.simulate import simulate

DENSITY = 0.12


def main(argv: list[str] | None = None) -> None:
    """Print one row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--folder", type=Path, help="where the file (2 GB by default) is written and removed")
    parser.add_argument("--embed", type=Path, nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.embed:
        embed(*arguments.embed)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        cells, model = Path(folder) / "cells.h5ad", Path(folder) / "model.pt"
        data = simulate(2_000, {"rna": arguments.genes, "adt": 20}, seed=0)
        clue.CLUE(data).save(model)
        write(cells, arguments.cells, data["rna"].var_names)
        command = [sys.executable, __file__, "--embed", str(cells), str(model)]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        size = cells.stat().st_size / 2**30
    print("cells\tgenes\tfile_GB\tseconds\tcells_per_s\tpeak_GB\tpeak_before_GB")
    print(
        f"{arguments.cells}\t{arguments.genes}\t{size:.2f}\t{answer['seconds']:.3g}"
        f"\t{arguments.cells / answer['seconds']:.0f}\t{answer['peak_gb']:.2f}\t{answer['before_gb']:.2f}"
    )


def write(path: Path, n_cells: int, genes: pd.Index, block: int = 10_000) -> None:
    """Write simulated counts, `block` cells at a time."""
    rng = np.random.default_rng(0)
    # one block is drawn and its rows are shuffled for the others: drawing a million cells would take the longest
    drawn = sp.random(block, len(genes), DENSITY, format="csr", dtype=np.float32, rng=rng)
    drawn.data = rng.geometric(0.5, drawn.nnz).astype(np.float32)
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(n_cells)])
    empty = sp.csr_matrix((n_cells, len(genes)), dtype=np.float32)
    ad.AnnData(empty, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        group = file["X"]
        for name in ("data", "indices", "indptr"):
            del group[name]
        data = group.create_dataset("data", (0,), "f4", maxshape=(None,), chunks=(2**18,))
        indices = group.create_dataset("indices", (0,), "i4", maxshape=(None,), chunks=(2**18,))
        indptr = np.zeros(n_cells + 1, dtype=np.int64)
        for start in tqdm(range(0, n_cells, block), desc="writing", unit="block", mininterval=5):
            rows = drawn[rng.permutation(block)[: min(block, n_cells - start)]]
            end = indptr[start]
            for dataset, values in ((data, rows.data), (indices, rows.indices)):
                dataset.resize((end + rows.nnz,))
                dataset[end:] = values
            indptr[start + 1 : start + 1 + rows.shape[0]] = end + rows.indptr[1:]
        group["indptr"] = indptr


def embed(cells: Path, model: Path) -> None:
    """Embed the file's cells; print seconds and peak memory."""
    loaded = clue.CLUE.load(model)
    adata = ad.read_h5ad(cells, backed="r")
    before = peak_gb()
    start = time.monotonic()
    embedding = loaded.embed(adata, "rna")
    seconds = time.monotonic() - start
    assert embedding.shape == (adata.n_obs, loaded.width) and np.isfinite(embedding).all()
    print(json.dumps({"seconds": seconds, "peak_gb": peak_gb(), "before_gb": before}))


def peak_gb() -> float:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
