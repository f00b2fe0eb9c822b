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
    """Counts of a mini-batch in coordinate form.

    Attributes
    ----------
    cell, feature
        Position of each non-zero count, int64, shape (n_nonzero,).
    value
        The count, float32, shape (n_nonzero,).
    total
        Sum of each cell's counts, shape (n_cells,).
    log_factorial
        Sum over features of log(count!) of each cell, shape (n_cells,); constant in every likelihood.
    n_features
        Number of features.
    """

    cell: torch.Tensor
    feature: torch.Tensor
    value: torch.Tensor
    total: torch.Tensor
    log_factorial: torch.Tensor
    n_features: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n_cells, n_features)."""
        return len(self.total), self.n_features

    def flat(self) -> torch.Tensor:
        """Return the position of each count in the flattened (cells × features) matrix."""
        return self.cell * self.n_features + self.feature

    def take(self, keep: torch.Tensor) -> "SparseCounts":
        """Return the cells where the mask `keep` is true."""
        entry = keep[self.cell]
        cell = (keep.cumsum(0) - 1)[self.cell[entry]]
        return SparseCounts(
            cell, self.feature[entry], self.value[entry], self.total[keep], self.log_factorial[keep], self.n_features
        )


def sparse_counts(dense: torch.Tensor) -> SparseCounts:
    """Return a dense (cells × features) matrix as sparse counts."""
    cell, feature = dense.nonzero(as_tuple=True)
    log_factorial = torch.lgamma(dense + 1).sum(1)
    return SparseCounts(cell, feature, dense[cell, feature], dense.sum(1), log_factorial, dense.shape[1])


class _SoftmaxNegativeBinomial(torch.autograd.Function):
    """Log-likelihood per pass and cell, without the constant log(count!).

    With p = softmax(scale · loc + bias), m = library · p + ε and A = m + θ,

        ll = Σ_features θ (log θ − log A)  +  Σ_nonzero x (log m − log A) + lgamma(x + θ) − lgamma(θ).

    Entries at non-zero counts are read and written through their position in the flattened
    (cells × features) matrix, which is several times faster than indexing by cell and feature.
    """

    @staticmethod
    def forward(ctx, loc, scale, bias, log_theta, library, batch, counts: SparseCounts):
        n_passes, n_cells, n_features = loc.shape
        theta = log_theta.exp()
        p = torch.addcmul(bias.index_select(0, batch), loc, scale.index_select(0, batch))
        p = p.sub_(p.amax(-1, keepdim=True)).exp_()
        p = p.div_(p.sum(-1, keepdim=True))
        theta_cell = theta.index_select(0, batch)
        total = torch.addcmul(theta_cell + EPSILON, p, library.unsqueeze(-1))  # A
        log_total = total.log()
        zeros = (log_theta * theta).sum(1)[batch] - torch.linalg.vecdot(log_total, theta_cell.expand_as(log_total))

        x, flat, of_theta = counts.value, counts.flat(), batch[counts.cell] * n_features + counts.feature
        theta_x = theta.view(-1).index_select(0, of_theta)
        p_x = p.view(n_passes, -1).index_select(1, flat)
        library_x = library.index_select(1, counts.cell)
        # not A − θ, which loses digits where θ is large
        mean_x = torch.add(p_x * library_x, EPSILON)
        per_count = x * (mean_x.log() - log_total.view(n_passes, -1).index_select(1, flat))
        per_count = per_count + (torch.lgamma(x + theta_x) - torch.lgamma(theta).view(-1).index_select(0, of_theta))
        ctx.counts, ctx.flat, ctx.of_theta = counts, flat, of_theta
        ctx.save_for_backward(loc, scale, log_theta, theta, library, batch, p, total, log_total, mean_x, p_x, theta_x)
        return zeros.index_add(1, counts.cell, per_count)

    @staticmethod
    def backward(ctx, grad):
        loc, scale, log_theta, theta, library, batch, p, total, log_total, mean_x, p_x, theta_x = ctx.saved_tensors
        counts, flat, x = ctx.counts, ctx.flat, ctx.counts.value
        n_passes, n_features = len(loc), loc.shape[2]
        inverse = total.reciprocal()
        inverse_x = inverse.view(n_passes, -1).index_select(1, flat)

        def by_batch(per_cell: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(scale).index_add(0, batch, per_cell)

        # d ll / d θ, then by the chain rule through θ = exp(log θ)
        weight = by_batch(grad.sum(0).unsqueeze(1).expand(-1, n_features))
        weighted = grad.unsqueeze(-1)
        grad_theta = (log_theta + 1) * weight - by_batch((log_total * weighted).sum(0))
        grad_theta -= theta * by_batch((inverse * weighted).sum(0))
        grad_x = grad.index_select(1, counts.cell)
        digammas = torch.digamma(x + theta_x) - torch.digamma(theta).view(-1).index_select(0, ctx.of_theta)
        per_count = (grad_x * (digammas - x * inverse_x)).sum(0)
        grad_log_theta = grad_theta.view(-1).index_add(0, ctx.of_theta, per_count).view_as(theta) * theta

        # d ll / d m, times p: zeros everywhere first, then what the non-zero counts add
        slope = inverse.mul_(p).mul_(-theta.index_select(0, batch))
        slope.view(n_passes, -1).index_add_(1, flat, p_x * x * (mean_x.reciprocal() - inverse_x))
        total_slope = slope.sum(-1, keepdim=True)
        grad_library = grad * total_slope.squeeze(-1)
        grad_logit = slope.addcmul_(p, total_slope, value=-1).mul_((grad * library).unsqueeze(-1))
        grad_scale = by_batch((grad_logit * loc).sum(0))
        grad_bias = by_batch(grad_logit.sum(0))
        return (
            grad_logit.mul_(scale.index_select(0, batch)),
            grad_scale,
            grad_bias,
            grad_log_theta,
            grad_library,
            None,
            None,
        )


def negative_binomial(
    loc: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    log_theta: torch.Tensor,
    library: torch.Tensor,
    batch: torch.Tensor,
    counts: SparseCounts,
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
    batch
        Batch of each cell, int64, shape (n_cells,).
    counts
        The cells' counts.

    Returns
    -------
    Sum over features of the log-likelihood, shape (n_passes, n_cells).
    """
    likelihood = _SoftmaxNegativeBinomial.apply(loc, scale, bias, log_theta, library, batch, counts)
    return likelihood - counts.log_factorial


def gaussian_kl(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of N(mean, std²) from N(0, 1), summed over the last axis."""
    return (0.5 * (mean.square() + std.square() - 1) - std.log()).sum(-1)


def cosine_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1 − cosine similarity of rows; half the squared distance of the normalised rows."""
    return 1 - F.cosine_similarity(x, y, dim=-1)
