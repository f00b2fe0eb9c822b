"""Mini-batches of sparse counts, where each cell is seen in any subset of the modalities."""

from contextlib import AbstractContextManager
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scipy.special import gammaln

from clue.disk import as_type, is_mapped, map_of, read_here_and_there
from clue.likelihood import SparseCounts
from clue.preprocess import Preprocessor, columns, row_sums


@dataclass
class Seen:
    """What a mini-batch holds of one modality.

    Attributes
    ----------
    cell
        Position of each row in the mini-batch, shape (n_seen,).
    x
        Encoder input, shape (n_seen, width).
    counts
        Raw counts of the decoded features.
    batch
        Batch label of each row, shape (n_seen,).
    """

    cell: torch.Tensor
    x: torch.Tensor
    counts: SparseCounts
    batch: torch.Tensor


@dataclass
class MiniBatch:
    """A mini-batch: which cells it holds, and what is seen of them in each modality."""

    index: torch.Tensor
    seen: dict[str, Seen]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.index)


class Counts:
    """A compressed sparse row matrix whose rows are gathered where it lies: on the device or, if mapped, on disk.

    On a CPU it is not copied.
    """

    def __init__(self, matrix: sp.csr_matrix, device: str):
        matrix = sp.csr_matrix(matrix)
        if np.count_nonzero(matrix.data) < matrix.nnz:
            matrix = matrix.copy()
            matrix.eliminate_zeros()
        self.device = device
        place = "cpu" if is_mapped(matrix.data) else device
        self.start = torch.from_numpy(matrix.indptr.astype(np.int64, copy=False)).to(place)
        # int32 halves the memory of the largest array; indices become int64 in the mini-batch only
        feature, value = as_type(matrix.indices, np.int32), as_type(matrix.data, np.float32)
        self.maps = [found for array in (feature, value) if (found := map_of(array)) is not None]
        self.feature, self.value = (torch.from_numpy(array).to(place) for array in (feature, value))
        self.n_features = matrix.shape[1]
        log_factorials = row_sums(matrix, lambda counts: gammaln(counts + 1))
        self.total = torch.from_numpy(row_sums(matrix).astype(np.float32)).to(place)
        self.log_factorial = torch.from_numpy(log_factorials.astype(np.float32)).to(place)

    def rows(self, index: torch.Tensor) -> SparseCounts:
        """Return the cells `index` in that order, on the device."""
        index = index.to(self.start.device)
        start = self.start[index]
        length = self.start[index + 1] - start
        cell = torch.repeat_interleave(torch.arange(len(index), device=index.device), length)
        first = torch.repeat_interleave(start - (length.cumsum(0) - length), length)
        entry = first + torch.arange(len(cell), device=index.device)
        tensors = (
            cell,
            self.feature.index_select(0, entry).long(),
            self.value.index_select(0, entry),
            self.total[index],
            self.log_factorial[index],
        )
        return SparseCounts(*(tensor.to(self.device) for tensor in tensors), self.n_features)


