"""Encoder inputs fitted once for several methods: same results, same costs and same errors as without sharing."""

import json

import numpy as np
import pytest
import yaml
from helpers import method_arguments, task_of

from clue.benchmark.config import Benchmark, ConfigError, features_name, load
from clue.benchmark.contracts import read_embedding
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods import run_method
from clue.benchmark.methods.features import Fitted, fit_features, fit_for_file, read_features, write_features
from clue.simulate import simulate

SETTINGS = {"n_components": 8, "n_features": {"rna": 30}}


@pytest.fixture
def cells():
    """Cells of which 90 are for training and 30 for the test."""
    return simulate(120, {"rna": 40, "atac": 50}, n_batches=2, seed=2)


def fitted_files(task, folder, params, *names):
    """Fit to files; return these in the form of `Task.features`."""
    files = {}
    for which in names:
        files[features_name(which, params)] = path = folder / f"{features_name(which, params)}.npz"
        write_features(fit_for_file(which, task.train, task.test, params), path)
    return files


@pytest.mark.parametrize(
    "method, names",
    [("clue_model", ["with_test"]), ("cca", ["paired", "fold-1", "fold-2"]), ("ridge", ["paired", "fold-1", "fold-2"])]
    + [("contrastive", ["fold-1"])],
)
def test_method_gives_the_same_with_and_without_files(scripts, project, cells, tmp_path, method, names):
    spec = {"run": "r", "datasets": ["pbmc_multiome"], "methods": [method.removesuffix("_model")], "budget": "test"}
    benchmark = Benchmark(spec | {"seeds": [1]}, project)
    params = benchmark.params(spec["methods"][0], "default", ["rna", "atac"])
    own, reading = (task_of(cells, tmp_path / name) for name in ("own", "reading"))
    reading.features = fitted_files(reading, tmp_path, params, *names)
    assert set(benchmark.features("pbmc_multiome", spec["methods"][0], "default", 1)) == set(reading.features)
    embed = scripts(f"methods/{method}.py").embed
    found = [embed(task, params, 1) for task in (own, reading)]
    for arrays in zip(*[part if isinstance(part, tuple) else (part,) for part in found], strict=True):
        for name in arrays[0]:
            np.testing.assert_array_equal(arrays[0][name], arrays[1][name])
    assert not own.shared and len(reading.shared) == len(names)  # each file was read, and nothing else was fitted


def test_file_keeps_everything_that_was_fitted(cells, tmp_path):
    path = tmp_path / "all.npz"
    write_features(fitted := fit_for_file("all", cells, {}, SETTINGS), path)
    found = read_features(path)
    assert found.seconds == fitted.seconds > 0 and found.memory_mb > 50 and not found.error
    for name, adata in cells.mod.items():
        assert found.preprocessors[name].name == name and found.preprocessors[name].features[0] == adata.var_names[0]
        expected = fitted.preprocessors[name].transform(adata)
        np.testing.assert_array_equal(found.preprocessors[name].transform(adata), expected)


def test_inputs_with_test_cells_do_not_depend_on_how_test_cells_are_paired(cells, tmp_path, monkeypatch):
    monkeypatch.setattr("clue.components.ADVANTAGE", -np.inf)
    task = task_of(cells, tmp_path)
    settings = SETTINGS | {"n_components": None}
    shuffled = {k: adata[np.random.default_rng(1).permutation(adata.n_obs)].copy() for k, adata in task.test.items()}
    first, second, without = (
        fit_features("with_test", task.train, test, settings) for test in (task.test, shuffled, {})
    )
    for k, adata in task.test.items():
        found = [each[k].transform(adata) for each in (first, second)]
        # the signs of axes are arbitrary
        np.testing.assert_allclose(*map(abs, found), atol=1e-3)
        assert first[k].readouts == second[k].readouts != without[k].readouts


def test_variants_that_are_not_transductive_have_inputs_of_training_cells(project):
    spec = {"run": "r", "datasets": ["pbmc_multiome"], "methods": ["clue"], "seeds": [0], "budget": "test"}
    benchmark = Benchmark(spec, project)
    asked = [list(benchmark.features("pbmc_multiome", "clue", "default", 0))]
    benchmark.methods["clue"]["params"]["transductive"] = False
    asked.append(list(benchmark.features("pbmc_multiome", "clue", "default", 0)))
    assert [[name.rpartition("-")[0] for name in names] for names in asked] == [["with_test"], ["all"]]


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04", b"text"])
def test_damaged_file_is_named(cells, tmp_path, damaged):
    task = task_of(cells, tmp_path)
    task.features = {features_name("all", SETTINGS): tmp_path / "all.npz"}
    (tmp_path / "all.npz").write_bytes(damaged)
    with pytest.raises(BenchmarkError, match="all.npz: cannot be read .*delete it and run again"):
        task.fitted("all", SETTINGS)


def test_other_cells_or_settings_have_another_file():
    others = [("paired", SETTINGS), ("all", SETTINGS | {"n_components": None}), ("all", SETTINGS | {"n_features": {}})]
    names = {features_name(which, settings) for which, settings in [("all", SETTINGS), *others]}
    assert len(names) == 4
    assert features_name("all", SETTINGS | {"penalty": 3}) in names


def test_failed_fit_is_the_reason_of_every_method_that_reads_it(cells, tmp_path):
    task = task_of(cells, tmp_path)
    task.train.mod["atac"].X = task.train.mod["atac"].X * 0
    task.features = fitted_files(task, tmp_path, SETTINGS, "all")
    with pytest.raises(BenchmarkError, match=r"atac: 0 features with a count; .* \(among 90 training cells\)"):
        task.fitted("all", SETTINGS)


def test_job_counts_the_time_and_memory_of_shared_inputs(cells, tmp_path):
    task = task_of(cells, tmp_path)
    fitted = fit_for_file("all", task.train, task.test, SETTINGS)
    path = tmp_path / f"{features_name('all', SETTINGS)}.npz"
    write_features(Fitted(fitted.preprocessors, seconds=1000.0, memory_mb=1e6), path)

    def embed(task, params, seed):
        prepared = task.fitted("all", params)
        return {name: prepared[name].transform(adata) for name, adata in task.test.items()}

    run_method(embed, method_arguments(tmp_path, task.train, task.test, params=json.dumps(SETTINGS), features=path))
    report = json.loads((tmp_path / "run.json").read_text())
    assert report["shared_seconds"] == 1000 and 1000 < report["seconds"] < 1060 and report["peak_memory_mb"] == 1e6
    assert read_embedding(tmp_path / "embedding.h5ad").n_vars == 8


def test_settings_for_encoder_inputs_are_required(project, workplace):
    spec = yaml.safe_load((project / "config/methods/cca.yaml").read_text())
    del spec["params"]["n_features"]
    (workplace / "config/methods").mkdir()
    (workplace / "config/methods/cca.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(ConfigError, match=r"cca.yaml: features: encoder inputs need 'n_features' in params"):
        load("methods", "cca", workplace)
