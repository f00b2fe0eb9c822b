"""What tests of several files do: call what must fail, wait, prepare raw files, give a method its task."""

import time
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pytest

from clue.benchmark.contracts import write_test, write_train
from clue.benchmark.data.download import download
from clue.benchmark.data.prepare import prepare
from clue.benchmark.data.task import make_task
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import Task


def one_line_error(call: Callable, *given, error: type[Exception] = BenchmarkError, **options) -> str:
    """Return the message of the error that a call must raise; it must be one line."""
    with pytest.raises(error) as raised:
        call(*given, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for a condition, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def two_views(n: int, width: int = 6, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return two embeddings of the same cells that differ by noise."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((n, width))
    return tuple((shared + noise * rng.standard_normal((n, width))).astype(np.float32) for _ in range(2))


def task_of(cells: md.MuData, folder: Path, **split) -> Task:
    """Return the task of a random split of some cells, as a method receives it."""
    parts = make_task(cells, "tiny", "random", {"kind": "random", "fraction": 0.25, "seed": 0} | split)
    return Task(parts.train, parts.tests, device="cpu", threads=1, checkpoints=folder)


def prepare_files(name: str, spec: dict, folder: Path) -> md.MuData:
    """Prepare raw files that are in a folder, as after a download."""
    download(name, spec, folder, root=folder)
    return prepare(name, spec, folder)


def files_of(folder: Path) -> dict:
    """Return the source of a data set: all files in a folder."""
    files = sorted(path.name for path in folder.iterdir() if path.name not in (".lock", "source.json"))
    return {"kind": "files", "folder": ".", "files": files}


def method_arguments(folder: Path, train: md.MuData, tests: dict[str, ad.AnnData], **options) -> list[str]:
    """Write the input files of a method to a folder; return the arguments of its program, which writes there too."""
    write_train(train, folder / "train.h5mu")
    for name, cells in tests.items():
        write_test(cells, folder / f"test_{name}.h5ad")
    return arguments_for_files(folder, tests, **options)


def arguments_for_files(folder: Path, modalities, **options) -> list[str]:
    """Return the arguments of a method's program for the input files in a folder."""
    given = {"train": folder / "train.h5mu", "embedding": folder / "embedding.h5ad", "method": "my_method"}
    given |= {"variant": "default", "seed": 0, "params": "{}", "device": "cpu", "threads": 1} | options
    words = ["--tests", *(folder / f"test_{name}.h5ad" for name in modalities)]
    return [str(word) for word in [*words, *(word for key, value in given.items() for word in (f"--{key}", value))]]
