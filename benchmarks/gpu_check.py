"""Check CLUE on a GPU: the same results as on the CPU, its speed against the authors' `scglue`, and where time goes.

    python benchmarks/gpu_check.py [--only losses scores speed time resume methods run]

It needs torch and the packages that `clue` imports. Some checks need more; those whose packages are not installed say
so and are skipped. Without a GPU it says so in one line. Each check is a separate process. If one fails, the exit
status is 1.

losses    The first 50 steps from the same weights, with the same noise and no dropout, on both devices.
scores    FOSCTTM and match score of trained models, three seeds on each device.
speed     Training steps at the competition's Multiome sizes (10,000 genes, 30,000 peaks, mini-batches of 128): scglue,
          and ours in float32, with TF32 products, in bfloat16, and with `torch.compile`. Wall-clock time of whole steps
          including the reading of data, after the device has finished; the median of several turns. Peak GPU memory.
time      A profile of our training: seconds by stage, kernels and waits for the device in a step.
resume    Training is killed (SIGKILL) after a checkpoint; when resumed, it must end like training that ran undisturbed.
methods   CLUE, CLUE (scglue), contrastive learning and MultiVI of the benchmark, on one small task, with
          ``--device cuda``.
run       The benchmark's run of simulated data, from preparation to figures, with ``device: cuda``.
"""

import io
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import yaml
from measure import SPAWN, in_process, silence

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.program import run_program

ROOT = Path(__file__).resolve().parents[1]
Check = StrEnum("Check", ["losses", "scores", "speed", "time", "resume", "methods", "run"])
Device = StrEnum("Device", ["cuda", "cpu"])
SIDES = ["scglue", "float32", "tf32", "bfloat16", "compiled"]
BATCH_SIZE = 128
FIRST_STEP, TOLERANCE = 1e-5, 1e-2
"""Largest relative difference of losses in the first step (sums in another order) and in 50 (training amplifies it)."""


class Setup(NamedTuple):
    """The device to check, and the sizes of the speed test's data."""

    device: str
    n_cells: int
    n_features: dict[str, int]


def main(
    only: tuple[Check, ...] = tuple(Check),
    device: Device = Device.cuda,
    cells: int = 2_000,
    genes: int = 10_000,
    peaks: int = 30_000,
) -> None:
    """Run each check in a separate process.

    Parameters
    ----------
    only
        Checks to run, by the names above.
    device
        The device to check; cpu tries the program itself.
    cells, genes, peaks
        Sizes of the speed test.
    """
    import torch

    if device == Device.cuda and not torch.cuda.is_available():
        print("no GPU here: torch finds none; nothing was checked")
        return
    card = torch.cuda.get_device_name() if device == Device.cuda else "CPU"
    print(f"{card}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    # for the processes that this one starts, since clue may not be installed
    os.environ |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    os.environ["PYTHONWARNINGS"] = "ignore"
    setup = Setup(str(device), cells, {"rna": genes, "atac": peaks})
    failed = []
    for check in only:
        print(f"\n{check}", flush=True)
        start = time.monotonic()
        try:
            in_process(globals()[f"check_{check}"], setup)
        except Exception as error:  # whatever it is, the next check runs
            traceback.print_exception(error)
            failed.append(check)
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        raise BenchmarkError(f"failed: {', '.join(failed)}")


def row(*values) -> None:
    """Print a row of a table."""
    print("  " + "\t".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values), flush=True)


# ---- the same results ----------------------------------------------------------------------------


def check_losses(setup: Setup) -> None:
    """Train 50 steps from the same weights with the same noise on both devices and compare the losses."""
    losses = {device: first_losses(device) for device in ("cpu", setup.device)}
    differences = [abs(a / b - 1) for a, b in zip(losses["cpu"], losses[setup.device], strict=True)]
    row("loss of step 50", *(f"{device} {values[-1]:.6f}" for device, values in losses.items()))
    row("relative difference: step 1", differences[0], "step 10", differences[9], "largest", max(differences))
    if differences[0] > FIRST_STEP or max(differences) > TOLERANCE:
        raise BenchmarkError(
            f"losses differ by more than {FIRST_STEP} in the first step, or later by more than {TOLERANCE}"
        )


def first_losses(device: str, n_steps: int = 50) -> list[float]:
    """Return the training loss of each step; noise is drawn on the CPU, so that it is the same on all devices."""
    import torch

    from clue import CLUE, Objective, Training, network, simulate
    from clue.train import _Loop

    def noise(x, generator):
        return torch.randn(x.shape).to(x.device)

    network._noise_like = noise
    mdata = simulate.simulate(1_000, {"rna": 1_000, "atac": 2_000}, seed=0)
    model = CLUE(mdata, batch_key="batch", dropout=0.0, device=device, seed=0)
    loop = _Loop(model.network, model._cells(model._data), Objective(), Training(), 0)
    losses = []
    total, loop.learn = model.network.total, loop._learn

    def noted(*values):
        losses.append(total(*values))
        return losses[-1]

    model.network.total = noted
    for _ in range(n_steps):
        loop._train_step(next(loop.sampler))
    return [float(loss) for loss in losses]


