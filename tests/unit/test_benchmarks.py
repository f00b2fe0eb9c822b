"""The programs of `benchmarks/` run, at sizes too small to measure speed."""

import subprocess
import sys

import pytest
import torch

from clue import network


def run(project, name, *arguments):
    """Return the table that the program printed, as rows."""
    command = [sys.executable, str(project / "benchmarks" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]


@pytest.mark.slow
def test_train_speed(project, tmp_path):
    pytest.importorskip("scglue", reason="scglue, the authors' implementation, is not installed")
    shape = ["--cells", 300, "--genes", 40, "--peaks", 60, "--seconds", 1, "--folder", tmp_path]
    header, *rows = run(project, "train_speed", *shape)
    # bfloat16 is included if the processor can multiply it
    sides = [row[1] for row in rows]
    assert sides[:3] == ["reference", "clue", "clue_from_files"] and sides[3:] in ([], ["clue_bfloat16"])
    assert not list(tmp_path.iterdir())
    for row in rows:
        assert len(row) == len(header)
        assert all(float(value) > 0 for value in row[2:])
    assert float(rows[0][header.index("speed_ratio")]) == 1


@pytest.mark.slow
def test_time_to_loss(project, tmp_path):
    pytest.importorskip("scglue", reason="scglue, the authors' implementation, is not installed")
    shape = ["--cells", 300, "--genes", 40, "--peaks", 60, "--epochs", 6, "--folder", tmp_path]
    header, *rows = run(project, "time_to_loss", *shape)
    assert [row[0] for row in rows] == ["reference", "clue", "clue_fast"]
    loss = [float(row[header.index("loss_at_end")]) for row in rows]
    assert all(value > 0 for value in loss) and loss[2] < loss[1]
    assert rows[0][header.index("times_faster")] == "1.00" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_embed_scale(project, tmp_path):
    header, *rows = run(project, "embed_scale", "--cells", 3000, "--genes", 60, "--folder", tmp_path)
    assert [row[:3] for row in rows] == [["embed", "3000", "60"], ["predict", "3000", "60"]]
    assert {len(row) for row in rows} == {len(header)}
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_train_backed_needs_less_anonymous_memory(project, tmp_path):
    header, *rows = run(project, "train_backed", "--cells", 40000, "--genes", 2000, "--steps", 2, "--folder", tmp_path)
    assert [row[2] for row in rows] == ["memory", "backed"] and not list(tmp_path.iterdir())
    added = [float(row[header.index("peak_anon_GB")]) - float(row[header.index("before_GB")]) for row in rows]
    # 0.42 and 0.34 GB: the counts take 77 MB; both sides need the rest
    assert added[0] - added[1] > 0.04


@pytest.mark.slow
def test_foscttm_scale_checks_against_the_naive_formula(project):
    _, *rows = run(project, "foscttm_scale", "--cells", 700, "--dimensions", 5, "--naive", 300)
    assert [row[1] for row in rows] == ["naive", "foscttm", "naive", "foscttm", "match_snn"]
    assert rows[0][-1] == rows[1][-1]
    assert 0 < float(rows[3][-1]) < 0.5


@pytest.mark.slow
def test_preprocess_scale(project, tmp_path):
    shape = ["--cells", 1500, "--genes", 200, "--peaks", 400, "--folder", tmp_path]
    _, *rows = run(project, "preprocess_scale", *shape)
    assert [[row[1], row[3]] for row in rows] == [[k, side] for k in ("rna", "atac") for side in ("ours", "peer")]
    for row in rows:
        # more than the counts, which are in memory
        assert float(row[4]) > 0 and float(row[7]) >= 1


@pytest.mark.slow
@pytest.mark.parametrize(("check", "expected"), [("losses", "relative difference"), ("time", "a step, ms")])
def test_gpu_check_on_the_cpu(load_program, project, monkeypatch, capsys, check, expected):
    """Runs in this process; what it changes in the library is restored."""
    monkeypatch.syspath_prepend(project / "benchmarks")
    monkeypatch.setattr(network, "_noise_like", network._noise_like)
    program = load_program("benchmarks/gpu_check.py")
    getattr(program, f"check_{check}")(program.Setup("cpu", 300, {"rna": 40, "atac": 60}))
    assert f"\n  {expected}" in f"\n{capsys.readouterr().out}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_without_a_gpu_says_so_in_one_line(project):
    command = [sys.executable, str(project / "benchmarks" / "gpu_check.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1 and "no GPU here" in done.stdout
