"""Record a finished run in docs/results, and write the tables of the documents from there.

In a document a table stands between the lines ``<!-- table: NAME -->`` and ``<!-- /table -->``. NAME is

* that of docs/results/NAME.tsv, with a row per method's variant and a column per split unless `TABLES` says otherwise;
* ``published NAME``, for a table of `PUBLISHED`: numbers of config/reference;
* ``method NAME``: what config/methods/NAME.yaml says, and published numbers of the method beside ours.
"""

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from clue.benchmark.config import ORACLE, Benchmark, Job, load, read_yaml
from clue.benchmark.errors import BenchmarkError, run_program
from clue.benchmark.files import atomic
from clue.benchmark.report import reference, style, tables
from clue.benchmark.running.cost import TIMES, Planned, planned
from clue.benchmark.scores.stats import summarise

RESULTS = Path("docs", "results")
REFERENCE = Path("config", "reference")
ABLATION = "ablation"
METRICS = ("match_score", "foscttm")
MEASURED = ("seconds", "peak_memory_mb")
PROBED = ["dataset", "method", "variant", "input_modality", "factor_kind"]
NOTHING = "–"


@dataclass(frozen=True)
class Shown:
    """What a table shows of its file: the columns of the file that name its rows and columns, and fill its cells."""

    rows: tuple[str, ...] = ("method", "variant")
    columns: tuple[str, ...] = ("dataset", "split")
    values: tuple[str, ...] = METRICS
    run: str = ""
    """The only run to show, where a file has rows of several."""


TABLES = {
    "factors_probes": Shown(columns=("input_modality", "factor_kind"), values=("r2",)),
    "times": Shown(("what",), ("dataset",), ("seconds", "memory_mb", "steps"), run="rehearsal"),
}


@dataclass(frozen=True)
class Published:
    """What a table shows of a file of config/reference."""

    file: str
    rows: tuple[str, ...] = ("label",)
    columns: tuple[str, ...] = ("dataset", "direction")
    values: tuple[str, ...] = METRICS
    split: str = ""
    """The only split to show, where a file has several kinds of data."""
    dataset: str = ""
    """The only data set to show, where one table would be too wide."""


PUBLISHED = {
    "leaderboard": Published("leaderboard", columns=("direction",), values=("match_score",)),
    "organisers": Published("organisers", columns=("direction",), values=("match_score",)),
    "cell_type_match": Published("cell_type_match", values=("match_score", "cell_type_match")),
    "rebenchmarks": Published("rebenchmarks", values=(*METRICS, "match_score_ot"), split=reference.SPLIT),
    "ace": Published("rebenchmarks", split="ace"),
}
PUBLISHED |= {
    f"scmmib {dataset}": Published(
        "scmmib", ("split",), ("label",), ("foscttm_euclidean_strict", "top1_euclidean"), dataset=dataset
    )
    for dataset in ("bmmc_cite", "bmmc_multiome", "share_skin")
}
MARKS = {"source": "", "reconstructed": " (plot)", "second-hand": " (2nd)", "inferred": " (inf)"}
"""How a table marks what is known in another way than by reading the source."""
MOST_REMARKS = 8
"""Files with more of them have one on each number."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program in the project folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, metavar="CONFIG", help="the configuration of a run to record first")
    arguments = parser.parse_args(argv)
    if arguments.record:
        for path in record(arguments.record):
            print(f"recorded {path}")
    for path in documents(Path()):
        text = path.read_text()
        if (new := filled(text, str(path))) != text:
            with atomic(path) as temporary:
                temporary.write_text(new)
            print(f"wrote the tables of {path}")


# ---- from a run to docs/results ------------------------------------------------------------------


def record(config: Path) -> list[Path]:
    """Write what a run has found; rows of what it did not run stay as they are. Return the files written."""
    benchmark = Benchmark(read_yaml(config), where=str(config))
    folder, command = Path("results", benchmark.config["run"]), f"make run CONFIG={config}"
    metrics = tables.read_metrics(folder / "metrics.tsv")
    resources = tables.read_resources(folder / "resources.tsv")
    begun = {tuple(vars(job)[key] for key in tables.JOB) for job in benchmark.plan() if is_begun(job)}
    rows = []
    for key, jobs in metrics.groupby(tables.JOB, sort=False):
        job = dict(zip(tables.JOB, key, strict=True))
        used = tables.rows_of(resources, **job)
        row = job | scored(jobs, used) | origin(used, command)
        if job["method"] != ORACLE and (row["n"] != "0" or key in begun):  # the oracle is perfect by construction
            rows.append(row)
    if not rows:
        raise BenchmarkError(f"{folder}: holds no result; `{command}` first")
    files = [update(RESULTS / f"{folder.name}.tsv", rows, tables.JOB)]
    probes = folder / "tables" / "factors.tsv"
    if probes.exists():
        found = tables.read_table(probes, [*PROBED, "n", "mean", "sd"], numeric=["mean", "sd"])
        # Where only some data sets are simulated, the run is not about what embeddings keep of known factors.
        if set(found["dataset"]) == set(metrics["dataset"]):
            rows = [probed(row, resources, command) for row in found[found["method"] != ORACLE].to_dict("records")]
            files.append(update(RESULTS / f"{folder.name}_probes.tsv", rows, PROBED))
    if rows := timed(benchmark, resources, command):
        files.append(update(TIMES, rows, ["run", "what", "dataset"]))
    return files


def is_begun(job: Job) -> bool:
    """Tell whether a job was started or cannot be: else there is nothing to say of it."""
    return bool(job.reason) or Path(f"{job.log}.log").exists()


def scored(jobs: pd.DataFrame, used: pd.DataFrame) -> dict[str, str]:
    """Return scores of a method's variant on a split over seeds, what they took, and why seeds are missing."""
    found = {metric: tables.scores(jobs, metric) for metric in METRICS}
    row = {"n": str(len(found["match_score"].values))}
    for metric in METRICS:
        summary = summarise(found[metric].values)
        row |= {metric: digits(summary.mean), f"{metric}_sd": digits(summary.sd)}
    row |= {name: digits(used[name].mean()) for name in MEASURED}
    return row | {"status": found["match_score"].status, "reason": found["match_score"].reason}


