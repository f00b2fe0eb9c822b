"""Write the embedding of one who knows the solution: the upper bound of every metric.

True pairs coincide; cells of one type lie around one direction, so that labels can be transferred.
"""

import json
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from clue.benchmark.config import ORACLE
from clue.benchmark.contracts import ContractError, check_embedding_fits, read_solution, read_test, write_embedding
from clue.benchmark.files import atomic
from clue.benchmark.methods import peak_memory_mb
from clue.benchmark.program import run_program
from clue.matching import l2_normalise

N_DIMENSIONS = 64
SPREAD = 0.5  # of a type's cells around its direction, in units of that direction's length


def main(tests: list[Path], solution: Path, embedding: Path) -> None:
    """Run the program.

    Parameters
    ----------
    tests
        Test cells (test_<modality>.h5ad).
    embedding
        The embedding to write (embedding.h5ad).
    """
    start = time.perf_counter()
    cells = {str(test.uns["modality"]): test for test in map(read_test, tests)}
    embedded = oracle(cells, read_solution(solution), str(solution))
    check_embedding_fits(embedded, {name: test.obs_names for name, test in cells.items()}, str(embedding))
    _write_report(embedded, embedding.with_name("run.json"), time.perf_counter() - start)
    write_embedding(embedded, embedding)


def oracle(tests: dict[str, ad.AnnData], solution: ad.AnnData, where: str) -> ad.AnnData:
    """Return an embedding in which the two cells of a pair coincide and no others do."""
    modalities = [str(name) for name in solution.uns["modalities"]]
    if sorted(tests) != sorted(modalities):
        raise ContractError(f"{where}: pairs {modalities}, but the test files hold {sorted(tests)}")
    points = _points(solution.obs["cell_type"].astype(str).to_numpy())
    parts, obs = [], []
    for modality in modalities:
        cells, names = tests[modality].obs_names, pd.Index(solution.obs[modality].astype(str))
        pair = names.get_indexer(cells)
        if len(cells) != len(names) or (pair < 0).any():
            raise ContractError(f"{where}: obs[{modality!r}] does not name the cells of the test file")
        batch = tests[modality].obs["batch"].astype(str).to_numpy()
        parts.append(points[pair])
        obs.append(pd.DataFrame({"cell": cells, "modality": modality, "batch": batch}, index=cells))
    embedding = ad.AnnData(np.concatenate(parts), obs=pd.concat(obs))
    identity = {key: str(solution.uns.get(key, "")) for key in ("dataset", "split")}
    embedding.uns = {"method": ORACLE, "variant": "default", "seed": 0, "params": "{}", **identity}
    return embedding


def _points(cell_types: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)
    names, code = np.unique(cell_types, return_inverse=True)
    centre = l2_normalise(rng.standard_normal((len(names), N_DIMENSIONS)))
    around = l2_normalise(rng.standard_normal((len(cell_types), N_DIMENSIONS)))
    return l2_normalise(centre[code] + SPREAD * around).astype(np.float32)


def _write_report(embedding: ad.AnnData, path: Path, seconds: float) -> None:
    report = {
        **embedding.uns,
        "params": {},
        "device": "none",
        "threads": 1,
        "seconds": round(seconds, 3),
        "peak_memory_mb": round(peak_memory_mb(), 1),
    }
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    run_program(main)
