"""MatchCLOT, our implementation of the paper: latent semantic indexing and contrastive learning in large batches.

It is trained on paired training cells, each against all others of the mini-batch. Training stops where most held-out
training cells find their partner. The indexing is also fitted on the test cells, as the authors do. Their Harmony
correction is left out, and so is their matching: the benchmark already matches every embedding by optimal transport
within batches, as they do.
"""

from itertools import pairwise
from math import exp

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize
from torch import nn

from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.validation import inner_split, paired_cells
from scripts.methods.contrastive import Encoders, encode, train


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train on paired cells and encode the test cells."""
    tables = {name: features(task, name, params["n_components"].get(name), seed) for name in task.test}

    def inputs(cells: dict[str, ad.AnnData]) -> list[torch.Tensor]:
        return [torch.from_numpy(tables[k].loc[a.obs_names].to_numpy()).to(task.device) for k, a in cells.items()]

    fit_on, held_out = inner_split(paired_cells(task.train), seed, at_most=params["max_held_out"])
    torch.manual_seed(seed)
    perceptrons = [
        perceptron([tables[k].shape[1], *params["hidden"][k]], params["dropout"][k], params["n_latent"]) for k in tables
    ]
    encoders = Encoders(perceptrons, exp(-params["log_scale"])).to(task.device)
    task.info.update(train(encoders, inputs(fit_on), inputs(held_out), held_out_misses, **params["training"]))
    return dict(zip(task.test, encode(encoders, inputs(task.test)), strict=True))


def features(task: Task, modality: str, n_components: int | None, seed: int) -> pd.DataFrame:
    """Return the encoder inputs of all cells, float32, one row per cell, indexed by name.

    Values are as the competition gave them to the authors: logarithms of normalised expression, detected peaks, and
    centred log-ratios of proteins.
    """
    cells = ad.concat([task.train.mod[modality], task.test[modality]])
    if modality == "adt":
        logs = np.log1p(cells.X.toarray())
        values = logs - logs.mean(axis=1, keepdims=True)
    elif modality == "atac":
        values = lsi(cells.X.sign(), n_components, seed)
    else:
        sc.pp.normalize_total(cells)
        sc.pp.log1p(cells)
        values = lsi(cells.X, n_components, seed)
    return pd.DataFrame(values.astype(np.float32), index=cells.obs_names)


def lsi(values: sp.csr_matrix, n_components: int, seed: int) -> np.ndarray:
    """Return latent semantic indexing, standardised within each cell, without the first component, which follows depth.

    Term frequency times inverse document frequency is scaled to a sum of 10⁴ in each cell. Then log(1 + x) is projected
    on its leading singular vectors.
    """
    total = np.asarray(values.sum(axis=0)).ravel()
    seen = np.flatnonzero(total)
    weights = normalize(values[:, seen] @ sp.diags(values.shape[0] / total[seen]), norm="l1").tocsr()
    weights.data = np.log1p(1e4 * weights.data)
    axes = TruncatedSVD(min(n_components + 1, min(weights.shape) - 1), random_state=seed)
    scores = axes.fit_transform(weights)
    scores -= scores.mean(axis=1, keepdims=True)
    spread = scores.std(axis=1, ddof=1, keepdims=True)
    return (scores / np.where(spread > 0, spread, 1))[:, 1:]


def perceptron(widths: list[int], dropout: list[float], n_latent: int) -> nn.Sequential:
    """Return hidden layers, each with its own dropout, followed by a linear layer."""
    layers = []
    for (n, width), rate in zip(pairwise(widths), dropout, strict=True):
        layers += [nn.Linear(n, width), nn.ELU(), nn.Dropout(rate)]
    return nn.Sequential(*layers, nn.Linear(widths[-1], n_latent))


def held_out_misses(x: np.ndarray, y: np.ndarray) -> float:
    """Return the share of held-out cells whose nearest neighbour is not their partner, mean of both directions."""
    similarity, cells = x @ y.T, np.arange(len(x))
    return float(np.mean([similarity.argmax(axis=axis) != cells for axis in (0, 1)]))


if __name__ == "__main__":
    run_method(embed)
