"""Cobolt, our own implementation: a topic model of cells seen in any subset of several modalities, as a VAE.

Gong, Zhou and Purdom, *Genome Biology* 22, 351 (2021). The method ``cobolt`` (``cobolt_authors.py``) uses the authors'
package, which is only a Git repository; it shares `run` with ours. Details that the paper leaves open follow the
authors' code. `tests/unit/test_cobolt.py` compares both if that code is installed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.validation import choose_metric

PRIOR_MASS = 50.0
"""Sum of the parameters of the symmetric Dirichlet prior over topics."""
INFERENCE_BATCH = 128
Batch = tuple[dict[str, Tensor], dict[str, Tensor]]
TEST, TRAIN = 0, 1
"""Numbers of the data sets in each modality."""


class Diverged(ArithmeticError):
    """The loss is no longer finite."""


@dataclass(frozen=True)
class Modality:
    """The cells of one modality.

    Parameters
    ----------
    cells
        Their names; the same name in two modalities is the same cell.
    counts
        Raw counts, shape (cells, features).
    dataset
        Number of the data set that each cell is from, shape (cells,); data sets differ in technical effects.
    """

    cells: pd.Index
    counts: sp.csr_matrix
    dataset: np.ndarray


# ---- the model -----------------------------------------------------------------------------------


class CoboltModel(nn.Module):
    """Topic proportions softmax(z) of a cell, whose counts are multinomial in each modality.

    The prior of z is the Laplace approximation of a symmetric Dirichlet in softmax coordinates (Srivastava and Sutton
    2017). The posterior is a product of Gaussian experts: the prior, and one per modality seen.

    Parameters
    ----------
    n_features, n_datasets
        Numbers of features and of data sets of each modality.
    n_latent
        Number of topics.
    hidden
        Widths of the encoders' hidden layers.
    """

    def __init__(self, n_features: Mapping[str, int], n_datasets: Mapping[str, int], n_latent: int, hidden: list[int]):
        super().__init__()
        self.register_buffer("prior_variance", torch.full((n_latent,), prior_variance(n_latent)))
        self.encoders = nn.ModuleDict({name: encoder(n, n_latent, hidden) for name, n in n_features.items()})
        self.topics = nn.ParameterDict({name: uniform(n_latent, n) for name, n in n_features.items()})
        self.intercepts = nn.ParameterDict({name: uniform(n_datasets[name], n) for name, n in n_features.items()})
        self.slopes = nn.ParameterDict(
            {name: nn.Parameter(torch.rand(n_datasets[name], n)) for name, n in n_features.items()}
        )

    def posterior(self, counts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return mean and variance of z given the counts of some modalities, each of shape (cells, n_latent)."""
        precision, weighted = 1 / self.prior_variance, 0.0
        for name, x in counts.items():
            mean, log_variance = self.encoders[name](torch.log1p(x)).chunk(2, dim=1)
            precision = precision + torch.exp(-log_variance)
            weighted = weighted + mean * torch.exp(-log_variance)
        return weighted / precision, 1 / precision

    def log_likelihood(self, name: str, z: Tensor, counts: Tensor, dataset: Tensor) -> Tensor:
        """Return the multinomial log-likelihood of each cell, without the term that is constant in the parameters."""
        scores = torch.softmax(z, dim=1) @ self.topics[name]
        scores = scores * (1 + self.slopes[name][dataset]) + self.intercepts[name][dataset]
        return (counts * F.log_softmax(scores, dim=1)).sum(dim=1)

    def losses(self, counts: Mapping[str, Tensor], dataset: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the two terms of the negative ELBO, summed over cells: KL divergence and reconstruction."""
        mean, variance = self.posterior(counts)
        z = mean + variance.sqrt() * torch.randn_like(mean)
        ratio = variance / self.prior_variance
        divergence = 0.5 * (ratio + mean**2 / self.prior_variance - 1 - torch.log(ratio)).sum()
        likelihood = sum(self.log_likelihood(name, z, x, dataset[name]).sum() for name, x in counts.items())
        return divergence, -likelihood


def prior_variance(n_latent: int) -> float:
    """Return the variance of each coordinate of a symmetric Dirichlet's Laplace approximation; its mean is 0."""
    return (1 - 1 / n_latent) / (PRIOR_MASS / n_latent)


def encoder(n_features: int, n_latent: int, hidden: list[int]) -> nn.Sequential:
    """Return a perceptron whose output is the mean and the log-variance of the expert."""
    layers: list[nn.Module] = []
    # The authors' code never leaves training mode. So embedding also uses the statistics of the mini-batch, which
    # removes the level of each data set. Without running statistics this is so in any mode.
    for n_input, n_output in zip([n_features, *hidden], hidden, strict=False):
        layers += [nn.Linear(n_input, n_output), nn.BatchNorm1d(n_output, track_running_stats=False), nn.LeakyReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], 2 * n_latent))


