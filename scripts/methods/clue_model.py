"""CLUE: train on the training cells, then, if transductive, go on with the unpaired test cells."""

import logging
import sys

import numpy as np

from clue import CLUE
from clue.benchmark.methods import Task, run_method


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train and place the test cells, which enter as unpaired cells, in the paper's space z or in the aligned one."""
    model = CLUE(task.train, batch_key="batch", seed=seed, device=task.device, **params["model"])
    common = {"objective": params["objective"], "checkpoints": task.checkpoints}
    model.fit(**common, **params["training"])
    if params["transductive"]:
        model.fit(task.test, **common, **params["fine_tuning"])
    ends = model.history.groupby("stage").last()
    task.info.update(steps=ends["step"].tolist(), epochs=round(ends["epoch"].sum(), 1))
    task.info.update(history=model.history.to_dict("records"))
    place = {"z": model.embed, "aligned": model.align}[params["space"]]
    return {modality: place(cells, modality) for modality, cells in task.test.items()}


if __name__ == "__main__":
    # where training is resumed from belongs in the log
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    run_method(embed)
