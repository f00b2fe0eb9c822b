"""Negative binomial log-likelihood of sparse counts, decoded through a softmax.

Most counts of a single-cell matrix are zero, and a zero needs neither `lgamma` nor its
derivative: only the non-zero counts pay for them. Value and gradients are written by hand so that
the dense (cells × features) passes are few; `tests/unit/test_likelihood.py` compares both with
`torch.distributions` in float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

EPSILON = 1e-7
"""Added to the mean, as the authors' code does, so that a mean of zero keeps a finite logarithm."""


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


def sparse_counts(dense: torch.Tensor) -> SparseCounts:
    """Return a dense (cells × features) matrix as sparse counts."""
    cell, feature = dense.nonzero(as_tuple=True)
    log_factorial = torch.lgamma(dense + 1).sum(1)
    return SparseCounts(cell, feature, dense[cell, feature], dense.sum(1), log_factorial, dense.shape[1])


BLOCK_ENTRIES = 2**17
"""Entries of the dense (passes × cells × features) matrices that a CPU works on at a time: half a megabyte each."""


class _DecodedLikelihood(torch.autograd.Function):
    """Mean log-likelihood of each pass, without the constant log(count!).

    With loc = hidden · weightᵀ + offset, p = softmax(scale · loc + bias), m = library · p + ε and q = m / θ,

        ll = Σ_nonzero x (log m − log(1 + q)) + lgamma(x + θ) − lgamma(θ) − x log θ  −  Σ_features θ log(1 + q).

    Where θ is large, log(1 + q) is small and keeps its digits, unlike the difference of log θ and log(m + θ).

    The forward pass computes the gradients as well, so that nothing is computed twice. The gradient of `loc` takes the
    place of `loc`, the only dense matrix that is kept; the backward pass has but two matrix products left. A CPU works
    on a few cells of one batch at a time, so that the dense rows stay in its cache. A GPU, where each operation costs
    a launch, works on all cells at once.
    """

    @staticmethod
    def forward(ctx, hidden, weight, offset, scale, bias, log_theta, library, batch, counts, dtype, differentiate):
        kind, hidden, weight = hidden.dtype, hidden.to(dtype), weight.to(dtype)
        loc = F.linear(hidden, weight, offset.to(dtype))
        n_passes, n_cells, n_features = loc.shape
        theta = log_theta.exp()
        likelihood = scale.new_zeros(n_passes)
        gradients = [scale.new_zeros(n_passes, *scale.shape) for _ in range(3)] if differentiate else []
        grad_library = torch.zeros_like(library)
        theta_x = theta.view(-1).index_select(0, batch.index_select(0, counts.cell) * n_features + counts.feature)
        gamma_x, digamma_x = _gamma_differences(counts.value, theta_x, differentiate)
        for batches, cells, entries in _blocks(batch, counts, n_passes, len(scale)):
            labels = batch[cells] - batches.start
            parameters = [p[batches] for p in (scale, bias, theta)]
            block = _Block(loc[:, cells].to(kind), parameters, labels, library[:, cells], counts, cells, entries)
            likelihood += block.log_likelihood(gamma_x[entries]).sum(1)
            if differentiate:
                into = [gradient[:, batches] for gradient in gradients]
                loc[:, cells], grad_library[:, cells] = block.differentiate(digamma_x[entries], *into)
        ctx.save_for_backward(hidden, weight, loc, scale, *gradients, grad_library)
        ctx.kind = kind
        return likelihood / n_cells

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        hidden, weight, grad_loc, scale, grad_scale, grad_bias, grad_log_theta, grad_library = ctx.saved_tensors
        grad = grad / grad_library.shape[1]
        per_pass = grad.view(-1, 1, 1)
        weighted = (hidden * per_pass).to(hidden.dtype)
        grad_weight = grad_loc.flatten(0, 1).T @ weighted.flatten(0, 1)
        grad_hidden = (grad_loc @ weight).to(ctx.kind) * per_pass
        grad_scale, grad_bias, grad_log_theta = ((g * per_pass).sum(0) for g in (grad_scale, grad_bias, grad_log_theta))
        # the offset is added to loc, which the softmax reads times the batch's scale
        grad_offset = (grad_bias * scale).sum(0)
        return (
            grad_hidden,
            grad_weight.to(ctx.kind),
            grad_offset,
            grad_scale,
            grad_bias,
            grad_log_theta,
            grad_library * grad.unsqueeze(1),
            *[None] * 4,
        )


