"""Collecting: every planned job has a row, whatever became of it."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from clue.benchmark.config import Job
from clue.benchmark.scores import FAILURES_COLUMNS, METRICS_COLUMNS, RESOURCES_COLUMNS
from clue.benchmark.scores.collect import collect
from scripts import collect as program


def job(seed: int = 0, reason: str = "", method: str = "m") -> Job:
    return Job("quick", "d", "s", method, "v", seed, True, reason, "unsupported" if reason else "")


def finish(root: Path, job: Job, value: float = 0.25, **changes) -> Path:
    """Write the files of a job that succeeded."""
    folder = root / job.folder
    folder.mkdir(parents=True)
    (folder / "embedding.h5ad").write_text("")
    report = {"device": "cpu", "threads": 2, "seconds": 1.5, "peak_memory_mb": 300.0, "gpu_memory_mb": None}
    report |= {"info": {"epochs": 7}, "commit": "abc1234", "date": "2026-01-02"}
    (folder / "run.json").write_text(json.dumps(report))
    identity = {key: getattr(job, key) for key in ("run", "dataset", "split", "method", "variant", "seed")}
    scored = {"metric": "match_score", "value": value, "status": "ok", "reason": ""}
    too_large = {"metric": "match_score_ot", "value": float("nan"), "status": "unsupported", "reason": "too large"}
    rows = [identity | {"transductive": True, "direction": "both"} | row for row in (scored, too_large)]
    pd.DataFrame(rows).assign(**changes).to_csv(folder / "metrics.tsv", sep="\t", index=False)
    return folder


def fail(root: Path, job: Job, reason: str) -> None:
    """Write the files of a job that failed."""
    (root / job.folder).mkdir(parents=True)
    (root / job.folder / "failure.json").write_text(json.dumps({"error": reason}))


def test_finished_failed_missing_and_unsupported_jobs(tmp_path):
    finish(tmp_path, job(0))
    fail(tmp_path, job(1), "ValueError: loss is\nnot finite")
    jobs = [job(0), job(1), job(2), job(3, "does not support rna+adt")]
    metrics, resources, failures = collect(jobs, tmp_path)

    assert list(metrics.columns) == METRICS_COLUMNS
    assert metrics["seed"].tolist() == [0, 0, 1, 2, 3]
    assert metrics["status"].tolist() == ["ok", "unsupported", "failed", "failed", "unsupported"]
    assert metrics["value"].tolist()[0] == 0.25 and metrics["value"].isna().tolist() == [False] + [True] * 4
    log = "logs/quick/d/s/m/v/seed-{}.log"
    not_run = "not run, since an earlier step failed or the run was ended"
    reasons = ["ValueError: loss is not finite", not_run, "does not support rna+adt"]
    assert metrics["reason"].tolist() == ["", "too large", *reasons]
    assert list(resources.columns) == RESOURCES_COLUMNS
    assert resources.iloc[0, 5:].tolist()[:5] == [0, "cpu", 2, 1.5, 300.0] and resources["epochs"].tolist() == [7]
    assert resources[["commit", "date"]].to_numpy().tolist() == [["abc1234", "2026-01-02"]]
    assert list(failures.columns) == FAILURES_COLUMNS
    assert failures["reason"].tolist() == reasons
    assert failures["log"].tolist() == [log.format(1), log.format(2), ""]


def test_scores_of_an_earlier_embedding_do_not_count(tmp_path):
    folder = finish(tmp_path, job())
    stamp = (folder / "metrics.tsv").stat().st_mtime
    os.utime(folder / "embedding.h5ad", (stamp + 10, stamp + 10))
    assert collect([job()], tmp_path).failures["reason"].str.contains("not scored again").all()
    (folder / "embedding.h5ad").unlink()  # as Snakemake does when the method runs again and fails
    assert collect([job()], tmp_path).failures["reason"].str.contains("not run").all()


def test_failed_scoring_points_to_its_own_log(tmp_path):
    folder = finish(tmp_path, job())
    (folder / "metrics.tsv").unlink()
    log = tmp_path / "logs/quick/d/s/m/v/seed-0.score.log"
    log.parent.mkdir(parents=True)
    log.write_text("error: ...")
    tables = collect([job()], tmp_path)
    assert tables.failures["log"].tolist() == ["logs/quick/d/s/m/v/seed-0.score.log"]
    assert tables.failures["reason"].tolist() == ["not scored; see logs/quick/d/s/m/v/seed-0.score.log"]
    assert len(tables.resources) == 1  # the method did run


@pytest.mark.parametrize(
    ("content", "reason"), [("", "cannot be read"), ("a\tb\n1\t2\n", "expected columns"), ("\x00\x01", "columns")]
)
def test_malformed_file_is_one_failed_job(tmp_path, content, reason):
    folder = finish(tmp_path, job(0))
    finish(tmp_path, job(1))
    (folder / "metrics.tsv").write_text(content)
    (folder / "run.json").write_text("{")
    tables = collect([job(0), job(1)], tmp_path)
    assert tables.failures["reason"].str.contains(reason).tolist() == [True]
    assert "ok" in set(tables.metrics["status"])
    assert tables.resources["device"].isna().tolist() == [True, False]


def test_tables_without_jobs_have_columns(tmp_path):
    expected = METRICS_COLUMNS, RESOURCES_COLUMNS, FAILURES_COLUMNS
    for table, columns in zip(collect([], tmp_path), expected, strict=True):
        assert table.empty and list(table.columns) == columns


# ---- the program ---------------------------------------------------------------------------------


def test_program_writes_tables_and_says_how_many_jobs_have_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program.Benchmark, "__init__", lambda self, config, root: setattr(self, "config", config))
    monkeypatch.setattr(program.Benchmark, "plan", lambda self: [job(seed) for seed in self.config["seeds"]])
    finish(tmp_path, job(0))
    fail(tmp_path, job(1), "out of memory")
    log = tmp_path / f"{job(2).log}.log"
    log.parent.mkdir(parents=True)
    log.write_text("epoch 1")
    outputs = {name: tmp_path / "out" / f"{name}.tsv" for name in ("metrics", "resources", "failures")}
    program.main({"seeds": [0, 1, 2]}, {}, tmp_path, **outputs)
    assert capsys.readouterr().out == f"collected 1 of 3 jobs; the others are in {outputs['failures']}\n"
    failed = pd.read_csv(outputs["failures"], sep="\t")
    assert failed["reason"].tolist() == ["out of memory", "no result; see logs/quick/d/s/m/v/seed-2.log"]
    rows = {name: pd.read_csv(path, sep="\t")["seed"].tolist() for name, path in outputs.items()}
    assert rows == {"metrics": [0, 0, 1, 2], "resources": [0], "failures": [1, 2]}
    assert not list((tmp_path / "out").glob(".*"))