def check_scores(setup: Setup) -> None:
    """Train three models on each device; their scores must agree."""
    import numpy as np

    from clue import CLUE, metrics, simulate

    mdata = simulate.simulate(2_500, {"rna": 1_000, "atac": 2_000}, seed=0)
    train, test = mdata[:2_000].copy(), mdata[2_000:].copy()
    found = {}
    row("device", "seed", "foscttm", "foscttm_aligned", "seconds")
    for device in ("cpu", setup.device):
        found[device] = []
        for seed in range(3):
            start = time.monotonic()
            model = CLUE(train, batch_key="batch", device=device, seed=seed)
            model.fit(max_steps=500, progress=False)
            z = {k: model.embed(adata, k) for k, adata in test.mod.items()}
            found[device].append(float(np.mean(metrics.foscttm(z["rna"], z["atac"]))))
            aligned = [model.align(adata, k) for k, adata in test.mod.items()]
            row(device, seed, found[device][-1], float(np.mean(metrics.foscttm(*aligned))), time.monotonic() - start)
    (mean_a, sd_a), (mean_b, sd_b) = ((statistics.mean(v), statistics.stdev(v)) for v in found.values())
    spread = max(sd_a, sd_b)
    row("mean", *(f"{device} {statistics.mean(v):.4f} ± {statistics.stdev(v):.4f}" for device, v in found.items()))
    if abs(mean_a - mean_b) > 3 * spread:
        raise BenchmarkError("the scores of the devices differ by more than three times the spread of the seeds")


# ---- speed ---------------------------------------------------------------------------------------


def check_speed(setup: Setup) -> None:
    """Print each side's time per step, the reference's time divided by it, and the peak memory of the GPU."""
    row("side", "ms_per_step", "spread", "cells_per_s", "epochs_per_hour", "ratio", "peak_GPU_GB")
    reference = float("nan")
    for side in SIDES:
        try:
            ms, spread, memory = in_process(measure_side, side, setup)
        except Exception as error:  # whatever it is, the next side is measured
            row(side, f"failed or not installed: {error}")
            continue
        reference = ms if side == SIDES[0] else reference
        per_s = 1_000 * BATCH_SIZE / ms
        row(side, ms, spread, per_s, 3_600 * per_s / (0.9 * setup.n_cells), reference / ms, memory)


def measure_side(side: str, setup: Setup, n_turns: int = 7, n_steps: int = 20) -> tuple[float, float, float]:
    """Train one side for a few turns, of which the first two warm up (and compile, or record graphs).

    Return the milliseconds of a step, their spread over turns, and the peak memory of the GPU.
    """
    import torch
    from train_speed import Done, clue_loop, simulated, train_reference

    if side == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    adatas = simulated(setup.n_cells, setup.n_features)
    turns = []

    def timed(step):
        state = {"n": 0, "start": 0.0}

        def wrapped(*given):
            if state["n"] % n_steps == 0:
                if setup.device == "cuda":
                    torch.cuda.synchronize()
                now = time.perf_counter()
                if state["n"]:
                    turns.append((now - state["start"]) / n_steps)
                if len(turns) == n_turns:
                    raise Done
                state["start"] = time.perf_counter()
            state["n"] += 1
            return step(*given)

        return wrapped

    try:
        if side == "scglue":
            silence(1, 2)  # it reports its progress
            with tempfile.TemporaryDirectory() as folder:
                train_reference(adatas, Path(folder), timed, setup.device)
        loop = clue_loop(adatas, "bfloat16" if side == "bfloat16" else "float32", setup.device)
        if side == "compiled":
            loop.network.compile_layers("inductor")
        step = timed(loop._train_step)
        while True:
            step(next(loop.sampler))
    except Done:
        steps = [1_000 * turn for turn in turns[2:]]
        memory = torch.cuda.max_memory_allocated() / 2**30 if setup.device == "cuda" else 0.0
        return statistics.median(steps), max(steps) - min(steps), memory


