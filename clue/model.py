"""The model that a user calls: train on paired cells, embed cells seen in one modality, predict another.

`clue.network` holds modules and losses, `clue.train` the loop.
"""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from clue.batches import Cells, batch_labels
from clue.disk import is_mapped, mapped
from clue.network import Network, Objective
from clue.preprocess import Preprocessor, as_counts, count_blocks, row_blocks
from clue.readout import Readout
from clue.train import Training, held_out, save_atomically, train

MAX_READOUT = 50_000
"""Cells on which the read-out is fitted at most: its covariances do not change with more."""


class CLUE:
    """A CLUE model of some data.

    Parameters
    ----------
    mdata
        Raw counts of two modalities or more (``rna``, ``atac``, ``adt``); cells of equal names are
        one cell. Some cells must be seen in two modalities. A dict of AnnData serves as well. Counts of backed data
        (``mudata.read_h5mu(path, backed="r")``; CSR or dense) are read once, a few thousand cells at a time, and
        copied to files in the folder for temporary files (`clue.disk`), up to 24 bytes for each non-zero count; each
        process of several makes its own. Results are the same as in memory, to the bit. In memory stay the encoder
        inputs, 4 · `n_components` bytes of each cell and modality, and, while variable genes are chosen, a copy of
        the largest batch. Counts in memory of another form than CSR and float32 are copied into that.
    batch_key
        Column of each modality's ``obs`` with the batch; None for data without batches.
    n_latent
        Width of each modality's subspace; embeddings have K times as many dimensions.
    encoder, decoder, discriminator
        (number of hidden layers, their width).
    dropout
        Dropout rate.
    fusion, library, normalize, precision, shared_batches
        See `Network`.
    n_components
        Principal components (or LSI components) that encoders read, at most.
    cells_per_component
        So many cells of a modality are needed for each component: where cells are few, later components are noise
        that encoders would fit.
    n_features
        Most variable genes and most often detected peaks to use, for instance
        ``{"rna": 5000, "atac": 30000}``; a modality that is not named uses all.
    seed
        Seed of preprocessing, initialisation and training.
    device
        ``cpu`` or a CUDA device.

    Raises
    ------
    ValueError
        If X does not hold counts, if cell names repeat within a modality, or if a cell's batch is missing or differs
        between its modalities.

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
        precision: str = "float32",
        shared_batches: bool = True,
        n_components: int = 100,
        cells_per_component: int = 10,
        n_features: dict[str, int] | None = None,
        seed: int = 0,
        device: str = "cpu",
    ):
        adatas = modalities_of(mdata)
        if len(adatas) < 2:
            raise ValueError(f"CLUE needs two modalities or more, not {list(adatas)}")
        adatas = {k: _with_counts(k, adata) for k, adata in adatas.items()}
        self.batch_key, self.seed, self.device = batch_key, seed, device
        self.batches = _all_batches(adatas, batch_key)
        chosen = n_features or {}
        unknown = set(chosen) - set(adatas)
        if unknown:
            raise ValueError(f"n_features names {sorted(unknown)}, which the data do not hold: {list(adatas)}")
        most = {k: max(1, min(n_components, adata.n_obs // cells_per_component)) for k, adata in adatas.items()}
        self.preprocessors = {
            k: Preprocessor(k, most[k], chosen.get(k), seed).fit(adata, batch_key) for k, adata in adatas.items()
        }
        self.settings: dict[str, Any] = {
            "n_latent": n_latent,
            "encoder": tuple(encoder),
            "decoder": tuple(decoder),
            "discriminator": tuple(discriminator),
            "dropout": dropout,
            "fusion": fusion,
            "library": library,
            "normalize": normalize,
            "precision": precision,
            "shared_batches": shared_batches,
        }
        self.history: list[dict[str, float]] = []
        self._data = adatas
        self._validation = Training.validation
        self._readout: Readout | None = None
        self._build()

    def _build(self) -> None:
        # weights are drawn on the CPU; the user's random numbers go on as if nothing had been drawn
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            network = Network(
                {k: p.width for k, p in self.preprocessors.items()},
                {k: len(p.selected) for k, p in self.preprocessors.items()},
                len(self.batches),
                **self.settings,
            )
        self.network = network.to(self.device)

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
            must differ from those of the model's data and from each other's: equal names are pairs. They may be
            backed or not, whatever the model's data are.
        objective
            Loss weights (`Objective`).
        checkpoints
            Folder for checkpoints. Training goes on from a checkpoint there if it was written with
            the same settings, seed and data. On SIGTERM one is
            written after the current step, and the process exits with status 143.
        progress
            Whether to show a progress bar.
        **training
            Fields of `clue.train.Training`: lengths in steps and passes, learning rate, batch size ...

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
        if objective.adversarial and self.settings["shared_batches"] and (alone := cells.one_sided_batches()):
            warnings.warn(
                f"batches seen in one modality alone ({', '.join(alone)}) are not aligned by the discriminator, which "
                "reads the batch; CLUE(…, shared_batches=False) aligns them",
                stacklevel=2,
            )
        settings = replace(Training(), **training)
        history = train(
            self.network, cells, objective, settings, seed=self.seed, checkpoints=checkpoints, progress=progress
        )
        stage = 1 + max((row["stage"] for row in self.history), default=0)
        self.history += [{"stage": stage, **row} for row in history]
        self._validation, self._readout = settings.validation, None
        return self

    def _with_extra(self, extra: dict[str, ad.AnnData] | None) -> dict[str, ad.AnnData]:
        adatas = dict(self._data)
        for k, more in (extra or {}).items():
            if k not in adatas:
                raise ValueError(f"extra cells of unknown modality {k!r}; the model knows {self.modalities}")
            known = adatas[k].obs_names.intersection(more.obs_names)
            if len(known):
                raise ValueError(f"extra cell {known[0]!r} of {k} is among the training cells; rename it")
            more = _with_counts(k, more)
            counts = _stacked(adatas[k].X, self.preprocessors[k].align(more))
            kept = [self.batch_key] if self.batch_key in more.obs else []
            obs = pd.concat([adatas[k].obs[kept], more.obs[kept]])
            adatas[k] = ad.AnnData(counts, obs=obs, var=adatas[k].var[[]])
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
            Raw counts; features in any order, batches known or not (encoders do not read them). A backed
            AnnData is read a few thousand cells at a time.
        modality
            Which modality `adata` holds.

        Returns
        -------
        Posterior means (not normalised), float32, shape (n_cells, K · n_latent).

        Raises
        ------
        ValueError
            If the modality is unknown, features are missing or X does not hold counts.
        """
        self._check_modality(modality)
        self.network.eval()
        embedding = np.empty((adata.n_obs, self.width), dtype=np.float32)
        start = 0
        for x in self.preprocessors[modality].transformed_blocks(adata):
            for part in torch.from_numpy(x).split(batch_size):
                mean, _ = self.network.encoders[modality](part.to(self.device))
                embedding[start : start + len(part)] = mean.cpu().numpy()
                start += len(part)
        return embedding

    def align(self, adata: ad.AnnData, modality: str) -> np.ndarray:
        """Place cells seen in one modality where those of all modalities can be matched by cosine.

        Unlike `embed`, this keeps what modalities share and little else (`clue.readout`). The first call after `fit`
        fits the read-out on the training cells that are seen in several modalities, which takes seconds; it is saved
        with the model.

        Parameters
        ----------
        adata, modality
            As of `embed`.

        Returns
        -------
        Rows of unit length, float32, shape (n_cells, dimensions); the dimensions are chosen on held-out training cells.

        Raises
        ------
        ValueError
            As `embed` does.
        """
        self._check_modality(modality)
        readout = self.readout
        placed = [readout(modality, features) for features in self._features(adata, modality)]
        return np.concatenate(placed).astype(np.float32) if placed else np.empty((0, readout.width), np.float32)

    @property
    def readout(self) -> Readout:
        """The read-out of `align`, fitted where it is not yet."""
        if self._readout is None:
            if not self._data:
                raise ValueError("the model's file holds no read-out; train the model again and save it")
            self._readout = self._fit_readout()
        return self._readout

    def _fit_readout(self) -> Readout:
        names = pd.Index(np.concatenate([adata.obs_names for adata in self._data.values()]))
        names = names[names.duplicated()].unique().sort_values()
        if len(names) > MAX_READOUT:
            names = names[np.sort(np.random.default_rng(self.seed).permutation(len(names))[:MAX_READOUT])]
        features, batch = {}, np.full(len(names), "all", dtype=object)
        for k, adata in self._data.items():
            row = adata.obs_names.get_indexer(names)
            seen = np.flatnonzero(row >= 0)
            cells = ad.AnnData(adata.X[row[seen]], obs=adata.obs.iloc[row[seen]], var=adata.var[[]])
            blocks = list(self._features(cells, k))
            features[k] = np.full((len(names), blocks[0].shape[1]), np.nan)
            features[k][seen] = np.concatenate(blocks)
            if self.batch_key is not None:
                batch[seen] = cells.obs[self.batch_key].astype(str).to_numpy()
        n_inputs = {k: p.width for k, p in self.preprocessors.items()}
        chosen = held_out(names, self._validation, self.seed)
        return Readout.fit(features, n_inputs, self.width, chosen, batch.astype(str))

    @torch.no_grad()
    def _features(self, adata: ad.AnnData, modality: str) -> Iterator[np.ndarray]:
        """Yield what the read-out reads of cells, a few thousand at a time: encoder inputs, hidden layers, z."""
        self.network.eval()
        encoder = self.network.encoders[modality]
        for x in self.preprocessors[modality].transformed_blocks(adata):
            given = torch.from_numpy(x).to(self.device)
            mean, _ = encoder(given)
            yield np.hstack([x, encoder.hidden(given).cpu().numpy(), mean.cpu().numpy()]).astype(np.float64)

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
            "readout": self.readout.state() if self._data or self._readout else None,
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
        model._readout = Readout.from_state(state["readout"]) if state.get("readout") else None
        model._build()
        model.network.load_state_dict(state["network"])
        return model

    def __repr__(self) -> str:
        widths = ", ".join(f"{k}: {len(p.selected)} features" for k, p in self.preprocessors.items())
        return f"CLUE({widths}; {len(self.batches)} batches; embedding of {self.width})"


