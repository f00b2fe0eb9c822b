"""Training speed and memory of our model and of the authors' `scglue.models.SCCLUEModel`, side by side.

    OMP_NUM_THREADS=1 python benchmarks/train_speed.py [--cells 2000 10000 40000] [--seconds 120]

All sides use the competition's Multiome settings: sizes and loss weights from `config/methods/clue_scglue.yaml` and
`clue_competition.yaml`, the same loss terms, the same simulated counts and random encoder inputs, read from the same
files (preprocessing is not measured here). Each side trains in a separate process. The sides are the reference, ours,
ours with counts that stay in files, and, if the processor multiplies bfloat16 faster, ours with bfloat16 matrix
products. They take turns, a few steps at a time, so that other work on the machine disturbs all alike. Training steps
are timed, including the reading of their data; validation and start-up are not.

For each number of cells, it prints CPU seconds per epoch, from the median step; the speed relative to the reference
(median of the ratios of neighbouring turns); peak memory from start to end, sampled every 20 ms: RssAnon, which only
swapping can free, its ratio to the reference's, and VmRSS, which also counts the mapped pages that the operating system
may reclaim; and the floor, which is the step's matrix products at this machine's measured rate.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import yaml
from measure import Child, in_process, row, silence

from clue.benchmark.program import run_program

ROOT = Path(__file__).resolve().parents[1]
SIDES = ["reference", "clue", "clue_from_files", "clue_bfloat16"]
MODALITIES = ("rna", "atac")
BATCHES = 10
WIDTH = 100
ENDLESS = {"max_epochs": 10**6, "patience": 10**6, "reduce_lr_patience": 10**6, "align_burnin": 10**5}
"""Arguments with which the reference trains until it is stopped."""


def main(
    cells: tuple[int, ...] = (2_000, 10_000, 40_000),
    genes: int = 10_000,
    peaks: int = 30_000,
    seconds: float = 120.0,
    turn: int = 2,
    folder: Path | None = None,
) -> None:
    """Print a table row per number of cells and side.

    Parameters
    ----------
    cells, genes, peaks
        Sizes of the data.
    seconds
        Time to train, per number of cells, all sides together.
    turn
        Number of steps in a turn.
    folder
        Where the cells are written and removed.
    """
    rates = {name: matmul_rate(name) for name in ("float32", "bfloat16")}
    print("matrix products: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    columns = "cells side s_per_epoch speed_ratio peak_anon_GB memory_ratio peak_rss_GB floor_s_per_epoch times_floor"
    row(*columns.split())
    sides = SIDES if rates["bfloat16"] > rates["float32"] else SIDES[:3]
    for n_cells in cells:
        with tempfile.TemporaryDirectory(dir=folder) as written:
            # in a separate process: a process's peak memory includes that of the process that started it
            in_process(write_cells, Path(written), n_cells, {"rna": genes, "atac": peaks})
            compare(n_cells, Path(written), sides, seconds, turn, rates)


def compare(n_cells: int, folder: Path, sides: list[str], seconds: float, turn: int, rates: dict[str, float]) -> None:
    """Let the sides take turns and print their rows."""
    children = {side: Child(train_one_side, side, folder) for side in sides}
    for child in children.values():
        child.answer()  # it is ready
    steps: dict[str, list[float]] = {side: [] for side in sides}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(steps[sides[-1]]) < 3:
        for side, child in children.items():
            child.pipe.send(turn)
            steps[side].append(child.answer())
    peaks = {side: child.stop_watching() for side, child in children.items()}  # counting arithmetic is not training
    steps_per_epoch = int(0.9 * n_cells) // 128 or 1
    for side, child in children.items():
        child.pipe.send(0)
        gflop = child.answer()
        child.process.join()
        floor = gflop / rates["bfloat16" if side.endswith("bfloat16") else "float32"]
        # the first turn allocates and warms up
        step = statistics.median(steps[side][1:])
        pairs = zip(steps["reference"][1:], steps[side][1:], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        memory = peaks[side]["anonymous"]
        share = memory / peaks["reference"]["anonymous"]
        times = [floor * steps_per_epoch, step / floor]
        row(n_cells, side, step * steps_per_epoch, ratio, memory, share, peaks[side]["rss"], *times)


def matmul_rate(dtype: str) -> float:
    """Return GFLOP/s (CPU time) of the decoder's largest product, the best of ten."""
    import torch

    x, y = (torch.randn(*shape).to(getattr(torch, dtype)) for shape in ((256, 257), (257, 30_000)))
    best = float("inf")
    for _ in range(10):
        start = time.process_time()
        x @ y
        best = min(best, time.process_time() - start)
    return 2 * 256 * 257 * 30_000 / best / 1e9


# ---- in a child process --------------------------------------------------------------------------


class Done(Exception):
    """No more steps are wanted."""


class Turnstile:
    """Wraps the function that trains one step: waits for the parent's request, and times the step."""

    def __init__(self, step, pipe):
        self.step, self.pipe, self.left, self.turn, self.seconds = step, pipe, 0, 0, 0.0
        pipe.send("ready")

    def __call__(self, *arguments):
        """Train one step."""
        if not self.left:
            if self.turn:
                self.pipe.send(self.seconds / self.turn)
            self.left = self.turn = self.pipe.recv()
            self.seconds = 0.0
            if not self.left:
                self.pipe.send(self._gflop(arguments))
                raise Done
        start = time.process_time()
        result = self.step(*arguments)
        self.seconds += time.process_time() - start
        self.left -= 1
        return result

    def _gflop(self, arguments) -> float:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.step(*arguments)
        return counter.get_total_flops() / 1e9


