"""Encoder inputs that are fitted once and kept in files for all methods, variants and seeds that read them.

A file's name tells the cells and the settings of the fit (`config.features_name`).
"""

import json
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import mudata as md
import numpy as np

from clue.benchmark.contracts import read_arrays
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.files import atomic
from clue.benchmark.methods.validation import inner_split, paired_cells
from clue.components import fit_preprocessors
from clue.preprocess import Preprocessor

ARRAYS = ("features", "selected")


@dataclass(frozen=True)
class Fitted:
    """Encoder inputs by modality, or the reason why there are none, and the time and memory of the fit."""

    preprocessors: dict[str, Preprocessor]
    error: str = ""
    seconds: float = 0.0
    memory_mb: float = 0.0


def fit_features(
    which: str, train: md.MuData, test: Mapping[str, ad.AnnData], settings: Mapping[str, Any]
) -> dict[str, Preprocessor]:
    """Fit the encoder inputs of each modality.

    The seed of the decomposition is always 0, so that the seeds of a method share the result.

    Parameters
    ----------
    which
        The cells to fit on. ``all`` training cells; ``with_test``, those and, if held-out cells then match better, the
        test cells; ``paired``, the training cells seen in every modality; or ``fold-3``, the part of these that
        `inner_split` with the seed 3 returns to fit on.
    test
        Test cells by modality, shuffled and renamed.

    Raises
    ------
    BenchmarkError
        If a modality has too few cells or features, or if they do not differ.
    """
    cells = dict(train.mod) if which in ("all", "with_test") else paired_cells(train)
    if which.startswith("fold-"):
        cells, _ = inner_split(cells, int(which.removeprefix("fold-")))
    numbers = settings["n_components"], settings["n_features"]
    try:
        return fit_preprocessors(cells, {k: k for k in cells}, *numbers, query=test if which == "with_test" else None)
    except ValueError as error:
        n_cells = len(set().union(*(adata.obs_names for adata in cells.values())))
        raise BenchmarkError(f"{error} (among {n_cells} training cells)") from error


def fit_for_file(which: str, train: md.MuData, test: Mapping[str, ad.AnnData], settings: Mapping[str, Any]) -> Fitted:
    """Return the result of `fit_features`. A failure is also a result: each method's row will show the reason."""
    start = time.perf_counter()
    try:
        fitted, error = fit_features(which, train, test, settings), ""
    except BenchmarkError as reason:
        fitted, error = {}, str(reason)
    return Fitted(fitted, error, round(time.perf_counter() - start, 3), peak_memory_mb())


def write_features(fitted: Fitted, path: Path) -> None:
    """Write a file for `read_features`. Reading it executes nothing that is in it."""
    arrays, about = {}, {"error": fitted.error, "seconds": fitted.seconds, "memory_mb": fitted.memory_mb, "states": {}}
    for k, prepared in fitted.preprocessors.items():
        state = prepared.state()
        arrays |= {f"{k}/{name}": state.pop(name) for name in ARRAYS}
        arrays |= {f"{k}/arrays/{name}": array for name, array in state.pop("arrays").items()}
        about["states"][k] = state
    with atomic(path) as temporary:
        np.savez(temporary, about=json.dumps(about), **arrays)


def read_features(path: Path) -> Fitted:
    """Read a file that `write_features` has written."""
    arrays = read_arrays(path)
    about = json.loads(str(arrays.pop("about")))
    preprocessors = {}
    for k, state in about.pop("states").items():
        state |= {name: arrays[f"{k}/{name}"] for name in ARRAYS}
        begin = f"{k}/arrays/"
        state["arrays"] = {name.removeprefix(begin): arrays[name] for name in arrays if name.startswith(begin)}
        preprocessors[k] = Preprocessor.from_state(state)
    return Fitted(preprocessors, **about)


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process or of its largest child, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(user).ru_maxrss for user in users) * unit / 1e6
