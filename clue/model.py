"""The model that a user calls: train on paired cells, then embed, match and predict cells seen in any modality.

`clue.data` reads the user's data, `clue.network` holds the modules and losses, and `clue.train` the training loop.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from clue.batches import Cells
from clue.checks import checked, is_whole_number, shown
from clue.components import fit_preprocessors
from clue.correction import remove_hubs, remove_shifts
from clue.data import (
    BATCH,
    Data,
    Layer,
    batch_of_one,
    batches_of,
    by_modality,
    check_paired,
    joined,
    kinds_of,
    modalities_of,
    of_layer,
    paired_names,
    read,
    rows_of,
    write_rows,
)
from clue.matching import l2_normalise, match_snn
from clue.network import Network, Objective, check_names
from clue.preprocess import Preprocessor, check_unique
from clue.readout import Readout
from clue.saved import load as read_file
from clue.saved import save_atomically, with_arrays, without_arrays
from clue.sparse import BLOCK
from clue.train import Training, held_out, train

OWN_WEIGHT = 2
"""Weight of a modality's own encoder in its subspace of a fused embedding; a cross-encoder has weight 1.

Only the own encoder knows what no other modality shows; the others reduce its noise in what they share. How the weight
was chosen is in docs/limits.md. Training decodes the plain mean, as in the authors' code (`Network.centre`).
"""
MAX_READOUT = 50_000
"""Most cells on which the read-out is fitted; more do not change its covariances."""

_FORMAT = 7
"""Version of the files that `CLUE.save` writes."""


class CLUE:
    """A CLUE model of some data.

    Parameters
    ----------
    mdata
        Raw counts of two or more modalities; cells with the same name are one cell. Some cells must be seen in two
        modalities. A dict of AnnData works as well. Counts of backed data
        (``mudata.read_h5mu(path, backed="r")``; CSR or dense) are read once, a thousand cells at a time, and
        copied to files in the folder for temporary files (`clue.disk`), up to 24 bytes for each non-zero count. If
        several processes train, each makes its own copy. Results are the same as in memory, to the bit. The encoder
        inputs stay in memory, 4 · `n_components` bytes per cell and modality. So does a copy of the largest batch
        while variable genes are chosen. Counts in memory that are not CSR and float32 are copied to that form. Others
        are not copied: the model reads them until the read-out is fitted, in the first `align`, `match` or `save` after
        `fit`, so do not change them in place before.
    batch_key
        Column with the batch, in ``obs`` of each modality or of the MuData. With several columns, each combination of
        their values is a batch. None for data without batches.
    layer
        Layer that holds the counts, here and in data embedded later; None for X. A dict names the layers of some
        modalities, ``{"rna": "counts"}``; the others' counts are in X.
    kinds
        The kind of a modality, ``rna``, ``atac`` or ``adt``, if its name does not say so:
        ``{"gex": "rna"}``. Known names are ``rna``, ``atac``, ``adt`` and ``prot``.
    n_latent
        Width of each modality's subspace; embeddings have K times as many dimensions.
    encoder, decoder, discriminator
        (number of hidden layers, their width).
    dropout
        Dropout rate.
    fusion, library, normalize, precision, shared_batches
        See `Network`.
    n_components
        Number of principal components (or LSI components) that encoders and the read-out use, if a modality has that
        many. None chooses the largest number with which held-out paired cells match nearly as well, by linear means,
        as with the best number (`clue.components.choose_widths`), at most 400 and at most one per two cells. Encoders
        then read the first 100, or one per ten paired cells if that is more.
    n_features
        Number of most variable genes and of most often detected peaks to use, for instance
        ``{"rna": 5000, "atac": 30000}``; a modality that is not named uses all features.
    query
        Cells that you will match, in the form of `mdata`, if you already have them. Components are fitted on them too,
        if paired cells are so few or have so few counts that matches become clearly better
        (`clue.components.ADVANTAGE`). Their pairs, if any, are not used, and they are not trained on: give them to
        `fit` for that. Only used if `n_components` is None.
    preprocessors
        Preprocessors of each modality that were already fitted on these data, such as those of another model
        (`CLUE.preprocessors`). This saves the time of fitting. `n_components` and `n_features` are then ignored in
        favour of theirs.
    seed
        Seed of preprocessing, initialisation and training.
    device
        ``cpu``, a CUDA device, or ``auto``, which uses a GPU if there is one.

    Raises
    ------
    ValueError
        If X does not hold counts, if no cell is seen in two modalities, if names of cells or features repeat within a
        modality, or if a cell's batch is missing or differs between its modalities.

    Examples
    --------
    >>> model = clue.CLUE(mdata)
    >>> model.fit(max_steps=5000)
    >>> mdata.obsm["X_clue"] = model.embed(mdata)
    """

    @checked
    def __init__(
        self,
        mdata: Data,
        *,
        batch_key: str | Sequence[str] | None = None,
        layer: Layer = None,
        kinds: Mapping[str, str] | None = None,
        n_latent: int = 20,
        encoder: tuple[int, int] = (2, 256),
        decoder: tuple[int, int] = (1, 128),
        discriminator: tuple[int, int] = (2, 128),
        dropout: float = 0.2,
        fusion: Literal["mean", "product"] = "mean",
        library: Literal["observed", "learned"] = "observed",
        normalize: bool = True,
        precision: Literal["float32", "bfloat16"] = "float32",
        shared_batches: bool = True,
        n_components: int | None = None,
        n_features: dict[str, int] | None = None,
        query: Data | None = None,
        preprocessors: Mapping[str, Preprocessor] | None = None,
        seed: int = 0,
        device: str | torch.device = "auto",
    ):
        self.device = _checked_device(device)
        names = list(modalities_of(mdata))
        n_features = by_modality("n_features", n_features, 5000, names)
        _check_sizes({"n_latent": n_latent, "n_components": 1 if n_components is None else n_components})
        _check_sizes({f"n_features of {k}": n for k, n in n_features.items()})
        for name, layers in (("encoder", encoder), ("decoder", decoder), ("discriminator", discriminator)):
            if not isinstance(layers, Sequence) or len(layers) != 2:
                raise ValueError(f"{name} is {shown(layers)}; it must be (number of hidden layers, their width)")
            _check_sizes({f"the number of hidden layers of {name}": layers[0]}, least=0)
            _check_sizes({f"the width of {name}": layers[1]})
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}; it must be at least 0 and less than 2**63")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}; it must be at least 0 and less than 1")
        if len(names) < 2:
            raise ValueError(f"CLUE needs two modalities or more, not {names}")
        check_names(names)
        kinds = kinds_of(names, kinds)
        layer = by_modality("layer", layer, "counts", names) if isinstance(layer, dict) else layer
        self.batch_key, self.layer, self.seed = batch_key, layer, int(seed)
        self._data = read(mdata, layer, batch_key)
        check_paired(self._data)
        self.batches = batches_of(self._data)
        if preprocessors is None:
            cells = read(query or {}, layer, batch_key)
            if unknown := cells.keys() - self._data.keys():
                raise ValueError(
                    f"query: there is no modality {min(unknown)!r} in the data (they have {', '.join(names)})"
                )
            preprocessors = fit_preprocessors(self._data, kinds, n_components, n_features, self.seed, cells)
        self.preprocessors = {k: _of_these(preprocessors, k, adata) for k, adata in self._data.items()}
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
        self._rows: list[dict[str, float]] = []
        self._cells_seen = _cells_seen(self._data)
        self._validation = Training.validation
        self._readout: Readout | None = None
        self._build()

    def _build(self) -> None:
        # weights are drawn on the CPU, and the user's random state is left as it was
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            network = Network(
                {k: p.encoder_width for k, p in self.preprocessors.items()},
                {k: len(p.selected) for k, p in self.preprocessors.items()},
                len(self.batches),
                **self.settings,
            )
        self.network = network.to(self.device)

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities, in the order of their subspaces."""
        return list(self.preprocessors)

    @property
    def width(self) -> int:
        """Dimensions of an embedding."""
        return len(self.modalities) * self.settings["n_latent"]

    @property
    def history(self) -> pd.DataFrame:
        """One row per validation: the call of `fit` (``stage``), the step, the mean training loss since the previous
        row (``train_loss``), and every loss on the held-out cells; ``loss`` is the objective."""
        return pd.DataFrame(self._rows)

    def to(self, device: str | torch.device) -> "CLUE":
        """Move the model to a device, given as `device` in the constructor."""
        self.device = _checked_device(device)
        self.network.to(self.device)
        return self

    # ---- training --------------------------------------------------------------------------------

    @checked
    def fit(
        self,
        extra: Data | None = None,
        *,
        objective: Objective | dict[str, float] | None = None,
        checkpoints: str | Path | None = None,
        progress: bool = True,
        **training,
    ) -> "CLUE":
        """Train on the model's data; call again to continue (fine-tuning).

        If interrupted (Ctrl-C), it raises KeyboardInterrupt; the model keeps the best weights so far and the history.

        Parameters
        ----------
        extra
            More cells to train on, each seen in a single modality (transductive fine-tuning). Their names must differ
            from each other and from the names in the model's data, since equal names are pairs. They may be backed or
            not, independently of the model's data.
        objective
            Loss weights (`Objective`).
        checkpoints
            Folder for checkpoints. Training resumes from a checkpoint there if it was written with the same settings,
            seed and data. On SIGTERM, a checkpoint is written after the current step, and the process exits with
            status 143.
        progress
            Whether to show a progress bar.
        **training
            Fields of `clue.train.Training`: lengths in steps and passes, learning rate, batch size etc.

        Returns
        -------
        The model itself.
        """
        if not self._data:
            raise ValueError("the model has no training data; give them when it is loaded: CLUE.load(path, mdata)")
        if not isinstance(objective, Objective):
            weights = {} if objective is None else objective
            if not isinstance(weights, Mapping):
                raise ValueError(f"objective is {shown(weights)}; give a dict of weights or an Objective")
            _check_names(Objective, weights)
            objective = Objective(**weights)
        _check_names(Training, training)
        settings = Training(**training)
        adatas = self._with_extra(extra)
        check_paired(adatas)
        before = {name: vars(self)[name] for name in ("batches", "network", "_cells_seen", "_validation")}
        rows: list[dict[str, float]] = []
        try:
            cells = self._cells(adatas)
            if objective.adversarial and self.settings["shared_batches"] and (alone := cells.one_sided_batches()):
                warnings.warn(
                    f"batches seen in one modality alone ({', '.join(alone)}) are not aligned by the discriminator, "
                    "which reads the batch; CLUE(…, shared_batches=False) aligns them",
                    stacklevel=3,  # the caller of `fit`, past its decorator
                )
            # a modality or batch that is missing from these data is decoded as before
            seen = {k: self._cells_seen[k] | n_cells for k, n_cells in _cells_seen(adatas).items()}
            self._cells_seen = self._cells_seen | seen
            self._validation, self._readout = settings.validation, None
            train(self.network, cells, objective, settings, rows, self.seed, checkpoints, progress)
        except Exception:  # whatever it is, a model that was not trained has not seen these batches
            if not rows:
                vars(self).update(before)
            raise
        finally:
            stage = 1 + max((row["stage"] for row in self._rows), default=0)
            self._rows += [{"stage": stage, **row} for row in rows]
        return self

    def _with_extra(self, extra: Data | None) -> dict[str, ad.AnnData]:
        adatas = dict(self._data)
        for k, more in read(extra or {}, self.layer, self.batch_key).items():
            self._check_modality(k)
            for other, cells in adatas.items() if self._data else ():
                if len(known := cells.obs_names.intersection(more.obs_names)):
                    found = f"extra cell {known[0]!r} of {k} has the name of another cell of {other}"
                    raise ValueError(f"{found}; cells with equal names are one cell, so rename it")
            more = self._with_own_features(k, more)
            adatas[k] = joined(adatas[k], more) if k in adatas else more
        return adatas

    def _with_own_features(self, modality: str, adata: ad.AnnData) -> ad.AnnData:
        preprocessor = self.preprocessors[modality]
        counts = preprocessor.align(adata)
        return ad.AnnData(counts, obs=adata.obs, var=pd.DataFrame(index=preprocessor.features))

    def _cells(self, adatas: dict[str, ad.AnnData]) -> Cells:
        unseen = [b for b in batches_of(adatas) if b not in self.batches]
        if unseen:
            self._add_batches(unseen)
        return Cells(adatas, self.preprocessors, self.batches, BATCH, self.device)

    def _add_batches(self, unseen: list[str]) -> None:
        """Extend the batch-conditioned weights; a new batch starts from the mean of the known ones."""
        n_known = len(self.batches)
        self.batches = self.batches + unseen
        old = self.network.state_dict()
        self._build()
        new = self.network.state_dict()
        for name, value in old.items():
            new[name] = _grow(value, new[name].shape, n_known)
        self.network.load_state_dict(new)

    def plot_history(self):
        """Plot training loss, held-out loss and held-out FOSCTTM by step, one stage after another.

        Returns
        -------
        matplotlib Figure.
        """
        import matplotlib.pyplot as plt

        history = self.history
        if history.empty:
            raise ValueError("there is no history yet; fit the model first")
        before = history.groupby("stage")["step"].max().cumsum().shift(fill_value=0)
        step = history["step"] + history["stage"].map(before)
        figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
        for axis, columns in zip(axes, (["train_loss", "loss"], ["foscttm"]), strict=True):
            for name in (name for name in columns if name in history):
                axis.plot(step, history[name], label={"loss": "held-out loss"}.get(name, name.replace("_", " ")))
            axis.set_xlabel("step")
        axes[0].legend(frameon=False)
        axes[1].set_ylabel("FOSCTTM of held-out cells")
        return figure

    # ---- use -------------------------------------------------------------------------------------

    @checked
    def embed(
        self, data: ad.AnnData | Data, modality: str | None = None, *, key_added: str | None = None
    ) -> np.ndarray:
        """Embed cells in z, the paper's space, from whatever modalities they are seen in.

        Parameters
        ----------
        data
            Raw counts of one modality (AnnData) or of several (MuData, or dict of AnnData). With several, a cell's
            embedding is the fusion of its modalities' embeddings. Features may be in any order. Batches need not be
            known, since encoders do not read them. A backed AnnData is read a thousand cells at a time.
        modality
            The modality of an AnnData; None finds it by the features. With a MuData, the one modality to read.
        key_added
            Also store the embedding in ``data.obsm`` under this name.

        Returns
        -------
        Posterior means (not normalised), float32, shape (n_cells, K · n_latent), in the order of ``data.obs_names``;
        for a dict, in the order in which cells first occur. A fused embedding has the mean direction and the mean
        length of its modalities' embeddings; in the subspace of a modality, its own encoder counts `OWN_WEIGHT` times.
        If `fusion` is ``product``, a fused embedding is the precision-weighted mean.

        Raises
        ------
        ValueError
            If the modality is unknown or not clear, features are missing or X does not hold counts.
        """
        return self._stored(data, modality, key_added, self._place(data, modality, self._posterior, self._fused))

    @checked
    def posterior(self, adata: ad.AnnData, modality: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and standard deviation of z given one modality.

        ``mean + std * rng.normal(size=mean.shape)`` is a sample.

        Returns
        -------
        Two float32 arrays of shape (n_cells, K · n_latent).
        """
        adata, modality = self._one(adata, modality)
        return self._posterior(modality, adata)

    @checked
    def align(
        self, data: ad.AnnData | Data, modality: str | None = None, *, key_added: str | None = None
    ) -> np.ndarray:
        """Place cells in a space in which cells of all modalities can be matched by cosine.

        Unlike `embed`, this keeps little beyond the information that modalities share (`clue.readout`). The first call
        after `fit` fits the read-out on the training cells that are seen in several modalities, which takes seconds.
        The read-out is saved with the model.

        Parameters
        ----------
        data, modality, key_added
            As in `embed`.

        Returns
        -------
        Rows of unit length, float32, shape (n_cells, dimensions); the number of dimensions is chosen on held-out
        training cells.

        Raises
        ------
        ValueError
            As in `embed`, or if too few training cells are seen in the modality and in another one
            (`clue.readout.LEAST_PAIRS`).
        """
        readout = self.readout

        def one(k: str, adata: ad.AnnData) -> tuple[np.ndarray]:
            if k not in readout.n_inputs:
                raise ValueError(
                    f"{k} cannot be aligned: too few training cells are seen in it and in another modality"
                )
            empty = np.empty((0, readout.width))
            return (np.concatenate([empty, *(readout(k, features) for features in self._features(k, adata))]),)

        placed = self._place(data, modality, one, lambda parts: l2_normalise(sum(p for (p,) in parts.values())))
        return self._stored(data, modality, key_added, placed)

    @checked
    def match(
        self,
        a: ad.AnnData | Data,
        b: ad.AnnData | Data,
        modality_a: str | None = None,
        modality_b: str | None = None,
        *,
        within: str | Sequence[str] | None = None,
        space: Literal["aligned", "z"] = "aligned",
        matching: Callable[..., sp.csr_matrix] = match_snn,
        **options,
    ) -> sp.csr_matrix:
        """Match cells seen in one modality with cells seen in another.

        Parameters
        ----------
        a, b, modality_a, modality_b
            Cells and their modalities, as in `embed`.
        within
            Column or columns of both ``obs``, for instance the batch: cells match only cells with the same values. With
            a MuData, they may be in its own ``obs``.
        space
            ``aligned`` (`align`), without shifts between the modalities of a batch and without hubs
            (`clue.correction`), or ``z`` (`embed`).
        matching, options
            A function of `clue.matching` and its options.

        Returns
        -------
        Float32 CSR matrix, cells of `a` by cells of `b`; entry (i, j) is the weight that cell i of `a` is cell j of
        `b`, and every row sums to 1.
        """
        if not callable(matching):
            raise ValueError(f"matching is {shown(matching)}; give a function of clue.matching, such as match_ot")
        place = self.align if space == "aligned" else self.embed
        batches = None
        if within is not None:
            batches = [batch_of_one(*side, within) for side in (("a", a, modality_a), ("b", b, modality_b))]
            options |= {"batch_x": batches[0], "batch_y": batches[1]}
        placed = [place(a, modality_a), place(b, modality_b)]
        if space == "aligned":
            placed = remove_hubs(remove_shifts(placed, batches), batches)
        return matching(*placed, **options)

    @checked
    @torch.no_grad()
    def predict(
        self,
        data: ad.AnnData | Data,
        target: str,
        *,
        source: str | None = None,
        features: str | Sequence[str] | None = None,
        batch: str | Sequence[str] | None = None,
        library_size: float | np.ndarray = 1.0,
        log: bool = False,
        path: str | Path | None = None,
    ) -> ad.AnnData:
        """Predict the counts of a modality for cells seen in others.

        Parameters
        ----------
        data, source
            Cells and the modality to read, as `data` and `modality` in `embed`. With several modalities and no
            `source`, `target` is read only of cells that are seen in no other.
        target
            Modality to predict.
        features
            Feature or features to return; None for all that the model decodes.
        batch
            Batch to decode as: one for all cells, or one for each. A Series is matched by the cells' names, unless it
            has a RangeIndex. None averages over the batches in which the model was trained on cells of `target`,
            weighted by their numbers.
        library_size
            Sum of a cell's predictions over all decoded features, for all cells or for each, as with `batch`; 1 gives
            shares.
        log
            Whether to return log(1 + x) of the expected counts.
        path
            ``.h5ad`` file to write, a thousand cells at a time; the result is then backed by it.

        Returns
        -------
        AnnData of expected counts, float32, cells by features.

        Raises
        ------
        ValueError
            If the modality, a feature or a batch is unknown.
        """
        self._check_modality(target)
        preprocessor = self.preprocessors[target]
        names = pd.Index(preprocessor.features[preprocessor.selected])
        wanted = list(names) if features is None else [features] if np.isscalar(features) else list(features)
        chosen = names.get_indexer(wanted)
        if (chosen < 0).any():
            raise ValueError(f"{target} has no decoded feature {wanted[int(np.argmin(chosen))]!r}")
        cells = _names(data if source is None else self._one(data, source)[0])
        z = self._place(data, source, self._posterior, self._fused, avoided=target)
        weights = self._decoded_batches(_of_cells("batch", batch, cells), target, len(z))
        size = _library_size(_of_cells("library_size", library_size, cells), len(z))

        def blocks() -> Iterator[np.ndarray]:
            for start in range(0, len(z), BLOCK):
                rows = slice(start, start + BLOCK)
                expected = size[rows, None] * self._expected(z[rows], target, weights[rows])[:, chosen]
                yield np.log1p(expected) if log else expected

        obs = pd.DataFrame(index=cells)
        var = pd.DataFrame(index=names[chosen])
        if path is not None:
            return write_rows(Path(path), blocks(), obs, var)
        return ad.AnnData(np.concatenate([np.empty((0, len(var)), np.float32), *blocks()]), obs=obs, var=var)

    def _decoded_batches(self, batch: str | Sequence[str] | None, target: str, n_cells: int) -> np.ndarray:
        """Return the weight of each batch for each cell, shape (n_cells, n_batches)."""
        if batch is None:
            cells = np.array([self._cells_seen[target].get(name, 0) for name in self.batches], dtype=float)
            return np.broadcast_to(cells / cells.sum(), (n_cells, len(cells)))
        label = np.full(n_cells, str(batch)) if np.ndim(batch) == 0 else np.asarray(batch).astype(str)
        if len(label) != n_cells:
            raise ValueError(f"batch names {len(label)} batches for {n_cells} cells")
        position = pd.Index(self.batches).get_indexer(label)
        if (position < 0).any():
            raise ValueError(f"the model knows no batch {str(label[np.argmin(position)])!r}; it knows {self.batches}")
        if alone := sorted(set(label) - set(self._cells_seen[target])):
            warnings.warn(
                f"{target} was not measured in batch {', '.join(alone)} during training; without batch=, predictions "
                "are averaged over the batches in which it was",
                stacklevel=5,  # the caller of `predict`, past its decorators
            )
        return np.eye(len(self.batches))[position]

    def _expected(self, z: np.ndarray, target: str, weights: np.ndarray) -> np.ndarray:
        """Return the share of each decoded feature, averaged over batches by `weights`."""
        self.network.eval()
        code = self.network.subspace(self.network.unit(torch.from_numpy(z).to(self.device)), target)
        total = np.zeros((len(z), len(self.preprocessors[target].selected)), dtype=np.float32)
        for i in np.flatnonzero(weights.any(axis=0)):
            rows = np.flatnonzero(weights[:, i])
            label = torch.full((len(rows),), int(i), device=self.device)
            share = self.network.decoders[target].expected(code[rows], label).cpu().numpy()
            total[rows] += weights[rows, i, None].astype(np.float32) * share
        return total

    # ---- placing cells ---------------------------------------------------------------------------

    def _place(
        self, data: ad.AnnData | Data, modality: str | None, one: Callable, fuse: Callable, avoided: str | None = None
    ) -> np.ndarray:
        """Return the first result of `one` for a single modality; for several, apply `fuse` to the results for each.

        `fuse` gets, by modality, a row for every cell; the row is zero if the cell is not seen in it. Of several
        modalities, `avoided` is read only for cells that are seen in no other.
        """
        if isinstance(data, ad.AnnData) or modality is not None:
            adata, modality = self._one(data, modality)
            return one(modality, adata)[0].astype(np.float32, copy=False)
        adatas = {k: adata for k, adata in modalities_of(data, "an AnnData, ").items() if k in self.modalities}
        if not adatas:
            raise ValueError(f"data hold {list(modalities_of(data))}; the model knows {self.modalities}")
        names = _names(data)
        missing = names.difference(pd.Index(np.concatenate([adata.obs_names for adata in adatas.values()])))
        if len(missing):
            raise ValueError(f"cell {missing[0]!r} is seen in none of the model's modalities {self.modalities}")
        if avoided in adatas and len(adatas) > 1:
            others = _names({k: adata for k, adata in adatas.items() if k != avoided})
            adatas[avoided] = adatas[avoided][~adatas[avoided].obs_names.isin(others)]
        parts = {}
        for k, adata in adatas.items():
            check_unique(k, "cells", adata.obs_names)
            row = names.get_indexer(adata.obs_names)
            parts[k] = [_spread(x, row, len(names)) for x in one(k, of_layer(adata, self.layer, k))]
        return fuse(parts).astype(np.float32)

    def _stored(self, data: ad.AnnData | Data, modality: str | None, key: str | None, placed: np.ndarray) -> np.ndarray:
        if key is None:
            return placed
        if isinstance(data, Mapping) or len(placed) != data.n_obs:
            raise ValueError(
                "key_added needs data with one obsm for everything that is embedded: an AnnData, or a whole MuData"
            )
        if isinstance(data, md.MuData) and modality is not None:
            # a modality may hold the cells in another order
            data.obsm[key] = placed[data[modality].obs_names.get_indexer(data.obs_names)]
        else:
            data.obsm[key] = placed
        return placed

    def _one(self, data: ad.AnnData | Data, modality: str | None) -> tuple[ad.AnnData, str]:
        """Return the cells of one modality, with their counts in X, and the name of the modality."""
        if modality is not None:
            self._check_modality(modality)
        if not isinstance(data, ad.AnnData):
            found = modalities_of(data, "an AnnData, ")
            if modality is None:
                raise ValueError(f"the data hold {list(found)}; say which modality to read")
            if modality not in found:
                raise ValueError(f"the data hold {list(found)}, not {modality!r}")
            data = found[modality]
        if modality is None:
            missing = {k: p.features[~np.isin(p.features, data.var_names)] for k, p in self.preprocessors.items()}
            modality = min(missing, key=lambda k: len(missing[k]) / len(self.preprocessors[k].features))
            fits = [k for k, names in missing.items() if not len(names)]
            if not fits:
                lacks = f"of {modality} they lack {len(missing[modality])}, such as '{missing[modality][0]}'"
                raise ValueError(f"features do not fit any modality of {self.modalities}; {lacks}")
            # proteins may be named like genes, and the data may be RNA that lacks a gene
            size = {k: len(p.features) for k, p in self.preprocessors.items()}
            fits += [k for k, lacking in missing.items() if size[k] > size[modality] and 0 < len(lacking) < size[k] / 2]
            if len(fits) > 1:
                raise ValueError(f"features are all or most of those of {fits}; say which modality it is")
        return of_layer(data, self.layer, modality), modality

    def _posterior(self, modality: str, adata: ad.AnnData) -> tuple[np.ndarray, np.ndarray]:
        self.network.eval()
        mean, std = (np.empty((adata.n_obs, self.width), dtype=np.float32) for _ in range(2))
        preprocessor, start = self.preprocessors[modality], 0
        with torch.no_grad():
            for x in map(preprocessor.encoder_input, preprocessor.transformed_blocks(adata)):
                found = self.network.encoders[modality](torch.from_numpy(x).to(self.device))
                mean[start : start + len(x)], std[start : start + len(x)] = (part.cpu().numpy() for part in found)
                start += len(x)
        return mean, std

    def _fused(self, parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        """Return each cell's fused embedding from its modalities' posteriors, which are zero where it is not seen."""
        seen = {k: std.any(axis=1, keepdims=True) for k, (_, std) in parts.items()}
        if self.settings["fusion"] == "product":
            weights = {k: np.where(seen[k], 1 / np.where(seen[k], std, 1) ** 2, 0) for k, (_, std) in parts.items()}
            return sum(weights[k] * mean for k, (mean, _) in parts.items()) / sum(weights.values())
        subspace = np.repeat(self.modalities, self.settings["n_latent"])
        weights = {k: seen[k] * np.where(subspace == k, OWN_WEIGHT, 1) for k in parts}
        direction = sum(weights[k] * l2_normalise(mean) for k, (mean, _) in parts.items()) / sum(weights.values())
        length = sum(np.linalg.norm(mean, axis=1, keepdims=True) for mean, _ in parts.values()) / sum(seen.values())
        return l2_normalise(direction) * length

    @torch.no_grad()
    def _features(self, modality: str, adata: ad.AnnData) -> Iterator[np.ndarray]:
        """Yield the read-out's input, a thousand cells at a time: components, hidden layers, z."""
        self.network.eval()
        encoder, preprocessor = self.network.encoders[modality], self.preprocessors[modality]
        for x in preprocessor.transformed_blocks(adata):
            given = torch.from_numpy(preprocessor.encoder_input(x)).to(self.device)
            mean, _ = encoder(given)
            yield np.hstack([x, encoder.hidden(given).cpu().numpy(), mean.cpu().numpy()]).astype(np.float64)

    def _check_modality(self, modality: str) -> None:
        if modality not in self.modalities:
            raise ValueError(f"unknown modality {modality!r}; the model knows {self.modalities}")

    # ---- the read-out ----------------------------------------------------------------------------

    @property
    def readout(self) -> Readout:
        """The read-out of `align`; it is fitted on first use."""
        if self._readout is None:
            if not self._data:
                raise ValueError("the model's file holds no read-out; train the model again and save it")
            self._readout = self._fit_readout()
        return self._readout

    def _fit_readout(self) -> Readout:
        names = paired_names(self._data)
        if len(names) > MAX_READOUT:
            names = names[np.sort(np.random.default_rng(self.seed).permutation(len(names))[:MAX_READOUT])]
        features, batch = rows_of(self._data, names, lambda k, adata: np.concatenate(list(self._features(k, adata))))
        n_components = {k: self.preprocessors[k].width for k in features}
        chosen = held_out(names, self._validation, self.seed)
        readouts = next(iter(self.preprocessors.values())).readouts
        return Readout.fit(features, n_components, self.width, chosen, batch, readouts)

    # ---- saving ----------------------------------------------------------------------------------

    @checked
    def save(self, path: str | Path) -> None:
        """Write the model (weights, preprocessing, settings, read-out; not the data) to one file, atomically.

        Raises
        ------
        IsADirectoryError
            If the path is a folder, or empty.

        Warns
        -----
        UserWarning
            If the read-out cannot be fitted. The file then holds none: the loaded model embeds and predicts, but cannot
            align.
        """
        if Path(path).is_dir():
            raise IsADirectoryError(f"{str(path)!r} is a folder, not a model file; name one, such as model.pt")
        try:
            readout = self.readout.state() if self._data or self._readout else None
        except ValueError as error:  # for instance because the counts were changed
            warnings.warn(f"the model is saved without its read-out: {error}", stacklevel=3)
            readout = None
        state = {
            "format": _FORMAT,
            "batches": self.batches,
            "batch_key": self.batch_key,
            "layer": self.layer,
            "seed": self.seed,
            "settings": self.settings,
            "preprocessors": {k: p.state() for k, p in self.preprocessors.items()},
            "history": self._rows,
            "cells_seen": self._cells_seen,
            "network": self.network.state_dict(),
            "readout": readout,
        }
        save_atomically(without_arrays(state), Path(path))

    @classmethod
    @checked
    def load(cls, path: str | Path, mdata: Data | None = None, device: str | torch.device = "auto") -> "CLUE":
        """Load a saved model. Nothing in the file is executed.

        Parameters
        ----------
        path
            File that `save` wrote.
        mdata
            Data to continue training with, as in the constructor: the same data as before, or others that hold pairs.
            The model keeps its features and their preparation. Without data, it can only embed, match and predict.
        device
            As in the constructor.

        Raises
        ------
        ValueError
            If the file holds no model, or one of an earlier version.
        """
        device = _checked_device(device)
        state = read_file(path, device)
        if state is None:
            raise ValueError(f"{path}: is not a model that CLUE.save wrote, or is damaged")
        if not isinstance(state, dict) or state.get("format") != _FORMAT:
            raise ValueError(f"{path}: is not a model of this version of clue; train it again and save it")
        model = cls.__new__(cls)
        model.batches, model.batch_key, model.layer = state["batches"], state["batch_key"], state["layer"]
        model.seed, model.settings, model.device = state["seed"], state["settings"], device
        model.preprocessors = {k: Preprocessor.from_state(with_arrays(s)) for k, s in state["preprocessors"].items()}
        model._rows, model._cells_seen = state["history"], state["cells_seen"]
        model._validation = Training.validation
        model._readout = Readout.from_state(with_arrays(state["readout"])) if state["readout"] else None
        model._build()
        model.network.load_state_dict(state["network"])
        model._data = {}
        if mdata is not None:
            model._data = model._with_extra(mdata)
        return model

    def __repr__(self) -> str:
        widths = ", ".join(f"{k}: {len(p.selected)} features" for k, p in self.preprocessors.items())
        batches = "1 batch" if len(self.batches) == 1 else f"{len(self.batches)} batches"
        return f"CLUE({widths}; {batches}; embedding of {self.width})"


def _check_sizes(sizes: Mapping[str, Any], least: int = 1) -> None:
    for name, size in sizes.items():
        if not (is_whole_number(size) and size >= least):
            raise ValueError(f"{name} is {shown(size)}; it must be a whole number, at least {least}")


def _check_names(kind: type, names: Iterable[str]) -> None:
    """Raise an error for names of settings that a dataclass does not have."""
    known = [field.name for field in fields(kind)]
    if unknown := sorted(map(str, set(names) - set(known))):
        raise TypeError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")


def _checked_device(device: str | torch.device) -> str:
    if isinstance(device, str) and device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError):
        raise ValueError(f"device {shown(device)} is unknown; use 'cpu', 'cuda' or 'auto'") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: torch finds no GPU; use device='cpu'")
    return str(device)


