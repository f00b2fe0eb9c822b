"""The rehearsal's judgement: what may be missing, what may not, and that it harms no other folder."""

import argparse
import importlib.util
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from clue.benchmark import rehearsal
from clue.benchmark.config import Benchmark, load
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.scoring import METRICS_COLUMNS
from clue.benchmark.task import split_cells

SCORES = {"match_score": 0.1, "foscttm": 0.4}


@pytest.fixture
def rehearse(project):
    spec = importlib.util.spec_from_file_location("rehearse", project / "scripts" / "rehearse.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(project, tmp_path):
    """A copy of the project with a method of another environment, and the folder of results."""
    for part in ("config", "scripts"):
        shutil.copytree(project / part, tmp_path / part)
    path = tmp_path / "config/methods/random.yaml"
    elsewhere = yaml.safe_load(path.read_text()) | {"env": "r"}
    (tmp_path / "config/methods/elsewhere.yaml").write_text(yaml.safe_dump(elsewhere))
    for name in ("report.html", "figures/comparison.png", "tables/summary.tsv"):
        (tmp_path / "results/rehearsal" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "results/rehearsal" / name).touch()
    return tmp_path


def judge(rehearse, copy, **changes):
    """Write a table in which all is well but for `changes` (method=columns), and judge it."""
    config = {"run": "rehearsal", "datasets": ["simulated/random20"], "methods": ["random", "elsewhere"], "seeds": [0]}
    benchmark = Benchmark(config, copy)
    rows = []
    for job in benchmark.plan():
        scores = {"match_score": 1, "foscttm": 0} if job.method == "oracle" else SCORES
        same = {name: getattr(job, name) for name in ("dataset", "split", "method", "variant", "seed")}
        rows += [
            {**same, "metric": metric, "value": value, "status": "ok", "reason": "", **changes.get(job.method, {})}
            for metric, value in scores.items()
        ]
    table = pd.DataFrame([row for row in rows if row["status"]], columns=METRICS_COLUMNS)
    table.to_csv(copy / "results/rehearsal/metrics.tsv", sep="\t", index=False)
    rehearse.check(copy, benchmark)


FAILED = {"value": "", "status": "failed", "reason": "no Rscript"}


def test_all_is_well(rehearse, copy, capsys):
    judge(rehearse, copy)
    assert "rehearsal: 3 of 3 jobs ok" in capsys.readouterr().out


def test_a_method_of_another_environment_may_be_missing_and_is_named(rehearse, copy, capsys):
    judge(rehearse, copy, elsewhere=FAILED)
    output = capsys.readouterr().out
    assert "not on this machine: simulated/random20/elsewhere/default: no Rscript" in output and "2 of 3" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random": FAILED}, "1 faults: simulated/random20/random/default (failed; logs/rehearsal/simulated"),
        ({"random": {"status": ""}}, "random/default (no row"),
        ({"elsewhere": FAILED | {"reason": ""}}, "elsewhere/default (failed"),
        ({"elsewhere": {"status": ""}}, "elsewhere/default (no row"),
        ({"oracle": FAILED}, "oracle/default (failed"),
        (
            {"oracle": {"value": 0.5}},
            "oracle simulated/random20: match_score is 0.5; oracle simulated/random20: foscttm",
        ),
    ],
)
def test_what_must_be_there(rehearse, copy, changes, message):
    with pytest.raises(BenchmarkError) as raised:
        judge(rehearse, copy, **changes)
    assert message in str(raised.value)


def test_a_report_that_is_missing(rehearse, copy):
    (copy / "results/rehearsal/report.html").unlink()
    with pytest.raises(BenchmarkError, match="report.html: was not made"):
        judge(rehearse, copy)


def test_a_folder_of_something_else_is_left_alone(rehearse, project, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BenchmarkError, match="is not empty and holds no rehearsal"):
        rehearse.copy_project(project, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# ---- the copy's settings -------------------------------------------------------------------------


def settings(**changes):
    """Return the arguments of a rehearsal."""
    given = {"config": Path("config/scmmib.yaml"), "factor": 0.005, "methods": None, "datasets": None, "budget": "test"}
    return argparse.Namespace(**given | changes)


def test_any_run_can_be_rehearsed_and_is_not_changed_itself(rehearse, copy, project, monkeypatch):
    monkeypatch.chdir(project)
    config = rehearse.configure(copy, "http://here", settings())
    assert yaml.safe_load((copy / rehearse.CONFIG).read_text()) == config
    theirs = yaml.safe_load((project / "config/scmmib.yaml").read_text())
    assert config["datasets"] == theirs["datasets"] and set(rehearse.dataset_names(config)) == set(rehearsal.SIZES)
    assert (config["run"], config["device"], config["seeds"]) == ("rehearsal", "cpu", [0])
    assert config["methods"].count("clue/default") == 1 and "clue/contrastive" not in config["methods"]


def test_a_data_set_without_simulated_files(rehearse, copy, project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(BenchmarkError, match="config/quick.yaml: datasets: no simulated files of 'pbmc_cite'"):
        rehearse.configure(copy, "http://here", settings(config=Path("config/quick.yaml")))


@pytest.mark.parametrize("name", rehearsal.SIZES)
def test_simulated_cells_are_enough_for_every_split(rehearse, copy, name):
    """Seurat's bridge integration, the most demanding method, takes 60 training and 60 test cells."""
    cells = rehearsal.simulate_dataset(name, 0.002)
    rehearse.write_dataset(copy, name, 0.002, "http://here")
    spec = load("datasets", name, copy)
    obs = cells["rna"].obs
    obs = obs[obs["part"].isin(["train", "test", "labelled"])]
    assert len(obs) == spec["expect"]["n_cells"]
    for split, parts in spec["splits"].items():
        train, test = split_cells(obs, parts, split)
        assert min(len(train), len(test)) >= 60, split
