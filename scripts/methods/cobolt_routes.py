"""Cobolt by one of two routes: the authors' code where it is installed, else our own implementation of their model.

The training cells are one data set, the test cells of each modality another: cells of one name in one data set would
be one cell. Neither route resumes: a run that was cut short starts anew.
"""

import importlib.util
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark import cobolt as native
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task, run_method

TEST, TRAIN = 0, 1
"""Numbers of the data sets that a modality has."""


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train and return posterior means, mapped to what they are for paired cells."""
    route = chosen_route(params["route"])
    modalities = {name: both_sets(name, task, **params["filter"][name]) for name in task.test}
    training = {**params["training"], "batch_size": native.widened(params["training"]["batch_size"], modalities)}
    rates = training.pop("learning_rates")
    task.info.update(route=route, n_features={name: part.counts.shape[1] for name, part in modalities.items()})
    task.info.update(batch_size=training["batch_size"], epochs=training["n_epochs"], diverged_at=[])
    for rate in rates:
        try:
            settings = {**params["model"], **training, "learning_rate": rate, "seed": seed, "device": task.device}
            embedded = ROUTES[route](modalities, task, settings)
        except native.Diverged as error:
            print(f"diverged: {error}", flush=True)
            task.info["diverged_at"].append(rate)
        else:
            task.info["learning_rate"] = rate
            return {name: embedded[name].loc[test.obs_names].to_numpy() for name, test in task.test.items()}
    raise BenchmarkError(
        f"Cobolt diverged at every learning rate of {rates}; add a smaller one to training.learning_rates"
    )


def chosen_route(route: str) -> str:
    """Return ``upstream`` or ``native``."""
    if route not in ("auto", *ROUTES):
        raise BenchmarkError(f"params.route: {route!r}; known: auto, {', '.join(ROUTES)}")
    if route == "upstream" and not is_upstream_installed():
        raise BenchmarkError(
            "params.route: upstream, but the authors' cobolt is not installed (the package index's is another);"
            " use envs/cobolt.yaml, or set route: native"
        )
    if route == "auto":
        return "upstream" if is_upstream_installed() else "native"
    return route


def is_upstream_installed() -> bool:
    """Tell whether `cobolt` is the authors' package: the package index has another one of that name."""
    spec = importlib.util.find_spec("cobolt")
    folders = spec.submodule_search_locations if spec else None
    return any(Path(folder, "model", "coboltmodel.py").exists() for folder in folders or [])


# ---- cells and features --------------------------------------------------------------------------


def both_sets(name: str, task: Task, **limits) -> native.Modality:
    """Return training and test cells of a modality, with the features that pass the filter in both."""
    sets = [task.test[name], task.train.mod[name]]
    kept = np.logical_and.reduce([passes(cells.X, **limits) for cells in sets])
    if not kept.any():
        raise BenchmarkError(f"{name}: no feature passes params.filter.{name} in training and in test cells")
    return native.Modality(
        cells=pd.Index(np.concatenate([cells.obs_names for cells in sets])),
        counts=sp.vstack([cells.X[:, kept] for cells in sets], format="csr"),
        dataset=np.repeat([TEST, TRAIN], [cells.n_obs for cells in sets]),
    )


def passes(
    counts: sp.csr_matrix, min_count: int, min_cells: int, lower_quantile: float, upper_quantile: float
) -> np.ndarray:
    """Tell which features are detected often enough, and neither too rare nor too common among the others."""
    total = np.asarray(counts.sum(axis=0)).ravel()
    low, high = np.quantile(total, [lower_quantile, upper_quantile])
    return (counts.getnnz(axis=0) > min_cells) & (total > min_count) & (low <= total) & (total <= high)


# ---- routes --------------------------------------------------------------------------------------


def run_native(modalities: Mapping[str, native.Modality], task: Task, settings: dict) -> dict[str, pd.DataFrame]:
    """Train our own implementation."""
    return native.embed(native.fit(modalities, **settings), modalities, task.threads)


def run_upstream(modalities: Mapping[str, native.Modality], task: Task, settings: dict) -> dict[str, pd.DataFrame]:
    """Train the authors' code."""
    import torch
    from cobolt.model import Cobolt

    if native.widened(native.INFERENCE_BATCH, modalities) != native.INFERENCE_BATCH:
        raise BenchmarkError(
            f"the authors' cobolt embeds {native.INFERENCE_BATCH} cells at a time and cannot embed one alone, which is"
            " what these numbers of cells leave; set params.route: native"
        )
    random.seed(settings["seed"])
    np.random.seed(settings["seed"])
    torch.manual_seed(settings["seed"])
    model = Cobolt(
        upstream_dataset(modalities),
        n_latent=settings["n_latent"],
        device=settings["device"],
        lr=settings["learning_rate"],
        annealing_epochs=settings["annealing_epochs"],
        batch_size=settings["batch_size"],
        hidden_dims=settings["hidden"],
    )
    # Upstream puts its prior on a GPU wherever there is one, whatever `device` says.
    network = model.model
    network.device = settings["device"]
    network.mu2, network.var2 = network.mu2.to(settings["device"]), network.var2.to(settings["device"])
    try:
        model.train(settings["n_epochs"])
    except ValueError as error:
        if "DIVERGED" in str(error):
            raise native.Diverged(f"learning rate {settings['learning_rate']}") from error
        raise
    model.calc_all_latent()
    latent, barcodes = model.get_all_latent()
    latent = pd.DataFrame(latent, index=barcodes)
    return {
        name: latent.loc[[f"{name}~{cell}" for cell in test.obs_names]].set_axis(test.obs_names)
        for name, test in task.test.items()
    }


def upstream_dataset(modalities: Mapping[str, native.Modality]):
    """Return the cells as upstream wants them; its names of cells are data set, tilde, name."""
    from cobolt.utils import MultiomicDataset, SingleData

    parts = []
    for name, part in modalities.items():
        features = np.array([f"{name}:{column:08d}" for column in range(part.counts.shape[1])])
        for number, dataset in ((TRAIN, "train"), (TEST, name)):
            rows = np.flatnonzero(part.dataset == number)
            parts.append(SingleData(name, dataset, features, part.counts[rows], part.cells[rows].to_numpy()))
    return MultiomicDataset.from_singledata(*parts)


ROUTES = {"native": run_native, "upstream": run_upstream}


if __name__ == "__main__":
    run_method(embed)
