"""The report in a real browser: it loads from disk without console errors, sorts, and shows labels on hover."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tidy import metrics

from clue.benchmark.report import tables

N_POINTS = 40


@pytest.fixture
def results(tmp_path) -> Path:
    """The results of a run: scores of two methods, one failure, a figure, one with nothing to draw, a UMAP."""
    for folder in ("figures", "tables"):
        (tmp_path / folder).mkdir()
    values = {"clue": (0.1, 0.05), "cca": (0.09, 0.04)}
    scores = [("pbmc_cite", "donors", name, "default", i, *value) for name, value in values.items() for i in range(2)]
    failed = ("pbmc_cite", "donors", "multivi", "default", 0, "failed", "no <script>alert(1)</script> memory")
    tables.write_table(metrics(*scores, failed), tmp_path / "metrics.tsv")
    failures = pd.DataFrame([{"method": "multivi", "status": "failed", "reason": failed[-1]}])
    tables.write_table(failures, tmp_path / "failures.tsv")
    summary = {"Data set": "PBMC CITE-seq", "Split": "donors", "Method": ["b", "c", "a", "d", "e", "f", "g"]}
    summary["Match score ↑"] = ["0.09 ± 0.01", "0.1 ± 0.2", "2e-05", *["9"] * 3, ""]
    tables.write_table(pd.DataFrame(summary), tmp_path / "tables" / "summary.tsv")
    source = {"label": "CLUE", "source": "github.com/owner/name@0a1b file; https://a.org/" + "x" * 60, "dataset": "all"}
    columns = "label dataset split metric direction published ours seeds verdict why source".split()
    paper = pd.DataFrame([source]).reindex(columns=columns)
    tables.write_table(paper, tmp_path / "tables" / "paper.tsv")
    tables.write_table(pd.DataFrame({"method": ["clue"]}), tmp_path / "tables" / "ablation.tsv")
    tables.write_table(pd.DataFrame({"method": []}), tmp_path / "tables" / "learning.tsv")
    for name in ("ablation", "learning", "umap_pbmc_cite_donors"):
        Image.new("RGB", (400, 200), "white").save(tmp_path / "figures" / f"{name}.png")
    cells = pd.DataFrame({"cell": [f"rna_{i:06d}" for i in range(1, N_POINTS + 1)], "variant": "default"})
    cells["modality"] = np.repeat(["rna", "adt"], N_POINTS // 2)
    cells["cell_type"] = [f"type {i % 3}" for i in range(N_POINTS)]
    points = pd.concat([cells.assign(method=method) for method in ("clue", "cca")])
    points[["x", "y"]] = np.random.default_rng(0).normal(size=(2 * N_POINTS, 2))
    points.to_csv(tmp_path / "tables" / "umap_pbmc_cite_donors.tsv.gz", sep="\t", index=False)
    return tmp_path


@pytest.fixture
def report(results, scripts, project, display) -> Path:
    """The report of those results."""
    given = {"figures": sorted(results.glob("figures/*.png")), "display": display, "output": results / "report.html"}
    given |= {"captions": project / "rules/captions", "config": {"run": "t"}, "configfiles": "config/quick.yaml"}
    scripts("figures/report.py").main(results, **given)
    return results / "report.html"


def test_report_names_commands_failures_and_versions(report):
    page = report.read_text()
    assert "snakemake --cores 1 --configfile config/quick.yaml" in page and "figures/ablation.pdf" in page
    assert "figures/learning.pdf" not in page
    assert "4 of 5 planned jobs have scores" in page and "1 job(s) failed" in page
    assert "no &lt;script&gt;alert(1)&lt;/script&gt; memory" in page and "<script>alert(1)" not in page
    assert "clue-bench" in page and "run: t" in page
    assert not re.search(r'(src|srcset)="(?!data:)', page), "what a page loads must be inside it"
    assert len(page.encode()) < 6e6


def test_report_names_the_best_method(report):
    page = " ".join(report.read_text().split())
    assert "<strong>CLUE (our settings)</strong> has the best match score, 0.1 ± 0, before CCA with 0.09 ± 0." in page
    assert "<strong>CCA</strong> has the best FOSCTTM, 0.04 ± 0, before CLUE (our settings) with 0.05 ± 0." in page


def test_sources_are_links_and_long_cells_are_folded(scripts):
    program = scripts("figures/report.py")
    linked = program.cell("github.com/owner/name@0a1b results/file.csv; <b> " + "and more " * 9)
    assert linked.startswith("<details><summary>source</summary>") and "&lt;b&gt;" in linked
    assert 'href="https://github.com/owner/name/tree/0a1b"' in linked
    assert program.cell("a word " * 20).startswith("<details><summary>a word a word")
    shown = {"0.123456": "0.1235", "-1.5e-07": "-1.5e-07", "12": "12", "0.1 ± 0.2": "0.1\u00a0±\u00a00.2"}
    assert {text: program.cell(text) for text in shown} == shown and program.cell("1.2.3") == "1.2.3"


def column(browser, table: str, i: int) -> list[str]:
    """Return a column of a table as the page shows it."""
    rows = f"#{table} tbody tr td:nth-child({i + 1})"
    return [cell.text for cell in browser.find_elements("css selector", rows)]


def requested(browser) -> set[str]:
    """Return the addresses that the page requested, without inline ones and the browser's own new tab."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {url for url in sent if not url.startswith(("data:", "chrome:", "chrome-untrusted:"))}


