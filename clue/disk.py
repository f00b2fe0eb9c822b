"""Matrices that need not fit in memory: they are written once to unnamed files, then mapped.

The pages of such a map are copies of data on disk, so the operating system can reclaim them when it needs memory. An
unnamed file belongs to one process and disappears with it, however the process ends: nothing is left behind, and no
half-written file can be mistaken for a complete one. The files lie in Python's folder for temporary files. The
environment variable ``TMPDIR`` names another folder, which should be on a disk and not in memory, as some ``/tmp`` are.
"""

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import scipy.sparse as sp

PART = 2**22
"""How many numbers are converted at a time."""


class _File:
    """A growing array in an unnamed file."""

    def __init__(self, dtype):
        self.dtype = np.dtype(dtype)
        self.size = 0
        self.file = tempfile.TemporaryFile(prefix="clue-")

    def append(self, values: np.ndarray) -> None:
        """Write more values; when this returns, the operating system has them."""
        try:
            # not through a map, where a full disk would kill the process
            self.file.write(np.ascontiguousarray(values, self.dtype))
            self.file.flush()
        except OSError as error:
            problem = os.strerror(error.errno or 0)
            reason = f"{problem}, for counts kept on disk while training (TMPDIR names the folder)"
            raise OSError(error.errno, reason, tempfile.gettempdir()) from error
        self.size += len(values)

    def mapped(self) -> np.ndarray:
        """Return all values as a shared map; a private one would need as much free memory as it maps."""
        if not self.size:
            return np.empty(0, self.dtype)
        return np.asarray(np.memmap(self.file, self.dtype, "r+"))


def map_of(array: np.ndarray) -> mmap.mmap | None:
    """Return the file map that holds an array; None if the array is in memory."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) else None


def is_mapped(array: np.ndarray) -> bool:
    """Return whether a file map holds an array."""
    return map_of(array) is not None


@contextmanager
def read_here_and_there(maps: Iterable[mmap.mmap]) -> Iterator[None]:
    """While the block lasts, have the operating system read only the pages that are touched.

    By default it reads ahead, megabytes for each row of a mini-batch. This helps passes over all rows. But if the data
    are larger than memory, the pages that were read ahead are dropped before they are used.
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
    """Return the parts as one array of `size`, in memory or mapped."""
    if on_disk:
        file = _File(dtype)
        for part in parts:
            file.append(part)
        return file.mapped()
    return fill(np.empty(size, dtype), parts)


def fill(array: np.ndarray, parts: Iterable[np.ndarray]) -> np.ndarray:
    """Write the parts into an array, one after another, and return it."""
    end = 0
    for part in parts:
        array[end : end + len(part)] = part
        end += len(part)
    return array


def as_type(array: np.ndarray, dtype) -> np.ndarray:
    """Return an array with another type, or itself if it has that type; a mapped array stays mapped."""
    if array.dtype == dtype:
        return array
    parts = (array[start : start + PART] for start in range(0, len(array), PART))
    return filled(parts, len(array), dtype, is_mapped(array))


def mapped(blocks: Iterable[sp.csr_matrix], n_columns: int) -> sp.csr_matrix:
    """Write blocks of rows one after another; return them as one mapped float32 matrix without explicit zeros."""
    data, indices = _File(np.float32), _File(np.int32)
    ends = [np.zeros(1, dtype=np.int64)]
    for block in blocks:
        if np.count_nonzero(block.data) < block.nnz:
            block = block.copy()
            block.eliminate_zeros()
        ends.append(data.size + block.indptr[1:].astype(np.int64))
        data.append(block.data)
        indices.append(block.indices)
    # scipy wants one type for both index arrays, and would convert them in memory
    index = sp.get_index_dtype(maxval=max(data.size, n_columns))
    indptr = np.concatenate(ends).astype(index)
    return sp.csr_matrix((data.mapped(), as_type(indices.mapped(), index), indptr), shape=(len(indptr) - 1, n_columns))
