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
from clue.preprocess import Preprocessor
from clue.sparse import columns, row_sums


@dataclass
class Seen:
    """The part of a mini-batch that belongs to one modality.

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
    """A mini-batch: the indices of its cells (on the CPU) and their data in each modality (on the device)."""

    index: torch.Tensor
    seen: dict[str, Seen]

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.index)


@dataclass
class Draw:
    """Where to find a mini-batch: everything the CPU must know before the device gathers it.

    Attributes
    ----------
    index
        The cells, shape (n_cells,).
    rows
        For each modality in which cells are seen, int64, shape (5, n_seen): each cell's position in the mini-batch, its
        row in the modality, its batch, the position of its first non-zero count and the number of its non-zero counts.
    n_entries
        For each modality, the number of entries to gather. It is at least the number of the cells' non-zero counts; the
        rest is filled with zeros.
    """

    index: torch.Tensor
    rows: dict[str, torch.Tensor]
    n_entries: dict[str, int]

    def shape(self) -> tuple:
        """Return everything that determines the shapes of the mini-batch's tensors."""
        return len(self.index), *((k, rows.shape[1], self.n_entries[k]) for k, rows in self.rows.items())


class Counts:
    """A compressed sparse row matrix whose rows are gathered where it is stored: on the device or, if mapped, on disk.

    On a CPU it is not copied. The start of each row stays on the CPU, so that reading it never waits for the GPU.
    """

    def __init__(self, matrix: sp.csr_matrix, device: str):
        matrix = sp.csr_matrix(matrix)
        if np.count_nonzero(matrix.data) < matrix.nnz:
            matrix = matrix.copy()
            matrix.eliminate_zeros()
        self.device = device
        place = "cpu" if is_mapped(matrix.data) else device
        self.start = torch.from_numpy(matrix.indptr.astype(np.int64, copy=False))
        # int32 halves the memory of the largest array; only the indices of a mini-batch become int64
        feature, value = as_type(matrix.indices, np.int32), as_type(matrix.data, np.float32)
        self.maps = [found for array in (feature, value) if (found := map_of(array)) is not None]
        self.feature, self.value = (torch.from_numpy(array).to(place) for array in (feature, value))
        self.n_features = matrix.shape[1]
        log_factorials = row_sums(matrix, lambda counts: gammaln(counts + 1))
        self.total = torch.from_numpy(row_sums(matrix).astype(np.float32)).to(place)
        self.log_factorial = torch.from_numpy(log_factorials.astype(np.float32)).to(place)

    def rows(self, row: torch.Tensor, first: torch.Tensor, length: torch.Tensor, n_entries: int) -> SparseCounts:
        """Return the cells `row`, whose counts begin at `first`, on the device.

        If `n_entries` exceeds the sum of `length`, the surplus entries are zeros of the last cell, at various features.
        """
        place, n = self.feature.device, len(row)
        row, first, length = (tensor.to(place) for tensor in (row, first, length))
        shift = first - (length.cumsum(0) - length)
        # on a GPU, always assume padding: checking the sum would wait for the GPU
        padded = length.is_cuda or n_entries > int(length.sum())
        if padded:
            # the padding is an extra row n, whose entries start at the first of the matrix
            padding = (n_entries - length.sum()).unsqueeze(0)
            length, shift = torch.cat([length, padding]), torch.cat([shift, padding - n_entries])
        cell = torch.repeat_interleave(length, output_size=n_entries)
        entry = torch.arange(n_entries, device=place) + shift.index_select(0, cell)
        if padded:
            entry = entry.clamp(max=len(self.value) - 1)
        value = self.value.index_select(0, entry)
        if padded:
            value, cell = value * (cell < n), cell.clamp(max=n - 1)
        return SparseCounts(
            cell.to(self.device),
            self.feature.index_select(0, entry).long().to(self.device),
            value.to(self.device),
            self.total.index_select(0, row).to(self.device),
            self.log_factorial.index_select(0, row).to(self.device),
            self.n_features,
        )


