"""What a run will cost: sizes, steps and proportions have known answers, and nothing heavy is imported for them."""

import re
import subprocess
import sys
from functools import cache

import pandas as pd
import pytest
import yaml
from helpers import one_line_error

from clue.benchmark.config import ORACLE, Benchmark, load, read_yaml
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.running.cost import COLUMNS, NUMBERS, OTHER, Size, costs, planned, read_times, size_of, work_of
from clue.benchmark.running.steps import planned_steps

SIZE = Size(1000, 100, {"rna": 2000, "adt": 50})


@pytest.mark.parametrize(
    "dataset, split, max_cells, n_train, n_test",
    [
        ("bmmc_cite", "site4", None, 66175, 15066),  # published
        ("share_skin", "random20", None, 25785, 6446),  # a fraction of the cells
        ("pbmc_cite", "donors", 6000, 4200, 1800),
        ("simulated", "random20_inner", None, 960, 240),  # of the 1,200 training cells of random20
        ("simulated", None, 100, 1500, 0),  # prepared once for all runs
    ],
)
def test_sizes_follow_from_the_yaml(project, dataset, split, max_cells, n_train, n_test):
    found = size_of(load("datasets", dataset, project), split, max_cells)
    assert (found.n_train, found.n_test) == (n_train, n_test)


def test_data_set_without_numbers_has_no_size(project):
    spec = load("datasets", "simulated", project)
    assert size_of({**spec, "expect": {}, "prepare": {"kind": "own"}}, "random20", None) is None


@pytest.mark.parametrize(
    "params, steps",
    [
        ({"transductive": False, "n_components": 50}, 0),
        ({"training": {"max_steps": 600}, "fine_tuning": {"max_steps": 150}, "transductive": True}, 750),
        ({"training": {"max_steps": 600}, "fine_tuning": {"max_steps": 150}}, 600),  # sees no test cells
        ({"training": {"n_epochs": 10, "batch_size": 100}, "transductive": True}, 120),  # 1,000 and 2 × 100 cells
        ({"training": {"max_epochs": 10, "batch_size": 100}, "min_steps": 500}, 500),
        ({"training": {"max_epochs": 10, "max_steps": 60, "batch_size": 100}}, 60),
        ({"training": {"max_steps": 60, "max_passes": 10, "batch_size": 100}}, 60),
    ],
)
def test_steps_follow_from_the_parameters(params, steps):
    assert work_of(SIZE, params) == (1100, 2050, steps)


def test_only_selected_features_count():
    assert work_of(SIZE, {"n_features": {"rna": 500, "adt": 1000}})[1] == 550


@pytest.fixture(scope="module")
def jobs(project, tmp_path_factory):
    """Plan a run whose configuration has some changes; each is planned once."""

    @cache
    def plan(**changes):
        config = {"run": "r", "datasets": ["bmmc_cite/site4"], "methods": ["clue/default", "cca"]}
        config |= {"seeds": "0", "device": "cuda"} | changes
        config["seeds"] = [int(seed) for seed in config["seeds"].split()]
        path = tmp_path_factory.mktemp("run") / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return list(planned(Benchmark(config, project), planned_steps(path)))

    return plan


def measured(**changes):
    """Two measured rows: half of the steps and features of CLUE on the data set; a third of the cells of CCA."""
    common = {"dataset": "bmmc_cite", "modalities": "rna+adt", "device": "cpu"} | dict.fromkeys(NUMBERS, 0)
    clue = {"what": "clue", "cells": 81241, "features": 14087 / 2, "steps": 19000, "seconds": 3600, "disk_mb": 500}
    cca = {"what": "cca", "cells": 81241 / 3, "features": 14087 - 8953, "seconds": 360}
    table = pd.DataFrame([common | row | changes for row in (clue, cca)], columns=COLUMNS)
    return table.fillna("")


