"""Cells pass through R unchanged; anything wrong with R, or in it, becomes one line."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import psutil
import pytest
import scipy.sparse as sp
from helpers import method_arguments, task_of, wait_until

from clue.benchmark.config import Benchmark, load
from clue.benchmark.contracts import metric_of, read_embedding
from clue.benchmark.data.task import make_task
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import r, run_method
from clue.benchmark.running import machine
from clue.matching import match_snn
from clue.metrics import foscttm, match_score
from clue.simulate import simulate
from scripts.methods import seurat_bridge

ROOT = Path(__file__).parents[2]
HDF5 = ("hdf5r", "jsonlite")
HEAD = """
library(hdf5r)
options(error = function() { writeLines(geterrmessage(), "error.txt"); quit(status = 1) })
input <- H5File$new("input.h5", "r")
params <- jsonlite::read_json("params.json", simplifyVector = TRUE)
"""


@pytest.fixture(scope="module")
def real_r():
    """Skip if no R has what the Seurat bridge needs."""
    try:
        machine.find_r(seurat_bridge.R_PACKAGES)
    except BenchmarkError as error:
        pytest.skip(str(error))


def counts(n_cells=7, n_features=5):
    """Return raw counts with an empty cell, an empty feature, and columns out of order."""
    values = np.random.default_rng(0).poisson(1, (n_cells, n_features))
    values[2], values[:, 3] = 0, 0
    matrix = sp.csr_matrix(values.astype(np.float32))
    rows = [(matrix.indices[a:b][::-1], matrix.data[a:b][::-1]) for a, b in pairwise(matrix.indptr)]
    matrix.indices, matrix.data = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    matrix.has_sorted_indices = False
    return ad.AnnData(matrix), values


def script(folder, body, head=HEAD):
    """Write an R script."""
    path = folder / "test.R"
    path.write_text(head + body)
    return path


# ---- the exchange --------------------------------------------------------------------------------


def test_counts_are_written_row_by_row_and_sorted(tmp_path):
    cells, values = counts()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        r.write_counts(file.create_group("x"), cells)
        parts = {key: file["x"][key][()] for key in file["x"]}
    assert parts["shape"].tolist() == [7, 5]
    # As R reads them: columns are cells.
    columns = sp.csc_matrix((parts["data"], parts["indices"], parts["indptr"]), shape=(5, 7))
    np.testing.assert_array_equal(columns.toarray(), values.T)
    assert all((np.diff(parts["indices"][a:b]) > 0).all() for a, b in pairwise(parts["indptr"]))


def test_r_reads_the_counts_and_python_reads_the_answer(real_r, tmp_path):
    cells, values = counts()
    body = """
    part <- function(key) input[[paste0("cells/", key)]][]
    shape <- part("shape")
    counts <- new(Class = structure("dgCMatrix", package = "Matrix"), i = part("indices"), p = part("indptr"),
                  x = part("data"), Dim = rev(shape))
    output <- H5File$new("output.h5", "w")
    output[["twice"]] <- params$factor * as.matrix(Matrix::t(counts))
    output$close_all()
    jsonlite::write_json(list(text = params$text, cells = ncol(counts)), "info.json", auto_unbox = TRUE)
    """
    given = {"factor": 2, "text": "a 'quoted' \"line\" – ü"}
    arrays, info = r.run_r(script(tmp_path, body, "library(Matrix)" + HEAD), {"cells": cells}, given, HDF5)
    np.testing.assert_array_equal(arrays["twice"], 2 * values)
    assert info == {"text": given["text"], "cells": 7}


# ---- what goes wrong -----------------------------------------------------------------------------


def test_yaml_requires_the_packages_of_the_program():
    assert load("methods", "seurat_bridge", ROOT)["requires"]["r"] == list(seurat_bridge.R_PACKAGES)


def test_no_r_at_all_is_one_line_with_both_remedies(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "OWN", tmp_path / "Rscript")
    with pytest.raises(BenchmarkError) as caught:
        machine.find_r(["Seurat>=5.0.0"])
    message = str(caught.value)
    assert "Rscript on the path: not there" in message and f"{tmp_path / 'Rscript'}: not there" in message
    assert "make r" in message and "envs/seurat.yaml" in message and "\n" not in message


def test_missing_packages_of_an_r(real_r):
    rscript = machine.find_r(HDF5)
    assert machine.lacking(rscript, ["Seurat>=5.0.0", "hdf5r", "jsonlite"]) == ""
    lacks = machine.lacking(rscript, ["hdf5r>=99.10", "jsonlite>=1.0", "nosuch", "other>=2"])
    assert re.fullmatch(r"hdf5r [0-9.]+ is too old; no package nosuch; no package other", lacks)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("echo no package Seurat", "no package Seurat"),
        ("echo Loading >&2; echo libR.so: not found >&2; exit 127", "cannot be run (libR.so: not found)"),
        ("echo a warning of the locale >&2", ""),
    ],
)
def test_rscript_on_the_path_is_used_if_it_has_the_packages(program, reason, tmp_path, monkeypatch):
    fake = tmp_path / "Rscript"
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "OWN", tmp_path / "own" / "Rscript")
    if not reason:
        assert machine.find_r(["Seurat>=5.0.0"]) == str(fake)
    else:
        with pytest.raises(
            BenchmarkError, match=re.escape(f"(Rscript on the path: {reason}; {machine.OWN}: not there)")
        ):
            machine.find_r(["Seurat>=5.0.0"])


def test_error_in_r_is_passed_on(real_r, tmp_path):
    cells, _ = counts()
    with pytest.raises(BenchmarkError) as caught:
        r.run_r(script(tmp_path, 'f <- function() stop("two\nlines, 5 cells")\nf()'), {"cells": cells}, {}, HDF5)
    assert str(caught.value) == "test.R: Error in f() : two lines, 5 cells"


def test_killed_r_is_named(real_r, tmp_path):
    cells, _ = counts()
    with pytest.raises(BenchmarkError, match="ended by SIGKILL: out of memory?"):
        r.run_r(script(tmp_path, "tools::pskill(Sys.getpid(), tools::SIGKILL)"), {"cells": cells}, {}, HDF5)


def test_r_ends_with_the_program_that_called_it(real_r, tmp_path):
    rscript = machine.find_r(HDF5)
    if rscript != str(machine.OWN):
        pytest.skip("R is on the path; ending it is left to the scheduler")
    code = f"import subprocess; subprocess.run([{rscript!r}, '-e', 'file.create(\"started\"); Sys.sleep(100)'])"
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    wait_until(lambda: (tmp_path / "started").exists(), seconds=60)
    (child,) = psutil.Process(caller.pid).children()
    caller.kill()
    caller.wait()
    wait_until(lambda: not child.is_running(), seconds=10)


def test_make_r_refuses_an_incomplete_or_outdated_folder(tmp_path):
    """A complete folder records what it was made from; any other does not let `make r` do without Debian and root."""
    etc = tmp_path / "root" / "etc"
    etc.mkdir(parents=True)
    (etc / "packages.lock").write_text("r-cran-seurat 5.2.1-5\n")
    recipe = ROOT / "tools" / "r-root.sh"
    constants = re.search(r"^SUITE=.*?\)$", recipe.read_text(), re.DOTALL | re.MULTILINE)[0]
    print_them = f'{constants}; echo "$SUITE $PACKAGES ${{LEFT_OUT[*]}}"'
    made_from = subprocess.run(["bash", "-c", print_them], capture_output=True, text=True, check=True).stdout
    no_apt = {"PATH": str(tools(tmp_path / "bin", "bash", "cat", "dirname", "install", "awk", "grep", "id"))}
    for content, status in (("other", 1), (made_from, 0)):
        (etc / "made-from").write_text(content)
        ended = subprocess.run([recipe, tmp_path], env=no_apt, capture_output=True, text=True, check=False)
        assert ended.returncode == status, ended.stderr
        assert (tmp_path / "Rscript").exists() == (status == 0)
    assert "5.2.1-5 is there already" in ended.stdout


def test_make_r_says_in_one_line_why_it_cannot_run(tmp_path):
    no_apt = {"PATH": str(tools(tmp_path / "bin", "bash", "cat", "awk", "grep", "id"))}
    recipe = ROOT / "tools" / "r-root.sh"
    ended = subprocess.run([recipe, tmp_path / "r"], env=no_apt, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and not (tmp_path / "r").exists()
    assert ended.stderr.count("\n") == 1 and "envs/seurat.yaml" in ended.stderr
    assert ended.stderr.startswith(("make r: this is not Debian", "make r: there is no apt-get"))


def tools(folder, *names):
    """Make a folder with only these programs."""
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(f"/usr/bin/{name}")
    return folder


# ---- the Seurat bridge ---------------------------------------------------------------------------

PARAMS = {"transductive": True, "space": ["direct", "integrated"], "metric": ["cosine", "euclidean"]}
PARAMS |= {"n_folds": 1, "max_held_out": 2000}
PARAMS |= {"normalization": "LogNormalize", "n_genes": 3000, "n_pcs": 30, "k_weight": 100, "max_bridge_cells": 300}
PRESETS = {"adt": {"supervised": False, "n_query": 30}, "atac": {"supervised": True, "n_query": 30}}


def run_bridge(folder, second, test_cells=150, n_cells=600, **params):
    """Run the program on simulated data; return the embedding, ``run.json`` and the solution."""
    split = {"kind": "random", "fraction": test_cells / n_cells, "seed": 0}
    data = simulate(n_cells, {"rna": 300, second: 25 if second == "adt" else 400}, seed=0)
    task = make_task(data, "simulated", "random", split)
    params = json.dumps(PARAMS | PRESETS[second] | params)
    run_method(seurat_bridge.embed, method_arguments(folder, task.train, task.tests, params=params))
    return read_embedding(folder / "embedding.h5ad"), json.loads((folder / "run.json").read_text()), task.solution


@pytest.mark.slow
@pytest.mark.parametrize(
    ("second", "params"),
    [
        ("adt", {}),
        ("atac", {}),
        ("adt", {"supervised": True, "normalization": "SCT", "space": ["integrated"], "metric": ["euclidean"]}),
        ("atac", {"supervised": False, "normalization": "SCT", "space": ["direct"], "metric": ["cosine"]}),
    ],
)
def test_bridge_recovers_simulated_pairs(real_r, second, params, tmp_path):
    embedding, report, solution = run_bridge(tmp_path, second, **params)
    x, y, truth = paired_rows(embedding, solution, second)
    metric = metric_of(embedding)
    assert match_score(match_snn(x, y, metric=metric), truth) > 5 / len(x)  # chance: 1 / len(x)
    # Chance is 0.5 with a standard deviation below 0.02; how much better depends on the space.
    assert np.mean(foscttm(x, y[truth], metric)) < 0.3
    info = report["info"]
    assert info["n_bridge"] == 300 and info["n_bridge_available"] == 450
    assert int(info["seurat"].split(".")[0]) >= 5 and info["r"]
    assert info["chosen"]["metric"] == metric
    assert len(info.get("inner_validation", [])) == (0 if "space" in params else 4)
    # That of R, the largest process.
    assert report["peak_memory_mb"] > 250


def paired_rows(embedding, solution, second):
    """Return both modalities' rows, and for each row of the first the position of its partner."""
    parts = {name: embedding[(embedding.obs["modality"] == name).to_numpy()] for name in ("rna", second)}
    partner = pd.Series(solution.obs[second].to_numpy(), index=solution.obs["rna"])
    truth = parts[second].obs_names.get_indexer(partner[parts["rna"].obs_names])
    return parts["rna"].X, parts[second].X, truth


