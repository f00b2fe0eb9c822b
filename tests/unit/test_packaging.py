"""The wheel and the sdist contain only the library, and it works when installed from them."""

import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile

import pytest

NEEDED = ("pyproject.toml", "README.md", "LICENSE", "clue")
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def build(kind: str, folder, target) -> str:
    """Build a wheel or an sdist of a folder; return its path."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return str(target / ran.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def sdist(project, tmp_path_factory):
    """An sdist of the project."""
    folder = tmp_path_factory.mktemp("project")
    for name in NEEDED:
        copy = shutil.copytree if (project / name).is_dir() else shutil.copy
        copy(project / name, folder / name)
    return build("sdist", folder, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """A wheel built from the sdist."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", next(folder.iterdir()), tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def modules(project):
    """The files of the library."""
    return {f"clue/{path.name}" for path in (project / "clue").glob("*.py")} | {"clue/py.typed"}


def test_wheel_contains_only_the_library(wheel, modules):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == modules


def test_sdist_contains_what_a_wheel_is_built_from(sdist, modules):
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in names if ".egg-info/" not in name} == modules | {*NEEDED} - {"clue"} | made


def in_an_empty_folder(wheel, tmp_path, code: str) -> str:
    """Run code with the library from the wheel; return what it printed."""
    code = f"import sys; sys.path.insert(0, {wheel!r})\n{code}"
    ran = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert not list(tmp_path.iterdir())
    return ran.stdout


def test_library_needs_nothing_of_the_benchmark(wheel, tmp_path):
    code = "import pkgutil, importlib, clue\n"
    code += "names = [m.name for m in pkgutil.iter_modules(clue.__path__, 'clue.')]\n"
    code += "[importlib.import_module(name) for name in names]\n"
    code += "print(len(names), 'snakemake' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    n, *loaded = in_an_empty_folder(wheel, tmp_path, code).split()
    assert int(n) > 10 and loaded == ["False", "False"]


def test_importing_the_library_is_fast_and_needs_no_torch(wheel, tmp_path):
    seconds = []
    for _ in range(3):  # the machine may be busy
        begin = time.monotonic()
        assert in_an_empty_folder(wheel, tmp_path, "import clue; print('torch' in sys.modules)").strip() == "False"
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 1


def test_version_is_that_of_the_changelog_and_the_citation(project, wheel):
    import clue

    latest = re.search(r"^## (\S+)", (project / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    cited = re.search(r"^version: (\S+)$", (project / "CITATION.cff").read_text(), re.MULTILINE)[1]
    assert clue.__version__ == latest == cited
    assert f"clue_bench-{latest}-" in wheel


def test_extras_are_for_plots_and_the_workflow(project):
    extras = tomllib.loads((project / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"plots", "workflow", "docs", "test"} <= extras.keys()
    assert "clue-bench[plots]" in extras["workflow"]
