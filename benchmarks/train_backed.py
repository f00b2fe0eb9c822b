"""Memory and speed of training from a backed file, compared with training in memory.

    OMP_NUM_THREADS=1 python benchmarks/train_backed.py [--cells 20000] [--genes 2000] [--steps 100] [--folder FOLDER]
        [--sides memory backed]

It writes simulated counts (CSR, 12 % non-zeros) of genes and 20 proteins. Then each side, in a separate process, reads
them, makes a model of the default sizes with 100 components, and calls `fit`, which ends with a validation on a tenth
of the cells. Peaks are of the whole process, including libraries, sampled every 10 ms: RssAnon, which only swapping can
free, and VmRSS, which also counts the mapped pages that the operating system may reclaim. before_GB is RssAnon after
the imports.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import pandas as pd
from embed_scale import write
from train_speed import Peaks, memory_gb

import clue

SIDES = {"memory": None, "backed": "r"}


def main(argv: list[str] | None = None) -> None:
    """Print a row per side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000)
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where the files are written and removed")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.side:
        train(arguments.side, arguments.folder, arguments.steps)
        return
    print("cells\tgenes\tside\tprepare_s\tfit_s\tpeak_anon_GB\tpeak_rss_GB\tbefore_GB", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for modality, n_features in (("rna", arguments.genes), ("adt", 20)):
            features = pd.Index([f"{modality}_{i}" for i in range(n_features)])
            write(Path(folder) / f"{modality}.h5ad", arguments.cells, features)
        for side in arguments.sides:
            answer, peaks = watched(side, folder, arguments.steps)
            print(
                f"{arguments.cells}\t{arguments.genes}\t{side}\t{answer['prepare_s']:.3g}\t{answer['fit_s']:.3g}"
                f"\t{peaks['RssAnon']:.3f}\t{peaks['VmRSS']:.3f}\t{answer['before_gb']:.3f}",
                flush=True,
            )


def watched(side: str, folder: str, n_steps: int) -> tuple[dict, dict[str, float]]:
    """Train one side in a separate process; return its answer and its peak memory."""
    command = [sys.executable, __file__, "--side", side, "--folder", folder, "--steps", str(n_steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks = Peaks(process.pid, interval=0.01)
    said, _ = process.communicate()
    peaks.stop()
    if process.returncode:
        raise SystemExit(f"train_backed: the process of {side} ended with status {process.returncode}")
    return json.loads(said.splitlines()[-1]), peaks


def train(side: str, folder: Path, n_steps: int) -> None:
    """Train `n_steps` steps; print the seconds and the memory before."""
    before = memory_gb("self")["RssAnon"]
    start = time.monotonic()
    adatas = {k: ad.read_h5ad(folder / f"{k}.h5ad", backed=SIDES[side]) for k in ("rna", "adt")}
    model = clue.CLUE(adatas, n_components=100)
    middle = time.monotonic()
    model.fit(max_steps=n_steps, progress=False)
    end = time.monotonic()
    print(json.dumps({"prepare_s": middle - start, "fit_s": end - middle, "before_gb": before}))


if __name__ == "__main__":
    main()