def _cells_seen(adatas: Mapping[str, ad.AnnData]) -> dict[str, dict[str, int]]:
    """Return, for each modality, the number of its cells in each batch."""
    return {k: adata.obs[BATCH].value_counts().to_dict() for k, adata in adatas.items()}


def _names(data: ad.AnnData | Data) -> pd.Index:
    """Return the names of all cells, each once; for a dict, in the order in which they first occur."""
    if not isinstance(data, Mapping):
        return data.obs_names
    return pd.Index(np.concatenate([adata.obs_names for adata in data.values()])).unique()


def _of_these(preprocessors: Mapping[str, Preprocessor], modality: str, adata: ad.AnnData) -> Preprocessor:
    """Return a modality's preprocessor; it must be fitted on these features."""
    fitted = preprocessors.get(modality) if isinstance(preprocessors, Mapping) else None
    if not isinstance(fitted, Preprocessor) or not np.array_equal(fitted.features, adata.var_names):
        raise ValueError(f"preprocessors: none was fitted on the {adata.n_vars} features of {modality}")
    return fitted


def _of_cells(name: str, value: Any, cells: pd.Index) -> Any:
    """Return a Series that is indexed by cell names in the order of `cells`, and anything else unchanged."""
    if not isinstance(value, pd.Series) or (isinstance(value.index, pd.RangeIndex) and len(value) == len(cells)):
        return value
    if len(missing := cells.difference(value.index, sort=False)):
        raise ValueError(f"{name}: the Series lacks {len(missing)} of {len(cells)} cells, such as {missing[0]!r}")
    return value.reindex(cells)


