"""Correct the coordinates of new cells before they are matched. Neither correction needs to know any pair.

Cells of a new batch may lie elsewhere in the space than training cells do, and not at the same place in each modality:
depth, for instance, differs between the assays. Cells then match worse, although all of a batch are shifted alike.
Moreover, in spaces of many dimensions a few cells ("hubs") are among the nearest of many others, and are matched too
often.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

import numpy as np

from clue.checks import checked
from clue.matching import check_labels, check_points, l2_normalise, nearest, neighbour_graph

N_NEIGHBOURS, ROUNDS = 5, 3
"""Mutual neighbours from which a shift is estimated, and how often it is. Chosen on the splits of `config/study.yaml`,
which hold only training cells, also with half of the cell types or the most frequent one removed from one modality."""
MIN_CELLS = 10
"""Fewer cells with a mutual neighbour tell nothing about a shift."""
MAX_CELLS = 2000
"""Most cells of a batch and modality among which neighbours are sought for a shift; more only cost time."""
N_LOCAL, LOCAL_SHARE = 10, 0.05
"""A hub is a cell that is near to its 10 nearest cells of the other modality (the number of Conneau et al.), or to the
nearest 5 % if these are fewer. The share was chosen like the neighbours above."""
GAP = 0.1
"""By how much the cosine of two cells of one modality grows. Larger values come closer to the formula of `remove_hubs`;
scores no longer change beyond this one."""


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
    spaces, labels = _checked(spaces, batches)
    moves = [np.zeros_like(x) for x in spaces]
    for rows in _rows_by_batch(labels):
        seen = [i for i, found in enumerate(rows) if found.size]
        for i, j in combinations(seen, 2):
            shift = _shift(spaces[i][rows[i]], spaces[j][rows[j]]) / len(seen)
            moves[i][rows[i]] += shift
            moves[j][rows[j]] -= shift
    return [l2_normalise(x + move) for x, move in zip(spaces, moves, strict=True)]


@checked
def remove_hubs(spaces: Sequence, batches: Sequence | None = None) -> list[np.ndarray]:
    """Add coordinates such that cosines between modalities are lower for hubs.

    Between cells of two modalities, the inner product becomes cos(x, y) - r(x) / 2 - r(y) / 2, where r is a cell's mean
    cosine with its nearest cells of the other modality, less the batch's mean of r. This is half the similarity CSLS
    (Conneau et al., Word translation without parallel data, ICLR 2018). One more column per modality is enough for it:
    cells have sqrt(`GAP`) in that of their own modality and -r / 2 / sqrt(`GAP`) in the others. All rows are then
    scaled to unit length, which hardly changes their order. The modalities lie further apart than before: use the
    result to match cells, and not in a joint UMAP.

    Parameters
    ----------
    spaces, batches
        As for `remove_shifts`, which comes first.

    Returns
    -------
    For each modality, an array in float64 with one column more for each modality, rows of unit length.

    Raises
    ------
    ValueError
        As for `remove_shifts`.
    """
    spaces, labels = _checked(spaces, batches)
    columns = [np.zeros((len(x), len(spaces))) for x in spaces]
    for i, own in enumerate(columns):
        own[:, i] = np.sqrt(GAP)
    for rows in _rows_by_batch(labels):
        for i, j in permutations([i for i, found in enumerate(rows) if found.size], 2):
            near = _nearness(spaces[i][rows[i]], spaces[j][rows[j]])
            columns[i][rows[i], j] = (near.mean() - near) / 2 / np.sqrt(GAP)
    return [l2_normalise(np.hstack(parts)) for parts in zip(spaces, columns, strict=True)]


def _nearness(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the mean cosine of each row of x with its nearest rows of y."""
    k = min(N_LOCAL, int(np.ceil(LOCAL_SHARE * len(y))))
    return 1 - nearest(x, y, k)[0].mean(axis=1) / 2


def _checked(spaces: Sequence, batches: Sequence | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return rows of unit length and the batch of each, for each modality."""
    spaces = [np.asarray(x, dtype=np.float64) for x in spaces]
    check_points(spaces)
    labels = [np.zeros(len(x)) for x in spaces] if batches is None else [check_labels("batches", b) for b in batches]
    if [len(label) for label in labels] != [len(x) for x in spaces]:
        raise ValueError(f"{[len(label) for label in labels]} batches for {[len(x) for x in spaces]} cells")
    return [l2_normalise(x) for x in spaces], labels


def _rows_by_batch(labels: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield, for each batch, its rows in each modality."""
    for batch in np.unique(np.concatenate(labels)):
        yield [np.flatnonzero(label == batch) for label in labels]


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
