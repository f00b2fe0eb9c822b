"""Whole runs: they end in a table and a report, and a change reruns exactly what depends on it."""

import json
import os
import re

import pytest


def test_run_ends_in_a_table_with_every_planned_job(finished_run):
    project, status, output = finished_run
    assert status == 0, output
    table = project.table()
    assert set(table["method"]) == {"random", "cca", "oracle"}
    assert set(table["status"]) == {"ok"}
    foscttm = table[(table["metric"] == "foscttm") & (table["direction"] == "both")].set_index("method")["value"]
    assert float(foscttm["oracle"]) == 0
    # 80 test cells: the mean of the control has a standard deviation of about .03.
    assert 0.35 < float(foscttm["random"]) < 0.65
    assert project.table("failures").empty
    assert set(project.table("resources")["method"]) == {"random", "cca"}


def test_run_makes_a_report_and_says_where(finished_run):
    project, _, output = finished_run
    report = project.path("results/test/report.html")
    assert report.stat().st_size > 100_000
    assert f"Report: {report}" in output


def test_second_run_has_nothing_to_do(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.path("results").rglob("*") if path.is_file()}
    status, output = finished.run()
    assert status == 0 and "Nothing to be done" in output
    assert {path: path.stat().st_mtime_ns for path in before} == before, "the report included"


def test_touched_files_rerun_nothing(finished):
    for folder in ("scripts", "config", "clue", "rules"):
        for path in finished.path(folder).rglob("*"):
            os.utime(path)
    assert finished.planned_rules() == {}


def without_figures(rules):
    """Return the rules without those of the figures, which run after every change of the table."""
    known = re.compile(r"download|prepare|task|score|collect|oracle|random$|cca$")
    return {rule: n_jobs for rule, n_jobs in rules.items() if known.match(rule)}


def test_changed_parameter_reruns_that_method(finished):
    finished.change("config/methods/random.yaml", params={"n_latent": 11})
    assert without_figures(finished.planned_rules()) == {"random": 1, "score_rna_atac": 1, "collect": 1}


def test_changed_resources_rerun_nothing(finished):
    finished.change("config/methods/random.yaml", resources={"mem_gb": 3, "runtime_min": 11})
    assert without_figures(finished.planned_rules()) == {}


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("scripts/methods/random_control.py", {"random": 1, "score_rna_atac": 1, "collect": 1}),
        ("clue/metrics.py", {"cca": 1, "score_rna_atac": 3, "collect": 1}),
        ("scripts/collect.py", {"collect": 1}),
    ],
)
def test_changed_program_reruns_what_it_makes(finished, program, expected):
    path = finished.path(program)
    path.write_text(path.read_text() + "\n# changed\n")
    assert without_figures(finished.planned_rules()) == expected


def test_another_seed_adds_only_its_jobs(finished):
    finished.configure(seeds=[0, 1])
    assert without_figures(finished.planned_rules()) == {"random": 1, "cca": 1, "score_rna_atac": 2, "collect": 1}


def test_added_broken_and_unsupported_methods(finished):
    """Adding a method takes a YAML file and a program; a failure is a row with its reason, and the rest goes on."""
    finished.draw_only()
    finished.add_method("added")
    finished.add_method("broken", body='raise ValueError("no luck")')
    finished.add_method("elsewhere", modalities=("rna", "adt"))
    finished.configure(methods=["broken", "elsewhere", "added", "random"])
    status, rules = finished.call("-m", "snakemake", "--configfile", "config/test.yaml", "--list-rules")
    assert status == 0 and "added" in rules.split()

    status, output = finished.snakemake()
    assert status == 1 and "failed   broken simulated/random20/default/0: ValueError: no luck" in output, output
    table = finished.table().drop_duplicates(["method", "status"]).set_index("method")
    expected = {"broken": "failed", "elsewhere": "unsupported"} | dict.fromkeys(("added", "random", "oracle"), "ok")
    assert table["status"].to_dict() == expected
    assert table.loc["broken", "reason"] == "ValueError: no luck"
    assert table.loc["elsewhere", "reason"] == "does not support rna+atac"
    failures = finished.table("failures").set_index("method")
    assert "ValueError: no luck" in finished.path(failures.loc["broken", "log"]).read_text()
    assert "no luck" in finished.path("results/test/report.html").read_text()

    # Once it is fixed, the same command completes.
    finished.add_method("broken")
    status, output = finished.run()
    assert status == 0, output
    assert set(finished.table().set_index("method").loc["broken", "status"]) == {"ok"}


def test_three_modalities_of_a_mosaic(fresh):
    """One job per method, whether it takes all modalities or pairs; rows for each pair, their mean, and predictions."""
    fresh.drop_figures()
    fresh.add_method("some", modalities=("rna", "atac"))
    fresh.configure(datasets=["simulated_three/mosaic20"], methods=["random", "cca/default", "some"])
    status, output = fresh.run()
    assert status == 0, output
    table = fresh.table()
    scores = table[table["metric"] == "match_score"].set_index(["method", "direction"])
    pairs = {"rna+atac", "rna+adt", "atac+adt"}
    for method in ("random", "cca", "some", "oracle"):
        assert pairs | {"both", "rna2atac", "adt2atac"} <= set(scores.loc[method].index)
    assert scores.loc[("cca", "both"), "reason"] == "by pairs" and scores.loc[("random", "both"), "reason"] == ""
    assert scores.loc[("some", "rna+atac"), "status"] == "ok"
    for direction in ("rna+adt", "both"):
        assert scores.loc[("some", direction), "reason"] == "does not support rna+adt"
    predicted = table[table["metric"] == "predict_rmse"]
    assert set(predicted["method"]) == {"random"} and pairs < set(predicted["direction"])
    folder = fresh.path("results/test/simulated_three/mosaic20/cca/default/seed-0")
    assert json.loads((folder / "run.json").read_text())["by_pairs"]
    assert len(list(folder.glob("match_*.npz"))) == 6
