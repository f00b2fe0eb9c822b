"""Every method of ``config/methods``, run as by the workflow, on a tiny task; ``make check-method NAME=…`` for one.

The task has what real ones have: training cells seen in only one modality, donors, a feature that no training
cell has. Hyper-parameters are those of the budget `test` in the method's YAML, which also sets the number of cells.
A method that needs an R or a package that is not installed is skipped; ``make check-method`` says what is missing.
"""

import json
import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import yaml
from helpers import arguments_for_files

from clue.benchmark.config import ALL_SETS, Benchmark, load, read_yaml
from clue.benchmark.contracts import read_arrays, read_embedding, write_test, write_train
from clue.benchmark.data.task import make_task
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.running.machine import unavailable
from clue.simulate import simulate

ROOT = Path(__file__).parents[2]
N_FEATURES = {"rna": 60, "atac": 80, "adt": 20}
SETS = (("rna", "atac"), ("rna", "adt"), ("atac", "adt"), ("rna", "atac", "adt"))
SPLIT = {"kind": "random", "fraction": 0.25, "seed": 0, "paired_fraction": 0.8}
COPIES = {0: 7, 3: 16}
"""Test cells, and the rows of their copies in the same file. No copies are there if the rows are reversed or moved."""
CHECKED = os.environ.get("CHECK_METHOD")


def fault(name):
    """Return in one line why a method cannot be checked; empty if it can."""
    try:
        spec = load("methods", name, ROOT)
    except BenchmarkError as error:
        return str(error).replace(f"{ROOT}/", "")
    where = f"config/methods/{name}.yaml"
    if "script" not in spec:
        return f"{where}: names no script, so {name} has a rule of its own, which this check does not run"
    if "transductive" not in spec["params"] and not any("transductive" in each for each in spec["presets"].values()):
        return f"{where}: params: say whether it trains on test cells: transductive: true, or false"
    missing = unavailable({name: spec})
    return f"{where}: requires: {missing[name]}" if missing else ""


if __name__ == "__main__":
    sys.exit(f"error: {reason}" if (reason := fault(CHECKED)) else 0)

ADD = "install it, and add it to requires: {{python: […]}} in config/methods/{}.yaml"

FILES = sorted((ROOT / "config" / "methods").glob("*.yaml"))
# Any other method has a rule of its own, with more inputs than a task.
METHODS = [CHECKED] if CHECKED else [path.stem for path in FILES if "script" in read_yaml(path)]


def sets_of(method):
    """Return the sets of modalities that a method's YAML names."""
    named = read_yaml(ROOT / "config" / "methods" / f"{method}.yaml").get("modalities", [])
    return ALL_SETS if named == "any" else named


