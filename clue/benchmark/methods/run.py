"""Run a method: a function from the training file and the censored test files to an embedding.

`run_method` owns the command line, seeding, contracts, timing, peak memory, ``run.json``, atomic writes
and errors, so that a method is its own few lines::

    def embed(task: Task, params: dict, seed: int) -> dict[str, np.ndarray]: ...


    if __name__ == "__main__":
        run_method(embed)
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import scipy.sparse as sp
import threadpoolctl

from clue.benchmark.config import features_name
from clue.benchmark.contracts import (
    ContractError,
    check_embedding_fits,
    check_prediction,
    join_pairs,
    read_test,
    read_train,
    write_embedding,
    write_predictions,
)
from clue.benchmark.errors import BenchmarkError, one_line
from clue.benchmark.files import atomic
from clue.benchmark.methods.features import Fitted, fit_features, peak_memory_mb, read_features
from clue.benchmark.targets import Targets, directions, targets_of
from clue.matching import Metric
from clue.preprocess import Preprocessor
from clue.sparse import column_sums

NOTED_EVERY = 5.0
"""Seconds between notes of a method's run time, in case it is killed."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
REPORTED_PACKAGES = ("clue-bench", "numpy", "scipy", "pandas", "anndata", "mudata")
REPORTED_IF_IMPORTED = {
    "torch": "torch",
    "scglue": "scglue",
    "sklearn": "scikit-learn",
    "scanpy": "scanpy",
    "scvi": "scvi-tools",
}


@dataclass
class Task:
    """What a method may see.

    Parameters
    ----------
    train
        Training cells, raw counts; cells of one name in two modalities are one cell.
    test
        Test cells of each modality, shuffled and renamed; nothing in ``obs`` but ``batch``.
    device
        ``"cpu"`` or ``"cuda"``; the GPU is there when it says so.
    threads
        How many threads the method may use.
    checkpoints
        A folder that survives a failed run; empty unless a run of the same settings and data was cut short.
    metric
        By which the embedded cells are to be compared; a method whose space is Euclidean sets ``"euclidean"``.
    info
        What the method wants to have in ``run.json``, for instance ``epochs``.
    features
        Files of encoder inputs that jobs of their own have fitted, by name; see `fitted`.
    """

    train: md.MuData
    test: dict[str, ad.AnnData]
    device: str
    threads: int
    checkpoints: Path
    metric: Metric = "cosine"
    info: dict[str, Any] = field(default_factory=dict)
    features: Mapping[str, Path] = field(default_factory=dict)
    shared: list[Fitted] = field(default_factory=list)
    """What it took to fit those of `features` that were read."""

    def fitted(self, which: str, cells: Mapping[str, ad.AnnData], params: Mapping[str, Any]) -> dict[str, Preprocessor]:
        """Return the encoder inputs of each modality: from the file, if the method's YAML has it made, else fitted now.

        Parameters
        ----------
        which
            Which training cells they are fitted on: ``all``; ``paired``, what `paired_cells` returns; or ``fold-3``,
            what `inner_split` of these with the seed 3 returns to fit on.
        cells
            These cells.
        params
            Hyper-parameters, of which ``n_components`` and ``n_features`` are read.

        Raises
        ------
        BenchmarkError
            If a modality has too few cells or features, or nothing in which they differ.
        """
        path = self.features.get(features_name(which, params))
        if path is None:
            return fit_features(cells, params)
        found = read_features(path)
        self.shared.append(replace(found, preprocessors={}))
        if found.error:
            raise BenchmarkError(found.error)
        return found.preprocessors

    @property
    def targets(self) -> dict[str, Targets]:
        """What is predicted of each modality: the features, and the scale."""
        return targets_of(self.train.mod)

    @property
    def directions(self) -> list[tuple[str, str]]:
        """Each modality to predict from, with each other one to predict."""
        return directions(list(self.test))

    def of_pair(self, first: str, second: str) -> "Task":
        """Return the task of two of the modalities, with all training cells that are seen in either."""
        train = md.MuData({name: self.train.mod[name].copy() for name in (first, second)})
        train.uns = dict(self.train.uns)
        test = {name: self.test[name].copy() for name in (first, second)}
        checkpoints = self.checkpoints / f"{first}+{second}"
        return replace(self, train=train, test=test, checkpoints=checkpoints, info={}, features={})


