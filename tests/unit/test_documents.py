"""Every result that a document shows comes from docs/results, where one command records a run."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tidy import metrics, resources

from clue.benchmark.errors import BenchmarkError
from clue.benchmark.methods.record import commit
from clue.benchmark.report import reference, tables

NAN = float("nan")


@pytest.fixture(scope="module")
def program(document_programs):
    return document_programs("tables.py")


# ---- the project's own documents -----------------------------------------------------------------


def test_tables_in_documents_are_up_to_date(program, project):
    texts = {path: path.read_text() for path in program.documents(project)}
    assert any("<!-- table: quick -->" in text for text in texts.values())
    for path, text in texts.items():
        assert program.filled(text, path.name, project) == text, f"{path.name}: run `make tables`"


def test_no_number_in_a_marked_table_can_be_edited_unnoticed(program, project):
    text = (project / "docs" / "results.md").read_text()
    blocks = re.finditer(r"^<!-- table: .*?^<!-- /table -->$", text, re.MULTILINE | re.DOTALL)
    last = re.compile(r"^\|.*(\d)", re.MULTILINE)
    digits = [block.start() + row.start(1) for block in blocks for row in last.finditer(block[0])]
    edited = list(text)
    for digit in digits:
        edited[digit] = str((int(text[digit]) + 1) % 10)
    shown = program.filled("".join(edited), "results.md", project)
    assert len(digits) > 50 and all(shown[digit] == text[digit] != edited[digit] for digit in digits)


@pytest.mark.parametrize(
    "text, message",
    [
        ("<!-- table: quik -->\n<!-- /table -->\n", "README.md: <!-- table: quik -->: no file"),
        ("<!-- table: quick -->\n| 1 |\n", "needs one <!-- /table -->"),
        ("<!-- table: quick -->\n<!-- table: quick -->\n<!-- /table -->\n", "needs one <!-- /table -->"),
        ("<!-- /table -->\n", "needs one <!-- /table -->"),
    ],
)
def test_marker_without_a_table_is_an_error(program, project, tmp_path, text, message):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    shutil.copy(project / "docs" / "results" / "quick.tsv", tmp_path / "docs" / "results")
    shutil.copytree(project / "config", tmp_path / "config")
    with pytest.raises(BenchmarkError, match=re.escape(message)):
        program.filled(text, "README.md", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["leaderboard", "organisers", "cell_type_match", "ace", "rebenchmarks", "scmmib bmmc_cite", "scmmib share_skin"],
)
def test_every_published_number_is_shown_with_its_evidence(program, project, display, name):
    shown, view = program.published(name, project, display), program.PUBLISHED[name]
    cells = [cell for line in shown.splitlines()[2:] if line.startswith("|") for cell in re.split(r" \| | / |\|", line)]
    numbers = [cell.strip() for cell in cells if re.match(r" ?[\d.e-]+( \(\w+\))? ?$", cell)]
    path = project / "config" / "reference" / f"{view.file or name}.tsv"
    rows = tables.rows_of(reference.read_published([path]), **view.only)
    assert len(numbers) == len(rows) > 10
    for evidence, mark in program.MARKS.items():
        assert not mark or sum(number.endswith(mark) for number in numbers) == sum(rows["evidence"] == evidence)


def test_reruns_are_shown_by_their_data(program, project, display):
    site4, ace = (program.published(name, project, display) for name in ("rebenchmarks", "ace"))
    assert "0.0581 / 0.0178" in site4 and "dogma" not in site4
    assert "0.0254 / 0.077" in ace and "BMMC" not in ace


def test_published_numbers_of_a_method_are_beside_ours(program, project, display, tmp_path):
    for folder in ("config", "scripts/methods"):
        shutil.copytree(project / folder, tmp_path / folder)
    assert "None of these was run here" in program.described("clue_competition", tmp_path, display)
    assert "Published as" not in program.described("cca", tmp_path, display)
    row = {"dataset": "bmmc_cite", "split": "site4", "method": "clue_competition", "variant": "default"}
    row |= {"match_score": "0.0523", "match_score_sd": "0.001", "foscttm": "0.0144", "foscttm_sd": ""}
    tables.write_table(pd.DataFrame([row]), tmp_path / "docs" / "results" / "config.tsv")
    text = program.described("clue_competition", tmp_path, display)
    assert "| 0.0513 / 0.0142 | 0.0523 ± 0.001 / 0.0144 |" in text and "None of these" not in text
    assert "| 0.0583 | not run |" in text.replace("0.905 / ", "")


# ---- from a run ----------------------------------------------------------------------------------


@pytest.fixture
def run(workplace, project, document_programs):
    """A function that writes the files of a run of these jobs, records it, and returns the recorded rows."""
    shutil.copytree(project / "config", workplace / "config", dirs_exist_ok=True)
    shutil.copytree(project / "scripts" / "methods", workplace / "scripts" / "methods")
    recorder = document_programs("record.py")

    def leave(*jobs, used=(), more=(), seeds=2, methods=("cca", "multivi/default", "random"), begun=True):
        config = {"run": "test", "datasets": ["simulated_factors"], "methods": list(methods), "seeds": [*range(seeds)]}
        (workplace / "config" / "test.yaml").write_text(yaml.safe_dump(config))
        folder = workplace / "results" / "test"
        tables.write_table(pd.concat([metrics(*jobs), *more]), folder / "metrics.tsv")
        table = resources(*used)
        table["commit"], table["date"] = ["abc1234", "def5678"][: len(table)], "2026-01-02"
        tables.write_table(table, folder / "resources.tsv")
        for job in jobs if begun else ():
            log = workplace.joinpath("logs", "test", *map(str, job[:4]), f"seed-{job[4]}.log")
            log.parent.mkdir(parents=True, exist_ok=True)
            log.touch()
        recorder.main(Path("config/test.yaml"))
        found = tables.read_table("docs/results/test.tsv", tables.JOB)
        return {row["method"]: row for row in found.to_dict("records")}

    return leave


def job(method, seed, match, foscttm=0.25):
    return ("simulated_factors", "random20", method, "default", seed, match, foscttm)


def test_recorded_rows_have_scores_costs_and_origin_or_the_reason(run):
    jobs = [job("cca", 0, 0.1), job("cca", 1, 0.3), job("oracle", 0, 1.0, 0.0)]
    jobs += [job("multivi", 0, 0.123456), job("multivi", 1, "failed", "NaN")]
    jobs += [job("random", seed, "failed", "out of memory") for seed in (0, 1)]
    used = [("simulated_factors", "random20", "cca", "default", i, 10 * i, 100, NAN) for i in (1, 2)]
    rows = run(*jobs, used=used)
    assert list(rows) == ["cca", "multivi", "random"]  # the oracle is not recorded
    wanted = {"n": "2", "match_score": "0.2", "match_score_sd": "0.1414", "foscttm": "0.25", "foscttm_sd": "0"}
    wanted |= {"seconds": "15", "peak_memory_mb": "100", "status": "ok", "reason": ""}
    wanted |= {"command": "make run CONFIG=config/test.yaml", "commit": "abc1234 def5678", "date": "2026-01-02"}
    assert rows["cca"].items() >= wanted.items()
    wanted = {"n": "1", "match_score": "0.1235", "match_score_sd": "", "status": "failed", "reason": "NaN"}
    assert rows["multivi"].items() >= wanted.items()
    assert rows["random"].items() >= {"n": "0", "match_score": "", "reason": "out of memory", "commit": ""}.items()


def test_recording_replaces_rows_in_place_and_keeps_the_others(run):
    run(job("cca", 0, 0.1), job("random", 0, 0.1), job("multivi", 0, 0.1), seeds=1)
    rows = run(job("random", 0, 0.2), seeds=1, methods=["random"])
    scores = [(name, row["match_score"]) for name, row in rows.items()]
    assert scores == [("cca", "0.1"), ("random", "0.2"), ("multivi", "0.1")]
    shutil.rmtree("logs")
    never = "no result; see its log"
    rows = run(job("cca", 0, "failed", never), job("random", 0, 0.3), seeds=1, begun=False)
    assert rows["cca"]["match_score"] == "0.1" and rows["random"]["match_score"] == "0.3"
    with pytest.raises(BenchmarkError, match="results/test: holds no result; `make run CONFIG=config/test.yaml` first"):
        run(job("cca", 0, "failed", never), seeds=1, begun=False)
    rows = run(job("cca", 0, "failed", "out of memory"), seeds=1)
    assert rows["cca"]["match_score"] == "" and rows["cca"]["reason"] == "out of memory"


def test_probes_are_recorded_if_all_data_have_known_factors(run, workplace):
    probes = {"dataset": "simulated_factors", "method": "cca", "variant": "default", "input_modality": "rna"}
    probes |= {"factor_kind": "own", "n": 2, "mean": 0.51234, "sd": NAN, "low": NAN, "high": NAN}
    tables.write_table(pd.DataFrame([probes | {"method": "oracle"}, probes]), "results/test/tables/factors.tsv")
    used = [("simulated_factors", "random20", "cca", "default", 0, 1, 1, NAN)]
    run(job("cca", 0, 0.1), used=used, seeds=1)
    (row,) = tables.read_table("docs/results/test_probes.tsv", ["r2"]).to_dict("records")
    assert (row["r2"], row["r2_sd"], row["factor_kind"], row["commit"]) == ("0.5123", "", "own", "abc1234")
    (workplace / "docs/results/test_probes.tsv").unlink()
    run(job("cca", 0, 0.1), ("pbmc_cite", "donors", "cca", "default", 0, 0.1, 0.2), seeds=1)
    assert not (workplace / "docs/results/test_probes.tsv").exists()


def test_scores_of_pairs_and_predictions_are_recorded_by_direction(run):
    scored = metrics(job("cca", 0, 0.1))[:1]
    more = [("rna2adt", "predict_rmse", 0.5), ("rna+atac", "match_score", 0.2), ("both", "predict_rmse", 9.0)]
    more = [scored.assign(direction=place, metric=metric, value=value) for place, metric, value in more]
    run(job("cca", 0, 0.1), job("oracle", 0, 1.0, 0.0), more=more, seeds=1)
    (pair,) = tables.read_table("docs/results/test_pairs.tsv", ["command", "commit"]).to_dict("records")
    assert (pair["method"], pair["direction"], pair["n"], pair["match_score"]) == ("cca", "rna+atac", "1", "0.2")
    (found,) = tables.read_table("docs/results/test_predictions.tsv", ["command", "commit"]).to_dict("records")
    assert (found["direction"], found["predict_rmse"], found["predict_pearson_cell"]) == ("rna2adt", "0.5", "")


def test_table_says_what_failed_what_was_not_run_and_the_seeds(program, run, display):
    jobs = [job("cca", 0, 0.1), job("cca", 1, 0.3), job("multivi", 0, 0.5), job("multivi", 1, "failed", "NaN")]
    jobs += [job("random", 0, "failed", "no"), ("simulated", "random20", "cca", "default", 0, 0.1, 0.2)]
    run(*jobs, job("ridge", 0, 0.2), job("ridge", 1, 0.2))  # as many rows of two seeds as of one
    lines = program.recorded(program.RESULTS / "test.tsv", display).splitlines()
    assert lines[0] == "| Match score ↑ / FOSCTTM ↓ | Simulated factors, random20 | Simulated, random20 |"
    assert lines[2:] == [
        "| MultiVI | 0.5 / 0.25 (n = 1) | – |",
        "| CCA | 0.2 ± 0.14 / 0.25 ± 0 | 0.1 / 0.2 (n = 1) |",
        "| Ridge | 0.2 ± 0 / 0.25 ± 0 | – |",
        "| Random | failed | – |",
        "",
        "`docs/results/test.tsv`, from `make run CONFIG=config/test.yaml`, commit unknown;"
        " mean ± standard deviation of 2 seeds",
    ]


# ---- what ran ------------------------------------------------------------------------------------


def test_commit_of_a_checkout_counts_only_changes_of_code(tmp_path):
    assert commit(tmp_path) == ""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "docs").mkdir()
    for name in ("code.py", "README.md", "docs/results.tsv"):
        (tmp_path / name).write_text("1")
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert commit(tmp_path) == head != ""
    for name in ("README.md", "docs/results.tsv"):
        (tmp_path / name).write_text("2")
    assert commit(tmp_path) == head
    (tmp_path / "code.py").write_text("2")
    assert commit(tmp_path) == f"{head}-dirty"
