"""Write the report of a run: one page of HTML that needs no network, from the existing figures and tables.

This is not ``snakemake --report``, which shows figures one at a time beside the workflow's jobs, and a table only as a
page within the page. There, scores cannot be sorted, failures stand apart from what they explain, and UMAPs cannot
share one copy of Plotly.
"""

import base64
import gzip
import html
import io
import json
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from clue.benchmark.files import atomic
from clue.benchmark.program import run_program
from clue.benchmark.report import style, tables
from clue.benchmark.report.tables import MAIN_METRICS
from clue.benchmark.scores.stats import summarise

TITLES = {
    "leaderboard": "Competition leaderboard",
    "ablation": "Ablation",
    "prediction": "Prediction of the other modality",
    "pairing": "Scores and paired training cells",
    "factors": "Information kept per factor",
    "integration": "Bio-conservation and mixing",
    "learning": "Learning curves",
    "resources": "Run time and memory",
}
"""Figures over all data sets, in the order of the report; unlisted ones come last, by name."""
SHOWN = {
    "leaderboard": "label origin adt2rna rna2adt atac2rna rna2atac overall evidence source".split(),
    "prediction": "label dataset split direction kind variant pearson_cell pearson rmse origin note".split(),
    "paper": "label dataset split metric direction published ours seeds verdict why source".split(),
}
"""The columns to show of wide tables."""
MAX_ROWS = 400
POINT = ["cell", "cell_type", "modality", "x", "y"]
"""Columns that the page needs for a point in a UMAP."""
LONGEST_CELL = 60
"""Longest cell that is not folded, in characters."""
PACKAGES = """clue-bench snakemake torch numpy scipy scikit-learn anndata mudata scanpy faiss-cpu umap-learn
scib-metrics matplotlib seaborn plotly""".split()


# ---- tables --------------------------------------------------------------------------------------


def show(table: pd.DataFrame, name: str) -> dict:
    """Return what the page needs to show a table: its columns, its first rows, and how many there are."""
    table = table[SHOWN.get(name, list(table))]
    rows = [[cell(str(value)) for value in row] for row in table.head(MAX_ROWS).to_numpy()]
    columns = [column.replace("_", " ") for column in table]
    return {"name": name, "columns": columns, "rows": rows, "n_rows": len(table), "max_rows": MAX_ROWS}


def cell(text: str) -> Markup:
    """Return a cell: numbers with four digits, addresses behind links, and long text folded."""
    if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", text):
        return Markup(f"{float(text):.4g}")
    linked = link(text.replace(" ± ", "\u00a0±\u00a0"))
    if len(text) <= LONGEST_CELL:
        return linked
    summary = "source" if "<a " in linked else html.escape(text[: LONGEST_CELL - 20].rsplit(" ", 1)[0]) + " …"
    return Markup(f"<details><summary>{summary}</summary>{linked}</details>")


def link(text: str) -> Markup:
    """Return a text with its addresses as links; a commit on GitHub (``owner/name@hash``) leads to its files."""
    parts = re.split(r"((?:https?://|\bgithub\.com/)[^\s;,]+)", text)
    for i, part in enumerate(parts):
        parts[i] = html.escape(part)
        if i % 2:  # an address
            target = part if part.startswith("http") else "https://" + part.replace("@", "/tree/")
            parts[i] = f'<a href="{html.escape(target)}" rel="noreferrer">{parts[i]}</a>'
    return Markup("".join(parts))


# ---- figures -------------------------------------------------------------------------------------


def show_figure(path: Path, title: str, captions: Path) -> dict:
    """Return what the page needs to show a figure: the image as WebP, a third of the size of PNG, and its caption."""
    with Image.open(path) as image:
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=85)
        size = image.size
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"name": path.stem, "title": title, "image": data, "size": size, "caption": caption(captions, path.stem)}


