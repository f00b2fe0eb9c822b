"""Shared fixtures: the project folder, data sets, and running a program of ``scripts/`` in this process."""

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import mudata as md
import pytest
import yaml

from clue.benchmark.program import run_program
from clue.simulate import simulate

# The data are small, and several test processes run at once: threads would mostly wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Numba fixes its number of threads on first use; `run_method`, which tests call, would try to change it later.
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

PROJECT = Path(__file__).resolve().parents[1]
CHROMIUM = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update", "--window-size=1300,1000"]


@pytest.fixture(scope="session")
def project() -> Path:
    """The project folder."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real competition slices; tests that use it are skipped if there is none."""
    folder = Path(os.environ.get("CLUE_SHARED_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with the competition's slices; name one in CLUE_SHARED_DATA")
    return folder


@pytest.fixture
def tiny_mdata() -> md.MuData:
    """60 simulated cells in RNA and proteins, 2 batches; a new copy for every test."""
    return simulate(60, {"rna": 40, "adt": 12}, n_types=3, seed=1)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project as the working directory: schemas, but no data sets or methods."""
    shutil.copytree(PROJECT / "config" / "schemas", tmp_path / "config" / "schemas")
    (tmp_path / "config" / "datasets").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def add_dataset(workplace: Path) -> Callable[[str, dict], None]:
    """A function that writes ``config/datasets/<name>.yaml`` in the workplace."""

    def add(name: str, spec: dict) -> None:
        (workplace / "config" / "datasets" / f"{name}.yaml").write_text(yaml.safe_dump(spec))

    return add


@pytest.fixture(scope="session", name="load_program")
def _load_program() -> Callable[[str], ModuleType]:
    """A function that imports a program of the project by its path."""
    return load_program


@pytest.fixture(scope="session")
def scripts() -> Callable[[str], ModuleType]:
    """A function that imports a program of ``scripts/``."""
    return lambda name: load_program(f"scripts/{name}")


@pytest.fixture(scope="session")
def document_programs() -> Callable[[str], ModuleType]:
    """A function that imports a program of ``docs/make/``."""
    return lambda name: load_program(f"docs/make/{name}")


def load_program(path: str) -> ModuleType:
    """Import a program of the project, such as ``docs/make/tables.py``, under a name made from its path."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), PROJECT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_script(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """A function that runs a program of ``scripts/``; it returns the exit status and what an error printed."""

    def run(name: str, *arguments: str | Path) -> tuple[int, str]:
        module = load_program(f"scripts/{name}.py")
        try:
            run_program(module.main, [str(argument) for argument in arguments])
        except SystemExit as end:
            # As Python itself does on exit: a message is printed, and the status is 1.
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
                return 1, capsys.readouterr().err
            return end.code or 0, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


@pytest.fixture
def browser(tmp_path) -> Iterator:
    """Headless Chromium with a log of its console."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver on this machine; Debian: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*CHROMIUM, f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()
