"""The min-max loop: discriminator against encoders and decoders, with early stopping and resume.

One step encodes a mini-batch once. The discriminator learns from the detached embeddings; then
encoders and decoders learn from all losses and against the updated discriminator. (The authors'
code encodes twice; the second encoding differs only by its dropout mask.)

Under `torchrun`, once `torch.distributed` is initialised, each process takes its share of every mini-batch and
gradients are averaged. Batch normalisation normalises each share by itself; running means and variances are averaged
before validation. Every process holds all cells.

Validation takes place after whole passes over the cells and at the end. SIGTERM is handled, and checkpoints are
written, after any step.
"""

import hashlib
import json
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import cos, pi
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from clue.batches import Cells, Draw, Sampler
from clue.checks import as_python_numbers, check_kinds
from clue.graphs import Graphs
from clue.processes import Processes
from clue.saved import load, save_atomically

logger = logging.getLogger(__name__)

_FORMAT = 7
"""Version of checkpoints. It changes if earlier ones must not be loaded, because their content or the computation of a
step has changed."""

_LEAST_VALIDATIONS = 8
"""Early stopping waits for this many validations in a row without improvement: one or two may be worse by chance.

It is the authors' shortest patience, which they use for fine-tuning, so it does not alter any of their settings.
"""

_SAVE, _STOP = 1, 2
"""What a process may ask of all processes after a step: to write a checkpoint, or to write one and stop."""


