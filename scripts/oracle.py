"""Write an embedding that is made from the solution, the upper bound of every metric.

True pairs coincide; cells of one type lie around one direction, so that labels can be transferred.
"""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from clue.benchmark.config import ORACLE
from clue.benchmark.contracts import cells_of_test_file, read_solution, write_embedding
from clue.benchmark.program import run_program
from clue.matching import l2_normalise

N_DIMENSIONS = 64
SPREAD = 0.5  # spread of a type's cells around its direction, in units of that direction's length


def main(solution: Path, embedding: Path) -> None:
    """Run the program.

    Parameters
    ----------
    embedding
        The embedding to write (embedding.h5ad).
    """
    write_embedding(oracle(read_solution(solution)), embedding)


def oracle(solution: ad.AnnData) -> ad.AnnData:
    """Return an embedding in which the two cells of a pair coincide and no others do."""
    points = _points(solution.obs["cell_type"].astype(str).to_numpy())
    files = [cells_of_test_file(solution, name).assign(modality=name) for name in solution.uns["modalities"]]
    cells = pd.concat(files).set_index("cell", drop=False).rename_axis(None)
    identity = {key: str(solution.uns.get(key, "")) for key in ("dataset", "split")}
    uns = {"method": ORACLE, "variant": "default", "seed": 0, "params": "{}", **identity}
    return ad.AnnData(points[cells["pair"]], obs=cells[["cell", "modality", "batch"]], uns=uns)


def _points(cell_types: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    names, code = np.unique(cell_types, return_inverse=True)
    centre = l2_normalise(rng.standard_normal((len(names), N_DIMENSIONS)))
    around = l2_normalise(rng.standard_normal((len(cell_types), N_DIMENSIONS)))
    return l2_normalise(centre[code] + SPREAD * around).astype(np.float32)


if __name__ == "__main__":
    run_program(main)