def train_one_side(pipe, side: str, folder: Path) -> None:
    """Train until the parent wants no more."""
    backed = "r" if side.endswith("from_files") else None
    adatas = {k: ad.read_h5ad(folder / f"{k}.h5ad", backed=backed) for k in MODALITIES}
    try:
        if side == "reference":
            silence(1)  # it reports its progress
            train_reference(adatas, folder / "scglue", lambda step: Turnstile(step, pipe))
        else:
            precision = "bfloat16" if side.endswith("bfloat16") else "float32"
            train_clue(adatas, precision, lambda step: Turnstile(step, pipe))
    except Done:
        silence(2)  # threads of the reference may complain when the process ends


def write_cells(folder: Path, n_cells: int, n_features: dict[str, int]) -> None:
    """Write the cells that all sides read."""
    for k, adata in simulated(n_cells, n_features).items():
        adata.write_h5ad(folder / f"{k}.h5ad")


def simulated(n_cells: int, n_features: dict[str, int]) -> dict[str, ad.AnnData]:
    """Return cells of both modalities."""
    shapes = zip(MODALITIES, (0.15, 0.1), strict=True)
    return {k: drawn(n_cells, n_features[k], density, seed) for seed, (k, density) in enumerate(shapes)}


def drawn(n_cells: int, n_features: int, density: float, seed: int) -> ad.AnnData:
    """Return Poisson counts with the given density of non-zeros, and a random encoder input."""
    rng = np.random.default_rng(seed)
    rate = rng.lognormal(0, 1.5, n_features).astype(np.float32)
    # scale the rates so that the mean of 1 − exp(−rate) is the density
    scale = 1.0
    for _ in range(50):
        scale *= density / np.mean(1 - np.exp(-rate * scale))
    blocks = []
    for start in range(0, n_cells, 1000):
        size = rng.lognormal(0, 0.3, (min(1000, n_cells - start), 1))
        blocks.append(sp.csr_matrix(rng.poisson(rate * scale * size).astype(np.float32)))
    adata = ad.AnnData(sp.vstack(blocks, format="csr"))
    adata.obs["batch"] = (np.arange(n_cells) % BATCHES).astype(str)
    adata.obsm["input"] = rng.standard_normal((n_cells, WIDTH)).astype(np.float32)
    return adata


def settings(method: str) -> dict:
    """Return the competition's settings for Multiome from the method's YAML."""
    spec = yaml.safe_load((ROOT / "config" / "methods" / f"{method}.yaml").read_text())
    preset = spec["presets"]["rna+atac"]
    return {key: {**spec["params"].get(key, {}), **preset.get(key, {})} for key in ("model", "objective", "compile")}


def train_reference(adatas, folder: Path, wrap, device: str = "cpu") -> None:
    """Train `SCCLUEModel` until it is stopped; `wrap` wraps the function that trains one step."""
    model = reference_model(adatas, device)
    model.trainer.train_step = wrap(model.trainer.train_step)
    model.fit(adatas, batch_size=128, val_split=0.1, directory=folder, **ENDLESS)


def reference_model(adatas, device: str = "cpu"):
    """Return `SCCLUEModel` as `scripts/methods/clue_scglue.py` builds it."""
    sys.path.insert(0, str(ROOT / "scripts" / "methods"))
    import clue_scglue

    clue_scglue.configure(device)
    for adata in adatas.values():
        adata.obsm[clue_scglue.INPUT] = adata.obsm["input"]
    chosen = settings("clue_scglue")
    return clue_scglue.build(adatas, chosen, 0, chosen["compile"])


class GivenInput:
    """Stands in for `clue.preprocess.Preprocessor`, with an encoder input that already exists."""

    def __init__(self, n_features: int):
        self.selected = range(n_features)

    def transform(self, adata):
        """Return the encoder input."""
        return adata.obsm["input"]

    def encoder_input(self, x):
        """Return all components, since encoders read all."""
        return x

    def align(self, adata):
        """Return the counts."""
        return adata.X


def network_of(cells, n_batches: int, precision: str):
    """Return our network for these cells and its objective, with the competition's settings."""
    import torch

    from clue.network import Network, Objective

    chosen = settings("clue_competition")
    of_inputs = ("n_components", "n_features")
    model = {key: value for key, value in chosen["model"].items() if key not in of_inputs}
    inputs = {k: x.shape[1] for k, x in cells.x.items()}
    features = {k: counts.n_features for k, counts in cells.counts.items()}
    torch.manual_seed(0)
    return Network(inputs, features, n_batches, precision=precision, **model), Objective(**chosen["objective"])


def train_clue(adatas, precision: str, wrap) -> None:
    """Train our network with the same settings until it is stopped."""
    from clue.disk import mapped
    from clue.sparse import row_blocks

    # as `clue.CLUE` does with backed data
    for k, adata in adatas.items():
        if adata.isbacked:
            adatas[k] = ad.AnnData(mapped(row_blocks(adata.X), adata.n_vars), obs=adata.obs, obsm=dict(adata.obsm))
    loop = clue_loop(adatas, precision)
    adatas.clear()
    loop._train_step = wrap(loop._train_step)
    with loop.cells.in_any_order():
        while True:
            loop.advance()


def clue_loop(adatas, precision: str = "float32", device: str = "cpu"):
    """Return the training loop of our network for these cells."""
    from clue.batches import Cells
    from clue.train import Training, _Loop

    batches = [str(i) for i in range(BATCHES)]
    cells = Cells(adatas, {k: GivenInput(adata.n_vars) for k, adata in adatas.items()}, batches, "batch", device)
    network, objective = network_of(cells, BATCHES, precision)
    training = Training(batch_size=128, learning_rate=2e-3, max_steps=10**9, patience_steps=10**9)
    return _Loop(network.to(device), cells, objective, training, 0)


if __name__ == "__main__":
    run_program(main)
