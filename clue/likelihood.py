"""Negative binomial log-likelihood of sparse counts, decoded through a softmax.

Most counts of a single-cell matrix are zero, and a zero needs neither `lgamma` nor its derivative. Only non-zero counts
pay for them. The value and its gradients are written by hand to keep dense (cells × features) passes few: in
`clue.kernel` for a CPU, here for a GPU and for double precision. `tests/unit/test_likelihood.py` compares both with
`torch.distributions` in float64.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from clue.kernel import EPSILON, sweep


@dataclass
class SparseCounts:
    """Counts of a mini-batch in coordinate form.

    Attributes
    ----------
    cell, feature
        Position of each non-zero count, int64, cells in ascending order, shape (n_nonzero,).
    value
        The count, float32, shape (n_nonzero,).
    total
        Sum of each cell's counts, shape (n_cells,).
    log_factorial
        Sum over features of log(count!) of each cell, shape (n_cells,); a constant of every likelihood.
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

    def compressed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the three arrays of a compressed sparse row matrix: the start of each cell, features and values."""
        start = torch.searchsorted(self.cell, torch.arange(len(self.total) + 1))
        return start.numpy(), self.feature.contiguous().numpy(), self.value.numpy()

    def dense(self) -> torch.Tensor:
        """Return the (cells × features) matrix."""
        dense = self.value.new_zeros(self.shape)
        dense.view(-1).index_add_(0, self.flat(), self.value)
        return dense

    def take(self, keep: torch.Tensor) -> "SparseCounts":
        """Return the cells where the mask `keep` is true."""
        entry = keep[self.cell]
        cell = (keep.cumsum(0) - 1)[self.cell[entry]]
        return SparseCounts(
            cell, self.feature[entry], self.value[entry], self.total[keep], self.log_factorial[keep], self.n_features
        )


class _DecodedLikelihood(torch.autograd.Function):
    """Mean log-likelihood of each pass, without the constant log(count!).

    With loc = hidden · weight, p = softmax(scale · loc + shift), m = library · p + ε and q = m / θ,

        ll = Σ_nonzero x (log m − log(1 + q)) + lgamma(x + θ) − lgamma(θ) − x log θ  −  Σ_features θ log(1 + q).

    Where θ is large, log(1 + q) is small and keeps its digits, unlike the difference of log θ and log(m + θ).

    The forward pass also computes the gradients, so that nothing is computed twice. The gradient of `loc` replaces
    `loc`, the only dense matrix that is kept, and leaves only two matrix products for the backward pass. The offset and
    the batch's rows of `weight` depend only on the batch. They are part of shift = bias + scale · offset, not of the
    products.
    """

    @staticmethod
    def forward(ctx, hidden, weight, offset, scale, bias, log_theta, library, batch, counts, dtype, differentiate):
        of_hidden, of_batch = weight.split([hidden.shape[-1], len(scale)])
        offset = of_batch + offset
        factors = hidden.to(dtype), of_hidden.to(dtype)
        loc = torch.matmul(*factors)
        parameters = (scale, torch.addcmul(bias, scale, offset), log_theta.exp())
        on_cpu = loc.device.type == "cpu" and hidden.dtype == torch.float32
        compute = _row_by_row if on_cpu else _all_at_once
        likelihood, grad_loc, *gradients = compute(
            loc.to(hidden.dtype), parameters, library, batch, counts, differentiate
        )
        ctx.save_for_backward(*factors, grad_loc.to(dtype), offset, scale, *gradients)
        return likelihood.mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, grad_loc, offset, scale, grad_library, gradients, batches = ctx.saved_tensors
        grad = grad / grad_library.shape[1]
        of_batches = scale.new_zeros(len(scale), 3 * scale.shape[1])
        of_batches.index_add_(0, batches, torch.matmul(grad, gradients.flatten(2)))
        grad_scale, grad_shift, grad_log_theta = of_batches.unflatten(1, (3, -1)).unbind(1)
        grad_offset = grad_shift * scale
        per_pass = grad.view(-1, 1, 1)
        weighted = (hidden * per_pass).to(hidden.dtype)
        grad_weight = scale.new_empty(len(weight) + len(scale), weight.shape[1])
        grad_weight[len(weight) :] = grad_offset
        _product(weighted.flatten(0, 1).T, grad_loc.flatten(0, 1), grad_weight[: len(weight)])
        return (
            torch.matmul(grad_loc, weight.T).to(scale.dtype) * per_pass,
            grad_weight,
            grad_offset.sum(0),
            torch.addcmul(grad_scale, grad_shift, offset),
            grad_shift,
            grad_log_theta,
            grad_library * grad.unsqueeze(1),
            *[None] * 4,
        )


def _product(x: torch.Tensor, y: torch.Tensor, out: torch.Tensor) -> None:
    """Write x · y to `out`, which may have another type."""
    if x.dtype == out.dtype:
        torch.mm(x, y, out=out)
    else:
        out.copy_(x @ y)


def _row_by_row(loc, parameters, library, batch, counts, differentiate: bool) -> tuple[torch.Tensor, ...]:
    """Compute the same as `_all_at_once`, with the compiled functions of `clue.kernel`."""
    scale, shift, theta = parameters
    own = torch.stack([scale, shift, theta, theta.reciprocal()], 1)
    arrays = [t.detach().contiguous().numpy() for t in (loc, library, batch, own)] + list(counts.compressed())
    likelihood, *gradients = sweep(*arrays, differentiate=differentiate, n_threads=torch.get_num_threads())
    return likelihood, loc, *gradients


def _all_at_once(loc, parameters, library, batch, counts, differentiate: bool) -> tuple[torch.Tensor, ...]:
    """Compute the likelihood and its derivatives with whole-tensor operations, on a GPU or in double precision.

    Parameters
    ----------
    loc
        Shape (n_passes, n_cells, n_features).
    parameters
        Scale, shift and θ, each of shape (n_batches, n_features). The softmax reads scale · loc + shift.
    differentiate
        Whether to compute gradients; otherwise `loc` is returned in place of its gradient, and the others are zeros.

    Returns
    -------
    Log-likelihoods, shape (n_passes, n_cells); the gradients of `loc` and `library`; the gradients of scale, shift and
    log θ, each summed over cells of one batch, shape (n_sums, n_passes, 3, n_features); and the batch of each sum,
    shape (n_sums,).
    """
    rows = _Rows(loc, parameters, library, batch, counts)
    likelihood = rows.log_likelihood()
    n_batches, n_features = parameters[0].shape
    if differentiate:
        grad_loc, grad_library, gradients = rows.differentiate()
    else:
        grad_loc, grad_library = loc, torch.zeros_like(library)
        gradients = loc.new_zeros(len(loc), n_batches, 3, n_features)
    return likelihood, grad_loc, grad_library, gradients.transpose(0, 1), torch.arange(n_batches, device=loc.device)


class _Rows:
    """The likelihood of the rows of `loc`, and its derivatives, in the notation of `_DecodedLikelihood`."""

    def __init__(self, loc, parameters, library, batch, counts: SparseCounts):
        self.loc, self.library, self.batch, self.counts = loc, library, batch, counts
        self.theta_of_batches = parameters[2]
        self.scale, self.shift, self.theta = (p.index_select(0, batch) for p in parameters)
        # several times faster than indexing by cell and feature
        self.flat = counts.flat()

    def at_counts(self, dense: torch.Tensor) -> torch.Tensor:
        """Return the entries at non-zero counts, shape (n_passes, n_nonzero)."""
        return dense.view(len(dense), -1).index_select(1, self.flat)

    def log_likelihood(self) -> torch.Tensor:
        """Return the log-likelihood of each pass and cell."""
        logit = torch.addcmul(self.shift, self.loc, self.scale)
        self.weight = logit.sub_(logit.amax(-1, keepdim=True)).exp_()
        self.total = self.weight.sum(-1)
        per_weight = self.library / self.total
        self.q = torch.addcmul(EPSILON / self.theta, self.weight / self.theta, per_weight.unsqueeze(-1))
        self.log1p_q = self.q.log1p()
        self.weight_x = self.at_counts(self.weight)
        self.mean_x = self.weight_x * per_weight.index_select(1, self.counts.cell) + EPSILON
        gamma_x, self.digamma_x = _gamma_differences(self.counts.value, self.at_counts(self.theta.unsqueeze(0)))
        # add each at its own entry: on a GPU, thousands of additions to the cell's sum would wait for each other
        of_entries = self.log1p_q * -self.theta
        per_count = self.counts.value * (self.mean_x.log() - self.at_counts(self.log1p_q)) + gamma_x
        of_entries.view(len(of_entries), -1).index_add_(1, self.flat, per_count)
        return of_entries.sum(-1)

    def differentiate(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the gradients of loc and library, and of the batches' parameters by pass and batch."""
        n_batches, n_features = self.theta_of_batches.shape
        # marks the cells of each batch, so that a product with it sums over them
        members = torch.eye(n_batches, dtype=self.loc.dtype, device=self.loc.device)[:, self.batch]
        inverse = (self.q + 1).reciprocal_()
        inverse_x = self.at_counts(inverse)
        # subtract before summing: both are nearly q where θ is large
        of_cells = self.log1p_q.addcmul_(self.q, inverse, value=-1)
        grad_log_theta = torch.matmul(members, of_cells).mul_(-self.theta_of_batches)
        at = self.batch.index_select(0, self.counts.cell) * n_features + self.counts.feature
        per_count = self.counts.value * self.at_counts(self.q) * inverse_x + self.digamma_x
        grad_log_theta.flatten(1).index_add_(1, at, per_count)

        # −weight · d ll / d m: first as if all counts were zero, then the contributions of the non-zero counts
        slope = inverse.mul_(self.weight)
        per_count = self.weight_x * self.counts.value * inverse_x / -self.mean_x
        slope.view(len(slope), -1).index_add_(1, self.flat, per_count)
        mean_slope = slope.sum(-1) / self.total
        slope.addcmul_(self.weight, mean_slope.unsqueeze(-1), value=-1)
        factor = (-self.library / self.total).unsqueeze(1)
        grad_shift = torch.bmm(factor * members, slope)
        grad_scale = torch.bmm(factor * members, slope * self.loc)
        grad_loc = slope.mul_(self.scale).mul_(factor.transpose(1, 2))
        return grad_loc, -mean_slope, torch.stack([grad_scale, grad_shift, grad_log_theta], 2)


