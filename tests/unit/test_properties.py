"""Any input works, or one line says what is wrong. Inputs are drawn by hypothesis, the same in every run."""

import copy
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.io import mmwrite

from clue.benchmark.config import Benchmark, ConfigError, read_yaml
from clue.benchmark.contracts import read_dataset, write_dataset
from clue.benchmark.data.download import download
from clue.benchmark.data.prepare import prepare
from clue.benchmark.errors import BenchmarkError

ROOT = Path(__file__).parents[2]
FIXTURES = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def examples(number):
    return settings(max_examples=number, deadline=None, derandomize=True, suppress_health_check=FIXTURES)


pytestmark = pytest.mark.filterwarnings("ignore")


# ---- configuration -------------------------------------------------------------------------------

WORDS = ["rna", "atac", "adt", "random", "donors", "all", "1e5", "", "/x", "../y", "a b", "~", "quick"]
KEYS = st.one_of(st.text(max_size=6), st.integers(), st.booleans(), st.dates())
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.sampled_from(WORDS)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


def places(data, before=()):
    """Return the path of every value within mappings and lists."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in inner for place in [(*before, key), *places(value, (*before, key))]]


@st.composite
def changed(draw, kind):
    """Return one of the project's files with some values replaced, removed or added."""
    files = sorted(ROOT.glob(f"config/{kind}/*.yaml" if kind else "config/*.yaml"))
    data = yaml.safe_load(draw(st.sampled_from([file for file in files if file.name != "display.yaml"])).read_text())
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from(places(data) or [("run",)]))
        inner = data
        for part in path:
            inner = inner[part]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "remove":
            inner.pop(key, None) if isinstance(inner, dict) else inner.pop(key)
        else:
            inner[draw(KEYS) if change == "add" and isinstance(inner, dict) else key] = copy.deepcopy(draw(VALUES))
    return data


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A folder with everything that a configuration names."""
    folder = tmp_path_factory.mktemp("project")
    for part in ("config", "scripts/methods", "rules/methods"):
        shutil.copytree(ROOT / part, folder / part)
    return folder


def plan(folder, text, kind=""):
    """Plan a run with a file of this text; an error must be one line."""
    path = folder / "config" / kind / "drawn.yaml"
    path.write_bytes(text)
    run = {"run": "x", "datasets": ["simulated"], "methods": ["random"], "seeds": [0]}
    try:
        benchmark = Benchmark(read_yaml(path) if not kind else run | {kind: ["drawn"]}, folder, str(path))
        for job in benchmark.plan():
            if not job.reason and job.method != "oracle":
                benchmark.params(job.method, job.variant, benchmark.datasets[job.dataset]["modalities"])
                benchmark.gpus(job.method)
    except ConfigError as error:
        assert "\n" not in str(error)


@examples(300)
@given(st.binary(max_size=60) | st.text("ab:{}[]&*!|>-# \n'\"1.<~?,%@`é\t", max_size=60).map(str.encode))
def test_any_bytes_as_a_configuration(copied, text):
    try:
        path = copied / "drawn.yaml"
        path.write_bytes(text)
        read_yaml(path)
    except ConfigError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@pytest.mark.parametrize("kind", ["", "datasets", "methods"])
@examples(25)
@given(st.data())
def test_changed_configurations(copied, kind, data):
    plan(copied, yaml.safe_dump(data.draw(changed(kind)), allow_unicode=True).encode(), kind)


# ---- data ----------------------------------------------------------------------------------------

COUNTS = npst.arrays(
    st.sampled_from([np.float32, np.float64, np.int8, np.int64, np.uint16, np.bool_, np.float16]),
    st.tuples(st.integers(1, 6), st.integers(1, 4)),
    elements={"allow_nan": True},
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)
LABELS = st.lists(TEXT | st.none() | st.integers() | st.floats() | st.booleans(), min_size=6, max_size=6)


def prepared(folder, files, settings, modalities=("rna", "adt")):
    """Return the prepared data set, written and read again; None if one line refuses it."""
    spec = {"modalities": list(modalities), "source": {"kind": "files", "folder": ".", "files": files}, "splits": {}}
    spec["prepare"] = settings
    try:
        download("drawn", spec, folder / "raw", root=folder)
        write_dataset(prepare("drawn", spec, folder / "raw"), folder / "all.h5mu")
        return read_dataset(folder / "all.h5mu")
    except BenchmarkError as error:
        assert "\n" not in str(error) and str(error)
        return None


def names(n):
    return st.lists(TEXT, min_size=n, max_size=n, unique=True)


@examples(40)
@given(COUNTS, st.sampled_from([np.asarray, sp.csr_matrix, sp.csc_matrix]), LABELS, st.data())
def test_any_matrix_and_labels(tmp_path, values, form, labels, data):
    cells = [f"c{i}" for i in range(len(values))]
    try:
        obs = pd.DataFrame({"mine": labels[: len(cells)]}, index=cells)
        other = ad.AnnData(np.arange(2.0 * len(cells)).reshape(-1, 2) + 1, obs=obs[[]])
        other.write_h5ad(tmp_path / "adt.h5ad")
        ad.AnnData(form(values), obs=obs).write_h5ad(tmp_path / "rna.h5ad")
    except (TypeError, ValueError):
        return  # anndata cannot write such a file
    own = {"kind": "own", "files": {"rna": "rna.h5ad", "adt": "adt.h5ad"}, "batch": "mine"}
    if mdata := prepared(tmp_path, ["rna.h5ad", "adt.h5ad"], own):
        kept = values.astype(np.float64)
        assert (mdata.mod["rna"].X.toarray() == kept[:, kept.any(axis=0)].astype(np.float32)).all()
        assert (mdata.mod["adt"].obs["batch"].astype(str) == obs["mine"].astype(str)).all()


@examples(40)
@given(st.integers(1, 5).flatmap(names), st.integers(1, 5).flatmap(names), st.data())
def test_any_names_in_a_folder_of_cell_ranger(tmp_path, cells, genes, data):
    kinds = st.sampled_from(["Gene Expression", "Antibody Capture"])
    types = data.draw(st.lists(kinds, min_size=len(genes), max_size=len(genes)))
    counts = np.arange(1, len(cells) * len(genes) + 1).reshape(len(genes), len(cells))
    mmwrite(tmp_path / "matrix.mtx", sp.coo_matrix(counts))
    lines = [f"{name}\t{name}\t{kind}" for name, kind in zip(genes, types, strict=True)]
    (tmp_path / "features.tsv").write_bytes("\n".join(lines).encode())
    (tmp_path / "barcodes.tsv").write_bytes("\n".join(cells).encode())
    files = ["matrix.mtx", "features.tsv", "barcodes.tsv"]
    mdata = prepared(tmp_path, files, {"kind": "tenx", "samples": {"one": ""}})
    # with one of these in a name, the files mean something else
    if mdata and not set('\t\n\r"\ufeff') & set("".join(cells + genes)):
        assert list(mdata.obs_names) == cells
        assert sum(adata.X.sum() for adata in mdata.mod.values()) == counts.sum()
