"""Remove shifts between modalities from the coordinates of new cells.

Cells of a new batch may lie elsewhere in the space than training cells do, and not at the same place in each modality:
depth, for instance, differs between the assays. Cells then match worse, although all of a batch are shifted alike.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from clue.checks import checked
from clue.matching import check_labels, check_points, l2_normalise, neighbour_graph

N_NEIGHBOURS, ROUNDS = 5, 3
"""Mutual neighbours from which a shift is estimated, and how often it is. Chosen on the splits of `config/study.yaml`,
which hold only training cells, also with half of the cell types or the most frequent one removed from one modality."""
MIN_CELLS = 10
"""Fewer cells with a mutual neighbour tell nothing about a shift."""
MAX_CELLS = 2000
"""Most cells of a batch and modality among which neighbours are sought; more only cost time."""


@checked
def remove_shifts(spaces: Sequence, batches: Sequence | None = None) -> list[np.ndarray]:
    """Move the modalities of each batch onto each other, in a space whose cells are compared by cosine.

    The shift between two modalities is the mean difference between mutual nearest neighbours (Haghverdi et al., Nature
    Biotechnology 36, 2018). Cells without a counterpart in the other modality have none, so the modalities may hold
    different cell types. Each coordinate of the shift is multiplied by 1 - variance / shift², or by 0 if that is
    negative (the estimator of James and Stein), so that a shift that may be chance moves nothing.

    Parameters
    ----------
    spaces
        For each modality, the coordinates of its cells, cells x dimensions, as `CLUE.align` returns them.
    batches
        For each modality, the batch of each cell. A batch seen in one modality alone is not moved. None: all cells are
        of one batch.

    Returns
    -------
    Arrays of the same shapes in float64, rows of unit length.

    Raises
    ------
    ValueError
        If the shapes do not match, rows are not finite, or batches are missing.
    """
    spaces = [np.asarray(x, dtype=np.float64) for x in spaces]
    check_points(spaces)
    spaces = [l2_normalise(x) for x in spaces]
    labels = [np.zeros(len(x)) for x in spaces] if batches is None else [check_labels("batches", b) for b in batches]
    if [len(label) for label in labels] != [len(x) for x in spaces]:
        raise ValueError(f"{[len(label) for label in labels]} batches for {[len(x) for x in spaces]} cells")
    moves = [np.zeros_like(x) for x in spaces]
    for batch in np.unique(np.concatenate(labels)):
        rows = [np.flatnonzero(label == batch) for label in labels]
        seen = [i for i, found in enumerate(rows) if found.size]
        for i, j in combinations(seen, 2):
            shift = _shift(spaces[i][rows[i]], spaces[j][rows[j]]) / len(seen)
            moves[i][rows[i]] += shift
            moves[j][rows[j]] -= shift
    return [l2_normalise(x + move) for x, move in zip(spaces, moves, strict=True)]


def _shift(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return what to add to x so that it lies on y."""
    x, y = (points[:: -(-len(points) // MAX_CELLS)] for points in (x, y))
    shift = np.zeros(x.shape[1])
    for _ in range(ROUNDS):
        near_x, near_y = l2_normalise(x + shift / 2), l2_normalise(y - shift / 2)
        k = min(N_NEIGHBOURS, len(x), len(y))
        i, j = neighbour_graph(near_x, near_y, k).multiply(neighbour_graph(near_y, near_x, k).T).nonzero()
        n = min(len(np.unique(i)), len(np.unique(j)))
        if n < MIN_CELLS:
            return np.zeros(x.shape[1])
        difference = y[j] - x[i]
        shift = difference.mean(axis=0)
        shift *= np.maximum(1 - difference.var(axis=0) / n / np.maximum(shift**2, 1e-30), 0)
    return shift
