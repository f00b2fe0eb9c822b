"""Write the report of a run: one page of HTML that needs no network, from the figures and tables that are there.

A page of its own, not ``snakemake --report``: that shows figures one at a time beside the workflow's jobs, and a table
only as a page within the page, so that scores cannot be sorted, failures stand apart from what they explain, and
UMAPs cannot share one copy of Plotly.
"""

import argparse
import base64
import html
import json
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from clue.benchmark import style, tables
from clue.benchmark.errors import BenchmarkError, run_program
from clue.benchmark.files import atomic

TITLES = {
    "leaderboard": "Competition leaderboard",
    "comparison": "Comparison of methods",
    "ranking": "Ranking over splits",
    "ablation": "Ablation",
    "pairing": "Match score and paired training cells",
    "factors": "Information kept per factor",
    "integration": "Bio-conservation and mixing",
    "confusion": "Confusion of cell types",
    "learning": "Learning curves",
    "resources": "Run time and memory",
    "scaling": "Growth with cells",
}
"""Figures in the order of the report; what is not listed comes last, by name."""
SUMMARIES = {"summary": "Scores of this run", "paper": "Paper versus this run"}
PACKAGES = ["clue-bench", "snakemake", "torch", "numpy", "scipy", "scikit-learn", "anndata", "mudata", "scanpy"]
PACKAGES += ["faiss-cpu", "umap-learn", "scib-metrics", "matplotlib", "plotly"]


# ---- parts of the page ---------------------------------------------------------------------------


def read_rows(path: Path) -> dict:
    """Return columns and rows of a table, as text."""
    table = tables.read_table(path, columns=())
    return {"columns": list(table), "rows": table.to_numpy().tolist()}


def caption(folder: Path, name: str) -> Markup:
    """Return the caption of a figure; a UMAP's and a confusion's is that of its kind."""
    kind = re.match(r"[a-z]+", name)[0]
    path = next((path for path in (folder / f"{name}.rst", folder / f"{kind}.rst") if path.exists()), None)
    if path is None:
        return Markup("")
    text = html.escape(" ".join(path.read_text(encoding="utf-8").split()))
    return Markup(re.sub("``(.+?)``", r"<code>\1</code>", text))


def title_of(name: str, display: style.Display, splits: Sequence[tuple[str, str]]) -> str:
    """Return the heading of a figure, such as ``UMAP: PBMC CITE-seq (split donors)``."""
    for dataset, split in splits:
        for kind, label in (("umap", "UMAP of test cells"), ("confusion", TITLES["confusion"])):
            if name == f"{kind}_{dataset}_{split}":
                return f"{label}: {display.label('datasets', dataset)} (split {split})"
    return TITLES.get(name, name.replace("_", " "))


def groups(values: pd.Series, names: Sequence[str], labels: Sequence[str], colors: Sequence[str]) -> dict:
    """Return a grouping of points: for each the index of its group, and the groups' names and colours."""
    codes = pd.Categorical(values, categories=names).codes
    return {"codes": codes.tolist(), "names": list(labels), "colors": list(colors)}


def umap_points(path: Path, display: style.Display) -> dict:
    """Return what the page needs to draw a split's UMAPs: cells, their groups, coordinates per method."""
    columns = ["method", "variant", "cell", "modality", "cell_type", "x", "y"]
    try:
        frame = pd.read_csv(path, sep="\t", keep_default_na=False)[columns]
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise BenchmarkError(f"{path}: cannot be read ({error}); delete it and run again") from error
    parts = {method: part for method, part in frame.groupby("method", sort=False)}
    first = next(iter(parts.values()))
    types = display.cell_type_colors(first["cell_type"])
    modalities = display.order("modalities", first["modality"])
    return {
        "cells": first["cell"].tolist(),
        "type": groups(first["cell_type"], list(types), list(types), list(types.values())),
        "modality": groups(
            first["modality"],
            modalities,
            [display.label("modalities", name) for name in modalities],
            [display.color("modalities", name) for name in modalities],
        ),
        "methods": [
            {"name": display.label("methods", name), "x": parts[name]["x"].tolist(), "y": parts[name]["y"].tolist()}
            for name in display.order("methods", parts)
        ],
    }


def figure_item(path: Path, results: Path, captions: Path, configfiles: str, display: style.Display, splits) -> dict:
    """Return a figure of the page: image, caption, the command that makes it, its table, its points."""
    name = path.stem
    item = {"name": name, "title": title_of(name, display, splits), "caption": caption(captions, name)}
    item["image"] = base64.b64encode(path.read_bytes()).decode()
    target = path.with_suffix(".pdf")
    item["command"] = f"snakemake --cores 1 --configfile {configfiles} -- {target}"
    points, table = results / "tables" / f"{name}.tsv.gz", results / "tables" / f"{name}.tsv"
    if points.exists():
        item["umap"] = umap_points(points, display)
    elif table.exists():
        item |= {"table": read_rows(table), "folded": name != "leaderboard"}
    return item


