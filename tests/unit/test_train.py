"""The training loop: lengths, its end, what is held out, validation, what a checkpoint belongs to."""

from itertools import combinations
from math import ceil, cos, pi
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import clue
from clue import network as clue_network
from clue import train
from clue.batches import Sampler
from clue.benchmark.config import Benchmark
from clue.network import Objective
from clue.simulate import simulate
from clue.train import Training, _foscttm, _Loop, held_out

ROOT = Path(__file__).parents[2]
SMALL = {"batch_key": "batch", "n_latent": 4, "n_components": 8}
SMALL |= dict.fromkeys(("encoder", "decoder", "discriminator"), (1, 16))
SHORT = {"batch_size": 32, "warmup_steps": 0, "warmup_passes": 0, "optimizer": "adam"}


@pytest.fixture(scope="module")
def data():
    """RNA and proteins of the same 240 cells; with `SHORT` a pass takes 6 steps."""
    return simulate(240, {"rna": 40, "adt": 12}, n_batches=2, seed=0)


def loop_of(data, **changes):
    model = clue.CLUE(data, **SMALL)
    return _Loop(model.network, model._cells(dict(model._data)), Objective(), Training(**{**SHORT, **changes}), seed=0)


def run(loop):
    """Train to the end; return the steps at which validation took place."""
    while not loop.done():
        loop.advance()
    return [row["step"] for row in loop.history]


# ---- lengths -------------------------------------------------------------------------------------


def test_longer_of_steps_and_passes_counts():
    training = Training(max_steps=36_000, warmup_steps=600, patience_steps=4_500, reduce_steps=1_500)
    few, many = training.in_steps(2), training.in_steps(1_000)
    assert (few.warmup_steps, few.patience_steps, few.reduce_steps) == (600, 4_500, 1_500)
    assert (many.warmup_steps, many.patience_steps, many.reduce_steps) == (12_000, 9_000, 3_000)
    assert many.in_steps(7) == many


@pytest.mark.parametrize(("max_passes", "expected"), [(0, 1_000), (4, 400), (50, 1_000)])
def test_first_limit_ends_training(max_passes, expected):
    assert Training(max_steps=1_000, max_passes=max_passes).in_steps(100).max_steps == expected


def test_warmup_takes_at_most_half_of_the_training():
    assert Training(max_steps=10_000, warmup_passes=12).in_steps(2_000).warmup_steps == 5_000


@pytest.mark.parametrize(("max_steps", "max_passes", "last"), [(20, 0, 20), (10**6, 3, 18)])
def test_training_ends_at_the_last_step_and_validates_there(data, max_steps, max_passes, last):
    loop = loop_of(data, check_steps=8, max_steps=max_steps, max_passes=max_passes)
    assert len(loop.sampler) == 6
    # validation takes place after whole passes of at least 8 steps in all, here two
    assert run(loop) == [12, last]


def test_cosine_ends_with_the_training(data):
    loop = loop_of(data, schedule="cosine", max_steps=10**6, max_passes=2)
    rates = []
    step = loop._train_step
    loop._train_step = lambda index: (step(index), rates.append(loop.generator_side.param_groups[0]["lr"]))
    run(loop)
    expected = [2e-3 * 0.5 * (1 + cos(pi * i / 12)) for i in range(12)]
    np.testing.assert_allclose(rates, expected)


@pytest.mark.parametrize(("patience_passes", "n_worse"), [(0, 8), (11, 11)])
def test_patience_is_at_least_eight_validations(data, monkeypatch, patience_passes, n_worse):
    monkeypatch.setattr(_Loop, "_held_out_losses", lambda loop: {"loss": 1.0})
    loop = loop_of(data, check_steps=1, patience_steps=1, patience_passes=patience_passes)
    # the first one is the best
    assert len(run(loop)) == 1 + n_worse


def lengths(modalities, n_cells, stage):
    """Return the training lengths of `clue_competition` without a budget, and the number of steps in a pass."""
    config = {"run": "x", "datasets": ["simulated"], "methods": ["clue_competition/default"], "seeds": [0]}
    training = Training(**Benchmark(config, ROOT).params("clue_competition", "default", modalities)[stage])
    pass_steps = int(0.9 * n_cells / training.batch_size)
    return training.in_steps(pass_steps), pass_steps


def test_competition_lengths_are_those_of_the_authors():
    # in passes, as in a log of the authors' code for the competition's Multiome cells
    training, pass_steps = lengths(["rna", "atac"], 42_492, "training")
    expected = {"warmup_steps": 21, "max_steps": 121, "patience_steps": 16, "reduce_steps": 6}
    assert {name: ceil(getattr(training, name) / pass_steps) for name in expected} == expected
    # fine-tuning is the same for any number of cells; `_LEAST_VALIDATIONS` must not lengthen its patience
    for n_cells in (343, 4_118, 66_175 + 2 * 15_066):
        tuning, pass_steps = lengths(["rna", "adt"], n_cells, "fine_tuning")
        assert tuning.max_steps == 50 * pass_steps and tuning.warmup_steps == 0 and tuning.check_steps == 1
        assert tuning.patience_steps == train._LEAST_VALIDATIONS * pass_steps and tuning.reduce_steps == 3 * pass_steps


@pytest.mark.parametrize("settings", [Training, Objective])
def test_numpy_numbers_become_those_of_python(settings):
    name = {Training: "learning_rate", Objective: "mse"}[settings]
    value = getattr(settings(**{name: np.float64(1e-3)}), name)
    assert type(value) is float and value == 1e-3


def test_foscttm_needs_held_out_cells():
    with pytest.raises(ValueError, match="monitor 'foscttm' needs held-out cells, but validation is 0"):
        Training(monitor="foscttm", validation=0)