def modalities_of(mdata: md.MuData | dict[str, ad.AnnData]) -> dict[str, ad.AnnData]:
    """Return the modalities by name."""
    return dict(mdata.mod) if isinstance(mdata, md.MuData) else dict(mdata)


def _with_counts(modality: str, adata: ad.AnnData) -> ad.AnnData:
    """Return `adata` with its counts checked, in the form of `as_counts` and, if they are in a file, mapped."""
    if not adata.obs_names.is_unique:
        raise ValueError(f"{modality}: several cells are named {adata.obs_names[adata.obs_names.duplicated()][0]!r}")
    matrix = adata.X
    blocks = count_blocks(matrix, modality)
    if matrix is None or sp.issparse(matrix) or isinstance(matrix, np.ndarray):
        for _ in blocks:
            pass
        counts = as_counts(matrix)
    elif getattr(matrix, "format", "csr") == "csr":
        counts = mapped(blocks, adata.n_vars)
    else:
        raise ValueError(f"{modality}: X is {matrix.format} in its file, not readable by cells; write it as csr")
    return ad.AnnData(counts, obs=adata.obs, var=adata.var[[]])


def _stacked(first, second: sp.csr_matrix) -> sp.csr_matrix:
    """Return the rows of both, mapped if those of either are."""
    first = sp.csr_matrix(first)
    if is_mapped(first.data) or is_mapped(second.data):
        return mapped(chain(row_blocks(first), row_blocks(second)), first.shape[1])
    return sp.vstack([first, second], format="csr")


def _all_batches(adatas: dict[str, ad.AnnData], batch_key: str | None) -> list[str]:
    """Return the batches of all cells, each of which must have one and the same in all its modalities."""
    if batch_key is None:
        return ["all"]
    labels: dict[str, pd.Series] = {}
    for k, adata in adatas.items():
        if batch_key not in adata.obs:
            raise ValueError(f"{k}: obs lacks the batch column {batch_key!r}; pass batch_key=None without batches")
        label = adata.obs[batch_key]
        if label.isna().any():
            raise ValueError(f"{k}: obs[{batch_key!r}] of cell {label.index[label.isna()][0]!r} is missing")
        label = label.astype(str)
        for other, known in labels.items():
            both = label.index.intersection(known.index)
            wrong = both[(label[both] != known[both]).to_numpy()]
            if len(wrong):
                found = f"is {label[wrong[0]]!r}, but {known[wrong[0]]!r} in {other}"
                raise ValueError(f"{k}: obs[{batch_key!r}] of cell {wrong[0]!r} {found}")
        labels[k] = label
    return sorted(set().union(*(label.unique() for label in labels.values())))


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
