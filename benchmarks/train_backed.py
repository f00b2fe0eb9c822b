"""Memory and speed of training from a backed file, compared with training in memory.

    OMP_NUM_THREADS=1 python benchmarks/train_backed.py [--cells 20000] [--genes 2000] [--steps 100] [--folder FOLDER]
        [--sides memory backed]

It writes simulated counts (CSR, 12 % non-zeros) of genes and 20 proteins. Then each side, in a separate process, reads
them, makes a model of the default sizes with 100 components, and calls `fit`, which ends with a validation on a tenth
of the cells. Peaks are of the whole process, including libraries, sampled every 10 ms: RssAnon, which only swapping can
free, and VmRSS, which also counts the mapped pages that the operating system may reclaim. before_GB is RssAnon after
the imports.
"""

import tempfile
import time
from enum import StrEnum
from pathlib import Path

import anndata as ad
import pandas as pd
from embed_scale import write
from measure import Child, memory_gb, row

import clue
from clue.benchmark.program import run_program

Side = StrEnum("Side", ["memory", "backed"])


def main(
    cells: int = 20_000,
    genes: int = 2_000,
    steps: int = 100,
    folder: Path | None = None,
    sides: tuple[Side, ...] = tuple(Side),
) -> None:
    """Print a row per side.

    Parameters
    ----------
    cells, genes
        Size of the data.
    steps
        How many steps to train.
    folder
        Where the files are written and removed.
    sides
        Any of memory and backed.
    """
    row("cells", "genes", "side", "prepare_s", "fit_s", "peak_anon_GB", "peak_rss_GB", "before_GB")
    with tempfile.TemporaryDirectory(dir=folder) as written:
        for modality, n_features in (("rna", genes), ("adt", 20)):
            features = pd.Index([f"{modality}_{i}" for i in range(n_features)])
            write(Path(written, f"{modality}.h5ad"), cells, features)
        for side in sides:
            child = Child(train, side, Path(written), steps, interval=0.01)
            prepare_s, fit_s, before = child.answer()
            peaks = child.stop_watching()
            row(cells, genes, side, prepare_s, fit_s, peaks["anonymous"], peaks["rss"], before)


def train(pipe, side: Side, folder: Path, n_steps: int) -> None:
    """Train `n_steps` steps; answer with the seconds of preparation and training, and the memory before."""
    before = memory_gb()["anonymous"]
    start = time.monotonic()
    backed = "r" if side == Side.backed else None
    adatas = {k: ad.read_h5ad(folder / f"{k}.h5ad", backed=backed) for k in ("rna", "adt")}
    model = clue.CLUE(adatas, n_components=100)
    middle = time.monotonic()
    model.fit(max_steps=n_steps, progress=False)
    pipe.send((middle - start, time.monotonic() - middle, before))


if __name__ == "__main__":
    run_program(main)
