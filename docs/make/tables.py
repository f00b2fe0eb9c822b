"""Write the tables of the documents.

In a document a table stands between the lines ``<!-- table: NAME -->`` and ``<!-- /table -->``. NAME is

* the name of docs/results/NAME.tsv, for a row per method variant and a column per split unless `VIEWS` says otherwise;
* ``published NAME``, for a table of `PUBLISHED` or the ablation: numbers of config/reference;
* ``method NAME``, for the contents of config/methods/NAME.yaml, and published numbers of the method beside ours.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from clue.benchmark.config import load
from clue.benchmark.errors import BenchmarkError
from clue.benchmark.files import atomic
from clue.benchmark.program import run_program
from clue.benchmark.report import reference, tables
from clue.benchmark.report.style import Display

RESULTS = Path("docs", "results")
REFERENCE = Path("config", "reference")
METRICS = tables.MAIN_METRICS
NOTHING = "–"


@dataclass(frozen=True)
class View:
    """How a table shows a file: the columns that name its rows and columns, and those that fill its cells."""

    rows: tuple[str, ...] = ("method", "variant")
    columns: tuple[str, ...] = ("dataset", "split")
    values: tuple[str, ...] = METRICS
    only: dict[str, str] = field(default_factory=dict)
    """The rows to show, given as values of columns."""
    file: str = ""
    """The file, if the table is not named after it."""


PREDICTED = ("predict_pearson_cell", "neighbours_pearson_cell")
VIEWS = {
    "quick_predictions": View(columns=("dataset", "direction"), values=PREDICTED),
    "baselines_predictions": View(columns=("dataset", "direction"), values=PREDICTED),
    "three_pairs": View(("split", "direction"), ("method", "variant")),
    "factors_probes": View(columns=("input_modality", "factor_kind"), values=("r2",)),
    "times": View(("what",), ("dataset",), ("seconds", "memory_mb", "steps"), {"run": "rehearsal"}),
}
PUBLISHED = {
    "leaderboard": View(("label",), ("direction",), ("match_score",)),
    "organisers": View(("label",), ("direction",), ("match_score",)),
    "cell_type_match": View(("label",), ("dataset", "direction"), ("match_score", "cell_type_match")),
    "rebenchmarks": View(
        ("label",), ("dataset", "direction"), (*METRICS, "match_score_ot"), {"split": reference.SPLIT}
    ),
    "predict_modality": View(("label",), ("direction",), ("predict_pearson_cell", "predict_pearson", "predict_rmse")),
    "ace": View(("label",), ("dataset", "direction"), METRICS, {"split": "ace"}, "rebenchmarks"),
}
for _dataset in ("bmmc_cite", "bmmc_multiome", "share_skin"):  # one table would be too wide
    PUBLISHED[f"scmmib {_dataset}"] = View(
        ("split",), ("label",), ("foscttm_euclidean_strict", "top1_euclidean"), {"dataset": _dataset}, "scmmib"
    )
MARKS = {"source": "", "reconstructed": " (plot)", "second-hand": " (2nd)", "inferred": " (inf)"}
"""Marks of numbers that were not read in the source itself."""
MOST_REMARKS = 8
"""With more remarks than this, a document only says that the file has one on each number."""


def main() -> None:
    """Run the program in the project folder."""
    for path in documents(Path()):
        text = path.read_text()
        if (new := filled(text, str(path))) != text:
            with atomic(path) as temporary:
                temporary.write_text(new)
            print(f"wrote the tables of {path}")


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
        If a marker stands alone, or there is no table of its name.
    """
    opened = re.findall(r"^<!-- (?:(table): .*|/table) -->$", text, re.MULTILINE)
    if opened != ["table", ""] * (len(opened) // 2):
        raise BenchmarkError(f"{where}: each <!-- table: NAME --> needs one <!-- /table --> after it")
    display = Display(root / "config" / "display.yaml")

    def written(found: re.Match) -> str:
        kind, _, name = found[1].partition(" ")
        if kind == "published" and name in (*PUBLISHED, "ablation"):
            table = published(name, root, display)
        elif kind == "method" and name:
            table = described(name, root, display)
        elif (path := root / RESULTS / f"{found[1]}.tsv").exists():
            table = recorded(path, display)
        else:
            known = ", ".join(sorted(file.stem for file in path.parent.glob("*.tsv")))
            raise BenchmarkError(f"{where}: <!-- table: {found[1]} -->: no file {path}; there are {known}")
        return f"<!-- table: {found[1]} -->\n\n{table}\n\n<!-- /table -->"

    return re.sub(r"^<!-- table: ([^\n]*) -->\n.*?^<!-- /table -->$", written, text, flags=re.MULTILINE | re.DOTALL)


# ---- Markdown ------------------------------------------------------------------------------------


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(text.replace("|", "/") for text in row) + " |" for row in rows)