def uniform(n_rows: int, n_columns: int) -> nn.Parameter:
    """Return a parameter with the initial distribution of Glorot and Bengio (2010)."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_rows, n_columns)))


# ---- training ------------------------------------------------------------------------------------


class View:
    """The cells seen in all of some modalities, including cells that are also seen in others."""

    def __init__(self, modalities: Mapping[str, Modality], names: tuple[str, ...]):
        self.modalities = {name: modalities[name] for name in names}
        first, *_ = seen = [modality.cells for modality in self.modalities.values()]
        self.cells = first[np.logical_and.reduce([first.isin(cells) for cells in seen])]
        self.rows = {name: modality.cells.get_indexer(self.cells) for name, modality in self.modalities.items()}

    def __len__(self) -> int:
        return len(self.cells)

    def batch(self, cells: np.ndarray, device: str) -> Batch:
        """Return dense counts and data sets of some of the cells, by modality."""
        counts, dataset = {}, {}
        for name, modality in self.modalities.items():
            rows = self.rows[name][cells]
            counts[name] = torch.from_numpy(modality.counts[rows].toarray().astype(np.float32)).to(device)
            dataset[name] = torch.from_numpy(modality.dataset[rows].astype(np.int64)).to(device)
        return counts, dataset

    def batches(self, order: np.ndarray, size: int, device: str) -> Iterator[Batch]:
        """Yield batches of cells in this order."""
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size], device)


def fit(
    modalities: Mapping[str, Modality],
    *,
    n_latent: int,
    hidden: list[int],
    learning_rate: float,
    n_epochs: int,
    annealing_epochs: int,
    batch_size: int,
    seed: int,
    device: str,
) -> CoboltModel:
    """Train a model. Every epoch visits the cells of one subset of modalities after another.

    Parameters
    ----------
    modalities
        All cells, including test cells.
    n_latent, hidden
        As in `CoboltModel`.
    learning_rate
        Learning rate of Adam.
    n_epochs
        Number of epochs.
    annealing_epochs
        Number of epochs in which the weight of the KL divergence grows from 0 to 1.
    batch_size
        Cells per step; no last batch may have only one cell, see `widened`.
    seed, device
        Seed of everything that is random; ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    Diverged
        If the loss is not finite.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    n_features = {name: modality.counts.shape[1] for name, modality in modalities.items()}
    n_datasets = {name: int(modality.dataset.max()) + 1 for name, modality in modalities.items()}
    model = CoboltModel(n_features, n_datasets, n_latent, hidden).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    views = [view for view in all_views(modalities) if len(view)]
    with tqdm(range(n_epochs), unit="epoch", mininterval=5) as epochs:
        for epoch in epochs:
            weight = 1.0 if epoch >= annealing_epochs else epoch / annealing_epochs
            loss = 0.0
            for view in views:
                for counts, dataset in view.batches(rng.permutation(len(view)), batch_size, device):
                    divergence, reconstruction = model.losses(counts, dataset)
                    optimizer.zero_grad(set_to_none=True)
                    (weight * divergence + reconstruction).backward()
                    optimizer.step()
                    loss += (divergence + reconstruction).item() / len(view)
            if not np.isfinite(loss):
                raise Diverged(f"loss {loss} in epoch {epoch + 1} at learning rate {learning_rate}")
            epochs.set_postfix(loss=f"{loss:.1f}", refresh=False)
    return model


def all_views(modalities: Mapping[str, Modality]) -> list[View]:
    """Return the views of all subsets of modalities, from one to all."""
    sizes = range(1, len(modalities) + 1)
    return [View(modalities, names) for size in sizes for names in combinations(modalities, size)]


def widened(batch_size: int, modalities: Mapping[str, Modality]) -> int:
    """Return the next batch size that leaves no batch of one cell, since batch normalisation needs two."""
    sizes = [len(view) for view in all_views(modalities)]
    while any(size % batch_size == 1 for size in sizes):
        batch_size += 1
    return batch_size


# ---- embedding -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posteriors:
    """Posterior means of z, one row per cell, indexed by name."""

    joint: pd.DataFrame
    """Given all modalities, for the cells seen in all of them."""
    single: dict[str, pd.DataFrame]
    """Given one modality alone, for all cells seen in it, including those seen in others."""


def posteriors(model: CoboltModel, modalities: Mapping[str, Modality]) -> Posteriors:
    """Return the posterior means of the cells that a model was trained on."""
    single = {name: posterior_means(model, View(modalities, (name,))) for name in modalities}
    return Posteriors(posterior_means(model, View(modalities, tuple(modalities))), single)


def place(found: Posteriors, modality: str, cells: pd.Index, n_threads: int) -> np.ndarray:
    """Return the coordinates of cells from one modality alone, shape (cells, n_latent).

    The posterior given one modality is not comparable with the posterior given another. Therefore gradient-boosted
    trees learn, on the cells seen in all, to predict the joint posterior mean from the single one, each dimension on
    its own. Since z matters only up to a constant (softmax), each row is centred.

    Parameters
    ----------
    found
        The posterior means.
    modality
        The modality to use.
    cells
        Names of cells; the trees do not learn from these.
    n_threads
        Number of threads for the trees.
    """
    joint, single = found.joint, found.single[modality]
    joint = joint[~joint.index.isin(cells)]
    predicted = regress(single.loc[joint.index].to_numpy(), joint.to_numpy(), single.loc[cells].to_numpy(), n_threads)
    return predicted - predicted.mean(axis=1, keepdims=True)


