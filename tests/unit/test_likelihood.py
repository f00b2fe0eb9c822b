"""The sparse likelihood equals that of torch.distributions, values and gradients."""

import pytest
import torch
from counts import sparse_counts

from clue import likelihood
from clue.likelihood import EPSILON, cosine_distance, decoded_log_likelihood, gaussian_kl

N_PASSES, N_CELLS, N_FEATURES, N_BATCHES, N_HIDDEN = 2, 12, 50, 3, 7


def example(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    seen = torch.rand(N_CELLS, N_FEATURES, generator=generator) < 0.3
    dense = seen.to(dtype) * torch.randint(1, 300, seen.shape, generator=generator).to(dtype)
    # half the non-zero counts of real cells are 1
    dense[::2] = dense[::2].clamp(max=1)
    dense[3] = 0
    counts = sparse_counts(dense)
    batch = torch.randint(0, N_BATCHES - 1, (N_CELLS,), generator=generator)
    parameters = [
        normal(N_PASSES, N_CELLS, N_HIDDEN),
        normal(N_HIDDEN + N_BATCHES, N_FEATURES) / N_HIDDEN**0.5,
        normal(N_FEATURES),
        normal(N_BATCHES, N_FEATURES).abs(),
        normal(N_BATCHES, N_FEATURES),
        2 * normal(N_BATCHES, N_FEATURES),
        100 * normal(N_PASSES, N_CELLS).abs(),
    ]
    parameters[-1][0, 5] = 0  # a learned library size can be zero
    return dense, counts, batch, [p.requires_grad_() for p in parameters]


def reference(dense, batch, hidden, weight, offset, scale, bias, log_theta, library):
    loc = hidden @ weight[:N_HIDDEN] + weight[N_HIDDEN:][batch] + offset
    mean = (scale[batch] * loc + bias[batch]).softmax(-1) * library.unsqueeze(-1)
    logits = (mean + EPSILON).log() - log_theta[batch]
    of_entries = torch.distributions.NegativeBinomial(log_theta[batch].exp(), logits=logits).log_prob(dense)
    return of_entries.sum(-1).mean(-1)


def relative_errors(found, parameters, expected, exact=None):
    """Return how far each gradient of `found` is from that of `expected`, relative to its norm."""
    pairs = zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, exact or parameters), strict=True)
    return [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in pairs]


@pytest.fixture
def threads():
    """Set the number of threads, and restore it afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("way", ["whole tensors", 1, 3, 2 * N_CELLS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_value_and_gradients(dtype, tolerance, way, monkeypatch, threads):
    if way == "whole tensors":
        monkeypatch.setattr(likelihood, "_row_by_row", likelihood._all_at_once)
    else:
        threads(way)
    dense, counts, batch, parameters = example(dtype)
    expected = reference(dense, batch, *parameters)
    found = decoded_log_likelihood(*parameters, batch, counts)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    weight = torch.tensor([0.3, -1.7], dtype=dtype)
    assert max(relative_errors((found * weight).sum(), parameters, (expected * weight).sum())) <= tolerance


@pytest.mark.parametrize("log_theta", [-4.0, 0.0, 5.0, 10.0])
def test_float32_is_accurate_for_any_dispersion(log_theta):
    dense, counts, batch, parameters = example(torch.float32)
    with torch.no_grad():
        # the spread in `example` would let large dispersions hide errors at small ones
        parameters[5].div_(4).add_(log_theta)
    exact = [p.detach().double().requires_grad_() for p in parameters]
    expected = reference(dense.double(), batch, *exact)
    found = decoded_log_likelihood(*parameters, batch, counts)
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)
    assert max(relative_errors(found.sum(), parameters, expected.sum(), exact)) <= 2e-5


def test_repeated_feature_counts_twice():
    """Padding for a GPU repeats arbitrary features with a count of zero."""
    dense, counts, batch, parameters = example(torch.float32)
    again = sparse_counts(dense)
    entry = torch.arange(len(again.cell)).repeat_interleave(2)
    again.cell, again.feature, again.value = again.cell[entry], again.feature[entry], again.value[entry]
    again.value[1::2] = 0
    found, expected = (decoded_log_likelihood(*parameters, batch, c) for c in (again, counts))
    torch.testing.assert_close(found, expected)
    assert max(relative_errors(found.sum(), parameters, expected.sum())) < 1e-5


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", range(7))
def test_non_finite_parameters_show_in_the_loss(which, broken):
    """Training stops if the loss is not finite, so no parameter may hide it."""
    _, counts, batch, parameters = example(torch.float32)
    with torch.no_grad():
        parameters[which].view(-1)[0] = broken
        # the batch of this parameter has cells
        assert batch.eq(0).any()
        value = decoded_log_likelihood(*parameters, batch, counts)
    assert not value[0].isfinite()


def test_every_cell_alone():
    dense, _, batch, parameters = example(torch.float64)
    for i in range(N_CELLS):
        one = slice(i, i + 1)
        alone = [parameters[0][:, one], *parameters[1:6], parameters[6][:, one]]
        found = decoded_log_likelihood(*alone, batch[one], sparse_counts(dense[one]))
        torch.testing.assert_close(found, reference(dense[one], batch[one], *alone), rtol=1e-10, atol=0)


def test_value_is_the_same_without_gradients():
    _, counts, batch, parameters = example(torch.float32)
    with torch.no_grad():
        value = decoded_log_likelihood(*parameters, batch, counts)
    assert torch.equal(value, decoded_log_likelihood(*parameters, batch, counts))


def test_bfloat16_products_are_close():
    _, counts, batch, parameters = example(torch.float32)
    exact = decoded_log_likelihood(*parameters, batch, counts)
    rounded = decoded_log_likelihood(*parameters, batch, counts, torch.bfloat16)
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)
    assert max(relative_errors(rounded.sum(), parameters, exact.sum())) <= 0.05


def test_take_keeps_the_cells_of_a_mask():
    dense, counts, _, _ = example(torch.float32)
    keep = torch.arange(N_CELLS) % 3 == 0
    part = counts.take(keep)
    assert torch.equal(part.dense(), dense[keep])
    assert torch.equal(part.total, dense[keep].sum(1))


def test_kl_and_cosine_known_answers():
    kl = gaussian_kl(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(kl, torch.tensor([0.5 + 1.5 - torch.log(torch.tensor(2.0)).item()]))
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    y = torch.tensor([[0.0, 3.0], [0.0, 1.0]])
    torch.testing.assert_close(cosine_distance(x, y), torch.tensor([1.0, 0.0]))