def probed(row: dict, resources: pd.DataFrame, command: str) -> dict[str, str]:
    """Return R² of a kind of factors over seeds."""
    used = tables.rows_of(resources, **{key: row[key] for key in ("dataset", "method", "variant")})
    values = {"n": row["n"], "r2": digits(row["mean"]), "r2_sd": digits(row["sd"])}
    return {key: row[key] for key in PROBED} | values | origin(used, command)


def timed(benchmark: Benchmark, resources: pd.DataFrame, command: str) -> list[dict[str, str]]:
    """Return what the first job of each rule on each data set took, as Snakemake measured it, and what it left."""
    rows = {}
    for job in planned(benchmark):
        measured = Path(job.step.log.removesuffix(".log") + ".benchmark.tsv")
        if (job.what, job.dataset) in rows or not job.work or not measured.exists():
            continue
        used = tables.rows_of(resources, dataset=job.dataset)
        if job.what in benchmark.methods:
            used = tables.rows_of(used, method=job.what)
        took = pd.read_table(measured, na_values="-").iloc[-1]
        # Of a core, CPU time: other jobs on the machine lengthen what the clock shows. Very short jobs have none.
        seconds = took["s"] if job.gpus or pd.isna(took["cpu_time"]) else took["cpu_time"]
        row = {"run": benchmark.config["run"], "what": job.what, "dataset": job.dataset, "modalities": job.modalities}
        row |= {name: str(number) for name, number in vars(job.work).items()}
        row |= {"steps": str(steps_done(Path(job.step.output)) or job.work.steps)}
        row |= {"seconds": digits(seconds), "setup_seconds": "", "memory_mb": digits(took["max_rss"])}
        row |= {"disk_mb": digits(left_mb(job)), "device": "cuda" if job.gpus else "cpu", "machine": ""}
        rows[job.what, job.dataset] = row | origin(used, command)
    return list(rows.values())


def steps_done(output: Path) -> int:
    """Return the steps that a method says it took, which may have stopped early; 0 where it says nothing."""
    path = output.with_name("run.json")
    info = json.loads(path.read_text()).get("info", {}) if path.exists() else {}
    stages = [info, *(info[name] for name in ("training", "fine_tuning") if name in info)]
    return int(sum(np.sum(stage["steps"]) for stage in stages if "steps" in stage))


def left_mb(job: Planned) -> float:
    """Return the size of what a job has left; what scoring leaves in the folder of a method's job counts as that's."""
    output = Path(job.step.output)
    pattern = {"prepare": output.name, "task": "*", "score": "metrics.tsv"}.get(job.what, "**/*")
    return sum(file.stat().st_size for file in output.parent.glob(pattern) if file.is_file()) / 1e6


