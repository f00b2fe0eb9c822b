"""Run a method: a function that turns the training file and the censored test files into an embedding.

`run_method` handles the command line, seeding, contracts, timing, peak memory, ``run.json``, atomic writes
and errors, so a method needs only a few lines of its own::

    def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]: ...


    if __name__ == "__main__":
        run_method(embed)
"""

import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import threadpoolctl

from clue.benchmark.contracts import (
    ContractError,
    join_pairs,
    read_test,
    read_train,
    write_embedding,
    write_predictions,
)
from clue.benchmark.errors import BenchmarkError, one_line
from clue.benchmark.files import write_json, write_text
from clue.benchmark.methods.checks import check_arrays, check_left_alone, check_predictions, to_embedding
from clue.benchmark.methods.record import commit, report
from clue.benchmark.methods.task import Embed, Params, Task
from clue.benchmark.program import command_line

NOTED_EVERY = 5.0
"""Seconds between records of a method's run time, which are kept in case it is killed."""
SETTINGS = "settings.json"
"""A file among the checkpoints: the settings and data that they belong to. A finished run has none."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


# ---- the program ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arguments:
    """Embed the test cells of a task.

    Parameters
    ----------
    train
        Training cells (train.h5mu).
    tests
        Test cells (test_<modality>.h5ad).
    embedding
        The embedding to write (embedding.h5ad).
    method, variant
        The names of the method and of its variant.
    params
        Hyper-parameters (JSON).
    device
        cpu or cuda.
    features
        Encoder inputs fitted before (.npz).
    predictions
        The predictions to write (predictions.npz).
    by_pairs
        Run once per pair of modalities; params has those of each (rna+atac).
    """

    train: Path
    tests: list[Path]
    embedding: Path
    method: str
    variant: str
    seed: int
    params: dict[str, Any]
    device: str
    threads: int
    features: tuple[Path, ...] = ()
    predictions: Path | None = None
    by_pairs: bool = False


def run_method(embed: Embed, argv: Sequence[str] | None = None) -> None:
    """Run `embed` as a command-line program; write ``embedding.h5ad`` and ``run.json`` beside it.

    An exception leaves one line in ``failure.json``, its traceback on standard error, and exit status 1. Signals are
    not caught: the method or the system decides how the process ends.

    Parameters
    ----------
    embed
        The method. It receives the task, the hyper-parameters and the seed. It returns one array per test modality,
        shape (cells, width), all of one width, with rows in file order. A data frame whose index names the cells may
        have them in any order. The method must leave the test cells in their order. A method that predicts
        (``predicts: true`` in its YAML) also returns a second dict: for each of ``task.directions``, named like
        ``"rna2adt"``, an array of shape (cells of the test RNA in file order, ``task.targets["adt"].names``).
    argv
        The command line; by default that of the process.
    """
    arguments = Arguments(**vars(command_line(Arguments).parse_args(argv)))
    failure = arguments.embedding.with_name("failure.json")
    failure.parent.mkdir(parents=True, exist_ok=True)
    try:
        # If it were removed only on success, a killed process would leave the reason of an earlier failure.
        failure.unlink(missing_ok=True)
        _run(embed, arguments)
    except BenchmarkError as error:
        write_json(failure, {"error": one_line(str(error))})
        sys.exit(f"error: {error}")
    except Exception as error:  # a method may raise anything; the reason must reach the table, and the job still fails
        write_json(failure, {"error": one_line(f"{type(error).__name__}: {error}")})
        traceback.print_exc()
        sys.exit(1)


def _run(embed: Embed, arguments: Arguments) -> None:
    _check_device(arguments.device)
    _seed(arguments.seed)
    _limit_threads(arguments.threads)
    checkout = commit()  # now, since it may change while the method runs
    test = {cells.uns["modality"]: cells for cells in map(read_test, arguments.tests)}
    train = read_train(arguments.train)
    checkpoints = _prepare_checkpoints(arguments)
    identity = {key: getattr(arguments, key) for key in ("method", "variant", "seed")}
    origin = next(iter(test.values())).uns
    identity |= {key: str(origin.get(key, "")) for key in ("dataset", "split")}
    task = Task(train, test, arguments.device, arguments.threads, checkpoints)
    task.features = {path.stem: path.absolute() for path in arguments.features}
    with _timed(checkpoints / "seconds.txt") as seconds:
        embedding, predictions = (_by_pairs if arguments.by_pairs else _embed)(embed, task, arguments)
        n_seconds = seconds()
    embedding.uns |= {**identity, "params": json.dumps(arguments.params, sort_keys=True)}
    record = identity | report(arguments, embedding.uns["metric"], task, n_seconds)
    record |= {"commit": checkout, "date": date.today().isoformat()}
    write_json(arguments.embedding.with_name("run.json"), record)
    if arguments.predictions:
        write_predictions(predictions, arguments.predictions)
    # Last, so that whoever finds an embedding also finds everything that belongs to it.
    write_embedding(embedding, arguments.embedding)
    (checkpoints / SETTINGS).unlink(missing_ok=True)


@contextmanager
def _timed(path: Path) -> Iterator[Callable[[], float]]:
    """Count seconds, including those of interrupted attempts. Even a killed process leaves its count."""
    before = float(path.read_text()) if path.exists() else 0.0
    start, ended = time.perf_counter(), threading.Event()

    def seconds() -> float:
        return before + time.perf_counter() - start

    def note_until_the_end() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(NOTED_EVERY)
            # A full disk, or a folder that the method has removed, is no reason to fail here.
            with suppress(OSError):
                if path.parent.exists():
                    write_text(path, f"{seconds():.3f}")

    clock = threading.Thread(target=note_until_the_end, daemon=True)
    clock.start()
    try:
        yield seconds
    finally:
        ended.set()
        clock.join()


def _by_pairs(embed: Embed, task: Task, arguments: Arguments) -> tuple[ad.AnnData, dict[str, np.ndarray]]:
    """Run `_embed` for each pair that has training cells in common. Record why the other pairs are left out."""
    parts: dict[str, ad.AnnData] = {}
    predictions: dict[str, np.ndarray] = {}
    left_out = {}
    for pair, params in arguments.params.items():
        first, second = pair.split("+")
        part = task.of_pair(first, second)
        if not part.train.mod[first].obs_names.isin(part.train.mod[second].obs_names).any():
            left_out[pair] = f"no training cell is seen in both {first} and {second}"
            continue
        part.checkpoints.mkdir(exist_ok=True)
        print(f"pair {pair}", flush=True)
        _seed(arguments.seed)
        parts[pair], predicted = _embed(embed, part, replace(arguments, params=params))
        predictions |= predicted
        task.info[pair] = part.info
    if not parts:
        raise BenchmarkError(f"{arguments.train}: {'; '.join(left_out.values())}; no pair is left to run on")
    embedding = join_pairs(parts)
    embedding.uns["left_out"] = left_out
    return embedding, predictions


def _embed(embed: Embed, task: Task, arguments: Arguments) -> tuple[ad.AnnData, dict[str, np.ndarray]]:
    """Call the method. Return its embedding, with the metric that it chose, and its predictions, both checked."""
    given = {name: cells.obs.copy() for name, cells in task.test.items()}
    returned = _call(embed, task, arguments)
    check_left_alone(task, given, arguments.method)
    arrays, predictions = returned if isinstance(returned, tuple) else (returned, None)
    predictions = check_predictions(predictions, task, arguments.method, arguments.predictions is not None)
    arrays = check_arrays(arrays, {name: obs.index for name, obs in given.items()}, arguments.method)
    embedding = to_embedding(arrays, given)
    embedding.uns["metric"] = task.metric
    return embedding, predictions


def _call(embed: Embed, task: Task, arguments: Arguments) -> Any:
    try:
        with chdir(Path.cwd()):  # a method may change the working directory
            return embed(task, Params(arguments.params), arguments.seed)
    except SystemExit as end:
        # CLUE exits like this on a signal, after writing its checkpoint. This is no fault: Slurm starts the job again.
        if isinstance(end.code, int) and end.code > 128:
            raise
        # Lightning, which trains MultiVI, raises its own exception for SIGTERM.
        if type(end) is not SystemExit:
            sys.exit(128 + signal.SIGTERM)
        # Even with status 0 there is no embedding.
        raise ContractError(
            f"embed of {arguments.method} called sys.exit({'' if end.code is None else repr(end.code)});"
            " it must return the embedding or raise an exception"
        ) from end


# ---- before: device, threads, seeds, checkpoints -------------------------------------------------


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise BenchmarkError(
            "device: the configuration says cuda, but no GPU was found; set device: cpu or fix the GPU"
        )
    torch.cuda.reset_peak_memory_stats()


def _limit_threads(threads: int) -> None:
    # Libraries that are already loaded are limited by the call, those that a method loads later by the environment.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    threadpoolctl.threadpool_limits(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    # If a method imports torch only in `embed`, torch's generator would otherwise start from a seed of its own.
    if importlib.util.find_spec("torch"):
        import torch

        torch.manual_seed(seed)


def _prepare_checkpoints(arguments: Arguments) -> Path:
    """Return the folder of checkpoints. Those of other settings or data, and those of a finished run, are deleted."""
    folder = arguments.embedding.with_name("checkpoints").absolute()
    stats = {path.name: path.stat() for path in [arguments.train, *arguments.tests] if path.exists()}
    settings = {
        "params": arguments.params,
        "seed": arguments.seed,
        "device": arguments.device,
        "inputs": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
    file = folder / SETTINGS
    if not file.exists() or file.read_text() != json.dumps(settings):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_text(file, json.dumps(settings))
    return folder
