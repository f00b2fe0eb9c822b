"""Time our training to the loss that the authors' `scglue.models.SCCLUEModel` has after 60 epochs.

    OMP_NUM_THREADS=1 python benchmarks/time_to_loss.py [--cells 2000] [--epochs 60] [--precision float32]
        [--folder FOLDER]

Both sides get the same simulated cells, encoder inputs and competition settings for Multiome as in `train_speed.py`.
They are judged on the same further cells, which neither sees, by likelihoods, KL, joint cross and cosine loss, weighted
as in training, without dropout, with noise drawn five times. (The discriminator's loss is left out, since a bad
discriminator would look like progress.) Their read-outs of the library size start with the same weights. More than
anything else, these decide the loss of the first epochs, since a read-out below zero is cut off.

Both sides train for all epochs. The reference's loss at the end is the mark, and ours is judged after each epoch. Ours
trains once as the reference does, and once with five times its learning rate, which the reference could use as well.
CPU seconds of training steps count, including the reading of their data; preparation, the reference's own validation
and the judging do not.
"""

import tempfile
import time
from enum import StrEnum
from pathlib import Path

import anndata as ad
import numpy as np
from measure import in_process, row, silence
from train_speed import MODALITIES, GivenInput, network_of, reference_model

from clue.benchmark.program import run_program

N_JUDGES, N_DRAWS, BATCH_SIZE = 200, 5, 128
BATCHES = ["batch1", "batch2"]
"""Names of the batches that `clue.simulate` makes."""
Precision = StrEnum("Precision", ["float32", "bfloat16"])
LEARNING_RATE = {"clue": 2e-3, "clue_fast": 1e-2}
LIBRARIES = "libraries.pt"
"""File of the reference's first weights for the library sizes."""
Judged = list[tuple[float, float]]
"""Seconds of training so far and the loss at that time."""


def main(
    cells: int = 2_000,
    genes: int = 10_000,
    peaks: int = 30_000,
    epochs: int = 60,
    precision: Precision = Precision.float32,
    folder: Path | None = None,
) -> None:
    """Print a row per side.

    Parameters
    ----------
    cells, genes, peaks
        Sizes of the data.
    epochs
        How long both sides train.
    precision
        Of ours: float32 or bfloat16.
    folder
        Where the cells are written and removed.
    """
    row("side", "s_per_epoch", "loss_at_end", "epochs_to_mark", "s_to_mark", "times_faster")
    with tempfile.TemporaryDirectory(dir=folder) as written:
        there = Path(written)
        write_cells(there, cells, {"rna": genes, "atac": peaks})
        (end,) = in_process(train_reference, there, epochs)
        whole, mark = end
        row("reference", whole / epochs, f"{mark:.5f}", epochs, whole, "1.00")
        for side, rate in LEARNING_RATE.items():
            judged = in_process(train_clue, there, epochs, precision, rate)
            reached = [(i, seconds) for i, (seconds, loss) in enumerate(judged, 1) if loss <= mark]
            n_epochs, seconds = reached[0] if reached else ("-", float("inf"))
            total, loss = judged[-1]
            row(side, total / epochs, f"{loss:.5f}", n_epochs, seconds, f"{whole / seconds:.2f}")


def write_cells(folder: Path, n_cells: int, n_features: dict[str, int]) -> None:
    """Simulate cells; write the training cells and the judging cells, with encoder inputs."""
    from clue.preprocess import preprocessor
    from clue.simulate import simulate

    sizes = {"rna": 3_000, "atac": 6_000}
    mdata = simulate(n_cells + N_JUDGES, n_features, library_sizes=sizes, n_batches=len(BATCHES), seed=0)
    for k, cells in mdata.mod.items():
        train, judges = cells[:n_cells].copy(), cells[n_cells:].copy()
        prepared = preprocessor(k, 100).fit(train)
        for name, part in (("train", train), ("judges", judges)):
            part = ad.AnnData(prepared.align(part)[:, prepared.selected], obs=part.obs[["batch"]].astype(str)).copy()
            part.obsm["input"] = prepared.transform(cells[part.obs_names])
            part.write_h5ad(folder / f"{name}_{k}.h5ad")