def hover(browser, x: float, y: float) -> None:
    """Move the mouse to a point of the window."""
    event = {"type": "mouseMoved", "x": x, "y": y}
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", event)


@pytest.mark.slow
def test_report_works_in_a_browser(browser, report, tmp_path):
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.support.ui import Select, WebDriverWait

    # a label may be redrawn after it is found and before it is read
    wait = WebDriverWait(browser, 60, ignored_exceptions=[StaleElementReferenceException])
    browser.get(report.as_uri())

    # Sorting: by number, empty last; a second click reverses it.
    name = "table_scores_pbmc_cite_donors"
    head = browser.find_elements("css selector", f"#{name} th button")[1]
    head.click()
    assert column(browser, name, 0) == ["a", "b", "c", "d", "e", "f", "g"]
    head.click()
    assert column(browser, name, 0) == ["d", "e", "f", "c", "b", "a", "g"]

    # Filtering: rows that contain every word.
    field = browser.find_element("css selector", f"input[data-table={name}]")
    field.send_keys("± B")
    assert [text for text in column(browser, name, 0) if text] == ["b"]

    # At no width does anything but tables scroll sideways.
    for width in (1280, 390):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    browser.execute_script("document.querySelector('.umap').scrollIntoView()")
    wait.until(lambda page: len(page.find_elements("css selector", ".umap .legendtoggle")) == 3)

    # Hovering: the first point's label names cell, type, modality and method.
    Select(browser.find_element("css selector", ".umap .method")).select_by_visible_text("CCA")
    Select(browser.find_element("css selector", ".umap .colour")).select_by_value("modality")
    wait.until(lambda page: len(page.find_elements("css selector", ".umap .legendtoggle")) == 2)
    browser.execute_script("document.querySelector('.plot').scrollIntoView({block: 'center'})")
    place = browser.execute_script(
        "const r = document.querySelector('.plot .scatterlayer path.point').getBoundingClientRect();"
        "return [r.x + r.width / 2, r.y + r.height / 2]"
    )
    hover(browser, place[0] - 30, place[1])
    hover(browser, *place)
    labels = wait.until(lambda page: [found.text for found in page.find_elements("css selector", ".hovertext")])
    label = labels[0]
    assert "rna_0000" in label and "type " in label and "CCA" in label and ("RNA" in label or "ADT" in label)

    # Nothing failed, and nothing was loaded from elsewhere.
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert requested(browser) == {report.as_uri()}
    browser.save_screenshot(str(tmp_path / "report.png"))
    assert (tmp_path / "report.png").stat().st_size > 20_000
