"""The Makefile: paths of any kind, what it may delete, which Python it uses. No environment is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
FILES = ("Makefile", "requirements.lock", "torch.lock", "pyproject.toml")
ECHO = '#!/bin/sh\nfor word in "$@"; do echo "[$word]"; done\n'


def program(path, text=ECHO):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def make(tmp_path):
    """A function that calls make in a folder with the Makefile; it returns the exit status and the output."""
    if not shutil.which("make"):
        pytest.skip("no make on this machine")
    for name in FILES:
        shutil.copy(PROJECT / name, tmp_path)

    def call(*words, **environment):
        of_make_test = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
        environment = {key: value for key, value in os.environ.items() if key not in of_make_test} | environment
        ran = subprocess.run(["make", *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        return ran.returncode, ran.stdout + ran.stderr

    return call


@pytest.fixture
def installed(tmp_path):
    """An up-to-date environment whose Python prints its arguments."""
    program(tmp_path / ".venv/bin/python")
    stamp = "cat requirements.lock torch.lock pyproject.toml | cksum | tr ' ' '-'"
    name = subprocess.run(stamp, shell=True, cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    (tmp_path / f".venv/installed-{name}").touch()


PATHS = ["my run.yaml", "it's.yaml", 'a "b".yaml', "a;b&c.yaml"]


@pytest.mark.parametrize("path", PATHS)
def test_paths_reach_programs_unchanged(make, installed, path):
    for target in ("run", "status", "download", "record"):
        assert f"[{path}]" in make(target, f"CONFIG={path}")[1], target
    _, output = make("score", f"EMBEDDING={path}", f"SOLUTION=other {path}")
    assert f"[{path}]" in output and f"[other {path}]" in output


def test_defaults_reach_programs_too(make, installed):
    assert "[config/quick.yaml]\n[--cores]\n[2]" in make("run")[1]
    assert "[--profile]\n[slurm]" in make("run", "PROFILE=slurm")[1]
    assert "[--embedding]" not in make("score")[1], "the program says what is missing"


@pytest.mark.parametrize("is_link", [True, False])
def test_environment_not_made_by_make_is_left_alone(make, tmp_path, is_link):
    mine = tmp_path / "disk" if is_link else tmp_path / ".venv"
    program(mine / "bin/python")
    if is_link:
        (mine / "installed-of-another-checkout").touch()
        (tmp_path / ".venv").symlink_to(mine)
    status, output = make("status")
    assert status and "error: .venv is a link, or not made by make: remove or rename it" in output
    assert (mine / "bin/python").exists()


@pytest.mark.parametrize("mark", ["installed-by-make", "installed-1-2"])
def test_environment_made_by_make_is_replaced(make, tmp_path, mark):
    """Also an interrupted one, and one from an older lock."""
    program(tmp_path / "python", ECHO + '[ "$2" != venv ] || { mkdir .venv/bin; cp "$0" .venv/bin/python; }\n')
    (tmp_path / ".venv/lib").mkdir(parents=True)
    (tmp_path / ".venv" / mark).touch()
    status, output = make("install", f"PYTHON={tmp_path}/python")
    assert status == 0 and "[venv]" in output and "[install]" in output
    assert not (tmp_path / ".venv/lib").exists() and len(list((tmp_path / ".venv").glob("installed-*"))) == 2


def test_supported_python_is_used(make, tmp_path):
    for name in ("make", "sh", "cat", "cksum", "tr", "ls", "test"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    program(tmp_path / "bin/python3.11", "#!/bin/sh\nexit 127\n")  # pyenv's, of a version that is not in use
    program(tmp_path / "bin/python3.12")
    assert "python3.12 -m venv" in make("--dry-run", "install", PATH=f"{tmp_path}/bin")[1]
    (tmp_path / "bin/python3.12").unlink()
    status, output = make("install", PATH=f"{tmp_path}/bin")
    assert status and "error: python3.11: Python 3.11 or 3.12 is needed; name one: make PYTHON=" in output


# ---- clean ---------------------------------------------------------------------------------------


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def write(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


RESULTS = ["results/README.md", "results/quick/metrics.tsv", "results/prepared/x.h5mu", "results/old/metrics.tsv"]
LOGS = ["logs/quick/x.log", "logs/prepared/x.log", ".snakemake/metadata/x"]


def test_clean_removes_everything_but_data(make, tmp_path):
    write(tmp_path, *RESULTS, *LOGS, "data/raw/x")
    assert make("clean") == (0, "")
    assert files_below(tmp_path) == {"results/README.md", "data/raw/x", *FILES}
    assert not (tmp_path / "logs").exists() and not (tmp_path / "results/quick").exists()
    assert make("clean") == (0, "")


def test_clean_follows_links_to_what_was_made_here(make, tmp_path):
    write(tmp_path / "scratch", *RESULTS, *LOGS)
    for name in ("results", "logs", ".snakemake"):
        (tmp_path / name).symlink_to(tmp_path / "scratch" / name)
    status, output = make("clean")
    assert status == 0 and "results is a link; no log here names: README.md, old" in output
    assert files_below(tmp_path / "scratch") == {"results/README.md", "results/old/metrics.tsv"}
    assert (tmp_path / "results").is_symlink()


def test_clean_follows_the_link_of_a_run(make, tmp_path):
    write(tmp_path, "results/README.md", "logs/quick/x.log", "scratch/metrics.tsv")
    (tmp_path / "results/quick").symlink_to(tmp_path / "scratch")
    assert make("clean") == (0, "")
    assert files_below(tmp_path) == {"results/README.md", *FILES}
