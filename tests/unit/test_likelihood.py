"""The sparse likelihood equals that of torch.distributions, values and gradients."""

import pytest
import torch

from clue.likelihood import EPSILON, cosine_distance, gaussian_kl, negative_binomial, sparse_counts

N_PASSES, N_CELLS, N_FEATURES, N_BATCHES = 2, 12, 50, 3


def example(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    seen = torch.rand(N_CELLS, N_FEATURES, generator=generator) < 0.3
    dense = seen.to(dtype) * torch.randint(1, 300, seen.shape, generator=generator).to(dtype)
    dense[3] = 0
    counts = sparse_counts(dense)
    batch = torch.randint(0, N_BATCHES - 1, (N_CELLS,), generator=generator)
    parameters = [
        normal(N_PASSES, N_CELLS, N_FEATURES),
        normal(N_BATCHES, N_FEATURES).abs(),
        normal(N_BATCHES, N_FEATURES),
        2 * normal(N_BATCHES, N_FEATURES),
        100 * normal(N_PASSES, N_CELLS).abs(),
    ]
    parameters[-1][0, 5] = 0  # a learned library size can be zero
    return dense, counts, batch, [p.requires_grad_() for p in parameters]


def reference(dense, batch, loc, scale, bias, log_theta, library):
    mean = (scale[batch] * loc + bias[batch]).softmax(-1) * library.unsqueeze(-1)
    logits = (mean + EPSILON).log() - log_theta[batch]
    return torch.distributions.NegativeBinomial(log_theta[batch].exp(), logits=logits).log_prob(dense).sum(-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_value_and_gradients(dtype, tolerance):
    dense, counts, batch, parameters = example(dtype)
    expected = reference(dense, batch, *parameters)
    found = negative_binomial(*parameters, batch, counts)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    weight = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_gradcheck():
    dense, _, batch, parameters = example(torch.float64)
    small = [p.detach()[..., :12, :6] if p.dim() == 3 else p.detach() for p in parameters]
    small = [small[0], *(p[:, :6] for p in small[1:4]), small[4][:, :12].clamp(min=1)]
    few = sparse_counts(dense[:, :6])
    inputs = [p.clone().requires_grad_() for p in small]
    assert torch.autograd.gradcheck(lambda *p: negative_binomial(*p, batch, few), inputs, atol=1e-5)


def test_take_keeps_the_cells_of_a_mask():
    dense, counts, _, _ = example(torch.float32)
    keep = torch.arange(N_CELLS) % 3 == 0
    part = counts.take(keep)
    rebuilt = torch.zeros(part.shape)
    rebuilt[part.cell, part.feature] = part.value
    assert torch.equal(rebuilt, dense[keep])
    assert torch.equal(part.total, dense[keep].sum(1))


def test_kl_and_cosine_known_answers():
    kl = gaussian_kl(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(kl, torch.tensor([0.5 + 1.5 - torch.log(torch.tensor(2.0)).item()]))
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    y = torch.tensor([[0.0, 3.0], [0.0, 1.0]])
    torch.testing.assert_close(cosine_distance(x, y), torch.tensor([1.0, 0.0]))
