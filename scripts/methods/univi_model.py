"""UniVI, by its authors' package `univi`, with the settings that its guide gives for a pair of modalities.

It is trained on paired training cells; a tenth of them decides when to stop. Test cells are not seen in training and
are encoded from one modality at a time. Paired training cells decide whether embedded cells are compared by cosine or
by Euclidean distance. Upstream cannot resume: an interrupted run starts anew.
"""

from importlib.metadata import version
from typing import Any

import anndata as ad
import numpy as np

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.validation import Cells, choose_metric, paired_cells

VALIDATION_BATCH = 1024
"""Cells per mini-batch of validation, as in upstream's tutorials."""


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train and return the posterior means of each modality."""
    from univi.evaluation import encode_adata
    from univi.utils.seed import set_seed

    set_seed(seed)
    fit_on, held_out = split(paired_cells(task.train), params["validation_share"], seed)
    prepared = {k: preprocessor(k, cells, params["preprocessing"][k], seed) for k, cells in fit_on.items()}
    inputs = [{k: prepared[k].transform(a) for k, a in part.items()} for part in (fit_on, held_out)]
    model = build(inputs[0], params)
    task.info.update(train(model, *inputs, params["training"], task.device, seed), univi=version("univi"))

    def encode(modality: str, cells: ad.AnnData) -> np.ndarray:
        given = prepared[modality].transform(cells)
        return encode_adata(model, given, modality=modality, latent="modality_mean", device=task.device)

    task.metric, task.info["metrics_compared"] = choose_metric(
        task.train, lambda modality, names: encode(modality, task.train.mod[modality][names]), seed
    )
    return {modality: encode(modality, cells) for modality, cells in task.test.items()}


def split(paired: Cells, share: float, seed: int) -> tuple[Cells, Cells]:
    """Return the cells to train on and the cells for validation, drawn at random."""
    n_cells = next(iter(paired.values())).n_obs
    n_held_out = max(1, round(share * n_cells))
    # Batch normalisation needs two cells to train on.
    if n_cells < n_held_out + 2:
        raise BenchmarkError(f"{n_cells} training cells are seen in both modalities, and UniVI needs at least 3")
    order = np.random.default_rng(seed).permutation(n_cells)
    held_out, kept = np.sort(order[:n_held_out]), np.sort(order[n_held_out:])
    return {k: a[kept].copy() for k, a in paired.items()}, {k: a[held_out].copy() for k, a in paired.items()}


def preprocessor(modality: str, cells: ad.AnnData, settings: dict[str, Any], seed: int):
    """Return upstream's preprocessor of a modality, fitted on raw counts."""
    from univi.preprocessing import ADTPreprocessor, ATACPreprocessor, RNAPreprocessor

    if modality == "atac":
        # Upstream needs fewer components than cells and peaks; peaks that no cell has are not counted.
        at_most = min(cells.n_obs, int(np.sum(cells.X.getnnz(axis=0) > 0))) - 1
        settings = {**settings, "n_components": min(settings["n_components"], at_most), "random_state": seed}
    kind = {"rna": RNAPreprocessor, "atac": ATACPreprocessor, "adt": ADTPreprocessor}[modality]
    return kind(layer=None, **settings).fit(cells)


def build(inputs: Cells, params: dict):
    """Return upstream's model; decoders mirror encoders, as its guide recommends."""
    from univi import ModalityConfig, UniVIConfig, UniVIMultiModalVAE

    modalities = [
        ModalityConfig(name, cells.n_vars, hidden, hidden[::-1], likelihood="gaussian")
        for name, cells in inputs.items()
        for hidden in [params["hidden"][name]]
    ]
    return UniVIMultiModalVAE(UniVIConfig(modalities=modalities, **params["model"]), **params["objective"])


def train(model, fit_on: Cells, held_out: Cells, settings: dict[str, Any], device: str, seed: int) -> dict[str, Any]:
    """Train in place, keep the weights with the lowest validation loss, and return what to report."""
    from univi import TrainingConfig, UniVITrainer
    from univi.workflows import make_loader

    # Upstream drops an incomplete mini-batch, which may be the only one.
    batch_size = min(settings["batch_size"], next(iter(fit_on.values())).n_obs)
    trainer = UniVITrainer(
        model,
        train_loader=make_loader(fit_on, batch_size=batch_size, shuffle=True, drop_last=True, seed=seed),
        val_loader=make_loader(held_out, batch_size=VALIDATION_BATCH),
        train_cfg=TrainingConfig(**{**settings, "batch_size": batch_size}, device=device, seed=seed),
    )
    history = trainer.fit()
    if trainer.best_epoch is None:
        raise FloatingPointError(
            f"no validation loss to choose an epoch by in {len(history['val_loss'])} epochs; lower lr, or raise"
            " n_epochs if it is below best_epoch_warmup"
        )
    return {"epochs": len(history["train_loss"]), "best_epoch": trainer.best_epoch}


if __name__ == "__main__":
    run_method(embed)
