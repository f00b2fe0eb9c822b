"""The inputs of a method, `Task` and `Params`, and the type of the method's function, `Embed`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any, NoReturn

import anndata as ad
import mudata as md
import numpy as np

from clue.benchmark.config import features_name
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods.features import Fitted, fit_features, read_features
from clue.benchmark.targets import Targets, targets_of
from clue.matching import Metric
from clue.preprocess import Preprocessor


@dataclass
class Task:
    """Everything that a method may see.

    Parameters
    ----------
    train
        Raw counts of training cells; cells with the same name in two modalities are the same cell.
    test
        Test cells of each modality, shuffled and renamed; ``obs`` holds only ``batch``.
    device
        ``"cpu"`` or ``"cuda"``; with ``"cuda"`` there is a GPU.
    threads
        The number of threads that the method may use.
    checkpoints
        A folder that survives a failed run; empty unless a run with the same settings and data was interrupted.
    metric
        The metric for comparing embedded cells; a method whose space is Euclidean sets ``"euclidean"``.
    info
        Values that the method adds to ``run.json``, for instance ``epochs``.
    features
        Files of encoder inputs that separate jobs have fitted, by name; see `fitted`.
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
    """The time and memory of fitting those of `features` that were read."""

    def fitted(self, which: str, params: Mapping[str, Any]) -> dict[str, Preprocessor]:
        """Return the encoder inputs of each modality, from a file if the method's YAML asks for one, else fitted now.

        Parameters
        ----------
        which
            The cells that they are fitted on (`fit_features`): ``all`` training cells; ``with_test``, for transductive
            methods, those and perhaps the test cells; ``paired``, the cells from `paired_cells`; or ``fold-3``, the
            part of these that `inner_split` with the seed 3 returns to fit on.
        params
            Hyper-parameters; only ``n_components`` and ``n_features`` are read.

        Raises
        ------
        BenchmarkError
            If a modality has too few cells or features, or if they do not differ.
        """
        path = self.features.get(features_name(which, params))
        if path is None:
            return fit_features(which, self.train, self.test, params)
        found = read_features(path)
        self.shared.append(replace(found, preprocessors={}))
        if found.error:
            raise BenchmarkError(found.error)
        return found.preprocessors

    @property
    def targets(self) -> dict[str, Targets]:
        """The features of each modality that are predicted, and their scale."""
        return targets_of(self.train.mod)

    @property
    def directions(self) -> list[tuple[str, str]]:
        """Every pair of a modality to predict from and another one to predict."""
        return list(permutations(self.test, 2))

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
