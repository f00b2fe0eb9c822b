"""Matrices that need not fit in memory: written once to files without a name, then mapped.

The pages of such a map are copies of what the disk holds, so that the operating system takes them back when it needs
memory. A file without a name belongs to one process and is gone with it, however that ends: nothing is left behind,
and nothing half-written can be taken for done. The files lie in Python's folder for temporary files; the environment
variable ``TMPDIR`` names another, which should be on a disk and not, as some ``/tmp``, in memory.
"""

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import scipy.sparse as sp

PART = 2**22
"""Numbers that are converted at a time."""


class _File:
    """An array that grows, in a file without a name."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.size = 0
        self.file = tempfile.TemporaryFile(prefix="clue-")

    def append(self, values: np.ndarray) -> None:
        """Write more values; they are on their way to the disk when this returns."""
        try:
            # not through the map: there, a full disk would kill the process
            self.file.write(np.ascontiguousarray(values, self.dtype))
            self.file.flush()
        except OSError as error:
            problem = os.strerror(error.errno or 0)
            reason = f"{problem}, for counts kept on disk while training (TMPDIR names the folder)"
            raise OSError(error.errno, reason, tempfile.gettempdir()) from error
        self.size += len(values)

    def mapped(self) -> np.ndarray:
        """Return all values as a map. It is shared, not private: private ones need as much free memory as they map."""
        if not self.size:
            return np.empty(0, self.dtype)
        return np.asarray(np.memmap(self.file, self.dtype, "r+"))


def map_of(array: np.ndarray) -> mmap.mmap | None:
    """Return the map of a file that an array lies in; None of one in memory."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) else None


def is_mapped(array: np.ndarray) -> bool:
    """Return whether an array lies in a map of a file."""
    return map_of(array) is not None


@contextmanager
def read_here_and_there(maps: Iterable[mmap.mmap]) -> Iterator[None]:
    """While the block lasts, have the operating system read those pages only that are touched.

    It reads ahead, megabytes for each row of a mini-batch, which serves passes over all rows: of data larger than the
    memory, whatever it has read ahead is gone before it is used.
    """
    # Windows has no such advice
    advised = list(maps) if hasattr(mmap, "MADV_RANDOM") else []
    for each in advised:
        each.madvise(mmap.MADV_RANDOM)
    try:
        yield
    finally:
        for each in advised:
            each.madvise(mmap.MADV_NORMAL)


def filled(parts: Iterable[np.ndarray], size: int, dtype, on_disk: bool) -> np.ndarray:
    """Return an array of `size` that consists of the parts, in memory or mapped."""
    if on_disk:
        file = _File(dtype)
        for part in parts:
            file.append(part)
        return file.mapped()
    return fill(np.empty(size, dtype), parts)


def fill(array: np.ndarray, parts: Iterable[np.ndarray]) -> np.ndarray:
    """Write the parts into an array, one after the other; return it."""
    end = 0
    for part in parts:
        array[end : end + len(part)] = part
        end += len(part)
    return array


def as_type(array: np.ndarray, dtype) -> np.ndarray:
    """Return an array with another type, or itself; of a map, a map."""
    if array.dtype == dtype:
        return array
    parts = (array[start : start + PART] for start in range(0, len(array), PART))
    return filled(parts, len(array), dtype, is_mapped(array))


def mapped(blocks: Iterable[sp.csr_matrix], n_columns: int) -> sp.csr_matrix:
    """Write blocks of rows one after the other; return them as one matrix, float32, mapped, without explicit zeros."""
    data, indices = _File(np.float32), _File(np.int32)
    ends = [np.zeros(1, dtype=np.int64)]
    for block in blocks:
        if np.count_nonzero(block.data) < block.nnz:
            block = block.copy()
            block.eliminate_zeros()
        ends.append(data.size + block.indptr[1:].astype(np.int64))
        data.append(block.data)
        indices.append(block.indices)
    # scipy wants one type for both, and would convert to it in memory
    index = sp.get_index_dtype(maxval=max(data.size, n_columns))
    indptr = np.concatenate(ends).astype(index)
    return sp.csr_matrix((data.mapped(), as_type(indices.mapped(), index), indptr), shape=(len(indptr) - 1, n_columns))
