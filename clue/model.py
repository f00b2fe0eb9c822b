"""CLUE (Cross-Linked Unified Embedding): one embedding for cells seen in any subset of K modalities.

The embedding z = (z_1 … z_K) has one subspace per modality. Every modality x_k has a self-encoder
q(z_k | x_k) and cross-encoders q(z_j | x_k), so that a cell seen in one modality has a whole z, and
what only x_k can tell survives in z_k. Decoder p(x_k | z_k) reads its own subspace alone. The
objective (Tu et al., NeurIPS 2022) is

    min over encoders, decoders:  λ_self L_self + λ_cross L_cross + λ_mse L_mse − λ_adversarial L_D
    min over the discriminator:   λ_adversarial L_D

where L_D is the discriminator's cross-entropy. `Network` holds the modules and the losses, `CLUE`
is what a user calls, `clue.train` is the loop.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import nn

from clue.batches import Cells, MiniBatch, batch_labels
from clue.likelihood import cosine_distance, gaussian_kl
from clue.nn import Decoder, Discriminator, LearnedLibrary, ModalityEncoder, ObservedLibrary
from clue.preprocess import Preprocessor
from clue.train import Training, save_atomically, train


@dataclass(frozen=True)
class Objective:
    """Weights of the losses; 0 removes one (the ablations).

    Attributes
    ----------
    self_elbo
        λ_self: negative log-likelihood of x_k decoded from z_k of its own encoder, and the KL.
    kl
        Weight of the KL divergence within L_self; it is divided by the number of features, since
        likelihoods are means over features.
    cross
        λ_cross: x_k decoded from z_k of the cell's fused embedding.
    source_cross
        x_k decoded from z_k of each other modality's cross-encoder alone.
    mse
        λ_mse: Σ_k mean(1 − cos(z^(k), z̄)), half the mean squared distance of the normalised
        embeddings to their fused one.
    adversarial
        λ_adversarial: the discriminator's cross-entropy.
    """

    self_elbo: float = 1.0
    kl: float = 1.0
    cross: float = 1.0
    source_cross: float = 0.0
    mse: float = 1.0
    adversarial: float = 1.0


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
        How embeddings of one cell are fused: ``mean`` of the modalities' samples (the authors'
        code) or ``product`` of the modalities' Gaussians (the paper's formula; precision-weighted).
    library
        Library size that decoders read: ``observed`` counts or ``learned`` (the authors' code).
    normalize
        Whether sampled embeddings are scaled to unit length before they are decoded and compared.
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
    ):
        super().__init__()
        if fusion not in ("mean", "product"):
            raise ValueError(f"fusion {fusion!r} is not one of mean, product")
        if library not in ("observed", "learned"):
            raise ValueError(f"library {library!r} is not one of observed, learned")
        self.modalities = list(n_inputs)
        self.n_latent, self.fusion, self.normalize = n_latent, fusion, normalize
        n_modalities = len(self.modalities)
        self.encoders = nn.ModuleDict(
            {k: ModalityEncoder(n_modalities, n_inputs[k], n_latent, *encoder, dropout) for k in self.modalities}
        )
        self.libraries = nn.ModuleDict(
            {
                k: LearnedLibrary(n_features[k], n_modalities)
                if library == "learned"
                else ObservedLibrary(n_modalities)
                for k in self.modalities
            }
        )
        self.decoders = nn.ModuleDict(
            {k: Decoder(n_latent, n_features[k], n_batches, *decoder, dropout) for k in self.modalities}
        )
        self.discriminator = Discriminator(n_modalities * n_latent, n_modalities, n_batches, *discriminator, dropout)

    def generator_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of encoders and decoders."""
        return [p for name, p in self.named_parameters() if not name.startswith("discriminator.")]

    def subspace(self, z: torch.Tensor, modality: str) -> torch.Tensor:
        """Return z_k of z, shape (n_cells, n_latent)."""
        i = self.modalities.index(modality)
        return z[:, i * self.n_latent : (i + 1) * self.n_latent]

    def unit(self, z: torch.Tensor) -> torch.Tensor:
        """Scale embeddings to unit length where the model does so."""
        return F.normalize(z, dim=1) if self.normalize else z

    # ---- posteriors ------------------------------------------------------------------------------

    def posteriors(self, batch: MiniBatch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Mean and standard deviation of q(z | x_k) for every modality seen in the mini-batch."""
        return {k: self.encoders[k](seen.x) for k, seen in batch.seen.items()}

    def fuse(
        self,
        batch: MiniBatch,
        posteriors: dict[str, tuple[torch.Tensor, torch.Tensor]],
        samples: dict[str, torch.Tensor],
        generator: torch.Generator | None,
    ) -> torch.Tensor:
        """One embedding per cell from all modalities it is seen in, shape (n_cells, K · n_latent)."""
        width = len(self.modalities) * self.n_latent
        like = next(iter(samples.values()))
        zeros = like.new_zeros(batch.n_cells, width)
        if self.fusion == "mean":
            total, count = zeros, zeros[:, :1]
            for k, seen in batch.seen.items():
                total = total.index_add(0, seen.cell, samples[k])
                count = count.index_add(0, seen.cell, torch.ones_like(samples[k][:, :1]))
            return self.unit(total / count.clamp(min=1))
        precision, weighted = zeros, zeros
        for k, seen in batch.seen.items():
            mean, std = posteriors[k]
            precision = precision.index_add(0, seen.cell, std.pow(-2))
            weighted = weighted.index_add(0, seen.cell, mean * std.pow(-2))
        precision = precision.clamp(min=1e-12)
        return self.unit(weighted / precision + _noise_like(zeros, generator) * precision.rsqrt())

    # ---- losses ----------------------------------------------------------------------------------

    def discriminator_loss(
        self, batch: MiniBatch, means: dict[str, torch.Tensor], noise: float, generator: torch.Generator | None
    ) -> torch.Tensor:
        """Cross-entropy of telling the modality from the posterior means (not normalised).

        `noise` is the share of N(0, 1) noise added to the means, annealed to 0 during warm-up.
        """
        z = torch.cat(list(means.values()))
        if noise:
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
        ``nll_<k>``, ``kl_<k>`` (L_self of modality k), ``cross``, ``source_cross``, ``mse``.
        """
        samples = {k: self.unit(m + s * _noise_like(m, generator)) for k, (m, s) in posteriors.items()}
        fused = self.fuse(batch, posteriors, samples, generator)
        libraries = {k: self.libraries[k](seen.counts) for k, seen in batch.seen.items()}
        losses: dict[str, torch.Tensor] = {"cross": 0.0, "source_cross": 0.0, "mse": 0.0}
        for k, seen in batch.seen.items():
            i = self.modalities.index(k)
            n_features = seen.counts.shape[1]
            own = libraries[k][:, i]
            codes = [self.subspace(samples[k], k)]
            if objective.cross:
                codes.append(self.subspace(fused[seen.cell], k))
            ll = self.decoders[k].log_likelihood(codes, seen.batch, [own] * len(codes), seen.counts)
            nll = -ll.mean(dim=1) / n_features
            losses[f"nll_{k}"] = nll[0]
            losses[f"kl_{k}"] = gaussian_kl(*posteriors[k]).mean() / n_features
            if objective.cross:
                losses["cross"] = losses["cross"] + nll[1]
            if objective.source_cross:
                losses["source_cross"] = losses["source_cross"] + self._source_cross(batch, samples, libraries, k)
            if objective.mse:
                losses["mse"] = losses["mse"] + cosine_distance(samples[k], fused[seen.cell]).mean()
        return losses

    def _source_cross(self, batch, samples, libraries, target: str) -> torch.Tensor:
        """Negative log-likelihood of `target` decoded from each other modality's cross-encoder."""
        total = 0.0
        i = self.modalities.index(target)
        seen = batch.seen[target]
        for source, other in batch.seen.items():
            if source == target:
                continue
            row = other.cell.new_full((batch.n_cells,), -1)
            row[other.cell] = torch.arange(len(other.cell), device=row.device)
            both = row[seen.cell] >= 0
            if both.sum() < 2:
                continue
            row = row[seen.cell[both]]
            counts = seen.counts if both.all() else seen.counts.take(both)
            # The reference scales by the source's own library read-out, which only a learned one has.
            learned = isinstance(self.libraries[target], LearnedLibrary)
            library = libraries[source][row, i] if learned else libraries[target][both, i]
            ll = self.decoders[target].log_likelihood(
                [self.subspace(samples[source][row], target)], seen.batch[both], [library], counts
            )
            total = total - ll.mean() / counts.shape[1]
        return total

    @staticmethod
    def total(
        losses: dict[str, torch.Tensor], adversarial: torch.Tensor, objective: Objective, kl_share: float = 1.0
    ) -> torch.Tensor:
        """Return what encoders and decoders minimise; `kl_share` is the KL warm-up's share of its weight."""
        elbo = sum(v for name, v in losses.items() if name.startswith("nll_"))
        elbo = elbo + kl_share * objective.kl * sum(v for name, v in losses.items() if name.startswith("kl_"))
        return (
            objective.self_elbo * elbo
            + objective.cross * losses["cross"]
            + objective.source_cross * losses["source_cross"]
            + objective.mse * losses["mse"]
            - objective.adversarial * adversarial
        )


def _noise_like(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Return standard normal noise; a generator on another device than `x` would be refused by torch."""
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


# --------------------------------------------------------------------------------------------------


class CLUE:
    """A CLUE model of some data.

    Parameters
    ----------
    mdata
        Raw counts of two modalities or more (``rna``, ``atac``, ``adt``); cells of equal names are
        one cell. Some cells must be seen in two modalities. A dict of AnnData serves as well.
    batch_key
        Column of each modality's ``obs`` with the batch; None for data without batches.
    n_latent
        Width of each modality's subspace; embeddings have K times as many dimensions.
    encoder, decoder, discriminator
        (number of hidden layers, their width).
    dropout
        Dropout rate.
    fusion, library, normalize
        See `Network`.
    n_components
        Principal components (or LSI components) that encoders read.
    n_features
        Most variable genes and most often detected peaks to use, for instance
        ``{"rna": 5000, "atac": 30000}``; a modality that is not named uses all.
    seed
        Seed of preprocessing, initialisation and training.
    device
        ``cpu`` or a CUDA device.

    Examples
    --------
    >>> model = clue.CLUE(mdata)
    >>> model.fit(max_steps=5000)
    >>> z = model.embed(mdata["rna"], "rna")
    """

    def __init__(
        self,
        mdata: md.MuData | dict[str, ad.AnnData],
        *,
        batch_key: str | None = "batch",
        n_latent: int = 20,
        encoder: tuple[int, int] = (2, 256),
        decoder: tuple[int, int] = (1, 128),
        discriminator: tuple[int, int] = (2, 128),
        dropout: float = 0.2,
        fusion: str = "mean",
        library: str = "observed",
        normalize: bool = True,
        n_components: int = 100,
        n_features: dict[str, int] | None = None,
        seed: int = 0,
        device: str = "cpu",
    ):
        adatas = modalities_of(mdata)
        if len(adatas) < 2:
            raise ValueError(f"CLUE needs two modalities or more, not {list(adatas)}")
        for k, adata in adatas.items():
            _check_counts(k, adata)
        self.batch_key, self.seed, self.device = batch_key, seed, device
        self.batches = _all_batches(adatas, batch_key)
        chosen = n_features or {}
        unknown = set(chosen) - set(adatas)
        if unknown:
            raise ValueError(f"n_features names {sorted(unknown)}, which the data do not hold: {list(adatas)}")
        self.preprocessors = {
            k: Preprocessor(k, n_components, chosen.get(k), seed).fit(adata, batch_key) for k, adata in adatas.items()
        }
        self.settings = {
            "n_latent": n_latent,
            "encoder": tuple(encoder),
            "decoder": tuple(decoder),
            "discriminator": tuple(discriminator),
            "dropout": dropout,
            "fusion": fusion,
            "library": library,
            "normalize": normalize,
        }
        self.history: list[dict[str, float]] = []
        self._data = adatas
        self._build()

    def _build(self) -> None:
        torch.manual_seed(self.seed)
        self.network = Network(
            {k: p.width for k, p in self.preprocessors.items()},
            {k: len(p.selected) for k, p in self.preprocessors.items()},
            len(self.batches),
            **self.settings,
        ).to(self.device)

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in the order of their subspaces."""
        return list(self.preprocessors)

    # ---- training --------------------------------------------------------------------------------

    def fit(
        self,
        extra: dict[str, ad.AnnData] | None = None,
        *,
        objective: Objective | dict[str, float] | None = None,
        checkpoints: str | Path | None = None,
        progress: bool = True,
        **training,
    ) -> "CLUE":
        """Train on the model's data; call again to go on (fine-tuning).

        Parameters
        ----------
        extra
            Cells of single modalities to train on besides (transductive fine-tuning). Their names
            must differ from those of the model's data and from each other's: equal names are pairs.
        objective
            Loss weights (`Objective`).
        checkpoints
            Folder for checkpoints. Training goes on from a checkpoint there if it was written with
            the same settings, seed and data.
        progress
            Whether to show a progress bar.
        **training
            Fields of `clue.train.Training`: steps, learning rate, batch size, patience ...

        Returns
        -------
        The model itself; `history` has one row per validation; `stage` counts the calls of `fit`.
        """
        if not self._data:
            raise ValueError("the model has no training data; a loaded model embeds and predicts only")
        objective = objective if isinstance(objective, Objective) else Objective(**(objective or {}))
        cells = self._cells(self._with_extra(extra))
        if not cells.paired().any():
            raise ValueError("no cell is seen in two modalities; CLUE learns from paired cells")
        settings = replace(Training(), **training)
        history = train(
            self.network, cells, objective, settings, seed=self.seed, checkpoints=checkpoints, progress=progress
        )
        stage = 1 + max((row["stage"] for row in self.history), default=0)
        self.history += [{"stage": stage, **row} for row in history]
        return self

    def _with_extra(self, extra: dict[str, ad.AnnData] | None) -> dict[str, ad.AnnData]:
        adatas = dict(self._data)
        for k, more in (extra or {}).items():
            if k not in adatas:
                raise ValueError(f"extra cells of unknown modality {k!r}; the model knows {self.modalities}")
            known = adatas[k].obs_names.intersection(more.obs_names)
            if len(known):
                raise ValueError(f"extra cell {known[0]!r} of {k} is among the training cells; rename it")
            ordered = ad.AnnData(self.preprocessors[k].align(more), obs=more.obs, var=adatas[k].var[[]])
            adatas[k] = ad.concat([adatas[k], ordered], join="inner")
        return adatas

    def _cells(self, adatas: dict[str, ad.AnnData]) -> Cells:
        unseen = [b for b in _all_batches(adatas, self.batch_key) if b not in self.batches]
        if unseen:
            self._add_batches(unseen)
        return Cells(adatas, self.preprocessors, self.batches, self.batch_key, self.device)

    def _add_batches(self, unseen: list[str]) -> None:
        """Grow batch-conditioned weights; a new batch starts from the mean of the known ones."""
        n_known = len(self.batches)
        self.batches = self.batches + unseen
        old = self.network.state_dict()
        self._build()
        new = self.network.state_dict()
        for name, value in old.items():
            new[name] = _grow(value, new[name].shape, n_known)
        self.network.load_state_dict(new)

    # ---- use -------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, adata: ad.AnnData, modality: str, batch_size: int = 4096) -> np.ndarray:
        """Embed cells seen in one modality.

        Parameters
        ----------
        adata
            Raw counts; features in any order, batches known or not (encoders do not read them).
        modality
            Which modality `adata` holds.

        Returns
        -------
        Posterior means (not normalised), float32, shape (n_cells, K · n_latent).

        Raises
        ------
        ValueError
            If the modality is unknown or features are missing.
        """
        self._check_modality(modality)
        self.network.eval()
        x = self.preprocessors[modality].transform(adata)
        blocks = [torch.from_numpy(x[i : i + batch_size]) for i in range(0, len(x), batch_size)]
        means = [self.network.encoders[modality](block.to(self.device))[0].cpu() for block in blocks]
        return torch.cat(means).numpy() if means else np.zeros((0, self.width), dtype=np.float32)

    @property
    def width(self) -> int:
        """Dimensions of an embedding."""
        return len(self.modalities) * self.settings["n_latent"]

    @torch.no_grad()
    def predict(self, adata: ad.AnnData, source: str, target: str, batch_size: int = 4096) -> ad.AnnData:
        """Predict the share of each feature of `target` for cells seen in `source`.

        Cells of a batch that training did not see are decoded as the first batch.

        Returns
        -------
        AnnData of the target's decoded features; rows of X sum to 1.
        """
        self._check_modality(target)
        z = torch.from_numpy(self.embed(adata, source, batch_size)).to(self.device)
        label = torch.from_numpy(batch_labels(adata, self.batches, self.batch_key)).clamp(min=0).to(self.device)
        shares = []
        for i in range(0, len(z), batch_size):
            part = self.network.subspace(self.network.unit(z[i : i + batch_size]), target)
            shares.append(self.network.decoders[target].expected(part, label[i : i + batch_size]).cpu())
        preprocessor = self.preprocessors[target]
        predicted = ad.AnnData(torch.cat(shares).numpy(), obs=adata.obs[[]].copy())
        predicted.var_names = preprocessor.features[preprocessor.selected]
        return predicted

    def _check_modality(self, modality: str) -> None:
        if modality not in self.modalities:
            raise ValueError(f"unknown modality {modality!r}; the model knows {self.modalities}")

    # ---- saving ----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the model (weights, preprocessing, settings; not the data) to one file, atomically."""
        state = {
            "batches": self.batches,
            "batch_key": self.batch_key,
            "seed": self.seed,
            "settings": self.settings,
            "preprocessors": {k: p.state() for k, p in self.preprocessors.items()},
            "history": self.history,
            "network": self.network.state_dict(),
        }
        save_atomically(state, Path(path))

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "CLUE":
        """Read a saved model; it embeds and predicts but has no data to go on training with."""
        # weights_only: the file holds numpy arrays; load files that you trust
        state = torch.load(path, map_location=device, weights_only=False)
        model = cls.__new__(cls)
        model.batches, model.batch_key, model.seed = state["batches"], state["batch_key"], state["seed"]
        model.settings, model.history, model.device = state["settings"], state["history"], device
        model.preprocessors = {k: Preprocessor.from_state(s) for k, s in state["preprocessors"].items()}
        model._data = {}
        model._build()
        model.network.load_state_dict(state["network"])
        return model

    def __repr__(self) -> str:
        widths = ", ".join(f"{k}: {len(p.selected)} features" for k, p in self.preprocessors.items())
        return f"CLUE({widths}; {len(self.batches)} batches; embedding of {self.width})"


def modalities_of(mdata: md.MuData | dict[str, ad.AnnData]) -> dict[str, ad.AnnData]:
    """Return the modalities by name."""
    return dict(mdata.mod) if isinstance(mdata, md.MuData) else dict(mdata)


def _check_counts(modality: str, adata: ad.AnnData) -> None:
    values = adata.X.data if sp.issparse(adata.X) else np.asarray(adata.X)
    if not np.isfinite(values).all() or (values < 0).any() or (values != np.round(values)).any():
        raise ValueError(f"{modality}: X must hold raw counts, whole numbers from 0 up")


def _all_batches(adatas: dict[str, ad.AnnData], batch_key: str | None) -> list[str]:
    if batch_key is None:
        return ["all"]
    for k, adata in adatas.items():
        if batch_key not in adata.obs:
            raise ValueError(f"{k}: obs lacks the batch column {batch_key!r}; pass batch_key=None without batches")
    return sorted({str(b) for adata in adatas.values() for b in adata.obs[batch_key].unique()})


def _grow(value: torch.Tensor, shape: torch.Size, n_known: int) -> torch.Tensor:
    """Extend a weight along the axis that grew with new batches, where the known ones lie last or only."""
    for axis, (old, new) in enumerate(zip(value.shape, shape, strict=True)):
        if old != new:
            known = value.narrow(axis, old - n_known, n_known)
            more = known.mean(dim=axis, keepdim=True).expand(
                *[new - old if a == axis else -1 for a in range(value.dim())]
            )
            value = torch.cat([value, more], dim=axis)
    return value
