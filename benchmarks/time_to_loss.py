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

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
from train_speed import ANSWER, MODALITIES, GivenInput, network_of, say, settings

N_JUDGES, N_DRAWS, BATCH_SIZE = 200, 5, 128
BATCHES = ["batch1", "batch2"]
"""Names of the batches that `clue.simulate` makes."""
LEARNING_RATE = {"clue": 2e-3, "clue_fast": 1e-2}
LIBRARIES = "libraries.pt"
"""File of the reference's first weights for the library sizes."""


def main(argv: list[str] | None = None) -> None:
    """Print a row per side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=2_000)
    parser.add_argument("--genes", type=int, default=10_000)
    parser.add_argument("--peaks", type=int, default=30_000)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of ours")
    parser.add_argument("--folder", type=Path, help="where the cells are written and removed")
    parser.add_argument("--side", choices=["reference", *LEARNING_RATE], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.side:
        train = train_reference if arguments.side == "reference" else train_clue
        say(train(arguments))
        return
    print("side\ts_per_epoch\tloss_at_end\tepochs_to_mark\ts_to_mark\ttimes_faster", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_cells(Path(folder), arguments)
        reference = run("reference", folder, arguments)
        for side in ("reference", *LEARNING_RATE):
            end = run(side, folder, arguments) if side in LEARNING_RATE else reference
            there = [(i, t) for i, (t, loss) in enumerate(end["judged"], 1) if loss <= reference["judged"][-1][1]]
            epochs, seconds = there[0] if there else ("-", float("inf"))
            # the reference is judged only at its end
            epochs = epochs if side in LEARNING_RATE else arguments.epochs
            total, loss = end["judged"][-1]
            print(
                f"{side}\t{total / arguments.epochs:.3g}\t{loss:.5f}\t{epochs}\t{seconds:.3g}"
                f"\t{reference['judged'][-1][0] / seconds:.2f}",
                flush=True,
            )


def write_cells(folder: Path, arguments) -> None:
    """Simulate cells; write the training cells and the judging cells, with encoder inputs."""
    from clue.preprocess import preprocessor
    from clue.simulate import simulate

    mdata = simulate(
        arguments.cells + N_JUDGES,
        {"rna": arguments.genes, "atac": arguments.peaks},
        library_sizes={"rna": 3_000, "atac": 6_000},
        n_batches=len(BATCHES),
        seed=0,
    )
    for k, cells in mdata.mod.items():
        train, judges = cells[: arguments.cells].copy(), cells[arguments.cells :].copy()
        prepared = preprocessor(k, 100).fit(train)
        for name, part in (("train", train), ("judges", judges)):
            part = ad.AnnData(prepared.align(part)[:, prepared.selected], obs=part.obs[["batch"]].astype(str)).copy()
            part.obsm["input"] = prepared.transform(cells[part.obs_names])
            part.write_h5ad(folder / f"{name}_{k}.h5ad")


def run(side: str, folder: str, arguments) -> dict:
    """Train one side in a separate process; return pairs of the seconds so far and the loss at that time."""
    command = [sys.executable, __file__, "--side", side, "--folder", folder]
    command += ["--epochs", str(arguments.epochs), "--precision", arguments.precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith(ANSWER))[len(ANSWER) :])


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


def train_reference(arguments) -> dict:
    """Train `SCCLUEModel` and judge it at the end."""
    import torch

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts" / "methods"))
    import clue_scglue

    from clue.batches import batch_labels

    clue_scglue.configure("cpu")
    cells, judges = (read(arguments.folder, name) for name in ("train", "judges"))
    for part in (*cells.values(), *judges.values()):
        part.obsm[clue_scglue.INPUT] = part.obsm["input"]
    chosen = settings("clue_scglue")
    model = clue_scglue.build(cells, chosen, 0, chosen["compile"])
    trainer = model.trainer
    torch.save({k: trainer.net.x2u[k].est_l.state_dict() for k in MODALITIES}, arguments.folder / LIBRARIES)
    step = trainer.train_step = Timed(trainer.train_step)
    model.fit(
        cells, batch_size=BATCH_SIZE, val_split=0.1, directory=arguments.folder / "scglue", max_epochs=arguments.epochs
    )
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
            losses = trainer.compute_losses(data, arguments.epochs)
            drawn.append(float(losses["gen_loss"] + trainer.lam_align * losses["dsc_loss"]))
    return {"judged": [(step.seconds, float(np.mean(drawn)))]}


def train_clue(arguments) -> dict:
    """Train our network and judge it after each epoch."""
    import torch

    from clue.batches import Cells
    from clue.train import Training, _Loop

    cells, judges = (
        Cells(adatas, {k: GivenInput(a.n_vars) for k, a in adatas.items()}, BATCHES, "batch", "cpu")
        for adatas in (read(arguments.folder, "train"), read(arguments.folder, "judges"))
    )
    network, objective = network_of(cells, len(BATCHES), arguments.precision)
    for k, start in torch.load(arguments.folder / LIBRARIES).items():
        network.libraries[k].linear.load_state_dict(start)
    endless = {"max_steps": 10**9, "patience_steps": 10**9}
    rate = LEARNING_RATE[arguments.side]
    training = Training(batch_size=BATCH_SIZE, learning_rate=rate, optimizer="rmsprop", check_steps=1, **endless)
    loop = _Loop(network, cells, objective, training, 0)
    step = loop._train_step = Timed(loop._train_step)
    batch = judges.take(torch.arange(N_JUDGES))
    ends = []
    for _ in range(arguments.epochs):
        for _ in range(len(loop.sampler)):
            loop.advance()
        ends.append((step.seconds, judged(network, batch, objective)))
    return {"judged": ends}


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
    main()
