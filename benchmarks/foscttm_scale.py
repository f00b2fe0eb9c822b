"""Exact FOSCTTM and SNN matching of many cells, compared with the naive formula and its limit.

    OMP_NUM_THREADS=1 python benchmarks/foscttm_scale.py [--cells 100000] [--dimensions 40] [--naive 2000 5000 10000]

The naive reference is the published one: `scipy.spatial.distance_matrix` of all pairs in float64 and comparisons with
its diagonal, 8 N² bytes of distances and as much again in temporaries. It runs at the sizes of `--naive`, where its
result must equal ours. At the large size, its memory is computed, not measured. Each row is a separate process.
"""

import time

import numpy as np
from measure import in_process, peak_gb, row

from clue.benchmark.program import run_program
from clue.matching import match_snn
from clue.metrics import foscttm


def main(cells: int = 100_000, dimensions: int = 40, naive: tuple[int, ...] = (2_000, 5_000, 10_000)) -> None:
    """Print a row per size and side.

    Parameters
    ----------
    cells, dimensions
        Size of the embedding.
    naive
        Numbers of cells at which the naive formula runs as well.
    """
    row("cells", "side", "seconds", "peak_GB", "result")
    for n_cells in naive:
        theirs, ours = (run(side, n_cells, dimensions) for side in ("naive", "foscttm"))
        if abs(theirs - ours) > 1e-9:
            raise SystemExit(f"foscttm_scale: {n_cells} cells: naive {theirs}, ours {ours}")
    row(cells, "naive", "not run: its distances alone", f"{8 * cells**2 / 2**30:.0f}", "-")
    for side in ("foscttm", "match_snn"):
        run(side, cells, dimensions)


def run(side: str, n_cells: int, n_dimensions: int) -> float:
    """Measure in a separate process, print the row and return the result."""
    seconds, peak, result = in_process(measure, side, n_cells, n_dimensions)
    row(n_cells, side, seconds, peak, f"{result:.6f}")
    return result


def measure(side: str, n_cells: int, n_dimensions: int) -> tuple[float, float, float]:
    """Return seconds, peak memory and result."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n_cells, n_dimensions)).astype(np.float32)
    y = x + rng.standard_normal(x.shape).astype(np.float32)
    start = time.monotonic()
    result = SIDES[side](x, y)
    return time.monotonic() - start, peak_gb(), result


def by_formula(x: np.ndarray, y: np.ndarray) -> float:
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


SIDES = {"naive": by_formula, "foscttm": ours, "match_snn": matched}


if __name__ == "__main__":
    run_program(main)
