"""What a method is given: the `Task` and its hyper-parameters, and the type of the function that it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import anndata as ad
import mudata as md
import numpy as np

from clue.benchmark.config import features_name
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods.features import Fitted, fit_features, read_features
from clue.benchmark.targets import Targets, directions, targets_of
from clue.matching import Metric
from clue.preprocess import Preprocessor


@dataclass
class Task:
    """What a method may see.

    Parameters
    ----------
    train
        Training cells, raw counts; cells of one name in two modalities are one cell.
    test
        Test cells of each modality, shuffled and renamed; nothing in ``obs`` but ``batch``.
    device
        ``"cpu"`` or ``"cuda"``; the GPU is there when it says so.
    threads
        How many threads the method may use.
    checkpoints
        A folder that survives a failed run; empty unless a run of the same settings and data was cut short.
    metric
        By which the embedded cells are to be compared; a method whose space is Euclidean sets ``"euclidean"``.
    info
        What the method wants to have in ``run.json``, for instance ``epochs``.
    features
        Files of encoder inputs that jobs of their own have fitted, by name; see `fitted`.
    """

    train: md.MuData
    test: dict[str, ad.AnnData]
    device: str
    threads: int
    checkpoints: Path
    metric: Metric = "cosine"
    info: dict[str, Any] = field(default_factory=dict)
    features: Mapping[str, Path] = field(default_factory=dict)
    shared: list[Fitted] = field(default_factory=list)
    """What it took to fit those of `features` that were read."""

    def fitted(self, which: str, cells: Mapping[str, ad.AnnData], params: Mapping[str, Any]) -> dict[str, Preprocessor]:
        """Return the encoder inputs of each modality: from the file, if the method's YAML has it made, else fitted now.

        Parameters
        ----------
        which
            Which training cells they are fitted on: ``all``; ``paired``, what `paired_cells` returns; or ``fold-3``,
            what `inner_split` of these with the seed 3 returns to fit on.
        cells
            These cells.
        params
            Hyper-parameters, of which ``n_components`` and ``n_features`` are read.

        Raises
        ------
        BenchmarkError
            If a modality has too few cells or features, or nothing in which they differ.
        """
        path = self.features.get(features_name(which, params))
        if path is None:
            return fit_features(cells, params)
        found = read_features(path)
        self.shared.append(replace(found, preprocessors={}))
        if found.error:
            raise BenchmarkError(found.error)
        return found.preprocessors

    @property
    def targets(self) -> dict[str, Targets]:
        """What is predicted of each modality: the features, and the scale."""
        return targets_of(self.train.mod)

    @property
    def directions(self) -> list[tuple[str, str]]:
        """Each modality to predict from, with each other one to predict."""
        return directions(list(self.test))

    def of_pair(self, first: str, second: str) -> "Task":
        """Return the task of two of the modalities, with all training cells that are seen in either."""
        train = md.MuData({name: self.train.mod[name].copy() for name in (first, second)})
        train.uns = dict(self.train.uns)
        test = {name: self.test[name].copy() for name in (first, second)}
        checkpoints = self.checkpoints / f"{first}+{second}"
        return replace(self, train=train, test=test, checkpoints=checkpoints, info={}, features={})


Arrays = Mapping[str, np.ndarray]
Embed = Callable[[Task, dict[str, Any], int], Arrays | tuple[Arrays, Arrays]]


class Params(dict):
    """Hyper-parameters; a missing one is an error that says where to add it."""

    def __missing__(self, key: str) -> NoReturn:
        raise BenchmarkError(f"parameter {key!r} missing; add it to params in the method's YAML")