def caption(folder: Path, name: str) -> Markup:
    """Return the caption of a figure or table. All UMAPs share a caption."""
    for path in (folder / f"{name}.rst", folder / f"{name.split('_')[0]}.rst"):
        if path.exists():
            text = html.escape(" ".join(path.read_text(encoding="utf-8").split()))
            return Markup(re.sub("``(.+?)``", r"<code>\1</code>", text))
    return Markup("")


def packed(text: str) -> str:
    """Return a text as base64 of gzip, a third of its size, which the page unpacks."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def umap_points(path: Path, display: style.Display) -> str:
    """Return the packed data for drawing a split's UMAPs: cells, their groups, and coordinates per method."""
    frame = tables.read_table(path, ["method", "variant", *POINT], numeric=["x", "y"]).round(2)
    groups = {key: sorted(set(frame[key])) for key in ("cell_type", "modality")}
    parts = dict(list(frame.groupby("method")[POINT]))
    colors = display.cell_type_colors(groups["cell_type"])
    colors |= {name: display.color("modalities", name) for name in groups["modality"]}
    labels = {name: display.label("modalities", name) for name in groups["modality"]}
    methods = {row.label: parts[row.method].to_dict("list") for row in display.methods(frame).itertuples()}
    return packed(json.dumps({"colors": colors, "labels": labels, "groups": groups, "methods": methods}))


# ---- results of the run --------------------------------------------------------------------------


def counts(metrics: pd.DataFrame) -> dict:
    """Return how many jobs were planned, have scores or failed, and how many methods, data sets and so on there are."""
    job = [*tables.JOB, "seed"]
    status = metrics.groupby(job)["status"].agg(lambda values: "ok" if "ok" in set(values) else values.iloc[0])
    sizes = {f"n_{key}s": metrics[key].nunique() for key in ("method", "dataset", "seed")}
    sizes |= {"n_splits": len(tables.panels(metrics)), "n_planned": len(status)}
    return sizes | {f"n_{name}": int((status == name).sum()) for name in ("ok", "failed", "unavailable")}


def best(metrics: pd.DataFrame, dataset: str, split: str, display: style.Display) -> list[dict]:
    """Return the best and the second-best method on a split per main metric; controls and ablations do not count."""
    methods = display.methods(metrics)
    scores = tables.rows_of(tables.values_of(metrics, MAIN_METRICS), dataset=dataset, split=split)
    scores, found = scores[scores["row"].isin(methods.index)], []
    for metric in MAIN_METRICS:
        here = tables.rows_of(scores, metric=metric).groupby("row")["value"]
        ranked = [{"label": methods["label"][row], "summary": summarise(values)} for row, values in here]
        entry = display.entry("metrics", metric)
        ranked.sort(key=lambda item: item["summary"].mean, reverse=entry["better"] == "higher")
        means, spreads = ([getattr(item["summary"], key) for item in ranked[:2]] for key in ("mean", "sd"))
        close = len(ranked) > 1 and abs(means[0] - means[1]) <= np.nanmax([*spreads, 0])
        name = entry["label"][0].lower() + entry["label"][1:] if not entry["label"].isupper() else entry["label"]
        found.append({"metric": name, "ranked": ranked[:2], "close": close})
    return found


def versions() -> pd.DataFrame:
    """Return a table of the versions of Python and the installed packages."""
    rows = [["Python", platform.python_version()], ["System", f"{platform.system()} {platform.machine()}"]]
    for name in PACKAGES:
        try:
            rows.append([name, version(name)])
        except PackageNotFoundError:  # the report was made in an environment with fewer packages
            continue
    return pd.DataFrame(rows, columns=["What", "Version"])


# ---- the page ------------------------------------------------------------------------------------