def grid(cells: pd.DataFrame, values: Sequence[str], display: Display) -> str:
    """Return a table from the columns ``row``, ``column`` and ``cell``; rows and columns keep their order."""
    wide = cells.pivot(index="row", columns="column", values="cell").fillna(NOTHING)
    wide = wide.loc[cells["row"].unique(), cells["column"].unique()].reset_index()
    arrows = {"higher": " ↑", "lower": " ↓", None: ""}
    names = [display.label("metrics", name) + arrows[display.entry("metrics", name).get("better")] for name in values]
    return markdown([" / ".join(names), *wide.columns[1:]], wide.to_numpy())


def number(mean: str, spread: str = "") -> str:
    """Return ``mean ± sd`` to three and two digits, or ``mean`` if there is no spread."""
    if not mean:
        return NOTHING
    value = float(mean)
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}") + (f" ± {float(spread):.2g}" if spread else "")


# ---- recorded results ----------------------------------------------------------------------------


def recorded(path: Path, display: Display) -> str:
    """Return the table of a file of docs/results, followed by the origin of its numbers."""
    view = VIEWS.get(path.stem, View())
    table = tables.read_table(path, [*view.rows, *view.columns, *view.values, "command", "commit"])
    table = tables.rows_of(table, **view.only)
    optional = {"n", "status", *(f"{name}_sd" for name in view.values)}.difference(table)
    table = table.assign(**dict.fromkeys(optional, ""))
    n_rows = table["n"].value_counts()
    usual = max(table["n"], key=lambda n: (int(n or 0) > 0, n_rows[n], int(n or 0)))  # other numbers stand in the cell
    made = origin(table, view.values, usual)
    table["column"] = labels(table, view.columns, display)
    table["cell"] = [cell(row, view.values, usual) for _, row in table.iterrows()]
    if view.rows == View.rows:  # in the order of figures; other views keep that of the file
        methods = display.methods(table, controls=True, ablations=True)
        table = table.set_index(table["method"] + "/" + table["variant"]).loc[methods.index]
        table["row"] = methods["label"].loc[table.index]
    else:
        table["row"] = labels(table, view.rows, display)
    return f"{grid(table, view.values, display)}\n\n`{RESULTS / path.name}`, from {made}"


def labels(table: pd.DataFrame, columns: Sequence[str], display: Display) -> list[str]:
    """Return the labels of places, as in figures; a name without a label stays as in the file."""
    if tuple(columns) == View.rows:
        return [display.name(*names) for names in table[[*columns]].to_numpy()]
    kinds = {"dataset": "datasets", "input_modality": "modalities"}

    def label(key: str, name: str) -> str:
        if key == "direction":
            return re.sub(r"[a-z]+", lambda found: display.label("modalities", found[0]), name).replace("2", " → ")
        return display.label(kinds[key], name) if key in kinds else name

    return [
        ", ".join(label(*part) for part in zip(columns, place, strict=True)) for place in table[[*columns]].to_numpy()
    ]


def cell(row: pd.Series, values: Sequence[str], usual: str) -> str:
    """Return the values of a row with their spread, or its status if it has none."""
    if not any(row[name] for name in values):
        return row["status"] or NOTHING
    other = "" if row["n"] == usual else f" (n = {row['n']})"
    return " / ".join(number(row[name], row[f"{name}_sd"]) for name in values) + other


def origin(table: pd.DataFrame, values: Sequence[str], usual: str) -> str:
    """Return the commands that made the rows, their commits, and what the numbers are."""
    commands = ", ".join(f"`{command}`" for command in table["command"].unique())
    commits = list(dict.fromkeys(" ".join(table["commit"]).split()))
    at = f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}" if commits else "commit unknown"
    if not usual:
        return f"{commands}, {at}"
    spread = " ± standard deviation" if any(table[f"{name}_sd"].any() for name in values) else ""
    return f"{commands}, {at}; mean{spread} of {usual} seed{'s' if usual != '1' else ''}"


# ---- published numbers ---------------------------------------------------------------------------


def published(name: str, root: Path, display: Display) -> str:
    """Return numbers of config/reference, each marked by how it is known, followed by their sources and remarks."""
    if name == "ablation":
        return published_drops(root, display)
    view = PUBLISHED[name]
    path = root / REFERENCE / f"{view.file or name}.tsv"
    table = tables.rows_of(reference.read_published([path]), **view.only)
    table = table.assign(row=places(table, view.rows, display), column=places(table, view.columns, display))
    values = table.assign(text=scores_of(table)).pivot(index=["row", "column"], columns="metric", values="text")
    cells = values.reindex(columns=view.values).fillna(NOTHING).agg(" / ".join, axis=1).rename("cell")
    cells = table[["row", "column"]].drop_duplicates().join(cells, on=["row", "column"])
    known = "; ".join(f"{kind}: {n}" for kind, n in table["evidence"].value_counts(sort=False).items())
    sources = ", ".join(table["source"].str.replace(r"(@\w+) .*", r"\1", regex=True).unique())
    parts = [grid(cells, view.values, display), f"`{REFERENCE / path.name}` ({known}), from {sources}"]
    notes = table[table["note"] != ""].groupby("note", sort=False)["label"].unique()
    lines = [f"* {', '.join(about)}: {note}" for note, about in notes.items()]
    lines = lines if len(lines) <= MOST_REMARKS else ["The file has a remark on each number."]
    return "\n\n".join([*parts, "\n".join(lines)]).strip()