class Cells:
    """All cells to train on, resident on the device but for mapped counts, and the mask of what is seen of each.

    Parameters
    ----------
    adatas
        Cells of each modality; equal names are one cell.
    preprocessors
        Fitted, one per modality.
    batches
        All batch labels, in the model's order.
    batch_key
        Column of ``obs`` with the batch; None where there are no batches.
    """

    def __init__(
        self,
        adatas: dict[str, ad.AnnData],
        preprocessors: dict[str, Preprocessor],
        batches: list[str],
        batch_key: str | None,
        device: str,
    ):
        self.batches = batches
        self.names = pd.Index([])
        for adata in adatas.values():
            self.names = self.names.append(adata.obs_names.difference(self.names, sort=False))
        self.device = device
        self.row: dict[str, torch.Tensor] = {}
        self.x: dict[str, torch.Tensor] = {}
        self.counts: dict[str, Counts] = {}
        label = np.zeros(len(self.names), dtype=np.int64)
        for modality, adata in adatas.items():
            preprocessor = preprocessors[modality]
            row = adata.obs_names.get_indexer(self.names)
            label[row >= 0] = batch_labels(adata, batches, batch_key)[row[row >= 0]]
            self.row[modality] = torch.from_numpy(row.astype(np.int64)).to(device)
            self.x[modality] = torch.from_numpy(preprocessor.transform(adata)).to(device)
            self.counts[modality] = Counts(columns(preprocessor.align(adata), preprocessor.selected), device)
        self.batch = torch.from_numpy(label).to(device)

    def __len__(self) -> int:
        return len(self.names)

    def in_any_order(self) -> AbstractContextManager[None]:
        """While the block lasts, expect mini-batches to be taken, not passes over all cells in their order."""
        return read_here_and_there([found for counts in self.counts.values() for found in counts.maps])

    def paired(self) -> np.ndarray:
        """Return which cells are seen in two modalities or more, shape (n_cells,)."""
        return (torch.stack(list(self.row.values())) >= 0).sum(0).cpu().numpy() > 1

    def one_sided_batches(self) -> list[str]:
        """Return the batches whose cells are all seen in one and the same modality alone."""
        held = [torch.bincount(self.batch[row >= 0], minlength=len(self.batches)) > 0 for row in self.row.values()]
        return [name for name, n in zip(self.batches, torch.stack(held).sum(0).tolist(), strict=True) if n == 1]

    def take(self, index: torch.Tensor, least: int = 2) -> MiniBatch:
        """Return the mini-batch of the cells `index`, sorted by batch: so the likelihood is fastest.

        A modality in which fewer than `least` of them are seen is left out: in training, batch normalisation needs two.
        """
        index = index.to(self.device)
        index = index[torch.argsort(self.batch[index], stable=True)]
        seen = {}
        for modality, row in self.row.items():
            position = row[index]
            cell = torch.nonzero(position >= 0).squeeze(1)
            if len(cell) < least:
                continue
            position = position[cell]
            seen[modality] = Seen(
                cell,
                self.x[modality].index_select(0, position),
                self.counts[modality].rows(position),
                self.batch[index[cell]],
            )
        return MiniBatch(index, seen)


def batch_labels(adata: ad.AnnData, batches: list[str], batch_key: str | None) -> np.ndarray:
    """Return the position of each cell's batch in `batches`, −1 for a batch not among them."""
    if batch_key is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    return pd.Index(batches).get_indexer(adata.obs[batch_key].astype(str)).astype(np.int64)


class Sampler:
    """An endless iterator over the mini-batches of shuffled passes over cells, with a state that can be saved.

    The last, smaller mini-batch of a pass is dropped where there is a full one.

    Attributes
    ----------
    order
        The cells as this pass goes through them, shape (n_cells,).
    position
        Mini-batches of this pass that were given.
    """

    def __init__(self, cells: np.ndarray, batch_size: int, seed: int):
        self.cells = torch.from_numpy(np.asarray(cells, dtype=np.int64))
        self.batch_size = min(batch_size, len(self.cells))
        self.generator = torch.Generator().manual_seed(seed)
        self.order = self.cells
        self.position = len(self)

    def __len__(self) -> int:
        """Mini-batches in one pass."""
        return len(self.cells) // self.batch_size

    def __iter__(self) -> "Sampler":
        return self

    def __next__(self) -> torch.Tensor:
        """Return the cells of the next mini-batch; after a whole pass, of the first one of a new pass."""
        if self.pass_is_over():
            self.order = self.cells[torch.randperm(len(self.cells), generator=self.generator)]
            self.position = 0
        start = self.position * self.batch_size
        self.position += 1
        return self.order[start : start + self.batch_size]

    def pass_is_over(self) -> bool:
        """Whether the last mini-batch of a pass was given, or none yet."""
        return self.position == len(self)

    def state(self) -> dict:
        """Return what `load_state` needs to give the mini-batches that would come next."""
        return {"generator": self.generator.get_state(), "order": self.order, "position": self.position}

    def load_state(self, state: dict) -> None:
        """Restore what `state` returned."""
        self.generator.set_state(state["generator"].cpu())
        self.order, self.position = state["order"].cpu(), state["position"]
