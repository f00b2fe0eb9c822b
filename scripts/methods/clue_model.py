"""CLUE: train on the training cells, then, if transductive, go on with the unpaired test cells."""

import numpy as np

from clue import CLUE
from clue.benchmark.methods import Task, run_method


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train and place the test cells, which enter as unpaired cells, in the paper's space z or in the aligned one."""
    model = CLUE(task.train, seed=seed, device=task.device, **params["model"])
    common = {"objective": params["objective"], "checkpoints": task.checkpoints}
    model.fit(**common, **params["training"])
    if params["transductive"]:
        model.fit(task.test, **common, **params["fine_tuning"])
    ends = {row["stage"]: row for row in model.history}.values()
    task.info.update(steps=[row["step"] for row in ends], epochs=round(sum(row["epoch"] for row in ends), 1))
    task.info.update(history=model.history)
    place = {"z": model.embed, "aligned": model.align}[params["space"]]
    return {modality: place(cells, modality) for modality, cells in task.test.items()}


if __name__ == "__main__":
    run_method(embed)
