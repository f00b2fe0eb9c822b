"""Contrastive learning (CLIP): one encoder per modality, trained so that a cell's two embeddings find each other.

It is trained on paired training cells, against the other cells of the mini-batch. Training stops where held-out
training donors (or cells) are matched best.
"""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from clue.benchmark.methods import Task, run_method
from clue.benchmark.methods.validation import inner_split, paired_cells
from clue.metrics import foscttm


class Encoders(nn.Module):
    """An encoder per modality, and the temperature that both share."""

    def __init__(self, encoders: list[nn.Module], temperature: float):
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.log_scale = nn.Parameter(-torch.log(torch.tensor(float(temperature))))

    def forward(self, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return embeddings of unit length, each of shape (cells, n_latent)."""
        return [F.normalize(encoder(x), dim=1) for encoder, x in zip(self.encoders, inputs, strict=True)]

    def loss(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Return symmetric InfoNCE: find the cell in the mini-batch, from either modality."""
        u, v = self(inputs)
        # Bounded as in CLIP: a sharper softmax makes training unstable.
        logits = self.log_scale.exp().clamp(max=100) * u @ v.T
        cells = torch.arange(len(u), device=u.device)
        return (F.cross_entropy(logits, cells) + F.cross_entropy(logits.T, cells)) / 2


def perceptron(n_input: int, n_latent: int, depth: int, width: int, dropout: float) -> nn.Sequential:
    """Return hidden layers with dropout, followed by a linear layer."""
    layers = []
    for n in [n_input, *[width] * (depth - 1)]:
        layers += [nn.Linear(n, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, n_latent))


def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]:
    """Train on paired cells and encode the test cells."""
    fit_on, held_out = inner_split(paired_cells(task.train), seed, at_most=params["max_held_out"])
    prepared = task.fitted(f"fold-{seed}", params)

    def inputs(cells):
        return [torch.from_numpy(prepared[k].transform(a)).to(task.device) for k, a in cells.items()]

    torch.manual_seed(seed)
    perceptrons = [perceptron(p.width, **params["model"]) for p in prepared.values()]
    encoders = Encoders(perceptrons, params["temperature"]).to(task.device)
    task.info.update(train(encoders, inputs(fit_on), inputs(held_out), held_out_foscttm, **params["training"]))
    return dict(zip(task.test, encode(encoders, inputs(task.test)), strict=True))


def held_out_foscttm(x: np.ndarray, y: np.ndarray) -> float:
    """Return the FOSCTTM of held-out cells, averaged over both directions."""
    return float(np.mean(foscttm(x, y)))


def train(
    encoders: Encoders,
    inputs: list[torch.Tensor],
    held_out: list[torch.Tensor],
    error: Callable[[np.ndarray, np.ndarray], float],
    *,
    max_steps: int,
    check_steps: int,
    patience_steps: int,
    batch_size: int,
    optimizer: str,
    learning_rate: float,
    weight_decay: float,
) -> dict[str, float]:
    """Train in place, keep the weights that match held-out cells best, and return what to report.

    Held-out cells are matched every `check_steps` steps. Training ends after `patience_steps` steps without a smaller
    `error` of their embeddings, or after `max_steps`. `optimizer` is one of `torch.optim`.
    """
    stepper = getattr(torch.optim, optimizer)(encoders.parameters(), lr=learning_rate, weight_decay=weight_decay)
    n_cells = len(inputs[0])
    batch_size = min(batch_size, n_cells)
    measure = error.__name__
    best = {measure: float("inf"), "best_step": 0}
    weights, order, step = None, torch.empty(0, dtype=torch.long), 0
    while step < max_steps and step - best["best_step"] < patience_steps:
        encoders.train()
        for _ in range(min(check_steps, max_steps - step)):
            if len(order) < batch_size:
                order = torch.randperm(n_cells)
            rows, order = order[:batch_size].to(inputs[0].device), order[batch_size:]
            stepper.zero_grad(set_to_none=True)
            encoders.loss([x[rows] for x in inputs]).backward()
            stepper.step()
            step += 1
        score = error(*encode(encoders, held_out))
        if score < best[measure]:
            best = {measure: score, "best_step": step}
            weights = copy.deepcopy(encoders.state_dict())
        print(f"step {step}: {measure} {score:.4f}", flush=True)
    if weights is None:
        raise FloatingPointError(f"training diverged within {step} steps; lower the learning rate")
    encoders.load_state_dict(weights)
    return {**best, "steps": step, "epochs": round(step * batch_size / n_cells, 1)}


@torch.no_grad()
def encode(encoders: Encoders, inputs: list[torch.Tensor]) -> list[np.ndarray]:
    """Return the embeddings of each modality's cells."""
    encoders.eval()
    return [embedding.cpu().numpy() for embedding in encoders(inputs)]


if __name__ == "__main__":
    run_method(embed)
