"""A read-out of a trained CLUE for matching, which places cells of different modalities as close together as possible.

The embedding z serves the decoders: its directions count by how much of the counts they explain. Matching needs
directions that count by how well they carry over between modalities. These are the canonical directions (Hotelling,
Biometrika 1936) of everything that is known about a cell: the components of its counts and the last hidden layers of
the encoders. The directions are fitted in closed form, with a ridge, on cells seen in several modalities, and weighted
by their correlation within batches. z is added because the canonical directions are uncertain if cells are few, and z
is less so.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.linalg

from clue.matching import l2_normalise, match_snn
from clue.metrics import foscttm, match_score

RIDGES = (0.1, 1.0, 10.0)
"""Added to each covariance, as a share of its mean variance."""
LIFTS = (0, 0.5)
"""Constant that each cell gets as a further coordinate, in units of the root-mean-square length of training cells.
Without it, the cosine compares only directions. With it, cells must also be similarly far from the mean. This helps if
new cells are as far from the mean as training cells are. Components of few cells also fit their noise, and new cells
are then placed nearer or farther. The values were chosen on the splits of `config/study.yaml`."""
EMBEDDING_WEIGHT = 0.5
"""Weight of the cosine of z; the cosine of each projection has weight 1. Also chosen on those splits, which hold only
training cells."""
MIN_HELD_OUT, MAX_HELD_OUT = 20, 2000
"""Limits of held-out cells per pair of modalities: fewer cannot tell settings apart, and more only cost time."""
LEAST_PAIRS = 4
"""A modality is left out if fewer cells are seen both in it and in another one."""
LEAST_BATCH = 20
"""Batches of fewer cells count as one, since their means are uncertain."""
Settings = tuple[float, int, float]
"""Ridge, number of canonical components, and lift."""
DEFAULT: Settings = (1.0, 20, 0)
"""For components whose settings were not chosen."""

Rows = dict[str, np.ndarray]
"""For each modality, an array with a row per cell; the row is NaN if the cell is not seen in it."""


@dataclass(frozen=True)
class Projection:
    """Canonical directions of the leading features, and a constant.

    A cell's coordinates are ``(features - mean) @ directions`` and the constant of its modality, scaled to unit length.
    """

    mean: dict[str, np.ndarray]
    directions: dict[str, np.ndarray]
    constant: dict[str, float]

    def __call__(self, modality: str, features: np.ndarray) -> np.ndarray:
        """Return coordinates of unit length, shape (cells, components)."""
        mean = self.mean[modality]
        return _lift((features[:, : len(mean)] - mean) @ self.directions[modality], self.constant[modality])


@dataclass(frozen=True)
class Readout:
    """Projections and z side by side; fit it with `Readout.fit`.

    The inputs are the components of a modality. Some projections read inputs alone, each a different number of leading
    ones. One more reads all inputs and the hidden layers. Cosines between the coordinates are weighted means of the
    cosines in each part. Together, the parts match better than each alone, because their errors differ.

    Attributes
    ----------
    n_inputs
        Number of components of each modality, which come first among the features.
    n_embedding
        Dimensions of z, which comes last.
    of_inputs
        Projections of inputs, which together have the weight 1.
    of_all
        The projection of inputs and hidden layers, of weight 1.
    """

    n_inputs: dict[str, int]
    n_embedding: int
    of_inputs: list[Projection]
    of_all: Projection

    @classmethod
    def fit(
        cls,
        features: Rows,
        n_inputs: Mapping[str, int],
        n_embedding: int,
        held_out: np.ndarray,
        batch: np.ndarray,
        chosen: Sequence[tuple[int, Settings]] = (),
    ) -> "Readout":
        """Fit on cells seen in two modalities or more.

        Parameters
        ----------
        features
            For each modality, the components, then the hidden layers, then z, shape (n_cells, features); a row per
            cell, NaN if the cell is not seen in the modality.
        n_inputs, n_embedding
            How many of the features are inputs, and how many are z.
        held_out
            Mask of the cells on which the ridge of the hidden layers' projection is chosen, shape (n_cells,); encoders
            must not have been trained on them.
        batch
            Batch of each cell, shape (n_cells,); held-out cells are matched within it.
        chosen
            Numbers of leading components to project, each with its settings (`clue.components.choose_widths`). If there
            are none, all are projected with the `DEFAULT` settings.

        Raises
        ------
        ValueError
            If no two modalities have `LEAST_PAIRS` cells in common.
        """
        features = _with_pairs(features, np.ones(len(batch), dtype=bool))
        if not features:
            raise ValueError(
                f"cells cannot be aligned: fewer than {LEAST_PAIRS} training cells are seen in two modalities"
            )
        n_inputs = {k: n_inputs[k] for k in features}
        chosen = chosen or [(max(n_inputs.values()), DEFAULT)]
        of_inputs = [
            _project(*_scaled({k: x[:, : min(n, n_inputs[k])] for k, x in features.items()}, n_inputs), batch, settings)
            for n, settings in chosen
        ]
        with_hidden, scale = _scaled({k: x[:, :-n_embedding] for k, x in features.items()}, n_inputs)
        # Few cells may be held out, so they choose the ridge, and otherwise only among settings near those that suit
        # the inputs; hidden layers may need more components. If cells are too few even for that, the first of the grid
        # is taken, which has the largest ridge.
        near = dict.fromkeys((more * n, lift) for more in (1, 2) for _, (_, n, lift) in chosen)
        grid = [(ridge, *settings) for ridge in reversed(RIDGES) for settings in near]
        found = qualities(with_hidden, held_out, batch, grid, MAX_HELD_OUT)
        best = max(grid, key=lambda settings: found.get(settings, 0))
        return cls(n_inputs, n_embedding, of_inputs, _project(with_hidden, scale, batch, best))

    def __call__(self, modality: str, features: np.ndarray) -> np.ndarray:
        """Return the coordinates of cells seen in one modality, shape (cells, components), rows of unit length."""
        parts = [(1 / len(self.of_inputs), projection(modality, features)) for projection in self.of_inputs]
        parts += [(1, self.of_all(modality, features))]
        parts += [(EMBEDDING_WEIGHT, l2_normalise(features[:, -self.n_embedding :]))]
        return np.hstack([np.sqrt(weight) * part for weight, part in parts]) / np.sqrt(2 + EMBEDDING_WEIGHT)

    @property
    def width(self) -> int:
        """Dimensions of the coordinates."""
        projections = *self.of_inputs, self.of_all
        return sum(next(iter(part.directions.values())).shape[1] + 1 for part in projections) + self.n_embedding

    def state(self) -> dict:
        """Return everything that `from_state` needs."""
        return {**vars(self), "of_inputs": [vars(part) for part in self.of_inputs], "of_all": vars(self.of_all)}

    @classmethod
    def from_state(cls, state: dict) -> "Readout":
        """Restore a read-out from its `state`."""
        of_inputs = [Projection(**part) for part in state["of_inputs"]]
        return cls(**state | {"of_inputs": of_inputs, "of_all": Projection(**state["of_all"])})


# ---- one projection ------------------------------------------------------------------------------


def _scaled(features: Rows, n_inputs: Mapping[str, int]) -> tuple[Rows, Rows]:
    """Scale the inputs together, and the hidden layers together, to a total variance of 1; return also the factors."""
    scale = {}
    for k, x in features.items():
        variance = np.nanvar(x, axis=0)
        parts = variance[: n_inputs[k]], variance[n_inputs[k] :]
        scale[k] = np.concatenate([np.full(len(part), 1 / np.sqrt(max(part.sum(), 1e-12))) for part in parts])
    return {k: x * scale[k] for k, x in features.items()}, scale


def _lift(coordinates: np.ndarray, constant: float) -> np.ndarray:
    """Add the constant as a coordinate, and scale each row to unit length."""
    return l2_normalise(np.column_stack([coordinates, np.full(len(coordinates), constant)]))


def _project(features: Rows, scale: Rows, batch: np.ndarray, settings: Settings) -> Projection:
    """Fit on all cells; `features` are those of `_scaled`."""
    ridge, n_components, lift = settings
    moments = _Moments(features, np.ones(len(batch), dtype=bool), batch)
    directions = next(moments.canonical([ridge], n_components))
    return Projection(
        {k: mean / scale[k] for k, mean in moments.mean.items()},
        {k: scale[k][:, None] * x for k, x in directions.items()},
        {k: lift * moments.length(k, x) for k, x in directions.items()},
    )


def qualities(
    features: Rows, held_out: np.ndarray, batch: np.ndarray, grid: Iterable[Settings], most: int
) -> dict[Settings, float]:
    """Return, for each of the settings, how well at most `most` held-out cells of each pair of modalities match.

    The result is empty if there are too few of these cells.
    """
    features = _with_pairs(features, ~held_out)
    seen = {k: held_out & _seen(x) for k, x in features.items()}
    pairs = [(k, m, np.flatnonzero(seen[k] & seen[m])) for k, m in combinations(features, 2)]
    # evenly spaced, since cells of one batch are often next to each other
    pairs = [(k, m, rows[:: -(-len(rows) // most)]) for k, m, rows in pairs if len(rows) >= MIN_HELD_OUT]
    if not pairs:
        return {}
    grid = list(grid)
    ridges = list(dict.fromkeys(ridge for ridge, _, _ in grid))
    moments = _Moments(features, ~held_out, batch)
    position = np.cumsum(held_out) - 1
    found = {}
    for ridge, directions in zip(ridges, moments.canonical(ridges, max(n for _, n, _ in grid)), strict=True):
        placed = {k: (x[held_out] - moments.mean[k]) @ directions[k] for k, x in features.items()}
        for settings in (settings for settings in grid if settings[0] == ridge):
            _, n, lift = settings
            lifted = {k: _lift(x[:, :n], lift * moments.length(k, directions[k][:, :n])) for k, x in placed.items()}
            each = [_quality(lifted[k][position[rows]], lifted[m][position[rows]], batch[rows]) for k, m, rows in pairs]
            found[settings] = float(np.mean(each))
    return found


def _quality(x: np.ndarray, y: np.ndarray, batch: np.ndarray) -> float:
    """Return how well rows of x and y match: log(match score / FOSCTTM), in which a gain in either counts alike."""
    same = np.arange(len(x))
    match = [match_score(match_snn(a, b, batch_x=batch, batch_y=batch), same) for a, b in ((x, y), (y, x))]
    return float(np.log(max(float(np.mean(match)), 1e-6)) - np.log(max(float(np.mean(foscttm(x, y))), 1e-6)))


def _seen(features: np.ndarray) -> np.ndarray:
    return ~np.isnan(features[:, 0])


def _with_pairs(features: Rows, rows: np.ndarray) -> Rows:
    """Return the modalities in which at least `LEAST_PAIRS` of the rows are seen together with another of them."""
    seen = {k: rows & _seen(x) for k, x in features.items()}
    n_seen = sum(seen.values())
    few = [k for k, each in seen.items() if np.count_nonzero(each & (n_seen > 1)) < LEAST_PAIRS]
    # without these, others may have too few
    return _with_pairs({k: x for k, x in features.items() if k not in few}, rows) if few else features


class _Moments:
    """Means and covariances of the features of some cells, within each modality and between each pair of modalities.

    Covariances are those within batches: how batches differ does not help to match the cells of one of them.
    """

    def __init__(self, features: Rows, rows: np.ndarray, batch: np.ndarray):
        seen = {k: rows & _seen(x) for k, x in features.items()}
        self.mean = {k: x[seen[k]].mean(axis=0) for k, x in features.items()}
        self.within = {k: _covariance(x[seen[k]], x[seen[k]], batch[seen[k]]) for k, x in features.items()}
        self.between = {}
        for k, m in combinations(features, 2):
            both = seen[k] & seen[m]
            if both.any():
                self.between[k, m] = _covariance(features[k][both], features[m][both], batch[both])

    def length(self, modality: str, directions: np.ndarray) -> float:
        """Return the root-mean-square length of the cells' coordinates."""
        return float(np.sqrt(max(np.sum(directions * (self.within[modality] @ directions)), 0)))

    def canonical(self, ridges: Sequence[float], n_components: int) -> Iterator[Rows]:
        """Yield, for each ridge, the leading directions of each modality, each weighted by its correlation.

        After whitening each modality's features, the directions are the leading eigenvectors of the matrix of all
        covariances between modalities: canonical correlation analysis for two, its MAXVAR generalisation for more
        (Kettenring, Biometrika 58, 1971). Two modalities without a common cell have no covariance.
        """
        spectra = {k: np.linalg.eigh(covariance) for k, covariance in self.within.items()}
        sizes = [len(values) for values, _ in spectra.values()]
        place = dict(zip(spectra, np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1]), strict=True))
        n = min(n_components, sum(sizes) - 1, *sizes)
        for ridge in ridges:
            white = {k: _inverse_root(*spectrum, ridge) for k, spectrum in spectra.items()}
            joint = np.zeros((sum(sizes), sum(sizes)))
            for (k, m), covariance in self.between.items():
                joint[np.ix_(place[k], place[m])] = white[k] @ covariance @ white[m]
            joint += joint.T
            # not ARPACK, which does not converge if few cells leave many correlations at zero
            values, vectors = scipy.linalg.eigh(joint, subset_by_index=[len(joint) - n, len(joint) - 1])
            correlation = np.clip(values[::-1] / (len(sizes) - 1), 0, 1)
            weight = np.sqrt(len(sizes)) * correlation
            yield {k: white[k] @ vectors[place[k], ::-1] * weight for k in white}


def _covariance(x: np.ndarray, y: np.ndarray, batch: np.ndarray) -> np.ndarray:
    return _centred(x, batch).T @ _centred(y, batch) / len(x)


def _centred(x: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """Subtract the mean of each batch; those of fewer than `LEAST_BATCH` cells count as one."""
    _, label, n_cells = np.unique(batch, return_inverse=True, return_counts=True)
    label = np.where(n_cells[label] < LEAST_BATCH, -1, label)
    x = x.copy()
    for each in np.unique(label):
        x[label == each] -= x[label == each].mean(axis=0)
    return x


def _inverse_root(values: np.ndarray, vectors: np.ndarray, ridge: float) -> np.ndarray:
    """Return the inverse square root of a covariance with the ridge added, from its eigenvalues and eigenvectors."""
    values = np.maximum(values, 0)
    return vectors / np.sqrt(values + ridge * values.mean()) @ vectors.T
