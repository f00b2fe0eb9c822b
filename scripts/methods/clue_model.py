"""CLUE: train on the training cells, then, if transductive, continue with the unpaired test cells."""

import logging
import sys
from dataclasses import replace

import anndata as ad
import numpy as np

from clue import CLUE
from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.prediction import fit_scale, training_mean
from clue.correction import remove_hubs, remove_shifts
from clue.sparse import column_sums, row_sums


def embed(task: Task, params: dict, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train, and place the test cells in the paper's space z or in the aligned one. They enter as unpaired cells."""
    fitted = task.fitted("with_test" if params["transductive"] else "all", params)
    given = {"batch_key": "batch", "preprocessors": fitted, "seed": seed, "device": task.device}
    model = CLUE(task.train, **given, **params["model"])
    common = {"objective": params["objective"], "checkpoints": task.checkpoints}
    model.fit(**common, **params["training"])
    if params["transductive"]:
        model.fit(task.test, **common, **params["fine_tuning"])
    ends = model.history.groupby("stage").last()
    task.info.update(steps=ends["step"].tolist(), epochs=round(ends["epoch"].sum(), 1))
    task.info.update(history=model.history.to_dict("records"))
    place = {"z": model.embed, "aligned": model.align}[params["space"]]
    placed = {modality: place(cells, modality) for modality, cells in task.test.items()}
    if params["space"] == "aligned":
        batches = [cells.obs["batch"] for cells in task.test.values()]
        corrected = remove_hubs(remove_shifts(list(placed.values()), batches), batches)
        placed = dict(zip(placed, corrected, strict=True))
    return placed, {f"{a}2{b}": predict(model, task, a, b, seed) for a, b in task.directions}


def predict(model: CLUE, task: Task, source: str, target: str, seed: int) -> np.ndarray:
    """Return the predicted targets of the test cells of `source`; targets that are not decoded get their mean."""
    prepared, targets = model.preprocessors[target], task.targets[target]
    modelled = prepared.features[prepared.selected]
    decoded = targets.names.isin(modelled)
    train = task.train.mod[target]
    total = float(np.median(row_sums(train.X)))
    counts = column_sums(train.X)
    size = total * counts[train.var_names.isin(modelled)].sum() / counts.sum()
    predictions = np.tile(training_mean(task, target), (task.test[source].n_obs, 1))
    if not decoded.any():
        return predictions
    chosen = replace(
        targets, names=targets.names[decoded], level=None if targets.level is None else targets.level[decoded]
    )

    def expected(cells: ad.AnnData) -> np.ndarray:
        counts = model.predict(cells, target, source=source, features=chosen.names, library_size=size).X
        return chosen.of_expected(counts, total)

    scale = fit_scale(task, source, target, decoded, lambda names: expected(task.train.mod[source][names]), seed)
    predictions[:, decoded] = scale(expected(task.test[source]))
    return predictions


if __name__ == "__main__":
    # the log should show where training resumes
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    run_method(embed)
