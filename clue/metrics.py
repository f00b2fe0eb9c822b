"""Measure how well two embeddings of the same cells agree: match score, FOSCTTM, label transfer.

Throughout, x and y are embeddings of two modalities. The match score and related metrics take a match matrix
of `clue.matching`; FOSCTTM and label transfer take the embeddings.
"""

from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse as sp

from clue.checks import checked
from clue.matching import Metric, as_points, check_labels, check_positive, shared_neighbours

Ties = Literal["half", "strict"]

# With the default block, a tile of distances takes 2 MB and stays in a core's cache.
_TILE_COLUMNS = 1024

# The rounding error of a squared distance in float64, relative to the squared norms it is made of, is below this.
_ROUNDING = 1e-12


# ---- metrics of a match matrix -------------------------------------------------------------------


def match_score(matches, truth) -> float:
    """Return the mean weight that a match matrix gives to the true partners.

    Parameters
    ----------
    matches
        Match matrix, cells of x by cells of y, sparse or dense. Negative weights count as zero and rows
        are divided by their sum.
    truth
        Column of the true partner of each row.

    Returns
    -------
    A number from 0 to 1. Random matching within batches of N_b cells gives the mean of 1 / N_b over cells.

    Raises
    ------
    ValueError
        If the matrix has no rows, a row is empty, weights are not finite, or `truth` does not fit the matrix.

    Notes
    -----
    This is ``match_probability`` of the NeurIPS 2021 multimodal competition.
    """
    return float(np.mean(true_weights(matches, truth)))


def true_weights(matches, truth) -> np.ndarray:
    """Return the weight of the true partner of each row of a match matrix; the mean is `match_score`.

    Takes the same parameters and raises the same errors as `match_score`.
    """
    matches = _non_negative(matches)
    truth = np.asarray(truth)
    if not matches.shape[0]:
        raise ValueError(f"the match matrix {matches.shape} has no rows")
    fits = truth.shape == (matches.shape[0],) and truth.dtype.kind in "iuf"
    if not fits or not np.isin(truth, np.arange(matches.shape[1])).all():
        raise ValueError(f"truth must hold one column of the match matrix {matches.shape}, a whole number, per row")
    truth = truth.astype(np.int64)
    total = np.asarray(matches.sum(axis=1)).ravel()
    empty = int((total == 0).sum())
    if empty:
        raise ValueError(f"{empty} of {len(total)} rows of the match matrix are empty")
    hit = np.asarray(matches[np.arange(len(truth)), truth]).ravel()
    return hit / total


def cell_type_match(matches, types_x, types_y) -> float:
    """Return the fraction of the match weight that is between cells of the same type.

    Parameters
    ----------
    matches
        Match matrix, cells of x by cells of y, sparse or dense. Negative weights count as zero.
    types_x, types_y
        Cell type of each row and of each column.
    """
    matches = _non_negative(matches).tocoo()
    types_x, types_y = check_labels("cell types", types_x), check_labels("cell types", types_y)
    if matches.shape != (len(types_x), len(types_y)):
        raise ValueError(f"match matrix {matches.shape} for {len(types_x)} and {len(types_y)} cell types")
    total = matches.data.sum()
    if total == 0:
        raise ValueError("the match matrix is empty")
    same = types_x[matches.row] == types_y[matches.col]
    return float(matches.data[same].sum() / total)


def _non_negative(matches):
    matches = sp.csr_matrix(matches, dtype=np.float64, copy=True)
    if wrong := np.count_nonzero(~np.isfinite(matches.data)):
        raise ValueError(f"{wrong} weights of the match matrix are not finite")
    matches.data = np.maximum(matches.data, 0)
    return matches


# ---- FOSCTTM -------------------------------------------------------------------------------------


class Closer(NamedTuple):
    """Numbers of cells of the other modality that are closer than, or as far as, the true match.

    The true match itself is not counted. Arrays have one entry per pair.
    """

    closer_x: np.ndarray
    tied_x: np.ndarray
    closer_y: np.ndarray
    tied_y: np.ndarray

    def fractions(self, ties: Ties) -> tuple[np.ndarray, np.ndarray]:
        """Return the fraction per cell of x and per cell of y; see `foscttm`."""
        if ties not in ("half", "strict"):
            raise ValueError(f"ties is {ties!r}; it must be 'half' or 'strict'")
        weight = 0.5 if ties == "half" else 0.0
        n = len(self.closer_x)
        return (self.closer_x + weight * self.tied_x) / n, (self.closer_y + weight * self.tied_y) / n

    def top1(self) -> tuple[np.ndarray, np.ndarray]:
        """Return, per cell of x and per cell of y, whether its nearest neighbour is the true match.

        The value is 0 if another cell is closer. If n other cells are as near as the true match, it is 1 / (n + 1), the
        expected value when one of them is drawn. A collapsed embedding thus gets 1 / N, not 1.
        """
        first_x, first_y = (
            np.where(closer == 0, 1 / (tied + 1), 0.0)
            for closer, tied in ((self.closer_x, self.tied_x), (self.closer_y, self.tied_y))
        )
        return first_x, first_y


