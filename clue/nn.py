"""Networks of CLUE: encoders into every subspace, decoders to counts, the modality discriminator.

Layer order and initialisation follow the authors' code (scglue 0.4.1), so that weights can be
copied between the two (`tests/unit/test_fidelity.py`).
"""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from clue import kernel
from clue.likelihood import EPSILON, SparseCounts, decoded_log_likelihood


class Linear(nn.Linear):
    """A linear layer whose product is computed in `dtype`; input, output and weights keep their own type."""

    def __init__(self, n_input: int, n_output: int, dtype: torch.dtype = torch.float32):
        super().__init__(n_input, n_output)
        self.product = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x · weightᵀ + bias."""
        if self.product in (torch.float32, x.dtype):
            return super().forward(x)
        return F.linear(x.to(self.product), self.weight.to(self.product)).to(x.dtype) + self.bias

    def extra_repr(self) -> str:
        """Show the type of the product when the module is printed."""
        return f"{super().extra_repr()}, product={self.product}"


class Dropout(nn.Module):
    """Dropout that, on a CPU, uses a faster random generator than torch's, which would take longer than the layers.

    Torch's generator seeds it, so that only torch's state decides which entries are dropped.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero entries at the rate and scale up the others, in training only."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        return x * self._mask(x.shape, x.dtype)

    def _mask(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Return 0 or 1 / (1 − rate) at random; 16 bits decide each, so the rate is exact to 1e-5."""
        generator = np.random.SFC64(int(torch.randint(2**63 - 1, ())))
        bits = torch.from_numpy(generator.random_raw(-(-shape.numel() // 4)).view(np.int16))
        dropped = round(self.rate * 2**16)
        # Arithmetic, since comparing to booleans and converting these takes four times as long.
        keep = bits[: shape.numel()].view(shape).to(dtype).add_(2**15 - dropped + 1).clamp_(0, 1)
        return keep.mul_(2**16 / (2**16 - dropped))

    def extra_repr(self) -> str:
        """Show the rate when the module is printed."""
        return f"rate={self.rate}"


def one_hot(batch: torch.Tensor, n_batches: int, like: torch.Tensor) -> torch.Tensor:
    """One-hot batch labels in the type of `like`; torch's function has a check that waits for the GPU."""
    return torch.eye(n_batches, dtype=like.dtype, device=like.device).index_select(0, batch)


class Encoder(nn.Module):
    """Gaussian posterior of one subspace z_j given one modality x_k.

    Parameters
    ----------
    n_input
        Width of the encoder input (principal components).
    n_latent
        Width of the subspace.
    n_layers, n_hidden, dropout, dtype
        Hidden layers: linear (products in `dtype`), leaky ReLU, batch normalisation, dropout.
    """

    def __init__(self, n_input: int, n_latent: int, n_layers: int, n_hidden: int, dropout: float, dtype: torch.dtype):
        super().__init__()
        layers: list[nn.Module] = []
        width = n_input
        for _ in range(n_layers):
            layers += [Linear(width, n_hidden, dtype), nn.LeakyReLU(0.2), nn.BatchNorm1d(n_hidden), Dropout(dropout)]
            width = n_hidden
        self.hidden = nn.Sequential(*layers)
        self.mean = nn.Linear(width, n_latent)
        self.std = nn.Linear(width, n_latent)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation, each of shape (n_cells, n_latent)."""
        hidden = self.hidden(x)
        return self.mean(hidden), F.softplus(self.std(hidden)) + EPSILON


class ModalityEncoder(nn.Module):
    """All encoders of one modality x_k: into its own subspace (self) and the others' (cross)."""

    def __init__(self, n_modalities: int, *encoder):
        super().__init__()
        self.subspaces = cast("list[Encoder]", nn.ModuleList(Encoder(*encoder) for _ in range(n_modalities)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation of z = (z_1 … z_K), each (n_cells, K · n_latent)."""
        means, stds = zip(*(encoder(x) for encoder in self.subspaces), strict=True)
        return torch.cat(means, dim=1), torch.cat(stds, dim=1)

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last hidden layers of all encoders side by side, shape (n_cells, K · width)."""
        return torch.cat([encoder.hidden(x) for encoder in self.subspaces], dim=1)


class _SparseProduct(torch.autograd.Function):
    """The product of sparse counts and the transpose of a weight, (n_outputs, n_features), on a CPU."""

    @staticmethod
    def forward(ctx, weight, counts: SparseCounts):
        ctx.counts, ctx.shape = counts.compressed(), weight.shape
        product = weight.new_empty(len(counts.total), len(weight))
        kernel.rows_by_weight(*ctx.counts, weight.detach().numpy(), product.numpy())
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        grad = slope.new_zeros(ctx.shape)
        kernel.slopes_by_rows(*ctx.counts, slope.contiguous().numpy(), grad.numpy())
        return grad, None


class LearnedLibrary(nn.Module):
    """Library size as in the authors' code: one non-negative linear read-out of the counts per subspace."""

    def __init__(self, n_features: int, n_modalities: int):
        super().__init__()
        self.linear = nn.Linear(n_features, n_modalities)

    def forward(self, counts: SparseCounts) -> torch.Tensor:
        """Return library sizes, shape (n_cells, n_modalities)."""
        if counts.value.is_cuda:
            return F.relu(self.linear(counts.dense()))
        return F.relu(_SparseProduct.apply(self.linear.weight, counts) + self.linear.bias)


class ObservedLibrary(nn.Module):
    """Library size as the sum of the cell's counts."""

    def __init__(self, n_modalities: int):
        super().__init__()
        self.n_modalities = n_modalities

    def forward(self, counts: SparseCounts) -> torch.Tensor:
        """Return library sizes, shape (n_cells, n_modalities)."""
        return counts.total.unsqueeze(1).expand(-1, self.n_modalities)


class Decoder(nn.Module):
    """Negative binomial decoder of one modality, conditioned on the batch.

    The batch is appended to the input of every layer. Each batch has its own scale, bias and dispersion of
    the counts.
    """

    def __init__(
        self,
        n_latent: int,
        n_features: int,
        n_batches: int,
        n_layers: int,
        n_hidden: int,
        dropout: float,
        dtype: torch.dtype,
    ):
        super().__init__()
        self.n_batches, self.dtype = n_batches, dtype
        self.layers = nn.ModuleList()
        width = n_latent
        for _ in range(n_layers):
            self.layers.append(
                nn.Sequential(
                    Linear(width + n_batches, n_hidden, dtype),
                    nn.LeakyReLU(0.2),
                    nn.BatchNorm1d(n_hidden),
                    Dropout(dropout),
                )
            )
            width = n_hidden
        loc = nn.Linear(width + n_batches, n_features)
        # Transposed, unlike in a linear layer, so that features are adjacent: on a CPU this almost halves the time of
        # the gradient.
        self.weight = nn.Parameter(loc.weight.detach().T.contiguous())
        self.offset = nn.Parameter(loc.bias.detach())
        self.scale = nn.Parameter(torch.zeros(n_batches, n_features))
        self.bias = nn.Parameter(torch.zeros(n_batches, n_features))
        self.log_theta = nn.Parameter(torch.zeros(n_batches, n_features))

    def hidden(self, z: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return the input of the last layer without the batch, shape (n_cells, n_hidden)."""
        batch = one_hot(batch, self.n_batches, z)
        for layer in self.layers:
            z = layer(torch.cat([z, batch], dim=1))
        return z

    def log_likelihood(
        self,
        codes: list[torch.Tensor],
        batch: torch.Tensor,
        library: list[torch.Tensor],
        counts: SparseCounts,
    ) -> torch.Tensor:
        """Mean log-likelihood of the same counts under several latent codes.

        The hidden layers see one code at a time, since batch normalisation must not mix them. The last
        layer, which does nearly all the work, sees them together.

        Returns
        -------
        Log-likelihood, summed over features and averaged over cells, shape (n_codes,).
        """
        return decoded_log_likelihood(
            torch.stack([self.hidden(z, batch) for z in codes]),
            self.weight,
            self.offset,
            F.softplus(self.scale),
            self.bias,
            self.log_theta,
            torch.stack(library),
            batch,
            counts,
            self.dtype,
        )

    def expected(self, z: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return the expected share of each feature in the library, shape (n_cells, n_features)."""
        x = torch.cat([self.hidden(z, batch), one_hot(batch, self.n_batches, z)], dim=1)
        loc = torch.addmm(self.offset, x, self.weight)
        return (F.softplus(self.scale)[batch] * loc + self.bias[batch]).softmax(dim=1)


class Discriminator(nn.Module):
    """Predicts the modality that an embedding came from, given the batch if `n_batches` is not 0."""

    def __init__(self, n_input: int, n_modalities: int, n_batches: int, n_layers: int, n_hidden: int, dropout: float):
        super().__init__()
        self.n_batches = n_batches
        layers: list[nn.Module] = []
        width = n_input + n_batches
        for _ in range(n_layers):
            layers += [nn.Linear(width, n_hidden), nn.LeakyReLU(0.2), Dropout(dropout)]
            width = n_hidden
        self.net = nn.Sequential(*layers, nn.Linear(width, n_modalities))

    def forward(self, z: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n_cells, n_modalities)."""
        if self.n_batches:
            z = torch.cat([z, one_hot(batch, self.n_batches, z)], dim=1)
        return self.net(z)
