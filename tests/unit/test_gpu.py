"""On a GPU a step is recorded once and replayed, which trains like kernel-by-kernel steps. Skipped without a GPU."""

import numpy as np
import pytest
import torch

from clue import CLUE, Objective, Training, simulate
from clue.train import _Loop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture(scope="module")
def mdata():
    return simulate.simulate(600, {"rna": 200, "atac": 300}, seed=0)


def trained(mdata, recorded: bool, **training):
    """Return the loop after some steps, with noise and dropout drawn from one seed."""
    model = CLUE(mdata, batch_key="batch", device="cuda", seed=0)
    loop = _Loop(model.network, model._cells(model._data), Objective(), Training(**training), 0)
    assert loop.learn != loop._learn
    if not recorded:
        loop.learn = lambda draw, *scalars: loop._learn(draw, *scalars)
    for _ in range(30):
        loop.advance()
    return loop


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_recorded_training_equals_kernel_by_kernel_training(mdata, schedule):
    settings = {"schedule": schedule, "max_steps": 30, "warmup_steps": 10, "warmup_passes": 0}
    recorded, plain = (trained(mdata, recorded, **settings) for recorded in (True, False))
    assert recorded.learn.graphs
    # sums on a GPU have no fixed order; training amplifies the differences
    assert recorded.history[-1]["loss"] == pytest.approx(plain.history[-1]["loss"], rel=1e-2)


def test_partly_paired_cells(mdata):
    model = CLUE({"rna": mdata["rna"][:400].copy(), "atac": mdata["atac"][200:].copy()}, device="cuda", seed=0)
    model.fit(max_steps=60, progress=False)
    assert np.isfinite(model.history["loss"]).all()
    assert np.isfinite(model.align(mdata["rna"], "rna")).all()