def test_too_few_cells_are_reported_before_r_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(r, "find_r", lambda *_: pytest.fail("R was looked for"))
    with pytest.raises(SystemExit, match="reference has 40 cells, Seurat needs 60"):
        run_bridge(tmp_path, "adt", test_cells=40, n_cells=300, space=["direct"], metric=["cosine"])
    assert "Seurat needs 60" in json.loads((tmp_path / "failure.json").read_text())["error"]


@pytest.mark.slow
def test_first_space_is_used_with_too_few_cells_to_choose(real_r, tmp_path):
    _, report, _ = run_bridge(tmp_path, "adt", test_cells=80, n_cells=200)
    assert report["info"]["chosen"] == {"space": "direct", "metric": "cosine"}
    assert report["info"]["inner_validation"] == (
        "not possible with some cells held out: reference has 31 cells, Seurat needs 60; give more cells"
    )


def test_space_and_metric_are_chosen_together_on_held_out_cells(tmp_path, monkeypatch):
    """Without R: one space has noise, the other partners that only their lengths identify."""
    given = task_of(simulate(120, {"rna": 8, "adt": 5}, seed=0), tmp_path, fraction=0.5)
    length = {name: 1.0 + i for i, name in enumerate(given.train["rna"].obs_names)}

    def integrate(paired, cells, params, seed):
        rng = np.random.default_rng(seed)
        by_length = {k: np.outer([length.get(name, 1.0) for name in a.obs_names], [1, 2]) for k, a in cells.items()}
        return {"direct": {k: rng.normal(size=(a.n_obs, 2)) for k, a in cells.items()}, "integrated": by_length}, {}

    monkeypatch.setattr(seurat_bridge, "integrate", integrate)
    embedded = seurat_bridge.embed(given, PARAMS, seed=0)
    assert given.info["chosen"] == {"space": "integrated", "metric": "euclidean"} and given.metric == "euclidean"
    assert len(given.info["inner_validation"]) == 4
    assert np.array_equal(embedded["rna"], np.outer(np.ones(given.test["rna"].n_obs), [1, 2]))


