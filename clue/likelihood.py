"""Negative binomial log-likelihood of sparse counts, decoded through a softmax.

Most counts of a single-cell matrix are zero, and a zero needs neither `lgamma` nor its
derivative: only the non-zero counts pay for them. Forward and backward are written by hand so that
the dense (cells × features) passes are few; `tests/unit/test_likelihood.py` compares both with
`torch.distributions` in float64.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

EPSILON = 1e-7
"""Added to the mean, as the authors' code does, so that a mean of zero keeps a finite logarithm."""


@dataclass
class SparseCounts:
    """Counts of a mini-batch in coordinate form; entries are sorted by cell.

    Attributes
    ----------
    cell, feature
        Position of each non-zero count, int64, shape (n_nonzero,).
    value
        The count, float32, shape (n_nonzero,).
    shape
        (n_cells, n_features).
    """

    cell: torch.Tensor
    feature: torch.Tensor
    value: torch.Tensor
    shape: tuple[int, int]

    def log_factorial(self) -> torch.Tensor:
        """Return the sum over features of log(count!) per cell, shape (n_cells,)."""
        zeros = torch.zeros(self.shape[0], dtype=self.value.dtype, device=self.value.device)
        return zeros.index_add(0, self.cell, torch.lgamma(self.value + 1))

    def rows(self, start: int, stop: int) -> "SparseCounts":
        """Return cells `start` to `stop` alone."""
        first, last = torch.searchsorted(self.cell, torch.tensor([start, stop], device=self.cell.device)).tolist()
        part = slice(first, last)
        return SparseCounts(
            self.cell[part] - start, self.feature[part], self.value[part], (stop - start, self.shape[1])
        )

    def take(self, keep: torch.Tensor) -> "SparseCounts":
        """Return the cells where the mask `keep` is true."""
        entry = keep[self.cell]
        cell = (keep.cumsum(0) - 1)[self.cell[entry]]
        return SparseCounts(cell, self.feature[entry], self.value[entry], (int(keep.sum()), self.shape[1]))


class _SoftmaxNegativeBinomial(torch.autograd.Function):
    """Log-likelihood per pass and cell, without the constant log(count!).

    With p = softmax(scale · loc + bias), m = library · p + ε and A = m + θ,

        ll = Σ_features θ (log θ − log A)  +  Σ_nonzero x (log m − log A) + lgamma(x + θ) − lgamma(θ).
    """

    @staticmethod
    def forward(ctx, loc, scale, bias, log_theta, library, counts: SparseCounts):
        theta = log_theta.exp()
        p = torch.addcmul(bias, loc, scale)
        p = p.sub_(p.amax(-1, keepdim=True)).exp_()
        p = p.div_(p.sum(-1, keepdim=True))
        total = torch.addcmul(theta + EPSILON, p, library.unsqueeze(-1))  # A
        log_total = total.log()
        result = (log_theta * theta).sum() - log_total @ theta

        cell, feature, x = counts.cell, counts.feature, counts.value
        theta_x = theta[feature]
        total_x = total[:, cell, feature]
        # not A − θ, which loses digits where θ is large
        mean_x = p[:, cell, feature] * library[:, cell] + EPSILON
        per_count = x * (mean_x.log() - log_total[:, cell, feature])
        per_count = per_count + (torch.lgamma(x + theta_x) - torch.lgamma(theta_x))
        result = result.index_add(1, cell, per_count)
        ctx.counts = counts
        ctx.save_for_backward(loc, scale, log_theta, theta, library, p, total, log_total, mean_x, total_x)
        return result

    @staticmethod
    def backward(ctx, grad):
        loc, scale, log_theta, theta, library, p, total, log_total, mean_x, total_x = ctx.saved_tensors
        cell, feature, x = ctx.counts.cell, ctx.counts.feature, ctx.counts.value
        inverse = total.reciprocal()

        # d ll / d θ, then by the chain rule through θ = exp(log θ)
        weight = grad.sum()
        theta_x = theta[feature]
        grad_theta = (log_theta + 1) * weight
        grad_theta = grad_theta - torch.einsum("pc,pcf->f", grad, log_total)
        grad_theta = grad_theta - theta * torch.einsum("pc,pcf->f", grad, inverse)
        grad_x = grad[:, cell]
        digammas = torch.digamma(x + theta_x) - torch.digamma(theta_x)
        grad_theta = grad_theta.index_add(0, feature, (grad_x * (digammas - x / total_x)).sum(0))
        grad_log_theta = grad_theta * theta

        # d ll / d m, times p: zeros everywhere first, then what the non-zero counts add
        slope = inverse.mul_(p).mul_(-theta)
        p_x = p[:, cell, feature]
        # Every (cell, feature) occurs once, so that a plain indexed addition is exact.
        slope[:, cell, feature] += p_x * (x / mean_x - x / total_x)
        total_slope = slope.sum(-1, keepdim=True)
        grad_library = grad * total_slope.squeeze(-1)
        grad_logit = slope.addcmul_(p, total_slope, value=-1).mul_((grad * library).unsqueeze(-1))
        grad_scale = torch.einsum("pcf,pcf->f", grad_logit, loc)
        grad_bias = grad_logit.sum((0, 1))
        return grad_logit.mul_(scale), grad_scale, grad_bias, grad_log_theta, grad_library, None


def negative_binomial(
    loc: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    log_theta: torch.Tensor,
    library: torch.Tensor,
    counts: SparseCounts,
    group: list[int],
) -> torch.Tensor:
    """Log-likelihood of counts under several decodings of the same cells.

    Parameters
    ----------
    loc
        Decoder output, shape (n_passes, n_cells, n_features); each pass decodes another latent code.
    scale, bias, log_theta
        Parameters of each batch, shape (n_batches, n_features): the softmax reads
        ``scale · loc + bias`` and ``exp(log_theta)`` is the inverse dispersion.
    library
        Library size of each pass and cell, shape (n_passes, n_cells).
    counts
        The cells' counts; cells of one batch must lie side by side, batches ascending.
    group
        Number of cells of each batch, length n_batches.

    Returns
    -------
    Sum over features of the log-likelihood, shape (n_passes, n_cells).
    """
    results = []
    start = 0
    for batch, n_cells in enumerate(group):
        if n_cells == 0:
            continue
        stop = start + n_cells
        part = counts if n_cells == counts.shape[0] else counts.rows(start, stop)
        results.append(
            _SoftmaxNegativeBinomial.apply(
                loc[:, start:stop], scale[batch], bias[batch], log_theta[batch], library[:, start:stop], part
            )
        )
        start = stop
    return torch.cat(results, dim=1) - counts.log_factorial()


def gaussian_kl(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of N(mean, std²) from N(0, 1), summed over the last axis."""
    return (0.5 * (mean.square() + std.square() - 1) - std.log()).sum(-1)


def cosine_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1 − cosine similarity of rows; half the squared distance of the normalised rows."""
    return 1 - F.cosine_similarity(x, y, dim=-1)