def origin(used: pd.DataFrame, command: str) -> dict[str, str]:
    """Return what made some jobs: the command, the commits that they ran at, and the last day."""
    commits = dict.fromkeys(used["commit"][used["commit"] != ""])
    return {"command": command, "commit": " ".join(commits), "date": max(used["date"], default="")}


def digits(value: float) -> str:
    """Return a number with four significant digits, or nothing."""
    return "" if pd.isna(value) else f"{value:.4g}"


def update(path: Path, rows: list[dict[str, str]], key: list[str]) -> Path:
    """Replace the rows of a file that have the same key, in their places; add the others."""
    old = tables.read_table(path, key).to_dict("records") if path.exists() else []
    merged = {tuple(row[name] for name in key): row for row in [*old, *rows]}
    tables.write_table(pd.DataFrame(merged.values()), path, digits=6)
    return path


# ---- from docs/results to documents --------------------------------------------------------------


def documents(root: Path) -> list[Path]:
    """Return the documents that may hold tables."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, where: str, root: Path = Path()) -> str:
    """Return a document with its tables written anew.

    Parameters
    ----------
    text
        The document.
    where
        Its name in messages.
    root
        The project folder.

    Raises
    ------
    BenchmarkError
        If a marker stands alone, or there is no file of its name.
    """
    opened = re.findall(r"^<!-- (?:(table): .*|/table) -->$", text, re.MULTILINE)
    if opened != ["table", ""] * (len(opened) // 2):
        raise BenchmarkError(f"{where}: each <!-- table: NAME --> needs one <!-- /table --> after it")

    display = style.Display(root / "config" / "display.yaml")

    def written(found: re.Match) -> str:
        kind, _, name = found[1].partition(" ")
        path = root / RESULTS / f"{kind}.tsv"
        if found[1] == f"published {ABLATION}":
            table = drops(root, display)
        elif kind == "published" and name in PUBLISHED:
            table = published(PUBLISHED[name], root, display)
        elif kind == "method" and name:
            table = described(name, root, display)
        elif found[1] == kind and path.exists():
            table = rendered(path, display)
        else:
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv")))
            raise BenchmarkError(f"{where}: <!-- table: {found[1]} -->: no file {path}; there are {known}")
        return f"<!-- table: {found[1]} -->\n\n{table}\n\n<!-- /table -->"

    return re.sub(r"^<!-- table: ([^\n]*) -->\n.*?^<!-- /table -->$", written, text, flags=re.MULTILINE | re.DOTALL)


def rendered(path: Path, display: style.Display) -> str:
    """Return the table of a file as Markdown, and below it what made its numbers."""
    shown = TABLES.get(path.stem, Shown())
    needed = [*shown.rows, *shown.columns, *shown.values, "command", "commit"]
    records = tables.read_table(path, needed).to_dict("records")
    records = [row for row in records if not shown.run or row["run"] == shown.run]
    most = max((row.get("n", "") for row in records), key=lambda n: int(n or 0), default="")
    grid: dict[tuple, dict[tuple, str]] = {}
    for row in records:
        place, column = (tuple(row[name] for name in names) for names in (shown.rows, shown.columns))
        grid.setdefault(place, {})[column] = cell(row, shown.values, most)
    columns = list(dict.fromkeys(column for cells in grid.values() for column in cells))
    head = [heading(shown.values, display), *(label(shown.columns, column, display) for column in columns)]
    body = [
        [label(shown.rows, place, display), *(grid[place].get(column, NOTHING) for column in columns)]
        for place in in_order(grid, shown.rows, display)
    ]
    return f"{markdown(head, body)}\n\n`{RESULTS / path.name}`, from {sources(records, shown.values, most)}"


def markdown(head: list[str], body: Iterable[list[str]]) -> str:
    """Return a table."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(text.replace("|", "/") for text in row) + " |" for row in rows)


def cell(row: dict[str, str], values: Sequence[str], most: str) -> str:
    """Return the values of a row with their spread; or its status, where it has none."""
    if not any(row[name] for name in values):
        return row.get("status") or NOTHING
    fewer = "" if row.get("n", "") == most else f" (n = {row['n']})"
    return " / ".join(number(row[name], row.get(f"{name}_sd", "")) for name in values) + fewer