# ---- in a child process --------------------------------------------------------------------------


def read(folder: Path, name: str) -> dict[str, ad.AnnData]:
    """Read the cells of both modalities."""
    return {k: ad.read_h5ad(folder / f"{name}_{k}.h5ad") for k in MODALITIES}


class Timed:
    """Wraps a function and adds up its CPU seconds."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments):
        """Call the function."""
        start = time.process_time()
        result = self.function(*arguments)
        self.seconds += time.process_time() - start
        return result


def train_reference(folder: Path, epochs: int) -> Judged:
    """Train `SCCLUEModel` and judge it at the end."""
    import torch

    from clue.batches import batch_labels

    silence(1)  # it reports its progress
    cells, judges = read(folder, "train"), read(folder, "judges")
    model = reference_model(cells)
    trainer = model.trainer
    torch.save({k: trainer.net.x2u[k].est_l.state_dict() for k in MODALITIES}, folder / LIBRARIES)
    step = trainer.train_step = Timed(trainer.train_step)
    model.fit(cells, batch_size=BATCH_SIZE, val_split=0.1, directory=folder / "scglue", max_epochs=epochs)
    data = (
        {k: torch.from_numpy(judges[k].X.toarray()) for k in MODALITIES},
        {k: torch.from_numpy(judges[k].obsm["input"]) for k in MODALITIES},
        {k: torch.from_numpy(batch_labels(judges[k], BATCHES, "batch")) for k in MODALITIES},
        {},
        {k: torch.ones(N_JUDGES) for k in MODALITIES},
        {k: torch.full((N_JUDGES,), i) for i, k in enumerate(MODALITIES)},
        torch.ones(N_JUDGES, len(MODALITIES), dtype=torch.bool),
    )
    torch.manual_seed(0)
    trainer.net.eval()
    drawn = []
    with torch.no_grad():
        for _ in range(N_DRAWS):
            losses = trainer.compute_losses(data, epochs)
            drawn.append(float(losses["gen_loss"] + trainer.lam_align * losses["dsc_loss"]))
    return [(step.seconds, float(np.mean(drawn)))]


def train_clue(folder: Path, epochs: int, precision: str, rate: float) -> Judged:
    """Train our network and judge it after each epoch."""
    import torch

    from clue.batches import Cells
    from clue.train import Training, _Loop

    cells, judges = (
        Cells(adatas, {k: GivenInput(a.n_vars) for k, a in adatas.items()}, BATCHES, "batch", "cpu")
        for adatas in (read(folder, "train"), read(folder, "judges"))
    )
    network, objective = network_of(cells, len(BATCHES), precision)
    for k, start in torch.load(folder / LIBRARIES).items():
        network.libraries[k].linear.load_state_dict(start)
    endless = {"max_steps": 10**9, "patience_steps": 10**9}
    training = Training(batch_size=BATCH_SIZE, learning_rate=rate, optimizer="rmsprop", check_steps=1, **endless)
    loop = _Loop(network, cells, objective, training, 0)
    step = loop._train_step = Timed(loop._train_step)
    batch = judges.take(torch.arange(N_JUDGES))
    ends = []
    for _ in range(epochs):
        for _ in range(len(loop.sampler)):
            loop.advance()
        ends.append((step.seconds, judged(network, batch, objective)))
    return ends


def judged(network, batch, objective) -> float:
    """Return the loss of the judging cells, without the discriminator's."""
    import torch

    network.eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        posteriors = network.posteriors(batch)
        drawn = [
            float(
                network.total(network.generator_losses(batch, posteriors, objective, noise), torch.zeros(()), objective)
            )
            for _ in range(N_DRAWS)
        ]
    return float(np.mean(drawn))


if __name__ == "__main__":
    run_program(main)
