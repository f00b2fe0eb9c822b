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

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
import yaml

ROOT = Path(__file__).resolve().parents[1]
SIDES = ["reference", "clue", "clue_from_files", "clue_bfloat16"]
WRITER = "write"
MODALITIES = ("rna", "atac")
BATCHES = 10
WIDTH = 100
ANSWER = "@"
"""Marks the lines for the parent among the output of libraries."""


def main(argv: list[str] | None = None) -> None:
    """Print a table row per number of cells and side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[2_000, 10_000, 40_000])
    parser.add_argument("--genes", type=int, default=10_000)
    parser.add_argument("--peaks", type=int, default=30_000)
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="of training, per number of cells, all sides together"
    )
    parser.add_argument("--turn", type=int, default=2, help="steps in a turn")
    parser.add_argument("--folder", type=Path, help="where the cells are written and removed")
    parser.add_argument("--side", choices=[WRITER, *SIDES], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.side == WRITER:
        write_cells(arguments.folder, arguments.cells[0], arguments.genes, arguments.peaks)
        return
    if arguments.side:
        train_one_side(arguments.side, arguments.folder)
        return
    rates = {name: matmul_rate(name) for name in ("float32", "bfloat16")}
    print("matrix products: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()))
    columns = "cells side s_per_epoch speed_ratio peak_anon_GB memory_ratio peak_rss_GB floor_s_per_epoch times_floor"
    print(*columns.split(), sep="\t", flush=True)
    sides = SIDES if rates["bfloat16"] > rates["float32"] else SIDES[:3]
    for n_cells in arguments.cells:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            shape = ["--cells", n_cells, "--genes", arguments.genes, "--peaks", arguments.peaks]
            # in a separate process: a process's peak memory includes that of the process that started it
            subprocess.run(command_of(WRITER, folder, *shape), check=True)
            compare(n_cells, folder, sides, arguments, rates)


def command_of(side: str, folder: str, *more) -> list[str]:
    """Return the command of a child process."""
    return [sys.executable, __file__, "--side", side, "--folder", folder, *map(str, more)]


def compare(n_cells: int, folder: str, sides: list[str], arguments, rates: dict[str, float]) -> None:
    """Let the sides take turns and print their rows."""
    children = {side: Child(side, folder) for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end or len(seconds[sides[-1]]) < 3:
        for side, child in children.items():
            seconds[side].append(child.train(arguments.turn))
    gflop = {side: child.finish() for side, child in children.items()}
    base = children["reference"].peaks["RssAnon"]
    steps_per_epoch = int(0.9 * n_cells) // 128 or 1
    for side in sides:
        # the first turn allocates and warms up
        step = statistics.median(seconds[side][1:])
        pairs = zip(seconds["reference"][1:], seconds[side][1:], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        peaks = children[side].peaks
        floor = gflop[side] / rates["bfloat16" if side.endswith("bfloat16") else "float32"]
        print(
            f"{n_cells}\t{side}\t{step * steps_per_epoch:.3g}\t{ratio:.2f}\t{peaks['RssAnon']:.2f}"
            f"\t{peaks['RssAnon'] / base:.2f}\t{peaks['VmRSS']:.2f}"
            f"\t{floor * steps_per_epoch:.3g}\t{step / floor:.2f}",
            flush=True,
        )


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


class Peaks(dict):
    """The peak memory of a process in GB, by the names in ``/proc/<pid>/status``, watched until `stop` is called."""

    def __init__(self, pid: int, interval: float = 0.02):
        super().__init__(RssAnon=0.0, VmRSS=0.0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(pid, interval), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()

    def _watch(self, pid: int, interval: float) -> None:
        while not self._stopped.wait(interval):
            for name, now in memory_gb(pid).items():
                self[name] = max(self[name], now)


def memory_gb(pid: int | str) -> dict[str, float]:
    """Return the current memory of a process; empty if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) / 2**20 for name in ("RssAnon", "VmRSS") if name in fields}