def number(mean: str, spread: str) -> str:
    """Return ``mean ± sd`` to three and two digits, ``mean`` where there is no spread."""
    if not mean:
        return NOTHING
    value = float(mean)
    shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return shown + (f" ± {float(spread):.2g}" if spread else "")


def heading(values: Iterable[str], display: style.Display) -> str:
    """Return what the cells of a table hold."""
    arrows = {"higher": " ↑", "lower": " ↓"}
    better = {name: display.entry("metrics", name).get("better", "") for name in values}
    return " / ".join(display.label("metrics", name) + arrows.get(better[name], "") for name in values)


def label(names: tuple[str, ...], place: tuple[str, ...], display: style.Display) -> str:
    """Return how a row or a column is called, as in figures; what has no label there is called as in the file."""
    if names == Shown.rows:
        return display.name(*place)
    kinds = {"dataset": "datasets", "input_modality": "modalities"}
    known = zip(names, place, strict=True)
    return ", ".join(display.label(kinds[name], value) if name in kinds else value for name, value in known)


def in_order(grid: Iterable[tuple], names: tuple[str, ...], display: style.Display) -> list[tuple]:
    """Return the rows of a table in the order of figures, or else of the file."""
    if names != Shown.rows:
        return list(grid)
    methods = display.order("methods", (method for method, _ in grid))
    variants = display.order("variants", (variant for _, variant in grid))
    return sorted(grid, key=lambda place: (methods.index(place[0]), variants.index(place[1])))


def sources(records: list[dict[str, str]], values: Iterable[str], most: str) -> str:
    """Return the commands that made the rows, their commits, and what the numbers are."""
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(row["command"] for row in records))
    commits = list(dict.fromkeys(commit for row in records for commit in row["commit"].split()))
    at = f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}" if commits else "commit unknown"
    if not most:
        return f"{commands}, {at}"
    spread = " ± standard deviation" if any(row.get(f"{name}_sd") for row in records for name in values) else ""
    return f"{commands}, {at}; mean{spread} of {most} seed{'s' if most != '1' else ''}"


# ---- from config to documents --------------------------------------------------------------------


def published(shown: Published, root: Path, display: style.Display) -> str:
    """Return numbers of config/reference as Markdown, each marked by how it is known, and their sources below."""
    path = root / REFERENCE / f"{shown.file}.tsv"
    records = reference.read_published([path]).to_dict("records")
    records = [row for row in records if shown.split in ("", row["split"]) and shown.dataset in ("", row["dataset"])]
    grid: dict[str, dict[str, dict[str, str]]] = {}
    for row in records:
        place, column = (place_of(row, names, display) for names in (shown.rows, shown.columns))
        cell = grid.setdefault(place, {}).setdefault(column, {})
        cell[row["metric"]] = f"{row['value']:.3g}{MARKS[row['evidence']]}"
    columns = list(dict.fromkeys(column for cells in grid.values() for column in cells))
    body = [
        [place, *(joined(cells.get(column, {}), shown.values) for column in columns)] for place, cells in grid.items()
    ]
    known = dict.fromkeys(row["evidence"] for row in records)
    said = "; ".join(f"{kind}: {sum(row['evidence'] == kind for row in records)}" for kind in known)
    places = ", ".join(dict.fromkeys(re.sub(r"(@\w+) .*", r"\1", row["source"]) for row in records))
    lines = [
        markdown([heading(shown.values, display), *columns], body),
        "",
        f"`{REFERENCE / path.name}` ({said}), from {places}",
    ]
    return "\n".join([*lines, *(["", *notes] if (notes := remarks(records)) else [])])


def drops(root: Path, display: style.Display) -> str:
    """Return how much a published score drops without a part of a method."""
    path = root / REFERENCE / f"{ABLATION}.tsv"
    records = reference.read_drops(path).to_dict("records")
    body = [
        [display.label("variants", row["variant"]), f"{row['drop_percent']:g} %{MARKS[row['evidence']]}"]
        for row in records
    ]
    places = ", ".join(dict.fromkeys(row["source"] for row in records))
    notes = "; ".join(dict.fromkeys(row["note"] for row in records))
    table = markdown(["", f"Drop of {display.label('metrics', records[0]['metric']).lower()}"], body)
    return f"{table}\n\n`{REFERENCE / path.name}`, from {places}; {notes}"


