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

import argparse
import json
import logging
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKS = ["losses", "scores", "speed", "time", "resume", "methods", "run"]
SIDES = ["scglue", "float32", "tf32", "bfloat16", "compiled"]
BATCH_SIZE = 128
ANSWER = "GPU_CHECK_ANSWER"
"""Environment variable that tells a child process where to write its answer."""
FIRST_STEP, TOLERANCE = 1e-5, 1e-2
"""Largest relative difference of losses in the first step (sums in another order) and in 50 (training amplifies it)."""


def main(argv: list[str] | None = None) -> None:
    """Run each check in a separate process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=CHECKS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: try the program itself")
    parser.add_argument("--cells", type=int, default=2_000, help="of the speed test")
    parser.add_argument("--genes", type=int, default=10_000)
    parser.add_argument("--peaks", type=int, default=30_000)
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.check:
        globals()[f"check_{arguments.check}"](arguments)
        return
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: torch finds none; nothing was checked")
        return
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{card}, torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    failed = []
    for check in arguments.only:
        print(f"\n{check}", flush=True)
        start = time.monotonic()
        if child(check, arguments).returncode:
            failed.append(check)
        print(f"  {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def child(check: str, arguments, *more: str) -> subprocess.CompletedProcess:
    """Run one check with the requested sizes."""
    sizes = [f"--{name}={getattr(arguments, name)}" for name in ("device", "cells", "genes", "peaks")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-W", "ignore", __file__, "--check", check, *sizes, *more]
    return subprocess.run(command, check=False, env=environment)


def row(*values) -> None:
    """Print a row of a table."""
    print("  " + "\t".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values), flush=True)


# ---- the same results ----------------------------------------------------------------------------


def check_losses(arguments) -> None:
    """Train 50 steps from the same weights with the same noise on both devices and compare the losses."""
    losses = {device: first_losses(device) for device in ("cpu", arguments.device)}
    differences = [abs(a / b - 1) for a, b in zip(losses["cpu"], losses[arguments.device], strict=True)]
    row("loss of step 50", *(f"{device} {values[-1]:.6f}" for device, values in losses.items()))
    row("relative difference: step 1", differences[0], "step 10", differences[9], "largest", max(differences))
    if differences[0] > FIRST_STEP or max(differences) > TOLERANCE:
        sys.exit(f"losses differ by more than {FIRST_STEP} in the first step, or later by more than {TOLERANCE}")


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


def check_scores(arguments) -> None:
    """Train three models on each device; their scores must agree."""
    import numpy as np

    from clue import CLUE, metrics, simulate

    mdata = simulate.simulate(2_500, {"rna": 1_000, "atac": 2_000}, seed=0)
    train, test = mdata[:2_000].copy(), mdata[2_000:].copy()
    found = {}
    row("device", "seed", "foscttm", "foscttm_aligned", "seconds")
    for device in ("cpu", arguments.device):
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
        sys.exit("the scores of the devices differ by more than three times the spread of the seeds")


# ---- speed ---------------------------------------------------------------------------------------


def check_speed(arguments) -> None:
    """Print each side's time per step, the reference's time divided by it, and the peak memory of the GPU."""
    if arguments.side:
        measure_side(arguments)
        return
    row("side", "ms_per_step", "spread", "cells_per_s", "epochs_per_hour", "ratio", "peak_GPU_GB")
    reference = float("nan")
    with tempfile.TemporaryDirectory() as folder:
        for side in SIDES:
            path = Path(folder, f"{side}.json")
            os.environ[ANSWER] = str(path)
            if child("speed", arguments, f"--side={side}").returncode:
                row(side, "failed or not installed: its error is above")
                continue
            got = json.loads(path.read_text())
            reference = got["ms"] if side == SIDES[0] else reference
            per_s = 1_000 * BATCH_SIZE / got["ms"]
            per_hour = 3_600 * per_s / (0.9 * arguments.cells)
            row(side, got["ms"], got["spread"], per_s, per_hour, reference / got["ms"], got["memory"])


def measure_side(arguments, n_turns: int = 7, n_steps: int = 20) -> None:
    """Train one side for a few turns; the first two warm up (and compile, or record graphs)."""
    import torch
    from train_speed import Done, simulated

    if arguments.side == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    adatas = simulated(arguments.cells, {"rna": arguments.genes, "atac": arguments.peaks})
    turns = []

    def timed(step):
        state = {"n": 0, "start": 0.0}

        def wrapped(*given):
            if state["n"] % n_steps == 0:
                if arguments.device == "cuda":
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

    precision = "bfloat16" if arguments.side == "bfloat16" else "float32"
    try:
        if arguments.side == "scglue":
            train_scglue(adatas, arguments.device, timed)
        else:
            train_clue(adatas, precision, arguments, timed)
    except Done:
        pass
    steps = [1_000 * turn for turn in turns[2:]]
    memory = torch.cuda.max_memory_allocated() / 2**30 if arguments.device == "cuda" else 0.0
    answer = {"ms": statistics.median(steps), "spread": max(steps) - min(steps), "memory": memory}
    Path(os.environ[ANSWER]).write_text(json.dumps(answer))


def train_scglue(adatas, device: str, timed) -> None:
    """Train `SCCLUEModel` as the benchmark's method does."""
    from train_speed import train_reference

    with tempfile.TemporaryDirectory() as folder, quiet():
        train_reference(adatas, Path(folder), timed, device)


