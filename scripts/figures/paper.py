"""Write a table of the published numbers that this run can be compared with, its own numbers, and a verdict."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clue.benchmark.program import run_program
from clue.benchmark.report import style, tables
from clue.benchmark.report.reference import OVERALL, SPLIT, SUBTASKS, competition_scores, read_drops, read_published
from clue.benchmark.scores.stats import summarise

COLUMNS = ["file", "label", "dataset", "split", "direction", "metric", "published", "ours", "method_here", "seeds"]
COLUMNS += ["lowest", "highest", "difference", "verdict", "why", "evidence", "source", "note"]
NOT_RUN = "not run here"
DROP_VERDICTS = {"better": "smaller drop", "worse": "larger drop"}


def verdict(published: float, values: Sequence[float], better: str) -> str:
    """Compare a published number with the seeds of this run.

    Returns
    -------
    ``within seeds`` if it lies between the lowest and the highest seed, else ``better`` or ``worse``. These describe
    this run.
    """
    if min(values) <= published <= max(values):
        return "within seeds"
    return "better" if (np.mean(values) > published) == (better == "higher") else "worse"


def compare(published: float, values: pd.Series, better: str) -> dict:
    """Return the columns that say how this run compares with a published number."""
    summary = summarise(values)
    here = {"ours": summary.mean, "seeds": summary.n, "lowest": values.min(), "highest": values.max()}
    return here | {"difference": summary.mean - published, "verdict": verdict(published, values, better)}


def comparable(published: pd.DataFrame, table: pd.DataFrame, display: style.Display) -> pd.DataFrame:
    """Return the published scores on this run's splits, in our metrics, of methods that one of ours reproduces."""
    places = set(tables.panels(table))
    competition = places >= {(dataset, SPLIT) for dataset, _ in SUBTASKS.values()}
    of_run = np.array([place in places for place in zip(published["dataset"], published["split"], strict=True)])
    has_metric = np.array([bool(display.entry("metrics", metric)) for metric in published["metric"]])
    reproduced = published["method"].isin(display.reproduced.values())
    return published[(of_run | (published["direction"] == OVERALL) & competition) & has_metric & reproduced]


def reproductions(method: str, display: style.Display) -> list[str]:
    """Return the methods of ``config/methods`` that reproduce a published one."""
    return [name for name, published in display.reproduced.items() if published == method]


def score_rows(published: pd.DataFrame, table: pd.DataFrame, display: style.Display) -> list[dict]:
    """Return a row per published score and method of this run that reproduces it, or a row that says there is none."""
    rows = []
    for _, row in comparable(published, table, display).rename(columns={"value": "published"}).iterrows():
        able = reproductions(row["method"], display)
        names = [name for name in able if name in set(table["method"])]
        if not names:
            rows.append({**row, "verdict": NOT_RUN, "why": f"not part of this run: {', '.join(able)}"})
        for name in names:
            values, reason = own_values(row, name, table)
            better = display.entry("metrics", row["metric"])["better"]
            found = compare(row["published"], values, better) if len(values) else {"verdict": NOT_RUN, "why": reason}
            rows.append({**row, "method_here": name} | found)
    return rows


def own_values(row: pd.Series, name: str, table: pd.DataFrame) -> tuple[pd.Series, str]:
    """Return the values of a method of this run to compare with a published number, or why there are none."""
    if row["direction"] == OVERALL:
        scores = competition_scores(tables.rows_of(table, method=name), row["metric"])
        return scores[OVERALL].dropna(), "no seed has scores of all four sub-tasks"
    jobs = tables.rows_of(table, dataset=row["dataset"], split=row["split"], method=name, variant="default")
    found = tables.scores(jobs, row["metric"], row["direction"])
    return found.values, found.reason


def drop_rows(drops: pd.DataFrame, table: pd.DataFrame, display: style.Display) -> list[dict]:
    """Return a row per published drop, split and method that reproduces it, or one row if there is no such result."""
    rows = []
    for _, drop in drops.iterrows():
        base = {"file": "ablation.tsv", "label": f"{drop['method']}, {drop['variant']}", "direction": "both"}
        base |= {"metric": f"change of {drop['metric']} (%)", "published": -drop["drop_percent"]}
        base |= {key: drop[key] for key in ("evidence", "source", "note")}
        found = []
        for dataset, split in tables.panels(table):
            for method in reproductions(drop["method"], display):
                here = tables.rows_of(table, dataset=dataset, split=split)
                values, _ = tables.changes(here, method, drop["variant"], drop["metric"])
                if len(values):
                    compared = compare(base["published"], values, "higher")
                    compared["verdict"] = DROP_VERDICTS.get(compared["verdict"], compared["verdict"])
                    found.append(base | {"dataset": dataset, "split": split, "method_here": method} | compared)
        rows += found or [base | {"verdict": NOT_RUN, "why": "the ablation is not part of this run, or has no scores"}]
    return rows


def main(metrics: Path, published: list[Path], ablation: Path, display: style.Display, table: Path) -> None:
    """Run the program.

    Parameters
    ----------
    ablation
        config/reference/ablation.tsv.
    """
    scores = tables.read_metrics(metrics)
    rows = score_rows(read_published(published), scores, display) + drop_rows(read_drops(ablation), scores, display)
    tables.write_table(pd.DataFrame(rows, columns=COLUMNS), table, digits=6)


if __name__ == "__main__":
    run_program(main)