def remarks(records: list[dict]) -> list[str]:
    """Return what is to be known of published numbers, each remark once with what it is about."""
    about: dict[str, list[str]] = {}
    for row in records:
        if row["note"]:
            about.setdefault(row["note"], []).append(row["label"])
    if len(about) > MOST_REMARKS:
        return ["The file has a remark on each number."]
    return [f"* {', '.join(dict.fromkeys(labels))}: {note}" for note, labels in about.items()]


def place_of(row: dict, names: tuple[str, ...], display: style.Display) -> str:
    """Return how a row or column of published numbers is called."""
    data = "" if row["dataset"] == "all" else display.label("datasets", row["dataset"])
    direction = "" if row["direction"] == "both" else row["direction"]
    direction = reference.SUBTASKS.get(direction, ("", direction))[1]
    said = {
        "label": row["label"].removesuffix(" (SCMMIB)"),
        "dataset": data,
        "split": row["split"].removeprefix("scmmib_"),
        "direction": direction or ("" if "dataset" in names else data),
    }
    return ", ".join(said[name] for name in names if said[name])


def joined(cell: dict[str, str], values: tuple[str, ...]) -> str:
    """Return the values of a cell that are there."""
    return " / ".join(cell.get(name, NOTHING) for name in values) if cell else NOTHING


def described(method: str, root: Path, display: style.Display) -> str:
    """Return what a method's YAML says, and its published numbers beside ours."""
    spec = load("methods", method, root)
    asked = spec["resources"]
    gpu = f"{asked['gpu']} GPU where the run's `device` is `cuda`, " if asked["gpu"] else ""
    rows = {
        "Paper": spec["citation"],
        "Licence": spec["licence"],
        "Program": f"`scripts/methods/{spec['script']}`, environment `{spec['env']}`" if spec.get("script") else "",
        "Settings": spec["settings"],
        "Sees test cells": "in training, without their pairing" if spec["params"].get("transductive") else "no",
        "Variants": ", ".join(f"`{name}`" for name in spec["variants"] if name != "default"),
        "Asks for": f"{gpu}{asked['mem_gb']} GB, {asked['runtime_min'] / 60:g} hours",
    }
    table = markdown([f"`config/methods/{method}.yaml`", ""], [[key, said] for key, said in rows.items() if said])
    return "\n\n".join(filter(None, [table, beside(method, spec.get("reproduces", ""), root, display)]))


def beside(method: str, name: str, root: Path, display: style.Display) -> str:
    """Return published numbers of a method on data sets of ours, beside what its default variant has reached."""
    paths = [path for path in sorted((root / REFERENCE).glob("*.tsv")) if path.stem != ABLATION]
    sets = {path.stem for path in (root / "config" / "datasets").glob("*.yaml")}
    table = reference.read_published(paths)
    table = table[(table["method"] == name) & table["dataset"].isin(sets)]
    if table.empty:
        return ""
    recorded, ours, body = own_scores(method, root), [], []
    for (dataset, split, _, label), rows in table.groupby(["dataset", "split", "direction", "label"], sort=False):
        records = rows.to_dict("records")
        place = place_of(records[0], ("dataset", "split", "direction"), display)
        said = " / ".join(f"{row['value']:.3g}{MARKS[row['evidence']]}" for row in records)
        metrics = " / ".join(display.label("metrics", row["metric"]) for row in records)
        body.append([place, label, metrics, said])
        # recorded scores are of both directions together
        found = [recorded.get((dataset, split, row["metric"])) for row in records if row["direction"] == "both"]
        ours.append(" / ".join(score or NOTHING for score in found) if any(found) else "not run")
    head = ["Data set, split", "Published as", "Metric", "Score"]
    if set(ours) == {"not run"}:
        return f"{markdown(head, body)}\n\nNone of these was run here ([limits](limits.md))."
    return markdown([*head, "Ours"], [[*row, score] for row, score in zip(body, ours, strict=True)])


def own_scores(method: str, root: Path) -> dict[tuple[str, str, str], str]:
    """Return the recorded scores of a method's default variant by data set, split and metric."""
    scores = {}
    for path in sorted((root / RESULTS).glob("*.tsv")):
        records = pd.read_table(path, dtype=str, keep_default_na=False).to_dict("records")
        for row in records:
            if row.get("method") == method and row.get("variant") == "default":
                for metric in METRICS:
                    if row.get(metric):
                        scores[row["dataset"], row.get("split", ""), metric] = number(row[metric], row[f"{metric}_sd"])
    return scores


if __name__ == "__main__":
    run_program(main)
