"""Run `CLUE.embed` and `CLUE.predict` on a million cells from a file, in little memory.

    OMP_NUM_THREADS=1 python benchmarks/embed_scale.py [--cells 1000000] [--genes 2000] [--folder FOLDER]

It writes simulated counts (CSR, 12 % non-zeros) as .h5ad, block by block. A separate process then opens the file
backed, embeds all cells with an untrained model of the default sizes, predicts 100 proteins of each into another file,
and reports its peak memory. A trained model would cost the same.
"""

import tempfile
import time
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from measure import in_process, peak_gb, row
from tqdm import tqdm

import clue
from clue.benchmark.program import run_program
from clue.simulate import simulate

DENSITY = 0.12


def main(cells: int = 1_000_000, genes: int = 2_000, folder: Path | None = None) -> None:
    """Print a row for each call.

    Parameters
    ----------
    cells, genes
        Size of the data.
    folder
        Where the file (2 GB by default) is written and removed.
    """
    with tempfile.TemporaryDirectory(dir=folder) as written:
        file, model, predicted = (Path(written, name) for name in ("cells.h5ad", "model.pt", "predicted.h5ad"))
        data = simulate(2_000, {"rna": genes, "adt": 100}, seed=0)
        clue.CLUE(data).save(model)
        write(file, cells, data["rna"].var_names)
        answer = in_process(embed, file, model, predicted)
        size = file.stat().st_size / 2**30
    row("call", "cells", "genes", "file_GB", "seconds", "cells_per_s", "peak_GB")
    for call, (seconds, peak) in answer.items():
        row(call, cells, genes, size, seconds, round(cells / seconds), peak)


def write(path: Path, n_cells: int, genes: pd.Index, block: int = 10_000) -> None:
    """Write simulated counts, `block` cells at a time."""
    rng = np.random.default_rng(0)
    # draw one block and shuffle its rows for the others: drawing a million cells would take most of the time
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


def embed(cells: Path, model: Path, predicted: Path) -> dict[str, tuple[float, float]]:
    """Embed the file's cells and predict their proteins; return seconds and peak memory of each."""
    loaded = clue.CLUE.load(model)
    adata = ad.read_h5ad(cells, backed="r")
    answer, start = {}, time.monotonic()
    embedding = loaded.embed(adata, "rna")
    answer["embed"] = time.monotonic() - start, peak_gb()
    assert embedding.shape == (adata.n_obs, loaded.width) and np.isfinite(embedding).all()
    start = time.monotonic()
    shares = loaded.predict(adata, "adt", path=predicted)
    answer["predict"] = time.monotonic() - start, peak_gb()
    assert shares.shape == (adata.n_obs, 100) and np.isclose(shares.X[-1].sum(), 1, atol=1e-3)
    return answer


if __name__ == "__main__":
    run_program(main)