def describe(metrics: pd.DataFrame) -> dict[str, str | int]:
    """Return the overview: what was planned, what there is, what failed."""
    jobs = metrics[[*tables.JOB, "seed", "status"]].copy()
    jobs["done"] = jobs["status"] == "ok"
    done = jobs.groupby([*tables.JOB, "seed"])["done"].any()
    failed = jobs[jobs["status"] == "failed"].drop_duplicates([*tables.JOB, "seed"])
    text = (
        f"{done.sum()} of {len(done)} planned jobs have scores: {jobs['method'].nunique()} methods, controls included, "
        f"on {len(tables.panels(jobs))} split(s) of {jobs['dataset'].nunique()} data set(s), "
        f"{jobs['seed'].nunique()} seed(s)."
    )
    return {"text": text, "failed": len(failed)}


def versions() -> dict:
    """Return a table of the versions of Python and the packages that are here."""
    rows = [["Python", platform.python_version()], ["System", f"{platform.system()} {platform.machine()}"]]
    for name in PACKAGES:
        try:
            rows.append([name, version(name)])
        except PackageNotFoundError:  # an environment of fewer packages made the report
            continue
    return {"columns": ["What", "Version"], "rows": rows}


# ---- the page ------------------------------------------------------------------------------------


def make_sections(figures: Sequence[dict], results: Path, captions: Path) -> list[dict]:
    """Return the sections of the page, in order."""

    def table(name: str, title: str, path: Path, folded: bool = False) -> dict:
        return {
            "name": name,
            "title": title,
            "table": read_rows(path),
            "folded": folded,
            "caption": caption(captions, name),
        }

    folder = results / "tables"
    scores = [
        table(name, title, folder / f"{name}.tsv", name == "paper")
        for name, title in SUMMARIES.items()
        if (folder / f"{name}.tsv").exists()
    ]
    data = [table("datasets", "", folder / "datasets.tsv")] if (folder / "datasets.tsv").exists() else []
    umaps = [item for item in figures if "umap" in item]
    others = [item for item in figures if "umap" not in item]
    found = [
        ("overview", "Overview", []),
        ("scores", "Scores", scores),
        ("figures", "Figures", others),
        ("umaps", "UMAPs", umaps),
        ("data", "Data", data),
        ("failures", "Failures", [table("failures", "", results / "failures.tsv")]),
        ("settings", "Configuration and versions", []),
    ]
    return [{"id": key, "title": title, "items": items} for key, title, items in found]


def render(figures: Sequence[Path], results: Path, captions: Path, config: dict, configfiles: str, display) -> str:
    """Return the page."""
    metrics = tables.read_metrics(results / "metrics.tsv")
    order = {name: i for i, name in enumerate(TITLES)}
    figures = sorted(figures, key=lambda path: (order.get(path.stem, len(order)), path.stem))
    splits = tables.panels(metrics)
    items = [figure_item(path, results, captions, configfiles, display, splits) for path in figures]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("report.html.j2").render(
        title=f"CLUE benchmark: {config['run']}",
        sections=make_sections(items, results, captions),
        overview=describe(metrics),
        command=f"make run CONFIG={configfiles}",
        config=yaml.safe_dump(config, sort_keys=False),
        versions=versions(),
        plotly=plotly_source() if any("umap" in item for item in items) else "",
    )


def plotly_source() -> str:
    """Return the JavaScript of Plotly (4.8 MB), which the page carries so as to work from disk."""
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", required=True, type=Path, help="results/<run>, with its tables")
    parser.add_argument("--figures", required=True, nargs="*", type=Path, help="figures to show (PNG)")
    parser.add_argument("--captions", required=True, type=Path, help="the folder rules/captions")
    parser.add_argument("--config", required=True, help="the run's configuration (JSON)")
    parser.add_argument("--configfiles", required=True, help="the files that hold it, for the commands")
    parser.add_argument("--display", required=True, help="config/display.yaml")
    parser.add_argument("--output", required=True, type=Path, help="HTML to write")
    args = parser.parse_args(argv)
    page = render(
        args.figures,
        args.results,
        args.captions,
        json.loads(args.config),
        args.configfiles,
        style.Display(args.display),
    )
    with atomic(args.output) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