@torch.no_grad()
def posterior_means(model: CoboltModel, view: View) -> pd.DataFrame:
    """Return the posterior mean of each cell of a view."""
    device = str(model.prior_variance.device)
    batches = view.batches(np.arange(len(view)), widened(INFERENCE_BATCH, view.modalities), device)
    means = [model.posterior(counts)[0].cpu().numpy() for counts, _ in batches]
    return pd.DataFrame(np.concatenate(means), index=view.cells)


def regress(x: np.ndarray, y: np.ndarray, new: np.ndarray, n_threads: int) -> np.ndarray:
    """Predict each column of `y` from `x` by gradient-boosted trees with XGBoost's default settings."""
    from xgboost import XGBRegressor  # a baseline's dependency, not the library's

    trees = [XGBRegressor(n_jobs=n_threads).fit(x, column) for column in y.T]
    return np.stack([tree.predict(new) for tree in trees], axis=1)


# ---- the method, by our code or the authors' -----------------------------------------------------

Train = Callable[[Task, Mapping[str, Modality], dict[str, Any]], tuple[Posteriors, dict[str, np.ndarray]]]
"""Trains on the cells with the arguments of `fit`; returns posterior means and the embeddings of the test cells."""


def run(train: Train, task: Task, params: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Train at the first learning rate that does not diverge, choose the metric, and return the embeddings.

    The training cells are one data set and the test cells of each modality another, because cells with the same name in
    one data set would be the same cell. An interrupted run starts anew.

    Parameters
    ----------
    train
        Our code or the authors'.
    task, params, seed
        As a method receives them.

    Raises
    ------
    BenchmarkError
        If no training cell is seen in all modalities, no feature passes the filter, or training diverges at every
        learning rate.
    """
    modalities = {name: both_sets(name, task, **params["filter"][name]) for name in task.test}
    if not len(View(modalities, tuple(modalities))):
        raise BenchmarkError(
            f"no training cell is seen in all of {', '.join(modalities)}, and Cobolt learns from such cells where one"
            " modality alone places a cell; use a split that leaves some"
        )
    training = {**params["training"], "batch_size": widened(params["training"]["batch_size"], modalities)}
    rates = training.pop("learning_rates")
    task.info.update(n_features={name: part.counts.shape[1] for name, part in modalities.items()})
    task.info.update(batch_size=training["batch_size"], epochs=training["n_epochs"])
    settings = {**params["model"], **training, "seed": seed, "device": task.device}
    task.info["diverged_at"] = []
    for rate in rates:
        try:
            found, embedded = train(task, modalities, {**settings, "learning_rate": rate})
            task.info["learning_rate"] = rate
            break
        except Diverged as error:
            print(f"diverged: {error}", flush=True)
            task.info["diverged_at"].append(rate)
    else:
        raise BenchmarkError(
            f"Cobolt diverged at every learning rate of {rates}; add a smaller one to training.learning_rates"
        )

    def alone(modality: str, cells: pd.Index) -> np.ndarray:
        return place(found, modality, cells, task.threads)

    task.metric, task.info["metrics_compared"] = choose_metric(task.train, alone, seed)
    return embedded


def both_sets(name: str, task: Task, **limits) -> Modality:
    """Return training and test cells of a modality, with the features that pass the filter in both."""
    sets = [task.test[name], task.train.mod[name]]
    kept = np.logical_and.reduce([passes(cells.X, **limits) for cells in sets])
    if not kept.any():
        raise BenchmarkError(f"{name}: no feature passes params.filter.{name} in training and in test cells")
    return Modality(
        cells=pd.Index(np.concatenate([cells.obs_names for cells in sets])),
        counts=sp.vstack([cells.X[:, kept] for cells in sets], format="csr"),
        dataset=np.repeat([TEST, TRAIN], [cells.n_obs for cells in sets]),
    )


def passes(
    counts: sp.csr_matrix, min_count: int, min_cells: int, lower_quantile: float, upper_quantile: float
) -> np.ndarray:
    """Return which features are detected often enough, and are neither too rare nor too common among the others."""
    total = np.asarray(counts.sum(axis=0)).ravel()
    low, high = np.quantile(total, [lower_quantile, upper_quantile])
    return (counts.getnnz(axis=0) > min_cells) & (total > min_count) & (low <= total) & (total <= high)


# ---- our code ------------------------------------------------------------------------------------


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train our model and return posterior means, mapped to the joint means of paired cells."""
    return run(train, task, params, seed)


def train(task: Task, modalities: Mapping[str, Modality], settings: dict) -> tuple[Posteriors, dict[str, np.ndarray]]:
    """Train our model; return posterior means and the embeddings of the test cells."""
    found = posteriors(fit(modalities, **settings), modalities)
    return found, {name: place(found, name, cells.obs_names, task.threads) for name, cells in task.test.items()}


if __name__ == "__main__":
    run_method(embed)
