"""MultiVI, `scvi.model.MULTIVI`, trained as its tutorial recommends: on all cells at once, with unpaired test cells.

Modalities that were not measured in a cell are filled with zeros, which upstream masks. The set of measured
modalities is the cell's batch; its sample is a covariate. Paired training cells decide whether embedded cells are
compared by cosine or by Euclidean distance. Upstream cannot resume: an interrupted run starts anew.
"""

from math import ceil

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.lightning_trainer import trainer_arguments
from clue.benchmark.methods.prediction import fit_scale, training_mean
from clue.benchmark.methods.validation import choose_metric

ROLES = {"rna": "rna_layer", "atac": "atac_layer", "adt": "protein_layer"}
"""Arguments of upstream's `setup_mudata` that name the modalities."""
ALONE = {"rna": "expression", "atac": "accessibility", "adt": "protein"}
"""Upstream's names for the embedding from one modality."""
LOSSES = ("train_loss", "reconstruction_loss_validation")


def embed(task: Task, params: dict, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train; return posterior means and predictions."""
    import scvi

    scvi.settings.seed = seed
    scvi.settings.logging_dir = str(task.checkpoints)
    cells = all_cells(task, params["min_cell_fraction"])
    roles = {ROLES[name]: name for name in cells.mod}
    scvi.model.MULTIVI.setup_mudata(
        cells, batch_key="modality", categorical_covariate_keys=["sample"], modalities=roles
    )
    model = scvi.model.MULTIVI(cells, **params["model"])
    training = long_enough(params["training"], cells.n_obs, params["min_steps"])
    model.train(**training, **trainer_arguments(task.device, training["max_epochs"], LOSSES))
    task.info.update(
        epochs=int(model.trainer.current_epoch),
        max_epochs=training["max_epochs"],
        n_latent=int(model.module.n_latent),
        n_hidden=int(model.module.n_hidden),
        n_features={name: adata.n_vars for name, adata in cells.mod.items()},
    )

    def place(modality: str, names: pd.Index) -> np.ndarray:
        rows = cells.obs_names.get_indexer(names)
        return model.get_latent_representation(indices=rows, modality=ALONE[modality])

    task.metric, task.info["metrics_compared"] = choose_metric(task.train, place, seed)
    latent = pd.DataFrame(model.get_latent_representation(), index=cells.obs_names)
    placed = {name: latent.loc[test.obs_names].to_numpy() for name, test in task.test.items()}
    return placed, {f"{a}2{b}": predict(model, cells, task, a, b, seed) for a, b in task.directions}


def predict(model, cells: md.MuData, task: Task, source: str, target: str, seed: int) -> np.ndarray:
    """Return the predicted targets of the test cells of `source`; targets that the filter left out get their mean.

    Upstream decodes shares of expression, probabilities of accessibility and of a protein's foreground. These are
    brought to scale on training cells whose other modalities are hidden, as for test cells.
    """
    targets = task.targets[target]
    kept = (target + ":" + targets.names).isin(cells.mod[target].var_names)
    predictions = np.tile(training_mean(task, target), (task.test[source].n_obs, 1))

    def decoded(names: pd.Index) -> np.ndarray:
        values = decode(model, seen_in(source, cells, names), target, target + ":" + targets.names[kept])
        return targets.of_expected(values, 1.0) if target == "rna" else values

    scale = fit_scale(task, source, target, kept, decoded, seed)
    predictions[:, kept] = scale(decoded(task.test[source].obs_names))
    return predictions


def decode(model, cells: md.MuData, modality: str, features: pd.Index) -> np.ndarray:
    """Return upstream's decoded values of some features, in the model's order."""
    chosen = set(features)  # a set, since upstream looks up each feature of the model in it
    if modality == "rna":
        return model.get_normalized_expression(cells, gene_list=chosen, return_numpy=True)
    if modality == "atac":
        return model.get_normalized_accessibility(cells, region_list=chosen, return_numpy=True)
    foreground = model.get_protein_foreground_probability(cells, return_numpy=True)
    return foreground[:, cells.mod[modality].var_names.isin(chosen)]


def seen_in(modality: str, cells: md.MuData, names: pd.Index) -> md.MuData:
    """Return some cells as if one modality alone had been measured in them."""
    hidden = {}
    for name, adata in cells.mod.items():
        hidden[name] = adata[names].copy()
        if name != modality:
            hidden[name].X = sp.csr_matrix(hidden[name].shape, dtype=adata.X.dtype)
    with md.set_options(pull_on_update=False):
        alone = md.MuData(hidden)
    alone.obs = cells.obs.loc[names].assign(modality=f"+{modality}")
    return alone


def all_cells(task: Task, min_cell_fraction: float) -> md.MuData:
    """Return training and test cells, each with all modalities. Those that were not measured are zeros.

    Features detected in at least `min_cell_fraction` of all cells are kept. ``obs`` says which modalities were measured
    in a cell (``modality``) and where it is from (``sample``).
    """
    parts = {name: ad.concat([task.train.mod[name], test]) for name, test in task.test.items()}
    names = pd.Index(np.unique(np.concatenate([part.obs_names for part in parts.values()])))
    obs = pd.DataFrame("", index=names, columns=["modality", "sample"])
    for name, part in parts.items():
        obs.loc[part.obs_names, "modality"] += f"+{name}"
        obs.loc[part.obs_names, "sample"] = part.obs["batch"].astype(str)
    padded = {}
    for name, part in parts.items():
        counts = spread(part.X, names.get_indexer(part.obs_names), len(names))
        kept = counts.getnnz(axis=0) >= int(min_cell_fraction * len(names))
        if not kept.any():
            raise BenchmarkError(f"{name}: no feature is detected in {min_cell_fraction:.0%} of {len(names)} cells")
        var = pd.DataFrame(index=name + ":" + part.var_names[kept])
        padded[name] = ad.AnnData(counts[:, kept], obs=obs.copy(), var=var)
    with md.set_options(pull_on_update=False):
        cells = md.MuData(padded)
    cells.obs = obs
    return cells


def spread(counts: sp.csr_matrix, rows: np.ndarray, n_rows: int) -> sp.csr_matrix:
    """Return a matrix of `n_rows` rows with `counts` at `rows` and zeros elsewhere."""
    place = sp.csr_matrix((np.ones(len(rows), counts.dtype), (rows, np.arange(len(rows)))), (n_rows, len(rows)))
    return (place @ counts).tocsr()


def long_enough(training: dict, n_cells: int, min_steps: int) -> dict:
    """Return the training settings, with as many epochs as `min_steps` steps need if that is more."""
    steps = ceil(n_cells * training["train_size"] / training["batch_size"])
    return {**training, "max_epochs": max(training["max_epochs"], ceil(min_steps / steps))}


if __name__ == "__main__":
    run_method(embed)