# ---- the order of cells --------------------------------------------------------------------------


def test_pass_has_every_cell_once():
    sampler = Sampler(np.arange(100, 118), batch_size=6, seed=0)
    first, second = ([next(sampler) for _ in range(3)] for _ in range(2))
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(100, 118))
    assert not torch.equal(torch.cat(first), torch.cat(second))


# ---- held-out cells ------------------------------------------------------------------------------


def test_splits_of_two_seeds_are_independent():
    names = [f"AAACCTGAGAAACC{i:05d}-1" for i in range(20_000)]
    splits = [held_out(names, 0.1, seed) for seed in range(8)]
    # binomial: standard deviations are 42 and 14
    assert all(abs(split.sum() - 2_000) < 5 * 42 for split in splits)
    assert all(abs((a & b).sum() - 200) < 5 * 14 for a, b in combinations(splits, 2))


def test_more_cells_do_not_change_the_split():
    names = [f"cell_{i}" for i in range(300)]
    more = held_out(["another", *names], 0.1, seed=3)
    assert np.array_equal(held_out(names, 0.1, seed=3), more[1:])


def test_every_held_out_cell_counts(monkeypatch):
    monkeypatch.setattr(clue_network, "_noise_like", lambda x, generator: torch.zeros_like(x))
    loop = loop_of(simulate(1025, {"rna": 30, "adt": 8}, n_batches=2, seed=0))

    def loss(cells):
        loop.held_out = cells
        return loop._held_out_losses()["loss"]

    everything = torch.arange(1025)
    whole, chunk, last = loss(everything), loss(everything[:1024]), loss(everything[1024:])
    assert last != pytest.approx(chunk, rel=1e-3)
    assert 1025 * whole == pytest.approx(1024 * chunk + last, rel=1e-6)


def test_held_out_losses_of_a_mosaic_are_means_over_the_cells_of_each_modality(monkeypatch):
    monkeypatch.setattr(clue_network, "_noise_like", lambda x, generator: torch.zeros_like(x))
    cells = simulate(1400, {"rna": 30, "adt": 8}, n_batches=2, seed=0)
    # the second chunk has other shares of the modalities than the first
    loop = loop_of({"rna": cells["rna"][:1100].copy(), "adt": cells["adt"][900:].copy()})
    loop.held_out = torch.arange(1400)
    objective = loop.objective = Objective(source_cross=1.0)
    found = loop._held_out_losses()
    batch = loop.cells.take(loop.held_out)
    with torch.no_grad():
        posteriors = loop.network.posteriors(batch)
        expected = loop.network.generator_losses(batch, posteriors, objective)
        means = {k: mean for k, (mean, _) in posteriors.items()}
        adversarial = loop.network.discriminator_loss(batch, means, None, None)
    expected |= {"adversarial": adversarial, "loss": loop.network.total(expected, adversarial, objective)}
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-4), name


# ---- FOSCTTM of the held-out cells ---------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor computed."""

    n = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        """Compute, and record the size of the result."""
        result = function(*arguments, **(options or {}))
        if isinstance(result, torch.Tensor):
            self.n = max(self.n, result.numel())
        return result


def two_views(n, n_types=None):
    """Two embeddings of the same cells; with types, all cells of a type are equal."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_types or n, 6, generator=generator)
    y = x + 0.5 * torch.randn(x.shape, generator=generator)
    types = torch.arange(n) % len(x)
    # the second modality has the cells in another order, and one more
    order = torch.randperm(n, generator=generator)
    adt = torch.cat([order, torch.tensor([n])]), torch.cat([y[types][order], torch.ones(1, 6)])
    return {"rna": (torch.arange(n), x[types]), "adt": adt}


def naive(views):
    """Compare all pairs at once, in float64; ties count half."""
    (_, x), (order, y) = views.values()
    y = y[torch.argsort(order)][: len(x)]
    x, y = (torch.nn.functional.normalize(z.double(), dim=1) for z in (x, y))
    similarity = x @ y.T
    values = []
    for each in (similarity, similarity.T):
        true = each.diagonal()[:, None]
        tied = (each - true).abs() < 1e-12
        closer = (each > true) & ~tied
        values.append((closer.sum(1) + 0.5 * (tied.sum(1) - 1)).double().mean() / len(x))
    return float(np.mean(values))


@pytest.mark.parametrize("n_types", [None, 5, 1])
def test_foscttm_is_exact_without_a_square_matrix(n_types):
    views = two_views(1500, n_types)
    with Largest() as largest:
        found = _foscttm(views, seed=0)
    assert found == pytest.approx(naive(views), rel=1e-9)
    assert largest.n < 1500**2 / 4
    if n_types == 1:
        assert found == pytest.approx(0.5, abs=1e-3)


def test_foscttm_of_very_many_cells_uses_a_fixed_sample(monkeypatch):
    views = two_views(1500)
    exact = _foscttm(views, seed=0)
    monkeypatch.setattr(train, "_MOST_PAIRS", 500)
    with Largest() as largest:
        sampled = _foscttm(views, seed=0)
    assert largest.n <= 500 * 256
    assert sampled == _foscttm(views, seed=0) != exact
    assert sampled == pytest.approx(exact, rel=0.2)


# ---- checkpoints ---------------------------------------------------------------------------------


def test_checkpoint_belongs_to_its_cells(data):
    key = loop_of(data).key()
    assert loop_of(data).key() == key
    for change in (
        lambda cells: cells.batch.copy_(1 - cells.batch),
        lambda cells: setattr(cells, "names", cells.names[::-1]),
        lambda cells: cells.counts["rna"].start[1].add_(1),
    ):
        other = loop_of(data)
        change(other.cells)
        assert other.key() != key
