"""Exact FOSCTTM and SNN matching of many cells, compared with the naive formula and its limit.

    OMP_NUM_THREADS=1 python benchmarks/foscttm_scale.py [--cells 100000] [--dimensions 40] [--naive 2000 5000 10000]

The naive reference is the published one: `scipy.spatial.distance_matrix` of all pairs in float64 and comparisons with
its diagonal, 8 N² bytes of distances and as much again in temporaries. It runs at the sizes of `--naive`, where its
result must equal ours. At the large size, its memory is computed, not measured. Each row is a separate process.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from clue.matching import match_snn
from clue.metrics import foscttm


def main(argv: list[str] | None = None) -> None:
    """Print a row per size and side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--dimensions", type=int, default=40)
    parser.add_argument("--naive", type=int, nargs="*", default=[2_000, 5_000, 10_000])
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.side:
        measure(arguments.side, arguments.cells, arguments.dimensions)
        return
    print("cells\tside\tseconds\tpeak_GB\tresult", flush=True)
    for n_cells in arguments.naive:
        results = [run("naive", n_cells, arguments.dimensions), run("foscttm", n_cells, arguments.dimensions)]
        if abs(results[0] - results[1]) > 1e-9:
            raise SystemExit(f"foscttm_scale: {n_cells} cells: naive {results[0]}, ours {results[1]}")
    needed = 8 * arguments.cells**2 / 2**30
    print(f"{arguments.cells}\tnaive\tnot run: its distances alone\t{needed:.0f}\t-", flush=True)
    for side in ("foscttm", "match_snn"):
        run(side, arguments.cells, arguments.dimensions)


def run(side: str, n_cells: int, n_dimensions: int) -> float:
    """Measure in a separate process, print the row and return the result."""
    command = [sys.executable, __file__, "--side", side, "--cells", str(n_cells), "--dimensions", str(n_dimensions)]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"{n_cells}\t{side}\t{answer['seconds']:.3g}\t{answer['peak_gb']:.2f}\t{answer['result']:.6f}", flush=True)
    return answer["result"]


def measure(side: str, n_cells: int, n_dimensions: int) -> None:
    """Print seconds, peak memory and result."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_cells, n_dimensions)).astype(np.float32)
    y = x + rng.standard_normal(x.shape).astype(np.float32)
    start = time.monotonic()
    result = SIDES[side](x, y)
    answer = {"seconds": time.monotonic() - start, "result": result}
    answer["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(answer))


def naive(x: np.ndarray, y: np.ndarray) -> float:
    """FOSCTTM by the published formula, all distances at once."""
    from scipy.spatial import distance_matrix

    distance = distance_matrix(x.astype(np.float64), y.astype(np.float64))
    true = np.diagonal(distance)
    closer_x, closer_y = (distance < true[:, None]).mean(axis=1), (distance < true[None, :]).mean(axis=0)
    return float(np.mean([closer_x, closer_y]))


def ours(x: np.ndarray, y: np.ndarray) -> float:
    """FOSCTTM with the published distance and ties."""
    return float(np.mean(foscttm(x, y, metric="euclidean", ties="strict")))


def matched(x: np.ndarray, y: np.ndarray) -> float:
    """Mean weight of the true partner in the SNN match matrix."""
    return float(match_snn(x, y).diagonal().mean())


SIDES = {"naive": naive, "foscttm": ours, "match_snn": matched}


if __name__ == "__main__":
    main()