def test_hours_are_proportional_to_steps_cells_and_features(project, jobs):
    found, used = costs(jobs(), measured())
    clue, cca, score = (found.loc[what] for what in ("clue", "cca", "score"))
    assert clue.hours == clue.gpu_hours == pytest.approx(4)  # twice the steps, twice the features
    assert cca.hours == pytest.approx(0.3) and cca.gpu_hours == 0  # 3 × the cells; 5,000 genes of it
    assert clue.disk_gb == pytest.approx(1)
    asked = load("methods", "clue", project)["resources"]
    assert clue.reserved_gpu_hours == asked["gpu"] * asked["runtime_min"] / 60
    assert score.unknown == score.jobs == 3 and score.hours == 0
    assert sorted(used.values()) == [["bmmc_cite"], ["bmmc_cite"]]
    more, _ = costs(jobs(seeds="0 1 2"), measured())
    assert more.hours["clue"] == pytest.approx(3 * clue.hours) and more.jobs["prepare"] == 1
    on_cpu, _ = costs(jobs(device="cpu"), measured())
    assert on_cpu.hours["clue"] == clue.hours and on_cpu.gpu_hours["clue"] == 0


def test_time_before_the_first_step_does_not_grow_with_steps(jobs):
    found, _ = costs(jobs(), measured(setup_seconds=3600))
    assert found.hours["clue"] == pytest.approx(2)  # twice the features; steps take no time


def test_most_similar_measurement_is_used(jobs):
    other = measured(seconds=1e9)
    times = pd.concat([other.assign(dataset="pbmc_cite"), measured(), other.assign(modalities="rna+atac", dataset="x")])
    assert costs(jobs(), times)[0].hours["clue"] == pytest.approx(4)
    times = pd.concat([measured(seconds=1e9), measured(device="cuda")])
    assert costs(jobs(), times)[0].hours["clue"] == pytest.approx(4)


def test_jobs_are_those_of_the_plan(project):
    path = project / "config" / "config.yaml"
    run = Benchmark(read_yaml(path), project, str(path))
    runnable = [job.method for job in run.plan() if not job.reason]
    jobs = [job.what for job in planned(run, planned_steps(path))]
    assert sorted(what for what in jobs if what in (*run.methods, ORACLE)) == sorted(runnable)
    assert jobs.count("score") == len(runnable) and jobs.count("prepare") == len(run.datasets)
    assert OTHER in jobs


@pytest.mark.parametrize("config", ["config", "quick"])
def test_program_estimates_shipped_runs_without_heavy_imports(project, config):
    code = "import runpy, sys; sys.argv[1:] = ['--config', 'config/{0}.yaml']\n"
    code += "runpy.run_path('scripts/estimate.py', run_name='__main__')\n"
    code += "assert not {{'torch', 'scanpy', 'anndata'}} & set(sys.modules), 'heavy'"
    done = subprocess.run([sys.executable, "-c", code.format(config)], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("No time was measured on a GPU" in done.stdout) == (config == "config")
    assert re.search(r"^all +\d+ ", done.stdout, re.MULTILINE) and "Measured (docs/results/times.tsv)" in done.stdout


def test_table_of_times_can_be_read(project):
    times = read_times(project)
    assert not times["steps"][times["what"].isin(["prepare", "task", "features", "score", ORACLE])].any()
    assert (times[["cells", "features", "seconds"]] > 0).all(axis=None)
    assert (times["command"] != "").all() and set(times["device"]) <= {"cpu", "cuda"}


def test_broken_rule_is_one_line(project, tmp_path, monkeypatch):
    (tmp_path / "Snakefile").write_text("rule broken:\n    input: nothing\n")
    monkeypatch.setattr("clue.benchmark.running.steps.CHECKOUT", tmp_path)
    with pytest.raises(BenchmarkError, match="^NameError: name 'nothing' is not defined; `snakemake --dry-run"):
        planned_steps(project / "config" / "quick.yaml")


def test_run_that_cannot_be_planned_is_one_line(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("run: r\ndatasets: [pbmc_cite]\nmethods: [clu]\nseeds: [0]\n")
    assert "unknown method 'clu'; did you mean 'clue'" in one_line_error(planned_steps, path)