class Child:
    """A process that trains one side, a turn at a time."""

    def __init__(self, side: str, folder: str):
        self.side = side
        self.process = subprocess.Popen(
            command_of(side, folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.peaks = Peaks(self.process.pid)
        self.answer()

    def answer(self):
        """Wait for the next answer of the process."""
        for line in self.process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line[len(ANSWER) :])
        raise SystemExit(f"train_speed: the process of {self.side} ended; its error is above")

    def train(self, n_steps: int) -> float:
        """Train `n_steps` steps and return the CPU seconds of one."""
        print(n_steps, file=self.process.stdin, flush=True)
        return self.answer()

    def finish(self) -> float:
        """End the process; return the arithmetic of a step in GFLOP."""
        self.peaks.stop()  # counting the arithmetic is not part of training
        print(0, file=self.process.stdin, flush=True)
        gflop = self.answer()
        self.process.wait()
        return gflop


# ---- in a child process --------------------------------------------------------------------------


class Done(Exception):
    """The parent wants no more steps."""


class Turnstile:
    """Wraps the function that trains one step: waits for the parent's request, and times the step."""

    def __init__(self, step):
        self.step, self.left, self.turn, self.seconds, self.gflop = step, 0, 0, 0.0, 0.0
        say("ready")

    def __call__(self, *arguments):
        """Train one step."""
        if not self.left:
            if self.turn:
                say(self.seconds / self.turn)
            # nothing to read: the parent is gone
            self.left = self.turn = int(sys.stdin.readline() or 0)
            self.seconds = 0.0
            if not self.left:
                self._count(arguments)
                raise Done
        start = time.process_time()
        result = self.step(*arguments)
        self.seconds += time.process_time() - start
        self.left -= 1
        return result

    def _count(self, arguments) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            self.step(*arguments)
        self.gflop = counter.get_total_flops() / 1e9


def say(what) -> None:
    """Answer the parent."""
    print(ANSWER + json.dumps(what), flush=True)


def train_one_side(side: str, data: Path) -> None:
    """Train until the parent wants no more."""
    from_files = side.endswith("from_files")
    adatas = {k: ad.read_h5ad(data / f"{k}.h5ad", backed="r" if from_files else None) for k in MODALITIES}
    with tempfile.TemporaryDirectory() as folder:
        train = train_reference if side == "reference" else train_clue
        turnstile = train(adatas, folder, "bfloat16" if side.endswith("bfloat16") else "float32")
    say(turnstile.gflop)


def write_cells(folder: Path, n_cells: int, n_genes: int, n_peaks: int) -> None:
    """Simulate the cells that all sides read."""
    for k, n_features, density in zip(MODALITIES, (n_genes, n_peaks), (0.15, 0.1), strict=True):
        simulated(n_cells, n_features, density, MODALITIES.index(k)).write_h5ad(folder / f"{k}.h5ad")


def simulated(n_cells: int, n_features: int, density: float, seed: int) -> ad.AnnData:
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


def train_reference(adatas, folder: str, precision: str) -> Turnstile:
    """Train `SCCLUEModel` as `scripts/methods/clue_scglue.py` builds it."""
    sys.path.insert(0, str(ROOT / "scripts" / "methods"))
    import clue_scglue

    clue_scglue.configure("cpu")
    for adata in adatas.values():
        adata.obsm[clue_scglue.INPUT] = adata.obsm["input"]
    chosen = settings("clue_scglue")
    model = clue_scglue.build(adatas, chosen, 0, chosen["compile"])
    turnstile = model.trainer.train_step = Turnstile(model.trainer.train_step)
    endless = {"max_epochs": 10**6, "patience": 10**6, "reduce_lr_patience": 10**6, "align_burnin": 10**5}
    try:
        model.fit(adatas, batch_size=128, val_split=0.1, directory=folder, **endless)
    except Done:
        pass
    return turnstile


class GivenInput:
    """Stands in for `clue.preprocess.Preprocessor`, with an encoder input that already exists."""

    def __init__(self, n_features: int):
        self.selected = range(n_features)

    def transform(self, adata):
        """Return the encoder input."""
        return adata.obsm["input"]

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


def train_clue(adatas, folder: str, precision: str) -> Turnstile:
    """Train our network with the same settings."""
    from clue.batches import Cells
    from clue.disk import mapped
    from clue.sparse import row_blocks
    from clue.train import Training, _Loop

    # as `clue.CLUE` does with backed data
    for k, adata in adatas.items():
        if adata.isbacked:
            adatas[k] = ad.AnnData(mapped(row_blocks(adata.X), adata.n_vars), obs=adata.obs, obsm=dict(adata.obsm))
    batches = [str(i) for i in range(BATCHES)]
    cells = Cells(adatas, {k: GivenInput(adata.n_vars) for k, adata in adatas.items()}, batches, "batch", "cpu")
    adatas.clear()
    network, objective = network_of(cells, BATCHES, precision)
    training = Training(batch_size=128, learning_rate=2e-3, max_steps=10**9, patience_steps=10**9)
    loop = _Loop(network, cells, objective, training, 0)
    turnstile = loop._train_step = Turnstile(loop._train_step)
    try:
        with cells.in_any_order():
            while True:
                loop.advance()
    except Done:
        return turnstile


if __name__ == "__main__":
    main()