def _gamma_differences(x: torch.Tensor, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lgamma(x + θ) − lgamma(θ) − x log θ, and θ times its derivative with respect to θ.

    They are computed in double precision, since they are small differences of large numbers where θ is large.
    """
    n, r = x.double(), theta.double()
    value = torch.lgamma(n + r) - torch.lgamma(r) - n * r.log()
    slope = r * (torch.digamma(n + r) - torch.digamma(r)) - n
    return value.to(theta.dtype), slope.to(theta.dtype)


def decoded_log_likelihood(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    offset: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    log_theta: torch.Tensor,
    library: torch.Tensor,
    batch: torch.Tensor,
    counts: SparseCounts,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the mean log-likelihood of counts under several decodings of the same cells.

    The decoder's last linear layer is part of the computation.

    Parameters
    ----------
    hidden
        Input of the decoder's last layer, shape (n_passes, n_cells, n_hidden); each pass decodes a different latent
        code.
    weight, offset
        The last layer, shapes (n_hidden + n_batches, n_features) and (n_features,): ``loc = x @ weight + offset``,
        where x is `hidden` followed by the one-hot batch.
    scale, bias, log_theta
        Parameters of each batch, shape (n_batches, n_features): the softmax reads
        ``scale · loc + bias`` and ``exp(log_theta)`` is the inverse dispersion.
    library
        Library size of each pass and cell, shape (n_passes, n_cells).
    batch
        Batch of each cell, int64, shape (n_cells,). Fastest if equal labels are next to each other.
    counts
        The cells' counts.
    dtype
        Type of the matrix products' factors and of `loc`; by default the type of `hidden`.

    Returns
    -------
    Log-likelihood, summed over features and averaged over cells, shape (n_passes,).
    """
    likelihood = _DecodedLikelihood.apply(
        hidden,
        weight,
        offset,
        scale,
        bias,
        log_theta,
        library,
        batch,
        counts,
        dtype or hidden.dtype,
        torch.is_grad_enabled(),
    )
    return likelihood - counts.log_factorial.mean()


def gaussian_kl(mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of N(mean, std²) from N(0, 1), summed over the last axis."""
    return (0.5 * (mean.square() + std.square() - 1) - std.log()).sum(-1)


def cosine_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """1 − cosine similarity of rows; half the squared distance of the normalised rows."""
    return 1 - F.cosine_similarity(x, y, dim=-1)


def info_nce(x: torch.Tensor, y: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean cross-entropy of finding the matching row of `y` for each row of `x` by cosine similarity / temperature."""
    similarity = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    return F.cross_entropy(similarity / temperature, torch.arange(len(x), device=x.device))
