"""Cobolt, by its authors' package (github.com/boyinggong/cobolt); our own implementation is ``cobolt_native``."""

import importlib.util
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task, run_method
from scripts.methods import cobolt_native as shared


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train, and return posterior means, mapped to the joint means of paired cells."""
    check_installed()
    return shared.run(train, task, params, seed)


def check_installed() -> None:
    """Raise an error if `cobolt` is not the authors' package; the package index has another one of that name."""
    spec = importlib.util.find_spec("cobolt")
    folders = spec.submodule_search_locations if spec else None
    if not any(Path(folder, "model", "coboltmodel.py").exists() for folder in folders or []):
        raise BenchmarkError(
            "the authors' cobolt is not installed (the one on the package index is another); use envs/cobolt.yaml, or"
            " the method cobolt_native, our implementation"
        )


def train(
    task: Task, modalities: Mapping[str, shared.Modality], settings: dict
) -> tuple[shared.Posteriors, dict[str, np.ndarray]]:
    """Train the authors' model; return its posterior means and its embeddings of the test cells."""
    import torch
    from cobolt.model import Cobolt

    if shared.widened(shared.INFERENCE_BATCH, modalities) != shared.INFERENCE_BATCH:
        raise BenchmarkError(
            f"the authors' cobolt embeds {shared.INFERENCE_BATCH} cells at a time and cannot embed a single one, but"
            " with these numbers of cells one would be left over; use the method cobolt_native"
        )
    random.seed(settings["seed"])
    np.random.seed(settings["seed"])
    torch.manual_seed(settings["seed"])
    model = Cobolt(
        dataset_of(modalities),
        n_latent=settings["n_latent"],
        device=settings["device"],
        lr=settings["learning_rate"],
        annealing_epochs=settings["annealing_epochs"],
        batch_size=settings["batch_size"],
        hidden_dims=settings["hidden"],
    )
    # Upstream puts its prior on a GPU if there is one, whatever `device` says.
    network = model.model
    network.device = settings["device"]
    network.mu2, network.var2 = network.mu2.to(settings["device"]), network.var2.to(settings["device"])
    try:
        model.train(settings["n_epochs"])
    except ValueError as error:
        if "DIVERGED" in str(error):
            raise shared.Diverged(f"learning rate {settings['learning_rate']}") from error
        raise
    model.calc_all_latent()
    latent = by_cell(*model.get_all_latent())
    embedded = {name: latent.loc[test.obs_names].to_numpy() for name, test in task.test.items()}
    return posteriors(model), embedded


def dataset_of(modalities: Mapping[str, shared.Modality]):
    """Return the cells in upstream's format."""
    from cobolt.utils import MultiomicDataset, SingleData

    parts = []
    for name, part in modalities.items():
        features = np.array([f"{name}:{column:08d}" for column in range(part.counts.shape[1])])
        for number, dataset in ((shared.TRAIN, "train"), (shared.TEST, name)):
            rows = np.flatnonzero(part.dataset == number)
            parts.append(SingleData(name, dataset, features, part.counts[rows], part.cells[rows].to_numpy()))
    return MultiomicDataset.from_singledata(*parts)


def posteriors(model) -> shared.Posteriors:
    """Return the posterior means of a trained `Cobolt`."""
    names = model.dataset.omic

    def given(*seen: str) -> pd.DataFrame:
        return by_cell(*model.get_latent([name in seen for name in names], return_barcode=True))

    return shared.Posteriors(given(*names), {name: given(name) for name in names})


def by_cell(latent: np.ndarray, barcodes: np.ndarray) -> pd.DataFrame:
    """Return coordinates by cell name; upstream's names are data set, tilde, cell name."""
    return pd.DataFrame(latent, index=[barcode.partition("~")[2] for barcode in barcodes])


if __name__ == "__main__":
    run_method(embed)
