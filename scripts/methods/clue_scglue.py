"""The authors' implementation of CLUE, `scglue.models.SCCLUEModel`, as in their competition entry.

It trains on the training cells and then, if transductive, continues with the unpaired test cells. Encoder inputs are
those of our own implementation. Upstream keeps the three best checkpoints but cannot resume: an interrupted run starts
anew.
"""

from importlib.metadata import version
from math import ceil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from clue.benchmark.methods import Task, run_method
from clue.preprocess import Preprocessor

INPUT = "encoder_input"
LENGTHS = {"max_epochs": "MAX_EPOCH_PRG", "align_burnin": "ALIGN_BURNIN_PRG", "patience": "PATIENCE_PRG"}
LENGTHS |= {"reduce_lr_patience": "REDUCE_LR_PATIENCE_PRG"}
"""Arguments of upstream's `fit` and the class attributes from which it computes them."""


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train and return posterior means."""
    configure(task.device)
    prepared = task.fitted("all", params)
    train = {k: with_input(a, prepared[k]) for k, a in task.train.mod.items()}
    test = {k: with_input(a, prepared[k]) for k, a in task.test.items()}
    model = build(train, params, seed, params["compile"])
    lengths = shortened(model, count_cells(train), **params["training"])
    task.info["training"] = fit(model, train, params, lengths, task.checkpoints / "training")
    if params["transductive"]:
        both = {k: ad.concat([train[k], test[k]]) for k in train}
        model, trained = build(both, params, seed, params["compile"] | {"lr": params["fine_tuning"]["lr"]}), model
        model.adopt_pretrained_model(trained)
        lengths = capped(count_cells(both), params["training"], **params["fine_tuning"])
        task.info["fine_tuning"] = fit(model, both, params, lengths, task.checkpoints / "fine_tuning")
    stages = [task.info[name] for name in ("training", "fine_tuning") if name in task.info]
    task.info.update(epochs=sum(stage["epochs"] for stage in stages), scglue=version("scglue"))
    return {k: model.encode_data(k, cells) for k, cells in test.items()}


def configure(device: str) -> None:
    """Set upstream's global variables."""
    from scglue.utils import config

    config.CPU_ONLY = device == "cpu"
    config.DATALOADER_NUM_WORKERS = 0
    # Upstream would take an interrupted training for a finished one.
    config.ALLOW_TRAINING_INTERRUPTION = False


def with_input(adata: ad.AnnData, prepared: Preprocessor) -> ad.AnnData:
    """Return the counts to decode, of selected features that are seen in training, with the encoder input."""
    counts = prepared.align(adata)[:, prepared.selected]
    obs = pd.DataFrame({"batch": adata.obs["batch"].astype(str)}, index=adata.obs_names)
    var = pd.DataFrame(index=prepared.features[prepared.selected])
    return ad.AnnData(counts, obs=obs, var=var, obsm={INPUT: prepared.transform(adata)})


def count_cells(adatas: dict[str, ad.AnnData]) -> int:
    """Count cells; equal names are the same cell."""
    return len(set().union(*(adata.obs_names for adata in adatas.values())))


def build(adatas: dict[str, ad.AnnData], params: dict, seed: int, losses: dict):
    """Return upstream's model for these cells, compiled."""
    from scglue.models import SCCLUEModel, configure_dataset
    from scglue.utils import config

    batches = sorted(set().union(*(adata.obs["batch"] for adata in adatas.values())))
    for adata in adatas.values():
        configure_dataset(adata, "NB", use_highly_variable=False, use_rep=INPUT, use_batch="batch", use_obs_names=True)
        # A batch may occur in one modality only, but upstream needs the same batches in all.
        adata.uns[config.ANNDATA_KEY]["batches"] = np.array(batches)
    model = SCCLUEModel(adatas, random_seed=seed, **params["model"])
    model.compile(**losses)
    return model


def shortened(model, n_cells: int, batch_size: int, val_split: float, max_steps: int) -> dict[str, int]:
    """Return upstream's own lengths, in epochs, all shortened in proportion so as to end within `max_steps`."""
    steps = n_cells * (1 - val_split) / batch_size
    own = {
        name: max(ceil(getattr(model, constant) / model.trainer.lr / steps), ceil(getattr(model, constant)))
        for name, constant in LENGTHS.items()
    }
    share = min(1, max_steps / steps / own["max_epochs"])
    return {name: max(1, int(share * epochs)) for name, epochs in own.items()}


def capped(n_cells: int, training: dict, *, lr: float, max_steps: int, max_epochs: int, **lengths) -> dict[str, int]:
    """Return the lengths of fine-tuning, in epochs, so that it ends within `max_steps`."""
    steps = n_cells * (1 - training["val_split"]) / training["batch_size"]
    return {"max_epochs": max(1, min(max_epochs, int(max_steps / steps))), **lengths}


def fit(model, adatas: dict[str, ad.AnnData], params: dict, lengths: dict, directory: Path) -> dict[str, int]:
    """Train, and return the lengths that were allowed and what was done."""
    done = {"epochs": 0, "steps": 0}
    step = model.trainer.train_step

    def counted(engine, data):
        done.update(epochs=engine.state.epoch, steps=engine.state.iteration)
        return step(engine, data)

    model.trainer.train_step = counted
    loaders = {name: params["training"][name] for name in ("batch_size", "val_split")}
    model.fit(adatas, directory=directory, **loaders, **lengths)
    return {**done, **lengths}


if __name__ == "__main__":
    run_method(embed)