LARGE_THETA = 10.0
"""Inverse dispersion above which differences of `lgamma` and `digamma` need float64."""


def _gamma_differences(x: torch.Tensor, theta: torch.Tensor, derivative: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lgamma(x + θ) − lgamma(θ) − x log θ, and θ times its derivative by θ.

    Both are 0 for a count of 1, the most frequent.
    """
    if x.is_cuda:
        # float64 for all: choosing entries would wait for the GPU
        n, r = x.double(), theta.double()
        value = torch.lgamma(n + r) - torch.lgamma(r) - n * r.log()
        slope = r * (torch.digamma(n + r) - torch.digamma(r)) - n if derivative else torch.zeros_like(r)
        return value.to(theta.dtype), slope.to(theta.dtype)
    difference, slope = torch.zeros_like(theta), torch.zeros_like(theta)
    more, large = x != 1, theta > LARGE_THETA
    for mask, dtype in ((more & ~large, theta.dtype), (more & large, torch.float64)):
        entry = torch.nonzero(mask).squeeze(1)
        n, r = x.index_select(0, entry).to(dtype), theta.index_select(0, entry).to(dtype)
        value = torch.lgamma(n + r) - torch.lgamma(r) - n * r.log()
        difference.index_copy_(0, entry, value.to(theta.dtype))
        if derivative:
            value = r * (torch.digamma(n + r) - torch.digamma(r)) - n
            slope.index_copy_(0, entry, value.to(theta.dtype))
    return difference, slope


def _blocks(
    batch: torch.Tensor, counts: SparseCounts, n_passes: int, n_batches: int
) -> Iterator[tuple[slice, slice, slice]]:
    """Yield batches, neighbouring cells of them, and their non-zero counts.

    On a GPU all at once; on a CPU a few cells of one batch at a time, so that sorted cells make few blocks.
    """
    if batch.is_cuda:
        yield slice(0, n_batches), slice(0, len(batch)), slice(0, len(counts.cell))
        return
    labels = batch.tolist()
    step = max(1, BLOCK_ENTRIES // (n_passes * counts.n_features))
    starts = [0]
    for i in range(1, len(labels)):
        if labels[i] != labels[i - 1] or i - starts[-1] == step:
            starts.append(i)
    starts.append(len(labels))
    entries = torch.searchsorted(counts.cell, counts.cell.new_tensor(starts)).tolist()
    for i in range(len(starts) - 1):
        label = labels[starts[i]]
        yield slice(label, label + 1), slice(starts[i], starts[i + 1]), slice(entries[i], entries[i + 1])


class _Block:
    """The likelihood of some cells of some batches, and its derivatives; the notation is `_DecodedLikelihood`'s.

    Parameters
    ----------
    parameters
        scale, bias and θ of the batches, each of shape (n_batches, n_features).
    labels
        Which of these batches each cell is of, shape (n_cells,).
    """

    def __init__(self, loc, parameters, labels, library, counts: SparseCounts, cells: slice, entries: slice):
        self.loc, self.library, self.labels = loc, library, labels
        self.n_batches, self.theta_of_batches = len(parameters[0]), parameters[2]
        # one row that all cells share, or a row for each cell
        rows = parameters if self.n_batches == 1 else [p.index_select(0, labels) for p in parameters]
        self.scale, self.bias, self.theta = rows
        self.x, self.feature, self.cell = counts.value[entries], counts.feature[entries], counts.cell[entries]
        self.cell = self.cell - cells.start
        # several times faster than indexing by cell and feature
        self.flat = self.cell * counts.n_features + self.feature

    def at_counts(self, dense: torch.Tensor) -> torch.Tensor:
        """Return the entries at non-zero counts, shape (n_passes, n_nonzero)."""
        return dense.view(len(dense), -1).index_select(1, self.flat)

    def log_likelihood(self, gamma_x: torch.Tensor) -> torch.Tensor:
        """Return the log-likelihood of each pass and cell."""
        logit = torch.addcmul(self.bias, self.loc, self.scale)
        self.weight = logit.sub_(logit.amax(-1, keepdim=True)).exp_()
        self.total = self.weight.sum(-1)
        per_weight = self.library / self.total
        self.q = torch.addcmul(EPSILON / self.theta, self.weight / self.theta, per_weight.unsqueeze(-1))
        self.log1p_q = self.q.log1p()
        self.weight_x = self.at_counts(self.weight)
        self.mean_x = self.weight_x * per_weight.index_select(1, self.cell) + EPSILON
        per_count = self.x * (self.mean_x.log() - self.at_counts(self.log1p_q)) + gamma_x
        if self.n_batches == 1:
            return (self.log1p_q @ -self.theta[0]).index_add_(1, self.cell, per_count)
        # added where they are, not to their cell's sum: on a GPU thousands would wait for each other there
        of_entries = self.log1p_q * -self.theta
        of_entries.view(len(of_entries), -1).index_add_(1, self.flat, per_count)
        return of_entries.sum(-1)

    def differentiate(self, digamma_x, grad_scale, grad_bias, grad_log_theta) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of loc and library; add those of the batches' parameters, of shape (n_passes, …)."""
        inverse = (self.q + 1).reciprocal_()
        inverse_x = self.at_counts(inverse)
        # subtracted before they are summed: both are nearly q where θ is large
        of_cells = self.log1p_q.addcmul_(self.q, inverse, value=-1)
        members: torch.Tensor | float = 1
        if self.n_batches == 1:
            of_batches, at = of_cells.sum(1, keepdim=True), self.feature
        else:
            # which cells are of a batch: a product with it sums over them
            members = torch.eye(self.n_batches, dtype=of_cells.dtype, device=of_cells.device)[:, self.labels]
            of_batches = torch.matmul(members, of_cells)
            at = self.labels.index_select(0, self.cell) * self.loc.shape[-1] + self.feature
        grad_theta = of_batches.mul_(-self.theta_of_batches)
        per_count = self.x * self.at_counts(self.q) * inverse_x + digamma_x
        grad_log_theta += grad_theta.flatten(1).index_add_(1, at, per_count).view_as(grad_theta)

        # −weight · d ll / d m: zeros everywhere first, then what the non-zero counts add
        slope = inverse.mul_(self.weight)
        slope.view(len(slope), -1).index_add_(1, self.flat, self.weight_x * self.x * inverse_x / -self.mean_x)
        mean_slope = slope.sum(-1) / self.total
        slope.addcmul_(self.weight, mean_slope.unsqueeze(-1), value=-1)
        factor = (-self.library / self.total).unsqueeze(1)
        grad_bias += torch.bmm(factor * members, slope)
        grad_scale += torch.bmm(factor * members, slope * self.loc)
        return slope.mul_(self.scale).mul_(factor.transpose(1, 2)), -mean_slope


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
    """Mean log-likelihood of counts under several decodings of the same cells, last linear layer included.

    Parameters
    ----------
    hidden
        Input of the decoder's last layer, shape (n_passes, n_cells, n_hidden); each pass decodes another
        latent code.
    weight, offset
        The last layer, shapes (n_features, n_hidden) and (n_features,): ``loc = hidden @ weight.T + offset``.
    scale, bias, log_theta
        Parameters of each batch, shape (n_batches, n_features): the softmax reads
        ``scale · loc + bias`` and ``exp(log_theta)`` is the inverse dispersion.
    library
        Library size of each pass and cell, shape (n_passes, n_cells).
    batch
        Batch of each cell, int64, shape (n_cells,). Fastest where equal labels are neighbours.
    counts
        The cells' counts.
    dtype
        Type of the matrix products' factors and of `loc`; that of `hidden` by default.

    Returns
    -------
    Sum over features of the log-likelihood, mean over cells, shape (n_passes,).
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
    """Mean cross-entropy of finding for each row of `x` the same row of `y` by cosine similarity / temperature."""
    similarity = F.normalize(x, dim=1) @ F.normalize(y, dim=1).T
    return F.cross_entropy(similarity / temperature, torch.arange(len(x), device=x.device))
