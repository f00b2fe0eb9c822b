"""CLUE's modules and losses for one mini-batch, where each cell is seen in any subset of K modalities.

The embedding z = (z_1 … z_K) has one subspace per modality. Every modality x_k has a self-encoder
q(z_k | x_k) and cross-encoders q(z_j | x_k). So a cell seen in one modality has a complete z, and z_k
keeps the information that only x_k has. Decoder p(x_k | z_k) reads only its own subspace. The
objective (Tu et al., NeurIPS 2022) is

    min over encoders, decoders:  λ_self L_self + λ_cross L_cross + λ_mse L_mse − λ_adversarial L_D
    min over the discriminator:   λ_adversarial L_D

where L_D is the discriminator's cross-entropy. L_MSE only pulls the embeddings of a cell together. The likelihood
keeps them apart from those of other cells, and it sees the directions of large variance. A further term, which is
not in the paper, also pushes them apart: λ_contrastive L_contrastive (`Objective.contrastive`; 0 by default).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from clue.batches import MiniBatch
from clue.checks import as_python_numbers, check_kinds
from clue.likelihood import cosine_distance, gaussian_kl, info_nce
from clue.nn import Decoder, Discriminator, LearnedLibrary, ModalityEncoder, ObservedLibrary


@dataclass(frozen=True)
class Objective:
    """Weights of the losses; 0 removes a loss (the ablations).

    Attributes
    ----------
    self_elbo
        λ_self: negative log-likelihood of x_k decoded from z_k of its own encoder, plus the KL divergence.
    kl
        Weight of the KL divergence within L_self and, if it has one, L_cross. The divergence is divided by the number
        of features, since likelihoods are means over features.
    cross
        λ_cross: loss of x_k decoded from z_k of the cell's fused embedding (`fusion` of `Network`).
    source_cross
        Loss of x_k decoded from z_k of each other modality's cross-encoder alone.
    mse
        λ_mse: Σ_k mean(1 − cos(z^(k), z̄)), half the mean squared distance of the normalised
        embeddings to their mean; 0 for a cell seen in one modality.
    adversarial
        λ_adversarial: the discriminator's cross-entropy.
    contrastive
        λ_contrastive: the cross-entropy of finding a cell, given its embedding from one modality, among the
        mini-batch's embeddings from another, by cosine similarity of posterior means (InfoNCE; van den Oord et al.,
        arXiv:1807.03748, in the symmetric form of Radford et al., ICML 2021). It is summed over ordered pairs of
        modalities. It is not part of the paper's objective.
    temperature
        Divisor of the cosine similarities in `contrastive`.
    """

    self_elbo: float = 1.0
    kl: float = 1.0
    cross: float = 1.0
    source_cross: float = 0.0
    mse: float = 1.0
    adversarial: float = 1.0
    contrastive: float = 0.0
    temperature: float = 0.1

    def __post_init__(self):
        check_kinds(Objective, vars(self))
        as_python_numbers(self)
        for name, weight in vars(self).items():
            if weight < 0:
                raise ValueError(f"{name} is {weight!r}; the weight of a loss must be at least 0")
        if self.contrastive and not self.temperature:
            raise ValueError("temperature is 0, but the contrastive loss divides by it")


class Network(nn.Module):
    """Encoders, decoders and discriminator of CLUE, and its losses.

    Parameters
    ----------
    n_inputs, n_features
        Width of the encoder input and number of decoded features of each modality.
    n_batches
        Number of batches.
    n_latent
        Width of each subspace; the embedding has ``K · n_latent`` dimensions.
    encoder, decoder, discriminator
        (number of hidden layers, their width).
    dropout
        Dropout rate of all hidden layers.
    fusion
        The embedding that L_cross decodes. ``mean`` (the authors' code): the mean of the modalities' samples; L_cross
        is only a negative log-likelihood. ``product`` (the paper's formula): a sample of the Gaussian Π_k q(z | x_k);
        L_cross is the variational bound of each x_k, with the KL divergence of the product's z_k.
    library
        Library size that decoders read: ``observed`` counts or ``learned`` (the authors' code).
    normalize
        Whether sampled embeddings are scaled to unit length before they are decoded and compared.
    precision
        Type of the factors of the large matrix products: ``float32`` or ``bfloat16``. ``bfloat16`` is several times
        faster on processors that multiply it natively, and slower on others. Everything else is float32.
    shared_batches
        Whether the discriminator reads the batch, as in the authors' code. It then aligns modalities within each
        batch. A batch seen in only one modality gives that modality away, so its cells are aligned only through what
        the model learns from the pairs of other batches. If False, the discriminator aligns modalities over all
        batches together, which expects the same kinds of cells in each modality.
    """

    def __init__(
        self,
        n_inputs: dict[str, int],
        n_features: dict[str, int],
        n_batches: int,
        n_latent: int,
        encoder: tuple[int, int],
        decoder: tuple[int, int],
        discriminator: tuple[int, int],
        dropout: float,
        fusion: str,
        library: str,
        normalize: bool,
        precision: str = "float32",
        shared_batches: bool = True,
    ):
        super().__init__()
        dtype = getattr(torch, precision)
        self.modalities = list(n_inputs)
        self.n_latent, self.fusion, self.normalize = n_latent, fusion, normalize
        n_modalities = len(self.modalities)
        encoders = {
            k: ModalityEncoder(n_modalities, n_inputs[k], n_latent, *encoder, dropout, dtype) for k in self.modalities
        }
        self.encoders = cast("dict[str, ModalityEncoder]", nn.ModuleDict(encoders))
        self.libraries = nn.ModuleDict(
            {
                k: LearnedLibrary(n_features[k], n_modalities)
                if library == "learned"
                else ObservedLibrary(n_modalities)
                for k in self.modalities
            }
        )
        decoders = {k: Decoder(n_latent, n_features[k], n_batches, *decoder, dropout, dtype) for k in self.modalities}
        self.decoders = cast("dict[str, Decoder]", nn.ModuleDict(decoders))
        n_read = n_batches if shared_batches else 0
        self.discriminator = Discriminator(n_modalities * n_latent, n_modalities, n_read, *discriminator, dropout)

    def generator_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of encoders and decoders."""
        return [p for name, p in self.named_parameters() if not name.startswith("discriminator.")]

    def compile_layers(self, backend: str) -> None:
        """Have `torch.compile` fuse the operations of layers; the likelihood is already fused by hand."""
        decoded = [layer for decoder in self.decoders.values() for layer in decoder.layers]
        for module in (*self.encoders.values(), *decoded, self.discriminator):
            # the number of cells seen in a modality varies between mini-batches
            module.compile(backend=backend, dynamic=True)

    def subspace(self, z: torch.Tensor, modality: str) -> torch.Tensor:
        """Return z_k of z, shape (n_cells, n_latent)."""
        i = self.modalities.index(modality)
        return z[:, i * self.n_latent : (i + 1) * self.n_latent]

    def unit(self, z: torch.Tensor) -> torch.Tensor:
        """Scale embeddings to unit length if the model is set to normalise."""
        return F.normalize(z, dim=1) if self.normalize else z

    # ---- posteriors ------------------------------------------------------------------------------

    def posteriors(self, batch: MiniBatch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Mean and standard deviation of q(z | x_k) for every modality seen in the mini-batch."""
        return {k: self.encoders[k](seen.x) for k, seen in batch.seen.items()}

    def centre(self, batch: MiniBatch, samples: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean z̄ of each cell's samples over the modalities it is seen in, shape (n_cells, K · n_latent)."""
        total = next(iter(samples.values())).new_zeros(batch.n_cells, len(self.modalities) * self.n_latent)
        count = total[:, :1]
        for k, seen in batch.seen.items():
            total = total.index_add(0, seen.cell, samples[k])
            count = count.index_add(0, seen.cell, torch.ones_like(samples[k][:, :1]))
        return self.unit(total / count.clamp(min=1))

    def joint_posterior(
        self, batch: MiniBatch, posteriors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each cell's Π_k q(z | x_k), each of shape (n_cells, K · n_latent)."""
        precision = next(iter(posteriors.values()))[0].new_zeros(batch.n_cells, len(self.modalities) * self.n_latent)
        weighted = precision
        for k, seen in batch.seen.items():
            mean, std = posteriors[k]
            precision = precision.index_add(0, seen.cell, std.pow(-2))
            weighted = weighted.index_add(0, seen.cell, mean * std.pow(-2))
        precision = precision.clamp(min=1e-12)
        return weighted / precision, precision.rsqrt()

    # ---- losses ----------------------------------------------------------------------------------

    def discriminator_loss(
        self,
        batch: MiniBatch,
        means: dict[str, torch.Tensor],
        noise: float | torch.Tensor | None,
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """Cross-entropy of predicting the modality from the posterior means (not normalised).

        `noise` is the factor of the N(0, 1) noise added to the means, annealed to 0 during warm-up; None adds none.
        """
        z = torch.cat(list(means.values()))
        if noise is not None:
            z = z + noise * _noise_like(z, generator)
        labels = torch.cat([seen.batch for seen in batch.seen.values()])
        truth = torch.cat(
            [seen.batch.new_full(seen.batch.shape, self.modalities.index(k)) for k, seen in batch.seen.items()]
        )
        return F.cross_entropy(self.discriminator(z, labels), truth)

    def generator_losses(
        self,
        batch: MiniBatch,
        posteriors: dict[str, tuple[torch.Tensor, torch.Tensor]],
        objective: Objective,
        generator: torch.Generator | None = None,
    ) -> dict[str, torch.Tensor]:
        """Every loss of encoders and decoders, each a mean over cells (and features for likelihoods).

        Returns
        -------
        ``nll_<k>``, ``kl_<k>`` (L_self of modality k), ``cross``, ``cross_kl`` (``fusion="product"`` only),
        ``source_cross``, ``mse``, ``contrastive``.
        """
        samples = {k: self.unit(m + s * _noise_like(m, generator)) for k, (m, s) in posteriors.items()}
        fused = centre = self.centre(batch, samples)
        if self.fusion == "product":
            joint = self.joint_posterior(batch, posteriors)
            fused = self.unit(joint[0] + joint[1] * _noise_like(centre, generator))
        libraries = {k: self.libraries[k](seen.counts) for k, seen in batch.seen.items()}
        losses: dict[str, Any] = dict.fromkeys(("cross", "source_cross", "mse", "contrastive"), 0.0)
        for k, seen in batch.seen.items():
            i = self.modalities.index(k)
            n_features = seen.counts.shape[1]
            own = libraries[k][:, i]
            codes = [self.subspace(samples[k], k)]
            if objective.cross:
                codes.append(self.subspace(fused.index_select(0, seen.cell), k))
            ll = self.decoders[k].log_likelihood(codes, seen.batch, [own] * len(codes), seen.counts)
            nll = -ll / n_features
            losses[f"nll_{k}"] = nll[0]
            losses[f"kl_{k}"] = gaussian_kl(*posteriors[k]).mean() / n_features
            if objective.cross:
                losses["cross"] = losses["cross"] + nll[1]
            if objective.cross and self.fusion == "product":
                kl = (
                    gaussian_kl(*(self.subspace(part.index_select(0, seen.cell), k) for part in joint)).mean()
                    / n_features
                )
                losses["cross_kl"] = losses.get("cross_kl", 0.0) + kl
            if objective.source_cross:
                losses["source_cross"] = losses["source_cross"] + self._source_cross(batch, samples, libraries, k)
            if objective.mse:
                losses["mse"] = losses["mse"] + cosine_distance(samples[k], centre.index_select(0, seen.cell)).mean()
            if objective.contrastive:
                losses["contrastive"] = losses["contrastive"] + sum(
                    info_nce(posteriors[k][0][both], posteriors[source][0][row], objective.temperature)
                    for source, row, both in _partners(batch, k)
                )
        return losses

    def _source_cross(self, batch, samples, libraries, target: str) -> torch.Tensor:
        """Negative log-likelihood of `target` decoded from each other modality's cross-encoder."""
        total: Any = 0.0
        i = self.modalities.index(target)
        seen = batch.seen[target]
        for source, row, both in _partners(batch, target):
            counts = seen.counts if both.all() else seen.counts.take(both)
            # The reference scales by the source's own library read-out, which exists only for a learned library.
            learned = isinstance(self.libraries[target], LearnedLibrary)
            library = libraries[source][row, i] if learned else libraries[target][both, i]
            ll = self.decoders[target].log_likelihood(
                [self.subspace(samples[source][row], target)], seen.batch[both], [library], counts
            )
            total = total - ll[0] / counts.shape[1]
        return total

    @staticmethod
    def total(
        losses: dict[str, torch.Tensor], adversarial: torch.Tensor, objective: Objective, kl_share: float = 1.0
    ) -> torch.Tensor:
        """Return the loss that encoders and decoders minimise; `kl_share` is the KL warm-up's share of its weight."""
        elbo: Any = sum(v for name, v in losses.items() if name.startswith("nll_"))
        kl_weight = kl_share * objective.kl
        elbo = elbo + kl_weight * sum(v for name, v in losses.items() if name.startswith("kl_"))
        return (
            objective.self_elbo * elbo
            + objective.cross * (losses["cross"] + kl_weight * losses.get("cross_kl", 0.0))
            + objective.source_cross * losses["source_cross"]
            + objective.mse * losses["mse"]
            + objective.contrastive * losses["contrastive"]
            - objective.adversarial * adversarial
        )


def check_names(modalities: Sequence[str]) -> None:
    """Raise an error for a name of a modality that a module of PyTorch cannot have."""
    for name in modalities:
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict(), name):
            raise ValueError(f"PyTorch does not allow {name!r} as the name of a modality; rename it, without dots")


def _partners(batch: MiniBatch, target: str) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Yield each other modality in which at least two cells of `target` are also seen.

    With it, yield the rows of these cells in that modality, and their mask among the cells of `target`.
    """
    seen = batch.seen[target]
    for source, other in batch.seen.items():
        if source == target:
            continue
        row = other.cell.new_full((batch.n_cells,), -1)
        row[other.cell] = torch.arange(len(other.cell), device=row.device)
        row = row[seen.cell]
        both = row >= 0
        if both.sum() >= 2:
            yield source, row[both], both


def _noise_like(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Return standard normal noise in the shape of `x`; torch requires the generator to be on the device of `x`."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