def _library_size(value: Any, n_cells: int) -> np.ndarray:
    size = np.asarray(value)
    fits = size.dtype.kind in "uif" and size.shape in ((), (n_cells,))
    if not fits or not ((size >= 0) & (size < np.inf)).all():
        given = shown(value) if size.ndim == 0 else f"an array of {size.dtype} of shape {size.shape}"
        wanted = f"a finite number from 0 up, or one for each of {n_cells} cells"
        raise ValueError(f"library_size is {given}; it must be {wanted}")
    return np.broadcast_to(size.astype(np.float32), n_cells)


def _spread(x: np.ndarray, row: np.ndarray, n_rows: int) -> np.ndarray:
    """Return `n_rows` rows: those of `x` at the positions `row`, zeros elsewhere."""
    spread = np.zeros((n_rows, x.shape[1]), dtype=x.dtype)
    spread[row] = x
    return spread


def _grow(value: torch.Tensor, shape: torch.Size, n_known: int) -> torch.Tensor:
    """Extend a weight along the axis that grew with new batches; the known batches are at the end of that axis."""
    for axis, (old, new) in enumerate(zip(value.shape, shape, strict=True)):
        if old != new:
            known = value.narrow(axis, old - n_known, n_known)
            more = known.mean(dim=axis, keepdim=True).expand(
                *[new - old if a == axis else -1 for a in range(value.dim())]
            )
            value = torch.cat([value, more], dim=axis)
    return value