CASES = [
    pytest.param(name, tuple(modalities), id=f"{name}-{'+'.join(modalities)}")
    for name in METHODS
    for modalities in sets_of(name)
]
LISTED = read_yaml(ROOT / "config" / "display.yaml")["methods"]
CONTROLS = [name for name, entry in LISTED.items() if entry.get("control")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with these methods, and one data set for each set of modalities, named after it."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "config" / "datasets").mkdir(parents=True)
    for part in ("config/schemas", "config/methods", "scripts"):
        (folder / part).symlink_to(ROOT / part)
    for modalities in SETS:
        spec = {"label": "Tiny", "modalities": list(modalities), "splits": {"random25": SPLIT}}
        spec["source"] = {"kind": "simulated"}
        spec["prepare"] = {"kind": "simulated", "arguments": arguments(modalities, 160)}
        (folder / "config" / "datasets" / f"{'_'.join(modalities)}.yaml").write_text(yaml.safe_dump(spec))
    return folder


@pytest.fixture(scope="module")
def task_files(tmp_path_factory):
    """A function that writes the files of a tiny task, once per set of modalities and number of cells."""
    made = {}

    def make(modalities, n_cells):
        key = (modalities, n_cells)
        if key not in made:
            made[key] = write_task(modalities, n_cells, tmp_path_factory.mktemp("_".join(modalities)))
        return made[key]

    return make


def arguments(modalities, n_cells):
    """Return the arguments of the simulation."""
    return {"n_cells": n_cells, "n_features": {name: N_FEATURES[name] for name in modalities}, "seed": 1}


def write_task(modalities, n_cells, folder):
    """Write the files of a task; a quarter of its cells are test cells."""
    task = make_task(simulate(**arguments(modalities, n_cells)), "tiny", "random25", SPLIT)
    for adata in task.train.mod.values():
        counts = adata.X.toarray()
        counts[:, 5] = 0
        adata.X = sp.csr_matrix(counts)
    write_train(task.train, folder / "train.h5mu")
    for name, adata in task.tests.items():
        counts, batch = adata.X.toarray(), adata.obs["batch"].to_numpy().copy()
        for cell, copy in COPIES.items():
            counts[copy], batch[copy] = counts[cell], batch[cell]
        adata.X, adata.obs["batch"] = sp.csr_matrix(counts), batch
        write_test(adata, folder / f"test_{name}.h5ad")
    return folder


@pytest.fixture
def run_program(project, task_files, tmp_path, monkeypatch):
    """A function that runs a method's program; it returns the embedding and ``run.json``."""

    def run(method, modalities, attempt=1):
        benchmark = plan(project, f"{method}/default", modalities)
        spec = benchmark.methods[method]
        script = ROOT / "scripts" / "methods" / spec["script"]
        params = benchmark.params(method, "default", list(modalities))
        skip_without_software(method, spec, script)
        files = task_files(modalities, spec["test_cells"])
        output = tmp_path / str(attempt) / "embedding.h5ad"
        options = {"embedding": output, "method": method, "params": json.dumps(params)}
        options |= {"predictions": output.with_name("predictions.npz")} if spec["predicts"] else {}
        monkeypatch.setattr(sys, "argv", [str(script), *arguments_for_files(files, modalities, **options)])
        status = 0
        monkeypatch.chdir(tmp_path)  # a program may change the working directory; each test starts in its own
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            status = end.code
        failure = output.with_name("failure.json")
        reason = json.loads(failure.read_text())["error"] if failure.exists() else f"exit status {status}"
        fix = f"; {ADD.format(method)}" if reason.startswith("ModuleNotFoundError") else ""
        ensure(not status, f"{script.name} failed on {'+'.join(modalities)}: {reason}{fix}")
        ensure(output.exists(), f"{script.name} ended well but wrote no embedding: does it call run_method?")
        if spec["predicts"]:
            check_predictions(read_arrays(output.with_name("predictions.npz")), method, modalities)
        return read_embedding(output), json.loads(output.with_name("run.json").read_text())

    return run


def plan(project, method, modalities):
    """Return the benchmark of one method on one data set."""
    config = {"run": "check", "datasets": ["_".join(modalities)], "methods": [method], "seeds": [0], "budget": "test"}
    try:
        return Benchmark(config, project, f"check of {method}")
    except BenchmarkError as error:
        reason = str(error)
    pytest.fail(reason, pytrace=False)


def skip_without_software(method, spec, script):
    """Skip if a method's requirements are missing, or its program's `check_installed` fails."""
    if missing := unavailable({method: spec}):
        pytest.skip(missing[method])
    reason = ""
    try:
        names = runpy.run_path(str(script))
        if "check_installed" in names:
            names["check_installed"]()
    except BenchmarkError as error:
        reason = str(error)
    except ModuleNotFoundError as error:
        pytest.fail(f"{script.name}: {error}; {ADD.format(method)}", pytrace=False)
    ensure(not (reason and CHECKED), reason)
    if reason:
        pytest.skip(reason)


def ensure(condition, message):
    """Fail with a sentence for the method's author instead of a traceback."""
    if not condition:
        pytest.fail(message, pytrace=False)


@pytest.mark.parametrize(("method", "modalities"), CASES)
def test_embeds_the_test_cells(method, modalities, run_program, project):
    embedding, report = run_program(method, modalities)
    where = f"{method} on {'+'.join(modalities)}"
    n_test = plan(project, method, modalities).methods[method]["test_cells"] // 4
    ensure(embedding.n_obs == n_test * len(modalities), f"{where}: {embedding.n_obs} rows, not one per test cell")
    ensure(list(dict.fromkeys(embedding.obs["modality"])) == list(modalities), f"{where}: modalities out of order")
    ensure(np.isfinite(embedding.X).all(), f"{where}: NaN or infinite values")
    ensure(report["method"] == method and report["device"] == "cpu", f"{where}: run.json is of another run")
    if method not in CONTROLS:
        check_rows(embedding, modalities, where)
    if read_yaml(ROOT / "config" / "methods" / f"{method}.yaml").get("deterministic", True):
        again, _ = run_program(method, modalities, attempt=2)
        ensure(
            np.array_equal(embedding.X, again.X),
            f"{where}: the same seed gave another embedding; seed every generator, or say deterministic: false",
        )


def check_predictions(predictions, method, modalities):
    """Copies of a cell must have the same prediction, other cells different ones: else rows are out of order."""
    for direction, values in predictions.items():
        where = f"{method} on {'+'.join(modalities)}: predictions: {direction}"
        first, second = COPIES
        for cell, copy in COPIES.items():
            same = np.allclose(values[cell], values[copy], atol=1e-3)
            ensure(same, f"{where}: rows {cell} and {copy} are of copies, but differ; is the order kept?")
        differ = not np.allclose(values[first], values[second], atol=1e-3)
        ensure(differ or method in CONTROLS, f"{where}: rows {first} and {second} are of different cells, but equal")


def check_rows(embedding, modalities, where):
    """Copies of a cell must be where the cell is, and other cells elsewhere: else rows are out of order."""
    for name in modalities:
        x = embedding.X[(embedding.obs["modality"] == name).to_numpy()]
        spread = np.linalg.norm(x - x.mean(axis=0), axis=1).mean()
        ensure(spread > 0, f"{where}: all {name} cells have one embedding")
        for cell, copy in COPIES.items():
            apart = np.linalg.norm(x[cell] - x[copy]) / spread
            ensure(apart < 0.01, f"{where}: rows {cell} and {copy} of {name} are copies, but apart; is the order kept?")
        first, second = COPIES
        apart = np.linalg.norm(x[first] - x[second]) / spread
        ensure(apart > 0.01, f"{where}: rows {first} and {second} of {name} are different cells with one embedding")


@pytest.mark.parametrize("method", METHODS)
def test_files_named_in_the_yaml_exist(method, project):
    spec = plan(project, method, SETS[0]).methods[method]
    where = f"config/methods/{method}.yaml"
    ensure((ROOT / "envs" / f"{spec['env']}.yaml").exists(), f"{where}: env: no file envs/{spec['env']}.yaml")
    ensure(spec["settings"], f"{where}: settings: say where they come from, or what they were chosen on")
    for pattern in spec["sources"]:
        ensure(any(ROOT.glob(pattern)), f"{where}: sources: no file matches {pattern}")