def foscttm(x, y, metric: Metric = "cosine", ties: Ties = "half", block: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each cell, the fraction of samples closer than the true match (FOSCTTM).

    For a cell of x it is ``(closer + w * tied) / N``. `closer` counts the cells of y that are nearer to it than
    its true partner. `tied` counts the cells exactly as near (up to float64 rounding), without the partner.
    w is 1/2 for ``ties="half"`` and 0 for ``ties="strict"``. Cells of y are treated likewise. The usual FOSCTTM
    is the mean over both arrays: 0 is perfect, and random embeddings get (N - 1) / 2N.

    An embedding that puts all cells on one point gets (N - 1) / 2N with ``ties="half"``; the published
    strict formula calls it perfect.

    Parameters
    ----------
    x, y
        Embeddings, cells x dimensions; row i of both is the same cell.
    metric
        ``"cosine"``: distances between L2-normalised rows; ``"euclidean"``: between the rows as they are.
    ties
        How to count cells that are as far as the true match.
    block
        Rows of a tile of distances. Memory grows with ``block``, never with N squared.

    Returns
    -------
    fractions_x, fractions_y
        Arrays of length N.

    Notes
    -----
    The result is exact: all N x N distances are compared in float64, tile by tile, both directions in one
    pass. The divisor is N, as in scglue, not N - 1.
    """
    return count_closer(x, y, metric, block).fractions(ties)


def foscttm_within_batch(
    x, y, batch, metric: Metric = "cosine", ties: Ties = "half", block: int = 256
) -> tuple[np.ndarray, np.ndarray]:
    """Return `foscttm` of each cell among the cells of its own batch.

    Parameters
    ----------
    x, y, metric, ties, block
        As for `foscttm`.
    batch
        Batch of each pair.
    """
    x, y = _check_pairs(x, y)
    batch = check_labels("batches", batch)
    if batch.shape != (len(x),):
        raise ValueError(f"{batch.size} batches for {len(x)} pairs of cells")
    fractions_x, fractions_y = np.empty(len(x)), np.empty(len(x))
    for name in np.unique(batch):
        rows = np.flatnonzero(batch == name)
        fractions_x[rows], fractions_y[rows] = foscttm(x[rows], y[rows], metric, ties, block)
    return fractions_x, fractions_y


def count_closer(x, y, metric: Metric = "cosine", block: int = 256) -> Closer:
    """Count, for each cell, the cells of the other modality that are closer than, or as far as, its true match.

    Takes the parameters of `foscttm` except `ties`; `foscttm` turns the counts into fractions.
    """
    x, y = as_points(*_check_pairs(x, y), metric=metric)
    if block < 1:
        raise ValueError(f"block is {block}; it must be positive")
    # Squared distances as one matrix product: (-2x, |x|^2, 1) . (y, 1, |y|^2).
    norm_x, norm_y = (x**2).sum(axis=1, keepdims=True), (y**2).sum(axis=1, keepdims=True)
    one = np.ones_like(norm_x)
    x, y = np.hstack([-2 * x, norm_x, one]), np.hstack([y, one, norm_y])
    true = np.einsum("ij,ij->i", x, y)
    # Products of different shapes round differently, so a difference within rounding is a tie.
    rounding = _ROUNDING * (norm_x.max() + norm_y.max())
    return _compare_tiles(x, y, true - rounding, true + rounding, block)


def _compare_tiles(x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray, block: int) -> Closer:
    n = len(x)
    closer_x, closer_y, within_x, within_y = (np.zeros(n, dtype=np.int64) for _ in range(4))
    for top in range(0, n, block):
        rows = slice(top, top + block)
        for left in range(0, n, _TILE_COLUMNS):
            columns = slice(left, left + _TILE_COLUMNS)
            squared = x[rows] @ y[columns].T
            closer_x[rows] += np.count_nonzero(squared < low[rows, None], axis=1)
            within_x[rows] += np.count_nonzero(squared <= high[rows, None], axis=1)
            closer_y[columns] += np.count_nonzero(squared < low[None, columns], axis=0)
            within_y[columns] += np.count_nonzero(squared <= high[None, columns], axis=0)
    # The true match is within its own bounds: it is not a tie.
    return Closer(closer_x, within_x - closer_x - 1, closer_y, within_y - closer_y - 1)


def _check_pairs(x, y) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 2 or x.shape != y.shape or len(x) == 0:
        raise ValueError(f"x {x.shape} and y {y.shape} must hold the same cells in the same dimensions")
    return x, y


# ---- labels --------------------------------------------------------------------------------------


@checked
def label_transfer_accuracy(x, y, labels_x, labels_y, k: int = 30, metric: Metric = "cosine") -> float:
    """Transfer the labels of x to the cells of y and return the fraction that is correct.

    Each cell of y takes the label with the largest sum of Jaccard indices of shared nearest neighbours
    (`k` neighbours in `metric`, over all batches), as in GLUE.

    Parameters
    ----------
    x, y
        Embeddings, cells x dimensions; the numbers of cells may differ.
    labels_x, labels_y
        Label of each cell.
    k
        Number of neighbours; capped at the number of cells.
    metric
        How cells are compared: ``"cosine"`` or ``"euclidean"``, see `clue.matching.as_points`.
    """
    check_positive(k=k)
    labels_x, labels_y = check_labels("labels", labels_x), check_labels("labels", labels_y)
    if len(labels_x) != len(x) or len(labels_y) != len(y):
        raise ValueError(f"{len(labels_x)} and {len(labels_y)} labels for {len(x)} cells of x and {len(y)} of y")
    x, y = as_points(x, y, metric=metric)
    names, code = np.unique(labels_x, return_inverse=True)
    member = np.eye(len(names), dtype=np.float32)[code]
    votes = shared_neighbours(y, x, k) @ member
    return float(np.mean(names[votes.argmax(axis=1)] == labels_y))
