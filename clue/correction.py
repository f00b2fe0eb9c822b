"""Correct the coordinates of new cells before they are matched. Neither correction needs to know any pair.

Cells of a new batch may lie elsewhere in the space than training cells do, and not at the same place in each modality:
depth, for instance, differs between the assays. Cells then match worse, although all of a batch are shifted alike.
Moreover, in spaces of many dimensions a few cells ("hubs") are among the nearest of many others, and are matched too
often.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from clue.checks import checked
from clue.matching import check_labels, check_points, l2_normalise, neighbour_graph
from clue.sparse import BLOCK

N_NEIGHBOURS, ROUNDS = 5, 3
"""Mutual neighbours from which a shift is estimated, and how often it is. Chosen on the splits of `config/study.yaml`,
which hold only training cells, also with half of the cell types or the most frequent one removed from one modality."""
MIN_CELLS = 10
"""Fewer cells with a mutual neighbour tell nothing about a shift."""
MAX_CELLS = 2000
"""Most cells of a batch and modality among which neighbours are sought for a shift; more only cost time."""
TEMPERATURE, DAMPING = 0.03, 0.6
"""Entropy of the transport in `remove_hubs`, in units of cosines, and how far its marginals are kept: 0 not at all, 1
exactly. Chosen like the neighbours above. Marginals kept exactly do harm if cell types are missing."""
BALANCING_ROUNDS, MAX_BALANCED = 5, 5000
"""Rounds of Sinkhorn's algorithm, and most cells of a batch and modality that take part. The potentials of others
follow from these."""
GAP = 0.2
"""By how much the cosine of two cells of one modality grows, before rows are scaled. With larger values the scaling
changes less; scores hardly do."""


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

    Between cells of two modalities, the inner product becomes cos(x, y) + f(x) + g(y). The potentials f and g are those
    of an unbalanced entropic transport between the cells of a batch (Chizat et al., Mathematics of Computation 87,
    2018): they are low for cells that would receive more than their share. Shares are kept only in part, so the
    modalities may hold different cell types. It takes two more columns for each pair of modalities: one modality has
    sqrt(`GAP`) in the first and f / sqrt(`GAP`) in the second, the other has g / sqrt(`GAP`) and sqrt(`GAP`). All rows
    are then scaled to unit length, which hardly changes their order. The modalities lie further apart than before: use
    the result to match cells, and not in a joint UMAP.

    Parameters
    ----------
    spaces, batches
        As for `remove_shifts`, which comes first.

    Returns
    -------
    For each modality, an array in float64 with two columns more for each pair of modalities, rows of unit length.

    Raises
    ------
    ValueError
        As for `remove_shifts`.
    """
    spaces, labels = _checked(spaces, batches)
    n_modalities, unit = len(spaces), np.sqrt(GAP)
    columns = [np.zeros((len(x), n_modalities * (n_modalities - 1))) for x in spaces]
    for pair, (i, j) in enumerate(combinations(range(n_modalities), 2)):
        first, second = 2 * pair, 2 * pair + 1
        columns[i][:, first] = columns[j][:, second] = unit
        for rows in _rows_by_batch(labels):
            if rows[i].size and rows[j].size:
                f, g = _potentials(spaces[i][rows[i]], spaces[j][rows[j]])
                columns[i][rows[i], second] = f / unit
                columns[j][rows[j], first] = g / unit
    return [l2_normalise(np.hstack(parts)) for parts in zip(spaces, columns, strict=True)]


def _potentials(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the potentials of the rows of x and of y, both with mean 0."""
    some_x, some_y = (points[:: -(-len(points) // MAX_BALANCED)] for points in (x, y))
    g = np.zeros(len(some_y))
    for _ in range(BALANCING_ROUNDS):
        f = _potential(some_x, some_y, g)
        g = _potential(some_y, some_x, f)
    f, g = _potential(x, some_y, g), _potential(y, some_x, f)
    return f - f.mean(), g - g.mean()


def _potential(x: np.ndarray, y: np.ndarray, of_y: np.ndarray) -> np.ndarray:
    """Return the potentials of the rows of x, given those of the rows of y."""
    parts = []
    for start in range(0, len(x), BLOCK):
        # Potentials lie within DAMPING / (1 - DAMPING) of 0, so exp(2.5 / 0.03) is the largest number: it fits.
        weights = np.exp(((x[start : start + BLOCK] @ y.T + of_y) / TEMPERATURE).astype(np.float32))
        parts.append(-DAMPING * TEMPERATURE * np.log(weights.mean(axis=1, dtype=np.float64)))
    return np.concatenate(parts)


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