@contextmanager
def quiet():
    """Silence standard output and error, since scglue prints its progress."""
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)


def train_clue(adatas, precision: str, arguments, timed) -> None:
    """Train our network with the same settings."""
    from train_speed import clue_loop

    loop = clue_loop(adatas, precision, arguments.device)
    if arguments.side == "compiled":
        loop.network.compile_layers("inductor")
    loop._train_step = timed(loop._train_step)
    while True:
        loop._train_step(next(loop.sampler))


def check_time(arguments) -> None:
    """Profile 20 steps of our training: kernels and waits in a step, and the kernels that take longest."""
    import torch
    from torch.profiler import ProfilerActivity, profile
    from train_speed import clue_loop, simulated

    sizes = {"rna": arguments.genes, "atac": arguments.peaks}
    loop = clue_loop(simulated(arguments.cells, sizes), device=arguments.device)

    def finished() -> float:
        if arguments.device == "cuda":
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
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (arguments.device == "cuda")
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


def check_resume(arguments) -> None:
    """Kill training after a checkpoint and resume it; compare with training that ran undisturbed."""
    code = f"import gpu_check; gpu_check.train_with_checkpoints({arguments.device!r})"
    command = [sys.executable, "-W", "ignore", "-c", code]
    paths = [str(Path(__file__).parent), str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[ANSWER] = folder
        first = subprocess.Popen(command)
        while not list(Path(folder).glob("*.pt")) and first.poll() is None:
            time.sleep(0.05)
        first.send_signal(signal.SIGKILL)
        first.wait()
        again = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        row(again)
        resumed = json.loads(Path(folder, "history.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        os.environ[ANSWER] = folder
        train_with_checkpoints(arguments.device)
        alone = json.loads(Path(folder, "history.json").read_text())
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(alone, resumed, strict=True))
    row("validations", len(alone), "largest relative difference of their losses", worst)
    if "resuming at step" not in again or worst > TOLERANCE:
        sys.exit("the resumed training differs")


def train_with_checkpoints(device: str) -> None:
    """Train a small model; write checkpoints, and its history at the end, to the folder of the check."""
    from clue import CLUE, simulate

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    folder = Path(os.environ[ANSWER])
    mdata = simulate.simulate(2_000, {"rna": 1_000, "atac": 2_000}, seed=0)
    model = CLUE(mdata, batch_key="batch", device=device, seed=0)
    model.fit(checkpoints=folder, progress=False, max_steps=600, checkpoint_seconds=0.5)
    Path(folder, "history.json").write_text(json.dumps(model.history.to_dict("records")))


# ---- the benchmark -------------------------------------------------------------------------------


def check_methods(arguments) -> None:
    """Run methods of the benchmark on a small task, with the command line that Snakemake uses."""
    from importlib.util import find_spec

    from clue import simulate
    from clue.benchmark.config import Benchmark
    from clue.benchmark.contracts import write_test, write_train
    from clue.benchmark.data.task import make_task

    mdata = simulate.simulate(1_000, {"rna": 500, "atac": 800}, seed=0)
    task = make_task(
        mdata, "simulated", "random20", {"kind": "random", "fraction": 0.2, "seed": 0, "paired_fraction": 1}
    )
    needs = {"clue": "torch", "contrastive": "torch", "clue_scglue": "scglue", "multivi": "scvi"}
    row("method", "status", "seconds", "device")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_train(task.train, folder / "train.h5mu")
        for k, adata in task.tests.items():
            write_test(adata, folder / f"test_{k}.h5ad")
        run = Benchmark(
            {"run": "gpu", "datasets": ["simulated"], "methods": list(needs), "seeds": [0], "budget": "test"}
        )
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
            command += ["--params", params, "--device", arguments.device, "--threads", "1"]
            done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                failed.append(method)
                row(method, "FAILED", done.stderr[-1500:])
                continue
            report = json.loads((out / "run.json").read_text())
            row(method, "ok", float(report["seconds"]), report.get("device", "?"))
    if failed:
        sys.exit(f"failed: {failed}")


def check_run(arguments) -> None:
    """Run the benchmark on simulated data with `device: cuda`."""
    from importlib.util import find_spec

    if missing := [package for package in ("snakemake", "scib_metrics") if find_spec(package) is None]:
        row(f"skipped: {', '.join(missing)} is not installed")
        return
    import shutil

    import yaml

    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(
            ROOT, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "results", "build", "logs")
        )
        config = {
            "run": "gpu",
            "datasets": ["simulated/random20"],
            "methods": ["clue/default", "clue/aligned", "contrastive", "cca", "random"],
            "seeds": [0],
            "budget": "quick",
            "device": arguments.device,
        }
        Path(folder, "config", "gpu.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [sys.executable, "scripts/run.py", "--config", "config/gpu.yaml", "--cores", "4"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"the run failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        print(Path(folder, "results", "gpu", "tables", "summary.tsv").read_text())


if __name__ == "__main__":
    main()
