"""What a machine can check in the documents: links work, code runs, commands and files exist."""

import doctest
import importlib.util
import os
import re
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml

from clue.benchmark.contracts import read_embedding, write_test
from clue.benchmark.data.task import make_task
from clue.benchmark.scores.scoring import score

LONGEST_README = 120
FOLDERS = "benchmarks clue config docs envs profiles rules scripts tests tools".split()
MADE_UP = ("my_method", "my_data", "pls", "SHA256SUMS", ".sif")  # files that a reader or a command makes


@pytest.fixture(scope="module")
def pages(project) -> dict[Path, str]:
    """The text of each document."""
    files = [project / "README.md", *sorted((project / "docs").rglob("*.md"))]
    return {path: path.read_text() for path in files}


def code(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def without_code(text: str) -> str:
    """Return a document without its code blocks, whose brackets and number signs are not links and headings."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


# ---- links ---------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as Markdown programs name them."""
    headings = re.findall(r"^#+ +(.*)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_links_between_documents_work(pages):
    n_links = 0
    for path, text in pages.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
            parts = urlsplit(target)
            if parts.scheme:
                continue
            n_links += 1
            file = (path.parent / parts.path).resolve() if parts.path else path
            assert file.exists(), f"{path.name}: {target}: no such file"
            if parts.fragment and file.suffix == ".md":
                assert parts.fragment in anchors(file.read_text()), f"{path.name}: {target}: no such heading"
    assert n_links > 50


class Page(HTMLParser):
    """The identifiers, links and resources of a page of the site."""

    def __init__(self, text: str):
        super().__init__()
        self.names, self.links, self.loaded = {"", "__skip"}, [], []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the identifier, what is linked, and what a browser loads by itself."""
        attributes = dict(attrs)
        self.names.update(filter(None, (attributes.get("id"), attributes.get("name"))))
        self.links += [attributes[key] for key in ("href", "src") if attributes.get(key)]
        if tag in ("script", "img", "iframe", "source") and attributes.get("src"):
            self.loaded.append(attributes["src"])
        if tag == "link" and attributes.get("rel") not in ("canonical", "next", "prev") and attributes.get("href"):
            self.loaded.append(attributes["href"])


@pytest.fixture(scope="module")
def site(project, tmp_path_factory) -> dict[Path, Page]:
    """The pages of the site, built with warnings as errors."""
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        if not importlib.util.find_spec(package.split(".")[0]):
            pytest.skip(f"{package} is not installed; `make install` installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(project), "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    # 404.html is for servers: its links start from their root.
    return {path: Page(path.read_text()) for path in folder.rglob("*.html") if path.name != "404.html"}


def test_site_has_no_dead_links_and_loads_nothing_from_elsewhere(site):
    assert len(site) > 10
    for path, page in site.items():
        for target in page.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert file.is_file(), f"{path.name}: {target}: no such file"
            if file in site:
                assert unquote(parts.fragment) in site[file].names, f"{path.name}: {target}: no such place"
        loaded = [urlsplit(target) for target in page.loaded]
        assert not [parts.geturl() for parts in loaded if parts.netloc], path.name


@pytest.mark.slow
def test_site_can_be_searched_from_disk(site, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    (front,) = (path for path in site if path.name == "index.html" and path.parent.name != "results")
    browser.get(front.as_uri())
    field = browser.find_element("css selector", ".md-search__input")
    field.click()
    field.send_keys("foscttm")
    found = ".md-search-result__item"
    WebDriverWait(browser, 60).until(lambda page: len(page.find_elements("css selector", found)) > 2)
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_api_page_covers_the_library(site):
    import clue

    (api,) = (page for path, page in site.items() if path.name == "api.html")
    homes = {"CLUE": "model.CLUE", "Objective": "network.Objective", "Training": "train.Training"}
    for name in clue.__all__:
        assert any(shown.startswith(f"clue.{homes.get(name, name)}") for shown in api.names), name
    (text,) = (path.read_text() for path in site if path.name == "api.html")
    row = text.partition("<code>decoder</code>")[2].partition("</tr>")[0]
    assert "(1, 128)" in re.sub("<[^>]*>", "", row)  # its own default; its line of the docstring is also encoder's


# ---- the README ----------------------------------------------------------------------------------


def test_readme_is_short(pages, project):
    assert len(pages[project / "README.md"].splitlines()) <= LONGEST_README


def test_library_example_in_the_readme_runs(pages, project, capsys):
    block = next(block for block in code(pages[project / "README.md"], "python") if "import clue" in block)
    quick = re.sub(r"max_steps=\d+", "max_steps=3, progress=False", block)
    assert quick != block
    names = {}
    exec(quick, names)
    assert names["z"].shape == (400, 60) and names["proteins"].shape == (400, 50)
    shown, (promised,) = capsys.readouterr().out, code(pages[project / "README.md"], "text")
    assert shown.splitlines()[0] == promised.splitlines()[0]
    assert re.sub(r"[\d.]+$", "", shown.splitlines()[1]) == re.sub(r"[\d.]+$", "", promised.splitlines()[1])


@pytest.mark.parametrize("page", ["README.md", "docs/extend.md"])
def test_example_method_in_the_documents_embeds(pages, project, tiny_mdata, page):
    text = pages[project / page]
    block = next(block for block in code(text, "python") if "run_method" in block)
    spec = next(yaml.safe_load(block) for block in code(text, "yaml") if "my_method.py" in block)
    assert spec["settings"]
    names = {"__name__": "my_method"}
    exec(block, names)
    for adata in tiny_mdata.mod.values():
        adata.X[-1] = adata.X[0]
    embedding = names["embed"](types.SimpleNamespace(test=tiny_mdata.mod), spec["params"], seed=0)
    assert all(np.allclose(array[-1], array[0]) for array in embedding.values())  # as `make check-method` requires
    assert {name: np.shape(array) for name, array in embedding.items()} == {"rna": (60, 20), "adt": (60, 20)}


def test_example_of_an_embedding_made_elsewhere_can_be_scored(pages, project, tiny_mdata, tmp_path, monkeypatch):
    task = make_task(tiny_mdata, "tiny", "s", {"kind": "random", "fraction": 0.25, "seed": 0})
    monkeypatch.chdir(tmp_path)
    for name, cells in task.tests.items():
        write_test(cells, f"results/quick/pbmc_cite/donors/test_{name}.h5ad")
    block = next(block for block in code(pages[project / "docs/extend.md"], "python") if "mine[name]" in block)
    exec(block, {"mine": {name: cells.X.toarray()[:, :4] for name, cells in task.tests.items()}})
    assert set(score(read_embedding("embedding.h5ad"), task.solution).metrics["method"]) == {"mine"}


# ---- what pages say ------------------------------------------------------------------------------


def test_worked_example_of_the_metrics_is_right(pages, project):
    page = project / "docs" / "benchmark.md"
    example = doctest.DocTestParser().get_doctest(pages[page], {}, page.name, str(page), 0)
    assert len(example.examples) >= 5
    output = []
    failed, _ = doctest.DocTestRunner().run(example, out=output.append)
    assert not failed, "".join(output)


def test_commands_and_files_in_the_documents_exist(pages, project):
    targets = set(re.findall(r"^([\w-]+):", (project / "Makefile").read_text(), re.MULTILINE))
    for path, text in pages.items():
        for name in re.findall(r"(?:^|`)make ([a-z][\w-]*)(?=[ `\n])", text, re.MULTILINE):
            assert name in targets, f"{path.name}: make {name}: the Makefile has no such target"
        for name in re.findall(rf"(?<![\w/.~])(?:{'|'.join(FOLDERS)})/[\w./-]*(?:\.[a-z0-9]+|/)(?![\w<*])", text):
            if not any(word in name for word in MADE_UP):
                assert (project / name).exists(), f"{path.name}: {name}: no such file"


def test_every_method_has_a_section_that_agrees_with_its_file(pages, project):
    page = pages[project / "docs" / "methods.md"]
    specs = {path.stem: yaml.safe_load(path.read_text()) for path in (project / "config" / "methods").glob("*.yaml")}
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == re.findall(r"^\| \[`(\w+)`\]", page, re.MULTILINE)
    found = re.findall(r"^\| \[`(\w+)`\]\(.*?\) \| (.*?) \| .* \| (.*?) \|$", page, re.MULTILINE)
    rows = {name: cells for name, *cells in found}
    assert rows.keys() == specs.keys()
    for name, spec in specs.items():
        label, sees = rows[name]
        assert label == spec["label"].partition(" (ATAC:")[0]
        assert sees.startswith("yes") == spec["params"].get("transductive", False), name
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        name = section.partition("\n")[0]
        table = section.partition(f"<!-- table: method {name} -->")[2]
        assert "| Licence | " in table, f"docs/methods.md: {name}: no table of its own, or its YAML has no licence"


def test_every_data_set_has_a_row(pages, project):
    rows = re.findall(r"^\| `(\w+)` \|", pages[project / "docs" / "benchmark.md"], re.MULTILINE)
    assert {path.stem for path in (project / "config" / "datasets").glob("*.yaml")} <= set(rows)
