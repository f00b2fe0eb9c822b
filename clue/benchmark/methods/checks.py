"""Check what a method returned before anything is written. Each fault is one line with the method and the array."""

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.contracts import ContractError, check_prediction
from clue.benchmark.methods.task import Task


def check_arrays(arrays: Any, test: Mapping[str, pd.Index], method: str) -> dict[str, np.ndarray]:
    """Return a method's arrays as float32 in the order of `test`, or raise an error that says what is wrong.

    Parameters
    ----------
    arrays
        The value that the method returned. Rows of a data frame are put in order by the names in its index.
    test
        The names of the test cells of each modality.
    method
        The name of the method, for messages.

    Raises
    ------
    ContractError
        If a modality is missing or unknown, or if an array has the wrong number of rows, another width than the first
        array, or values that are not finite numbers.
    """
    where = f"embed of {method} returned"
    if not isinstance(arrays, Mapping):
        raise ContractError(f"{where} {type(arrays).__name__}; it must return a dict of modality to array")
    if set(arrays) != set(test):
        raise ContractError(f"{where} {sorted(arrays)} for the modalities {list(test)}")
    checked: dict[str, np.ndarray] = {}
    for modality, cells in test.items():
        array = _array(_in_order(arrays[modality], cells, f"{where} a data frame for {modality}"), where, modality)
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise ContractError(f"{where} {array.ndim}-d {array.dtype} for {modality}; give a 2-d array of numbers")
        if len(array) != len(cells):
            raise ContractError(f"{where} {len(array)} rows for {len(cells)} cells of {modality}")
        if array.shape[1] == 0:
            raise ContractError(f"{where} 0 columns for {modality}")
        for first, other in checked.items():
            if array.shape[1] != other.shape[1]:
                raise ContractError(f"{where} {array.shape[1]} columns for {modality}; {first} has {other.shape[1]}")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        bad = int((~np.isfinite(array)).any(axis=1).sum())
        if bad:
            raise ContractError(f"{where} {bad} of {len(array)} rows of {modality} that are not finite in float32")
        checked[modality] = array
    return checked


def _array(values: Any, where: str, modality: str) -> np.ndarray:
    try:
        return values.toarray() if sp.issparse(values) else np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ContractError(f"{where} something that is not an array for {modality}: {error}") from error


def _in_order(values: Any, cells: pd.Index, where: str) -> Any:
    """Put the rows of a data frame in the order of the cells. Values without row names are returned unchanged."""
    if not isinstance(values, pd.DataFrame) or values.index.equals(pd.RangeIndex(len(values))):
        return values
    if not values.index.is_unique or set(values.index) != set(cells):
        raise ContractError(f"{where} whose index does not name every test cell exactly once")
    return values.loc[cells]


def to_embedding(arrays: dict[str, np.ndarray], given: Mapping[str, pd.DataFrame]) -> ad.AnnData:
    """Join checked arrays into one table with the name, modality and batch of each cell, from the ``obs`` given."""
    files = [obs.assign(cell=obs.index, modality=name).astype(str) for name, obs in given.items()]
    return ad.AnnData(np.concatenate(list(arrays.values())), obs=pd.concat(files)[["cell", "modality", "batch"]])


def check_predictions(predictions: Any, task: Task, method: str, wanted: bool) -> dict[str, np.ndarray]:
    """Return a method's predictions in each direction as float32 arrays, if its YAML says that it predicts.

    Raises
    ------
    ContractError
        If a direction is missing or unknown, or if an array has the wrong shape or values that are not finite numbers.
    """
    where = f"embed of {method} returned"
    if not wanted:
        if predictions is not None:
            print("predictions are not kept: the method's YAML does not say predicts: true", flush=True)
        return {}
    if predictions is None:
        raise ContractError(f"{where} no predictions, but its YAML says predicts: true; return embeddings, predictions")
    shapes = {f"{a}2{b}": (task.test[a].n_obs, len(task.targets[b].names)) for a, b in task.directions}
    if not isinstance(predictions, Mapping) or set(predictions) != set(shapes):
        raise ContractError(f"{where} predictions of {list(predictions)}; it must return those of {list(shapes)}")
    arrays = {direction: np.asarray(predictions[direction]) for direction in shapes}
    for direction, array in arrays.items():
        check_prediction(array, shapes[direction], f"{where} predictions: {direction}")
    return {direction: array.astype(np.float32) for direction, array in arrays.items()}


def check_left_alone(task: Task, given: Mapping[str, pd.DataFrame], method: str) -> None:
    """Check that a method has left the test cells in their order; otherwise the order of its rows is unknown."""
    for name, obs in given.items():
        if name in task.test and not task.test[name].obs_names.equals(obs.index):
            raise ContractError(
                f"embed of {method} has filtered, reordered or renamed the cells of task.test[{name!r}], so it is"
                f" unknown which row belongs to which cell; work on task.test[{name!r}].copy()"
            )