def send(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return a tensor on the device, without waiting for the device to finish its queued work."""
    if tensor.is_cuda or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Cells:
    """All training cells and their data, which reside on the device except for mapped counts.

    Each cell's row in each modality, and its batch, stay on the CPU, where mini-batches are drawn.

    Parameters
    ----------
    adatas
        Cells of each modality; cells with the same name are one cell.
    preprocessors
        Fitted preprocessors, one per modality.
    batches
        All batch labels, in the model's order.
    batch_key
        Column of ``obs`` with the batch; None if there are no batches.
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
            self.row[modality] = torch.from_numpy(row.astype(np.int64))
            self.x[modality] = torch.from_numpy(preprocessor.encoder_input(preprocessor.transform(adata))).to(device)
            self.counts[modality] = Counts(columns(preprocessor.align(adata), preprocessor.selected), device)
        self.batch = torch.from_numpy(label)

    def __len__(self) -> int:
        return len(self.names)

    def resident(self) -> bool:
        """Return whether everything is on the device, so that a mini-batch can be gathered there."""
        return not any(counts.maps for counts in self.counts.values())

    def in_any_order(self) -> AbstractContextManager[None]:
        """Return a context for reading cells in random order, as mini-batches do, instead of one after another."""
        return read_here_and_there([found for counts in self.counts.values() for found in counts.maps])

    def one_sided_batches(self) -> list[str]:
        """Return the batches in which only one modality is seen."""
        held = [torch.bincount(self.batch[row >= 0], minlength=len(self.batches)) > 0 for row in self.row.values()]
        return [name for name, n in zip(self.batches, torch.stack(held).sum(0).tolist(), strict=True) if n == 1]

    def take(self, index: torch.Tensor, least: int = 2) -> MiniBatch:
        """Return the mini-batch of the cells `index`."""
        return self.gather(self.draw(index, least))

    def draw(self, index: torch.Tensor, least: int = 2) -> Draw:
        """Look up the cells `index`, a tensor on the CPU, and sort them by batch, which makes the likelihood fastest.

        A modality in which fewer than `least` of them are seen is left out: in training, batch normalisation needs two.
        """
        index = index[torch.argsort(self.batch[index], stable=True)]
        rows, n_entries = {}, {}
        for modality, row in self.row.items():
            position = row[index]
            cell = torch.nonzero(position >= 0).squeeze(1)
            if len(cell) < least:
                continue
            position = position[cell]
            first = self.counts[modality].start[position]
            length = self.counts[modality].start[position + 1] - first
            rows[modality] = torch.stack([cell, position, self.batch[index[cell]], first, length])
            n_entries[modality] = self._round_up(int(length.sum()))
        return Draw(index, rows, n_entries)

    def _round_up(self, n: int) -> int:
        """Return `n`, on a GPU rounded up by at most an eighth so that few shapes need recording (`clue.graphs`)."""
        if torch.device(self.device).type != "cuda":
            return n
        step = 2 ** max(n.bit_length() - 4, 0)
        return -(-n // step) * step

    def gather(self, draw: Draw) -> MiniBatch:
        """Return the mini-batch on the device."""
        seen = {}
        for modality, rows in draw.rows.items():
            cell, position, batch, first, length = send(rows, self.device)
            x = self.x[modality].index_select(0, position)
            counts = self.counts[modality].rows(position, first, length, draw.n_entries[modality])
            seen[modality] = Seen(cell, x, counts, batch)
        return MiniBatch(draw.index, seen)


def batch_labels(adata: ad.AnnData, batches: list[str], batch_key: str | None) -> np.ndarray:
    """Return the position of each cell's batch in `batches`, or −1 if it is not there."""
    if batch_key is None:
        return np.zeros(adata.n_obs, dtype=np.int64)
    return pd.Index(batches).get_indexer(adata.obs[batch_key].astype(str)).astype(np.int64)


class Sampler:
    """An endless iterator over mini-batches, in shuffled passes over the cells, with a state that can be saved.

    The last mini-batch of a pass is dropped if it is smaller than the others.

    Attributes
    ----------
    order
        The cells in the order of this pass, shape (n_cells,).
    position
        Number of mini-batches of this pass returned so far.
    """

    def __init__(self, cells: np.ndarray, batch_size: int, seed: int):
        self.cells = torch.from_numpy(np.asarray(cells, dtype=np.int64))
        self.batch_size = min(batch_size, len(self.cells))
        self.generator = torch.Generator().manual_seed(seed)
        self.order = self.cells
        self.position = len(self)

    def __len__(self) -> int:
        """Number of mini-batches in one pass."""
        return len(self.cells) // self.batch_size

    def __iter__(self) -> "Sampler":
        return self

    def __next__(self) -> torch.Tensor:
        """Return the cells of the next mini-batch; after a whole pass, start a new one."""
        if self.pass_is_over():
            self.order = self.cells[torch.randperm(len(self.cells), generator=self.generator)]
            self.position = 0
        start = self.position * self.batch_size
        self.position += 1
        return self.order[start : start + self.batch_size]

    def pass_is_over(self) -> bool:
        """Return whether a pass is complete, or none has begun."""
        return self.position == len(self)

    def state(self) -> dict:
        """Return a state from which `load_state` continues with the same mini-batches."""
        return {"generator": self.generator.get_state(), "order": self.order, "position": self.position}

    def load_state(self, state: dict) -> None:
        """Restore a state returned by `state`."""
        self.generator.set_state(state["generator"].cpu())
        self.order, self.position = state["order"].cpu(), state["position"]