Arrays = Mapping[str, np.ndarray]
Embed = Callable[[Task, dict[str, Any], int], Arrays | tuple[Arrays, Arrays]]


class Params(dict):
    """Hyper-parameters; a missing one is an error that says where to add it."""

    def __missing__(self, key: str) -> NoReturn:
        raise BenchmarkError(f"parameter {key!r} missing; add it to params in the method's YAML")


# ---- the program ---------------------------------------------------------------------------------


def run_method(embed: Embed, argv: Sequence[str] | None = None) -> None:
    """Run `embed` as a command-line program; write ``embedding.h5ad`` and ``run.json`` beside it.

    An exception leaves ``failure.json`` with one line, its traceback on standard error, and exit status 1.
    A signal is not caught: the process ends as the method or the system has it end.

    Parameters
    ----------
    embed
        The method. It gets the task, the hyper-parameters and the seed, and returns one array of shape
        (cells, width) per test modality, rows in file order, of one width. A data frame whose index names the cells may
        have them in any order. It leaves the test cells that it was given in their order. A method that predicts
        (``predicts: true`` in its YAML) returns a second dict beside it: for each of ``task.directions``, as
        ``"rna2adt"``, an array of shape (cells of the test RNA in file order, ``task.targets["adt"].names``).
    argv
        The command line; by default that of the process.
    """
    arguments = _arguments(argv)
    failure = arguments.embedding.with_name("failure.json")
    failure.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Were it removed at success only, a killed process would leave the reason of an earlier failure.
        failure.unlink(missing_ok=True)
        _run(embed, arguments)
    except BenchmarkError as error:
        _write_failure(failure, str(error))
        sys.exit(f"error: {error}")
    except Exception as error:  # a method may raise anything; the reason must reach the table, and the job still fails
        _write_failure(failure, f"{type(error).__name__}: {error}")
        traceback.print_exc()
        sys.exit(1)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Embed the test cells of a task.")
    parser.add_argument("--train", type=_path, required=True, help="training cells (train.h5mu)")
    parser.add_argument("--tests", type=_path, nargs="+", required=True, help="test cells (test_<modality>.h5ad)")
    parser.add_argument("--features", type=_path, nargs="*", default=[], help="encoder inputs fitted before (.npz)")
    parser.add_argument("--embedding", type=_path, required=True, help="the embedding to write (embedding.h5ad)")
    parser.add_argument("--predictions", type=_path, help="the predictions to write (predictions.npz)")
    parser.add_argument("--method", required=True, help="name of the method")
    parser.add_argument("--variant", required=True, help="name of the variant")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--params", type=_json_map, required=True, help="hyper-parameters, a JSON map")
    parser.add_argument(
        "--by-pairs", action="store_true", help="run once per pair of modalities; --params has those of each (rna+atac)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args(argv)


def _path(text: str) -> Path:
    # A method may change the working directory.
    return Path(text).absolute()


def _json_map(text: str) -> Params:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise argparse.ArgumentTypeError("must be a JSON map")
    return Params(values)


def _run(embed: Embed, arguments: argparse.Namespace) -> None:
    _check_device(arguments.device)
    _seed(arguments.seed)
    _limit_threads(arguments.threads)
    checkout = commit()  # now: it may change while the method is at work
    test = dict(_keyed(path) for path in arguments.tests)
    train = read_train(arguments.train)
    missing = [modality for modality in test if modality not in train.mod]
    if missing:
        raise ContractError(f"{arguments.train}: holds {list(train.mod)} but the test cells are of {list(test)} too")
    _check_learnable(train, list(test), arguments.train)
    _prepare_checkpoints(arguments)
    names = {name: cells.obs_names.copy() for name, cells in test.items()}
    identity = _identity(arguments, test)
    task = Task(train, test, arguments.device, arguments.threads, _checkpoints(arguments))
    task.features = {path.stem: path for path in arguments.features}
    with _timed(task.checkpoints / "seconds.txt") as seconds:
        embedding, predictions = (_by_pairs if arguments.by_pairs else _embed)(embed, task, arguments)
    embedding.uns |= {**identity, "params": json.dumps(arguments.params, sort_keys=True)}
    check_embedding_fits(embedding, names, str(arguments.embedding))
    report = identity | _report(arguments, embedding.uns["metric"], task, seconds())
    report |= {"commit": checkout, "date": date.today().isoformat()}
    _write_json(arguments.embedding.with_name("run.json"), report)
    if arguments.predictions:
        write_predictions(predictions, arguments.predictions)
    # Last: whoever finds an embedding finds all that belongs to it.
    write_embedding(embedding, arguments.embedding)
    _settings_file(task.checkpoints).unlink(missing_ok=True)


@contextmanager
def _timed(path: Path) -> Iterator[Callable[[], float]]:
    """Count seconds, including those of attempts that were cut short. Even a killed process leaves its count."""
    before = float(path.read_text()) if path.exists() else 0.0
    start, ended = time.perf_counter(), threading.Event()
    end = None

    def seconds() -> float:
        return before + (end or time.perf_counter()) - start

    def note() -> None:
        # A disk that is full, or a folder that the method has removed, is no reason to fail here.
        with suppress(OSError):
            if path.parent.exists():
                with atomic(path) as temporary:
                    temporary.write_text(f"{seconds():.3f}")

    def note_often() -> None:
        while not ended.wait(NOTED_EVERY):
            note()

    clock = threading.Thread(target=note_often, daemon=True)
    clock.start()
    try:
        yield seconds
    finally:
        end = time.perf_counter()
        ended.set()
        clock.join()
        note()


def _by_pairs(embed: Embed, task: Task, arguments: argparse.Namespace) -> tuple[ad.AnnData, dict[str, np.ndarray]]:
    """Run `_embed` for each pair that has training cells in common; leave out the others, with the reason."""
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
        parts[pair], predicted = _embed(embed, part, argparse.Namespace(**vars(arguments) | {"params": params}))
        predictions |= predicted
        task.info[pair] = part.info
    if not parts:
        raise BenchmarkError(f"{arguments.train}: {'; '.join(left_out.values())}; no pair is left to run on")
    embedding = join_pairs(parts)
    embedding.uns["left_out"] = left_out
    return embedding, predictions


def _embed(embed: Embed, task: Task, arguments: argparse.Namespace) -> tuple[ad.AnnData, dict[str, np.ndarray]]:
    """Call the method; return the embedding, with the metric that it chose, and the predictions; both checked."""
    given = {name: cells.obs.copy() for name, cells in task.test.items()}
    returned = _call(embed, task, arguments)
    _check_left_alone(task, given, arguments.method)
    arrays, predictions = returned if isinstance(returned, tuple) else (returned, None)
    predictions = _check_predictions(predictions, task, arguments)
    arrays = check_arrays(arrays, {name: obs.index for name, obs in given.items()}, arguments.method)
    embedding = _embedding(arrays, given)
    embedding.uns["metric"] = task.metric
    return embedding, predictions


def _check_predictions(predictions: Any, task: Task, arguments: argparse.Namespace) -> dict[str, np.ndarray]:
    where = f"embed of {arguments.method} returned"
    if arguments.predictions is None:
        if predictions is not None:
            print("predictions are not kept: the method's YAML does not say predicts: true", flush=True)
        return {}
    if predictions is None:
        raise ContractError(f"{where} no predictions, but its YAML says predicts: true; return embeddings, predictions")
    shapes = {f"{a}2{b}": (task.test[a].n_obs, len(task.targets[b].names)) for a, b in task.directions}
    if not isinstance(predictions, Mapping) or set(predictions) != set(shapes):
        raise ContractError(f"{where} predictions of {list(predictions)}; it must return those of {list(shapes)}")
    arrays = {direction: np.asarray(predictions[direction]) for direction in shapes}
    for direction, array in arrays.items():
        check_prediction(array, shapes[direction], f"{where} predictions: {direction}")
    return {direction: array.astype(np.float32) for direction, array in arrays.items()}


def _call(embed: Embed, task: Task, arguments: argparse.Namespace) -> Any:
    try:
        return embed(task, Params(arguments.params), arguments.seed)
    except SystemExit as end:
        # CLUE ends so at a signal, with its checkpoint written: no fault, since Slurm starts the job again.
        if isinstance(end.code, int) and end.code > 128:
            raise
        # Lightning, which trains MultiVI, has an exception of its own for SIGTERM.
        if type(end) is not SystemExit:
            sys.exit(128 + signal.SIGTERM)
        # Even with status 0 there is no embedding.
        raise ContractError(
            f"embed of {arguments.method} called sys.exit({'' if end.code is None else repr(end.code)});"
            " it must return the embedding or raise an exception"
        ) from end


def _check_left_alone(task: Task, given: Mapping[str, pd.DataFrame], method: str) -> None:
    """Check that a method has left the test cells in their order, since its rows may be in the order that it made."""
    for name, obs in given.items():
        if name in task.test and not task.test[name].obs_names.equals(obs.index):
            raise ContractError(
                f"embed of {method} has filtered, reordered or renamed the cells of task.test[{name!r}]; which row is"
                f" whose cannot be told; work on task.test[{name!r}].copy()"
            )


def _keyed(path: Path) -> tuple[str, ad.AnnData]:
    cells = read_test(path)
    return cells.uns["modality"], cells


# ---- before: device, threads, seeds, checkpoints -------------------------------------------------


def _check_device(device: str) -> None:
    if device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise BenchmarkError("device: the configuration says cuda, but no GPU is seen; set device: cpu or fix the GPU")
    torch.cuda.reset_peak_memory_stats()


def _check_learnable(train: md.MuData, modalities: list[str], path: Path) -> None:
    """Refuse training cells from which no method can learn, before each would fail in words of its own."""
    for modality in modalities:
        counts = train.mod[modality].X
        # n times the sum of squares equals the square of the sum only where all n numbers are equal.
        varies = counts.shape[0] * column_sums(counts, np.square) > column_sums(counts) ** 2
        if varies.sum() < 2:
            raise BenchmarkError(
                f"{path} [{modality}]: {varies.sum()} of {counts.shape[1]} features differ between training cells;"
                " methods need at least two"
            )


def _limit_threads(threads: int) -> None:
    # Libraries that are loaded already are limited by call, those that a method loads later by environment.
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    threadpoolctl.threadpool_limits(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    # Where a method imports torch in `embed` only, its generator would start from a seed of its own.
    if importlib.util.find_spec("torch"):
        import torch

        torch.manual_seed(seed)


def _settings_file(checkpoints: Path) -> Path:
    return checkpoints / "settings.json"


def _checkpoints(arguments: argparse.Namespace) -> Path:
    return arguments.embedding.with_name("checkpoints")


def _prepare_checkpoints(arguments: argparse.Namespace) -> None:
    """Make the folder of checkpoints; drop those of other settings or data, and of a finished run."""
    folder = _checkpoints(arguments)
    stats = {path.name: path.stat() for path in [arguments.train, *arguments.tests] if path.exists()}
    settings = {
        "params": arguments.params,
        "seed": arguments.seed,
        "device": arguments.device,
        "inputs": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()},
    }
    file = _settings_file(folder)
    if not file.exists() or file.read_text() != json.dumps(settings):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        with atomic(file) as temporary:
            temporary.write_text(json.dumps(settings))


# ---- after: checks and files ---------------------------------------------------------------------


def check_arrays(arrays: Any, test: Mapping[str, pd.Index], method: str) -> dict[str, np.ndarray]:
    """Return what a method gave as float32 arrays in the order of `test`, or say what is wrong with it.

    Parameters
    ----------
    arrays
        What the method returned. The rows of a data frame are put in order by the names in its index.
    test
        The names of the test cells of each modality.
    method
        The name of the method, for messages.

    Raises
    ------
    ContractError
        If a modality is missing or unknown, or an array has other rows than the test cells, another
        width than the first, or values that are not finite numbers.
    """
    where = f"embed of {method} returned"
    if not isinstance(arrays, Mapping):
        raise ContractError(f"{where} {type(arrays).__name__}; it must return a dict of modality to array")
    if set(arrays) != set(test):
        raise ContractError(f"{where} {sorted(arrays)} for the modalities {list(test)}")
    checked: dict[str, np.ndarray] = {}
    for modality, cells in test.items():
        array = _array(_in_order(arrays[modality], cells, f"{where} a data frame for {modality}"), where, modality)
        if array.ndim != 2 or array.dtype.kind not in "fiu":
            raise ContractError(f"{where} {array.ndim}-d {array.dtype} for {modality}; give 2-d numbers")
        if len(array) != len(cells):
            raise ContractError(f"{where} {len(array)} rows for {len(cells)} cells of {modality}")
        if array.shape[1] == 0:
            raise ContractError(f"{where} 0 columns for {modality}")
        for first, other in checked.items():
            if array.shape[1] != other.shape[1]:
                raise ContractError(f"{where} {array.shape[1]} columns for {modality}; {first} has {other.shape[1]}")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        bad = int((~np.isfinite(array)).any(axis=1).sum())
        if bad:
            raise ContractError(f"{where} {bad} of {len(array)} rows of {modality} that are not finite in float32")
        checked[modality] = array
    return checked


def _array(values: Any, where: str, modality: str) -> np.ndarray:
    try:
        return values.toarray() if sp.issparse(values) else np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ContractError(f"{where} for {modality} something that is no array: {error}") from error


def _in_order(values: Any, cells: pd.Index, where: str) -> Any:
    """Return values with the rows of a data frame in the order of the cells; one without names is left as it is."""
    if not isinstance(values, pd.DataFrame) or values.index.equals(pd.RangeIndex(len(values))):
        return values
    if not values.index.is_unique or set(values.index) != set(cells):
        raise ContractError(f"{where} whose index does not name its test cells, each once")
    return values.loc[cells]


def _embedding(arrays: dict[str, np.ndarray], given: Mapping[str, pd.DataFrame]) -> ad.AnnData:
    names = np.concatenate([obs.index for obs in given.values()])
    obs = pd.DataFrame(
        {
            "cell": names,
            "modality": np.repeat(list(given), [len(obs) for obs in given.values()]),
            "batch": np.concatenate([obs["batch"].astype(str) for obs in given.values()]),
        },
        index=names,
    )
    return ad.AnnData(np.concatenate(list(arrays.values())), obs=obs)


def _identity(arguments: argparse.Namespace, test: Mapping[str, ad.AnnData]) -> dict[str, Any]:
    first = next(iter(test.values()))
    return {
        "method": arguments.method,
        "variant": arguments.variant,
        "seed": arguments.seed,
        "dataset": str(first.uns.get("dataset", "")),
        "split": str(first.uns.get("split", "")),
    }


def _report(arguments: argparse.Namespace, metric: Any, task: Task, seconds: float) -> dict[str, Any]:
    # counts as the method's own: other methods do all of their work themselves
    shared = sum(part.seconds for part in task.shared)
    return {
        "metric": metric,
        "params": arguments.params,
        "by_pairs": arguments.by_pairs,
        "device": arguments.device,
        "threads": arguments.threads,
        # as Slurm calls the machine where it runs the process
        "host": os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        "seconds": round(seconds + shared, 3),
        "shared_seconds": round(shared, 3),
        "peak_memory_mb": round(max([peak_memory_mb(), *(part.memory_mb for part in task.shared)]), 1),
        "gpu_memory_mb": _gpu_memory_mb(arguments.device),
        "versions": _versions(),
        "info": task.info,
    }


def commit(root: Path = Path(__file__).parents[3]) -> str:
    """Return git's short hash of the checkout that runs, ``-dirty`` with changes; empty where there is no git.

    Changes of documents do not count: they change no result.
    """
    git = ["git", "-C", str(root)]
    head = ["rev-parse", "--short", "HEAD"]
    changes = ["diff", "--quiet", "HEAD", "--", ".", ":!docs", ":!*.md"]
    try:
        found = subprocess.run([*git, *head], capture_output=True, text=True, check=True).stdout.strip()
        return found + ("-dirty" if subprocess.run([*git, *changes], capture_output=True).returncode else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _gpu_memory_mb(device: str) -> float | None:
    return round(sys.modules["torch"].cuda.max_memory_allocated() / 1e6, 1) if device == "cuda" else None


def _versions() -> dict[str, str]:
    imported = [package for module, package in REPORTED_IF_IMPORTED.items() if module in sys.modules]
    versions = {"python": platform.python_version()}
    for package in (*REPORTED_PACKAGES, *imported):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            # The library runs from a checkout that is on the path but not installed.
            versions[package] = "not installed"
    return versions


def _write_failure(path: Path, reason: str) -> None:
    _write_json(path, {"error": one_line(reason)})


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """Turn numpy's numbers and arrays, which methods like to put into `info`, into Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value)
