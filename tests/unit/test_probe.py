"""Linear probes: known answers, and an embedding that keeps only one kind of factor."""

import numpy as np
import pytest
from tidy import embedding_of

from clue.benchmark.contracts import ContractError
from clue.benchmark.data.task import make_task
from clue.simulate import simulate
from scripts.probe import probe, r_squared

SPLIT = {"kind": "random", "fraction": 0.5, "seed": 0}


@pytest.fixture(scope="module")
def simulated():
    return simulate(800, {"rna": 60, "atac": 60}, n_shared=3, n_specific=2, seed=2)


@pytest.fixture(scope="module")
def solution(simulated):
    return make_task(simulated, "tiny", "s", SPLIT).solution


def embedded(simulated, solution, arrays):
    """Return the embedding of the test cells, taken from arrays over all simulated cells."""
    rows = simulated["rna"].obs_names.get_indexer(solution.obs_names)
    return embedding_of(solution, {name: arrays[name][rows] for name in ("rna", "atac")})


def mean_r2(table):
    return table.groupby(["input_modality", "factor_kind"])["r2"].mean()


def test_probes_find_only_what_is_in_the_embedding(simulated, solution):
    specific = {name: adata.obsm["specific"] for name, adata in simulated.mod.items()}
    found = mean_r2(probe(embedded(simulated, solution, specific), solution, simulated, "x"))
    assert found["rna", "own"] > 0.99 and found["atac", "own"] > 0.99
    assert abs(found["rna", "other"]) < 0.05 and abs(found["rna", "shared"]) < 0.05


def test_shared_space_has_no_specific_factor(simulated, solution):
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    shared = {name: adata.obsm["shared"] @ rotation for name, adata in simulated.mod.items()}
    found = mean_r2(probe(embedded(simulated, solution, shared), solution, simulated, "x"))
    assert found["rna", "shared"] > 0.99 and abs(found["rna", "own"]) < 0.05


def test_r_squared_of_a_factor_with_as_much_noise():
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((4000, 1))
    # half of the variance is signal: the best linear guess explains half of the factor
    assert r_squared(factors + rng.standard_normal((4000, 1)), factors)[0] == pytest.approx(0.5, abs=0.03)


def test_cells_of_other_data_are_refused(simulated, solution):
    other = simulated.copy()
    for adata in other.mod.values():
        adata.obs_names = "x" + adata.obs_names
    embedding = embedded(simulated, solution, {name: adata.obsm["shared"] for name, adata in simulated.mod.items()})
    with pytest.raises(ContractError, match="is not a cell of the simulated data"):
        probe(embedding, solution, other, "x")