def test_bridge_is_capped_only_for_accessibility():
    config = {"run": "x", "datasets": ["simulated"], "methods": ["seurat_bridge"], "seeds": [0]}
    benchmark = Benchmark(config, ROOT)
    caps = {k: benchmark.params("seurat_bridge", "default", ["rna", k])["max_bridge_cells"] for k in ("atac", "adt")}
    assert caps == {"atac": 20_000, "adt": None}
    # The dense matrices of the supervised LSI: 24 GB for 20,000 cells, growing with their square.
    assert 24 * (caps["atac"] / 20_000) ** 2 < benchmark.methods["seurat_bridge"]["resources"]["mem_gb"]


def test_bridge_cells_are_drawn_in_pairs_and_in_order():
    paired = dict(simulate(50, {"rna": 5, "adt": 4}, seed=0).mod)
    kept = seurat_bridge.subsample(paired, 20, seed=1)
    assert kept["rna"].obs_names.equals(kept["adt"].obs_names) and kept["rna"].n_obs == 20
    assert kept["rna"].obs_names.equals(paired["rna"].obs_names[paired["rna"].obs_names.isin(kept["rna"].obs_names)])
    assert seurat_bridge.subsample(paired, 50, seed=1) is paired
    assert seurat_bridge.subsample(paired, None, seed=1) is paired


def test_no_more_components_than_observed_features():
    cells, _ = counts(n_cells=90, n_features=9)
    parts, params = {"reference": cells, "bridge_query": cells}, {"n_genes": 3000, "n_pcs": 50, "n_query": 3}
    limits = seurat_bridge.limits(parts, params)
    assert limits == {"n_pcs": 7, "n_query": 3}
