"""How a rehearsal is judged: what may be missing, what may not, and that no other folder is harmed."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from clue.benchmark.config import load
from clue.benchmark.data.task import split_cells
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.scores import FAILURES_COLUMNS, METRICS_COLUMNS
from tools import paper_files, rehearse

SCORES = {"match_score": 0.1, "foscttm": 0.4}


@pytest.fixture
def copy(project, tmp_path):
    """A copy of the project with a method of another environment, and the folder of results."""
    for part in ("config", "scripts"):
        shutil.copytree(project / part, tmp_path / part)
    path = tmp_path / "config/methods/random.yaml"
    elsewhere = yaml.safe_load(path.read_text()) | {"env": "r"}
    (tmp_path / "config/methods/elsewhere.yaml").write_text(yaml.safe_dump(elsewhere))
    (tmp_path / "results/rehearsal").mkdir(parents=True)
    (tmp_path / "results/rehearsal/report.html").touch()
    return tmp_path


def judge(copy, **changes):
    """Write tables in which everything is right except `changes` (method=columns), and judge them."""
    rows, failures = [], []
    for method in ("random", "elsewhere", "oracle"):
        scores = {"match_score": 1, "foscttm": 0} if method == "oracle" else SCORES
        job = {"dataset": "simulated", "split": "random20", "method": method, "variant": "default", "seed": 0}
        for metric, value in scores.items():
            ok = {"metric": metric, "value": value, "status": "ok", "reason": ""}
            rows.append(job | ok | changes.get(method, {}))
        if rows[-1]["status"] == "failed":
            failures.append(job | {"status": "failed", "reason": rows[-1]["reason"], "log": "logs/x.log"})
    folder = copy / "results/rehearsal"
    pd.DataFrame(rows, columns=METRICS_COLUMNS).to_csv(folder / "metrics.tsv", sep="\t", index=False)
    pd.DataFrame(failures, columns=FAILURES_COLUMNS).to_csv(folder / "failures.tsv", sep="\t", index=False)
    rehearse.check(copy)


FAILED = {"metric": "", "value": "", "status": "failed", "reason": "no Rscript"}


def test_complete_run_passes(copy, capsys):
    judge(copy)
    assert "rehearsal: 3 of 3 jobs ok" in capsys.readouterr().out


def test_method_of_another_environment_may_be_missing_and_is_named(copy, capsys):
    judge(copy, elsewhere=FAILED)
    output = capsys.readouterr().out
    assert "not on this machine: simulated/random20/elsewhere/default: no Rscript" in output and "2 of 3" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"random": FAILED}, "1 faults: simulated/random20/random/default (no Rscript; logs/x.log)"),
        ({"oracle": FAILED}, "1 faults: simulated/random20/oracle/default"),
        ({"oracle": {"value": 0.5}}, "oracle simulated/random20: match_score is 0.5; oracle simulated/random20: fosc"),
    ],
)
def test_what_must_not_be_missing(copy, changes, message):
    with pytest.raises(BenchmarkError) as raised:
        judge(copy, **changes)
    assert message in str(raised.value)


def test_missing_report(copy):
    (copy / "results/rehearsal/report.html").unlink()
    with pytest.raises(BenchmarkError, match="report.html: was not made"):
        judge(copy)


def test_folder_of_something_else_is_left_alone(project, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BenchmarkError, match="is not empty and holds no rehearsal"):
        rehearse.copy_project(project, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


# ---- the copy's settings -------------------------------------------------------------------------


def test_any_run_can_be_rehearsed_without_being_changed(copy, project, monkeypatch):
    monkeypatch.chdir(project)
    config = rehearse.configure(copy, Path("config/scmmib.yaml"), {})
    assert yaml.safe_load((copy / rehearse.CONFIG).read_text()) == config
    theirs = yaml.safe_load((project / "config/scmmib.yaml").read_text())
    assert config["datasets"] == theirs["datasets"] and set(rehearse.dataset_names(config)) == set(paper_files.SIZES)
    assert (config["run"], config["device"], config["seeds"]) == ("rehearsal", "cpu", [0])
    assert config["methods"].count("clue/default") == 1 and "clue/contrastive" not in config["methods"]


def test_data_set_without_simulated_files(copy, project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(BenchmarkError, match="config/quick.yaml: datasets: no simulated files of 'pbmc_cite'"):
        rehearse.configure(copy, Path("config/quick.yaml"), {})


@pytest.mark.parametrize("name", paper_files.SIZES)
def test_simulated_cells_are_enough_for_every_split(copy, name):
    """Seurat's bridge integration, the most demanding method, needs 60 training and 60 test cells."""
    cells = paper_files.simulate_dataset(name, 0.002)
    rehearse.write_dataset(copy, name, 0.002)
    spec = load("datasets", name, copy)
    obs = cells["rna"].obs
    obs = obs[obs["part"].isin(["train", "test", "labelled"])]
    assert len(obs) == spec["expect"]["n_cells"]
    for split, parts in spec["splits"].items():
        train, test = split_cells(obs, parts, split)
        assert min(len(train), len(test)) >= 60, split