def published_drops(root: Path, display: Display) -> str:
    """Return how much a published score drops without a part of a method."""
    path = root / REFERENCE / "ablation.tsv"
    table = reference.read_drops(path)
    drops = [f"{drop:g} %{MARKS[known]}" for drop, known in zip(table["drop_percent"], table["evidence"], strict=True)]
    head = ["", f"Drop of {display.label('metrics', table['metric'][0]).lower()}"]
    shown = markdown(head, zip([display.label("variants", name) for name in table["variant"]], drops, strict=True))
    said = [", ".join(table["source"].unique()), "; ".join(table["note"].unique())]
    return f"{shown}\n\n`{REFERENCE / path.name}`, from {'; '.join(said)}"


def scores_of(table: pd.DataFrame) -> list[str]:
    """Return published scores, each marked by how it is known."""
    return [f"{value:.3g}{MARKS[known]}" for value, known in zip(table["value"], table["evidence"], strict=True)]


def places(table: pd.DataFrame, columns: Sequence[str], display: Display) -> list[str]:
    """Return labels for the rows or columns of published numbers."""
    found = []
    for row in table.itertuples():
        data = "" if row.dataset == "all" else display.label("datasets", row.dataset)
        direction = reference.SUBTASKS.get(row.direction, ("", row.direction))[1].replace("both", "")
        names = {
            "label": row.label.removesuffix(" (SCMMIB)"),
            "dataset": data,
            "split": row.split.removeprefix("scmmib_"),
            "direction": direction or ("" if "dataset" in columns else data),
        }
        found.append(", ".join(names[key] for key in columns if names[key]))
    return found


# ---- methods -------------------------------------------------------------------------------------


def described(method: str, root: Path, display: Display) -> str:
    """Return a table of a method's YAML, and its published numbers beside ours."""
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
    table = markdown([f"`config/methods/{method}.yaml`", ""], [row for row in rows.items() if row[1]])
    return f"{table}\n\n{beside(method, spec.get('reproduces', ''), root, display)}".strip()


def beside(method: str, name: str, root: Path, display: Display) -> str:
    """Return published numbers of a method on our data sets, beside the scores of our default variant."""
    files = [path for path in sorted((root / REFERENCE).glob("*.tsv")) if path.stem != "ablation"]
    table = reference.read_published(files)
    ours = own_scores(method, root)
    known = {path.stem for path in (root / "config" / "datasets").glob("*.yaml")}
    table = table[(table["method"] == name) & table["dataset"].isin(known)]
    if table.empty:
        return ""
    # Recorded scores are averaged over both directions.
    keys = zip(table["dataset"], table["split"], table["metric"], table["direction"], strict=True)
    table = table.assign(
        place=places(table, ["dataset", "split", "direction"], display),
        metric=[display.label("metrics", metric) for metric in table["metric"]],
        score=scores_of(table),
        ours=[ours.get(key[:3]) if key[3] == "both" else None for key in keys],
    )
    body = []
    for (place, label), rows in table.groupby(["place", "label"], sort=False):
        here = " / ".join(rows["ours"].fillna(NOTHING)) if rows["ours"].notna().any() else "not run"
        body.append([place, label, " / ".join(rows["metric"]), " / ".join(rows["score"]), here])
    head = ["Data set, split", "Published as", "Metric", "Score", "Ours"]
    if table["ours"].notna().any():
        return markdown(head, body)
    return f"{markdown(head[:-1], [row[:-1] for row in body])}\n\nNone of these was run here ([limits](limits.md))."


def own_scores(method: str, root: Path) -> dict[tuple[str, str, str], str]:
    """Return the recorded scores of a method's default variant by data set, split and metric."""
    scores = {}
    for path in sorted((root / RESULTS).glob("*.tsv")):
        table = tables.read_table(path, ())
        if {*tables.JOB, *METRICS} <= set(table):
            for _, row in tables.rows_of(table, method=method, variant="default").iterrows():
                for metric in METRICS:
                    if row[metric]:
                        scores[row["dataset"], row["split"], metric] = number(row[metric], row[f"{metric}_sd"])
    return scores


if __name__ == "__main__":
    run_program(main)