def describe_datasets(
    metrics: pd.DataFrame, figures: dict[str, Path], folder: Path, captions: Path, display: style.Display
) -> list[dict]:
    """Return the origin of each data set and, for each split, its best methods, scores and figures.

    `folder` holds the tables. The UMAPs are removed from `figures`.
    """
    facts, scores = (read_if_there(folder / f"{name}.tsv") for name in ("datasets", "summary"))
    found: dict[str, dict] = {}
    for dataset, split in tables.panels(metrics):
        label = display.label("datasets", dataset)
        about = facts[facts["Data set"] == label].drop(columns="Data set").to_dict("records") if len(facts) else []
        entry = found.setdefault(dataset, {"id": f"data_{dataset}", "label": label, "splits": []})
        entry["facts"] = {key: link(value) for record in about for key, value in record.items() if value}
        name = f"{dataset}_{split}"
        shown = {"split": split, "best": best(metrics, dataset, split, display)}
        shown["scores"] = show(scores_of(scores, label, split, display), f"scores_{name}")
        if (path := figures.pop(f"umap_{name}", None)) is not None:
            shown["figure"] = show_figure(path, "UMAP of test cells", captions)
        points = folder / f"umap_{name}.tsv.gz"
        shown["umap"] = {"name": name, "data": umap_points(points, display)} if points.exists() else None
        entry["splits"].append(shown)
    return list(found.values())


def scores_of(summary: pd.DataFrame, dataset: str, split: str, display: style.Display) -> pd.DataFrame:
    """Return the rows of a split. With more than two modalities, its pairs are included and named in a column."""
    if summary.empty:
        return summary
    here = summary[(summary["Data set"] == dataset) & (summary["Split"].str.split(" ").str[0] == split)]
    pairs = here["Split"].str.partition(" ")[2]
    here = here.drop(columns=["Data set", "Split"])
    if pairs.any():
        names = [[display.label("modalities", name) for name in pair.split("+") if name] for pair in pairs]
        here.insert(0, "Modalities", [" + ".join(pair) or "mean over pairs" for pair in names])
    return here


def read_if_there(path: Path) -> pd.DataFrame:
    """Return a table as text, empty if there is none."""
    return tables.read_table(path, columns=()) if path.exists() else pd.DataFrame()


def main(
    results: Path,
    captions: Path,
    config: dict,
    configfiles: str,
    display: style.Display,
    output: Path,
    figures: tuple[Path, ...] = (),
) -> None:
    """Run the program.

    Parameters
    ----------
    captions
        The folder rules/captions.
    config
        The run's configuration (JSON).
    configfiles
        The files that hold it, for the commands.
    output
        HTML to write.
    figures
        Figures to show (PNG).
    """
    metrics, drawn = tables.read_metrics(results / "metrics.tsv"), {path.stem: path for path in figures}
    datasets = describe_datasets(metrics, drawn, results / "tables", captions, display)
    comparison = drawn.pop("comparison", None)
    others = []
    for name in sorted(drawn, key=lambda name: (list(TITLES).index(name) if name in TITLES else len(TITLES), name)):
        table = read_if_there(results / "tables" / f"{name}.tsv")
        if len(table):  # otherwise the figure only says that there is nothing to draw
            item = show_figure(drawn[name], TITLES.get(name, name.replace("_", " ")), captions)
            others.append(item | {"table": show(table, name)})
    paper = read_if_there(results / "tables" / "paper.tsv")
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html.j2").render(
        run=config["run"],
        counts=counts(metrics),
        datasets=datasets,
        comparison=comparison and show_figure(comparison, "Comparison of methods", captions),
        figures=others,
        paper=show(paper, "paper") if len(paper) else None,
        failures=show(tables.read_table(results / "failures.tsv", columns=()), "failures"),
        versions=show(versions(), "versions"),
        captions={name: caption(captions, name) for name in ("summary", "paper")},
        configfiles=configfiles,
        config=yaml.safe_dump(config, sort_keys=False),
        plotly=packed(get_plotlyjs()) if any(split["umap"] for data in datasets for split in data["splits"]) else "",
    )
    with atomic(output) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    run_program(main)