def check_time(setup: Setup) -> None:
    """Profile 20 steps of our training: kernels and waits in a step, and the kernels that take longest."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from train_speed import clue_loop, simulated

    loop = clue_loop(simulated(setup.n_cells, setup.n_features), device=setup.device)

    def finished() -> float:
        if setup.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(60):
        loop._train_step(next(loop.sampler))
    start = finished()
    for _ in range(20):
        loop.cells.take(next(loop.sampler))
    row("reading a mini-batch, ms", 50 * (finished() - start))
    start = finished()
    for _ in range(20):
        loop._train_step(next(loop.sampler))
    queued, end = time.perf_counter(), finished()
    row("a step, ms", 50 * (end - start), "of which the program queues for", 50 * (queued - start))
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (setup.device == "cuda")
    with profile(activities=activities) as found:
        for _ in range(20):
            loop._train_step(next(loop.sampler))
        finished()
    events = found.key_averages()
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    row("kernels and copies in a step", sum(e.count for e in on_device) / 20)
    row("their time in a step, ms", sum(e.self_device_time_total for e in on_device) / 20_000)
    waits = {e.key: e.count / 20 for e in events if "Synchronize" in e.key or e.key == "aten::_local_scalar_dense"}
    row("waits in a step", waits)
    for e in sorted(on_device, key=lambda e: -e.self_device_time_total)[:10]:
        row(f"{e.self_device_time_total / 20_000:.3f} ms", f"{e.count / 20:.0f} x", e.key[:90])


# ---- kill and resume -----------------------------------------------------------------------------


def check_resume(setup: Setup) -> None:
    """Kill training after a checkpoint and resume it; compare with training that ran undisturbed."""
    with tempfile.TemporaryDirectory() as folder:
        first = SPAWN.Process(target=train_with_checkpoints, args=(setup.device, Path(folder)))
        first.start()
        while not list(Path(folder).glob("*.pt")) and first.is_alive():
            time.sleep(0.05)
        first.kill()
        first.join()
        said, resumed = in_process(train_with_checkpoints, setup.device, Path(folder))
        row(*said)
    with tempfile.TemporaryDirectory() as folder:
        _, alone = in_process(train_with_checkpoints, setup.device, Path(folder))
    worst = max(abs(a / b - 1) for a, b in zip(alone, resumed, strict=True))
    row("validations", len(alone), "largest relative difference of their losses", worst)
    if not said or worst > TOLERANCE:
        raise BenchmarkError("the resumed training differs")


def train_with_checkpoints(device: str, folder: Path) -> tuple[list[str], list[float]]:
    """Train a small model with checkpoints; return what it said about resuming, and its losses."""
    from clue import CLUE, simulate

    log = io.StringIO()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=log)
    mdata = simulate.simulate(2_000, {"rna": 1_000, "atac": 2_000}, seed=0)
    model = CLUE(mdata, batch_key="batch", device=device, seed=0)
    model.fit(checkpoints=folder, progress=False, max_steps=600, checkpoint_seconds=0.5)
    said = [line for line in log.getvalue().splitlines() if line.startswith("resuming at step")]
    return said, model.history["loss"].tolist()


# ---- the benchmark -------------------------------------------------------------------------------


def check_methods(setup: Setup) -> None:
    """Run methods of the benchmark on a small task, with the command line that Snakemake uses."""
    from clue import simulate
    from clue.benchmark.config import Benchmark
    from clue.benchmark.contracts import write_test, write_train
    from clue.benchmark.data.task import make_task

    mdata = simulate.simulate(1_000, {"rna": 500, "atac": 800}, seed=0)
    split = {"kind": "random", "fraction": 0.2, "seed": 0, "paired_fraction": 1}
    task = make_task(mdata, "simulated", "random20", split)
    needs = {"clue": "torch", "contrastive": "torch", "clue_scglue": "scglue", "multivi": "scvi"}
    row("method", "status", "seconds", "device")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_train(task.train, folder / "train.h5mu")
        for k, adata in task.tests.items():
            write_test(adata, folder / f"test_{k}.h5ad")
        config = {"run": "gpu", "datasets": ["simulated"], "methods": list(needs), "seeds": [0], "budget": "test"}
        run = Benchmark(config, ROOT)
        for method, package in needs.items():
            if find_spec(package) is None:
                row(method, f"skipped: {package} is not installed")
                continue
            spec = run.methods[method]
            params = json.dumps(run.params(method, next(iter(spec["variants"])), ["rna", "atac"]))
            out = folder / method
            command = [sys.executable, "-P", f"scripts/methods/{spec['script']}", "--train", folder / "train.h5mu"]
            command += ["--tests", folder / "test_rna.h5ad", folder / "test_atac.h5ad"]
            command += ["--embedding", out / "embedding.h5ad", "--method", method, "--variant", "default"]
            command += ["--seed", "0"]
            command += ["--params", params, "--device", setup.device, "--threads", "1"]
            done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                failed.append(method)
                row(method, "FAILED", done.stderr[-1500:])
                continue
            report = json.loads((out / "run.json").read_text())
            row(method, "ok", float(report["seconds"]), report.get("device", "?"))
    if failed:
        raise BenchmarkError(f"failed: {failed}")


def check_run(setup: Setup) -> None:
    """Run the benchmark on simulated data with `device: cuda`."""
    if missing := [package for package in ("snakemake", "scib_metrics") if find_spec(package) is None]:
        row(f"skipped: {', '.join(missing)} is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        left_out = shutil.ignore_patterns(".*", "results", "build", "logs")
        shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=left_out)
        config = {
            "run": "gpu",
            "datasets": ["simulated/random20"],
            "methods": ["clue/default", "clue/aligned", "contrastive", "cca", "random"],
            "seeds": [0],
            "budget": "quick",
            "device": setup.device,
        }
        Path(folder, "config", "gpu.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "scripts/run.py", "--config", "config/gpu.yaml", "--cores", "4"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"the run failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        print(Path(folder, "results", "gpu", "tables", "summary.tsv").read_text())


if __name__ == "__main__":
    run_program(main)