@dataclass(frozen=True)
class Training:
    """Settings of training.

    Warm-up, patience and reduction have a length in steps and one in passes over the cells. The longer one counts, as
    in the authors' `scglue`. So they are long enough for 300 cells, where a pass takes two steps, and for 60,000, where
    it takes hundreds. `in_steps` computes the result. The defaults in passes are the authors'.

    Attributes
    ----------
    max_steps, max_passes
        Most steps and passes. Training ends when it reaches the first of the two limits, at exactly that step, even
        within a pass. If `max_passes` is 0, only `max_steps` limits it.
    batch_size
        Cells in a mini-batch.
    learning_rate, optimizer, weight_decay
        ``rmsprop`` (the authors' choice) or ``adam``, for both sides of the game.
    schedule
        ``plateau``: divide the learning rate by 10 when validation stalls (the authors' choice);
        ``cosine``: lower it along a half cosine, to 0 at the last step.
    validation
        Fraction of the cells held out for early stopping.
    check_steps
        Fewest steps between validations, which take place only after whole passes over the cells, and at the end.
    warmup_steps, warmup_passes
        Length over which noise on the discriminator's input is annealed to 0; early stopping and
        learning-rate reduction begin after it. It is cut to half of the training if it would be longer.
    kl_warmup_steps
        Steps over which the KL weight grows from 0 to its value.
    patience_steps, patience_passes
        Stop after this length without a better validation loss, but never before 8 validations in a row without one.
    reduce_steps, reduce_passes
        Divide the learning rate by 10 after this length without a better validation loss (``plateau``).
    monitor
        The quantity that early stopping watches on the held-out cells: ``loss``, the objective (the authors'
        choice), or ``foscttm``, the fraction of cells closer than the true match.
    checkpoint_seconds
        Write a checkpoint at most this often.
    compile
        Backend of `torch.compile`, for instance ``inductor``, for the layers of encoders, decoders and
        discriminator; empty for none. The first steps compile, which takes minutes. Results are the same up to
        rounding.
    """

    max_steps: int = 10_000
    max_passes: int = 0
    batch_size: int = 128
    learning_rate: float = 2e-3
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    weight_decay: float = 0.0
    schedule: Literal["plateau", "cosine"] = "plateau"
    validation: float = 0.1
    check_steps: int = 50
    warmup_steps: int = 1_000
    warmup_passes: int = 12
    kl_warmup_steps: int = 0
    patience_steps: int = 2_000
    patience_passes: int = 9
    reduce_steps: int = 750
    reduce_passes: int = 3
    monitor: Literal["loss", "foscttm"] = "loss"
    checkpoint_seconds: float = 30.0
    compile: str = ""

    def __post_init__(self):
        check_kinds(Training, vars(self))
        as_python_numbers(self)
        for name, value in vars(self).items():
            if not isinstance(value, str) and value < 0:
                raise ValueError(f"{name} is {value!r}; it must be at least 0")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; batch normalisation needs at least two cells")
        if self.validation >= 1:
            raise ValueError(f"validation is {self.validation}; it is a fraction of cells, at least 0 and less than 1")
        if self.monitor == "foscttm" and not self.validation:
            raise ValueError("monitor 'foscttm' needs held-out cells, but validation is 0")
        if self.compile and self.compile not in torch.compiler.list_backends(exclude_tags=()):
            known = ", ".join(torch.compiler.list_backends())
            raise ValueError(f"compile is {self.compile!r}; it must be a backend of torch.compile: {known}")

    def in_steps(self, pass_steps: int) -> "Training":
        """Return the same settings with all lengths in steps only.

        Parameters
        ----------
        pass_steps
            Number of steps in one pass over the cells.
        """
        longer: dict[str, Any] = {}
        for name in ("warmup", "patience", "reduce"):
            steps, passes = getattr(self, f"{name}_steps"), getattr(self, f"{name}_passes")
            longer |= {f"{name}_steps": max(steps, passes * pass_steps), f"{name}_passes": 0}
        last = min(self.max_steps, self.max_passes * pass_steps) if self.max_passes else self.max_steps
        # With many cells 12 passes can exceed the whole training: noise would never end, early stopping never begin.
        longer["warmup_steps"] = min(longer["warmup_steps"], last // 2)
        return replace(self, max_steps=last, max_passes=0, **longer)


def train(
    network, cells: Cells, objective, settings: Training, history: list[dict], seed: int, checkpoints, progress: bool
) -> None:
    """Train `network` in place; however training ends, it gets the best weights found.

    Parameters
    ----------
    network
        A `clue.network.Network`.
    cells
        All cells to train on.
    objective
        A `clue.network.Objective`.
    history
        List to which each validation appends a row.
    seed
        Seed of the validation split, the order of cells, noise and dropout.
    checkpoints
        Folder for checkpoints, or None.
    """
    loop = _Loop(network, cells, objective, settings, seed, history)
    if settings.compile:
        network.compile_layers(settings.compile)
    path = None
    if checkpoints is not None:
        # the first process decides for all: other machines may see changes in a shared folder late
        path = Path(checkpoints) / f"{loop.processes.from_first(loop.key())}.pt"
        if loop.processes.from_first(path.exists()):
            state = load(path, cells.device)
            if state is None:
                raise ValueError(f"{path}: the checkpoint is damaged; delete it and run again")
            loop.load_state(state)
            if loop.processes.rank == 0:
                logger.info("resuming at step %d from %s", loop.step, path)
    try:
        _run(loop, path, progress)
    finally:
        if loop.history:
            network.load_state_dict(loop.best_weights)
    if path is not None:
        loop.save(path)


def _run(loop: "_Loop", path: Path | None, progress: bool) -> None:
    """Train until `loop` is done, with a progress bar; write checkpoints to `path`."""
    with (
        loop.cells.in_any_order(),
        _noted_sigterm() as noted,
        tqdm(total=loop.settings.max_steps, initial=loop.step, unit="step", disable=not progress, mininterval=5) as bar,
    ):
        saved = monotonic()
        while not loop.done():
            loop.advance()
            bar.update()
            if loop.validated():
                bar.set_postfix(loop.summary(), refresh=False)
            due = monotonic() - saved > loop.settings.checkpoint_seconds
            # all processes must act after the same step, whichever of them was asked
            asked = loop.processes.largest(_STOP if noted else _SAVE if due else 0)
            if asked and path is not None:
                loop.save(path)
                saved = monotonic()
            if asked == _STOP:
                raise SystemExit(128 + signal.SIGTERM)


class _Loop:
    """Everything that changes during training, so that it can be saved and restored together."""

    def __init__(self, network, cells: Cells, objective, settings: Training, seed: int, history: list | None = None):
        self.network, self.cells, self.objective, self.seed = network, cells, objective, seed
        self.processes = Processes(cells.device)
        if settings.batch_size % self.processes.n:
            raise ValueError(f"{self.processes.n} processes cannot share batch_size {settings.batch_size} evenly")
        torch.manual_seed(seed + self.processes.rank)
        chosen = held_out(cells.names, settings.validation, seed)
        self.held_out = torch.from_numpy(np.flatnonzero(chosen))
        if (n_left := np.count_nonzero(~chosen)) < 2:
            raise ValueError(
                f"{n_left} of {len(chosen)} cells are left to train on, the rest are held out; at least two are needed"
            )
        self.sampler = Sampler(np.flatnonzero(~chosen), settings.batch_size, seed)
        self.settings = settings.in_steps(len(self.sampler))
        self.generator_side = _optimizer(network.generator_parameters(), settings)
        self.discriminator_side = _optimizer(network.discriminator.parameters(), settings)
        self.learning_rate = settings.learning_rate
        self.learn = Graphs(self._learn, cells.device) if self._can_be_recorded() else self._learn
        self.step = 0
        self.best = float("inf")
        self.best_step = 0
        self.reduced_step = 0
        self.best_weights = _copy(network.state_dict())
        self.history: list[dict] = [] if history is None else history
        self.summed_loss = torch.zeros((), dtype=torch.float64, device=cells.device)

    # ---- one step --------------------------------------------------------------------------------

    def done(self) -> bool:
        """Return whether steps or patience have run out."""
        if self.step >= self.settings.max_steps:
            return True
        since = max(self.best_step, self.settings.warmup_steps)
        return (
            self._last_check() - since >= self.settings.patience_steps
            and sum(row["step"] > since for row in self.history) >= _LEAST_VALIDATIONS
        )

    def advance(self) -> None:
        """Train for one step; validate at the end of a pass if `check_steps` have gone by, and after the last step."""
        self._train_step(next(self.sampler))
        due = self.sampler.pass_is_over() and self.step - self._last_check() >= self.settings.check_steps
        if due or self.step == self.settings.max_steps:
            self._validate()

    def validated(self) -> bool:
        """Return whether the last step was followed by a validation."""
        return self._last_check() == self.step

    def _last_check(self) -> int:
        return self.history[-1]["step"] if self.history else 0

    def _weights(self) -> tuple[float | None, float]:
        """Return the shares of discriminator noise (None once it has ended) and of the KL weight at this step."""
        s = self.settings
        noise = 1 - self.step / s.warmup_steps if self.step < s.warmup_steps else None
        kl = min(self.step / s.kl_warmup_steps, 1.0) if s.kl_warmup_steps else 1.0
        return noise, kl

    def _can_be_recorded(self) -> bool:
        """Return whether a step runs on one GPU without waiting for it, so that `clue.graphs` can replay it."""
        return (
            torch.device(self.cells.device).type == "cuda"
            and self.processes.n == 1
            and self.cells.resident()
            and not self.settings.compile
            # these two losses count the mini-batch's pairs on the CPU
            and not (self.objective.source_cross or self.objective.contrastive)
        )

    def _train_step(self, index: torch.Tensor) -> None:
        self.network.train()
        if self.settings.schedule == "cosine":
            self._set_learning_rate(0.5 * (1 + cos(pi * (self.step / self.settings.max_steps))))
        draw = self.cells.draw(self.processes.share(index))
        if not draw.rows:
            raise ValueError(f"no modality shows two of the {len(index)} cells of a mini-batch; make batch_size larger")
        self.learn(draw, *self._weights())
        self.step += 1

    def _learn(self, draw: Draw, noise: float | torch.Tensor | None, kl: float | torch.Tensor) -> None:
        network, objective = self.network, self.objective
        batch = self.cells.gather(draw)
        posteriors = network.posteriors(batch)
        means = {k: mean for k, (mean, _) in posteriors.items()}
        adversarial = torch.zeros((), device=self.cells.device)
        if objective.adversarial:
            loss = network.discriminator_loss(batch, {k: m.detach() for k, m in means.items()}, noise, None)
            self.discriminator_side.zero_grad(set_to_none=True)
            (objective.adversarial * loss).backward()
            self.processes.average_gradients(self.discriminator_side.param_groups[0]["params"])
            self.discriminator_side.step()
            adversarial = network.discriminator_loss(batch, means, noise, None)
        losses = network.generator_losses(batch, posteriors, objective)
        total = network.total(losses, adversarial, objective, kl)
        self.summed_loss += total.detach()
        self.generator_side.zero_grad(set_to_none=True)
        total.backward()
        self.processes.average_gradients(self.generator_side.param_groups[0]["params"])
        self.generator_side.step()

    # ---- validation ------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self) -> None:
        self.processes.average([b for b in self.network.buffers() if b.is_floating_point()])
        row = {
            "step": self.step,
            "epoch": self.step / len(self.sampler),
            "learning_rate": self.learning_rate,
            "train_loss": float(self.summed_loss) / max(self.step - self._last_check(), 1),
            **self._held_out_losses(),
        }
        self.summed_loss.zero_()
        row = self.processes.from_first(row)
        self.history.append(row)
        if not np.isfinite(loss := row.get("loss", row["train_loss"])):
            raise FloatingPointError(f"training diverged at step {self.step}: loss {loss}; lower the learning rate")
        if not len(self.held_out):
            self.best_weights, self.best_step = _copy(self.network.state_dict()), self.step
            return
        watched = row[self.settings.monitor]
        if np.isnan(watched):
            raise ValueError("monitor 'foscttm' needs two held-out cells seen in two modalities; use 'loss'")
        if self.step <= self.settings.warmup_steps and self.step < self.settings.max_steps:
            # Losses during warm-up are not comparable with later ones: noise hides the modality.
            self.best_weights, self.best_step = _copy(self.network.state_dict()), self.step
        elif watched < self.best:
            self.best, self.best_step, self.reduced_step = watched, self.step, self.step
            self.best_weights = _copy(self.network.state_dict())
        elif self.settings.schedule == "plateau" and self._stalled() >= self.settings.reduce_steps:
            self.reduced_step = self.step
            self._set_learning_rate(self.learning_rate / self.settings.learning_rate / 10)

    def _stalled(self) -> int:
        return self.step - max(self.reduced_step, self.settings.warmup_steps)

    def _set_learning_rate(self, share: float) -> None:
        self.learning_rate = share * self.settings.learning_rate
        for side in (self.generator_side, self.discriminator_side):
            for group in side.param_groups:
                # a recorded step reads this tensor, so change it in place
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(self.learning_rate)
                else:
                    group["lr"] = self.learning_rate

    def _held_out_losses(self) -> dict[str, float]:
        """Return every loss on the held-out cells, a mean over all of them, and how well these cells match."""
        if not len(self.held_out):
            return {}
        network, objective = self.network, self.objective
        network.eval()
        # The same noise at every validation, so that losses differ only by the weights.
        noise = torch.Generator(self.cells.device).manual_seed(self.seed)
        sums: dict[str, float] = {}
        means: dict[str, list] = {k: [] for k in network.modalities}
        names: dict[str, list] = {k: [] for k in network.modalities}
        # Cells that are seen in only one modality may follow each other; every chunk gets its share of them.
        n_chunks = -(-len(self.held_out) // 1024)
        for index in (self.held_out[i::n_chunks] for i in range(n_chunks)):
            # a single cell is enough, since batch normalisation uses its running means here
            batch = self.cells.take(index, least=1)
            posteriors = network.posteriors(batch)
            losses = network.generator_losses(batch, posteriors, objective, noise)
            adversarial = network.discriminator_loss(batch, {k: m for k, (m, _) in posteriors.items()}, None, None)
            losses |= {"adversarial": adversarial, "loss": network.total(losses, adversarial, objective, 1.0)}
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(index)
            for k, seen in batch.seen.items():
                means[k].append(posteriors[k][0])
                names[k].append(batch.index[seen.cell.cpu()])
        result = {name: value / len(self.held_out) for name, value in sums.items()}
        result["foscttm"] = _foscttm({k: (torch.cat(n), torch.cat(means[k])) for k, n in names.items() if n}, self.seed)
        return result

    def summary(self) -> dict[str, str]:
        """Return the values that the progress bar shows."""
        row = self.history[-1]
        return {name: f"{row[name]:.4g}" for name in ("loss", "foscttm") if name in row}

    # ---- checkpoints -----------------------------------------------------------------------------

    def key(self) -> str:
        """Return a digest of settings, seed and data, so that no checkpoint of anything else is ever loaded."""
        digest = hashlib.sha256()
        device = torch.device(self.cells.device).type
        settings = [_FORMAT, asdict(self.objective), asdict(self.settings), self.seed, self.processes.n, device]
        digest.update(json.dumps(settings, sort_keys=True).encode())
        digest.update(str(self.network).encode())
        for value in self.network.state_dict().values():
            digest.update(value.detach().cpu().numpy().ravel().data)
        digest.update(json.dumps(list(self.cells.names)).encode())
        digest.update(self.cells.batch.cpu().numpy().data)
        for k, counts in self.cells.counts.items():
            for tensor in (self.cells.row[k], self.cells.x[k], counts.start, counts.feature, counts.value):
                # no copy: counts may lie on disk
                digest.update(tensor.cpu().numpy().ravel().data)
        return digest.hexdigest()[:16]

    def state(self) -> dict:
        """Return everything needed to continue as if training had not been interrupted."""
        return {
            "network": self.network.state_dict(),
            "generator_side": self.generator_side.state_dict(),
            "discriminator_side": self.discriminator_side.state_dict(),
            # between two validations, each process has its own running means
            "buffers": self.processes.gather({name: b.cpu() for name, b in self.network.named_buffers()}),
            "sampler": self.sampler.state(),
            "summed_loss": self.summed_loss,
            "torch": self.processes.gather(torch.get_rng_state()),
            "cuda": self.processes.gather(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []),
            "history": self.history,
            **{name: getattr(self, name) for name in self._PLAIN},
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint; only the first process writes, with the random states of all."""
        state = self.state()
        if self.processes.rank == 0:
            save_atomically(state, path)

    _PLAIN = ("step", "learning_rate", "best", "best_step", "reduced_step", "best_weights")

    def load_state(self, state: dict) -> None:
        """Restore a state returned by `state`."""
        self.network.load_state_dict(state["network"] | state["buffers"][self.processes.rank])
        self.generator_side.load_state_dict(state["generator_side"])
        self.discriminator_side.load_state_dict(state["discriminator_side"])
        self.sampler.load_state(state["sampler"])
        torch.set_rng_state(state["torch"][self.processes.rank].cpu())
        if state["cuda"][self.processes.rank]:
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"][self.processes.rank]])
        self.summed_loss.copy_(state["summed_loss"])
        self.history[:] = state["history"]
        for name in self._PLAIN:
            setattr(self, name, state[name])


def held_out(names, fraction: float, seed: int) -> np.ndarray:
    """Return a mask of the cells that are held out for validation, shape (n_cells,).

    A cell's name and the seed decide, so that fine-tuning with more cells holds out the same ones. A cryptographic hash
    makes the splits of two seeds independent; with a checksum such as CRC-32 they would be the same or disjoint.
    """
    digests = (hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype="<u8") < fraction * 2.0**64


def _optimizer(parameters, settings: Training) -> torch.optim.Optimizer:
    parameters = list(parameters)
    common: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "fused": True}
    if parameters[0].is_cuda:
        # a recorded step reads these anew each time, so they must be on the GPU
        common |= {"lr": torch.tensor(settings.learning_rate, device=parameters[0].device), "capturable": True}
    if settings.optimizer == "rmsprop":
        return _RMSprop(parameters, **common)
    return torch.optim.Adam(parameters, **common)


class _RMSprop(torch.optim.Adam):
    """RMSprop as Adam without momentum and bias correction, since Adam has a fused kernel on the CPU."""

    def __init__(self, parameters, **options):
        super().__init__(parameters, betas=(0.0, 0.99), eps=1e-8, **options)
        for parameter in self.param_groups[0]["params"]:
            # at so late a step, 0.99 to its power is 0, and nothing is corrected
            step = torch.tensor(1e5, dtype=torch.float32, device=parameter.device)
            self.state[parameter] = {
                "step": step,
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }


def _copy(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


_MOST_PAIRS = 10_000
"""Validation compares all held-out pairs with each other, or a sample of this many if there are more."""

_ROWS = 256
"""Rows of a tile of similarities, so that memory does not grow with the square of the cells."""


def _foscttm(embeddings: dict[str, tuple[torch.Tensor, torch.Tensor]], seed: int) -> float:
    """FOSCTTM (cosine; ties count half) of the held-out cells, averaged over pairs of modalities.

    `embeddings` holds the cells of each modality and their embeddings. If there are more than `_MOST_PAIRS` pairs, the
    seed draws a sample, always the same one.
    """
    values = []
    for (cell_a, z_a), (cell_b, z_b) in combinations(embeddings.values(), 2):
        shared = cell_a[torch.isin(cell_a, cell_b)]
        if len(shared) > _MOST_PAIRS:
            drawn = torch.randperm(len(shared), generator=torch.Generator().manual_seed(seed))[:_MOST_PAIRS]
            shared = shared[drawn.to(shared.device)]
        if len(shared) < 2:
            continue
        values.append(_mean_closer(z_a[_position(cell_a, shared)].double(), z_b[_position(cell_b, shared)].double()))
    return float(np.mean(values)) if values else float("nan")


def _mean_closer(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the FOSCTTM of x and y, averaged over cells and both directions; row i of both is the same cell."""
    x, y = (torch.nn.functional.normalize(z, dim=1) for z in (x, y))
    true = (x * y).sum(1)
    # Products of different shapes round differently, so a difference within rounding is a tie.
    low, high = true - 1e-12, true + 1e-12
    twice = torch.zeros((), dtype=torch.int64, device=x.device)
    for rows in torch.arange(len(x), device=x.device).split(_ROWS):
        similarity = x[rows] @ y.T
        for low_side, high_side in ((low[rows, None], high[rows, None]), (low, high)):
            twice += (similarity > high_side).count_nonzero() + (similarity >= low_side).count_nonzero()
    # each of the 2 n cells was tied with its own partner, which does not count
    return float(twice - 2 * len(x)) / (4 * len(x) ** 2)


def _position(names: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    order = torch.argsort(names)
    return order[torch.searchsorted(names[order], wanted)]


@contextmanager
def _noted_sigterm() -> Iterator[list[int]]:
    """Note SIGTERM (a cluster's preemption) instead of dying, so that a checkpoint can be written."""
    received: list[int] = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    except ValueError:  # not in the main thread, where signals cannot be handled
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
