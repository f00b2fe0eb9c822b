"""MIDAS, by its authors' package `scmidas`: a mosaic of all cells at once, with test cells as cells of one modality.

Upstream needs the cells of a batch to have the same modalities. Cells of one batch that were measured for different
modalities therefore become batches of their own. A cell is placed by its biological latent variables, given one
modality. Paired training cells decide whether embedded cells are compared by cosine or by Euclidean distance. Upstream
cannot resume: an interrupted run starts anew.
"""

from importlib.metadata import version
from tempfile import TemporaryDirectory
from typing import Any

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd

from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.lightning_trainer import trainer_arguments
from clue.benchmark.methods.validation import choose_metric

BATCH = "modalities_and_batch"
COORDINATES = r"^(.+?)[:_-]\d+[_-]\d+$"
"""Pattern of a peak's name; its group is the chromosome."""
OF_CHROMOSOMES = ("dims_before_enc_atac", "dims_after_dec_atac")
"""Upstream's settings for the layers that each chromosome has separately."""


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train on all cells and return the posterior means of the biological latent variables."""
    import lightning
    import scmidas

    lightning.seed_everything(seed, verbose=False)
    cells, chunks = mosaic(task, params["n_features"])
    scmidas.MIDAS.setup_mudata(cells, batch_key=BATCH, dims_x=chunks)
    with TemporaryDirectory() as folder:  # upstream saves its model at the end
        model = scmidas.MIDAS(
            cells,
            configs=configuration(params["model"], chunks),
            batch_size=params["training"]["batch_size"],
            save_model_path=folder,
        )
        max_epochs = params["training"]["max_epochs"]
        settings = trainer_arguments(task.device, max_epochs, ["loss/net"])
        model.train(max_epochs=max_epochs, **settings, logger=False, enable_checkpointing=False)
    latent = by_modality(model, cells)
    task.metric, task.info["metrics_compared"] = choose_metric(
        task.train, lambda modality, names: latent[modality].loc[names].to_numpy(), seed
    )
    task.info.update(
        epochs=max_epochs,
        batches=len(model.batch_names),
        chunks={name: len(sizes) for name, sizes in chunks.items()},
        n_features={name: adata.n_vars for name, adata in cells.mod.items()},
        scmidas=version("scmidas"),
    )
    return {name: latent[name].loc[test.obs_names].to_numpy() for name, test in task.test.items()}


def mosaic(task: Task, n_features: dict[str, int]) -> tuple[md.MuData, dict[str, list[int]]]:
    """Return the counts of all cells, and how many features each chunk of a modality has; chunks are chromosomes.

    At most `n_features` of a modality are kept (`selected`), since upstream holds counts as a dense table.
    """
    parts = {name: ad.concat([task.train.mod[name], test]) for name, test in task.test.items()}
    measured = pd.Series("", index=pd.Index(np.unique(np.concatenate([part.obs_names for part in parts.values()]))))
    for name, part in parts.items():
        measured[part.obs_names] += f"{name}+"
    chunks = {}
    for name, part in parts.items():
        # Upstream pairs the cells of a batch by their place in each modality.
        part = part[part.obs_names.sort_values()]
        part = part[:, selected(name, part, n_features.get(name))]
        # If names are not coordinates, there is one chunk, in the order of the file.
        chunk = (
            part.var_names.str.extract(COORDINATES, expand=False).fillna("") if name == "atac" else [""] * part.n_vars
        )
        part = part[:, np.argsort(chunk, kind="stable")]
        chunks[name] = np.unique(chunk, return_counts=True)[1].tolist()
        batch = measured[part.obs_names] + part.obs["batch"].astype(str)
        parts[name] = ad.AnnData(part.X, obs=batch.to_frame(BATCH), var=pd.DataFrame(index=name + ":" + part.var_names))
    with md.set_options(pull_on_update=False):
        return md.MuData(parts), chunks


def selected(modality: str, cells: ad.AnnData, n_features: int | None) -> np.ndarray:
    """Return the columns of at most `n_features` features, in order. Genes are chosen as in upstream's tutorial."""
    import scanpy as sc

    if n_features is None or cells.n_vars <= n_features:
        return np.arange(cells.n_vars)
    if modality == "rna":
        normalised = cells.copy()
        sc.pp.normalize_total(normalised, target_sum=1e4)
        sc.pp.log1p(normalised)
        sc.pp.highly_variable_genes(normalised, n_top_genes=n_features, flavor="seurat")
        return np.flatnonzero(normalised.var["highly_variable"])
    return np.sort(np.argsort(-cells.X.getnnz(axis=0), kind="stable")[:n_features])


def configuration(settings: dict[str, Any], chunks: dict[str, list[int]]) -> dict[str, Any]:
    """Return upstream's configuration with these settings, and without processes that load data."""
    from scmidas.config import load_config

    loading = {"num_workers": 0, "persistent_workers": False, "pin_memory": False}
    configs = {**load_config(), **settings, **loading}
    if len(chunks.get("atac", [])) == 1:  # upstream refuses layers of chromosomes if there is only one
        configs = {name: value for name, value in configs.items() if name not in OF_CHROMOSOMES}
    return configs


def by_modality(model, cells: md.MuData) -> dict[str, pd.DataFrame]:
    """Return the biological latent variables of all cells, given each modality alone, by cell name."""
    predicted = model.predict(mod_latent=True, verbose=False)
    parts = {
        name: [
            pd.DataFrame(predicted[batch]["z_c"][name], index=adata.obs_names[adata.obs[BATCH] == batch])
            for batch in adata.obs[BATCH].unique()
        ]
        for name, adata in cells.mod.items()
    }
    return {name: pd.concat(part) for name, part in parts.items()}


if __name__ == "__main__":
    run_method(embed)
